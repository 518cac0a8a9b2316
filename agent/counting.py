"""What number comes next for each source and view, and what the next mark says. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from mesh.marks import Row, Void

if TYPE_CHECKING:
    from mesh.sequences import Number

MAX_COUNTERS: Final = 4096  # sources and views of one epoch: about 1.5 MB; some adapters name a source per customer
MAX_NAMED_VOIDS: Final = 60  # of one row: an audit record's lists hold 100
MAX_ROWS: Final = 90  # of one mark, likewise
MAX_MARK_BYTES: Final = 32_768  # of the rows of one mark: half of what an audit record may have


class Counter:
    """One source in one view: the last number given, and the last one that a mark named."""

    __slots__ = ("last", "marked")

    def __init__(self) -> None:
        self.last = 0
        self.marked = 0


class Counting:
    """One epoch of a process: what number comes next for each source and view, and what marks have yet to say.

    Args:
        epoch: Its name.
    """

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self._counters: dict[tuple[str, str], Counter] = {}
        self._voids: dict[tuple[str, str, str], list[Void]] = {}

    def full(self, source: str, view: str) -> bool:
        """Whether the epoch counts so many that a source in a view which is new to it belongs in another."""
        return len(self._counters) >= MAX_COUNTERS and (source, view) not in self._counters

    def counter(self, source: str, view: str) -> Counter:
        """The counter of a source in a view."""
        counter = self._counters.get((source, view))
        if counter is None:
            counter = self._counters[source, view] = Counter()
        return counter

    def void(self, number: Number, source: str, view: str, *, stream: str = "", at: int = 0, event: str = "") -> None:
        """Remember that no copy may stand under *number*, of this epoch or of another process's."""
        voids = self._voids.setdefault((number.epoch, source, view), [])
        if voids and not stream and not voids[-1].stream and voids[-1].last + 1 == number.n:
            before = voids[-1]
            if before.meant == before.last - before.first + 1:
                voids[-1] = Void(before.first, number.n, before.meant + 1)
                return
        if len(voids) < MAX_NAMED_VOIDS:
            voids.append(Void(number.n, number.n, 1, stream, at, event))
            return
        many = voids[-1]
        voids[-1] = Void(min(many.first, number.n), max(many.last, number.n), many.meant + 1)

    @property
    def voided(self) -> bool:
        """Whether there are void numbers that no mark has named."""
        return bool(self._voids)

    @property
    def moved(self) -> bool:
        """Whether anything was counted that no mark has named."""
        return bool(self._voids) or any(counter.last > counter.marked for counter in self._counters.values())

    def rows(self) -> list[Row]:
        """What the next mark says, as much as fits; empty once there is nothing more to say."""
        rows: list[Row] = []
        size = 0
        for epoch, source, view in self._due():
            counter = self._counters.get((source, view)) if epoch == self.epoch else None
            row = Row(
                epoch, source, view, counter.last if counter else 0, tuple(self._voids.get((epoch, source, view), ()))
            )
            size += len(msgspec.json.encode(row.plain()))
            if rows and (size > MAX_MARK_BYTES or len(rows) >= MAX_ROWS):
                break
            rows.append(row)
        for row in rows:
            self._voids.pop((row.epoch, row.source, row.view), None)
            if row.epoch == self.epoch and (counter := self._counters.get((row.source, row.view))):
                counter.marked = row.last
        return rows

    def _due(self) -> list[tuple[str, str, str]]:
        due = dict.fromkeys(self._voids)
        for (source, view), counter in self._counters.items():
            if counter.last > counter.marked:
                due[self.epoch, source, view] = None
        return list(due)
