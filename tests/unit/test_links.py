"""Linked events against a model of a stream: whatever is lost, cut or comes between, an ack says what is stored.

The model is in `stream_model.py`, what happens to it in `stream_bench.py`. Where the order of storing is that of
submitting without links, it is with them.
"""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import MeshError
from mesh.jetstream.links import APART_FIRST_S, FEWEST
from tests.unit.stream_bench import Bench, Process, move

Moves = list[tuple[tuple[str, int], list[int], int]]

EXAMPLES = settings(max_examples=40)  # of up to 70 moves; the order and the acks held in thousands
COUNTS = st.integers(0, 12)
TIMES_MS = [0, 1, 40, 60, 300, 1_100, 4_100, 70_000]
HARMLESS = ("other", "aim", "large", "known", "settle", "goes on", "lose linked", "away linked")  # to the order
LOSSES = ("lose answers", "lose answer", "cut", "connect", "late")
ALL = (*LOSSES, "full", "lose", "away", "again", "same", "theirs", "aim theirs")


def some(*names: str) -> st.SearchStrategy[Moves]:
    """A row of moves, those of *names* among them, each with a little chance beside it and whose it is."""
    moves = st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 10)),
        st.tuples(st.just("submit"), st.integers(FEWEST, 10)),
        st.tuples(st.just("work"), st.integers(1, 20)),
        st.tuples(st.just("read"), st.integers(1, 20)),
        st.tuples(st.sampled_from(HARMLESS), COUNTS),
        st.tuples(st.sampled_from(names), COUNTS),
        st.tuples(st.just("time"), st.sampled_from(TIMES_MS)),
    )
    one = st.tuples(moves, st.lists(st.integers(0, 100), min_size=1, max_size=3), st.integers(0, 1))
    return st.integers(0, 70).flatmap(lambda size: st.lists(one, min_size=size, max_size=size))


def after(moves: Moves, processes: int, *, ages: bool = False) -> Bench:
    """How it is in the end."""

    async def run() -> Bench:
        bench = Bench(processes, ages=ages)
        for process in bench.processes:
            begin(bench, process)
        for (what, count), chance, who in moves:
            move(bench, who, what, count, chance)
        bench.finish()
        bench.close()
        return bench

    return asyncio.run(run())


def begin(bench: Bench, process: Process) -> None:
    """An ack tells *process* how far the stream is, and links begin."""
    process.submit(process.fresh(1))
    move(bench, bench.processes.index(process), "settle", 0, [0])


def in_order(process: Process) -> None:
    """What *process* submitted is stored, and in that order, but for what was refused or is somebody else's."""
    refused = {item.event_id for item, result in process.results.items() if isinstance(result, MeshError)}
    elsewhere = refused | process.bench.theirs
    names = [name for name in dict.fromkeys(item.event_id for item in process.items) if name not in elsewhere]
    known = set(names)
    assert [name for name in process.stream.ids if name in known] == names


@EXAMPLES
@given(some(*ALL))
def test_whoever_is_acknowledged_is_stored_where_the_ack_says(moves: Moves) -> None:
    """And nothing twice: whatever is lost, refused, cut, repeated or comes between, with two processes."""
    bench = after(moves, 2)
    assert bench.wrong == []
    assert len(set(bench.stream.ids)) == len(bench.stream.ids)


@EXAMPLES
@given(some(*ALL))
def test_an_ack_says_the_same_where_signatures_grow_old(moves: Moves) -> None:
    """Events go under new ids, and the stream forgets the old ones: an ack is of the id that the event has then."""
    assert after(moves, 2, ages=True).wrong == []


@EXAMPLES
@given(some(*LOSSES, "once more"))
def test_the_order_of_storing_is_that_of_submitting(moves: Moves) -> None:
    """Whatever is lost, late, refused or comes between; an event that is stored may be submitted once more.

    The same event twice on its way is left out, be it of one process or of two: of the one that stands in its place
    nobody knows which of them it is, so what follows it can be stored before what was sent between them.
    """
    bench = after(moves, 1)
    assert bench.wrong == []
    in_order(bench.processes[0])


@EXAMPLES
@given(some(*LOSSES, "once more"))
def test_each_of_two_processes_has_its_order(moves: Moves) -> None:
    """The same, where two of them publish events of their own into one stream."""
    bench = after(moves, 2)
    assert bench.wrong == []
    for process in bench.processes:
        in_order(process)


@EXAMPLES
@given(some("full", "once more"))
def test_a_stream_that_is_full_for_some_keeps_the_order_of_the_others(moves: Moves) -> None:
    """Where the answers come: what is refused, and nobody hears of it, is sent again behind others, linked or not."""
    bench = after(moves, 1)
    assert bench.wrong == []
    in_order(bench.processes[0])


async def quiet_ones(bench: Bench, batches: int, count: int) -> int:
    """How many of *batches* of *count* each, that go as they should, are sent without a reply."""
    process = bench.processes[0]
    before = process.line.quiet
    for _ in range(batches):
        process.submit(process.fresh(count))
        move(bench, 0, "settle", 0, [0])
    return process.line.quiet - before


def test_half_of_a_quiet_stream_has_no_reply() -> None:
    """Of batches that nobody comes between, every second event, and each is acknowledged in its place."""

    async def run() -> None:
        bench = Bench()
        begin(bench, bench.processes[0])
        assert await quiet_ones(bench, 20, 10) == 100
        assert await quiet_ones(bench, 20, 5) == 40
        assert len(bench.processes[0].results) == 301
        assert bench.wrong == []
        bench.close()

    asyncio.run(run())


def test_there_are_no_links_for_a_while_after_one_did_not_hold() -> None:
    """Each time for twice as long."""

    async def run() -> None:
        bench = Bench()
        process = bench.processes[0]
        begin(bench, process)
        for apart_s in (APART_FIRST_S, 2 * APART_FIRST_S):
            process.submit(process.fresh(FEWEST))
            bench.other()
            start = bench.now
            process.work(FEWEST, process.line.wire)
            process.read(FEWEST)  # from here on
            while bench.now < start + apart_s - 0.3:
                assert await quiet_ones(bench, 1, FEWEST) == 0
            bench.pass_time(0.3)
            assert await quiet_ones(bench, 1, 1) == 0  # its ack says where the stream is
            assert await quiet_ones(bench, 1, FEWEST) == FEWEST / 2
        assert bench.wrong == []
        bench.close()

    asyncio.run(run())
