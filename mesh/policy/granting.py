"""Working out the grants of one tenant at one time. What they are is in `grants.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from mesh.policy.ciphers import cipher_name
from mesh.policy.delivering import delivery_of
from mesh.policy.grants import (
    AgentGrants,
    Grants,
    PublishGrant,
    ReadGrant,
    SubscriptionGrant,
    outermost,
)
from mesh.policy.model import Subscription
from mesh.policy.rules import Rule, Tenancy, routable, spiffe_id
from mesh.policy.texts import instant_ms, instant_text
from mesh.subjects import Pattern, stream_name

_Rights: TypeAlias = tuple[tuple[Pattern, ...], tuple[PublishGrant, ...], tuple[str, ...], tuple[str, ...]]


class GrantsCompiler:
    """Works out the grants of one tenant at one time.

    Args:
        tenancy: The parsed policies.
        site, trust_domain: The bundle's.
        now_ms: Unix milliseconds; without it, every right that can expire has.

    What is asked for is worked out once. One agent's grants cost little; all grants grow with agents and rules.
    """

    def __init__(self, tenancy: Tenancy, *, site: str, trust_domain: str, now_ms: int | None) -> None:
        self._tenancy = tenancy
        self._site = site
        self._trust_domain = trust_domain
        self._now_ms = now_ms
        self._published = tenancy.published()
        self._domains = sorted({p.domain for p in self._published if p.domain is not None})
        self._rights: dict[tuple[tuple[str, ...], tuple[str, ...]], _Rights] = {}  # by the ids of the rules behind them
        self._documents = {(s.metadata.team, s.metadata.name): s for s in tenancy.subscriptions}
        self._teams: dict[str, tuple[ReadGrant, ...]] = {}
        self._agents: dict[str, AgentGrants] = {}
        self._subscriptions: dict[tuple[str, str], SubscriptionGrant] = {}
        self._all: Grants | None = None

    def compile(self) -> Grants:
        """All grants."""
        if self._all is None:
            self._all = self._compile()
        return self._all

    def agent(self, agent: str) -> AgentGrants | None:
        """What *agent* may publish; None where the tenant does not know it."""
        if agent not in self._agents and agent in self._tenancy.team_of:
            reads = [grant for team in sorted(self._tenancy.members) for grant in self.reads(team)]
            self._agents[agent] = self._agent(agent, reads)
        return self._agents.get(agent)

    def reads(self, team: str) -> tuple[ReadGrant, ...]:
        """What *team* may read."""
        if team not in self._teams:
            self._teams[team] = self._reads(team)
        return self._teams[team]

    def subscription(self, team: str, name: str) -> SubscriptionGrant | None:
        """The subscription *name* of *team*; None where none is declared."""
        key = (team, name)
        if key not in self._subscriptions and key in self._documents:
            self._subscriptions[key] = self._subscription(self._documents[key], self.reads(team))
        return self._subscriptions.get(key)

    def _compile(self) -> Grants:
        tenancy = self._tenancy
        teams = {team: self.reads(team) for team in sorted(tenancy.members)}
        agents = {agent: self.agent(agent) for agent in sorted(tenancy.team_of)}
        subscriptions = {key: self.subscription(*key) for key in sorted(self._documents)}
        return Grants(
            tenant=tenancy.name,
            site=self._site,
            agents={name: found for name, found in agents.items() if found is not None},
            teams=teams,
            subscriptions={key: found for key, found in subscriptions.items() if found is not None},
            streams={domain: stream_name(self._site, domain) for domain in self._domains},
            team_ciphers=self._team_ciphers(),
        )

    def _live(self, rules: Iterable[Rule]) -> list[Rule]:
        return [rule for rule in rules if not rule.ended(self._now_ms)]

    # --- agents ------------------------------------------------------------------------------------------------------

    def _agent(self, agent: str, reads: list[ReadGrant]) -> AgentGrants:
        tenancy = self._tenancy
        lines, denies = self._live(tenancy.publishing(agent)), tenancy.publish_denies(agent)
        key = tuple(rule.id for rule in lines), tuple(rule.id for rule in denies)
        rights = self._rights.get(key)
        if rights is None:
            rights = self._rights[key] = self._rights_of(lines, denies, reads)
        identity = tenancy.tenant.spec.identities.get(agent) or spiffe_id(self._trust_domain, tenancy.name, agent)
        return AgentGrants(agent, tenancy.team_of[agent], identity, *rights)

    def _rights_of(self, lines: list[Rule], denies: list[Rule], reads: list[ReadGrant]) -> _Rights:
        """What the publish rules of some agents come to: types, copies, domains and ciphers."""
        tenancy = self._tenancy
        types = tuple(outermost(p for rule in lines for p in rule.patterns))
        said = self._copies(types, denies, reads)
        routed = self._routed(lines, denies, reads)
        routed = [r for r in routed if not any(g.view == r.view and g.pattern.covers(r.pattern) for g in said)]
        publish = tuple(sorted((*said, *routed), key=lambda grant: (grant.view, grant.pattern)))
        domains: set[str] = set()
        ciphers: set[str] = set()
        for grant in publish:
            covering = tenancy.classifying_any(grant.pattern)
            tags = {tag for index in covering for tag in tenancy.classified[index].tags}
            domains |= tenancy.tables[grant.view].domains(tags)
            ciphers |= tenancy.tables[grant.view].ciphers(tags)
        return types, publish, tuple(sorted(domains)), tuple(sorted(ciphers))

    @staticmethod
    def _copies(types: tuple[Pattern, ...], denies: list[Rule], reads: list[ReadGrant]) -> list[PublishGrant]:
        """The copies in each view that somebody reads of what an agent's publish lines name."""
        flat = [pattern for rule in denies if rule.when is None for pattern in rule.patterns]
        wanted: dict[str, list[Pattern]] = {}
        for grant in reads:
            for mine in types:
                both = mine.intersection(grant.pattern)
                if both is not None:
                    wanted.setdefault(grant.view, []).append(both)
        return [
            PublishGrant(view, pattern, any(deny.intersects(pattern) for deny in flat))
            for view, patterns in wanted.items()
            for pattern in outermost(patterns)
            if not any(deny.covers(pattern) for deny in flat)
        ]

    def _routed(self, lines: list[Rule], denies: list[Rule], reads: list[ReadGrant]) -> list[PublishGrant]:
        """The copies that routes make of what an agent may publish; a route is the grant for them, past every deny."""
        targets = {route.to for route in self._tenancy.routes if routable(lines, denies, route)}
        return [
            PublishGrant(view, Pattern.parse(to))
            for to in sorted(targets)
            for view in sorted({grant.view for grant in reads if grant.pattern.matches(to)})
        ]

    def _team_ciphers(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, set[str]] = {team: set() for team in sorted(self._tenancy.members)}
        for view in self._tenancy.views.values():
            for line in view.spec.mask:
                for team in line.params.readers or () if line.action == "encrypt" else ():
                    found.setdefault(team, set()).add(cipher_name(line.params))
        return {team: tuple(sorted(names)) for team, names in found.items()}

    # --- teams and subscriptions -------------------------------------------------------------------------------------

    def _reads(self, team: str) -> tuple[ReadGrant, ...]:
        denies = self._tenancy.denied(team)
        grants: dict[ReadGrant, None] = {}
        for rule in self._live(self._tenancy.reading(team)):
            for pattern in rule.patterns:
                for part, agent_only in self._without(pattern, denies):
                    grants[ReadGrant(rule.view, part, rule.id, rule.expires_ms, agent_only, rule.since_ms)] = None
        return tuple(grants)

    def _without(self, pattern: Pattern, denies: list[Pattern]) -> list[tuple[Pattern, bool]]:
        """What *denies* leave of *pattern*, each part with whether it holds something that NATS cannot take out.

        One more deny leaves no more than before: where NATS cannot enforce it, those that it can stay enforced.
        """
        meeting = [deny for deny in denies if deny.intersects(pattern)]
        if not meeting:
            return [(pattern, False)]
        parts = outermost(p for p in (known.intersection(pattern) for known in self._published) if p is not None)
        left = [part for part in parts if not any(deny.covers(part) for deny in meeting)]
        return [(part, any(deny.intersects(part) for deny in meeting)) for part in left]

    def _subscription(self, document: Subscription, reads: tuple[ReadGrant, ...]) -> SubscriptionGrant:
        team = document.metadata.team
        wanted = [Pattern.parse(text) for text in document.spec.types]
        view, reason = self._view(document, wanted, reads)
        filters: list[Pattern] = []
        agent_only = False
        if not reason:
            filters, reason, agent_only = self._filters(wanted, [g for g in reads if g.view == view], team)
        return SubscriptionGrant(
            team=team,
            name=document.metadata.name,
            view=view,
            filters=tuple(filters),
            active=not reason,
            reason=reason,
            agent_only=agent_only,
            start=_start(document.spec.start, [g for g in reads if g.view == view], filters),
            **delivery_of(self._tenancy.tenant.spec.delivery, document.spec),
        )

    @staticmethod
    def _view(document: Subscription, wanted: list[Pattern], reads: tuple[ReadGrant, ...]) -> tuple[str, str]:
        """The view a subscription reads, and why it has none."""
        team, named = document.metadata.team, document.spec.view
        if named is not None:
            held = any(grant.view == named for grant in reads)
            return named, "" if held else f"team `{team}` has no grant for the view `{named}`"
        lasting = [g for g in reads if g.expires_ms is None and any(g.pattern.intersects(w) for w in wanted)]
        views = sorted({grant.view for grant in lasting})
        if len(views) == 1:
            return views[0], ""
        if not views:
            return "", f"team `{team}` has no lasting grant for {_listed(wanted)}"
        return "", f"the grants of team `{team}` give the views {', '.join(views)}: say which in `spec.view`"

    def _filters(self, wanted: list[Pattern], reads: list[ReadGrant], team: str) -> tuple[list[Pattern], str, bool]:
        """The filters of a subscription, why there are none, and whether a deny inside them is left to agents."""
        denies = self._tenancy.denied(team)
        filters: list[Pattern] = []
        beyond = []
        for pattern in wanted:
            meets = (both for g in reads if (both := g.pattern.intersection(pattern)) is not None)
            parts = [found for part in meets for found in self._in_domains(part)]
            if not parts:
                beyond.append(pattern)
            filters.extend(parts)
        if beyond:
            view = reads[0].view
            return [], f"beyond the team's grants in the view `{view}`, or never published: {_listed(beyond)}", False
        kept = [part for pattern in outermost(filters) for part in self._without(pattern, denies)]
        left = outermost(part for part, _ in kept)
        return left, "" if left else "a deny covers all of it", any(agent_only for _, agent_only in kept)

    def _in_domains(self, pattern: Pattern) -> list[Pattern]:
        """*pattern* domain by domain, as each has a stream of its own; only domains somebody publishes in."""
        if pattern.domain is not None:
            return [pattern] if pattern.domain in self._domains else []
        within = (pattern.intersection(Pattern.parse(f"{domain}.>")) for domain in self._domains)
        return [part for part in within if part is not None]


def _start(written: str, reads: list[ReadGrant], filters: list[Pattern]) -> str:
    """Where a durable starts: as *written*, but no earlier than the grants behind its filters open history.

    A grant without `since` says nothing about it here: what it opens, agents judge event by event.
    """
    since = [g.since_ms for g in reads if any(g.pattern.intersects(f) for f in filters)]
    opened = [at for at in since if at is not None]
    if written == "new" or not opened or len(opened) < len(since):
        return written
    return written if written != "all" and instant_ms(written) >= min(opened) else instant_text(min(opened))


def _listed(patterns: Iterable[Pattern]) -> str:
    return ", ".join(f"`{pattern.written}`" for pattern in patterns)
