"""`mesh` where a pod's own token and CA lie elsewhere: `python -m tests.journey.in_a_pod DIRECTORY ...`."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """The console script `mesh`; the place is a constant, for in a pod it is one."""
    from mesh.kubernetes import api

    setattr(api, "SERVICE_ACCOUNT", Path(sys.argv.pop(1)))  # noqa: B010 - it is Final to everybody else
    from mesh.cli import main as mesh

    mesh()


if __name__ == "__main__":
    main()
