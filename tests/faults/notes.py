"""What adapters and consumers noted, and what it says once put side by side with what is stored. Pure but for reading.

An event's id is `<adapter>-<worker>-<key>-<number>`: all but the number name its key.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.consumer import BEGUN, DONE, FAILED, REJECTED


def key_of(event_id: str) -> str:
    """The partition key of an event, as its adapter calls it."""
    return event_id.rpartition("-")[0]


def number_of(event_id: str) -> int:
    """Its number within its key."""
    return int(event_id.rpartition("-")[2])


@dataclass(slots=True)
class Accepted:
    """Events with a 202, by id: whether the stream had them or the spool, and where their copies lie, by view."""

    durable: dict[str, str] = field(default_factory=dict)
    places: dict[str, dict[str, tuple[str, int]]] = field(default_factory=dict)

    def read(self, files: Iterable[Path]) -> None:
        """Add what adapters noted."""
        for file in files:
            for line in file.read_text().splitlines():
                event_id, durable, *copies = line.split()
                self.durable[event_id] = durable
                for copy in copies:
                    view, _, place = copy.partition("=")
                    stream, _, sequence = place.partition(":")
                    if sequence != "0":  # 0: it was in the spool when the event was answered
                        self.places.setdefault(view, {})[event_id] = stream, int(sequence)


@dataclass(slots=True)
class Handled:
    """What the replicas of one subscription did, by event: all times in ns of the machine's monotonic clock."""

    begun: dict[str, int] = field(default_factory=dict)  # first
    settled: dict[str, int] = field(default_factory=dict)  # first: done, or refused for good
    times: Counter[str] = field(default_factory=Counter)  # how often its handling began
    failed: int = 0  # handlings that raised on purpose: each brings one more

    def read(self, files: Iterable[Path]) -> None:
        """Add what replicas noted."""
        for file in files:
            for line in file.read_text().splitlines():
                what, at, event_id = line.split()
                at_ns = int(at)
                if what == BEGUN:
                    self.times[event_id] += 1
                    self.begun[event_id] = min(at_ns, self.begun.get(event_id, at_ns))
                elif what in {DONE, REJECTED}:
                    self.settled[event_id] = min(at_ns, self.settled.get(event_id, at_ns))
                self.failed += what == FAILED

    def repeated(self) -> int:
        """Handlings beyond the first of each event that no failure of the handler asked for."""
        return max(0, sum(self.times.values()) - len(self.times) - self.failed)

    def reordered(self, places: Mapping[str, tuple[str, int]]) -> int:
        """Events whose first handling began before that of an earlier one of their key had ended.

        Args:
            places: Stream and sequence of the first stored copy of each event.
        """
        found = 0
        for ids in by_key(self.begun).values():
            stored = sorted((event_id for event_id in ids if event_id in places), key=lambda one: places[one])
            latest = 0
            for event_id in stored:
                found += self.begun[event_id] < latest
                latest = max(latest, self.settled.get(event_id, latest))
        return found


def by_key(ids: Iterable[str]) -> dict[str, list[str]]:
    """Events by their key."""
    found: dict[str, list[str]] = defaultdict(list)
    for event_id in ids:
        found[key_of(event_id)].append(event_id)
    return found


def reordered_in_stream(places: Mapping[str, tuple[str, int]]) -> int:
    """Events stored, for the first time, behind a later one of their key: an adapter had sent them in order."""
    found = 0
    for ids in by_key(places).values():
        highest = 0
        for event_id in sorted(ids, key=lambda one: places[one]):
            number = number_of(event_id)
            found += number < highest
            highest = max(highest, number)
    return found


def effects(database: Path) -> Counter[str]:
    """How often the effect of each event is there."""
    with closing(sqlite3.connect(database)) as connection:
        return Counter(dict(connection.execute("SELECT id, count(*) FROM effects GROUP BY id")))
