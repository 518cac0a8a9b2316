"""`mesh demo`: the whole journey, and an account that does not flatter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FINISH_S = 110

KEYS = [
    "accepted",
    "stored",
    "delivered",
    "verified",
    "masked_fields",
    "redelivered",
    "dead_lettered",
    "duplicates",
    "lost",
    "latency_ms",
    "seconds",
]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Two demos side by side: one as it is, one from which a stored copy is withheld."""
    empty = tmp_path_factory.mktemp("demo")  # nothing of the checkout is in reach but what is named
    command = [sys.executable, "-m", "mesh", "demo", "--json", "--policies", str(root / "policies")]
    options = {"whole": [], "withheld": ["--withhold", "1"]}
    running = {
        name: subprocess.Popen(
            [*command, *more], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=empty
        )
        for name, more in options.items()
    }
    yield running
    for process in running.values():
        if process.poll() is None:
            process.terminate()
            process.communicate()


def account(process: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any]]:
    """Exit status and what `--json` printed, which is all that was printed."""
    printed, said = process.communicate(timeout=FINISH_S)
    assert printed, said.decode()[-2000:]
    return process.returncode, json.loads(printed)


def test_demo_loses_nothing(demos: dict[str, subprocess.Popen[bytes]]) -> None:
    """Exit 0: every due event arrived verified, through kill -9, a failing handler, repeats and a poison event."""
    status, report = account(demos["whole"])
    assert status == 0, report
    assert list(report) == KEYS
    assert report["lost"] == 0
    assert report["accepted"] >= 300
    assert report["stored"] > report["accepted"]
    assert set(report["delivered"]) == {"analytics", "billing", "security", "support"}
    assert report["verified"] == sum(report["delivered"].values())
    assert report["redelivered"] >= 1
    assert report["dead_lettered"] == 1
    assert report["duplicates"] >= 5
    assert report["masked_fields"] > report["accepted"]
    assert set(report["latency_ms"]) == {"p50", "p99"}
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"]
    assert report["seconds"] > 0


def test_demo_misses_what_is_withheld(demos: dict[str, subprocess.Popen[bytes]]) -> None:
    """A copy deleted before its team reads it is lost, is counted, and makes the demo exit 1."""
    status, report = account(demos["withheld"])
    assert (status, report["lost"]) == (1, 1)
    assert report["verified"] == sum(report["delivered"].values())
