"""Waiting for room, first come first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Room:
    """Those who wait until *fits* says that there is room for their number of events."""

    def __init__(self, fits: Callable[[int], bool]) -> None:
        self._fits = fits
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def wait(self, n: int) -> None:
        """Return once there is room for *n* and everybody who came before has been served. Take it at once."""
        if not self._waiting and self._fits(n):
            return
        loop = asyncio.get_running_loop()
        entry = (n, loop.create_future())
        self._waiting.append(entry)
        try:
            await entry[1]
        finally:
            self._waiting.remove(entry)
            loop.call_soon(self.admit)  # the next one, after our caller took its room or gave up

    def admit(self) -> None:
        """There may be room now, for the first in line."""
        if self._waiting:
            n, future = self._waiting[0]
            if not future.done() and self._fits(n):
                future.set_result(None)
