"""What comes on the ack inbox of a publisher, and what it means for the event it names.

A plain ack that counts ends its event. One that comes too late to be believed, a 503, another error and an ack in the
name of another stream each have their own consequence; what waits behind the event is then for its lane to say.
"""

from __future__ import annotations

from collections.abc import Callable

from mesh import logs
from mesh.jetstream import acks
from mesh.jetstream.acks import ApiError, PubAck
from mesh.jetstream.former import Former
from mesh.jetstream.in_flight import InFlight
from mesh.jetstream.listeners import guarded
from mesh.jetstream.outgoing import Outgoing, found
from mesh.jetstream.sealing import ACK_COUNTS_MS, Sealer
from mesh.jetstream.sending import Sending
from mesh.telemetry import counter

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


class Answers:
    """To one publisher.

    Args:
        inbox: What ack subjects begin with; a token follows.
        sealer: Knows the events by their tokens, and which acks count.
        former: Learns which acks counted.
        flights: Hears which events end, and which are handed over.
        sending: Sends what an ack lets go.
        clock_ms: Unix milliseconds, the clock of the seals.
    """

    def __init__(
        self,
        inbox: str,
        *,
        sealer: Sealer,
        former: Former,
        flights: InFlight,
        sending: Sending,
        clock_ms: Callable[[], int],
    ) -> None:
        self._inbox = inbox
        self._cut = len(inbox)
        self._sealer = sealer
        self._former = former
        self._flights = flights
        self._sending = sending
        self._lanes = sending.lanes
        self._clock_ms = clock_ms
        self._prefixes: dict[str, bytes] = {}  # of plain acks, by stream

    # --- many in one go ----------------------------------------------------------------------------------------------

    def run_of(self, sid: int) -> Callable[[bytes, int], int]:
        """What reads plain acks that stand together, where *sid* is the subscription to the inbox."""
        read = acks.AckRun(self._inbox, sid).read

        def hear(data: bytes, position: int) -> int:
            end, run = read(data, position)
            if run is not None:
                guarded(self._on_acks, run)
            return end

        return hear

    def _on_acks(self, run: acks.Acks) -> None:
        """Plain acks that came together: what `_stored` does for each is done once for all in the order of the lane."""
        stream, tokens, sequences = run
        item_of, lane = self._sealer.by_token.get, self._lanes.get(stream)
        taken = 0
        if lane is not None and not self._sealer.distrusts:
            known = found(tokens, self._sealer.by_token, self._clock_ms() - ACK_COUNTS_MS)
            if len(known) == len(tokens):
                taken = lane.acked_in_order(known, sequences, self._sending.now())
                self._flights.finish_stored(known[:taken], sequences)
        rest = [item_of(token) for token in tokens[taken:]]
        for token, item, sequence in zip(tokens[taken:], rest, sequences[taken:], strict=True):
            if item is None or item_of(token) is not item:
                continue  # done, or by an ack before it under way under a new id
            if item.stream == stream:
                self._stored(item, PubAck(stream, sequence))
            else:
                _foreign(item)

    # --- one by one --------------------------------------------------------------------------------------------------

    def on_answer(self, subject: str, _reply: str, headers: bytes | None, data: bytes) -> None:
        """Whatever came for one event."""
        token = subject[self._cut :]
        item = self._sealer.by_token.get(int(token)) if acks.is_token(token) else None
        if item is None:
            self._sending.hear_witness(token, data)
            return
        prefix = self._prefixes.get(item.stream)
        if prefix is None:
            prefix = self._prefixes[item.stream] = acks.ack_prefix(item.stream)
        digits = data[len(prefix) : -1]
        if data.startswith(prefix) and digits.isdigit():
            self._stored(item, PubAck(item.stream, int(digits)))
        else:
            self._on_other(item, headers, data)

    def _on_other(self, item: Outgoing, headers: bytes | None, data: bytes) -> None:
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
        sending = self._sending
        lane, now, now_ms = self._lanes[item.stream], sending.now(), self._clock_ms()
        if not self._sealer.ack_counts(item, now_ms):
            lane.interrupt(now)
            sending.wake_before(now)
            return
        self._former.stored(item)
        overtaken = lane.overtaken
        again = lane.acked(item, now, ack)
        if lane.overtaken != overtaken:
            OVERTAKEN.add(1)
        if again:  # before `on_done`, which may submit the next event
            sending.resend(again, now)
        self._flights.finish(item, ack)
        if not lane.flowing:
            sending.wake_before(lane.due_at())

    def _on_error(self, item: Outgoing, error: ApiError) -> None:
        flights, sending = self._flights, self._sending
        lane, now = self._lanes[item.stream], sending.now()
        if error.passes:
            for refused, reason in lane.rejected(item, now, by_stream=error.err_code != 0):
                flights.finish(refused, reason)
            sending.wake_before(lane.due_at())
        elif error.full and flights.take_over is not None:
            flights.hand_over(lane.stream, lane.hand_over(now))
        else:
            sending.resend(lane.drop(item), now)
            flights.finish(item, error.as_error())


def _foreign(item: Outgoing) -> None:
    FOREIGN_ACKS.add(1)
    log.error("publish_ack_foreign", stream=item.stream, id=item.event_id)
