"""Whether an audit trail holds: each writer's chain, whole and in order, in a stream that nothing has left.

A chain alone does not show that its last records are gone. The stream does: it has no age and lets nobody delete, so
its messages are numbered from 1 without a gap.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal

import msgspec

from mesh.audit import LOST, SUBJECT, VERSION, Record, digest, read

REMEMBERED = 512  # records of a writer that are still known: a message sent again, of some 250, comes right after

What = Literal["unreadable", "altered", "missing", "reordered", "forked", "foreign", "deleted"]


class Stored(msgspec.Struct, frozen=True):
    """One line as the stream holds it: in which message, on which subject, and since when (Unix milliseconds)."""

    line: bytes
    subject: str
    stream_seq: int
    stream_ms: int = 0


class Problem(msgspec.Struct, frozen=True):
    """One place where the audit trail does not hold.

    Attributes:
        what: `unreadable`: no record, or not its canonical form. `altered`: this record does not name the one before
            it. `missing`: records of this writer are not there. `reordered`: it stands after a later one. `forked`: two
            records with one number. `foreign`: on a subject that is not the writer's. `deleted`: messages of the stream
            are gone.
        writer, seq: The record; empty and 0 where it cannot be read.
        stream_seq: The message that shows it.
        because: In words.
    """

    what: What
    writer: str
    seq: int
    stream_seq: int
    because: str


class _Writer:
    """What is known of one writer while its records pass by."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last = 0
        self.digest = ""
        self.recent: OrderedDict[int, str] = OrderedDict()
        self.gaps: dict[
            int, tuple[int, int]
        ] = {}  # first missing number -> last missing, and the message that shows it

    def step(self, record: Record, line: bytes, stream_seq: int) -> Problem | None:
        """Take the next record; the problem it shows, unless it is a gap, which a late record may still fill."""
        now = digest(line)
        if record.seq <= self.last:
            return self._earlier(record, now, stream_seq)
        problem = None
        if record.seq > self.last + 1:
            self.gaps[self.last + 1] = (record.seq - 1, stream_seq)
        elif record.prev != self.digest:
            before = f"record {self.last}" if self.last else "a record before the first"
            because = f"it names another record than {before} as the one before it: one of the two was changed"
            problem = Problem("altered", self.name, record.seq, stream_seq, because)
        self.last, self.digest = record.seq, now
        self._remember(record.seq, now)
        return problem

    def _earlier(self, record: Record, now: str, stream_seq: int) -> Problem | None:
        known = self.recent.get(record.seq)
        if known == now:
            return None  # its message was stored twice: sent again after a lost acknowledgement
        if known is not None:
            because = "another record with this number is stored: two processes wrote as one, or one was replaced"
            return Problem("forked", self.name, record.seq, stream_seq, because)
        self._fill(record.seq)
        self._remember(record.seq, now)
        return Problem("reordered", self.name, record.seq, stream_seq, f"it is stored after record {self.last}")

    def _fill(self, seq: int) -> None:
        for first, (last, stream_seq) in list(self.gaps.items()):
            if first <= seq <= last:
                del self.gaps[first]
                if first < seq:
                    self.gaps[first] = (seq - 1, stream_seq)
                if seq < last:
                    self.gaps[seq + 1] = (last, stream_seq)

    def _remember(self, seq: int, now: str) -> None:
        self.recent[seq] = now
        if len(self.recent) > REMEMBERED:
            self.recent.popitem(last=False)

    def missing(self) -> Iterable[Problem]:
        for first, (last, stream_seq) in sorted(self.gaps.items()):
            count = last - first + 1
            because = f"{count} record{'' if count == 1 else 's'} of this writer up to {last} cannot be found"
            yield Problem("missing", self.name, first, stream_seq, because)


class Verification:
    """Checks the chains of all writers, line by line in the order of the stream.

    Attributes:
        records: Taken so far.
        lost: Records that writers say they dropped.
    """

    def __init__(self) -> None:
        self._writers: dict[str, _Writer] = {}
        self._found: list[Problem] = []
        self._before = 0
        self.records = 0
        self.lost = 0

    @property
    def writers(self) -> list[str]:
        """Whose records were seen."""
        return sorted(self._writers)

    def add(self, stored: Stored) -> Record | None:
        """Take the next line; returns its record where it can be read."""
        at = stored.stream_seq
        if at > self._before + 1:  # AUDIT has no age: its first message is 1, and none ever leaves
            gone = f"{at - self._before - 1} messages before this one are no longer in the stream"
            self._found.append(Problem("deleted", "", 0, at, gone))
        self._before = max(self._before, at)
        try:
            record = read(stored.line)
        except ValueError as error:
            self._found.append(Problem("unreadable", "", 0, at, str(error)))
            return None
        self.records += 1
        if stored.subject != SUBJECT + record.name:
            because = f"it is stored on {stored.subject}, which another workload writes"
            self._found.append(Problem("foreign", record.writer, record.seq, at, because))
            return record  # and no part of that writer's chain
        if record.v == VERSION and record.encode() != stored.line:
            self._found.append(Problem("unreadable", record.writer, record.seq, at, "it is not in canonical form"))
        if record.kind == LOST:
            count = record.facts.get("lost")
            self.lost += count if type(count) is int else 0
        writer = self._writers.setdefault(record.writer, _Writer(record.writer))
        problem = writer.step(record, stored.line, at)
        if problem is not None:
            self._found.append(problem)
        return record

    def end(self, last_seq: int) -> None:
        """There is no line more; *last_seq* is the number of the newest message that the stream ever held."""
        if last_seq > self._before:
            gone = f"{last_seq - self._before} messages at the end are no longer in the stream"
            self._found.append(Problem("deleted", "", 0, last_seq, gone))

    def problems(self) -> list[Problem]:
        """All that was found so far, in the order of the stream."""
        missing = [problem for writer in self._writers.values() for problem in writer.missing()]
        return sorted([*self._found, *missing], key=lambda problem: problem.stream_seq)


def verify(records: Iterable[Stored]) -> list[Problem]:
    """Check stored lines, oldest first, from the beginning of the stream; empty where every chain holds."""
    checking = Verification()
    for stored in records:
        checking.add(stored)
    return checking.problems()
