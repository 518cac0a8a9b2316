"""Who enforces a rule: NATS, or the agents alone.

NATS enforces who, which types and which view. What stands in an event, its `when`, is the agents' to ask; so is a deny
inside an allow where the publish lines it meets do not name exact types.

Source: design section 4, Deciding.
"""

from __future__ import annotations

from typing import Literal

from mesh.policy.compile import Plans
from mesh.policy.rules import Rule

Enforced = Literal["nats", "agent only"]


class Enforcement:
    """Who enforces each rule of one tenant.

    Args:
        plans: Of the tenant.
        now_ms: Unix milliseconds, for grants that end.
    """

    def __init__(self, plans: Plans, *, now_ms: int) -> None:
        self._tenancy = plans.tenancy
        self._grants = plans.grants(now_ms=now_ms)

    def of(self, id: str) -> Enforced:
        """Who enforces the allow or deny *id*.

        Raises:
            KeyError: There is none.
        """
        for rule in self._tenancy.allows:
            if rule.id == id:
                return "nats" if rule.when is None else "agent only"
        for rule in self._tenancy.denies:
            if rule.id == id:
                return "agent only" if rule.when is not None or self._left_to_agents(rule) else "nats"
        raise KeyError(id)

    def _left_to_agents(self, deny: Rule) -> bool:
        """Whether NATS still lets through something that *deny* is about."""
        if deny.verb == "publish":
            reached = (a for a, team in self._tenancy.team_of.items() if deny.about_agent(a, team))
            let = [grant.pattern for agent in reached for grant in self._grants.agents[agent].publish]
        else:
            teams = (team for team, members in self._tenancy.members.items() if deny.denies_team(team, members))
            let = [grant.pattern for team in teams for grant in self._grants.teams[team]]
        return any(pattern.intersects(mine) for pattern in let for mine in deny.patterns)
