"""Sealed events into streams: one ack inbox, a bounded window, ordered recovery.

What is in flight on each stream, and what happens when an ack does not come, is in `window.py`; sealing and message ids
are in `sealing.py`. This module moves bytes and time between them and the connection, without a task or a future per
event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter

from mesh import logs
from mesh.errors import Disconnected, MeshError, Overloaded, TooLarge
from mesh.jetstream import acks, wire
from mesh.jetstream.acks import ApiError, PubAck
from mesh.jetstream.connection import Connection
from mesh.jetstream.former import Former
from mesh.jetstream.listeners import guarded
from mesh.jetstream.outgoing import NEVER, Outgoing, Together
from mesh.jetstream.refused_subjects import refusal
from mesh.jetstream.room import Room
from mesh.jetstream.sealing import ACK_COUNTS_MS, Seal, Sealer
from mesh.jetstream.window import NO_CONNECTION, Lane, Rules
from mesh.telemetry import counter

__all__ = ["Outgoing", "PubAck", "Publisher"]

WINDOW = 4096  # events in flight: 0.1 s at 40 k/s. A stream buffers 10,000 before it answers 429
WINDOW_BYTES = 64 * 1024 * 1024  # bodies in flight; a quarter of what a pod of an agent gets
HEADER_ROOM = 2048  # bytes: our headers take up to 1,300 (a signature is at most 1,024)
MAX_WITNESSES = 64  # unanswered ones that are remembered

RESENT = counter("mesh.publish.resent", unit="{event}", watch="rising: acks are late, or the server restarts often")
RESEALED = counter("mesh.publish.resealed", unit="{event}", watch="rising: events wait over 30 s for their ack")
NEW_IDS = counter("mesh.publish.new_generations", unit="{event}", watch="above 0: events waited over 100 s; see lag")
FOREIGN_ACKS = counter(
    "mesh.publish.foreign_acks", unit="{ack}", watch="above 0: two streams share a subject, or a forgery"
)
DUPLICATE_ACKS = counter(
    "mesh.publish.duplicate_acks", unit="{ack}", watch="rising without resends: an id is used twice"
)
OVERTAKEN = counter(
    "mesh.publish.overtaken",
    unit="{event}",
    watch="above 0: a stream changed its leader, and stored events behind later ones, of any source",
)

log = logs.get("publisher")
_together: Callable[[Outgoing], Together | None] = attrgetter("together")

TakeOver = Callable[[str, list[Outgoing]], None]
"""`take_over(stream, events)`: the stream does not acknowledge; these were in flight, in this order, until now."""


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
        self._connection = connection
        self._held_at_connect = self._held = held
        self._clock_ms = clock_ms
        self._window = window
        self._window_bytes = window_bytes
        self._rules = Rules(ack_deadline_s=ack_deadline_s, give_up_s=give_up_s)
        self._now = asyncio.get_running_loop().time
        self._lanes: dict[str, Lane] = {}
        self._ack_prefixes: dict[str, bytes] = {}
        self._witnesses: dict[str, tuple[Lane, str]] = {}
        self._asked = 0
        self._bytes = 0
        self._room = Room(self._fits)
        self._sleeps_until = NEVER
        self._wake = asyncio.Event()
        self._inbox = f"{connection.new_inbox()}."
        self._cut = len(self._inbox)
        self._former = Former()
        self._sealer = Sealer(seal, message_id, inbox=self._inbox, former=self._former)
        self._listener = connection.listen(f"{self._inbox}*", self._on_ack, run_of=self._read_acks)
        self._closed: MeshError | None = None
        self._take_over: TakeOver | None = None
        self.on_open: Callable[[], None] = lambda: None
        self._forget = [connection.on_connect(self._online), connection.on_disconnect(self._offline)]

    # --- in ----------------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Events submitted and not done."""
        return len(self._sealer.by_token)

    @property
    def room(self) -> int:
        """Events that `submit` takes now."""
        return 0 if self._bytes >= self._window_bytes else self._window - len(self._sealer.by_token)

    @property
    def max_body(self) -> int:
        """Bytes of a body that this server takes, with our headers."""
        return self._connection.max_payload - HEADER_ROOM

    def submit(self, batch: Sequence[Outgoing]) -> None:
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
        if len(batch) > self.room:
            raise Overloaded("the publisher's window is full", expected=f"at most {self.room}", got=f"{len(batch)}")
        limit, sizes = self.max_body, [len(item.body) for item in batch]
        if max(sizes, default=0) > limit:
            raise TooLarge("event over the server's limit", limit=limit, size=max(sizes))
        now = self._now()
        refused = []
        lanes = {stream: self._lane(stream, now) for stream in {item.stream for item in batch}}
        if any([lane.refusing for lane in lanes.values()]):  # noqa: C419 - a list: one or two lanes
            refused = [item for item in batch if lanes[item.stream].refuses(item.subject, now)]
            batch = [item for item in batch if item not in refused]
            sizes = [len(item.body) for item in batch]
        shut = {stream for stream, lane in lanes.items() if not lane.open(now)}
        sending = [item for item in batch if item.stream not in shut] if shut else batch
        frames = self._sealer.admit(batch, sending, self._clock_ms())
        for stream, lane in lanes.items():
            lane.extend(batch if len(lanes) == 1 else [item for item in batch if item.stream == stream], now)
        self._bytes += sum(sizes)
        self._write(frames, sending, now)
        for item in refused:
            guarded(item.on_done, item, refusal(item))
        self._wake_before(min(lane.due_at() for lane in lanes.values()))

    async def wait_for_room(self, n: int) -> None:
        """Return once `room` is at least *n* (or the window is empty); those who wait are served in their order."""
        await self._room.wait(n)

    def _fits(self, n: int) -> bool:
        return self.room >= n or not self._sealer.by_token

    def hand_over_to(self, take_over: TakeOver, *, after_s: float) -> None:
        """Give up no event: what a stream has not acknowledged for *after_s*, or has no room for, is another's.

        Args:
            take_over: Gets everything in flight on that stream; from then on no ack of it means anything here.
            after_s: Since the last ack of the stream, and since the oldest event came. Before the first `submit`.
        """
        self._take_over = take_over
        self._rules = self._rules._replace(hand_over_s=after_s)

    def believed(self, first_signed_ms: int, kids: Sequence[str]) -> bool:
        """Whether an ack now proves a copy that consumers accept, where the first under its id was signed then."""
        return self._sealer.believed(first_signed_ms, kids, self._clock_ms())

    def give_up(self, item: Outgoing, error: MeshError) -> None:
        """End an event that was handed over with *error*: nobody keeps it; it may be stored all the same."""
        self._former.given_up(item)
        guarded(item.on_done, item, error)

    def hold(self, because: str) -> None:
        """Send nothing until `release`; what is submitted meanwhile waits, and is sealed when it is sent."""
        self._held = because
        for lane in self._lanes.values():
            lane.offline(self.blocked)

    def release(self) -> None:
        """End `hold`, until the next connect where the publisher was made to be held."""
        if self._held:
            self._held = ""
            self._resume()

    def distrust(self, kid: str) -> int:
        """Believe no ack any more of copies sealed by *kid*, whose cut has come; how many events go out anew for it.

        They go under the next generation of their ids, in order with all that waits behind them.
        """
        anew, now = self._sealer.distrust(kid), self._now()
        for stream in {item.stream for item in anew}:
            self._lanes[stream].interrupt(now)
        self._wake_before(now)
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
        for item in list(self._sealer.by_token.values()):
            self._finish(item, reason)

    # --- out ---------------------------------------------------------------------------------------------------------

    def _write(self, frames: bytes, items: Sequence[Outgoing], now: float) -> None:
        if not items:
            return
        try:
            self._connection.write(frames)
        except Disconnected:
            return  # the lanes are offline, or about to hear of it
        for item in items:  # as `Lane.sent`
            item.sent_at = now
            item.sends += 1

    def _resend(self, items: Sequence[Outgoing], now: float) -> None:
        sealer = self._sealer
        resealed, new_ids = sealer.resealed, sealer.new_ids
        RESENT.add(sum(1 for item in items if item.sends))
        try:
            frames = sealer.frames(items, self._clock_ms())
        except Exception as error:  # noqa: BLE001 - no key to sign with, say; time goes on, and may give them up
            log.error("seal_failed", code=getattr(error, "code", type(error).__name__), events=len(items))
            for stream in {item.stream for item in items}:
                self._lanes[stream].interrupt(now + self._rules.probe_last_s)
            return
        RESEALED.add(sealer.resealed - resealed)
        NEW_IDS.add(sealer.new_ids - new_ids)
        self._write(frames, items, now)

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

    def _lane(self, stream: str, now: float) -> Lane:
        lane = self._lanes.get(stream)
        if lane is None:
            lane = self._lanes[stream] = Lane(stream, self._rules, offline=self.blocked, now=now)
            self._ack_prefixes[stream] = acks.ack_prefix(stream)
        return lane

    # --- acks --------------------------------------------------------------------------------------------------------

    def _read_acks(self, sid: int) -> Callable[[bytes, int], int]:
        read = acks.AckRun(self._inbox, sid).read

        def run(data: bytes, position: int) -> int:
            end, found = read(data, position)
            if found is not None:
                guarded(self._on_acks, found)
            return end

        return run

    def _on_acks(self, found: acks.Acks) -> None:
        """Plain acks that came together: what `_stored` does for each is done once for all in the order of the lane."""
        stream, tokens, sequences = found
        item_of, lane = self._sealer.by_token.get, self._lanes.get(stream)
        run = [item_of(token) for token in tokens]
        taken, oldest_ms = 0, self._clock_ms() - ACK_COUNTS_MS
        if lane is not None and not self._sealer.distrusts:
            known = [item for item in run if item is not None and item.first_signed_ms >= oldest_ms]
            if len(known) == len(run):
                taken = lane.acked_in_order(known, sequences, self._now())
                self._stored_in_order(known[:taken], sequences)
        for token, item, sequence in zip(tokens[taken:], run[taken:], sequences[taken:], strict=True):
            if item is None or item_of(token) is not item:
                continue  # done, or by an ack before it under way under a new id
            if item.stream == stream:
                self._stored(item, PubAck(stream, sequence))
            else:
                _foreign(item)

    def _stored_in_order(self, items: Sequence[Outgoing], sequences: Sequence[int]) -> None:
        """What `_stored` does beside the lane."""
        by_token, former = self._sealer.by_token, self._former
        remembers = len(former) > 0
        size = at = 0
        for item in items:
            del by_token[item.token]
            size += len(item.body)
            if remembers or item.generation:
                former.stored(item)
        self._bytes -= size
        for together, part in groupby(items, _together):
            some = list(part)
            places = sequences[at : at + len(some)]
            at += len(some)
            if together is not None:
                guarded(together.stored, some, places)
                continue
            for item, sequence in zip(some, places, strict=True):
                guarded(item.on_done, item, PubAck(item.stream, sequence))
        self._room.admit()

    def _on_ack(self, subject: str, _reply: str, headers: bytes | None, data: bytes) -> None:
        item = self._sealer.by_token.get(subject[self._cut :])
        if item is None:
            if subject[self._cut :] in self._witnesses:
                self._on_witness(subject[self._cut :], data)
            return  # else the ack of an event that is done, or of its former generation
        prefix = self._ack_prefixes[item.stream]
        digits = data[len(prefix) : -1]
        if data.startswith(prefix) and digits.isdigit():
            self._stored(item, PubAck(item.stream, int(digits)))
        else:
            self._on_other_ack(item, headers, data)

    def _on_other_ack(self, item: Outgoing, headers: bytes | None, data: bytes) -> None:
        answer = acks.answer_of(headers, data)
        if isinstance(answer, ApiError):
            self._on_error(item, answer)
        elif answer is None or answer.stream != item.stream:
            _foreign(item)
        else:
            if answer.duplicate:
                DUPLICATE_ACKS.add(1)
            self._stored(item, answer)

    def _stored(self, item: Outgoing, ack: PubAck) -> None:
        lane, now, now_ms = self._lanes[item.stream], self._now(), self._clock_ms()
        if not self._sealer.ack_counts(item, now_ms):
            lane.interrupt(now)
            self._wake_before(now)
            return
        self._former.stored(item)
        overtaken = lane.overtaken
        again = lane.acked(item, now, ack)
        if lane.overtaken != overtaken:
            OVERTAKEN.add(1)
        if again:  # before `on_done`, which may submit the next event
            self._resend(again, now)
        self._finish(item, ack)
        if not lane.flowing:
            self._wake_before(lane.due_at())

    def _on_error(self, item: Outgoing, error: ApiError) -> None:
        lane, now = self._lanes[item.stream], self._now()
        if error.passes:
            for refused, reason in lane.rejected(item, now, by_stream=error.err_code != 0):
                self._finish(refused, reason)
            self._wake_before(lane.due_at())
        elif error.full and self._take_over is not None:
            self._hand_over(lane.stream, lane.hand_over(now))
        else:
            self._resend(lane.drop(item), now)
            self._finish(item, error.as_error())

    def _on_witness(self, token: str, data: bytes) -> None:
        lane, subject = self._witnesses.pop(token)
        answer = acks.parse_pub_ack(data)
        if isinstance(answer, ApiError) and answer.err_code == acks.WRONG_STREAM:
            lane.witnessed(subject, self._now())
            self._wake_before(lane.due_at())

    def _finish(self, item: Outgoing, result: PubAck | MeshError) -> None:
        self._sealer.forget(item)
        item.done = True
        if isinstance(result, MeshError):
            self._former.given_up(item)
        self._bytes -= len(item.body)
        guarded(item.on_done, item, result)
        self._room.admit()

    def _hand_over(self, stream: str, items: list[Outgoing]) -> None:
        for item in items:
            self._sealer.forget(item)
            self._bytes -= len(item.body)
        if self._take_over is not None:
            self._take_over(stream, items)
        self._room.admit()

    # --- time --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep deadlines and recover, until cancelled."""
        while True:
            self._wake.clear()
            self._sleeps_until = min((lane.due_at() for lane in self._lanes.values()), default=NEVER)
            pause = self._sleeps_until - self._now()
            if pause > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause if pause < NEVER else None):
                        await self._wake.wait()
            self._step()

    def _step(self) -> None:
        now = self._now()
        for lane in tuple(self._lanes.values()):
            send, failed, witness, handed = lane.step(now)
            for item, error in failed:
                self._finish(item, error)
            if handed:
                self._hand_over(lane.stream, handed)
            if send:
                self._resend(send, now)
            if witness is not None:
                self._ask(lane, witness)

    def _wake_before(self, due: float) -> None:
        if due < self._sleeps_until:
            self._sleeps_until = due
            self._wake.set()

    @property
    def blocked(self) -> str:
        """Why nothing can or may be sent; empty where it may."""
        return self._held if self._connection.connected else NO_CONNECTION

    def _online(self) -> None:
        self._held = self._held_at_connect or self._held
        self._resume()

    def _resume(self) -> None:
        if self.blocked:
            return
        now = self._now()
        for lane in self._lanes.values():
            lane.online(now)
        self._wake_before(now)
        guarded(self.on_open)

    def _offline(self) -> None:
        for lane in self._lanes.values():
            lane.offline()


def _foreign(item: Outgoing) -> None:
    FOREIGN_ACKS.add(1)
    log.error("publish_ack_foreign", stream=item.stream, id=item.event_id)
