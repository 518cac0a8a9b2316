"""What one epoch of a source shows in one view: which numbers lack, and whether that is as it should be. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from mesh.findings import Counted, Finding, Range, What
from mesh.sequences import began_ms
from mesh.tracks import FAR_MS, Gap, Seen, Track, gaps, without

if TYPE_CHECKING:
    from mesh.marks import Mark, Row, Void

PENDING_MS: Final = 180_000  # a number given up is in a mark after a minute; the rest is for sending and for clocks
CLOCK_MS: Final = 60_000  # an agent's clock against the streams'; beyond this it takes nothing

_GONE = "it was given, a mark says so, and it is neither stored nor void: it was dropped"
_UNMARKED = "no mark says what became of it: it was dropped, or given up by an agent that then died"
_SOON = "it may be on its way, or the next mark may say that it is void: verify again in a few minutes"


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known of one epoch in one view by one identity.

    Attributes:
        streams: Names by the index that `Seen` holds.
        said: The marks with a row about it, and the row.
        ended: Whether its agent said that no more come.
        waiting: Copies of its agent that may still be in a spool.
        stands: Whether this event stands at a stream and sequence; None where no copy that verifies does.
        asked: What is asked about.
        floor_ms: What is older may be gone because streams keep it no longer, or was not read.
        now_ms: Unix milliseconds.
    """

    epoch: str
    view: str
    signer: str
    track: Track
    streams: list[str]
    said: list[tuple[Mark, Row]]
    ended: bool
    waiting: int
    stands: Callable[[str, int, str], bool | None]
    asked: Range
    floor_ms: int
    now_ms: int
    findings: list[Finding] = field(default_factory=list)

    @property
    def marked(self) -> int:
        """The highest number that a mark names."""
        return max((row.last for _, row in self.said), default=0)

    @property
    def newest_ms(self) -> int:
        """When the newest mark about it was signed; 0 for none."""
        return max((mark.signed_ms for mark, _ in self.said), default=0)

    def judge(self) -> Counted | None:
        """Add what is found; None where nothing of it is within what is asked."""
        began = began_ms(self.epoch) - CLOCK_MS
        if not self.asked.meets(began, max(self.track.newest_ms, self.newest_ms)):
            return None
        self._judge_order()
        self._judge_end()
        lacking = gaps(self.track.sorted(), self._first(began), self.marked, max(began, 0), self.newest_ms + CLOCK_MS)
        left = without(lacking, [void for _, row in self.said for void in row.voids])
        for gap in left:
            self._judge_gap(gap)
        self._judge_voids()
        return Counted(
            view=self.view,
            epoch=self.epoch,
            signer=self.signer,
            stored=len(self.track),
            void=sum(gap.sure for gap in lacking) - sum(gap.sure for gap in left),
            first=self.track.lowest,
            last=max(self.track.highest, self.marked),
            marked=self.marked,
            ended=self.ended,
        )

    def _first(self, began: int) -> int:
        """The first number that must still be stored: those before may be older than what is kept, or was read."""
        if began >= self.floor_ms:
            return 1
        later = [(mark.signed_ms, row.last + 1) for mark, row in self.said if row.last]
        after = [first for signed_ms, first in sorted(later) if signed_ms - CLOCK_MS >= self.floor_ms]
        return min([self.track.lowest or FAR_MS, *after[:1]])

    # --- order -------------------------------------------------------------------------------------------------------

    def _judge_order(self) -> None:
        for late in self.track.late():
            before = [seen for seen in self.track.under(late.n) if seen.stream == late.stream and seen.seq < late.seq]
            if any(seen.message == late.message for seen in before):
                self._find("stored-again", late, "its stream holds this very message before: it was stored anew")
            elif not before:
                self._find("reordered", late, "it stands behind a copy with a higher number")
        for one, other in pairwise(self.track.sorted()):
            if one.n == other.n and one.event != other.event:
                self._find("forked", other, "another event is stored under this number")

    def _judge_end(self) -> None:
        if self.ended and self.track.highest > self.marked:
            for seen in self.track.sorted():
                if seen.n > self.marked:
                    self._find("beyond-end", seen, f"the epoch's last mark says that it ended at {self.marked}")

    # --- what lacks --------------------------------------------------------------------------------------------------

    def _judge_gap(self, gap: Gap) -> None:
        if not self.asked.meets(gap.after_ms, gap.before_ms):
            return
        what, because = self._explain(gap)
        if gap.sure <= gap.last - gap.first:
            because = f"at least {gap.sure} of these numbers: {because}"
        self.findings.append(
            Finding(what=what, epoch=self.epoch, view=self.view, first=gap.first, last=gap.last, because=because)
        )

    def _explain(self, gap: Gap) -> tuple[What, str]:
        """Whether what lacks may still come, and why not."""
        if self.waiting:
            return (
                "pending",
                f"its agent had {self.waiting} copies in its spool when it last said so: verify again later",
            )
        signed = [mark.signed_ms for mark, row in self.said if row.last >= gap.last]
        since_ms = min(signed, default=gap.before_ms)
        if not self.ended and since_ms > self.now_ms - PENDING_MS:
            return "pending", _SOON
        return "missing", _GONE if signed else _UNMARKED

    def _judge_voids(self) -> None:
        """Whether the events of duplicates are where their stream said."""
        for mark, row in self.said:
            for void in row.voids:
                if void.stream and self._is_misplaced(void, mark.signed_ms) and not self.track.under(void.first):
                    said = f"{void.stream} acknowledged this event as its message {void.at}, which is not this event"
                    self.findings.append(
                        Finding(
                            what="misplaced",
                            epoch=self.epoch,
                            view=self.view,
                            first=void.first,
                            last=void.last,
                            stream=void.stream,
                            seq=void.at,
                            because=said,
                        )
                    )

    def _is_misplaced(self, void: Void, signed_ms: int) -> bool:
        stands = self.stands(void.stream, void.at, void.event)
        if stands is None and signed_ms - 2 * PENDING_MS < self.floor_ms:
            return False  # what was there before may be older than what is kept, or was read
        return not stands and self.asked.meets(signed_ms - 2 * PENDING_MS, signed_ms)

    def _find(self, what: What, seen: Seen, because: str) -> None:
        if self.asked.holds(seen.stream_ms):
            self.findings.append(
                Finding(
                    what=what,
                    epoch=self.epoch,
                    view=self.view,
                    first=seen.n,
                    last=seen.n,
                    stream=self.streams[seen.stream],
                    seq=seen.seq,
                    because=because,
                )
            )
