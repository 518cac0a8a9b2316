"""Ports of loopback for servers that are to be found at the same one after a restart.

Asked for any port, the kernel gives one of those that outgoing connections get, too. While its server is down one of
them may take it, and holds it for a minute beyond its own end: the server could not come back.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

PORTS = range(10_000, 20_000)  # Linux begins outgoing connections at 32768, others higher


def lasting_ports(host: str = "127.0.0.1") -> Iterator[int]:
    """Those that nobody listens on now, from anywhere on. Somebody else may be told of the same one at this moment."""
    start = random.SystemRandom().randrange(len(PORTS))
    for port in (*PORTS[start:], *PORTS[:start]):
        if _is_free(host, port):
            yield port


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
