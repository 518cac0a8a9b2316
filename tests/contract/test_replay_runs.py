"""Replays of one subscription that follow each other: what each brings is its own, whatever happened in between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import anyio
import pytest

from mesh import sidelines
from mesh.control.replay import Replays
from mesh.control.replay_reach import Point
from mesh.signing import Received
from tests.contract.agent_mesh import until
from tests.contract.consumer_mesh import GRACE, STREAM, Reader
from tests.contract.ordered_mesh import ORDERED, OrderedSource

if TYPE_CHECKING:
    from mesh.control.policies import Policies
    from mesh.control.replay_runs import Run
    from mesh.inbound import Admitted
    from mesh.sidelines import Sidelines
    from mesh.subscription import Subscription

pytestmark = pytest.mark.anyio


@dataclass
class World:
    """A subscription whose events are handled, and a control plane that replays to it."""

    source: OrderedSource
    reader: Reader
    reading: Subscription
    policies: Policies
    replays: Replays
    replayed: list[tuple[str, str]] = field(default_factory=list)  # event and run, as they were handled
    live: list[str] = field(default_factory=list)

    @property
    def sidelines(self) -> Sidelines:
        """What the reader knows of runs."""
        return self.reading.feed._sidelines

    @classmethod
    @asynccontextmanager
    async def running(cls, directory: Path, policies: str) -> AsyncIterator[World]:
        """Six events, `e1` to `e6`, that have been handled."""
        async with OrderedSource.ordered(directory, policies) as source, source.reader() as reader:
            held = await _policies(source)
            await source.publish("e1", "e2", "e3", "e4", "e5", "e6")
            async with reader.subscription() as reading, anyio.create_task_group() as group:
                world = cls(source, reader, reading, held, Replays(held, _unheard))
                group.start_soon(reading.run, world._handle)
                await until(lambda: len(world.live) == 6)
                yield world
                group.cancel_scope.cancel()

    async def _handle(self, event: Admitted) -> None:
        if event.replay:
            self.replayed.append((event.id, event.replay))
        else:
            self.live.append(event.id)

    async def start(self, first: int, last: int) -> str:
        """Replay these; the run."""
        begun = await self.replays.start("support", "contacts", Point(seq=first), Point(seq=last))
        return str(begun["run"])

    async def handled(self, run: str, *ids: str) -> None:
        """Wait until a run has brought as many, and see that they are these."""
        await until(lambda: len(self.of(run)) >= len(ids))
        assert sorted(self.of(run)) == sorted(ids)

    def of(self, run: str) -> list[str]:
        """What a run has brought."""
        return [event for event, by in self.replayed if by == run]

    async def ended(self, run: str) -> str:
        """How a run ended, once it has."""
        with anyio.fail_after(60):
            while True:
                for one in await self.replays.runs():
                    if one["run"] == run and one["state"] != "open":
                        return str(one["state"])
                await anyio.sleep(0.02)


class Killed(Replays):
    """A control plane that ends between the making of durables and the notice of them."""

    async def _notice(self, run: Run, streams: Iterable[str]) -> None:
        if not tuple(streams):
            await super()._notice(run, ())


def _unheard(_kind: str, /, **_facts: object) -> None:
    """No trail is kept here."""


async def _policies(source: OrderedSource) -> Policies:
    """Those in force, as far as a replay asks for them."""
    grant = await source.grant()
    grants = SimpleNamespace(
        site="local", domains=["crm"], active=[grant], subscriptions={("support", "contacts"): grant}
    )

    async def opened_ms(_grant: object) -> int:
        return 0

    held = SimpleNamespace(
        connection=source.streams.connection,
        tenant="acme",
        changing=anyio.Lock(),
        grants=grants,
        opened_ms=opened_ms,
    )
    return cast("Policies", held)


@pytest.mark.parametrize("policies", [GRACE, ORDERED], ids=["plain", "ordered"])
@pytest.mark.parametrize("between", ["finished", "cancelled", "killed"])
async def test_a_run_that_follows_brings_its_own(tmp_path: Path, policies: str, between: str) -> None:
    """At once, and beyond the end of the one before: all of it is handled, under its own id, none is acked unseen."""
    async with World.running(tmp_path, policies) as world:
        first = await world.start(1, 3)
        await world.handled(first, "e1", "e2", "e3")
        if between == "cancelled":
            await world.replays.cancel(first)
        else:
            assert await world.ended(first) == "finished"
        if between == "killed":
            world.replays = Killed(world.policies, _unheard)
        second = await world.start(2, 6)
        if between == "killed":
            world.replays = Replays(world.policies, _unheard)
        assert await world.ended(second) == "finished"
        await world.handled(second, "e2", "e3", "e4", "e5", "e6")
        assert world.of(first) == ["e1", "e2", "e3"]
        assert len(world.replayed) == 8


async def test_who_lost_the_connection_knows_of_no_run(tmp_path: Path) -> None:
    """It may have missed what followed: it pulls nothing until it hears again, and then all comes as what it is."""
    async with World.running(tmp_path, GRACE) as world:
        first = await world.start(1, 3)
        await world.handled(first, "e1", "e2", "e3")
        await world.reader.connection.rebuild()
        await until(lambda: world.reader.connection.connected)
        assert world.sidelines.replays == []
        assert await world.ended(first) == "finished"
        second = await world.start(4, 6)
        assert await world.ended(second) == "finished"
        await world.handled(second, "e4", "e5", "e6")


async def test_a_run_that_another_followed_does_not_come_back(tmp_path: Path) -> None:
    """What a control plane that had stopped for a while still says of it is not heard."""
    async with World.running(tmp_path, GRACE) as world:
        for run, last in (("one", 3), ("two", 6), ("one", 3)):
            await world.source.notice("replay", run, STREAM, **{STREAM: last})
        await world.source.replay()
        await world.handled("two", "e1", "e2", "e3", "e4", "e5", "e6")
        assert world.of("one") == []


async def test_what_arrives_once_a_run_fell_silent_is_still_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more is pulled; what had been asked for keeps the run's id, and its end."""
    monkeypatch.setattr(sidelines, "OVER_S", 0.1)
    async with World.running(tmp_path, GRACE) as world:
        await world.source.notice("replay", "one", STREAM, **{STREAM: 3})
        await until(lambda: world.sidelines._known)
        await until(lambda: not world.sidelines.replays)
        late = [Received("ev", b"", (), None, STREAM, sequence, 0, 1, "") for sequence in (3, 4)]
        marked = [world.sidelines.replayed(received) for received in late]
        assert [received and received.replay for received in marked] == ["one", None]
