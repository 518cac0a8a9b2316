"""What the commands of this project do without.

nats-py imports aiohttp where it is installed, for websockets. Nobody here speaks them, and that import is a third of a
command's start. A library does not decide this for the application it is part of; the agent serves HTTP with aiohttp.
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
