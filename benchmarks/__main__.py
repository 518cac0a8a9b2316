"""`python -m benchmarks [--only NAME] [--quick] [--json] [--list]`: exit 1 when a figure misses its must."""

from __future__ import annotations

import argparse
import sys

from benchmarks.runner import as_json, discover, measure, print_table, surroundings


def main() -> int:
    """Run the questions and print the table, or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="The figures of the mesh, and its targets."
    )
    parser.add_argument("--only", metavar="NAME", help="one question")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; figures not to be quoted")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--list", action="store_true", help="name the questions and stop")
    arguments = parser.parse_args()
    questions = discover(arguments.only)
    if arguments.list:
        print("\n".join(q.NAME for q in questions))
        return 0
    around = surroundings()  # before the load that we make ourselves
    rows = []
    for question in questions:
        print(f"running {question.NAME} ...", file=sys.stderr, flush=True)
        rows += measure(question, quick=arguments.quick)
    if arguments.json:
        print(as_json(rows, around, quick=arguments.quick))
    else:
        print_table(rows, around, quick=arguments.quick)
    missed = any(row.meets_must is False for row in rows)
    return int(missed and not arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
