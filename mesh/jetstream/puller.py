"""One durable's events in, their settlements out: overlapping pulls, bounded by what is not settled yet.

Pulls are sent ahead, in parts of the free credit, so the next events are on their way while these are handled; `fetch`
of nats-py waits a round trip for every batch (23 k/s against 52 k/s, measured). The server beats every few seconds
while it has nothing; when it misses two beats, or the connection is made anew, pulling begins anew on a fresh inbox,
because pulls for the old one may still be served and would exceed the credit.

Only a reply subject of our own stream and durable counts: a reply can be anybody's invention, and acks go there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from mesh import logs
from mesh.errors import Disconnected, Unavailable
from mesh.jetstream import wire
from mesh.jetstream.acks import AckSubject
from mesh.jetstream.connection import Connection, Listener
from mesh.jetstream.credit import Credit
from mesh.jetstream.deliveries import DeliveryRun
from mesh.jetstream.listeners import guarded
from mesh.jetstream.unsettled import Unsettled
from mesh.signing import Received
from mesh.telemetry import counter

MAX_BATCH = 2000  # events a pull: larger ones gain nothing (measured), and a lost pull is found sooner
EXPIRES_S = 30.0  # of a pull; the server then says how much of it is left
HEARTBEAT_S = 5.0  # less than half of the above, or the server refuses
SOON_S = 0.05  # how long a rest of credit under a quarter may wait to grow, while nothing else is asked for
MISSED_BEATS = 2.0  # of silence, after which pulls are taken for lost
RETRY_FIRST_S = 0.05  # after a status that ended a pull: a leader change, a server that shuts down, a missing durable
RETRY_LAST_S = 1.0
_FLUSH_S = 2.0
_KNOWN_S = 1.0  # for the server to read our last pull: it takes a millisecond
_MARK = "0"  # the last token of the inbox of a pull that nothing fits in: real ones have their size there
_NOTHING_FITS = b'{"batch":1,"max_bytes":1,"no_wait":true}'
_MAX_REASON = 100  # characters of a TERM's reason

MISSED = counter("mesh.pull.missed_heartbeats", unit="{pull}", watch="rising: the server or the network stalls")
FOREIGN = counter("mesh.pull.foreign_replies", unit="{message}", watch="above 0: somebody writes to our inbox")
STATUSES = counter("mesh.pull.statuses", unit="{status}", watch="code=409 or 503 rising: the durable is gone or moves")
PULLED = counter("mesh.pull.delivered", unit="{event}", watch="flat while the stream grows: nothing is consumed")
_pulled = PULLED.at()

log = logs.get("puller")


class Puller:
    """Pulls one durable; `run` has to run. Settle each event once, in any order.

    Args:
        connection: Whose rights include the durable's MSG.NEXT and its acks.
        stream: Of the durable.
        durable: Its name. The control plane makes it; this binds.
        on_event: Gets each event in the read loop. It must be quick; an event it raises for is not settled.
        on_run: Gets events that came together, in order, instead of *on_event*, where they may be read so. What it
            raises for leaves all of them unsettled.
        max_in_flight: Events delivered and not settled, or on their way.
        batch: Events a pull asks for at most.
        expires_s: How long the server keeps a pull.
        heartbeat_s: How often the server says that it is there while it has nothing.
        silence_s: After which pulls are taken for lost; two beats unless given.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str,
        durable: str,
        on_event: Callable[[Received], None],
        on_run: Callable[[list[Received]], None] | None = None,
        max_in_flight: int = 1000,
        batch: int = MAX_BATCH,
        expires_s: float = EXPIRES_S,
        heartbeat_s: float = HEARTBEAT_S,
        silence_s: float | None = None,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._on_event = on_event
        self._on_run = on_run
        self._expires_s = expires_s
        self._heartbeat_s = heartbeat_s
        self._silence_s = heartbeat_s * MISSED_BEATS if silence_s is None else silence_s
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._own = AckSubject(stream, durable)
        self._credit = Credit(max_in_flight, batch=min(batch, MAX_BATCH), expires_s=expires_s)
        self._unsettled = Unsettled(connection)
        self._open = self._unsettled.replies
        self._now = asyncio.get_running_loop().time
        self._listener: Listener | None = None
        self._before: Listener | None = None  # while its inbox is being left
        self._one_leaves = asyncio.Lock()
        self._inbox = ""
        self._heard_at = 0.0
        self._pause_until = 0.0
        self._pause_s = RETRY_FIRST_S
        self._pulling = False
        self._soon = False  # a rest of credit waits to grow
        self._wake = asyncio.Event()
        self._known = asyncio.Event()
        self.resting = False  # asks for nothing more; what it has asked for still arrives
        self.status = ""  # why the server ended our last pull, where that needs somebody's care

    @property
    def in_flight(self) -> int:
        """Events delivered and not settled."""
        return len(self._open)

    @property
    def silent_s(self) -> float:
        """Seconds since the server last answered a pull of ours, with an event or a beat; 0 while none is out."""
        return self._now() - self._heard_at if self._credit.asked and self._listener is not None else 0.0

    # --- pulling -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Pull until `stop` or cancelled."""
        self._pulling = True
        forget = self._connection.on_connect(self._restart), self._connection.on_disconnect(self._lose)
        if self._connection.connected:
            self._restart()
        try:
            while self._pulling:
                self._wake.clear()
                try:
                    async with asyncio.timeout(self._tick()):
                        await self._wake.wait()
                except TimeoutError:
                    await self._check()
        finally:
            self._pulling = False
            for undo in forget:
                undo()
            if self._listener is not None:
                self._listener.close()

    async def stop(self) -> None:
        """Pull nothing more; what the server had sent still arrives, and what arrived can be settled."""
        self._pulling = False
        await self._leave()
        self._wake.set()

    async def _leave(self) -> None:
        """Pull nothing more on this inbox; what the server had sent to it still arrives.

        Closed at once, it would lose what the server sends before it reads that, until ack_wait has passed.
        """
        async with self._one_leaves:  # who comes second returns when all has come, too
            listener, self._before, self._listener = self._listener, self._listener, None
            if listener is None:
                return
            try:
                await self._last_pull_known()
                await self._connection.drain(listener)
            finally:
                self._before = None
                listener.close()

    async def _last_pull_known(self) -> None:
        """Return once the server has read our pulls: one that it reads after our inbox is gone, it serves to nobody.

        It reads them in their order, beside what it hears on the connection (2.15.1, through an account's import), and
        answers at once to one that nothing fits in.
        """
        if not self._credit.asked:
            return
        self._known.clear()
        with suppress(Unavailable, TimeoutError):  # no link: it has no pull of ours either
            self._connection.write(wire.publish_frame(self._next, _NOTHING_FITS, f"{self._inbox}.{_MARK}"))
            async with asyncio.timeout(_KNOWN_S):
                await self._known.wait()

    def _restart(self) -> None:
        """Pull on a fresh inbox; pulls on the old one find nobody."""
        if not self._pulling:
            return
        self._lose()
        self._inbox = self._connection.new_inbox()
        self._listener = self._connection.listen(
            f"{self._inbox}.*",
            self._on_message,
            on_malformed=self._on_malformed_reply,
            run_of=None if self._on_run is None else self._run_for,
        )
        self._pull()

    def _lose(self) -> None:
        self._credit.lose_pulls()
        self._known.set()  # as far as they ever will be
        for listener in (self._listener, self._before):
            if listener is not None:
                listener.close()
        self._listener = None

    def _pull(self, *, all_of_it: bool = False) -> None:
        """Ask for more, if enough credit is free and nothing says to wait."""
        if self._listener is None or self.resting:
            return
        credit, unsettled = self._credit, len(self._open)
        if not credit.is_free(unsettled, all_of_it=all_of_it):
            if not credit.asked and not self._soon and credit.is_free(unsettled, all_of_it=True):
                self._soon = True
                self._wake.set()
            return
        now = self._now()
        if now < self._pause_until:
            return
        if not self._credit.asked:
            self._heard_at = now  # silence counts from here: until now the server had no reason to beat
        wanted = self._credit.next_pull(len(self._open), now)
        with suppress(Disconnected):
            self._connection.write(wire.publish_frame(self._next, self._ask(wanted), f"{self._inbox}.{wanted}"))

    def _ask(self, wanted: int) -> bytes:
        return b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (wanted, _ns(self._expires_s), _ns(self._heartbeat_s))

    def _tick(self) -> float:
        """Seconds after which to look at pauses, small rests of credit and silence."""
        now = self._now()
        if self._listener is not None and self._pause_until > now:
            return self._pause_until - now
        return SOON_S if self._soon else self._heartbeat_s / 2

    async def _check(self) -> None:
        self._soon = False
        if self._listener is None or not self._pulling:
            return
        silent_s = self._now() - self._heard_at
        if self._credit.asked and silent_s > self._silence_s:
            await self._recover()
        else:
            self._pull(all_of_it=True)

    async def _recover(self) -> None:
        """Two beats are missing: is it the connection, or only our pulls?"""
        MISSED.add(1)
        log.warning("heartbeats_missed", stream=self._stream)
        before = self._heard_at
        try:
            await self._connection.flush(_FLUSH_S)
        except Disconnected:
            return  # on_connect goes on
        except Unavailable:
            await self._connection.rebuild()
            return
        if self._heard_at != before:
            return
        await self._leave()  # everything sent before the PONG was here, and nothing of ours was among it
        if self._listener is None and self._connection.connected:  # else it was or will be begun anew with the link
            self._restart()

    # --- messages ----------------------------------------------------------------------------------------------------

    def _on_message(self, subject: str, reply: str, headers: bytes | None, data: bytes) -> None:
        self._heard_at = self._now()
        if not reply:
            self._on_status(subject, headers, data)
            return
        delivered = self._own.parse(reply)
        if delivered is None:
            FOREIGN.add(1)
            log.error("delivery_reply_foreign", stream=self._stream)
            return
        credit = self._credit
        credit.delivered()
        self._open.add(reply)
        _pulled.value += 1
        if self.status:
            self._pulls_well()
        msg_ids, signature = wire.event_headers(headers)
        self._on_event(
            Received(
                subject, data, msg_ids, signature, self._stream,
                delivered.sequence, delivered.stream_ms, delivered.deliveries, reply,
            )
        )  # fmt: skip
        if not credit.asked:
            self._pull()

    def _run_for(self, sid: int) -> wire.Run:
        """What reads many of our events at once, under this subscription id."""
        read = DeliveryRun(self._own, self._stream, sid).read

        def run(data: bytes, position: int) -> int:
            end, events = read(data, position)
            if events:
                guarded(self._on_events, events)
            return end

        return run

    def _on_events(self, events: list[Received]) -> None:
        """As `_on_message`, for events that came together."""
        self._heard_at = self._now()
        self._credit.delivered(len(events))
        self._open.update([received.reply for received in events])
        _pulled.value += len(events)
        if self.status:
            self._pulls_well()
        if self._on_run is not None:
            guarded(self._on_run, events)
        if not self._credit.asked:
            self._pull()

    def _on_malformed_reply(self, reply: bytes) -> None:
        """A message no reader should see. If it is of our durable, it must not come again."""
        self._heard_at = self._now()
        if reply.isascii() and self._own.parse(text := reply.decode()) is not None:
            self._credit.delivered()
            self._open.add(text)
            self._unsettled.settle(text, b"+TERM malformed")
            self._pull()

    def _on_status(self, subject: str, headers: bytes | None, data: bytes) -> None:
        status = None if data else wire.status_of(headers)
        if status is None:
            FOREIGN.add(1)
            log.error("delivery_without_reply", stream=self._stream)
            return
        if status.code == 100:  # noqa: PLR2004 - idle heartbeat
            self._pulls_well()
            return
        asked = subject.rpartition(".")[2]
        if asked == _MARK:
            self._known.set()
            return
        STATUSES.add(1, code=str(status.code))
        left = wire.parse_headers(headers).get("Nats-Pending-Messages", "")
        self._credit.ended(int(left if left.isdigit() else asked))
        if status.code in {404, 408}:  # nothing there, or our own expiry
            self._pulls_well()
        else:
            self._back_off(f"{status.code} {status.text}")
        self._pull()

    def _pulls_well(self) -> None:
        self._pause_s = RETRY_FIRST_S
        self.status = ""

    def _back_off(self, status: str) -> None:
        if status != self.status:
            log.warning("pull_refused", stream=self._stream, status=status)
        self.status = status
        self._pause_until = self._now() + self._pause_s
        self._pause_s = min(self._pause_s * 2, RETRY_LAST_S)
        self._wake.set()

    # --- settling ----------------------------------------------------------------------------------------------------

    def ack(self, received: Received) -> None:
        """The event is done."""
        if self._unsettled.ack(received.reply) and len(self._open) <= self._credit.low:
            self._pull()

    def nak(self, received: Received, delay_s: float = 0.0) -> None:
        """Deliver it again, after *delay_s*. Meanwhile it counts at the server, not here."""
        self._settle(received, b"-NAK" if delay_s <= 0 else b'-NAK {"delay":%d}' % _ns(delay_s))

    def term(self, received: Received, reason: str) -> None:
        """Never deliver it again. *reason* is a code; it appears in the server's advisory."""
        clean = "".join(c if " " <= c <= "~" else "?" for c in reason[:_MAX_REASON])
        self._settle(received, b"+TERM " + clean.encode())

    def progress(self, received: Received) -> None:
        """It is being worked on: the server waits another ack_wait."""
        self._unsettled.progress(received.reply)

    def _settle(self, received: Received, verb: bytes) -> None:
        """Send *verb* with the rest of this turn of the loop. Settling an event again does nothing."""
        if self._unsettled.settle(received.reply, verb):
            self._pull()

    async def flush(self, timeout_s: float = _FLUSH_S) -> None:
        """Wait until the server has the settlements made so far.

        Raises:
            Disconnected: There is no connection; they follow once there is one.
            Unavailable: No answer in time.
        """
        await self._connection.flush(timeout_s)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
