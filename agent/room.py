"""Bounds on what an agent holds: a room with a limit, and a line of those who wait for some of it."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from mesh.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Room:
    """A bounded amount of something. Who finds too little waits in line, for a bounded time.

    Args:
        limit: All there is.
        wait_s: Seconds in line before `Overloaded`.
        unit: For the error: what is counted.
    """

    def __init__(self, limit: int, *, wait_s: float, unit: str) -> None:
        self._limit = limit
        self._wait_s = wait_s
        self._unit = unit
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.used = 0

    @property
    def free(self) -> int:
        """What is left; none while somebody waits."""
        return 0 if self._line else self._limit - self.used

    async def enter(self, amount: int) -> None:
        """Take *amount*, after those who came before.

        Raises:
            Overloaded: There was not enough in time.
        """
        if not self._line and self.used + amount <= self._limit:
            self.used += amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (amount, turn)
        self._line.append(entry)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.leave(amount)  # our turn came in the same moment
            else:
                self._line.remove(entry)
                self._admit()
            if not isinstance(error, TimeoutError):
                raise
            raise Overloaded(
                f"the agent holds {self.used} {self._unit} that are not acknowledged yet, limit {self._limit}",
                expected=f"room for {amount} {self._unit}",
                got=f"{self._limit - self.used} {self._unit} free",
                next="slow down and send the same again",
            ) from None

    def leave(self, amount: int) -> None:
        """Give *amount* back."""
        self.used -= amount
        self._admit()

    def held(self, amount: int) -> Held:
        """*amount* for the length of an `async with`. Raises Overloaded at its start, as `enter`."""
        return Held(self, amount)

    @asynccontextmanager
    async def tab(self) -> AsyncIterator[Tab]:
        """A tab that takes more and more, and gives it all back at the end."""
        opened = Tab(self)
        try:
            yield opened
        finally:
            self.leave(opened.amount)

    def _admit(self) -> None:
        while self._line and self.used + self._line[0][0] <= self._limit:
            amount, turn = self._line.popleft()
            if not turn.done():
                self.used += amount
                turn.set_result(None)


class Held:
    """What one request has of a room from beginning to end; a class, since every request has one."""

    __slots__ = ("_amount", "_room")

    def __init__(self, room: Room, amount: int) -> None:
        self._room = room
        self._amount = amount

    async def __aenter__(self) -> None:
        await self._room.enter(self._amount)

    async def __aexit__(self, *_: object) -> None:
        self._room.leave(self._amount)


class Tab:
    """What one request has taken of a room so far."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.amount = 0

    async def add(self, amount: int) -> None:
        """Take *amount* more.

        Raises:
            Overloaded: There was not enough in time.
        """
        await self._room.enter(amount)
        self.amount += amount
