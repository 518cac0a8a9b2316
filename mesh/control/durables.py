"""The durables of one tenant's subscriptions on the server: silenced, added, narrowed, drained, made anew.

A durable moves past what its filters leave out and never comes back for it: until a revision is certain, what it takes
away is only paused. The same holds for the durables of replays that are open; those of redrives have no filters that
policies change.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from mesh import logs
from mesh.control.reconcile import now_ms
from mesh.jetstream import manage
from mesh.jetstream.changes import Actual, plan
from mesh.jetstream.durables import REPLAY, is_sideline, replays, subscription_of
from mesh.jetstream.succession import held, position, predecessors, settled, succeeded
from mesh.jetstream.topology import ConsumerSpec, Topology, consumer, desired, not_before_ms
from mesh.jetstream.transition import filters_of, remaining, still_read, takes_away, widened, with_filters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mesh.jetstream.changes import Change
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.topology import Config, Sizes
    from mesh.policy.grants import Grants

FOR_GOOD = "2200-01-01T00:00:00Z"  # until when a durable is paused that nobody may pull: until it is resumed
PAUSE = timedelta(minutes=5)  # of a durable that is to lose filters: milliseconds, unless the control plane dies

log = logs.get("control")


class Durables:
    """Those of one tenant.

    Args:
        connection: The control plane's, in the tenant account.
        site: Of the streams.
        sizes: How much each stream may hold.
    """

    def __init__(self, connection: Connection, *, site: str, sizes: Sizes | None = None) -> None:
        self.connection = connection
        self.site = site
        self.sizes = sizes

    async def subscriptions(self) -> frozenset[str]:
        """The subscriptions that have durables, each as `<team>--<subscription>`.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        names = {name for _, name in (await manage.read_actual(self.connection)).consumers}
        return frozenset(subscription_of(name) for name in names if not is_sideline(name))

    async def silence(self, grants: Grants) -> None:
        """Pause what is to lose filters, for `PAUSE` at most, and what nobody may pull, until it is resumed.

        A paused durable keeps its place and delivers nothing, to pulls already open as well.

        Raises:
            RequestFailed, Unavailable: As `subscriptions`.
        """
        actual = await manage.read_actual(self.connection)
        wanted = {(spec.stream, spec.name): spec for spec in self._after(grants, actual)}
        for (stream, name), config in actual.consumers.items():
            spec = wanted.get((stream, name))
            if not (stream.startswith(f"EV_{self.site}_") and "--" in name) or config.get("pause_until") == FOR_GOOD:
                continue
            if spec is None:
                await self._set_pause(stream, name, FOR_GOOD)
                log.info("durable_paused", stream=stream, durable=name)
            elif takes_away(filters_of(config), spec.filters):
                await self._set_pause(stream, name, _soon())

    async def add(self, grants: Grants) -> None:
        """Make streams and durables that are lacking, add filters, and resume what may be pulled again.

        Where filters are still to go, `narrow` resumes.

        Raises:
            RequestFailed, Unavailable: As `subscriptions`.
        """
        actual = await manage.read_actual(self.connection)
        exact = self._exact(grants)
        specs = [await self._placed(spec, actual) for spec in self._with(widened, exact, actual)]
        changes = plan(Topology(exact.site, exact.streams, tuple(specs)), actual)
        say(changes)
        await manage.apply(self.connection, changes)
        for spec in self._after(grants, actual):
            config = actual.consumers.get((spec.stream, spec.name), {})
            if config.get("pause_until") == FOR_GOOD:
                narrows = takes_away(filters_of(config), spec.filters)
                await self._set_pause(spec.stream, spec.name, _soon() if narrows else None)
                log.info("durable_resumed", stream=spec.stream, durable=spec.name)

    async def narrow(self, grants: Grants) -> None:
        """Take filters away that *grants* do not give, and let the durables that were paused for it go on.

        What was delivered and is not acked would come again, matching or not: hence the reset to the ack floor.
        Durables that others have taken over from go.

        Raises:
            RequestFailed, Unavailable: As `subscriptions`; what is not narrowed yet stays paused, for `PAUSE`.
        """
        actual = await manage.read_actual(self.connection)
        for spec in self._after(grants, actual):
            config = actual.consumers.get((spec.stream, spec.name))
            if config is None:
                continue
            if takes_away(filters_of(config), spec.filters):
                changes = plan(Topology(self.site, (), (spec,)), _only({(spec.stream, spec.name): config}))
                say(changes)
                await manage.apply(self.connection, changes)
                await manage.api(self.connection, f"CONSUMER.RESET.{spec.stream}.{spec.name}", {})
            if config.get("pause_until", FOR_GOOD) != FOR_GOOD:
                await self._set_pause(spec.stream, spec.name, None)
        for stream, name in succeeded(self._exact(grants).consumers, actual.consumers):
            await manage.api(self.connection, f"CONSUMER.DELETE.{stream}.{name}")
            log.info("durable_succeeded", stream=stream, durable=name)

    async def restart_after_last(self, grants: Grants, teams: Iterable[str]) -> list[str]:
        """Make the durables of *teams* anew, to begin with what is stored from now on; returns their names.

        Their replays end, and no later one reaches back before now.

        Raises:
            RequestFailed, Unavailable: As `subscriptions`.
        """
        names = _of_teams(grants, teams)
        actual = await manage.read_actual(self.connection)
        made = []
        for stream, name in actual.consumers:
            if subscription_of(name) in names and name.endswith(f"--{REPLAY}"):
                await manage.api(self.connection, f"CONSUMER.DELETE.{stream}.{name}")
        for spec in self._exact(grants).consumers:
            if subscription_of(spec.name) in names:
                if (spec.stream, spec.name) in actual.consumers:
                    await manage.api(self.connection, f"CONSUMER.DELETE.{spec.stream}.{spec.name}")
                anew = replace(spec, start="new", not_before_ms=now_ms())
                await manage.apply(self.connection, plan(Topology(self.site, (), (anew,)), _only({})))
                made.append(spec.name)
        return made

    async def pause(self, grants: Grants, teams: Iterable[str]) -> None:
        """Let nothing be pulled from the durables of *teams* until they are made anew."""
        names = _of_teams(grants, teams)
        actual = await manage.read_actual(self.connection)
        for stream, name in actual.consumers:
            if subscription_of(name) in names and stream.startswith(f"EV_{self.site}_"):
                await self._set_pause(stream, name, FOR_GOOD)

    # --- draining ----------------------------------------------------------------------------------------------------

    async def undrained(self, grants: Grants) -> dict[tuple[str, str], ConsumerSpec]:
        """The durables, by stream and name, that still hold filters of old views; each as it has to become."""
        actual = await manage.read_actual(self.connection)
        return {
            (spec.stream, spec.name): spec
            for spec in self._exact(grants).consumers
            if (config := actual.consumers.get((spec.stream, spec.name))) is not None
            and set(filters_of(config)) != set(spec.filters)
        }

    async def last_sequence(self, stream: str) -> int:
        """The number of the last event of *stream*."""
        return int((await manage.stream_info(self.connection, stream))["state"]["last_seq"])

    async def drained(self, spec: ConsumerSpec, last: int) -> bool:
        """Whether the durable has settled everything up to *last*; if so, it gets exactly the filters of *spec*."""
        info = await manage.consumer_info(self.connection, spec.stream, spec.name)
        done = settled(info, last)
        if done:
            actual = {(spec.stream, spec.name): info["config"]}
            changes = plan(Topology(self.site, (), (spec,)), _only(actual))
            say(changes)
            await manage.apply(self.connection, changes)
        return done

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _exact(self, grants: Grants) -> Topology:
        return desired(self.site, grants.domains, grants.active, self.sizes)

    def _with(
        self, keep: Callable[[Iterable[str], Iterable[str]], tuple[str, ...]], exact: Topology, actual: Actual
    ) -> list[ConsumerSpec]:
        """Each durable with what it needs and what it *keep*s of what it has, or takes over."""
        return [with_filters(s, keep(held(s, actual.consumers), s.filters)) for s in exact.consumers]

    def _after(self, grants: Grants, actual: Actual) -> list[ConsumerSpec]:
        """What has to be delivered while old views drain, by the replays that are open too."""
        return [*self._with(remaining, self._exact(grants), actual), *self._replays(grants, actual)]

    def _replays(self, grants: Grants, actual: Actual) -> Iterator[ConsumerSpec]:
        """The durables of open replays, each with what of it is still read; not those of which nothing is."""
        for grant in grants.active:
            for durable in replays(self.site, grants.domains, grant):
                config = actual.consumers.get((durable.stream, durable.name), {})
                filters = still_read(filters_of(config), durable.filters)
                if filters and bool(config.get("priority_groups")) is grant.ordered:
                    yield consumer(replace(durable, filters=filters), grant, pinned=grant.ordered)

    async def _placed(self, spec: ConsumerSpec, actual: Actual) -> ConsumerSpec:
        """*spec*, to begin behind what the durables have settled that it takes over from, where there are any."""
        before = predecessors(spec, actual.consumers)
        if not before:
            return spec
        infos = [await manage.consumer_info(self.connection, spec.stream, name) for name in before]
        return replace(
            spec,
            after=min(position(info) for info in infos),
            not_before_ms=max(not_before_ms(info["config"]) for info in infos),
        )

    async def _set_pause(self, stream: str, name: str, until: str | None) -> None:
        body = {} if until is None else {"pause_until": until}
        await manage.api(self.connection, f"CONSUMER.PAUSE.{stream}.{name}", body)


def _of_teams(grants: Grants, teams: Iterable[str]) -> set[str]:
    """The subscriptions of *teams*, as durables name them."""
    meant = set(teams)
    return {grant.durable for grant in grants.active if grant.team in meant}


def _soon() -> str:
    return (datetime.now(UTC) + PAUSE).isoformat(timespec="seconds").replace("+00:00", "Z")


def _only(consumers: dict[tuple[str, str], Config]) -> Actual:
    return Actual({}, consumers)


def say(changes: Iterable[Change]) -> None:
    """Log what is about to change."""
    for change in changes:
        log.info("topology_change", change=change.text, refused=change.refused)
