"""What the soak and the latency question conclude from their figures."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.open_loop import Job, _Loop
from benchmarks.soak import Found, judge
from benchmarks.steady import drifted, growth, percentiles
from benchmarks.timed_reader import Notes


def test_percentiles_are_of_nearest_rank() -> None:
    """A thousand latencies of 1 to 1,000 ms: one in a thousand is beyond the last."""
    assert percentiles([float(n) for n in range(1000, 0, -1)]) == {
        "p50": 501, "p90": 901, "p99": 991, "p99_9": 1000, "max": 1000
    }  # fmt: skip
    assert percentiles([7.0]) == dict.fromkeys(("p50", "p90", "p99", "p99_9", "max"), 7.0)
    assert percentiles([]) == {}


@pytest.mark.parametrize(
    ("samples", "flat"),
    [
        ([60.0] * 180, True),
        ([60.0 + n % 3 for n in range(180)], True),
        ([20.0 + n for n in range(60)] + [80.0] * 120, True),
        ([60.0 + n * 0.1 for n in range(180)], False),
        ([60.0] * 120 + [60.0 + n for n in range(60)], False),
        ([80.0 - n * 0.1 for n in range(180)], True),
    ],
    ids=["level", "wandering", "warms-up", "leaks", "leaks-late", "shrinks"],
)
def test_memory_is_flat_or_not(samples: list[float], flat: bool) -> None:
    """Growth after the first third is a leak unless it is what a heap wanders; samples are 10 s apart."""
    found = growth([(n * 10.0, mb) for n, mb in enumerate(samples)])
    assert found.flat is flat


def test_slope_is_by_the_hour() -> None:
    """A tenth of a megabyte every ten seconds is 36 an hour."""
    assert growth([(n * 10.0, 60 + n * 0.1) for n in range(180)]).per_hour_mb == pytest.approx(36)


def test_too_few_samples_say_nothing() -> None:
    """Two samples make a line, and no verdict."""
    with pytest.raises(ValueError, match="too few"):
        growth([(0.0, 60.0), (10.0, 60.0)])


@pytest.mark.parametrize(
    ("by_minute", "drifts"),
    [
        ([10.0] * 30, False),
        ([2.0] * 10 + [6.0] * 20, False),
        ([10.0] * 29 + [500.0], False),
        ([10.0 + n for n in range(30)], True),
        ([100.0] * 10 + [200.0] * 20, True),
    ],
    ids=["level", "milliseconds", "one-bad-minute", "rises", "doubles"],
)
def test_latency_drifts_or_not(by_minute: list[float], drifts: bool) -> None:
    """The last third of the minutes is much slower than the first, in relation and in milliseconds."""
    assert drifted(by_minute) is drifts


def test_reader_knows_what_is_missing_and_what_came_twice() -> None:
    """Lateness is by phase from the moment in the id; a repeated event counts once, and a missing one is counted."""
    notes = Notes(4)
    for id_, now_ns in (("a.1000000-0", 3_000_000), ("a.1000000-1", 2_000_000), ("a.1000000-1", 9_000_000)):
        notes.note(id_, now_ns)
    notes.note("b.0-3", 5_000_000)
    assert (notes.count, notes.repeated, notes.missing(4)) == (3, 1, 1)
    taken = notes.take()
    assert taken["a"]["max"] == 2.0
    assert taken["b"]["p50"] == 5.0
    assert notes.take() == {}


@pytest.mark.anyio
async def test_latency_counts_from_the_moment_that_was_meant() -> None:
    """Every event has its moment, evenly spaced, however long the ones before it take."""
    ids: list[str] = []

    async def publish(bodies: object) -> None:
        ids.extend(body.split(b'"id":"')[1].split(b'"')[0].decode() for body in bodies)  # type: ignore[attr-defined]

    outcome = await _Loop(Job(phase="p", first=10, per_s=1000, seconds=0.05, size=5), publish).run()
    assert outcome.sent == 50
    assert [int(id_.rpartition("-")[2]) for id_ in ids] == list(range(10, 60))
    moments = [int(id_.split(".")[1].split("-")[0]) for id_ in ids][::5]
    assert {later - earlier for earlier, later in pairwise(moments)} == {5_000_000}


LEVEL = {name: [(n * 10.0, 60.0) for n in range(60)] for name in ("agent", "consumer", "server")}
RISING = [(n * 10.0, 60.0 + n) for n in range(60)]
WINDOWS = [{"p50": 2.0, "p99": 9.0}] * 10


@pytest.mark.parametrize(
    ("found", "minutes", "failed"),
    [
        (Found(LEVEL, WINDOWS), 10, ""),
        (Found(LEVEL | {"agent": RISING}, WINDOWS), 10, "agent grows by 360.0 MB an hour"),
        (Found(LEVEL | {"server": RISING}, WINDOWS), 10, ""),
        (Found(LEVEL | {"agent": RISING}, WINDOWS), 1, ""),
        (Found(LEVEL, [*WINDOWS, *([{"p50": 2.0, "p99": 90.0}] * 5)]), 10, "latency drifts: p99"),
        (Found(LEVEL, WINDOWS, lost=3), 1, "lost 3 events"),
        (Found(LEVEL, WINDOWS, refused={"overloaded": 2}), 1, "refused {'overloaded': 2}"),
    ],
    ids=["steady", "agent-leaks", "server-stores", "too-short-to-judge", "slows-down", "lost", "refused"],
)
def test_soak_fails_for_what_it_promises(found: Found, minutes: float, failed: str) -> None:
    """Memory of ours, latency and losses are judged; a short run by its losses alone."""
    assert "; ".join(judge(found, minutes=minutes).failed) == failed
