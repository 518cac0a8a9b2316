"""`make mutate-grants`: widen each pattern of the mesh's grants in turn, and see that an attack then succeeds.

The attacks run until one of their tests fails. A mutant that none notices survives, and the command ends with 1. So
does a pattern that no mutant widens: what the product grants is read from its own functions, for an agent and a team.

    python -m tests.attacks.mutate [NAME ...] [--workers 2] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mesh.jetstream import accounts, durables, imports
from mesh.jetstream.imports import TENANT_EXPORTS
from mesh.policy.grants import PublishGrant, SubscriptionGrant
from mesh.subjects import Pattern
from tests.attacks.mutants import (
    ACCOUNTS,
    ENROLMENT,
    MUTANTS,
    READING,
    SIDELINES,
    WRITING,
    D,
    F,
    Mutant,
    P,
    R,
    S,
    W,
)

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 300.0  # one run of the attacks; it takes a twentieth of it on a quiet machine
GRANTS = (READING, SIDELINES, WRITING, ACCOUNTS, ENROLMENT)  # what is run where the first file notices nothing
PYTEST = (
    "-m",
    "pytest",
    "-q",
    "-x",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-p",
    "tests.attacks.mutants",
    "--mutant",
)
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}  # for `-p`, which is looked up before the configuration is read


def granted() -> Iterator[tuple[str, str]]:
    """Every pattern that the product makes for an agent and a team, by what makes it."""
    sub = SubscriptionGrant("support", "contacts", "service", (Pattern.parse("crm.contact.>"),), start="all")
    ordered = replace(sub, ordered=True)
    publish = [
        PublishGrant("service", Pattern.parse("crm.contact.>")),
        PublishGrant("bare", Pattern.parse("crm.order.*.v1")),
    ]
    for family, made in (
        (W, [*imports.workload_imports("T", "desk"), *imports.workload_imports("T", "team-support")]),
        (P, imports.publish_imports("T", "local", publish)),
        (S, imports.subscription_imports("T", "local", ("crm",), [sub, ordered])),
        ("TENANT_EXPORTS", TENANT_EXPORTS),
    ):
        yield from ((family, one.subject) for one in made)
    for grant in (sub, ordered):
        yield from ((F, one) for durable in durables.durables("local", ("crm",), grant) for one in durable.filters)
    yield from ((R, one) for durable in durables.replays("local", ("crm",), sub) for one in durable.filters)
    yield from ((D, one) for one in durables.redrive(sub).filters)
    yield from (("workload_subscribe", one) for one in accounts.workload_subscribe("desk"))


def unmutated() -> list[str]:
    """Patterns that no mutant widens."""
    lacking = [
        f"{family}: {subject}"
        for family, subject in granted()
        if not any(m.family == family and m.widens(subject) and m.wide(subject) != subject for m in MUTANTS)
    ]
    return sorted(set(lacking))


def noticed(mutant: Mutant) -> str:
    """The test that fails under *mutant*, or an empty text."""
    for files in ([mutant.first], [file for file in GRANTS if file != mutant.first]):
        command = [sys.executable, *PYTEST, mutant.name, *files]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=ENVIRON
        )
        found = re.findall(r"^FAILED tests/attacks/(\S+)", done.stdout, re.MULTILINE)
        if found:
            return str(found[0])
        if done.returncode:
            return f"(no test: {done.stdout.strip().splitlines()[-1]})"
    return ""


def main() -> int:
    """Run every mutant, or those named; print the table."""
    parser = argparse.ArgumentParser(description="widen each grant in turn: an attack has to notice")
    parser.add_argument("names", nargs="*", help="parts of the names of mutants; all unless given")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the table there")
    asked = parser.parse_args()
    chosen = [m for m in MUTANTS if not asked.names or any(part in m.name for part in asked.names)]
    began = time.monotonic()
    lines, survived = [], 0
    with ThreadPoolExecutor(asked.workers) as pool:
        for mutant, test in zip(chosen, pool.map(noticed, chosen), strict=True):
            killed = bool(test) and not test.startswith("(")
            survived += not killed
            lines.append(f"{mutant.name:<100}  {test or 'SURVIVED'}")
            print(lines[-1], flush=True)
    lacking = unmutated()
    lines += [f"no mutant widens  {name}" for name in lacking]
    took_s = time.monotonic() - began
    lines.append(f"{len(chosen)} mutants, {survived} survived, {len(lacking)} patterns without one, {took_s:.0f} s")
    print("\n".join(lines[len(chosen) :]))
    if asked.out is not None:
        asked.out.write_text("\n".join(lines) + "\n")
    return 1 if survived or lacking else 0


if __name__ == "__main__":
    raise SystemExit(main())
