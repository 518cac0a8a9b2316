"""`python -m tests.faults --runs 100 --seed 1`: faults at random, one JSON line, exit 1 where a promise broke."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from tests.faults.run import failures, run, say, total
from tests.faults.schedule import SHAPES, Shape, schedule
from tests.faults.world import WHOLE

EVENTS_PER_RUN = 2000  # 100 runs have 200,000


def main() -> int:
    """The command."""
    given = _arguments()
    shapes: tuple[Shape, ...] = SHAPES if given.shape == "both" else (given.shape,)
    runs = [given.runs // len(shapes) + (number < given.runs % len(shapes)) for number in range(len(shapes))]
    only = given.only.split(",") if given.only else []
    plans = {
        shape: schedule(given.seed, shape, count, pace_s=given.pace, only=only)
        for shape, count in zip(shapes, runs, strict=True)
    }
    for shape, faults in plans.items():
        say(f"seed {given.seed}, {shape}: {len(faults)} faults")
        for fault in faults:
            say(f"  {fault}")
    if given.only_print:
        return 0
    if given.lasting:
        plans = {
            shape: tuple(replace(fault, for_s=given.lasting) for fault in faults) for shape, faults in plans.items()
        }
    events = (given.events or EVENTS_PER_RUN * given.runs) // len(shapes)

    async def all_of_them() -> dict[str, dict[str, Any]]:
        return {
            shape: await run(
                shape,
                faults,
                events=events,
                per_s=given.per_s,
                size=replace(WHOLE[shape], small_spool_mib=given.spool_mib),
                plant=given.plant,
                keep=given.keep,
            )
            for shape, faults in plans.items()
        }

    result = {"seed": given.seed, **total(anyio.run(all_of_them))}
    print(json.dumps(result))
    broken = failures(result)
    say(f"broken: {broken}" if broken else "every promise held")
    return 1 if broken else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="faults in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shape", choices=[*SHAPES, "both"], default="both")
    parser.add_argument("--events", type=int, default=0, help="accepted in all, at least; 2,000 a fault unless given")
    parser.add_argument("--per-s", type=float, default=500, help="events offered a second")
    parser.add_argument("--pace", type=float, default=4, help="seconds from one fault to the next, on average")
    parser.add_argument("--only", default="", help="kinds of faults, separated by commas: to find out what one does")
    parser.add_argument("--lasting", type=float, default=0, help="seconds that every fault lasts, whatever its kind")
    parser.add_argument("--spool-mib", type=int, default=1, help="bound of one of the spools: 1 runs full in seconds")
    parser.add_argument("--plant", default="", help="a bug to plant: see planted.py")
    parser.add_argument("--keep", type=Path, help="where to keep the directories of the meshes: logs, notes, stores")
    parser.add_argument("--only-print", action="store_true", help="print the schedule and do nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
