"""For promises about what happens, or not, within seconds: a machine that stood still meanwhile proves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from mesh.errors import Unavailable
from mesh.jetstream.connection import Connection

_LOOK_S = 0.02
_ANSWER_S = 60.0


class Stalls:
    """How long the server at most kept us waiting, or this machine us."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    @asynccontextmanager
    async def watched(self, connection: Connection) -> AsyncIterator[None]:
        """Look for the length of the block."""
        watching = asyncio.create_task(self._watch(connection))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _watch(self, connection: Connection) -> None:
        now = asyncio.get_running_loop().time
        last = now()
        try:
            while True:
                with suppress(Unavailable):
                    await connection.flush(_ANSWER_S)
                self.longest_s, last = max(self.longest_s, now() - last), now()
                await asyncio.sleep(_LOOK_S)
        finally:
            self.longest_s = max(self.longest_s, now() - last)


async def undisturbed(limit_s: float, scenario: Callable[[Stalls], Awaitable[None]]) -> None:
    """Run *scenario*; again where it failed and what it watched had stood still for *limit_s*, which explains that.

    Args:
        limit_s: Less than what is promised can take.
        scenario: Begins anew each time, and watches the connection to the server that it is about.
    """
    while True:
        stalls = Stalls()
        try:
            await scenario(stalls)
        except Exception:
            if stalls.longest_s < limit_s:
                raise
        else:
            return
