"""The redelivery clock of what is in hand, started again and again before it runs out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRESS_SHARE = 0.4  # of ack_wait between two "in progress" signals: one may be lost before the event comes again


class Progress:
    """Signals as often as a durable's ack_wait takes.

    Args:
        signal: Says of everything in hand that it is being worked on.
    """

    def __init__(self, signal: Callable[[], None]) -> None:
        self._signal = signal
        self._ack_wait_s = math.inf
        self._paced = anyio.Event()

    def pace(self, ack_wait_s: float) -> None:
        """The durable waits so many seconds from now on. Where it waited longer before, a signal is due at once."""
        if ack_wait_s != self._ack_wait_s:
            self._ack_wait_s = ack_wait_s
            self._paced.set()

    async def run(self) -> None:
        """Signal until cancelled."""
        while True:
            with anyio.move_on_after(self._ack_wait_s * PROGRESS_SHARE):
                await self._paced.wait()
            self._paced = anyio.Event()
            self._signal()
