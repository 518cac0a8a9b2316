"""The audit chain: what a writer appends, a verifier can check, and whatever is done to it shows."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest

from mesh import audit
from mesh.audit import Chain, digest, read
from mesh.audit_check import Problem, Stored, Verification, verify
from mesh.audit_fold import MAX_KINDS, MAX_NAMED, SINGLES, WINDOW_S, Due, Folding

AT_MS = 1_790_000_000_000


def written(count: int = 5, writer: str = "crm-adapter.0a1b2c3d") -> list[Stored]:
    """A chain of *count* denials, one to a message, as the stream would hold it."""
    chain = Chain(writer)
    lines = [chain.append(audit.DENIED, AT_MS + n, {"event": f"e-{n}", "rule": "no-tests"}) for n in range(count)]
    return stored(lines, subject=f"audit.{writer.rpartition('.')[0]}")


def stored(lines: list[bytes], *, subject: str = "audit.crm-adapter") -> list[Stored]:
    """One message a line, in order."""
    return [Stored(line, subject, number) for number, line in enumerate(lines, 1)]


def changed(at: Stored, **changes: Any) -> Stored:
    """The same place with another record, in canonical form."""
    record = msgspec.structs.replace(read(at.line), **changes)
    return Stored(msgspec.json.encode(record, order="sorted"), at.subject, at.stream_seq)


def renumbered(held: list[Stored]) -> list[Stored]:
    """The same lines as a stream that never held anything else."""
    return [Stored(item.line, item.subject, number) for number, item in enumerate(held, 1)]


def whats(problems: list[Problem]) -> list[tuple[str, int]]:
    """What each problem is, and of which record."""
    return [(problem.what, problem.seq) for problem in problems]


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_record_names_the_one_before() -> None:
    """Records count from 1, the first names nothing, each other one the digest of the line before."""
    first, second = (item.line for item in written(2))
    assert (read(first).seq, read(first).prev) == (1, "")
    assert (read(second).seq, read(second).prev) == (2, digest(first))
    assert read(first).name == "crm-adapter"


def test_a_line_is_canonical() -> None:
    """Sorted keys, no spaces, one line: equal records are equal bytes."""
    line = Chain("a.b").append(audit.DENIED, 5, {"type": "crm.x.v1", "event": "e\n1"})
    assert line == (
        b'{"at_ms":5,"facts":{"event":"e\xef\xbf\xbd1","type":"crm.x.v1"},"kind":"denied","prev":"","seq":1,'
        b'"v":1,"writer":"a.b"}'
    )


@pytest.mark.parametrize(
    ("fact", "kept"),
    [
        ("x" * 400, "x" * 300 + "…"),
        (["a", "b"], ["a", "b"]),
        (("a",) * 200, ["a"] * 100),
        ({"narrowed": 3}, {"narrowed": 3}),
        ([[["deep"]]], [["<list>"]]),
        (b"secret", "<bytes>"),
        (7, 7),
        (True, True),
    ],
)
def test_facts_stay_small_and_plain(fact: Any, kept: Any) -> None:
    """Text and lists are cut, and what is no plain fact shows only its type."""
    assert read(Chain("a.b").append(audit.DENIED, 0, {"fact": fact})).facts == {"fact": kept}


def test_a_fact_that_is_none_is_left_out() -> None:
    """What is not known takes no room."""
    assert read(Chain("a.b").append(audit.DENIED, 0, {"rule": None, "type": "t"})).facts == {"type": "t"}


def test_a_record_fits_a_message() -> None:
    """However many facts there are, a line stays within `MAX_LINE_BYTES`."""
    facts = {f"f{n}": ["x" * 300] * 100 for n in range(100)}
    line = Chain("a.b").append(audit.DENIED, 0, facts)
    assert len(line) <= audit.MAX_LINE_BYTES
    assert set(read(line).facts) == {"cut"}


# --- floods ----------------------------------------------------------------------------------------------------------


def refused(number: int, **facts: Any) -> dict[str, Any]:
    """The facts of one refusal, alike but for the event."""
    alike = {"type": "crm.x.v1", "source": "/crm", "principal": "crm-adapter", "rule": "no-tests", "revision": 1}
    return alike | {"event": f"e-{number}"} | facts


def released(folding: Folding, now_s: float, *, early: bool = False) -> list[Due]:
    """All that is due."""
    found = []
    while due := folding.release(now_s, early=early):
        found.append(due)
    return found


def flood(folding: Folding, count: int, now_s: float, **facts: Any) -> int:
    """Take *count* equal refusals; how many of them are records of their own."""
    return sum(folding.take(audit.DENIED, refused(number, **facts), now_s) for number in range(count))


def test_the_first_equal_records_are_their_own() -> None:
    """`SINGLES` a second show at once, the next is held back until its second is over."""
    folding = Folding()
    assert flood(folding, SINGLES + 2, 0.0) == SINGLES
    assert (len(folding), folding.due_s, released(folding, 0.9)) == (1, WINDOW_S, [])
    ((kind, facts, count),) = released(folding, WINDOW_S)
    assert (kind, count) == (audit.DENIED, 2)
    assert facts == refused(SINGLES + 1) | {"first": f"e-{SINGLES}", "count": 2}
    assert (len(folding), folding.due_s) == (0, None)


def test_one_held_back_is_an_ordinary_record() -> None:
    """Nothing is said of a count of one."""
    folding = Folding()
    flood(folding, SINGLES + 1, 0.0)
    assert released(folding, WINDOW_S) == [(audit.DENIED, refused(SINGLES), 1)]


@pytest.mark.parametrize(
    "other",
    [
        {"type": "crm.y.v1"},
        {"source": "/crm/eu"},
        {"principal": "desk"},
        {"rule": None},
        {"reason": "x"},
        {"revision": 2},
    ],
)
def test_what_differs_is_counted_apart(other: dict[str, Any]) -> None:
    """By principal, type, source, rule, reason and revision, and by the view of what is unmasked."""
    folding = Folding()
    assert flood(folding, 9, 0.0) == flood(folding, 9, 0.0, **other) == SINGLES
    assert sum(folding.take(audit.UNMASKED, refused(n), 0.0) for n in range(9)) == SINGLES
    assert [count for _, _, count in released(folding, WINDOW_S)] == [9 - SINGLES] * 3


def test_policy_changes_are_never_folded() -> None:
    """Only what a workload can repeat is."""
    folding = Folding()
    assert all(folding.take(audit.POLICY_REFUSED, {"revision": 1}, 0.0) for _ in range(100))


def test_a_flood_that_goes_on_takes_one_record_a_second() -> None:
    """None of the next second's are records of their own, until a second brings no more than a few."""
    folding, records, counted = Folding(), 0, 0
    for second in range(100):
        records += (own := flood(folding, 500, float(second)))
        counted += own
        for _, _, count in released(folding, second + WINDOW_S):
            records, counted = records + 1, counted + count
    assert (records, counted) == (SINGLES + 100, 50_000)
    assert flood(folding, SINGLES, 101.0) == SINGLES


def test_what_is_not_released_counts_on() -> None:
    """A writer without room leaves it: the same record stands for more events then."""
    folding = Folding()
    flood(folding, 10, 0.0)
    flood(folding, 10, 500.0)
    assert [count for _, _, count in released(folding, 500.0)] == [20 - SINGLES]


def test_made_up_types_and_sources_fill_nothing() -> None:
    """Beyond `MAX_KINDS` they share a record, which lists the first few and counts them all."""
    folding = Folding()
    own = [folding.take(audit.DENIED, refused(n, type=f"crm.t{n}.v1", source=f"/crm/{n}"), 0.0) for n in range(5000)]
    assert sum(own) == MAX_KINDS
    ((_, facts, count),) = released(folding, WINDOW_S)
    assert count == facts["count"] == 5000 - MAX_KINDS
    assert (facts["first"], facts["event"]) == (f"e-{MAX_KINDS}", "e-4999")
    assert facts["types"] == [f"crm.t{n}.v1" for n in range(MAX_KINDS, MAX_KINDS + MAX_NAMED)]
    assert len(facts["sources"]) == MAX_NAMED
    assert facts.keys().isdisjoint({"type", "source"})
    assert len(folding._windows) <= MAX_KINDS + 1


@pytest.mark.parametrize("seed", range(20))
def test_each_event_is_in_one_count(seed: int) -> None:
    """Whatever comes when, the records' counts add up to the events, and every second stays bounded."""
    chance, folding, now_s = Random(seed), Folding(), 0.0
    taken, records, counted = 3000, 0, 0
    for number in range(taken):
        now_s += chance.choice((0.0, 0.0, 0.001, 0.01, 0.4 if chance.random() < 0.05 else 0.0))
        due = released(folding, now_s) if chance.random() < 0.5 else []
        kind = chance.choice((audit.DENIED, audit.UNMASKED))
        own = folding.take(kind, refused(number, type=f"crm.t{int(chance.expovariate(0.1))}.v1"), now_s)
        records, counted = records + own + len(due), counted + own + sum(count for _, _, count in due)
    rest = released(folding, now_s, early=True)
    assert counted + sum(count for _, _, count in rest) == taken
    assert len(folding) == 0
    assert records + len(rest) <= (now_s + 2) * (MAX_KINDS * (SINGLES + 1) + 2)


# --- verifying -------------------------------------------------------------------------------------------------------


def test_an_untouched_trail_holds() -> None:
    """Chains of several writers, mixed in one stream, show no problem."""
    mixed = [item for pair in zip(written(9), written(9, "desk.11112222"), strict=True) for item in pair]
    assert verify(renumbered(mixed)) == []


@pytest.mark.parametrize(
    ("tamper", "problems"),
    [
        (lambda held: [held[0], changed(held[1], facts={"event": "e-9"}), *held[2:]], [("altered", 3)]),
        (lambda held: [held[0], changed(held[1], at_ms=1), *held[2:]], [("altered", 3)]),
        (lambda held: [changed(held[0], prev="0" * 64), *held[1:]], [("altered", 1), ("altered", 2)]),
        (lambda held: [*held[:2], *held[3:]], [("missing", 3)]),
        (lambda held: held[1:], [("missing", 1)]),
        (lambda held: [held[0], held[2], held[1], *held[3:]], [("reordered", 2)]),
        (lambda held: [*held[:3], changed(held[2], facts={}), *held[3:]], [("forked", 3)]),
        (lambda held: [*held, Stored(b"{}", held[0].subject, 0)], [("unreadable", 0)]),
        (lambda held: [*held, Stored(b"\xff", held[0].subject, 0)], [("unreadable", 0)]),
        (lambda held: [*held[:4], Stored(held[4].line, "audit.desk", 0)], [("foreign", 5)]),
        (lambda held: [*held[:4], Stored(b" " + held[4].line, held[4].subject, 0)], [("unreadable", 5)]),
    ],
    ids=[
        "altered", "altered-time", "first-prev", "missing", "missing-first", "reordered", "forked", "no-record",
        "no-text", "foreign", "not-canonical",
    ],
)  # fmt: skip
def test_what_is_done_to_a_trail_shows(
    tamper: Callable[[list[Stored]], list[Stored]], problems: list[tuple[str, int]]
) -> None:
    """Each way to change, take out, reorder or add a record is found, at the record that shows it."""
    assert whats(verify(renumbered(tamper(written())))) == problems


def test_a_message_that_left_the_stream_shows() -> None:
    """Even the last records of a chain cannot go unseen while others follow: the stream's numbers have a gap."""
    held = [*written(3), *(Stored(s.line, s.subject, s.stream_seq + 3) for s in written(2, "desk.11112222"))]
    assert verify(held) == []
    without_its_end = [item for item in held if item.stream_seq != 3]
    assert whats(verify(without_its_end)) == [("deleted", 0)]


def test_an_end_that_left_the_stream_shows() -> None:
    """The stream knows the number of its newest message, and so whether the end of the trail was read."""
    checking = Verification()
    for item in written(3):
        checking.add(item)
    checking.end(3)
    assert checking.problems() == []
    checking.end(5)
    assert whats(checking.problems()) == [("deleted", 0)]


def test_a_message_stored_twice_is_no_problem() -> None:
    """A writer that lost an acknowledgement sends the same bytes again, and that is no fork."""
    held = written()
    assert verify(renumbered([*held[:3], *held[1:3], *held[3:]])) == []


def test_records_that_come_late_are_not_missing() -> None:
    """Of a gap only what never came is missing; what came late is reordered."""
    held = written(6)
    problems = verify(renumbered([held[0], held[4], held[2], held[5]]))
    assert sorted(whats(problems)) == [("missing", 2), ("missing", 4), ("reordered", 3)]


def test_a_problem_names_its_place() -> None:
    """Writer, record and message are named, so that somebody can go and look."""
    held = written()
    (problem,) = verify(renumbered([*held[:2], *held[3:]]))
    assert (problem.writer, problem.seq, problem.stream_seq) == ("crm-adapter.0a1b2c3d", 3, 3)
    assert "1 record" in problem.because


def test_losses_that_writers_own_up_to_are_counted() -> None:
    """`audit-lost` records add up, and are no problem of the chain."""
    chain = Chain("crm-adapter.0a1b2c3d")
    lines = [chain.append(audit.LOST, 0, {"lost": 3}), chain.append(audit.LOST, 0, {"lost": 4})]
    checking = Verification()
    for item in stored(lines):
        checking.add(item)
    assert (checking.lost, checking.records, checking.writers) == (7, 2, ["crm-adapter.0a1b2c3d"])
    assert checking.problems() == []


def test_lines_of_one_message_share_its_number() -> None:
    """A message may hold several records."""
    body = b"\n".join(item.line for item in written(3))
    assert verify([Stored(line, "audit.crm-adapter", 1) for line in audit.lines(body)]) == []


def test_the_control_planes_name_is_nobody_elses() -> None:
    """No agent or team can be called like the control plane as a writer."""
    from mesh.errors import BadName
    from mesh.subjects import check_name

    with pytest.raises(BadName):
        check_name(audit.CONTROL)


@pytest.mark.parametrize("kind", audit.KINDS)
def test_every_kind_says_what_its_facts_are(kind: str) -> None:
    """Whoever reads the trail finds each kind in the module's table."""
    assert f"\n    {kind} " in (audit.__doc__ or "")
