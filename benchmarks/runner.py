"""Finds the questions, runs them one by one and judges what came out by what was promised."""

from __future__ import annotations

import importlib
import pkgutil
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import anyio

import benchmarks
from benchmarks.machine import ROOT
from benchmarks.validity import InvalidRun, why_invalid

__all__ = [
    "ROOT", "ROUNDS", "TABLE", "Absent", "Figure", "Key", "Question", "Row", "Spread", "discover", "interleave",
    "measure", "of_table", "ratio",
]  # fmt: skip

ROUNDS = 5  # odd, so that the median is a round that happened
# The questions of the design's table of targets, in its order: what `make bench` runs. The others are asked by name.
TABLE = ("publish", "consume", "end_to_end", "policy", "http", "apply", "agent_start")


@dataclass(frozen=True, slots=True)
class Key:
    """What one figure means.

    Args:
        unit: `x` for a ratio, `us`, `ms`, `s`, `MB`, `1/s`.
        must: The target of the design; missing it fails the run. None: the figure is for reading.
        aim: What the design hopes for.
        better: Whether more or less is better.
        what: Half a sentence for the table, where the name does not say it.
    """

    unit: str
    must: float | None = None
    aim: float | None = None
    better: Literal["more", "less"] = "more"
    what: str = ""

    def meets(self, value: float, target: float | None) -> bool | None:
        """Whether *value* is at least as good as *target*; None without a target."""
        if target is None:
            return None
        return value >= target if self.better == "more" else value <= target


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure measured several times: median, lowest and highest."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of *values*; at least one."""
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Absent:
    """A figure that could not be measured, and why: it is null in JSON and never left out."""

    why: str


Figure = float | Spread | Absent


class Question(Protocol):
    """A benchmark module, as the package docstring describes it."""

    NAME: str
    KEYS: Mapping[str, Key]

    async def run(self, quick: bool) -> Mapping[str, Figure]:
        """The figures by the names in KEYS."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one run. `value` is None where it could not be measured, and `why` says so."""

    question: str
    key: str
    unit: str
    what: str
    value: Spread | None
    must: float | None
    aim: float | None
    better: str
    meets_must: bool | None
    meets_aim: bool | None
    why: str = ""


async def interleave(
    contestants: Mapping[str, Callable[[], Awaitable[float]]], *, rounds: int = ROUNDS, rest_s: float = 0.2
) -> dict[str, list[float]]:
    """Let each contestant run once, then each again, so that a slow minute of the machine hits all of them.

    Args:
        contestants: By name, something that measures once and returns its figure.
        rounds: How often each runs; every second round goes backwards, so that no place in the order is an advantage.
        rest_s: Seconds between two runs, for the last one's disk writes to settle.

    Returns:
        The figures of each contestant in order of rounds: `Spread.of` and `ratio` take them.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants) if number % 2 == 0 else reversed(list(contestants)):
            figures[name].append(await contestants[name]())
            await anyio.sleep(rest_s)
    return figures


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times *theirs* is *ours*, round by round: the two runs of a round shared the machine's mood."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def discover(only: str | None = None) -> list[Question]:
    """The benchmark modules, by file name. *only* keeps one by its NAME.

    Raises:
        SystemExit: Nothing has that name; lists those that exist.
    """
    names = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name.startswith("bench_"))
    found = [cast("Question", importlib.import_module(f"benchmarks.{name}")) for name in names]
    if only is None:
        return found
    chosen = [q for q in found if only == q.NAME]
    if not chosen:
        raise SystemExit(f"no benchmark is called {only!r}; there are: {', '.join(q.NAME for q in found) or 'none'}")
    return chosen


def of_table(questions: Sequence[Question]) -> list[Question]:
    """Those that the design's table has, in its order."""
    return sorted((q for q in questions if q.NAME in TABLE), key=lambda q: TABLE.index(q.NAME))


def measure(question: Question, *, quick: bool) -> list[Row]:
    """Run one question on a loop of its own and judge its figures.

    Raises:
        InvalidRun: The run lost events, or was in another way not what its figures say.
        ValueError: It returned a figure that KEYS does not explain, or left one out.
    """
    try:
        figures = anyio.run(question.run, quick, backend_options={"use_uvloop": True})
    except (Exception, BaseExceptionGroup) as error:
        why = why_invalid(error)
        if why is None:
            raise
        raise InvalidRun(f"{question.NAME}: {why}") from error
    if figures.keys() != question.KEYS.keys():
        raise ValueError(f"{question.NAME} returned {sorted(figures)}, but KEYS explains {sorted(question.KEYS)}")
    return [_row(question.NAME, name, key, figures[name]) for name, key in question.KEYS.items()]


def _row(question: str, name: str, key: Key, figure: Figure) -> Row:
    targets = (key.must, key.aim, key.better)
    if isinstance(figure, Absent):
        return Row(question, name, key.unit, key.what, None, *targets, None, None, figure.why)
    value = figure if isinstance(figure, Spread) else Spread(figure, figure, figure, 1)
    judged = key.meets(value.median, key.must), key.meets(value.median, key.aim)
    return Row(question, name, key.unit, key.what, value, *targets, *judged)
