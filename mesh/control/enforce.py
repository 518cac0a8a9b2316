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

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from mesh import logs
from mesh.control.reconcile import team_workload
from mesh.jetstream import accounts as nats
from mesh.jetstream import manage
from mesh.jetstream.changes import Actual, plan
from mesh.jetstream.topology import ConsumerSpec, Topology, desired
from mesh.jetstream.transition import (
    filters_of,
    remaining,
    still_allowed,
    takes_away,
    widened,
    with_filters,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.control.accounts import Accounts
    from mesh.jetstream.accounts import Import
    from mesh.jetstream.changes import Change
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.topology import Config, Sizes
    from mesh.policy.compile import Plans
    from mesh.policy.grants import Grants, PublishGrant

FOR_GOOD = "2200-01-01T00:00:00Z"  # until when a durable is paused that nobody may pull: until it is resumed
PAUSE = timedelta(minutes=5)  # of a durable that is to lose filters: milliseconds, unless the control plane dies

log = logs.get("control")


class Enforcer:
    """Brings NATS, for one tenant, to what its policies say.

    Args:
        connection: The control plane's, in the tenant account.
        accounts: Of the tenant.
        site: Of the streams.
        sizes: How much each stream may hold.
    """

    def __init__(self, connection: Connection, accounts: Accounts, *, site: str, sizes: Sizes | None = None) -> None:
        self._connection = connection
        self._accounts = accounts
        self._site = site
        self._sizes = sizes
        self._subjects: dict[str, tuple[PublishGrant, ...]] = {}  # by agent, as its account imports them
        self._imports: dict[str, tuple[tuple[PublishGrant, ...], frozenset[Import]]] = {}

    async def foundation(self) -> None:
        """Make the streams that every tenant has, policies or not.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        bare = desired(self._site, (), (), self._sizes)
        changes = [c for c in plan(bare, await manage.read_actual(self._connection)) if c.action != "delete"]
        _say(changes)
        await manage.apply(self._connection, changes)

    # --- the five steps ----------------------------------------------------------------------------------------------

    async def durables(self) -> frozenset[str]:
        """The names of the durables that are there.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        return frozenset(name for _, name in (await manage.read_actual(self._connection)).consumers)

    async def withdraw(self, plans: Plans, grants: Grants) -> None:
        """Take away what *grants* no longer give anybody.

        Publishers keep the subjects of views that merely lost their readers: an agent still makes such copies until it
        runs the new revision, and an event with one refused copy would wait.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer; the bundle in force is still the old one.
        """
        actual = await manage.read_actual(self._connection)
        await self._pause(self._target(grants, actual), actual)
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
            await manage.api(self._connection, "STREAM.PURGE.REPORTS", {"filter": f"report.{workload}.>"})

    async def extend(self, grants: Grants) -> None:
        """Add what *grants* need. A filter that came after an event would skip it, so this precedes the bundle.

        Raises:
            RequestFailed, Unavailable: As `withdraw`.
        """
        actual = await manage.read_actual(self._connection)
        changes = plan(self._target(grants, actual, widened), actual)
        _say(changes)
        await manage.apply(self._connection, changes)
        await self._reopen(self._target(grants, actual), actual)
        for agent, held in grants.agents.items():
            self._subjects[agent] = tuple(dict.fromkeys((*self._subjects.get(agent, ()), *held.publish)))
        await self._accounts.set(
            {
                **{agent: self._publish(agent) for agent in grants.agents},
                **{team_workload(team): self._pulls(grants, team) for team in grants.teams},
            }
        )

    async def narrow(self, grants: Grants) -> None:
        """Take filters away that *grants* do not give, and let the durables that were paused for it go on.

        What was delivered and is not acked would come again, matching or not: hence the reset to the ack floor.

        Raises:
            RequestFailed, Unavailable: As `withdraw`; what is not narrowed yet stays paused, for `PAUSE`.
        """
        actual = await manage.read_actual(self._connection)
        for spec in self._target(grants, actual).consumers:
            config = actual.consumers.get((spec.stream, spec.name))
            if config is None:
                continue
            if takes_away(filters_of(config), spec.filters):
                changes = plan(Topology(self._site, (), (spec,)), _only({(spec.stream, spec.name): config}))
                _say(changes)
                await manage.apply(self._connection, changes)
                await manage.api(self._connection, f"CONSUMER.RESET.{spec.stream}.{spec.name}", {})
            if config.get("pause_until", FOR_GOOD) != FOR_GOOD:
                await self._set_pause(spec.stream, spec.name, None)

    async def settle(self, grants: Grants) -> None:
        """Publishers get exactly what *grants* give them.

        Raises:
            RequestFailed, Unavailable: As `withdraw`.
        """
        self._subjects = {agent: held.publish for agent, held in grants.agents.items()}
        await self._accounts.set({agent: self._publish(agent) for agent in self._subjects})

    async def restart_after_last(self, grants: Grants, teams: Iterable[str]) -> list[str]:
        """Make the durables of *teams* anew, to begin with what is stored from now on; returns their names.

        Raises:
            RequestFailed, Unavailable: As `withdraw`.
        """
        names = {grant.durable for grant in grants.active if grant.team in set(teams)}
        actual = await manage.read_actual(self._connection)
        made = []
        for spec in self._exact(grants).consumers:
            if spec.name in names:
                if (spec.stream, spec.name) in actual.consumers:
                    await manage.api(self._connection, f"CONSUMER.DELETE.{spec.stream}.{spec.name}")
                new = Topology(self._site, (), (replace(spec, start="new"),))
                await manage.apply(self._connection, plan(new, _only({})))
                made.append(spec.name)
        return made

    async def pause(self, grants: Grants, teams: Iterable[str]) -> None:
        """Let nothing be pulled from the durables of *teams* until they are made anew."""
        names = {grant.durable for grant in grants.active if grant.team in set(teams)}
        actual = await manage.read_actual(self._connection)
        for stream, name in actual.consumers:
            if name in names:
                await self._set_pause(stream, name, FOR_GOOD)

    # --- draining ----------------------------------------------------------------------------------------------------

    async def undrained(self, grants: Grants) -> dict[tuple[str, str], ConsumerSpec]:
        """The durables, by stream and name, that still hold filters of old views; each as it has to become."""
        actual = await manage.read_actual(self._connection)
        return {
            (spec.stream, spec.name): spec
            for spec in self._exact(grants).consumers
            if (config := actual.consumers.get((spec.stream, spec.name))) is not None
            and set(filters_of(config)) != set(spec.filters)
        }

    async def last_sequence(self, stream: str) -> int:
        """The number of the last event of *stream*."""
        return int((await manage.stream_info(self._connection, stream))["state"]["last_seq"])

    async def drained(self, spec: ConsumerSpec, last: int) -> bool:
        """Whether the durable has settled everything up to *last*; if so, it gets exactly the filters of *spec*."""
        info = await manage.consumer_info(self._connection, spec.stream, spec.name)
        settled = info["ack_floor"]["stream_seq"] >= last or not info["num_pending"] + info["num_ack_pending"]
        if settled:
            actual = {(spec.stream, spec.name): info["config"]}
            changes = plan(Topology(self._site, (), (spec,)), _only(actual))
            _say(changes)
            await manage.apply(self._connection, changes)
        return settled

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _exact(self, grants: Grants) -> Topology:
        return desired(self._site, grants.domains, grants.active, self._sizes)

    def _target(
        self,
        grants: Grants,
        actual: Actual,
        keep: Callable[[Iterable[str], Iterable[str]], tuple[str, ...]] = remaining,
    ) -> Topology:
        """What has to be: each durable with what it needs and what it *keep*s of what it has.

        Unless said otherwise that is what it has to deliver while old views drain.
        """
        exact = self._exact(grants)
        consumers = []
        for spec in exact.consumers:
            config = actual.consumers.get((spec.stream, spec.name))
            held = () if config is None else filters_of(config)
            consumers.append(with_filters(spec, keep(held, spec.filters)))
        return Topology(exact.site, exact.streams, tuple(consumers))

    async def _pause(self, target: Topology, actual: Actual) -> None:
        """Silence what is to lose filters, for `PAUSE` at most, and what nobody may pull, until it is resumed.

        A paused durable keeps its place and delivers nothing, to pulls already open as well.
        """
        wanted = {(spec.stream, spec.name): spec for spec in target.consumers}
        for (stream, name), config in actual.consumers.items():
            spec = wanted.get((stream, name))
            if not (stream.startswith(f"EV_{self._site}_") and "--" in name) or config.get("pause_until") == FOR_GOOD:
                continue
            if spec is None:
                await self._set_pause(stream, name, FOR_GOOD)
                log.info("durable_paused", stream=stream, durable=name)
            elif takes_away(filters_of(config), spec.filters):
                await self._set_pause(stream, name, _soon())

    async def _reopen(self, target: Topology, actual: Actual) -> None:
        """Resume what may be pulled again; where filters are still to go, `narrow` does it."""
        for spec in target.consumers:
            config = actual.consumers.get((spec.stream, spec.name), {})
            if config.get("pause_until") == FOR_GOOD:
                narrows = takes_away(filters_of(config), spec.filters)
                await self._set_pause(spec.stream, spec.name, _soon() if narrows else None)
                log.info("durable_resumed", stream=spec.stream, durable=spec.name)

    async def _set_pause(self, stream: str, name: str, until: str | None) -> None:
        body = {} if until is None else {"pause_until": until}
        await manage.api(self._connection, f"CONSUMER.PAUSE.{stream}.{name}", body)

    def _publish(self, agent: str) -> frozenset[Import]:
        """The imports of an agent's subjects; made once for each set of them: most changes leave most agents alone."""
        subjects = self._subjects[agent]
        made = self._imports.get(agent)
        if made is None or made[0] != subjects:
            imports = frozenset(nats.publish_imports(self._accounts.owner, self._site, subjects))
            made = self._imports[agent] = (subjects, imports)
        return made[1]

    def _pulls(self, grants: Grants, team: str) -> list[Import]:
        mine = [grant for grant in grants.active if grant.team == team]
        return nats.subscription_imports(self._accounts.owner, self._site, grants.domains, mine)


def _soon() -> str:
    return (datetime.now(UTC) + PAUSE).isoformat(timespec="seconds").replace("+00:00", "Z")


def _only(consumers: dict[tuple[str, str], Config]) -> Actual:
    return Actual({}, consumers)


def _say(changes: Iterable[Change]) -> None:
    for change in changes:
        log.info("topology_change", change=change.text, refused=change.refused)
