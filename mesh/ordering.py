"""Order per key in one durable: of each key one event at a time is handled, the smallest sequence that is outstanding.

    arrived ──► line of its key ──► take: handed out ──► settled: gone, the next of its key may go
                     ▲                      └── again: it failed, and stays at the head of its line until it is due
                     └── lay aside, recall: while a key is stuck, the bodies behind it stay with the server

A key that is stuck (its handler hangs, or its next try is due later) piles up what comes behind it. Of that only
numbers are kept here, so that other keys go on: at most `room` bodies wait, and of a stuck line the last leave first.

Pure: time comes in as monotonic seconds.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections import deque
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.signing import Received

STUCK_S = 0.5  # a key whose event has been in a handler for longer no longer counts as one that moves
RECALL = 16  # bodies asked back at a time for a line that moves: they come in one round trip

Key = tuple[str, str]  # source and partition key


class _Named(msgspec.Struct):
    source: str = ""
    partitionkey: str = ""


_named = msgspec.json.Decoder(_Named)


def key_of(received: Received) -> Key:
    """By what an event is ordered: its source and partition key. One without has a key of its own.

    Read before the event is verified: what a forger can do with it is wait in a line and be refused at its head.
    """
    try:
        named = _named.decode(received.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        named = _Named()
    return (named.source, named.partitionkey) if named.partitionkey else ("", str(received.sequence))


class Entry:
    """One outstanding event.

    Attributes:
        received: As delivered last; None while only its number is kept here.
        reply: Its ack subject.
        due: When it may be handed out, at the earliest.
        recalled: Whether its body has been asked for again and has not come yet.
        asked: Since when.
    """

    __slots__ = ("asked", "due", "key", "recalled", "received", "reply", "sequence")

    def __init__(self, received: Received, key: Key) -> None:
        self.sequence = received.sequence
        self.key = key
        self.received: Received | None = received
        self.reply = received.reply
        self.due = 0.0
        self.recalled = False
        self.asked = math.inf


class _Line:
    """The outstanding events of one key, by sequence; `busy` is the one in a handler, `since` when."""

    __slots__ = ("busy", "entries", "since")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.busy: Entry | None = None
        self.since = 0.0

    def stuck(self, now: float) -> bool:
        """Whether what is behind its head has to wait; also for a head whose body is away, which needs room to come."""
        if self.busy is not None:
            return now - self.since > STUCK_S
        return self.entries[0].received is None or self.entries[0].due > now


class Order:
    """Everything outstanding in one durable.

    Args:
        room: Bodies that may wait here for their turn.

    Attributes:
        handed: Events in handlers.
        held: Bodies that wait for their turn.
        late: Events that came after a later one of their key had been handed out.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._entries: dict[int, Entry] = {}
        self._lines: dict[Key, _Line] = {}
        self._look: deque[Key] = deque()  # keys whose head may be ready
        self._due: list[tuple[float, int]] = []
        self._recall: list[Entry] = []
        self.handed = 0
        self.held = 0
        self._away: dict[int, Entry] = {}
        self.late = 0

    def __len__(self) -> int:
        """Events outstanding."""
        return len(self._entries)

    @property
    def away(self) -> int:
        """Bodies that were asked back and have not come yet."""
        return len(self._away)

    def outstanding(self) -> list[Entry]:
        """All of them, in stream order."""
        return [self._entries[sequence] for sequence in sorted(self._entries)]

    def arrived(self, received: Received) -> bool:
        """Put it in its line. False where its body is here already, waiting or in a handler."""
        entry = self._entries.get(received.sequence)
        if entry is None:
            entry = Entry(received, key_of(received))
            self._entries[entry.sequence] = entry
            line = self._lines.get(entry.key)
            if line is None:
                line = self._lines[entry.key] = _Line()
            if line.entries and entry.sequence < line.entries[-1].sequence:
                self.late += line.busy is not None and entry.sequence < line.busy.sequence
                insort(line.entries, entry, key=_sequence)
            else:
                line.entries.append(entry)
        elif entry.received is not None or self._lines[entry.key].busy is entry:
            return False
        else:
            self._away.pop(entry.sequence, None)
            entry.received, entry.reply, entry.recalled = received, received.reply, False
        self.held += 1
        self._look.append(entry.key)
        return True

    def in_hand(self, received: Received) -> bool:
        """Whether this very delivery is what was handed out of its key."""
        entry = self._entries.get(received.sequence)
        return entry is not None and entry.received is received and self._lines[entry.key].busy is entry

    def take(self, now: float) -> list[Received]:
        """What may be handed out now; it then counts as in a handler until `settled` or `again`."""
        while self._due and self._due[0][0] <= now:
            entry = self._entries.get(heapq.heappop(self._due)[1])
            if entry is not None:
                self._look.append(entry.key)
        taken = []
        while self._look:
            line = self._lines.get(self._look.popleft())
            if line is None or line.busy is not None:
                continue
            head = line.entries[0]
            if head.due > now:
                continue
            if head.received is None:
                self._ask_back([head])
                continue
            line.busy, line.since = head, now
            taken.append(head.received)
            self.held -= 1
            self.handed += 1
        return taken

    def settled(self, sequence: int) -> None:
        """It is done, one way or another. Nothing happens where it is not outstanding."""
        entry = self._entries.pop(sequence, None)
        if entry is None:
            return
        line = self._lines[entry.key]
        self._away.pop(sequence, None)
        if line.busy is entry:
            line.busy = None
            self.handed -= 1
        elif entry.received is not None:
            self.held -= 1
        line.entries.remove(entry)  # nearly always the first
        if line.entries:
            self._look.append(entry.key)
            if any(ahead.received is None for ahead in line.entries[:2]):
                self._ask_back(line.entries[:RECALL])
        else:
            del self._lines[entry.key]

    def again(self, received: Received, due: float) -> None:
        """It was not handled: it is handed out again once it is *due*, and its key waits for it.

        Nothing happens where it is not in a handler of ours.
        """
        entry = self._entries.get(received.sequence)
        line = None if entry is None else self._lines[entry.key]
        if entry is None or line is None or line.busy is not entry:
            return
        line.busy = None
        entry.received, entry.due = received, due
        self.handed -= 1
        self.held += 1
        heapq.heappush(self._due, (due, entry.sequence))

    def surplus(self, now: float) -> list[Entry]:
        """What to lay aside, bodies of the last in the lines that are stuck, until no more than *room* wait."""
        if self.held <= self._room:
            return []
        aside: list[Entry] = []
        for line in sorted(self._lines.values(), key=lambda line: -len(line.entries)):
            if self.held <= self._room:
                break
            if line.stuck(now):
                aside += self._lay_aside(line, self._room)
        return aside

    def overflow(self, received: Received, now: float) -> list[Entry]:
        """As `surplus`, of the line alone that *received* came to: in time for a key that piles up fast."""
        entry = self._entries.get(received.sequence)
        if self.held <= self._room or entry is None or not (line := self._lines[entry.key]).stuck(now):
            return []
        return list(self._lay_aside(line, self._room))

    def lay_all_aside(self, room: int = 0) -> list[Entry]:
        """Lay bodies aside, as nothing can be handed out for now, until no more than *room* of them wait."""
        if self.held <= room:
            return []
        return [entry for line in self._lines.values() for entry in self._lay_aside(line, room)]

    def _lay_aside(self, line: _Line, room: int) -> Iterable[Entry]:
        for entry in reversed(line.entries):
            if self.held <= room:
                return
            if entry.received is not None and entry is not line.busy:
                entry.received = None
                self.held -= 1
                yield entry

    def recall(self, now: float) -> list[Entry]:
        """Whose body has to be delivered again, because its turn is near."""
        recall, self._recall = self._recall, []
        for entry in recall:
            entry.asked = now
        return recall

    def drop_asked_before(self, then: float) -> int:
        """Whose body was asked back before *then* and has not come is settled, by somebody else; returns how many."""
        gone = [entry.sequence for entry in self._away.values() if entry.asked < then]
        for sequence in gone:
            self.settled(sequence)
        return len(gone)

    def _ask_back(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.received is None and not entry.recalled:
                entry.recalled, entry.asked = True, math.inf
                self._away[entry.sequence] = entry
                self._recall.append(entry)


def _sequence(entry: Entry) -> int:
    return entry.sequence
