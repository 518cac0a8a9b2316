"""What the figures are printed as: a missed must is said and fails, and a run that was not valid has no figures."""

from __future__ import annotations

import json
from collections.abc import Mapping

import anyio
import pytest

from benchmarks import __main__ as command
from benchmarks.report import as_json, missed, nested, print_run, print_surroundings, worst
from benchmarks.runner import Absent, Figure, Key, Row, Spread, measure
from benchmarks.validity import InvalidRun, require, require_durable, why_invalid

RATIO = Key("x", must=1.15, aim=1.6)
AROUND = {
    "commit": "abc",
    "time": "now",
    "versions": {"python": "3.11"},
    "machine": {"cpu": "c", "cores": 2, "load": 0.0, "kernel": "k"},
}


class _Question:
    """A benchmark module, as the runner sees one: it answers with *figures*, or fails with *error*."""

    NAME = "planted"

    def __init__(self, keys: Mapping[str, Key], figures: Mapping[str, Figure], error: Exception | None = None) -> None:
        self.KEYS = keys
        self._figures = figures
        self._error = error

    async def run(self, quick: bool) -> Mapping[str, Figure]:
        async with anyio.create_task_group():  # where questions mostly fail
            if self._error is not None:
                raise self._error
        return self._figures


def rows(*medians: float, key: Key = RATIO) -> list[list[Row]]:
    """A run of one figure for each of *medians*."""
    return [measure(_Question({"a.ratio": key}, {"a.ratio": Spread(m, m - 1, m + 1, 5)}), quick=False) for m in medians]


def test_table_shows_target_figure_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """A person sees the figure beside must and aim, and what nothing was promised about below."""
    question = _Question(
        {"a": RATIO, "b": Key("1/s"), "c": Key("x", must=1.0, what="the peer")},
        {"a": Spread(1.1, 1, 1.2, 5), "b": 12_345.0, "c": Absent("faststream is not installed: make install-bench")},
    )
    print_run(measure(question, quick=False), "run")
    print_surroundings(AROUND)
    printed = capsys.readouterr().out
    for text in ("planted", "1.1", ">= 1.15", ">= 1.6", "misses must", "12,345", "not measured", "make install-bench"):
        assert text in printed
    assert "commit abc" in printed


def test_json_has_medians_by_name_and_what_stands_behind_them() -> None:
    """Medians at the top, a dotted name as a group; spread over all runs; the worst run says if a must is kept."""
    document = json.loads(as_json(rows(1.3, 1.1, 1.2), AROUND, quick=False))
    assert document["a"] == {"ratio": 1.2}
    assert document["spread"]["a"]["ratio"] == pytest.approx({"median": 1.2, "low": 0.1, "high": 2.3, "rounds": 15})
    assert document["worst"]["a"] == {"ratio": 1.1}
    assert document["targets"]["a"]["ratio"]["meets_must"] is False
    assert document["commit"] == "abc"
    assert document["machine"]["cores"] == 2
    assert len(document["runs"]) == 3


def test_absent_figure_is_null_with_its_reason() -> None:
    """A peer that is not installed leaves null and a reason, never a hole."""
    run = measure(_Question({"peer": Key("x", must=1.0)}, {"peer": Absent("make install-bench")}), quick=False)
    document = json.loads(as_json([run], AROUND, quick=False))
    assert document["peer"] is None
    assert document["absent"] == {"peer": "make install-bench"}
    assert document["targets"]["peer"]["meets_must"] is None
    assert not missed([run])


@pytest.mark.parametrize(("better", "expected"), [("more", 1.1), ("less", 1.3)])
def test_worst_is_worst_in_the_figure_s_own_direction(better: str, expected: float) -> None:
    """The lowest ratio, the highest latency."""
    key = Key("x", must=1.2, better=better)  # type: ignore[arg-type]
    (row,) = worst(rows(1.3, 1.1, 1.2, key=key))
    assert row.value is not None
    assert row.value.median == expected


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a.b"), ("a.b", "a")])
def test_two_figures_of_one_name_are_refused(names: tuple[str, str]) -> None:
    """Neither may hide the other."""
    with pytest.raises(ValueError, match="a"):
        nested((name, 1) for name in names)


# --- runs that were not valid ----------------------------------------------------------------------------------------

FILE = {"storage": "file", "num_replicas": 1, "persist_mode": "default"}


def test_stream_on_disk_is_durable_enough() -> None:
    """What the mesh makes passes; so does a server that says nothing of modes it does not know."""
    require_durable(FILE)
    require_durable({"storage": "file"})


@pytest.mark.parametrize(
    "wrong", [{"storage": "memory"}, {"num_replicas": 3}, {"persist_mode": "async"}, {"no_ack": True}], ids=str
)
def test_other_durability_is_refused(wrong: dict[str, object]) -> None:
    """A figure of a stream that is easier, or harder, to write to is not the figure."""
    with pytest.raises(InvalidRun, match="wrong durability"):
        require_durable(FILE | wrong)


def test_failed_assert_is_a_reason() -> None:
    """A question that asserts something of its run, or waited in vain, has refused it, with its words or its line."""
    assert why_invalid(AssertionError("not masked")) == "not masked"
    with pytest.raises(AssertionError) as raised:
        raise AssertionError
    assert "test_benchmarks_report.py" in (why_invalid(raised.value) or "")
    assert why_invalid(TimeoutError("agents")) == "out of time: agents"
    assert why_invalid(OSError("disk")) is None


@pytest.mark.parametrize("error", [InvalidRun("12 events lost"), AssertionError("12 events lost")])
def test_invalid_run_has_no_figures(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 and one line that says why; neither table nor JSON."""
    planted = _Question({"a": RATIO}, {"a": 9.0}, error)
    monkeypatch.setattr(command, "discover", lambda _=None: [planted])
    assert command.main(["--only", "planted", "--json"]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert "not valid: planted: 12 events lost" in printed.err


@pytest.mark.parametrize(
    ("figure", "options", "status"), [(1.2, [], 0), (1.1, [], 1), (1.1, ["--quick"], 0)], ids=["met", "missed", "quick"]
)
def test_missed_must_fails(figure: float, options: list[str], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A must missed in any run is exit 1; a quick run cannot say."""
    answers = iter([2.0, figure, 2.0])
    planted = _Question({"a": RATIO}, {})
    monkeypatch.setattr(command, "discover", lambda _=None: [planted])
    monkeypatch.setattr(command, "measure", lambda q, **_: measure(_Question(q.KEYS, {"a": next(answers)}), quick=True))
    assert command.main(["--only", "planted", "--runs", "3", *options]) == status


def test_require_says_why() -> None:
    """What holds passes, what does not is refused with the reason."""
    require(True, "never")  # noqa: FBT003 - what is asked
    with pytest.raises(InvalidRun, match="unverified"):
        require([], "unverified")
