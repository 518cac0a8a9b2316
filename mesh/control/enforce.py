"""What NATS lets the workloads of one tenant do, and the steps from one revision's rights to the next.

    withdraw    rights that are gone: durables that lose filters are paused, then pulls, then subjects of publishers
    extend      streams, durables and their filters, accounts: what the new revision needs, beside what still runs
    narrow      once the new revision is stored: filters that are gone leave the paused durables, which then go on
    settle      once every agent runs the new revision: publishers get exactly their subjects
    drained     once what was stored under an old view is acked: durables get exactly their filters

Between withdraw and settle nothing is refused that either revision allows to go on, so a change loses no event. A
durable moves past what its filters leave out and never comes back for it: until the new revision is certain it is
paused, which keeps its place, and no filter is taken away. What is there already is read from the server each time, so
a control plane that was killed in between goes on from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.control.durables import Durables, say
from mesh.control.reconcile import team_workload
from mesh.jetstream import accounts as nats
from mesh.jetstream import manage
from mesh.jetstream.changes import plan
from mesh.jetstream.topology import desired
from mesh.jetstream.transition import still_allowed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.control.accounts import Accounts
    from mesh.jetstream.accounts import Import
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.topology import Sizes
    from mesh.policy.compile import Plans
    from mesh.policy.grants import Grants, PublishGrant


class Enforcer(Durables):
    """Brings NATS, for one tenant, to what its policies say: its accounts, and with `Durables` all it delivers.

    Args:
        connection: The control plane's, in the tenant account.
        accounts: Of the tenant.
        site: Of the streams.
        sizes: How much each stream may hold.
    """

    def __init__(self, connection: Connection, accounts: Accounts, *, site: str, sizes: Sizes | None = None) -> None:
        super().__init__(connection, site=site, sizes=sizes)
        self._accounts = accounts
        self._subjects: dict[str, tuple[PublishGrant, ...]] = {}  # by agent, as its account imports them
        self._imports: dict[str, tuple[tuple[PublishGrant, ...], frozenset[Import]]] = {}

    async def foundation(self) -> None:
        """Make the streams that every tenant has, policies or not.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        bare = desired(self.site, (), (), self.sizes)
        changes = [c for c in plan(bare, await manage.read_actual(self.connection)) if c.action != "delete"]
        say(changes)
        await manage.apply(self.connection, changes)

    async def withdraw(self, plans: Plans, grants: Grants) -> None:
        """Take away what *grants* no longer give anybody.

        Publishers keep the subjects of views that merely lost their readers: an agent still makes such copies until it
        runs the new revision, and an event with one refused copy would wait.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer; the bundle in force is still the old one.
        """
        await self.silence(grants)
        kept: dict[str, Iterable[Import]] = {}
        for agent, held in grants.agents.items():
            before = self._subjects.get(agent)
            if before is not None and not set(before) <= set(held.publish):
                denied = [p for rule in plans.tenancy.publish_denies(agent) if rule.when is None for p in rule.patterns]
                lines = still_allowed(before, held.types, denied)
                routed = still_allowed(before, [grant.pattern for grant in held.publish], ())
                self._subjects[agent] = tuple(dict.fromkeys((*lines, *routed)))
                kept[agent] = self._publish(agent)
        for team in grants.teams:
            pulls = self._accounts.held(team_workload(team))
            if pulls is not None:
                kept[team_workload(team)] = pulls & frozenset(self._pulls(grants, team))
        await self._accounts.set(kept)
        gone = await self._accounts.close_all_but([*grants.agents, *(team_workload(team) for team in grants.teams)])
        for workload in gone:  # cut off, it cannot say that it ended: nobody is to wait for it
            self._subjects.pop(workload, None)
            await manage.api(self.connection, "STREAM.PURGE.REPORTS", {"filter": f"report.{workload}.>"})

    async def extend(self, grants: Grants) -> None:
        """Add what *grants* need. A filter that came after an event would skip it, so this precedes the bundle.

        Raises:
            RequestFailed, Unavailable: As `withdraw`.
        """
        await self.add(grants)
        for agent, held in grants.agents.items():
            self._subjects[agent] = tuple(dict.fromkeys((*self._subjects.get(agent, ()), *held.publish)))
        await self._accounts.set(
            {
                **{agent: self._publish(agent) for agent in grants.agents},
                **{team_workload(team): self._pulls(grants, team) for team in grants.teams},
            }
        )

    async def settle(self, grants: Grants) -> None:
        """Publishers get exactly what *grants* give them.

        Raises:
            RequestFailed, Unavailable: As `withdraw`.
        """
        self._subjects = {agent: held.publish for agent, held in grants.agents.items()}
        await self._accounts.set({agent: self._publish(agent) for agent in self._subjects})

    def _publish(self, agent: str) -> frozenset[Import]:
        """The imports of an agent's subjects; made once for each set of them: most changes leave most agents alone."""
        subjects = self._subjects[agent]
        made = self._imports.get(agent)
        if made is None or made[0] != subjects:
            imports = frozenset(nats.publish_imports(self._accounts.owner, self.site, subjects))
            made = self._imports[agent] = (subjects, imports)
        return made[1]

    def _pulls(self, grants: Grants, team: str) -> list[Import]:
        mine = [grant for grant in grants.active if grant.team == team]
        return nats.subscription_imports(self._accounts.owner, self.site, grants.domains, mine)
