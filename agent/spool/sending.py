"""From the disk into one stream: read, judge, remember, send, delete what is acknowledged. In order, always.

While the stream does not answer, only the oldest copy is on its way: the probe. Its ack lets the others follow, one
flight after the other: a flight is written at once, and all of it is acknowledged before the next one sets out. For a
leader that leaves can lose what it was sent without a word, while the next takes what is sent a moment later; and of
what waits here the application was told that it may go on. (Flights that followed each other without waiting left
248 of 60,140 copies behind later ones of their key, in a rolling restart of a cluster; flights of 256 copies, two.)
Within a flight order can still be lost that way. A flight is as large as one read of a server, which one leader mostly
has whole; but where an ack takes long, that would be few copies a second, and a spool that never gets empty. So there
it grows with the ack time, up to 256 copies: the farther the server, the more may lie out of order after a leader loss.

Before a copy is sent, how it is sent (generation of its id, time and key of the first signature) is synced: who comes
after a crash knows what an ack of it is worth. Nothing is sent that the disk has not, so a copy that comes back, for
whatever reason, just stands where it stood.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from typing import TYPE_CHECKING

from agent.spool.egress import EXPIRED
from agent.spool.record import Sent
from agent.spool.resent import Entry, resent
from mesh import logs
from mesh.errors import MeshError, RevisionNeeded, SubjectRefused, TooLarge
from mesh.jetstream.acks import PubAck

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.spool.database import Row
    from agent.spool.record import RefusedRow
    from agent.spool.tools import Tools
    from mesh.jetstream.outgoing import Outgoing
    from mesh.policy.compile import Plans

READ_BYTES = 8 * 1024 * 1024
BATCH = 256  # copies read and remembered together: one sync for all of them
FLIGHT_BYTES = 48 * 1024  # sent together: below the 64 KiB that a server reads at once, so mostly one leader has it all
FLIGHT_ACK_S = 0.01  # where an ack takes longer, a flight is larger by as much: 2,400 copies/s of 1 KiB up to 100 ms
FLIGHT_MOST_BYTES = 1024 * 1024
BESIDE_BYTES = 1024  # of subject and headers beside a body, about
PROBE_BYTES = 256 * 1024  # read while the stream does not answer: the probe, and what may not be sent ahead of it
AGAIN_S = 0.5  # after the stream did not take the probe, or the disk a deletion
SUBJECT_AGAIN_S = 1.0  # after NATS refused a subject that the policies let us use: its imports may lag
SUBJECT_LIMIT_S = 60.0  # of that; then the copy is put aside, for others wait behind it

SUBJECT_REFUSED = "subject-refused"
STREAM_TOO_SMALL = 10054  # JetStream's "message size exceeds maximum allowed": no other time will do

log = logs.get("spool")


class Sending:
    """Sends what is on disk for one stream.

    Args:
        stream: Its name.
        tools: The spool's.
        unread: Copies on disk.
        on_gone: Called with rows that the disk has no more.
        on_news: Called when `advance` may have something to do.

    Attributes:
        unread: Copies on disk that were not read yet; whoever adds some counts them here.
        healthy: Whether the stream took the last copy that was sent.
        not_before: In the loop's time: when the next copy may be sent.
    """

    def __init__(
        self,
        stream: str,
        tools: Tools,
        *,
        unread: int,
        on_gone: Callable[[Sequence[Row]], None],
        on_news: Callable[[], None],
    ) -> None:
        self.unread = unread
        self.healthy = False
        self.not_before = 0.0
        self._stream = stream
        self._tools = tools
        self._on_gone = on_gone
        self._on_news = on_news
        self._loop = asyncio.get_running_loop()
        self._last_read = 0
        self._reading: asyncio.Future[list[Row]] | None = None
        self._loaded: list[Entry] = []
        self._in_flight: dict[int, Entry] = {}
        self._ready = 0  # the last row that was made ready while a flight was under way
        self._sent_at: float | None = None  # the flight under way, while it has no ack
        self._ack_s = 0.0  # from a flight to its first ack: the time that waiting for it costs
        self._acked: list[Row] = []
        self._deleting = False
        self._refusing: list[tuple[Entry, str]] = []
        self._turn = 0  # changes whenever a copy comes back
        self._closed = False

    @property
    def oldest_ms(self) -> int:
        """When the oldest copy that was read was accepted; 0 where none is in hand."""
        first = next(iter(self._in_flight.values()), None) or next(iter(self._loaded), None)
        return 0 if first is None else first.row.at_ms

    def close(self) -> None:
        """Delete what is acknowledged by now, and nothing more: the file is about to be closed."""
        self._deleting = False  # what the disk is at comes first in any case
        self._delete()
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()

    # --- out ---------------------------------------------------------------------------------------------------------

    async def advance(self) -> bool:
        """Take one step; whether there may be another at once.

        Raises:
            MeshError: Something is away: policies that decide, a key to sign with, room on the disk.
        """
        tools = self._tools
        if self._refusing:
            await self._put_aside()
            return True
        if self._in_flight:
            await self._make_ready()
            return False
        if self.healthy and not tools.publisher.room:
            await tools.publisher.wait_for_room(1)
        room = self._room()
        if tools.publisher.blocked or room <= 0:
            return False
        plans = await tools.policies.today()
        if not self._loaded:
            await self._read()
        if not self._loaded:
            return False
        turn = self._turn
        bodies = await self._judge(self._loaded[:BATCH], plans, room)
        sending = self._loaded[: len(bodies)]
        if self.healthy and len(self._loaded) <= BATCH:
            self._begin_read()  # the next ones come in the same turn of the disk
        await self._remember(sending)
        if sending and turn == self._turn and not tools.publisher.blocked:
            self._send(sending, bodies)
        return True

    def _room(self) -> int:
        """Copies that may be sent now: one while the stream does not answer."""
        return min(self._tools.publisher.room, BATCH) if self.healthy else 1

    async def _make_ready(self) -> None:
        """While a flight is under way, have the next one read and remembered: it sets out as soon as this one lands."""
        if self.healthy:
            if len(self._loaded) < BATCH:
                await self._read()
            if fresh := [entry for entry in self._loaded if entry.row.id > self._ready]:
                await self._remember(fresh)
                self._ready = fresh[-1].row.id

    def _begin_read(self) -> asyncio.Future[list[Row]] | None:
        room = min(READ_BYTES, self._tools.read_ahead.room) if self.healthy else PROBE_BYTES
        if not self._loaded and not self._in_flight:
            room = max(room, PROBE_BYTES)  # whatever the others hold, this stream goes on
        if self._reading is None and self.unread and room > 0:
            self._reading = self._tools.store.read(self._stream, self._last_read, limit=BATCH, max_bytes=room)
        return self._reading

    async def _read(self) -> None:
        reading = self._begin_read()
        if reading is None:
            return
        try:
            rows = await reading
        finally:
            self._reading = None
        self.unread -= len(rows)
        self._tools.read_ahead.holds(rows)
        if rows:
            self._last_read = rows[-1].id
            self._loaded.extend(Entry(row) for row in rows)

    async def _judge(self, batch: Sequence[Entry], plans: Plans, room: int) -> list[bytes]:
        """Take what may not be sent from the head of *batch*; bodies of the flight of copies that then stand there."""
        tools, now_ms = self._tools, self._tools.now_ms()
        bodies: list[bytes] = []
        refused: list[tuple[Entry, str]] = []
        size, most = 0, flight_bytes(self._ack_s)
        for entry in batch:
            if len(bodies) == room or size >= most:
                break
            try:
                verdict = tools.egress.judge(entry.row.copy, plans, now_ms)
            except RevisionNeeded as needed:
                if not bodies and not refused:
                    await tools.policies.fetch(int(needed.details["revision"]))
                break  # the next step begins here
            if isinstance(verdict, bytes) and len(verdict) > tools.publisher.max_body:
                verdict = TooLarge.code
            if isinstance(verdict, bytes):
                bodies.append(verdict)
                size += len(verdict) + BESIDE_BYTES
            else:
                refused.append((entry, verdict))
        for entry, _ in refused:
            self._loaded.remove(entry)
        self._refusing += refused
        return bodies

    async def _remember(self, batch: Sequence[Entry]) -> None:
        changed: list[Entry] = []
        for entry in batch:
            entry.sent = self._tools.next_sent(entry.sent)
            if entry.sent != entry.kept:
                changed.append(entry)
        if changed:
            sent = [(entry.row.id, entry.sent) for entry in changed]
            await self._tools.store.mark_sent(sent)
            for entry, (_, known) in zip(changed, sent, strict=True):
                entry.kept = known

    def _send(self, batch: Sequence[Entry], bodies: Sequence[bytes]) -> None:
        items = [resent(e.row, body, e.sent, self._done) for e, body in zip(batch, bodies, strict=True)]
        del self._loaded[: len(batch)]
        for entry in batch:
            self._in_flight[entry.row.id] = entry
        try:
            self._tools.publisher.submit(items)
        except MeshError:
            for item in items:
                self.put_back(item)
            raise
        self._sent_at = self._loop.time()

    # --- back --------------------------------------------------------------------------------------------------------

    def _done(self, item: Outgoing, result: PubAck | MeshError) -> None:
        if isinstance(result, PubAck):
            self._acked.append(self._landed(item).row)
            self._heard(item)
            self.healthy = True
            self._tools.drained(item, result)
            self._delete()
        elif result.details.get("err_code") == STREAM_TOO_SMALL:
            self._refusing.append((self._landed(item), TooLarge.code))
        else:
            entry = self.put_back(item)
            self.not_before = self._loop.time() + SUBJECT_AGAIN_S
            if isinstance(result, SubjectRefused):
                self._refused(entry)
            elif not result.retryable:
                log.warning("spool_not_taken", stream=self._stream, code=result.code, error=result.message)
        self._on_news()

    def _heard(self, item: Outgoing) -> None:
        """The first ack of a flight says how long one takes; of what had to be sent again it says nothing."""
        if self._sent_at is not None:
            self._ack_s = self._loop.time() - self._sent_at if item.sends <= 1 else 0.0
            self._sent_at = None

    def _refused(self, entry: Entry) -> None:
        """NATS takes nothing on the subject of *entry*, though the stream is there and the policies allow it."""
        now = self._loop.time()
        entry.refused_since = since = entry.refused_since or now
        if now - since >= SUBJECT_LIMIT_S:
            self._loaded.remove(entry)
            self._refusing.append((entry, SUBJECT_REFUSED))

    def put_back(self, item: Outgoing) -> Entry:
        """It stands where it stood, to be sent again."""
        entry = self._landed(item)
        entry.sent = Sent(item.generation, item.first_signed_ms, item.kids)
        insort(self._loaded, entry)
        self._turn += 1
        return entry

    def _landed(self, item: Outgoing) -> Entry:
        return self._in_flight.pop(item.origin.id)

    def _delete(self) -> None:
        """Forget what the stream has; while the disk is at it, more comes together."""
        if self._deleting or self._closed or not self._acked:
            return
        rows, self._acked = self._acked, []
        self._deleting = True

        def done(error: MeshError | None) -> None:
            self._deleting = False
            if error is None:
                self._tools.read_ahead.forgets(rows)
                self._on_gone(rows)
                self._delete()
            else:
                self._acked = [*rows, *self._acked]
                self._loop.call_later(AGAIN_S, self._delete)

        self._tools.store.delete([row.id for row in rows], done)

    async def _put_aside(self) -> None:
        """Move copies that may not be sent to where they are kept for people, those of one reason at a time.

        Of what expired nobody wants more than that it did.
        """
        reason = self._refusing[0][1]
        entries = {entry.row.id: entry for entry, why in self._refusing if why == reason}
        rows = [entry.row for entry in entries.values()]
        forgotten: list[RefusedRow] = []
        if reason == EXPIRED:
            await self._tools.store.drop(list(entries))
        else:
            forgotten = await self._tools.store.refuse(rows, reason, self._tools.now_ms())
        self._refusing = [each for each in self._refusing if each[0].row.id not in entries]
        self._tools.read_ahead.forgets(rows)
        self._tools.refused(rows, reason, forgotten)
        self._on_gone(rows)


def flight_bytes(ack_s: float) -> int:
    """Bytes that are sent together where an ack takes so long."""
    return int(max(FLIGHT_BYTES, min(FLIGHT_BYTES * ack_s / FLIGHT_ACK_S, FLIGHT_MOST_BYTES)))
