"""What a caller gets for an accepted event, and one request on its way to the stream: `Flight`. Pure.

A flight lands when the last copy of its last event is acknowledged, spooled or given up. Then every event has its
receipt, or the request has failed and says which events are durable all the same; sending the others again is safe, ids
being ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mesh.errors import MeshError, StreamUnavailable
from mesh.jetstream.outgoing import Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesh.jetstream.acks import PubAck
    from mesh.journey import Copy, Outbound

STREAM = "stream"
SPOOL = "spool"
_VIEW = 2  # ev.<site>.<view>.…
_LISTED = 100  # failed events named in a problem; a whole batch would be a page


class CopyReceipt(msgspec.Struct, frozen=True, gc=False):
    """Where one view's copy rests; `seq` is 0 while that is the agent's spool."""

    view: str
    stream: str
    seq: int


class Receipt(msgspec.Struct, frozen=True):
    """Every copy of one event is durable. No copies: policy allows the event and nobody may read it.

    `durable` is `stream` where every copy is in its stream, else `spool`: on the agent's disk, and sent as soon as that
    can be. `duplicate` means every copy was there already: this is a repeated request, and consumers see nothing new.
    """

    id: str
    durable: str
    duplicate: bool
    copies: list[CopyReceipt]


class BatchReceipt(msgspec.Struct, frozen=True):
    """One receipt per event, in the order of the request."""

    accepted: int
    events: list[Receipt]


class _Event:
    """One event of a flight: its copies as they are acknowledged."""

    __slots__ = ("copies", "duplicates", "error", "flight", "id")

    def __init__(self, event_id: str, flight: Flight) -> None:
        self.id = event_id
        self.flight = flight
        self.copies: list[CopyReceipt] = []
        self.duplicates = 0
        self.error: BaseException | None = None

    def done(self, outgoing: Outgoing, result: PubAck | MeshError) -> None:
        """One copy is durable, or was given up."""
        view = outgoing.subject.split(".", _VIEW + 1)[_VIEW]
        if isinstance(result, BaseException):
            self.error = result
            self.flight.void(outgoing, None)
            self.flight.copy_done(view, durable=False)
            return
        self.copies.append(CopyReceipt(view, result.stream, result.sequence))
        if result.duplicate:
            self.duplicates += 1
            self.flight.void(outgoing, result)
        self.flight.copy_done(view, durable=True)

    def receipt(self) -> Receipt:
        """The event's receipt; every copy is in."""
        copies = self.copies
        durable = STREAM if all(copy.seq for copy in copies) else SPOOL
        return Receipt(self.id, durable, bool(copies) and self.duplicates == len(copies), copies)


class Flight:
    """The copies of one request, from the lanes to the last acknowledgement.

    Args:
        events: What the policies made of each event, in order.
        on_copy: Called for each copy that is done: its view, and whether it is durable or was given up.
        on_landed: Called once, when all are.
        on_void: Called for each copy that may not be stored under its number: with the ack where the stream had the
            event already, with None where the copy was given up.
    """

    __slots__ = ("_events", "_on_copy", "_on_landed", "outgoing", "undurable", "void", "waiting")

    def __init__(
        self,
        events: Sequence[Outbound],
        *,
        on_copy: Callable[[str, bool], None],
        on_landed: Callable[[Flight], None],
        on_void: Callable[[Outgoing, PubAck | None], None],
    ) -> None:
        self.void = on_void
        self._on_copy = on_copy
        self._on_landed = on_landed
        self._events: list[_Event] = []
        self.outgoing: list[tuple[str, Outgoing]] = []
        for decided in events:
            event = _Event(decided.event_id, self)
            self._events.append(event)
            self.outgoing.extend((copy.view, _outgoing(copy, event)) for copy in decided.copies)
        self.waiting = len(self.outgoing)
        self.undurable = 0

    def copy_done(self, view: str, *, durable: bool) -> None:
        """Count one copy; the last one lands the flight."""
        self.waiting -= 1
        self.undurable += not durable
        self._on_copy(view, durable)
        if not self.waiting:
            self._on_landed(self)

    @property
    def accepted(self) -> int:
        """Events whose every copy is durable."""
        return sum(event.error is None for event in self._events)

    @property
    def unread(self) -> int:
        """Events that nobody may read."""
        return sum(event.error is None and not event.copies for event in self._events)

    @property
    def duplicates(self) -> int:
        """Copies that the stream already had."""
        return sum(event.duplicates for event in self._events)

    def receipts(self) -> list[Receipt]:
        """A receipt for each event.

        Raises:
            Unavailable: Some copy is not durable; `accepted` events are, `failed` lists the indexes of the others.
        """
        failed = [index for index, event in enumerate(self._events) if event.error is not None]
        if failed:
            raise self._failure(failed)
        return [event.receipt() for event in self._events]

    def _failure(self, failed: list[int]) -> BaseException:
        cause = self._events[failed[0]].error
        if not isinstance(cause, MeshError):
            return cause or StreamUnavailable("a copy was given up")
        details: dict[str, Any] = dict(cause.details)
        if len(self._events) > 1:
            details |= {"accepted": len(self._events) - len(failed), "failed": failed[:_LISTED]}
        return type(cause)(  # a new one: this failure can be several requests', and each has its own traceback
            cause.message,
            expected=cause.expected,
            got=cause.got,
            next="send the same again, with the same ids: what is stored already is not stored twice",
            **details,
        )


def _outgoing(copy: Copy, event: _Event) -> Outgoing:
    return Outgoing(
        subject=copy.subject,
        stream=copy.stream,
        body=copy.body,
        source=copy.source,
        event_id=copy.event_id,
        on_done=event.done,
        traceparent=copy.traceparent,
    )
