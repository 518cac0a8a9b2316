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
        """Return once there is room for *n* and everybody who came before has been served."""
        if not self._waiting and self._fits(n):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((n, future))
        try:
            await future
        finally:
            self.admit()  # whoever gave up must not hold up those behind

    def admit(self) -> None:
        """There may be room now."""
        while self._waiting:
            n, future = self._waiting[0]
            if not future.done():
                if not self._fits(n):
                    return
                future.set_result(None)
            self._waiting.popleft()
