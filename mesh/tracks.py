"""The numbers that were found stored of one source in one view and one epoch, and the gaps between them. Pure.

Memory is what bounds a check of millions of copies, so what is kept of each is six integers in an array.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mesh.marks import Void

FAR_MS = 2**62  # a time that never comes
_REST = 5  # integers of a copy beside its number
_STREAM, _SEQ = 3, 4  # where two of them stand


class Seen(NamedTuple):
    """One stored copy. `event` and `message` stand for the event's id and the message's id; equal means the same."""

    n: int
    stream_ms: int
    event: int
    message: int
    stream: int
    seq: int


class Gap(NamedTuple):
    """Numbers from `first` to `last` that are not stored, and the times that bound when they were given.

    `sure` is how many of them are meant: fewer than all where void numbers are known by count alone.
    """

    first: int
    last: int
    after_ms: int
    before_ms: int
    sure: int

    @classmethod
    def whole(cls, first: int, last: int, after_ms: int, before_ms: int) -> Gap:
        """All of the numbers."""
        return cls(first, last, after_ms, before_ms, last - first + 1)


class Track:
    """Stored copies of one epoch in one view. `newest_ms` is when the last of them was stored; 0 before the first."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._rest = array("q")
        self._order = array("q")
        self.newest_ms = 0

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def lowest(self) -> int:
        """The lowest number; 0 where there is none."""
        return min(self._numbers, default=0)

    @property
    def highest(self) -> int:
        """The highest number; 0 where there is none."""
        return max(self._numbers, default=0)

    def add(self, seen: Seen) -> None:
        """Take a copy."""
        self.newest_ms = max(self.newest_ms, seen.stream_ms)
        self._numbers.append(seen.n)
        self._rest.extend(seen[1:])

    def all(self) -> Iterator[Seen]:
        """All copies as they came."""
        return map(self._at, range(len(self._numbers)))

    def late(self) -> list[Seen]:
        """Those that stand behind a higher number in their stream, or behind one like theirs."""
        highest: dict[int, int] = {}
        found = []
        streams, places = self._rest[_STREAM::_REST], self._rest[_SEQ::_REST]
        for index in sorted(range(len(self._numbers)), key=places.__getitem__):
            stream, n = streams[index], self._numbers[index]
            if n <= highest.get(stream, 0):
                found.append(self._at(index))
            else:
                highest[stream] = n
        return found

    def sorted(self) -> Iterator[Seen]:
        """All copies by number; those of one number as they came."""
        return map(self._at, self._sorted())

    def under(self, n: int) -> list[Seen]:
        """The copies that have this number, as they came."""
        order = self._sorted()
        found = []
        place = bisect_left(order, n, key=self._numbers.__getitem__)
        while place < len(order) and self._numbers[order[place]] == n:
            found.append(self._at(order[place]))
            place += 1
        return found

    def _sorted(self) -> array[int]:
        if len(self._order) != len(self._numbers):
            self._order = array("q", sorted(range(len(self._numbers)), key=self._numbers.__getitem__))
        return self._order

    def _at(self, index: int) -> Seen:
        return Seen(self._numbers[index], *self._rest[_REST * index : _REST * (index + 1)])


def short(text: str) -> int:
    """A name of 96 bits or more as 63 of its bits, for an array; only for names that nobody could choose."""
    return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1


def gaps(numbers: Iterable[Seen], first: int, last: int, began_ms: int, ended_ms: int) -> list[Gap]:
    """What lacks from *first* to *last* among *numbers*, which are sorted.

    Args:
        numbers: Those that are there.
        first: The lowest number that is asked for.
        last: The highest; those above the highest that is there were given before *ended_ms*.
        began_ms: The lowest were given after that.
        ended_ms: See *last*.
    """
    found = []
    expected, after_ms = first, began_ms
    for seen in numbers:
        if seen.n > expected:
            found.append(Gap.whole(expected, seen.n - 1, after_ms, seen.stream_ms))
        if seen.n >= expected:
            expected = seen.n + 1
        after_ms = seen.stream_ms
    if last >= expected:
        found.append(Gap.whole(expected, last, after_ms, max(after_ms, ended_ms)))
    return found


def without(found: Sequence[Gap], voids: Iterable[Void]) -> list[Gap]:
    """*found* less what is void; of numbers that are void by count alone as many are taken for void as are said."""
    left = list(found)
    counted = []
    for void in sorted(voids):
        if void.meant <= void.last - void.first:
            counted.append(void)
        else:
            left = [part for gap in left for part in _cut(gap, void.first, void.last)]
    for void in counted:
        left = _forgive(left, void)
    return left


def _cut(gap: Gap, first: int, last: int) -> Iterator[Gap]:
    """What *gap* has outside *first* to *last*."""
    if last < gap.first or gap.last < first:
        yield gap
        return
    if gap.first < first:
        yield Gap.whole(gap.first, first - 1, gap.after_ms, gap.before_ms)
    if last < gap.last:
        yield Gap.whole(last + 1, gap.last, gap.after_ms, gap.before_ms)


def _forgive(left: list[Gap], void: Void) -> list[Gap]:
    """*left*, where `void.meant` of the numbers that *void* covers need not be there."""
    covered = [gap for gap in left if gap.first <= void.last and void.first <= gap.last]
    lacking = sum(min(gap.last, void.last) - max(gap.first, void.first) + 1 for gap in covered)
    if lacking <= void.meant:
        return [part for gap in left for part in _cut(gap, void.first, void.last)]
    allowed = void.meant
    result = []
    for gap in left:
        forgiven = min(allowed, gap.sure - 1) if gap in covered else 0
        allowed -= forgiven
        result.append(gap._replace(sure=gap.sure - forgiven))
    return result
