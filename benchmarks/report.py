"""What a person and a machine read of the figures: a table for each run, the worst of them, and one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.runner import Row, Spread

Run = Sequence[Row]


# --- several runs ----------------------------------------------------------------------------------------------------


def worst(runs: Sequence[Run]) -> list[Row]:
    """For each figure the row of the run in which it was worst, by its median; absent where any run lacks it."""
    return [_worst(rows) for rows in _by_figure(runs)]


def missed(runs: Sequence[Run]) -> list[Row]:
    """The rows that miss their must, in any run."""
    return [row for run in runs for row in run if row.meets_must is False]


def _worst(rows: Sequence[Row]) -> Row:
    measured = [(row.value.median, row) for row in rows if row.value is not None]
    if len(measured) < len(rows):
        return next(row for row in rows if row.value is None)
    pick = min if rows[0].better == "more" else max
    return pick(measured, key=lambda one: one[0])[1]


def _together(rows: Sequence[Row]) -> Spread | None:
    """The median of the runs' medians, and the lowest and highest of any round."""
    spreads = [row.value for row in rows if row.value is not None]
    if len(spreads) < len(rows):
        return None
    rounds = sum(one.rounds for one in spreads)
    middle = Spread.of([one.median for one in spreads])
    return replace(middle, low=min(one.low for one in spreads), high=max(one.high for one in spreads), rounds=rounds)


def _by_figure(runs: Sequence[Run]) -> list[tuple[Row, ...]]:
    return list(zip(*runs, strict=True))


# --- for machines ----------------------------------------------------------------------------------------------------


def as_json(runs: Sequence[Run], around: Mapping[str, Any], *, quick: bool) -> str:
    """One document: every figure's median at the top, `a.b` as `{"a": {"b": ...}}`, then what stands behind them.

    `spread` has lowest and highest under the same names, `worst` the median of the worst run, `targets` what was
    promised and whether the worst run keeps it, `absent` why a figure is null, `runs` each run as it was.
    """
    together = [(rows[0].key, _together(rows)) for rows in _by_figure(runs)]
    worse = worst(runs)
    document = nested((key, value.median if value else None) for key, value in together)
    document |= dict(around)
    document |= {
        "quick": quick,
        "spread": nested((key, asdict(value) if value else None) for key, value in together),
        "worst": nested((row.key, row.value.median if row.value else None) for row in worse),
        "targets": nested(
            (
                row.key,
                {name: getattr(row, name) for name in ("unit", "must", "aim", "better", "meets_must", "meets_aim")},
            )
            for row in worse
            if row.must is not None
        ),
        "absent": {row.key: row.why for row in worse if row.value is None},
        "runs": [[asdict(row) for row in run] for run in runs],
    }
    return json.dumps(document, indent=2)


def nested(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """`a.b: 1` as `{"a": {"b": 1}}`.

    Raises:
        ValueError: A name is there twice, or is both a figure and a group of figures.
    """
    made: dict[str, Any] = {}
    for key, value in pairs:
        *path, name = key.split(".")
        inner = made
        for step in path:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{key!r} is below a figure of the name {step!r}")  # noqa: TRY004 - a name is wrong
        if name in inner:
            raise ValueError(f"two figures are called {key!r}")
        inner[name] = value
    return made


# --- for people ------------------------------------------------------------------------------------------------------


def print_run(rows: Run, title: str) -> None:
    """The targets of one run beside its figures; then the figures that nothing was promised about."""
    console = _console()
    promised = [row for row in rows if row.must is not None]
    if promised:
        console.print(_table(promised, f"{title}: targets", targets=True))
    if len(promised) < len(rows):
        console.print(_table([row for row in rows if row.must is None], f"{title}: for reading", targets=False))
    for row in rows:
        if row.value is None:
            console.print(f"{row.key}: {row.why}", soft_wrap=True)


def print_surroundings(around: Mapping[str, Any]) -> None:
    """Commit, versions and machine, below the tables."""
    console, machine = _console(), around["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in around["versions"].items())
    console.print(f"commit {around['commit']}, {around['time']}; {versions}", soft_wrap=True)
    console.print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.1f}, Linux {machine['kernel']}")


def _table(rows: Run, title: str, *, targets: bool) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("question", "figure", "unit"):
        table.add_column(column)
    for column in ("must", "aim") * targets + ("median", "low", "high"):
        table.add_column(column, justify="right")
    if targets:
        table.add_column("")
    for row in rows:
        sign = ">=" if row.better == "more" else "<="
        promised = [f"{sign} {number(t)}" if t is not None else "" for t in (row.must, row.aim)] if targets else []
        spread = ["-", "", ""] if row.value is None else [number(v) for v in _three(row.value)]
        verdict = [_verdict(row)] if targets else []
        table.add_row(row.question, row.what or row.key, row.unit, *promised, *spread, *verdict)
    return table


def _three(value: Spread) -> tuple[float, float, float]:
    return value.median, value.low, value.high


def _verdict(row: Row) -> str:
    if row.meets_must is False:
        return "[red]misses must[/red]"
    if row.meets_aim:
        return "[green]meets aim[/green]"
    return "meets must" if row.meets_must else "not measured"


def number(value: float) -> str:
    """Three figures or whole numbers: more is noise."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _console() -> Console:
    # A pipe has no width: nothing is cut there.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
