"""`Agent`: everything between an accepted event and its receipt, without any HTTP.

The process puts doors around it; a Python adapter embeds it and saves the hop. The promises are the same: `publish`
returns when every copy is durable, one denied or malformed event refuses its whole batch, and publishing the same id
again is safe. Whether it takes events now, and why not, is in `observed`.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from agent import metrics, traced
from agent.keys import clock_ms, read
from agent.observed import Observed
from agent.outbound import limits_of
from agent.parts import Files
from agent.room import Held, Room
from agent.settings import load
from mesh import logs, spans
from mesh.errors import Disconnected, MeshError, NoBundle, TooLarge
from mesh.event import Draft, draft_from_fields, draft_from_structured

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from agent.identity import Identity
    from agent.receipts import Receipt
    from agent.sequences import Sequences
    from agent.settings import AgentSettings
    from mesh.jetstream.publisher import Publisher
    from mesh.policy.compile import Plans

FIRST_KEY_S = 2.0  # for a key, where the spool could do without: with a control plane it is there in milliseconds

log = logs.get("agent")


class Agent(Observed):
    """One agent: use it as `async with Agent(settings) as agent`, then `await agent.publish(...)`.

    Args:
        settings: Every limit and file name.
        base: The directory that relative file names start from.

    Raises:
        ConfigError: A file is missing, malformed or somebody else's.
    """

    def __init__(self, settings: AgentSettings, base: str | os.PathLike[str] = ".") -> None:
        self.base = Path(base)
        self._files = Files(settings, self.base)
        super().__init__(settings, self._files.keys)
        self.limits = limits_of(settings)
        self.clock_ms = clock_ms
        self.webhook_bytes = Room(settings.max_webhook_bytes, wait_s=settings.admit_wait_s, unit="bytes")
        self._publisher: Publisher | None = None
        self._sequences: Sequences | None = None
        self._gauges: list[Callable[[], None]] = []
        self._telemetry = AsyncExitStack()  # of an agent that is embedded; the process has its own

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """An agent as its `agent.toml` and `MESH_AGENT_*` describe it.

        Raises:
            ConfigError: The file or a variable is wrong.
        """
        file = Path(path)
        text = read(file, "an agent.toml").decode(errors="replace")
        return cls(load(text, os.environ, file=file.name).settings, file.resolve().parent)

    # --- life ---

    async def start(self) -> None:
        """Begin: connect, get a key and the bundle, publish. Returns at once; until both are there, all is refused.

        Raises:
            ConfigError: The files to connect with are missing or are not what they should be.
        """
        parts = await self._files.assemble(self.clock_ms, self._adopt)
        self._connection, self._publisher, self._policies, self._identity = parts[:4]
        self.outbound, self._sequences, self.spool = parts[4:]
        self._gauges = metrics.is_of(self.settings, self.base)
        self._gauges += metrics.watch(
            parts.outbound, lambda: not self.not_ready(), parts.identity.left_s, lambda: self._connected
        )
        self._tasks.spawn("publisher", parts.publisher.run())
        self._tasks.spawn("identity", parts.identity.run())
        self._tasks.spawn("audit", parts.policies.audit.run())
        self._tasks.spawn("sequences", parts.sequences.run())
        self._tasks.spawn("bundle", parts.policies.run(self._tasks))
        self._tasks.spawn("keys", self._watch_keys())
        self._tasks.spawn("opening", self._open(parts.identity))
        if parts.spool is not None:
            self._gauges += metrics.watch_spool(parts.spool)
            self._tasks.spawn("spool", parts.spool.run())

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until events are accepted.

        Raises:
            NoBundle: No valid bundle arrived in time.
            NotEnrolled: The agent got no certificate in time.
            Disconnected: Not even NATS was reached.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._opened.wait()
        except TimeoutError:
            self.check_open()
            raise NoBundle("no valid policy bundle arrived in time") from None

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, finish what was accepted; True where all of it is durable.

        What the spool holds is. It goes on to streams that take it, and what is left waits for the next start.
        """
        self._draining = True
        publisher = self._publisher
        if publisher is None or self.outbound is None:
            return True
        deadline = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self.outbound.idle()
        except TimeoutError:
            drained = False
        else:
            if self.spool is not None:
                await self.spool.drain(max(0.0, deadline - time.monotonic()))
            drained = self.spool is not None or await publisher.drain(max(0.0, deadline - time.monotonic()))
        if drained and self._sequences is not None:
            self._sequences.finish()
        if not drained:
            log.error("drain_incomplete", waiting=self.outbound.room.used, in_flight=publisher.in_flight)
        return drained

    async def close(self) -> None:
        """End every task and the connection; what is not durable by now fails, `Disconnected`."""
        self._draining = True
        closed = Disconnected(
            "the agent was closed before the stream acknowledged this",
            expected="an acknowledgement before the end of the drain",
            next="send it again: the same message id makes that safe",
        )
        for forget in self._gauges:
            forget()
        if self._policies is not None:
            await self._policies.stop()
        await self._tasks.cancel()
        if self.outbound is not None:
            self.outbound.close(closed)
        if self.spool is not None:
            self.spool.close(closed)
        if self._publisher is not None:
            self._publisher.close(closed)
        if self.spool is not None:
            await self.spool.end()
        if self._connection is not None:
            await self._connection.close()

    async def __aenter__(self) -> Self:
        await self.start()
        try:
            await traced.begin(self._telemetry, self.settings)
            await self.wait_ready(self.settings.connect_timeout_s)
        except BaseException:
            await self.close()
            await self._telemetry.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.drain(self.settings.drain_s)
        finally:
            await self.close()
            await self._telemetry.aclose()

    # --- publishing ---

    async def publish(self, event: Mapping[str, Any] | Draft) -> Receipt:
        """Publish one event; returns when every copy is durable.

        Args:
            event: CloudEvents attributes and `data` as JSON values; it is copied and not changed.

        Raises:
            InputError: The event is malformed or over a limit.
            Denied: Policy refuses it; `rule` and `reason` say why.
            Unavailable: It is not durable now; publishing it again, with the same id, is safe.
        """
        self.check_open()
        draft = self._draft(event)
        if spans.tracer is not None:
            return (await traced.publish(self, [draft], spans.tracer.ambient(), spans.tracer))[0]
        return (await self.publish_drafts([draft]))[0]

    async def publish_many(self, events: Sequence[Mapping[str, Any] | Draft | bytes]) -> list[Receipt]:
        """Publish events together: all are checked and decided before any goes out.

        Args:
            events: Each as for `publish`, or the bytes of a structured CloudEvent in JSON, which is quickest: it is
                read, decided and masked in one go, and of what it was read into nothing stays in memory.

        Raises:
            InputError: One is malformed, `index` says which, or there are too many; nothing was published.
            Denied: Policy refuses one; `index` says which, and nothing was published.
            Unavailable: Not all are durable; `accepted` says how many are, `failed` which are not.
        """
        self.check_open()
        limit = self.settings.max_batch_events
        if len(events) > limit:
            raise TooLarge(f"{len(events)} events at once, limit {limit}", limit=limit, size=len(events))
        tracer = spans.tracer
        if tracer is None and set(map(type, events)) == {bytes}:
            return await self.publish_drafts(cast("list[bytes]", list(events)))  # the caller may use its own again
        drafts: list[Draft] = []
        for index, event in enumerate(events):
            try:
                drafts.append(self._draft(event))
            except MeshError as error:
                error.details.setdefault("index", index)
                raise
        if tracer is not None:
            return await traced.publish(self, drafts, tracer.ambient(), tracer)
        return await self.publish_drafts(drafts)

    async def publish_drafts(self, drafts: Sequence[Draft] | Sequence[bytes]) -> list[Receipt]:
        """Like `publish_many`, for events that a door has accepted; also while draining.

        Raises:
            Denied: As above.
            Unavailable: As above.
        """
        if self.outbound is None:
            raise NoBundle("the agent is not started")
        return await self.outbound.publish(drafts)

    def _draft(self, event: Mapping[str, Any] | Draft | bytes) -> Draft:
        if isinstance(event, Draft):
            return event
        if isinstance(event, bytes):
            return draft_from_structured(event, now_ms=clock_ms(), limits=self.limits)
        return draft_from_fields(event, now_ms=clock_ms(), limits=self.limits)

    def bytes_held(self, size: int) -> Held:
        """Set aside memory for a body while it is read and published.

        Raises:
            Overloaded: Too many bodies are held already, and none ended in time.
        """
        return self._bytes.held(size)

    # --- tasks ---

    def _adopt(self, plans: Plans) -> None:
        self.keys.refresh()  # a new bundle can mask in a new domain
        if self.outbound is not None:
            self.outbound.adopt(plans)
        self._bundle_arrived.set()

    async def _open(self, identity: Identity) -> None:
        """Open for events once there is a bundle, and a key; with a spool a key is waited for shortly, if at all."""
        await self._bundle_arrived.wait()
        patience_s = None if self.spool is None else FIRST_KEY_S if self._connected else 0.0
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await identity.enrolled.wait()
        self._opened.set()

    async def _watch_keys(self) -> None:
        while True:
            await asyncio.sleep(max(self.settings.file_check_s, 1.0))
            self.keys.refresh()
