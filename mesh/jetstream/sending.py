"""What a publisher sends, and when: the lanes of its streams moved by time, over the one connection.

Each lane (`window.py`) says what to send, and when it has something to do. Here one task sleeps until the first of them
has, without a task or a timer per event. While there is no connection, or somebody holds the publisher, nothing goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from mesh import logs
from mesh.errors import Disconnected
from mesh.jetstream import acks, wire
from mesh.jetstream.acks import ApiError
from mesh.jetstream.connection import Connection
from mesh.jetstream.in_flight import InFlight
from mesh.jetstream.listeners import guarded
from mesh.jetstream.outgoing import NEVER, Outgoing, marked_sent
from mesh.jetstream.sealing import Sealer
from mesh.jetstream.window import NO_CONNECTION, Lane, Rules
from mesh.telemetry import counter

MAX_WITNESSES = 64  # unanswered ones that are remembered

RESENT = counter("mesh.publish.resent", unit="{event}", watch="rising: acks are late, or the server restarts often")
RESEALED = counter("mesh.publish.resealed", unit="{event}", watch="rising: events wait over 30 s for their ack")
NEW_IDS = counter("mesh.publish.new_generations", unit="{event}", watch="above 0: events waited over 100 s; see lag")

log = logs.get("publisher")


class Sending:
    """Of one publisher; `run` has to run beside it.

    Args:
        connection: Takes the frames.
        inbox: What ack subjects begin with; a token follows.
        sealer: Makes the frames.
        flights: Hears which events end, and which are handed over.
        clock_ms: Unix milliseconds, the clock of the seals.
        rules: How long is too long.
        held: Why to send nothing until `release`, after each connect anew; empty to send as soon as there is one.
        on_open: Called when something can and may be sent again.

    Attributes:
        lanes: By stream.
        now: Monotonic seconds.
        rules: Those that the next lane follows.
    """

    def __init__(
        self,
        connection: Connection,
        inbox: str,
        *,
        sealer: Sealer,
        flights: InFlight,
        clock_ms: Callable[[], int],
        rules: Rules,
        held: str,
        on_open: Callable[[], None],
    ) -> None:
        self.lanes: dict[str, Lane] = {}
        self.now = asyncio.get_running_loop().time
        self.rules = rules
        self._connection = connection
        self._inbox = inbox
        self._sealer = sealer
        self._flights = flights
        self._clock_ms = clock_ms
        self._held_at_connect = self._held = held
        self._on_open = on_open
        self._witnesses: dict[str, tuple[Lane, str]] = {}
        self._asked = 0
        self._sleeps_until = NEVER
        self._wake = asyncio.Event()

    def lane(self, stream: str, now: float) -> Lane:
        """The lane of *stream*."""
        lane = self.lanes.get(stream)
        if lane is None:
            lane = self.lanes[stream] = Lane(stream, self.rules, offline=self.blocked, now=now)
        return lane

    # --- frames ------------------------------------------------------------------------------------------------------

    def write(self, frames: bytes, items: list[Outgoing], now: float) -> None:
        """Send *frames*, which carry *items*."""
        if not items:
            return
        try:
            self._connection.write(frames)
        except Disconnected:
            return  # the lanes are offline, or about to hear of it
        marked_sent(items, now)

    def resend(self, items: list[Outgoing], now: float) -> None:
        """Send *items*, in their order, sealed anew where it is time."""
        sealer = self._sealer
        resealed, new_ids = sealer.resealed, sealer.new_ids
        RESENT.add(sum(1 for item in items if item.sends))
        try:
            frames = sealer.frames(items, self._clock_ms())
        except Exception as error:  # noqa: BLE001 - no key to sign with, say; time goes on, and may give them up
            log.error("seal_failed", code=getattr(error, "code", type(error).__name__), events=len(items))
            self.interrupt(items, now + self.rules.probe_last_s)
            return
        RESEALED.add(sealer.resealed - resealed)
        NEW_IDS.add(sealer.new_ids - new_ids)
        self.write(frames, items, now)

    def interrupt(self, items: Iterable[Outgoing], probe_at: float) -> None:
        """Stop the lanes that have *items*, until the ack of a probe that is sent then."""
        for stream in {item.stream for item in items}:
            self.lanes[stream].interrupt(probe_at)

    def _ask(self, lane: Lane, subject: str) -> None:
        """Have the stream say that it is there: it expects another stream's name, so it answers and stores nothing."""
        self._asked += 1
        token = f"w{self._asked}"
        self._witnesses[token] = (lane, subject)
        if len(self._witnesses) > MAX_WITNESSES:
            del self._witnesses[next(iter(self._witnesses))]
        reply = self._inbox + token
        with suppress(Disconnected):
            self._connection.write(wire.publish_frame(subject, b"", reply, {"Nats-Expected-Stream": "-"}))

    def hear_witness(self, token: str, data: bytes) -> None:
        """*data* came for *token*, which is no event's."""
        if token not in self._witnesses:
            return  # it is the token of an event that is done, or of its former generation
        lane, subject = self._witnesses.pop(token)
        answer = acks.parse_pub_ack(data)
        if isinstance(answer, ApiError) and answer.err_code == acks.WRONG_STREAM:
            lane.witnessed(subject, self.now())
            self.wake_before(lane.due_at())

    # --- time --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep deadlines and recover, until cancelled."""
        while True:
            self._wake.clear()
            self._sleeps_until = min((lane.due_at() for lane in self.lanes.values()), default=NEVER)
            pause = self._sleeps_until - self.now()
            if pause > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause if pause < NEVER else None):
                        await self._wake.wait()
            self._step()

    def _step(self) -> None:
        now = self.now()
        for lane in tuple(self.lanes.values()):
            send, failed, witness, handed = lane.step(now)
            for item, error in failed:
                self._flights.finish(item, error)
            if handed:
                self._flights.hand_over(lane.stream, handed)
            if send:
                self.resend(send, now)
            if witness is not None:
                self._ask(lane, witness)

    def wake_before(self, due: float) -> None:
        """A lane has something to do at *due*."""
        if due < self._sleeps_until:
            self._sleeps_until = due
            self._wake.set()

    # --- whether anything may be sent --------------------------------------------------------------------------------

    @property
    def blocked(self) -> str:
        """Why nothing can or may be sent; empty where it may."""
        return self._held if self._connection.connected else NO_CONNECTION

    def hold(self, because: str) -> None:
        """Send nothing until `release`."""
        self._held = because
        for lane in self.lanes.values():
            lane.offline(self.blocked)

    def release(self) -> None:
        """End `hold`, until the next connect where it began held."""
        if self._held:
            self._held = ""
            self._resume()

    def online(self) -> None:
        """There is a connection."""
        self._held = self._held_at_connect or self._held
        self._resume()

    def _resume(self) -> None:
        if self.blocked:
            return
        now = self.now()
        for lane in self.lanes.values():
            lane.online(now)
        self.wake_before(now)
        guarded(self._on_open)

    def offline(self) -> None:
        """There is no connection any more."""
        for lane in self.lanes.values():
            lane.offline()
