"""Whether all that a source counted is stored, in its order, and nothing beside it: what can be shown, what not. Pure.

Numbers are the agent's (`sequences.py`), and so are marks (`marks.py`): both stand under its event key. So whoever
holds the streams can withhold and delay, but neither fill a gap nor move the last number. What can be found is listed
in `findings.py`. What cannot be shown is said too: a source's last numbers are only as sure as its last mark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mesh.epochs import CLOCK_MS, Case
from mesh.findings import Copy, Counted, Finding, Range, Report
from mesh.marks import Mark, Row
from mesh.sequences import Number, began_ms, event_name
from mesh.tracks import Seen, Track, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_OVERTAKEN: Final = frozenset({"not-fresh", "key-revoked"})  # what an honest copy can come to that was on its way

_Key = tuple[str, str, str]  # epoch, view, signer


class Checking:
    """Takes every message of one source, then the marks, and says what that shows.

    Args:
        source: The CloudEvents source.
        asked: What is asked about.
        floor_ms: What is older may be gone because streams keep it no longer, or was not read.
        now_ms: Unix milliseconds.
    """

    def __init__(self, source: str, asked: Range, *, floor_ms: int, now_ms: int) -> None:
        self._source = source
        self._asked = asked
        self._floor_ms = floor_ms
        self._now_ms = now_ms
        self._tracks: dict[_Key, Track] = {}
        self._said: dict[_Key, list[tuple[Mark, Row]]] = {}
        self._chains: dict[tuple[str, str], dict[int, Mark]] = {}  # epoch and signer -> the epoch's own marks
        self._streams: list[str] = []
        self._refused: list[tuple[Copy, str]] = []
        self._bad_marks: list[Finding] = []
        self._unnumbered = 0
        self._copies = 0

    # --- what was read -----------------------------------------------------------------------------------------------

    def copy(self, copy: Copy) -> None:
        """Take a copy that verifies."""
        inside = self._asked.holds(copy.stream_ms)
        self._copies += inside
        if copy.number is None:
            self._unnumbered += inside
            return
        if copy.stream not in self._streams:
            self._streams.append(copy.stream)
        key = (copy.number.epoch, copy.view, copy.signer)
        event, message = short(event_name(copy.event_id)), short(copy.message)
        seen = Seen(copy.number.n, copy.stream_ms, event, message, self._streams.index(copy.stream), copy.seq)
        self._tracks.setdefault(key, Track()).add(seen)

    def refused(self, copy: Copy, code: str) -> None:
        """Take a message that names the source and does not verify; what *copy* says is its own word. *code*: why."""
        if self._asked.holds(copy.stream_ms):
            self._refused.append((copy, code))

    @property
    def epochs(self) -> list[str]:
        """The epochs of the copies taken so far, oldest first."""
        return sorted({epoch for epoch, _, _ in self._tracks})

    def mark(self, mark: Mark, signer: str) -> None:
        """Take a mark that *signer* signed."""
        self._chains.setdefault((mark.epoch, signer), {})[mark.index] = mark
        for row in mark.rows:
            if row.source == self._source:
                self._said.setdefault((row.epoch, row.view, signer), []).append((mark, row))

    def bad_mark(self, writer: str, at: int, because: str) -> None:
        """Record *at* by *writer* says it is a mark, and is not signed as one."""
        told = f"message {at} of the audit trail, by {writer}: {because}"
        self._bad_marks.append(Finding(what="mark-refused", because=told))

    # --- what it shows -----------------------------------------------------------------------------------------------

    def report(self, views: Iterable[str] = ()) -> Report:
        """Everything that was found; only of *views* where some are given."""
        only = set(views)
        findings, unproven = [], []
        counted: list[Counted] = []
        keys = self._tracks.keys() | self._said.keys()
        known = self._events_at(self._places())
        for key in sorted(key for key in keys if not only or key[1] in only):
            case = self._case(key, known)
            found = case.judge()
            if found is not None:
                counted.append(found)
                unproven += self._tail(case)
            findings += case.findings
        refused, overtaken = self._judge_refused(only)
        if overtaken:
            unproven.append(f"{overtaken} copies were stored too late to be believed, and again in time by their agent")
        if self._unnumbered:
            unproven.append(f"{self._unnumbered} copies were made by an agent that does not number them")
        return Report(
            source=self._source,
            copies=self._copies,
            counted=counted,
            findings=[*findings, *refused, *self._judge_signers(), *self._judge_chains(), *self._bad_marks],
            unproven=unproven,
        )

    def _case(self, key: _Key, known: Mapping[tuple[str, int], int]) -> Case:
        epoch, view, signer = key

        def stands(stream: str, seq: int, event: str) -> bool | None:
            at = known.get((stream, seq))
            return None if at is None else at == short(event)

        return Case(
            epoch=epoch,
            view=view,
            signer=signer,
            track=self._tracks.get(key, Track()),
            streams=self._streams,
            said=self._said.get(key, []),
            ended=any(mark.ends for mark in self._chains.get((epoch, signer), {}).values()),
            waiting=self._waiting(epoch, signer),
            stands=stands,
            asked=self._asked,
            floor_ms=self._floor_ms,
            now_ms=self._now_ms,
        )

    def _places(self) -> set[tuple[str, int]]:
        """Where streams said that they had events already."""
        rows = [row for said in self._said.values() for _, row in said]
        return {(void.stream, void.at) for row in rows for void in row.voids if void.stream}

    def _events_at(self, places: set[tuple[str, int]]) -> dict[tuple[str, int], int]:
        found: dict[tuple[str, int], int] = {}
        for track in self._tracks.values() if places else ():
            for seen in track.all():
                place = (self._streams[seen.stream], seen.seq)
                if place in places:
                    found[place] = seen.event
        return found

    def _waiting(self, epoch: str, signer: str) -> int:
        """Copies of this epoch that may still be in a spool: its agent's own, or what drains it after it died."""
        newest = {name: marks[max(marks)] for (name, by), marks in self._chains.items() if by == signer and marks}
        own = newest.get(epoch)
        later = [mark.waiting for name, mark in newest.items() if name > epoch]
        if own is not None and own.waiting:
            return 0 if own.ends and 0 in later else own.waiting
        return max(later, default=0) if own is None or not own.ends else 0

    def _tail(self, case: Case) -> list[str]:
        if case.ended or self._asked.to_ms < case.newest_ms:
            return []
        marked = f"its marks reach number {case.marked}" if case.marked else "no mark names a number"
        sure = f"{marked}, the highest stored is {case.track.highest}, and whether more were given does not show"
        return [
            f"the end of epoch {case.epoch} in view {case.view}: its agent runs, or died without a last mark; {sure}"
        ]

    def _judge_refused(self, only: set[str]) -> tuple[list[Finding], int]:
        """What does not verify; and of how many a copy that verifies stands behind it."""
        numbers: dict[Number, list[Seen]] = {}
        wanted = {copy.number for copy, code in self._refused if code in _OVERTAKEN and copy.number is not None}
        for (epoch, _, _), track in self._tracks.items() if wanted else ():
            for seen in track.all():
                if (number := Number(epoch, seen.n)) in wanted:
                    numbers.setdefault(number, []).append(seen)
        findings = []
        overtaken = 0
        for copy, code in self._refused:
            again = numbers.get(copy.number, []) if copy.number and code in _OVERTAKEN else []
            if any(self._streams[seen.stream] == copy.stream and seen.seq > copy.seq for seen in again):
                overtaken += 1
            elif not only or copy.view in only:
                findings.append(_not_verified(copy, code))
        return findings, overtaken

    def _judge_signers(self) -> list[Finding]:
        by_epoch: dict[str, set[str]] = {}
        for epoch, _, signer in self._tracks:
            by_epoch.setdefault(epoch, set()).add(signer)
        return [
            Finding(what="foreign", epoch=epoch, because=f"signed by {' and by '.join(sorted(signers))}")
            for epoch, signers in sorted(by_epoch.items())
            if len(signers) > 1
        ]

    def _judge_chains(self) -> list[Finding]:
        """Marks that are not there, of the epochs that matter here."""
        ours = {(epoch, signer) for epoch, _, signer in self._tracks.keys() | self._said.keys()}
        findings = []
        for (epoch, signer), marks in sorted(self._chains.items()):
            first = 1 if began_ms(epoch) - CLOCK_MS >= self._floor_ms else min(marks)
            lacking = max(marks) - first + 1 - len(marks)
            if (epoch, signer) in ours and lacking:
                told = f"{lacking} of {max(marks)} marks by {signer} are not in the audit trail"
                findings.append(Finding(what="mark-missing", epoch=epoch, because=told))
        return findings


def _not_verified(copy: Copy, code: str) -> Finding:
    return Finding(
        what="not-verified",
        view=copy.view,
        epoch="" if copy.number is None else copy.number.epoch,
        first=0 if copy.number is None else copy.number.n,
        last=0 if copy.number is None else copy.number.n,
        stream=copy.stream,
        seq=copy.seq,
        because=f"no consumer takes it ({code}): it was brought in, or changed",
    )
