"""A copy on its way out of the spool: the row that was read, and what is sent of it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.jetstream.outgoing import Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.spool.database import Row
    from agent.spool.record import Sent
    from mesh.errors import MeshError
    from mesh.jetstream.acks import PubAck


READ_AHEAD_BYTES = 16 * 1024 * 1024  # of bodies in memory on their way out of the spool, of all streams together


class ReadAhead:
    """How much of the spool is in memory.

    Attributes:
        used: Bytes of bodies.
    """

    def __init__(self) -> None:
        self.used = 0

    @property
    def room(self) -> int:
        """Bytes that may be read now."""
        return READ_AHEAD_BYTES - self.used

    def holds(self, rows: Iterable[Row]) -> None:
        """These were read."""
        self.used += sum(len(row.copy.body) for row in rows)

    def forgets(self, rows: Iterable[Row]) -> None:
        """These are held no more."""
        self.used -= sum(len(row.copy.body) for row in rows)


def resent(row: Row, body: bytes, sent: Sent, on_done: Callable[[Outgoing, PubAck | MeshError], None]) -> Outgoing:
    """What is sent of *row*, its `origin`: *body*, under the id that it was *sent* with before."""
    copy = row.copy
    return Outgoing(
        subject=copy.subject,
        stream=row.stream,
        body=body,
        source=copy.source,
        event_id=copy.event_id,
        traceparent=copy.traceparent,
        on_done=on_done,
        origin=row,
        generation=sent.generation,
        first_signed_ms=sent.first_signed_ms,
        kids=sent.kids,
    )


class Entry:
    """A row that was read and is not in its stream yet."""

    __slots__ = ("kept", "refused_since", "row", "sent")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.sent = self.kept = row.sent  # as we know it, and as the disk does
        self.refused_since: float | None = None  # of its subject, by NATS

    def __lt__(self, other: Entry) -> bool:
        """In the order of the spool."""
        return self.row.id < other.row.id
