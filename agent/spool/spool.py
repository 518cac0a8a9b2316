"""What stands between the lanes and the publisher: straight through, or behind the backlog of its stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agent import metrics
from agent.keys import clock_ms
from agent.spool.aside import Aside
from agent.spool.backlog import Backlog
from agent.spool.egress import EXPIRED
from agent.spool.record import NOT_SENT, OVERHEAD_BYTES, Sent
from agent.spool.resent import ReadAhead, resent
from agent.spool.store import Store
from mesh import logs
from mesh.errors import MeshError, NotEnrolled, SignerExpired, SpoolFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent.spool.database import Row
    from agent.spool.egress import Egress
    from agent.spool.opened import Opened
    from agent.spool.record import RefusedRow
    from agent.spool.tools import Policies, SealingKeys
    from mesh.audit_log import AuditLog
    from mesh.jetstream.acks import PubAck
    from mesh.jetstream.outgoing import Outgoing
    from mesh.jetstream.publisher import Publisher
    from mesh.journey import Outbound

AHEAD_MS = 20_000  # a first signature further in the future was made by a clock that was wrong
MARGIN_MS = 10_000  # of a first signature's age: as long as a copy stays with the publisher, and a little more
FULL_S = 1.0  # after the disk took nothing: then it is tried again

log = logs.get("spool")


class Spool:
    """All backlogs of one agent.

    Args:
        opened: The file.
        publisher: Where copies go; hands over what a stream does not acknowledge.
        policies: Those in force.
        egress: Judges copies before they are sent.
        keys: About keys.
        limit_bytes: The bound.
        after_s: How long a stream may be silent.
        audit: Where refused copies are recorded.

    Attributes:
        bytes: Of the copies that wait; those that were refused have a bound of their own.
        refused_copies: Kept aside.
        on_void: Called for each copy that may not be stored under its number: with the ack where the stream had the
            event already, with None where the copy was put aside.
    """

    def __init__(
        self,
        opened: Opened,
        publisher: Publisher,
        policies: Policies,
        egress: Egress,
        keys: SealingKeys,
        *,
        limit_bytes: int,
        after_s: float,
        audit: AuditLog | None = None,
    ) -> None:
        contents = opened.contents
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self.store = Store(opened.database, self._loop, self._changed.set)
        self.publisher = publisher
        self.policies = policies
        self.egress = egress
        self._keys = keys
        self._limit_bytes = limit_bytes
        self._aside = Aside(audit)
        self.read_ahead = ReadAhead()
        self._last_id = contents.last_id
        self._full_until = 0.0
        self._backlogs: dict[str, Backlog] = {}
        self._emptied = asyncio.Event()
        self.bytes = 0
        self.refused_copies = contents.refused
        self.on_void: Callable[[Outgoing, PubAck | None], None] = lambda _item, _ack: None
        for stream, held in contents.streams.items():
            self._backlogs[stream] = Backlog(stream, self, held=held.copies, oldest_ms=held.oldest_ms)
            self.bytes += held.bytes + OVERHEAD_BYTES * held.copies
        if contents.streams:
            log.info("spool_opened", copies=self.copies, streams=len(self._backlogs), refused=self.refused_copies)
        publisher.hand_over_to(self.take_over, after_s=after_s)
        publisher.on_open = self._wake

    # --- state -------------------------------------------------------------------------------------------------------

    @property
    def copies(self) -> int:
        """Copies that wait on disk."""
        return sum(backlog.copies for backlog in self._backlogs.values())

    @property
    def full(self) -> bool:
        """Whether nothing more can be taken now."""
        return self.bytes >= self._limit_bytes or self._disk_full

    @property
    def _disk_full(self) -> bool:
        return self.store.tight or self._loop.time() < self._full_until

    def oldest_s(self) -> float:
        """Age of the oldest copy that waits; 0 without any."""
        oldest = [b.oldest_ms for b in self._backlogs.values() if b.copies and b.oldest_ms]
        return max(0.0, (self.now_ms() - min(oldest)) / 1000) if oldest else 0.0

    def state(self) -> dict[str, Any]:
        """Facts for people who look at a probe."""
        return {
            "copies": self.copies,
            "bytes": self.bytes,
            "limit_bytes": self._limit_bytes,
            "oldest_s": round(self.oldest_s(), 1),
            "refused": self.refused_copies,
            "streams": {name: backlog.copies for name, backlog in self._backlogs.items()},
        }

    # --- in: the lanes' window ---------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Copies that `submit` takes now."""
        return self.publisher.room

    def submit(self, batch: list[Outgoing]) -> None:
        """Take one batch of one view: to the publisher, or behind the backlog of each copy's stream.

        Raises:
            Overloaded: More than `room`.
            MeshError: Whatever else the publisher raises, but for the lack of a key; none of the copies is taken.
        """
        backlogs = self._backlogs
        if not backlogs:
            self._submit(batch)
            return
        direct: list[Outgoing] = []
        behind: dict[str, list[Outgoing]] = {}
        for item in batch:
            (behind.setdefault(item.stream, []) if item.stream in backlogs else direct).append(item)
        if direct:
            self._submit(direct)
        for stream, items in behind.items():
            backlogs[stream].add(items)

    def _submit(self, batch: list[Outgoing]) -> None:
        try:
            self.publisher.submit(batch)
        except (NotEnrolled, SignerExpired):  # it can wait for a key
            streams: dict[str, list[Outgoing]] = {}
            for item in batch:
                streams.setdefault(item.stream, []).append(item)
            for stream, items in streams.items():
                self.take_over(stream, items)

    def check_room(self, decided: Iterable[Outbound]) -> None:
        """Refuse a request whose copies would have to be spooled, and find no room there; before any of it is sent.

        Raises:
            SpoolFull: The bound is reached, or the disk took nothing a moment ago.
        """
        if not self._backlogs:
            return
        copies = (copy for event in decided for copy in event.copies if copy.stream in self._backlogs)
        sizes = [len(copy.body) + OVERHEAD_BYTES for copy in copies]
        if sizes and (self.bytes + sum(sizes) > self._limit_bytes or self._disk_full):
            raise SpoolFull(
                f"the stream does not take events now, and the spool holds {self.bytes} bytes",
                expected=f"at most {self._limit_bytes} bytes, and room on the disk",
                got=f"{sum(sizes)} bytes more",
                next="send the same again later; nothing of this request was taken",
                limit=self._limit_bytes,
            )

    def take_over(self, stream: str, items: Sequence[Outgoing]) -> None:
        """The publisher's word that *stream* does not acknowledge; *items* were in flight."""
        backlog = self._backlogs.get(stream)
        if backlog is None:
            backlog = self._backlogs[stream] = Backlog(stream, self)
            log.warning("spooling", stream=stream, copies=len(items), because=self.publisher.blocked or "no-ack")
            self._changed.set()
        backlog.take_over(items)

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drain every backlog whenever that is possible, until cancelled.

        Raises:
            SpoolDamaged: The file cannot be used any more.
        """
        running: set[Backlog] = set()
        try:
            async with asyncio.TaskGroup() as group:
                while self.store.broken is None:
                    self._changed.clear()
                    for backlog in set(self._backlogs.values()) - running:
                        running.add(backlog)
                        group.create_task(backlog.run(), name=f"spool {backlog.stream}")
                    running &= set(self._backlogs.values())
                    await self._changed.wait()
                raise self.store.broken
        except ExceptionGroup as errors:
            raise self.store.broken or errors from None

    async def drain(self, timeout_s: float) -> bool:
        """Wait until the spool is empty, while its streams take what it holds; whether it is."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._backlogs and any(backlog.progressing for backlog in self._backlogs.values()):
                    self._emptied.clear()
                    try:
                        async with asyncio.timeout(FULL_S):
                            await self._emptied.wait()
                    except TimeoutError:
                        continue
        except TimeoutError:
            pass
        if self._backlogs:
            log.warning("spool_left", copies=self.copies, streams=len(self._backlogs))
        return not self._backlogs

    def close(self, error: MeshError) -> None:
        """Take nothing more; what waits in memory ends with *error*. Close the publisher after this, then `end`."""
        for backlog in self._backlogs.values():
            backlog.close(error)
        self._aside.close()

    async def end(self) -> None:
        """Sync what was taken, and close the file."""
        await asyncio.to_thread(self.store.close)
        await asyncio.sleep(0)  # those who wait for the last sync hear of it

    def _wake(self) -> None:
        for backlog in self._backlogs.values():
            backlog.wake()

    # --- the backlogs' tools -----------------------------------------------------------------------------------------

    def new_ids(self, count: int) -> int:
        """See `Tools`."""
        first = self._last_id + 1
        self._last_id += count
        return first

    def next_sent(self, sent: Sent) -> Sent:
        """See `Tools`: the same id while an ack of it proves something, else the next generation."""
        kid, now_ms = self._keys.kid(), self.now_ms()
        if not sent.first_signed_ms:
            return Sent(sent.generation, now_ms, (kid,))
        signed_ms = sent.first_signed_ms
        believed = signed_ms - now_ms <= AHEAD_MS and self.publisher.believed(signed_ms - MARGIN_MS, sent.kids)
        if not believed or self._keys.revoked(sent.kids, signed_ms):
            return Sent(sent.generation + 1, now_ms, (kid,))
        return sent if kid in sent.kids else Sent(sent.generation, sent.first_signed_ms, (*sent.kids, kid))

    def kept(self, copies: int, size: int) -> None:
        """See `Tools`."""
        self.bytes += size
        if copies > 0:
            metrics.SPOOLED.add(copies)

    def failed(self) -> None:
        """See `Tools`."""
        if self._loop.time() >= self._full_until:
            log.error("spool_full", bytes=self.bytes, limit_bytes=self._limit_bytes)
        self._full_until = self._loop.time() + FULL_S
        self._changed.set()

    def drained(self, item: Outgoing, ack: PubAck) -> None:
        """See `Tools`."""
        metrics.DRAINED.add(1)
        if ack.duplicate:
            self.on_void(item, ack)

    def refused(self, rows: Sequence[Row], reason: str, forgotten: Sequence[RefusedRow]) -> None:
        """See `Tools`."""
        self.refused_copies += (len(rows) if reason != EXPIRED else 0) - len(forgotten)
        for row in rows:
            self.on_void(resent(row, row.copy.body, NOT_SENT, lambda _item, _result: None), None)
        self._aside.refused(rows, reason)
        self._aside.forgotten(forgotten)

    def ended(self, backlog: Backlog) -> None:
        """See `Tools`."""
        if self._backlogs.get(backlog.stream) is backlog:
            del self._backlogs[backlog.stream]
            log.info("spool_drained", stream=backlog.stream)
        if not self._backlogs:
            self.store.tidy()
            self._emptied.set()
        self._changed.set()

    @staticmethod
    def now_ms() -> int:
        """See `Tools`."""
        return clock_ms()
