"""Which copies lie behind later ones of their key, and what was going on when they were stored. Pure.

All times of a line are in ms from the moment that the late copy was stored. Two copies that were signed at different
times were sent at different times: then the first was lost on its way, and the other was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mesh.signing import Received
from tests.faults.notes import by_key, number_of

MAX_TOLD = 20  # of one view: they come in hundreds, and are much alike
BEFORE_MS, AFTER_MS = 30_000, 2_000  # around it: faults that are told


class Fact(NamedTuple):
    """What a stored copy says of itself; its `sequence` tells its source, epoch and number."""

    sequence: str
    stored_ms: int
    signed_ms: int

    @classmethod
    def of(cls, fields: Mapping[str, Any], received: Received) -> Fact:
        """Of a copy that was verified."""
        signed_ms = int((received.signature or "").split(".")[2])  # see `mesh.signing`: it has seven parts
        return cls(str(fields.get("sequence")), received.stream_ms, signed_ms)

    def told(self, place: tuple[str, int], origin_ms: int) -> str:
        """In words, as times from *origin_ms*."""
        stored, signed = self.stored_ms - origin_ms, self.signed_ms - origin_ms
        return f"{place[0]}:{place[1]} {self.sequence} stored {stored:+d} signed {signed:+d}"


def astray(
    view: str,
    places: Mapping[str, tuple[str, int]],
    facts: Mapping[tuple[str, int], Fact],
    durable: Mapping[str, str],
    timeline: Sequence[tuple[int, str]],
) -> Iterator[str]:
    """A line for each copy of *view* that lies behind a later one of its key, at most `MAX_TOLD`.

    Args:
        view: Whose copies.
        places: Stream and sequence of the first copy of each event.
        facts: Of the copies, by place.
        durable: Whether the event was in the stream or in the spool when it got its 202.
        timeline: What faults began and ended, and when: Unix ms.
    """
    told = 0
    for ids in by_key(places).values():
        last = ""
        for one in sorted(ids, key=lambda each: places[each]):
            if not last or number_of(one) > number_of(last):
                last = one
            elif told < MAX_TOLD:
                told += 1
                late, ahead, at = facts[places[one]], facts[places[last]], facts[places[one]].stored_ms
                around = [f"{what} {when - at:+d}" for when, what in timeline if -BEFORE_MS < when - at < AFTER_MS]
                yield (
                    f"out of order, {view}: {one} ({durable.get(one)}) {late.told(places[one], at)}, behind {last}"
                    f" ({durable.get(last)}) {ahead.told(places[last], at)}; around it: {', '.join(around)}"
                )
