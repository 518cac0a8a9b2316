"""What a check of a source's record finds: rows of what is stored and what marks say, and what that shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.completeness import Checking
from mesh.findings import Copy, Finding, Range, Report
from mesh.marks import Mark, Row, Void
from mesh.sequences import Number, event_name, new_epoch
from mesh.tracks import FAR_MS, Seen, Track, gaps, without

BEGAN_MS = 1_795_300_000_000
NOW_MS = BEGAN_MS + 3_600_000
EPOCH = new_epoch(BEGAN_MS, b"\0\0\0\0")
LATER = new_epoch(BEGAN_MS + 1_800_000, b"\0\0\0\0")
AGENT, OTHER = "spiffe://mesh.local/ns/acme/sa/crm", "spiffe://mesh.local/ns/acme/sa/hr"
SOURCE = "/crm"


class Record:
    """One source's record, as it is read."""

    def __init__(self, *, asked: Range | None = None, floor_ms: int = 0, now_ms: int = NOW_MS) -> None:
        self.checking = Checking(SOURCE, asked or Range(), floor_ms=floor_ms, now_ms=now_ms)
        self._index: dict[str, int] = {}
        self._seq = 0

    def store(
        self, *numbers: int, epoch: str = EPOCH, stream: str = "S", signer: str = AGENT, again: str = ""
    ) -> Record:
        """Store copies under *numbers*, a second apart each."""
        for n in numbers:
            self._seq += 1
            self.checking.copy(
                Copy(
                    stream=stream,
                    seq=self._seq,
                    stream_ms=BEGAN_MS + n * 1000,
                    view="clear",
                    signer=signer,
                    event_id=f"{epoch}{n}",
                    message=f"{n}{again}",
                    number=Number(epoch, n),
                )
            )
        return self

    def mark(
        self,
        last: int,
        *voids: Void,
        ends: bool = False,
        waiting: int = 0,
        at_ms: int = 0,
        epoch: str = EPOCH,
        index: int = 0,
    ) -> Record:
        """Take a mark that names *last*; a second after that number, unless *at_ms* says when."""
        self._index[epoch] = index or self._index.get(epoch, 0) + 1
        self.checking.mark(
            Mark(
                epoch=epoch,
                index=self._index[epoch],
                rows=(Row(epoch, SOURCE, "clear", last, voids),),
                waiting=waiting,
                ends=ends,
                kid="k",
                signed_ms=at_ms or BEGAN_MS + (last + 1) * 1000,
            ),
            AGENT,
        )
        return self

    def report(self) -> Report:
        """What it shows."""
        return self.checking.report()

    @property
    def found(self) -> list[tuple[str, int, int]]:
        """Each finding's name and numbers."""
        return [(finding.what, finding.first, finding.last) for finding in self.report().findings]


def given_up(*numbers: int) -> list[Void]:
    """Numbers that are void."""
    return [Void(n, n, 1) for n in numbers]


# --- numbers that lack -----------------------------------------------------------------------------------------------


def test_all_there_is_complete() -> None:
    """Every number up to the last mark, and the epoch has ended: nothing is found, and nothing left open."""
    report = Record().store(1, 2, 3).mark(3, ends=True).report()
    assert (report.findings, report.unproven) == ([], [])


@pytest.mark.parametrize(
    ("stored", "last", "voids", "missing"),
    [
        ([1, 2, 4], 4, [], [(3, 3)]),
        ([2, 3], 3, [], [(1, 1)]),
        ([1, 2], 5, [], [(3, 5)]),
        ([], 5, [], [(1, 5)]),
        ([1, 5, 9], 9, [], [(2, 4), (6, 8)]),
        ([1, 2, 4], 4, given_up(3), []),
        ([1, 2, 3, 4], 4, given_up(3), []),  # void only says that it need not be there
        ([1, 9], 9, [Void(3, 5, 3)], [(2, 2), (6, 8)]),
        ([1, 9], 9, [Void(2, 8, 7)], []),
        ([1, 9], 9, [Void(2, 8, 6)], [(2, 8)]),  # one of these at least
        ([1, 4, 9], 9, [Void(2, 8, 6)], []),
        ([1, 9], 9, [Void(2, 5, 3), *given_up(6, 7, 8)], [(2, 5)]),
    ],
)
def test_numbers_that_lack(stored: list[int], last: int, voids: list[Void], missing: list[tuple[int, int]]) -> None:
    """Up to the last mark every number is stored or void; what is neither is missing."""
    assert Record().store(*stored).mark(last, *voids, ends=True).found == [("missing", *each) for each in missing]


def test_how_many_lack_is_said_where_only_that_is_known() -> None:
    """Where void numbers are known by count alone, at least so many are missing."""
    (finding,) = Record().store(1, 9).mark(9, Void(2, 8, 5), ends=True).report().findings
    assert finding.because.startswith("at least 2 of these numbers: ")


def test_numbers_in_several_streams_fill_each_others_gaps() -> None:
    """A source counts through all its streams; none of them shows a gap of its own."""
    assert Record().store(1, 3, 5).store(2, 4, stream="T").mark(5, ends=True).found == []


def test_a_void_number_of_a_dead_agent_is_told_by_its_successor() -> None:
    """Who drains another epoch's spool says what became of it."""
    record = Record().store(1, 2, 4).mark(4, ends=True)
    record.checking.mark(
        Mark(
            epoch=LATER,
            index=1,
            rows=(Row(EPOCH, SOURCE, "clear", 0, tuple(given_up(3))),),
            waiting=0,
            ends=True,
            kid="k",
            signed_ms=NOW_MS,
        ),
        AGENT,
    )
    assert record.found == []


def test_an_agent_cannot_void_anothers_numbers() -> None:
    """What another identity says of an epoch is not said of the copies of this one."""
    record = Record().store(1, 3).mark(3, ends=True)
    record.checking.mark(
        Mark(
            epoch=EPOCH,
            index=2,
            rows=(Row(EPOCH, SOURCE, "clear", 0, tuple(given_up(2))),),
            waiting=0,
            ends=False,
            kid="k",
            signed_ms=NOW_MS,
        ),
        OTHER,
    )
    assert ("missing", 2, 2) in record.found


# --- what may still come ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marks", "now_ms", "what"),
    [
        ([], BEGAN_MS + 4_000, "pending"),
        ([], NOW_MS, "missing"),
        ([{}], BEGAN_MS + 4_000, "pending"),
        ([{}], NOW_MS, "missing"),
        ([{"ends": True}], BEGAN_MS + 4_000, "missing"),
        ([{"waiting": 2}], NOW_MS, "pending"),
        ([{"ends": True, "waiting": 2}], NOW_MS, "pending"),
        ([{"ends": True, "waiting": 2}, {"epoch": LATER, "waiting": 0}], NOW_MS, "missing"),
        ([{"ends": True, "waiting": 2}, {"epoch": LATER, "waiting": 1}], NOW_MS, "pending"),
        ([{"epoch": LATER, "waiting": 2}], NOW_MS, "pending"),
    ],
)
def test_what_lacks_may_still_come(marks: list[dict[str, object]], now_ms: int, what: str) -> None:
    """A gap is pending while a mark may explain it, or a spool may hold it; then it is missing."""
    record = Record(now_ms=now_ms).store(1, 3)
    for mark in marks:
        if "epoch" in mark:
            record.store(1, 2, 3, epoch=LATER)
        record.mark(3, **mark)  # type: ignore[arg-type]  # rows of a table
    assert record.found == [(what, 2, 2)]


def test_the_end_of_an_epoch_without_a_last_mark_is_not_shown() -> None:
    """Whether an agent that died gave more numbers than are stored and marked, nobody can say; and that is said."""
    report = Record().store(1, 2, 3, 4).mark(3).report()
    assert report.findings == []
    (unproven,) = report.unproven
    assert "its marks reach number 3, the highest stored is 4" in unproven


# --- order, and what does not belong ---------------------------------------------------------------------------------


def test_a_copy_behind_a_higher_number_is_reordered() -> None:
    """In one stream; between two of them there is no order."""
    assert Record().store(1, 3, 2, 4).mark(4, ends=True).found == [("reordered", 2, 2)]
    assert Record().store(1, 3, stream="S").store(2, 4, stream="T").mark(4, ends=True).found == []


def test_a_copy_sent_again_under_another_id_is_none() -> None:
    """Its agent does that where a frozen server may have stored the first one too late; the same id it sends once."""
    assert Record().store(1, 2, 3).store(2, again="g1").mark(3, ends=True).found == []
    for n in (2, 3):
        assert Record().store(1, 2, 3).store(n).mark(3, ends=True).found == [("stored-again", n, n)]


def test_two_events_under_one_number_are_told() -> None:
    """One of them was not counted."""
    record = Record().store(1, 2).mark(2, ends=True)
    record.checking.copy(Copy("S", 99, BEGAN_MS + 3000, "clear", AGENT, "another", "other", Number(EPOCH, 2)))
    assert ("forked", 2, 2) in record.found


def test_an_epoch_that_ended_goes_no_further() -> None:
    """A copy above the number that its agent ended with."""
    assert Record().store(1, 2, 3, 4).mark(2, ends=True).found == [("beyond-end", 3, 3), ("beyond-end", 4, 4)]


def test_two_identities_in_one_epoch_are_told() -> None:
    """An epoch is one process's."""
    assert ("foreign", 0, 0) in Record().store(1, 2).store(3, signer=OTHER).mark(2).found


def test_marks_that_lack_are_told() -> None:
    """They are numbered from 1; of an epoch older than what was read only those between count."""
    assert Record().store(1, 2).mark(2, index=3, ends=True).found == [("mark-missing", 0, 0)]
    old = Record(floor_ms=NOW_MS).store(1, 2).mark(2, index=3).mark(3, index=5)
    assert ("mark-missing", 0, 0) in old.found
    assert "1 of 5" in old.report().findings[-1].because


@pytest.mark.parametrize(
    ("place", "event", "found"),
    [
        (("S", 1), event_name(f"{EPOCH}1"), []),
        (("S", 2), event_name(f"{EPOCH}1"), [("misplaced", 3, 3)]),
        (("S", 77), event_name(f"{EPOCH}1"), [("misplaced", 3, 3)]),
        (("T", 1), event_name(f"{EPOCH}1"), [("misplaced", 3, 3)]),
    ],
)
def test_a_duplicate_is_where_its_stream_said(
    place: tuple[str, int], event: str, found: list[tuple[str, int, int]]
) -> None:
    """A stream that calls an event a duplicate has it, at the message it named."""
    record = Record().store(1, 2).mark(3, Void(3, 3, 1, *place, event), ends=True)
    assert record.found == found


def test_a_resent_copy_is_its_own_duplicate() -> None:
    """A copy whose first ack was lost is stored under its own number, wherever the stream says."""
    for place in (3, 77):
        record = Record().store(1, 2, 3).mark(3, Void(3, 3, 1, "S", place, event_name(f"{EPOCH}3")), ends=True)
        assert record.found == []


@pytest.mark.parametrize(
    ("code", "seq", "found"),
    [
        ("bad-signature", 1, [("not-verified", 2, 2)]),
        ("not-fresh", 1, []),
        ("key-revoked", 1, []),
        ("not-fresh", 99, [("not-verified", 2, 2)]),
    ],
)
def test_what_does_not_verify(code: str, seq: int, found: list[tuple[str, int, int]]) -> None:
    """It is told; but a copy that came too late, and stands again further on, is what an honest agent leaves behind."""
    record = Record()
    copy = Copy("S", seq, BEGAN_MS, "clear", "", "e", "m", Number(EPOCH, 2))
    record.store(7, epoch=LATER)
    record.checking.refused(copy, code)
    record.store(1, 2, 3).mark(3, ends=True).mark(7, *[Void(1, 6, 6)], epoch=LATER, ends=True)
    assert record.found == found
    assert bool(record.report().unproven) is not bool(found)


def test_a_source_that_was_not_numbered_is_said() -> None:
    """Copies of an older version verify, and prove nothing about each other."""
    record = Record().store(1).mark(1, ends=True)
    record.checking.copy(Copy("S", 9, BEGAN_MS, "clear", AGENT, "e", "m", None))
    assert record.report().unproven == ["1 copies were made by an agent that does not number them"]


# --- between two points ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "missing"),
    [(0, FAR_MS, [2, 8]), (4, 6, []), (1, 6, [2]), (4, FAR_MS, [8]), (7, 9, [8]), (8, 8, [8])],
)
def test_only_what_is_asked_about(first: int, last: int, missing: list[int]) -> None:
    """A number that lacks is within what is asked where its neighbours' times say that it may be."""
    asked = Range(BEGAN_MS + first * 1000 if first else 0, min(BEGAN_MS + last * 1000, FAR_MS))
    record = Record(asked=asked).store(1, 3, 4, 5, 6, 7, 9).mark(9, ends=True)
    assert record.found == [("missing", n, n) for n in missing]


def test_what_streams_keep_no_longer_is_not_missing() -> None:
    """The first copies of an old epoch are gone with age; from the first that is there on, all have to be."""
    floor_ms = BEGAN_MS + 600_000
    assert Record(floor_ms=floor_ms).store(700, 701, 703).mark(703).found == [("missing", 702, 702)]


def test_marks_of_an_old_epoch_bound_what_was_given_since() -> None:
    """Where all of it is gone, what was counted between two marks since then lacks."""
    floor_ms = BEGAN_MS + 600_000
    record = Record(floor_ms=floor_ms).mark(500).mark(700).mark(705, ends=True)
    assert record.found == [("missing", 701, 705)]


# --- gaps ------------------------------------------------------------------------------------------------------------


def _seen(numbers: Iterable[int]) -> list[Seen]:
    return [Seen(n, n, n, n, 0, n) for n in numbers]


@given(st.sets(st.integers(1, 60)), st.integers(0, 60), st.sets(st.integers(1, 60)))
def test_gaps_are_what_is_neither_stored_nor_void(stored: set[int], last: int, void: set[int]) -> None:
    """For any numbers: what is asked for, less what is there, less what is void."""
    track = Track()
    for seen in _seen(stored):
        track.add(seen)
    left = without(gaps(track.sorted(), 1, last, 0, 99), given_up(*void))
    found = {n for gap in left for n in range(gap.first, gap.last + 1)}
    assert found == set(range(1, max(stored | {last}) + 1)) - stored - void


@given(st.permutations(range(1, 9)))
def test_copies_are_taken_in_any_order(order: Sequence[int]) -> None:
    """What was delivered again late is no disorder: where it stands in its stream decides."""
    track = Track()
    for seen in _seen(order):
        track.add(seen)
    assert track.late() == []
    assert [seen.n for seen in track.sorted()] == list(range(1, 9))
    assert track.under(3) == _seen([3])
    assert track.under(9) == []


def test_findings_name_no_values() -> None:
    """A finding says numbers and places; ids of events stay out of it."""
    finding = Record().store(1, 3).mark(3, ends=True).report().findings[0]
    assert isinstance(finding, Finding)
    assert EPOCH + "1" not in finding.because
