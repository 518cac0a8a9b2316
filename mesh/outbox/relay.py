"""From an outbox to the agent's door: in order for each source, until each event got its 202.

A round takes the events that wait longest, leaves out the sources that have to wait, posts those of different sources
side by side and those of one source one after another, and deletes what was accepted.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from mesh import logs
from mesh.client import Mesh, PublishFailed
from mesh.errors import CrossOrigin, MeshError
from mesh.outbox.rows import problem_of
from mesh.telemetry import counter, gauge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from mesh.outbox.rows import Level, Row

    Publish = Callable[[Mapping[str, Any]], Awaitable[object]]

ROUND = 256  # events of one round: a quarter of a second at 1,000 events/s, and that much may be posted twice
SOURCES_AT_ONCE = 16  # posts under way at one agent
POLL_S = 0.1  # between two looks at an empty outbox: what an event waits at most, where nothing is wrong
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # of a source whose event was not taken, and of a lost database
LEAVE_S = 5.0  # to delete what was accepted when the relay is told to end; else it is posted again some day
LEVEL_S = 10.0  # between two counts of what waits
REFUSED_STATUS = frozenset({400, 403, 413, 422})  # the event is at fault: posting it again cannot help

PUBLISHED = counter("mesh.outbox.published", unit="{event}", watch="flat while waiting rises: the agent is away")
REFUSED = counter(
    "mesh.outbox.refused",
    unit="{event}",
    watch="above 0: the agent refused an event for good; `outbox.refused(connection)` says why, `again` tries it again",
)
WAITING = gauge(
    "mesh.outbox.waiting", unit="{event}", watch="rising: the agent is away, or slower than the application"
)
ASIDE = gauge("mesh.outbox.aside", unit="{event}", watch="above 0: refused events that nobody has looked at")
OLDEST = gauge("mesh.outbox.oldest", unit="s", watch="rising: a source waits for its agent")

log = logs.get("outbox")


class Store(Protocol):
    """An outbox as its relay sees it, while no other relay works on it."""

    async def waiting(self, without: Collection[str], limit: int) -> list[Row]:
        """The first *limit* events that wait, but those of the sources *without*; in the order they were added."""

    async def accepted(self, seqs: Sequence[int]) -> None:
        """Delete them."""

    async def set_aside(self, seq: int, problem: str) -> None:
        """Keep it, and why it was refused."""

    async def level(self) -> Level:
        """How much there is."""


class Outbox(Protocol):
    """Where the relay's work comes from."""

    @property
    def faults(self) -> tuple[type[Exception], ...]:
        """What its database raises when it is away."""

    def leading(self) -> AbstractAsyncContextManager[Store]:
        """Wait until no other relay works on it, and keep others away meanwhile."""


@asynccontextmanager
async def relaying(outbox: Outbox, to: Mesh | Publish, *, poll_s: float = POLL_S) -> AsyncIterator[None]:
    """Relay in the background for the length of the block. What is not posted at its end stays where it is."""
    relay = _Relay(outbox, through(to) if isinstance(to, Mesh) else to, poll_s)
    raised: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(relay.run)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the caller's own, raised below: a task group would wrap it
            raised = error
        finally:
            group.cancel_scope.cancel()
    if raised is not None:
        raise raised


def through(mesh: Mesh) -> Publish:
    """Publishes one event's attributes and data at the mesh's agent."""

    async def publish(fields: Mapping[str, Any]) -> object:
        rest = {name: value for name, value in fields.items() if name != "specversion"}
        known = {name: rest.pop(name, None) for name in ("data", "id", "subject", "time", "partitionkey")}
        return await mesh.publish(rest.pop("type"), source=rest.pop("source"), extensions=rest, **known)

    return publish


class _Delays:
    """Which sources wait, and until when."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}
        self._tries: dict[str, int] = {}

    def add(self, source: str, at_least_s: float) -> float:
        """It has to wait; returns for how long."""
        number = self._tries.get(source, 0)
        self._tries[source] = number + 1
        wait_s = max(at_least_s, BACKOFF_S[min(number, len(BACKOFF_S) - 1)])
        self._until_s[source] = time.monotonic() + wait_s
        return wait_s

    def forget(self, source: str) -> None:
        """It got through."""
        self._tries.pop(source, None)
        self._until_s.pop(source, None)

    def now(self) -> list[str]:
        """Those that still wait."""
        now_s = time.monotonic()
        return [source for source, until_s in self._until_s.items() if until_s > now_s]


class _Done:
    """What a round has posted so far."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.refused: list[tuple[Row, MeshError]] = []


class _Relay:
    def __init__(self, outbox: Outbox, publish: Publish, poll_s: float) -> None:
        self._outbox = outbox
        self._publish = publish
        self._poll_s = poll_s
        self._delays = _Delays()
        self._at_once = anyio.CapacityLimiter(SOURCES_AT_ONCE)
        self._counted_s = float("-inf")
        self._faults = 0

    async def run(self) -> None:
        """Relay until cancelled, over faults of the database."""
        while True:
            try:
                async with self._outbox.leading() as store:
                    log.info("outbox_relay_leads")
                    while True:
                        if not await self._round(store):
                            await anyio.sleep(self._poll_s)
                        self._faults = 0
            except self._outbox.faults as error:
                wait_s = BACKOFF_S[min(self._faults, len(BACKOFF_S) - 1)]
                self._faults += 1
                log.error("outbox_database_failed", error_class=type(error).__name__, again_s=wait_s)
                await anyio.sleep(wait_s)

    async def _round(self, store: Store) -> bool:
        """Post what waits; whether anything did."""
        if time.monotonic() - self._counted_s >= LEVEL_S:
            self._count(await store.level())
        rows = await store.waiting(self._delays.now(), ROUND)
        lines: dict[str, list[Row]] = {}
        for row in rows:
            lines.setdefault(row.source, []).append(row)
        done = _Done()
        try:
            async with anyio.create_task_group() as group:
                for line in lines.values():
                    group.start_soon(self._post_line, line, done)
        except BaseException:
            with anyio.move_on_after(LEAVE_S, shield=True):
                await self._note(store, done)
            raise
        await self._note(store, done)
        return bool(rows)

    async def _post_line(self, line: Sequence[Row], done: _Done) -> None:
        """Post the events of one source in order, up to the first that has to wait."""
        for row in line:
            async with self._at_once:
                try:
                    await self._publish(row.fields())
                except MeshError as error:
                    if not refused_for_good(error):
                        self._hold(row, error)
                        return
                    done.refused.append((row, error))
                else:
                    done.accepted.append(row.seq)
            self._delays.forget(row.source)

    async def _note(self, store: Store, done: _Done) -> None:
        for row, error in done.refused:
            await store.set_aside(row.seq, problem_of(error))
            REFUSED.add(1, code=code_of(error))
            log.error("outbox_event_refused", seq=row.seq, code=code_of(error), next="read why with `outbox.refused`")
        if done.accepted:
            await store.accepted(done.accepted)
            PUBLISHED.add(len(done.accepted))

    def _hold(self, row: Row, error: MeshError) -> None:
        wait_s = self._delays.add(row.source, retry_after_s(error))
        log.warning("outbox_waits", seq=row.seq, code=code_of(error), status=_status(error), again_s=wait_s)

    def _count(self, level: Level) -> None:
        self._counted_s = time.monotonic()
        WAITING.set(level.waiting)
        ASIDE.set(level.refused)
        OLDEST.set(0 if level.oldest_ms is None else max(0.0, time.time() - level.oldest_ms / 1000))


def _status(error: MeshError) -> int:
    return error.http_status if isinstance(error, PublishFailed) else error.status


def code_of(error: MeshError) -> str:
    """The stable code, which an agent behind HTTP says in its problem document."""
    return str(error.problem.get("code", error.code)) if isinstance(error, PublishFailed) else error.code


def retry_after_s(error: MeshError) -> float:
    """How long whoever raised it wants to be left alone, at least; 0 where it did not say."""
    problem = error.problem if isinstance(error, PublishFailed) else error.details
    after = problem.get("retry_after_s", 0)
    return float(after) if isinstance(after, int | float) else 0.0


def refused_for_good(error: MeshError) -> bool:
    """Whether the event is at fault, and not the way to the agent."""
    return _status(error) in REFUSED_STATUS and code_of(error) != CrossOrigin.code
