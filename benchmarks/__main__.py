"""`python -m benchmarks [--only NAME | --all] [--runs N] [--quick] [--json] [--list]`: the table of targets.

Exit 0: every must is met. 1: one is missed in some run. 2: a run was not valid, so there are no figures, or misuse.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from benchmarks.machine import surroundings
from benchmarks.report import as_json, missed, number, print_run, print_surroundings, worst
from benchmarks.runner import Question, Row, discover, measure, of_table
from benchmarks.validity import InvalidRun


def main(given: Sequence[str] | None = None) -> int:
    """Run the questions and print the tables, or JSON."""
    arguments = _parser().parse_args(given)
    questions = _questions(arguments.only, everything=arguments.all)
    if arguments.list:
        print("\n".join(q.NAME for q in questions))
        return 0
    around = surroundings()  # before the load that we make ourselves
    runs: list[list[Row]] = []
    try:
        for index in range(arguments.runs):
            runs.append(_run(questions, quick=arguments.quick))
            if not arguments.json:
                print_run(runs[-1], _title(index + 1, arguments.runs, quick=arguments.quick))
    except InvalidRun as invalid:
        print(f"no figures, the run is not valid: {invalid}", file=sys.stderr)
        return 2
    if arguments.json:
        print(as_json(runs, around, quick=arguments.quick))
    else:
        if arguments.runs > 1:
            print_run(worst(runs), f"the worst of {arguments.runs} runs")
        print_surroundings(around)
    return _verdict(runs, quick=arguments.quick)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="The figures of the mesh, and its targets.",
        epilog="Exit 1: a must is missed in some run. Exit 2: a run was not valid; it has no figures.",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--only", metavar="NAME", help="one question, one of the table or another")
    chosen.add_argument("--all", action="store_true", help="the questions beyond the table of targets too")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="ask everything so many times over")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; figures not to be quoted")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--list", action="store_true", help="name the questions and stop")
    return parser


def _questions(only: str | None, *, everything: bool) -> list[Question]:
    """Those of the table, or the one that was asked for, or all."""
    if only is not None:
        return discover(only)
    table = of_table(discover())
    return table + [q for q in discover() if q not in table] if everything else table


def _run(questions: Sequence[Question], *, quick: bool) -> list[Row]:
    rows = []
    for question in questions:
        print(f"running {question.NAME} ...", file=sys.stderr, end="", flush=True)
        began_s = time.monotonic()
        rows += measure(question, quick=quick)
        print(f" {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    return rows


def _title(index: int, runs: int, *, quick: bool) -> str:
    title = f"run {index} of {runs}" if runs > 1 else "run"
    return f"{title} (quick: figures not to be quoted)" if quick else title


def _verdict(runs: Sequence[Sequence[Row]], *, quick: bool) -> int:
    """1 where a must is missed, which a quick run cannot say."""
    below = missed(runs)
    for row in below:
        assert row.value is not None
        assert row.must is not None
        target = f"must {'>=' if row.better == 'more' else '<='} {number(row.must)} {row.unit}"
        print(f"missed: {row.key} {number(row.value.median)}, {target}", file=sys.stderr)
    return int(bool(below) and not quick)


if __name__ == "__main__":
    sys.exit(main())
