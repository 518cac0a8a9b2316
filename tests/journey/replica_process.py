"""`mesh control run` as a process in which time is other: `python -m tests.journey.replica_process SCALE AHEAD_S ...`.

SCALE shortens the lease, and the pause between two rounds of what the leader measures, so that a test does not wait for
what is not tested; AHEAD_S is how far the wall clock of this process is ahead of everybody's. What follows is the
command line of `mesh`.
"""

from __future__ import annotations

import sys
import time


def set_clock(ahead_s: float) -> None:
    """Before anything else is imported: modules keep functions of `time` as defaults."""
    real_s, real_ns = time.time, time.time_ns
    time.time = lambda: real_s() + ahead_s
    time.time_ns = lambda: real_ns() + round(ahead_s * 1e9)


def main() -> None:
    """The console script `mesh`, with this time."""
    scale, ahead_s = float(sys.argv[1]), float(sys.argv[2])
    del sys.argv[1:3]
    if ahead_s:
        set_clock(ahead_s)
    from mesh.cli import main as mesh
    from mesh.control import lease, measures

    measures.EVERY_S *= scale / 4
    for name in ("TTL_S", "HOLD_S", "RENEW_S", "AGAIN_S", "LOOK_S"):
        setattr(lease, name, getattr(lease, name) * scale)
    mesh()


if __name__ == "__main__":
    main()
