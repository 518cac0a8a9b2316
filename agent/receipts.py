"""What a caller gets for an accepted event, and one request on its way to the stream: `Flight`. Pure.

A flight lands when the last copy of its last event is acknowledged, spooled or given up. Then every event has its
receipt, or the request has failed and says which events are durable all the same; sending the others again is safe, ids
being ids.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from mesh.errors import MeshError
from mesh.jetstream.acks import PubAck
from mesh.jetstream.outgoing import Outgoing, Together, boarded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesh.journey import Outbound

STREAM = "stream"
SPOOL = "spool"
_LISTED = 100  # failed events named in a problem; a whole batch would be a page


class CopyReceipt(msgspec.Struct, frozen=True, gc=False):
    """Where one view's copy rests; `seq` is 0 while that is the agent's spool."""

    view: str
    stream: str
    seq: int


class Receipt(msgspec.Struct, frozen=True, gc=False):
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


class _Share:
    """The copies of a flight in one view."""

    __slots__ = ("_stored", "_view")

    def __init__(self, view: str, stored: Callable[[str, Sequence[Outgoing], Sequence[int]], None]) -> None:
        self._view = view
        self._stored = stored

    def stored(self, items: Sequence[Outgoing], sequences: Sequence[int]) -> None:
        """See `Together`."""
        self._stored(self._view, items, sequences)


class Flight:
    """The copies of one request, from the lanes to the last acknowledgement.

    Args:
        events: What the policies made of each event, in order. Their copies are taken over: they can be in one flight
            only.
        on_copies: Called for copies of one view that are done: the view, how many, and how many of them are durable;
            the others were given up.
        on_landed: Called once, when all are.
        on_void: Called for each copy that may not be stored under its number: with the ack where the stream had the
            event already, with None where the copy was given up.

    Attributes:
        outgoing: The copies in order, until somebody takes them. What is done is let go of, body and all.
        waiting: Copies under way.
        undurable: Copies given up.
        unread: Events that nobody may read.
    """

    __slots__ = (
        "_done_copies", "_events", "_on_copies", "_on_landed", "_repeated", "_void",
        "outgoing", "undurable", "unread", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        events: Sequence[Outbound],
        *,
        on_copies: Callable[[str, int, int], None],
        on_landed: Callable[[Flight], None],
        on_void: Callable[[Outgoing, PubAck | None], None],
    ) -> None:
        self._void = on_void
        self._on_copies = on_copies
        self._on_landed = on_landed
        self._events = [(event.event_id, len(event.copies)) for event in events]
        copies = [copy for event in events for copy in event.copies]
        shares: dict[str, Together] = {view: _Share(view, self._stored) for view in {copy.view for copy in copies}}
        boarded(copies, self._done, shares)
        self.outgoing = copies
        self._done_copies: list[CopyReceipt | BaseException | None] = [None] * len(copies)
        self._repeated: set[int] = set()  # places of copies that the stream had already
        self.waiting = len(self.outgoing)
        self.undurable = 0
        self.unread = sum(not count for _, count in self._events)

    def _done(self, sent: Outgoing, result: PubAck | MeshError) -> None:
        """Count one copy, which is durable or was given up; the last one lands the flight."""
        durable = isinstance(result, PubAck)
        if isinstance(result, PubAck):
            self._done_copies[sent.place] = CopyReceipt(sent.view, result.stream, result.sequence)
            if result.duplicate:
                self._repeated.add(sent.place)
                self._void(sent, result)
        else:
            # The frames of a traceback hold copies, these lead here, and no collector looks at them: all would stay.
            self._done_copies[sent.place] = result.with_traceback(None)
            self.undurable += 1
            self._void(sent, None)
        self.waiting -= 1
        self._on_copies(sent.view, 1, int(durable))
        if not self.waiting:
            self._on_landed(self)

    def _stored(self, view: str, items: Sequence[Outgoing], sequences: Sequence[int]) -> None:
        """`_done` for copies of one view that are stored, each for the first time."""
        done = self._done_copies
        for item, sequence in zip(items, sequences, strict=True):
            done[item.place] = CopyReceipt(view, item.stream, sequence)
        self.waiting -= len(items)
        self._on_copies(view, len(items), len(items))
        if not self.waiting:
            self._on_landed(self)

    @property
    def accepted(self) -> int:
        """Events whose every copy is durable."""
        return len(self._events) - len(self._failed())

    @property
    def duplicates(self) -> int:
        """Copies that the stream already had."""
        return len(self._repeated)

    def receipts(self) -> list[Receipt]:
        """A receipt for each event; call it once every copy is done.

        Raises:
            Unavailable: Some copy is not durable; `accepted` events are, `failed` lists the indexes of the others.
        """
        if failed := self._failed():
            raise self._failure(failed)
        done: list[Any] = self._done_copies
        if not self._repeated and len(done) == len(self._events) and not self.unread:  # as mostly: each has one copy
            return [
                Receipt(event_id, STREAM if copy.seq else SPOOL, duplicate=False, copies=[copy])
                for (event_id, _), copy in zip(self._events, done, strict=True)
            ]
        receipts, first = [], 0
        for event_id, count in self._events:
            copies = done[first : first + count]
            duplicate = bool(self._repeated and count) and self._repeated.issuperset(range(first, first + count))
            durable = STREAM if all([copy.seq for copy in copies]) else SPOOL  # noqa: C419 - a list: one or two copies
            receipts.append(Receipt(event_id, durable, duplicate, copies))
            first += count
        return receipts

    def _failed(self) -> dict[int, BaseException]:
        """Why events failed, by their index."""
        failed: dict[int, BaseException] = {}
        copies = iter(self._done_copies)
        for index, (_, count) in enumerate(self._events if self.undurable else ()):
            errors = [copy for copy in islice(copies, count) if isinstance(copy, BaseException)]
            if errors:
                failed[index] = errors[-1]
        return failed

    def _failure(self, failed: dict[int, BaseException]) -> BaseException:
        cause = next(iter(failed.values()))
        if not isinstance(cause, MeshError):
            return cause
        details: dict[str, Any] = dict(cause.details)
        if len(self._events) > 1:
            details |= {"accepted": len(self._events) - len(failed), "failed": list(failed)[:_LISTED]}
        return type(cause)(  # a new one: this failure can be several requests', and each has its own traceback
            cause.message,
            expected=cause.expected,
            got=cause.got,
            next="send the same again, with the same ids: what is stored already is not stored twice",
            **details,
        )
