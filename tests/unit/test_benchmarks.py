"""The table of figures: fair to both sides, and it says when a promise is missed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stdout

import pytest

from benchmarks.runner import Key, Spread, as_json, discover, interleave, measure, print_table, ratio


class _Question:
    """A benchmark module, as the runner sees one."""

    NAME = "planted"

    def __init__(self, keys: Mapping[str, Key], figures: Mapping[str, float | Spread]) -> None:
        self.KEYS = keys
        self._figures = figures

    async def run(self, quick: bool) -> Mapping[str, float | Spread]:
        return self._figures


AROUND = {
    "commit": "abc",
    "time": "now",
    "python": "3.11",
    "versions": {},
    "machine": {"cpu": "c", "cores": 2, "load": 0.0, "kernel": "k"},
}


@pytest.mark.anyio
async def test_contestants_take_turns() -> None:
    """Each round runs every contestant once, and every second round backwards."""
    order = []

    def contestant(name: str) -> object:
        async def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    figures = await interleave({n: contestant(n) for n in ("a", "b")}, rounds=3, rest_s=0)  # type: ignore[misc]
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert figures == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_ratio_is_taken_round_by_round() -> None:
    """A slow round of the machine slows both sides and does not move the ratio."""
    assert ratio([20, 2, 40], [10, 1, 20]) == Spread(2, 2, 2, 3)


@pytest.mark.parametrize(
    ("key", "value", "must", "aim"),
    [
        (Key("x", must=1.15, aim=1.6), 1.7, True, True),
        (Key("x", must=1.15, aim=1.6), 1.15, True, False),
        (Key("x", must=1.15, aim=1.6), 1.1, False, False),
        (Key("ms", must=5, aim=2, better="less"), 6, False, False),
        (Key("ms", must=5, aim=2, better="less"), 2, True, True),
        (Key("MB"), 45, None, None),
    ],
)
def test_figure_is_judged_the_right_way_round(key: Key, value: float, must: bool | None, aim: bool | None) -> None:
    """More is better for a ratio, less for a latency; without a target there is no verdict."""
    (row,) = measure(_Question({"figure": key}, {"figure": value}), quick=True)
    assert (row.meets_must, row.meets_aim) == (must, aim)


def test_unexplained_figure_is_refused() -> None:
    """A figure without unit and meaning does not get into the table, and none may be left out."""
    with pytest.raises(ValueError, match="KEYS explains"):
        measure(_Question({"a": Key("x")}, {"b": 1.0}), quick=True)


def test_table_and_json_show_target_and_verdict() -> None:
    """A person and a machine both see the figure beside what was promised."""
    rows = measure(_Question({"ratio": Key("x", must=1.15, aim=1.6)}, {"ratio": Spread(1.1, 1, 1.2, 5)}), quick=False)
    with redirect_stdout(io.StringIO()) as out:
        print_table(rows, AROUND, quick=False)
    for text in ("planted", "1.1", ">= 1.15", ">= 1.6", "misses must", "commit abc"):
        assert text in out.getvalue()
    (figure,) = json.loads(as_json(rows, AROUND, quick=False))["figures"]
    assert figure["value"] == {"median": 1.1, "low": 1, "high": 1.2, "rounds": 5}
    assert figure["meets_must"] is False


def test_questions_are_found_by_file() -> None:
    """Every `bench_*.py` has a name of its own and explains its figures."""
    questions = discover()
    assert len({q.NAME for q in questions}) == len(questions)
    assert all(q.KEYS for q in questions)
    with pytest.raises(SystemExit, match="no benchmark is called 'nothing'"):
        discover("nothing")
