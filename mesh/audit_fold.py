"""Keeping floods out of the audit trail: equal records that come fast become one a second, which counts them. Pure.

    the first `SINGLES` equal records of a second   one record each, at once
    what follows                                    one record a second: `count`, `first` and, as `event`, the last
    beyond `MAX_KINDS` kinds of them a second       folded by rule and reason; `types`, `sources` list the first few

Records are equal where everything but the event's id is. Each event is in the count of exactly one record. After a
second that held no more than `SINGLES` of them, the next ones are records of their own again. What finds no room in the
writer's queue stays here and is counted on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from mesh.audit import DENIED, UNMASKED

FOLDED: Final = frozenset({DENIED, UNMASKED})  # kinds whose number a workload decides
SINGLES: Final = 3  # equal records a second that nobody minds: a person trying again makes no more
WINDOW_S: Final = 1.0  # how long a record may be held back; a flood for a day is then 86,400 records, some 30 MB
MAX_KINDS: Final = 20  # kept apart: types and sources are the workload's own words, and it may make up new ones
MAX_NAMED: Final = 10  # types and sources that a record of several kinds lists

_VARYING: Final = ("type", "source")  # what a workload may make up
_EVENT: Final = "event"

Due = tuple[str, dict[str, Any], int]
"""A record to write now: its kind, its facts, and how many events it stands for."""


@dataclass(slots=True)
class _Window:
    """One second of equal records.

    Attributes:
        kind: Of all of them.
        ends_s: When it is over.
        singles: How many more are records of their own.
        apart: Whether type and source are the same of all.
        count: How many are held back; `first` and `last` are their facts.
        named: The first types and sources, where they differ.
    """

    kind: str
    ends_s: float
    singles: int
    apart: bool
    count: int = 0
    first: Mapping[str, Any] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)
    named: dict[str, dict[Any, None]] = field(default_factory=dict)

    def over(self, now_s: float) -> bool:
        """Whether it has ended and holds nothing back."""
        return not self.count and now_s >= self.ends_s

    def hold(self, facts: Mapping[str, Any]) -> None:
        """Hold one record back."""
        self.first = self.first if self.count else facts
        self.last = facts
        self.count += 1
        for name in () if self.apart else _VARYING:
            values = self.named.setdefault(name, {})
            if facts.get(name) is not None and len(values) < MAX_NAMED:
                values[facts[name]] = None

    def folded(self) -> Due:
        """What is held back, as one record."""
        if self.count == 1:
            return self.kind, dict(self.last), 1
        told = {name: value for name, value in self.last.items() if self.apart or name not in _VARYING}
        told |= {f"{name}s": list(values) for name, values in self.named.items()}
        return self.kind, told | {"first": self.first.get(_EVENT), "count": self.count}, self.count


class Folding:
    """What one writer is about to record, equal records of a flood made one."""

    def __init__(self) -> None:
        self._windows: dict[bytes, _Window] = {}

    def __len__(self) -> int:
        """Records that are held back."""
        return sum(window.count > 0 for window in self._windows.values())

    @property
    def due_s(self) -> float | None:
        """When the next record is to be written, or None."""
        return min((window.ends_s for window in self._windows.values() if window.count), default=None)

    def take(self, kind: str, facts: Mapping[str, Any], now_s: float) -> bool:
        """Whether the record is to be written as it is; else it is held back until `release` gives it.

        Args:
            kind: One of `mesh.audit.KINDS`.
            facts: As `mesh.audit` lists them.
            now_s: Seconds of a clock that never goes back.

        Raises:
            TypeError: A fact is no plain value.
        """
        if kind not in FOLDED:
            return True
        window = self._window(kind, facts, now_s)
        if window.singles and now_s < window.ends_s:
            window.singles -= 1
            return True
        window.hold(facts)
        return False

    def release(self, now_s: float, *, early: bool = False) -> Due | None:
        """One record that is due, or None; what is not asked for yet stays held back and counts what comes meanwhile.

        Args:
            now_s: Of the clock of `take`.
            early: Take what is not due yet, too.
        """
        for key, window in self._windows.items():
            if not window.count or (not early and now_s < window.ends_s):
                continue
            if window.count > SINGLES:  # a flood: the next second begins with none of its own
                self._windows[key] = _Window(window.kind, now_s + WINDOW_S, 0, window.apart)
            else:
                del self._windows[key]
            return window.folded()
        return None

    def _window(self, kind: str, facts: Mapping[str, Any], now_s: float) -> _Window:
        """The second that a record falls in, begun where there is none."""
        key = _key(kind, facts, ())
        window = self._windows.get(key)
        if window is not None and not window.over(now_s):
            return window
        for other, ended in list(self._windows.items()):
            if ended.over(now_s):
                del self._windows[other]
        apart = sum(window.apart for window in self._windows.values()) < MAX_KINDS
        key = key if apart else _key(kind, facts, _VARYING)
        return self._windows.setdefault(key, _Window(kind, now_s + WINDOW_S, SINGLES if apart else 0, apart))


def _key(kind: str, facts: Mapping[str, Any], without: tuple[str, ...]) -> bytes:
    same = {name: value for name, value in facts.items() if name != _EVENT and name not in without}
    return msgspec.json.encode([kind, same], order="sorted")
