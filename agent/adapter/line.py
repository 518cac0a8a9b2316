"""The events of an adapter's state: those that wait for their 202, in order, and those that were refused for good.

A refused event is parked with its reason and the others go on. `retry` puts it back in its old place in the line, so it
never comes after a newer event of its item: once one of those was accepted, the older one is dropped as superseded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from agent.adapter.database import IS_BAD, transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from agent.adapter.cloak import Cloak

_WAITING = "SELECT seq, name, sealed FROM events WHERE problem IS NULL ORDER BY seq LIMIT ?"
_PARKED = "SELECT seq, name, sealed, problem FROM events WHERE problem IS NOT NULL ORDER BY seq"
_WAIT = "SELECT count(*) FROM events WHERE problem IS NULL"  # each count has an index
_ASIDE = "SELECT count(*) FROM events WHERE problem IS NOT NULL"
_TAKEN = "DELETE FROM events WHERE seq = ?"
_SUPERSEDED = (  # parked ones, and those that were put back in the line while the newer one was on its way
    "DELETE FROM events WHERE name = ? AND seq < ? AND problem IS NOT NULL",
    "DELETE FROM events WHERE name = ? AND seq < ? AND problem IS NULL",  # one by one: each has an index
)
_PARK = "UPDATE events SET problem = ? WHERE seq = ?"
_UNREAD = f"DELETE FROM events WHERE {IS_BAD} AND (seq = ?1 OR ?1 IS NULL)"  # noqa: S608 - no value is in it
_RETRY = "UPDATE events SET problem = NULL WHERE problem IS NOT NULL AND (seq = ?1 OR ?1 IS NULL)"
_DROP = "DELETE FROM events WHERE problem IS NOT NULL AND (seq = ?1 OR ?1 IS NULL)"
_START_OVER = "INSERT OR REPLACE INTO meta VALUES ('start_over', 1)"


class Row(NamedTuple):
    """An event that waits."""

    seq: int
    name: bytes
    fields: dict[str, Any]


class Parked(NamedTuple):
    """An event that was refused, or an item that is none: then `id` and `type` are empty, and an unread `key`.

    Attributes:
        seq: What `retry` and `drop` take.
        problem: Why: code, rule and reason, as far as they were said.
    """

    seq: int
    key: str
    id: str
    type: str
    problem: dict[str, Any]


class Level(NamedTuple):
    """How many events wait, and how many are parked."""

    waiting: int
    parked: int


class Line:
    """The events of an opened state file; one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, cloak: Cloak) -> None:
        self._connection = connection
        self._cloak = cloak

    def waiting(self, limit: int) -> list[Row]:
        """The first events that wait, at most one of each item: a batch of them has no order of its own."""
        rows: dict[bytes, Row] = {}
        for seq, name, sealed in self._connection.execute(_WAITING, (limit,)).fetchall():
            if name in rows:
                break
            rows[name] = Row(seq, name, self._open(name, sealed))
        return list(rows.values())

    def taken(self, rows: Sequence[Row]) -> int:
        """They got their 202; returns how many older ones they supersede."""
        superseded = 0
        with transaction(self._connection):
            for row in rows:
                self._connection.execute(_TAKEN, (row.seq,))
                for older in _SUPERSEDED:
                    superseded += self._connection.execute(older, (row.name, row.seq)).rowcount
        return superseded

    def park(self, row: Row, problem: str) -> None:
        """It was refused for good."""
        self._connection.execute(_PARK, (problem, row.seq))

    def parked(self) -> Iterator[Parked]:
        """All that are, in the order in which they happened."""
        for seq, name, sealed, problem in self._connection.execute(_PARKED):
            fields = self._open(name, sealed)
            key, id_, type_ = (str(fields.get(name, "")) for name in ("partitionkey", "id", "type"))
            yield Parked(seq, key, id_, type_, msgspec.json.decode(problem))

    def retry(self, seq: int | None = None) -> int:
        """Publish a parked event again, or all; items that could not be read have everything read again."""
        with transaction(self._connection):
            unread = self._connection.execute(_UNREAD, (seq,)).rowcount
            if unread:
                self._connection.execute(_START_OVER)
            again = self._connection.execute(_RETRY, (seq,)).rowcount
        return unread + again

    def drop(self, seq: int | None = None) -> int:
        """Delete a parked event, or all."""
        return self._connection.execute(_DROP, (seq,)).rowcount

    def level(self) -> Level:
        """How much there is."""
        ((waiting,),), ((parked,),) = (self._connection.execute(count) for count in (_WAIT, _ASIDE))
        return Level(waiting, parked)

    def _open(self, name: bytes, sealed: bytes) -> dict[str, Any]:
        return dict(self._cloak.open(f"event {name.hex()}", sealed))
