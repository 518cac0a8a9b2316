"""Every process of the mesh under test begins here: `python -m tests.faults.child <role> ...`.

The product is started as it is. What a run asks for is laid around it first, by environment variables: a clock that can
be set from outside (`FAULTS_CLOCK`, see `clock.py`), and a planted bug (`FAULTS_PLANT`, see `planted.py`).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

CLOCK, PLANT = "FAULTS_CLOCK", "FAULTS_PLANT"
ROLES = {
    "agent": "agent.__main__",
    "mesh": "mesh.cli",
    "adapter": "tests.faults.adapter",
    "consumer": "tests.faults.consumer",
}


def main() -> None:
    """Lay around it what the environment says, and become the role."""
    if file := os.environ.get(CLOCK):
        from tests.faults.clock import follow

        follow(Path(file))
    if name := os.environ.get(PLANT):
        from tests.faults.planted import plant

        plant(name)
    role = sys.argv.pop(1)
    import_module(ROLES[role]).main()


if __name__ == "__main__":
    main()
