"""`mesh demo`: an account that does not flatter. That nothing is lost, the demo of an installed wheel shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FINISH_S = 110


def test_demo_misses_what_is_withheld(tmp_path: Path, root: Path) -> None:
    """A copy deleted before its team reads it is lost, is counted, and makes the demo exit 1."""
    command = [sys.executable, "-m", "mesh", "demo", "--json", "--policies", str(root / "policies"), "--withhold", "1"]
    done = subprocess.run(  # nothing of the checkout is in reach but what is named
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=FINISH_S
    )
    assert done.stdout, done.stderr.decode()[-2000:]
    report = json.loads(done.stdout)
    assert (done.returncode, report["lost"]) == (1, 1)
    assert report["verified"] == sum(report["delivered"].values())
