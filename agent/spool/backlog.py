"""The copies of one stream while they have to wait for it: on disk in their order, then one by one into the stream.

    direct ──── the stream does not acknowledge ────► spooling: what was in flight is kept, all else goes behind it
      ▲                                                  │ the stream can be reached: the oldest copy is the probe
      └── nothing left on disk ◄── giving way ◄──────────┘ its ack lets the others follow, in order (`sending.py`)

Giving way: once few copies are left, new ones wait in memory, for at most `GIVE_WAY_S`, until the disk holds none; then
they go straight to the stream. So nothing overtakes, and after a crash nothing is sent again behind what is newer.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.spool.database import Row
from agent.spool.record import NOT_SENT, OVERHEAD_BYTES, Copy, Sent
from agent.spool.sending import AGAIN_S, BATCH, Sending
from mesh import logs
from mesh.errors import MeshError, Unavailable
from mesh.jetstream.acks import PubAck

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.spool.tools import Tools
    from mesh.jetstream.outgoing import Outgoing

FEW = 256  # left, and new copies wait in memory: about 100 ms of draining, or one flight to a server far away
GIVE_WAY_S = 0.5  # for that wait; then they are spooled as well, and the next ones may wait again
ROOM_AGAIN_S = 0.005  # until the publisher's window has moved on
LOOK_S = 0.5  # while something is away that nobody tells us of

log = logs.get("spool")


class Backlog:
    """What waits for one stream.

    Args:
        stream: Its name.
        tools: The spool's.
        held: Copies on disk from before.
        oldest_ms: When the oldest of them was accepted.

    Attributes:
        over: Nothing is left, and nothing more is taken.
    """

    def __init__(self, stream: str, tools: Tools, *, held: int = 0, oldest_ms: int = 0) -> None:
        self.stream = stream
        self.over = False
        self._tools = tools
        self._loop = asyncio.get_running_loop()
        self._sending = Sending(stream, tools, unread=held, on_gone=self._gone, on_news=self.wake)
        self._oldest_ms = oldest_ms
        self._on_disk = held
        self._appending = 0
        self._waiting: list[Outgoing] = []
        self._overdue: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._woken = asyncio.Event()
        self._complained = ""

    @property
    def copies(self) -> int:
        """Copies that are, or are about to be, on disk."""
        return self._on_disk + self._appending

    @property
    def progressing(self) -> bool:
        """Whether the stream takes copies."""
        return self._sending.healthy

    @property
    def oldest_ms(self) -> int:
        """When the oldest copy was accepted, about; Unix milliseconds."""
        return self._sending.oldest_ms or self._oldest_ms

    def wake(self) -> None:
        """Something may be possible that was not."""
        self._woken.set()

    # --- in ----------------------------------------------------------------------------------------------------------

    def add(self, items: Sequence[Outgoing]) -> None:
        """Take new copies, behind all others."""
        if not self._waiting:
            if not self._sending.healthy or self.copies > FEW:
                self._append(items)
                return
            self._overdue = self._loop.call_later(GIVE_WAY_S, self._keep_waiting)
        self._waiting.extend(items)
        self._try_end()

    def take_over(self, items: Sequence[Outgoing]) -> None:
        """The stream does not acknowledge: these were in flight, and are ours again, or from now on."""
        sending = self._sending
        sending.healthy = False
        new: list[Outgoing] = []
        for item in items:
            if item.origin is not None:  # it was read from the disk
                sending.put_back(item)
                sending.not_before = self._loop.time() + AGAIN_S
            else:
                new.append(item)
        self._waiting[:0] = new
        self._keep_waiting()
        self.wake()

    def _keep_waiting(self) -> None:
        """What waits in memory goes to the disk."""
        self._stop_timers()
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._append(waiting)

    def _append(self, items: Sequence[Outgoing]) -> None:
        tools, now_ms = self._tools, self._tools.now_ms()
        first = tools.new_ids(len(items))
        rows = [_row(number, item, now_ms) for number, item in enumerate(items, first)]
        size = _size(rows)
        self._oldest_ms = self._oldest_ms or now_ms
        self._appending += len(items)
        tools.kept(len(items), size)

        def done(error: MeshError | None) -> None:
            self._appending -= len(items)
            if error is None:
                self._on_disk += len(items)
                self._sending.unread += len(items)
                for item in items:
                    item.on_done(item, PubAck(self.stream, 0))
            else:
                tools.kept(-len(items), -size)
                tools.failed()
                for item in items:
                    tools.publisher.give_up(item, _undurable(error))
            self._try_end()
            self.wake()

        tools.store.append(rows, done)

    # --- out ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send what there is whenever it can be sent, until nothing is left.

        Raises:
            MeshError: The file cannot be used any more.
        """
        while not self.over:
            self._woken.clear()
            pause = max(0.0, self._sending.not_before - self._loop.time())
            if not pause:
                try:
                    if await self._sending.advance():
                        self._complained = ""
                        continue
                except MeshError as error:
                    if self._tools.store.broken is not None:
                        raise
                    self._complain(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause or LOOK_S):
                    await self._woken.wait()

    def _gone(self, rows: Sequence[Row]) -> None:
        self._on_disk -= len(rows)
        self._tools.kept(-len(rows), -_size(rows))
        self._oldest_ms = self._sending.oldest_ms or rows[-1].at_ms
        self._try_end()
        self.wake()

    # --- giving way --------------------------------------------------------------------------------------------------

    def _try_end(self) -> None:
        """Once nothing is on disk, hand over what waits, and end."""
        if self.over or self.copies:
            return
        publisher = self._tools.publisher
        while self._waiting and (size := min(BATCH, publisher.room)) > 0:
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
            try:
                publisher.submit(batch)
            except MeshError as error:  # no key to seal with, say
                self._complain(error)
                self._sending.healthy = False
                self._waiting[:0] = batch
                self._keep_waiting()
                return
        if self._waiting:
            self._retry = self._retry or self._loop.call_later(ROOM_AGAIN_S, self._again)
            return
        self._stop_timers()
        self.over = True
        self._tools.ended(self)
        self.wake()

    def _again(self) -> None:
        self._retry = None
        self._try_end()

    def close(self, error: MeshError) -> None:
        """Stop; copies that wait in memory end with *error*, the others are on disk."""
        self._stop_timers()
        self.over = True
        self._sending.close()
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            self._tools.publisher.give_up(item, error)

    def _stop_timers(self) -> None:
        for timer in (self._overdue, self._retry):
            if timer is not None:
                timer.cancel()
        self._overdue = self._retry = None

    def _complain(self, error: MeshError) -> None:
        if error.code != self._complained:
            log.warning("spool_not_drained", stream=self.stream, code=error.code, error=error.message)
            self._complained = error.code


def _row(number: int, item: Outgoing, now_ms: int) -> Row:
    copy = Copy(item.subject, item.source, item.event_id, item.traceparent, item.body)
    known = Sent(item.generation, item.first_signed_ms, item.kids)
    return Row(number, item.stream, now_ms, copy, NOT_SENT if known == NOT_SENT else known)


def _undurable(error: MeshError) -> Unavailable:
    """What a caller is told: a file that cannot be used any more ends the agent, and the next one may do better."""
    if isinstance(error, Unavailable):
        return error
    return Unavailable("the spool cannot be written", got=error.code, next="send the same again")


def _size(rows: Sequence[Row]) -> int:
    return sum(len(row.copy.body) + OVERHEAD_BYTES for row in rows)
