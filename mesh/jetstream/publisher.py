"""Sealed events into streams: one ack inbox, a bounded window, ordered recovery.

This is where callers come in. Their events are sealed and named in `sealing.py`, wait and end in `in_flight.py`, and go
out in `sending.py`, which moves the lane of each stream (`window.py`); what the streams answer is read in `answers.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from mesh.errors import Disconnected, MeshError, Overloaded, TooLarge
from mesh.jetstream.acks import PubAck
from mesh.jetstream.answers import Answers
from mesh.jetstream.connection import Connection
from mesh.jetstream.former import Former
from mesh.jetstream.in_flight import InFlight, TakeOver
from mesh.jetstream.listeners import guarded
from mesh.jetstream.outgoing import Outgoing
from mesh.jetstream.refused_subjects import refusal
from mesh.jetstream.sealing import Seal, Sealer
from mesh.jetstream.sending import Sending
from mesh.jetstream.window import Rules

__all__ = ["Outgoing", "PubAck", "Publisher"]

WINDOW = 4096  # events in flight: 0.1 s at 40 k/s. A stream buffers 100,000, or 128 MiB, before it answers 429
WINDOW_BYTES = 64 * 1024 * 1024  # bodies in flight; a quarter of what a pod of an agent gets
HEADER_ROOM = 2048  # bytes: our headers take up to 1,300 (a signature is at most 1,024)


class Publisher:
    """Publishes over one connection; `run` has to run beside it, for deadlines and recovery.

    Args:
        connection: Whose inbox takes the acks.
        seal: Signs a batch of at most 256 events of one view.
        message_id: Gives an event's id from its source, id, subject and generation.
        clock_ms: Unix milliseconds, the clock `seal` signs with.
        window: Events in flight.
        window_bytes: Bytes of bodies in flight.
        ack_deadline_s: How long a stream may be silent before sending stops.
        give_up_s: From submit; after it the event is done with `StreamUnavailable`.
        held: Why to send nothing until `release`, after each connect anew; empty to send as soon as there is one. For
            whoever has to learn first whether its key is still believed.

    Attributes:
        on_open: Called when something can and may be sent again.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        seal: Seal,
        message_id: Callable[[Outgoing], str],
        clock_ms: Callable[[], int],
        window: int = WINDOW,
        window_bytes: int = WINDOW_BYTES,
        ack_deadline_s: float = 1.0,
        give_up_s: float = 10.0,
        held: str = "",
    ) -> None:
        self.on_open: Callable[[], None] = lambda: None
        self._connection = connection
        self._clock_ms = clock_ms
        self._window = window
        self._closed: MeshError | None = None
        inbox = f"{connection.new_inbox()}."
        self._former = former = Former()
        self._sealer = sealer = Sealer(seal, message_id, inbox=inbox, former=former)
        self._flights = flights = InFlight(sealer, former, window=window, window_bytes=window_bytes)
        self._sending = sending = Sending(
            connection,
            inbox,
            sealer=sealer,
            flights=flights,
            clock_ms=clock_ms,
            rules=Rules(ack_deadline_s=ack_deadline_s, give_up_s=give_up_s),
            held=held,
            on_open=self._opened,
        )
        answers = Answers(inbox, sealer=sealer, former=former, flights=flights, sending=sending, clock_ms=clock_ms)
        self._listener = connection.listen(f"{inbox}*", answers.on_answer, run_of=answers.run_of)
        self._forget = [connection.on_connect(sending.online), connection.on_disconnect(sending.offline)]

    async def run(self) -> None:
        """Keep deadlines and recover, until cancelled."""
        await self._sending.run()

    # --- events in ---------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Events submitted and not done."""
        return len(self._sealer.by_token)

    @property
    def room(self) -> int:
        """Events that `submit` takes now."""
        return self._flights.room

    @property
    def max_body(self) -> int:
        """Bytes of a body that this server takes, with our headers."""
        return self._connection.max_payload - HEADER_ROOM

    def submit(self, batch: list[Outgoing]) -> None:
        """Seal and send a batch of one view, at most 256; each event's `on_done` says how it ended.

        All or nothing: after an exception none of them is in flight. An event on a subject that was refused a moment
        ago is done before this returns.

        Raises:
            Overloaded: More than `room`; `wait_for_room` first.
            TooLarge: A body that does not fit a message of this server with our headers.
            BadSubject, BadHeader: A field that could not stand in a frame.
            MeshError: Whatever `seal` raises; after `close`, what that was given.
        """
        if self._closed is not None:
            raise self._closed
        flights, sending = self._flights, self._sending
        if len(batch) > flights.room:
            raise Overloaded("the publisher's window is full", expected=f"at most {flights.room}", got=f"{len(batch)}")
        limit, sizes = self.max_body, [len(item.body) for item in batch]
        if max(sizes, default=0) > limit:
            raise TooLarge("event over the server's limit", limit=limit, size=max(sizes))
        now = sending.now()
        refused = []
        lanes = {stream: sending.lane(stream, now) for stream in {item.stream for item in batch}}
        if any([lane.refusing for lane in lanes.values()]):  # noqa: C419 - a list: one or two lanes
            refused = [item for item in batch if lanes[item.stream].refuses(item.subject, now)]
            batch = [item for item in batch if item not in refused]
            sizes = [len(item.body) for item in batch]
        shut = {stream for stream, lane in lanes.items() if not lane.open(now)}
        going = [item for item in batch if item.stream not in shut] if shut else batch
        frames = self._sealer.admit(batch, going, self._clock_ms())
        for stream, lane in lanes.items():
            lane.extend(batch if len(lanes) == 1 else [item for item in batch if item.stream == stream], now)
        flights.body_bytes += sum(sizes)
        sending.write(frames, going, now)
        for item in refused:
            guarded(item.on_done, item, refusal(item))
        sending.wake_before(min(lane.due_at() for lane in lanes.values()))

    async def wait_for_room(self, n: int) -> None:
        """Return once `room` is at least *n* (or the window is empty); those who wait are served in their order."""
        await self._flights.wait_for_room(n)

    def hand_over_to(self, take_over: TakeOver, *, after_s: float) -> None:
        """Give up no event: what a stream has not acknowledged for *after_s*, or has no room for, is another's.

        Args:
            take_over: Gets everything in flight on that stream; from then on no ack of it means anything here.
            after_s: Since the last ack of the stream, and since the oldest event came. Before the first `submit`.
        """
        self._flights.take_over = take_over
        self._sending.rules = self._sending.rules._replace(hand_over_s=after_s)

    def believed(self, first_signed_ms: int, kids: Sequence[str]) -> bool:
        """Whether an ack now proves a copy that consumers accept, where the first under its id was signed then."""
        return self._sealer.believed(first_signed_ms, kids, self._clock_ms())

    def give_up(self, item: Outgoing, error: MeshError) -> None:
        """End an event that was handed over with *error*: nobody keeps it; it may be stored all the same."""
        self._former.given_up(item)
        guarded(item.on_done, item, error)

    def hold(self, because: str) -> None:
        """Send nothing until `release`; what is submitted meanwhile waits, and is sealed when it is sent."""
        self._sending.hold(because)

    def release(self) -> None:
        """End `hold`, until the next connect where the publisher was made to be held."""
        self._sending.release()

    @property
    def blocked(self) -> str:
        """Why nothing can or may be sent; empty where it may."""
        return self._sending.blocked

    def _opened(self) -> None:
        self.on_open()

    def distrust(self, kid: str) -> int:
        """Believe no ack any more of copies sealed by *kid*, whose cut has come; how many events go out anew for it.

        They go under the next generation of their ids, in order with all that waits behind them.
        """
        anew, now = self._sealer.distrust(kid), self._sending.now()
        self._sending.interrupt(anew, now)
        self._sending.wake_before(now)
        return len(anew)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight, for at most *timeout_s*; whether that came true."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait_for_room(self._window)
        except TimeoutError:
            return not self._sealer.by_token
        return True

    def close(self, error: MeshError | None = None) -> None:
        """Stop; what is in flight ends with *error*, whether the stream has it or not, and so does every `submit`."""
        reason = self._closed = error or Disconnected("the publisher was closed")
        self._listener.close()
        for forget in self._forget:
            forget()
        self._flights.finish_all(reason)
