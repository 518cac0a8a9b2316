"""Ports for what is told where to listen: each is given once, and nobody else takes it while its server is down."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import suppress

# Below what Linux gives to outgoing connections and to who asks for any port. A worker of a run has a part of its own.
PORTS = range(20_000, 32_000)
WORKERS = 4


def _numbers() -> Iterator[int]:
    """A worker's, round and round, from anywhere: runs on one machine seldom meet."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    mine = PORTS[worker * len(PORTS) // WORKERS : (worker + 1) * len(PORTS) // WORKERS]
    at = random.SystemRandom().randrange(len(mine))
    while True:
        yield mine[at % len(mine)]
        at += 1


_NUMBERS = _numbers()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, and that this process has not given before."""
    found: list[int] = []
    while len(found) < count:
        port = next(_NUMBERS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found
