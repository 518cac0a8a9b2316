"""What the processes of this project do without.

nats-py imports aiohttp where it is installed, for websockets. Nobody here speaks them, and it is a third of an agent's
start and 11 MB of its memory. A library does not decide that for the application it is part of; our commands do.
"""

from __future__ import annotations

import sys


def without_websockets() -> None:
    """Import nats-py as if aiohttp were not installed; to everybody else it still is.

    Has no effect once either is imported: call it first.
    """
    if "nats" in sys.modules or "aiohttp" in sys.modules:
        return
    sys.modules["aiohttp"] = None  # type: ignore[assignment] # the import system's word for "not there"
    try:
        import nats.aio.transport  # noqa: F401
    finally:
        del sys.modules["aiohttp"]
