"""Waiting for room: in the order of arrival, and nobody is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from mesh.jetstream.room import Room

pytestmark = pytest.mark.anyio


class Window:
    """A room with a number of free places."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.room = Room(lambda n: self.free >= n)

    async def taker(self, n: int, order: list[int]) -> None:
        """Wait, take, note it."""
        await self.room.wait(n)
        self.free -= n
        order.append(n)


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_small_wish_does_not_overtake_a_large_one() -> None:
    """Those who wait are served in their order, so a large batch is not starved by small ones."""
    window, order = Window(1), list[int]()
    tasks = [asyncio.create_task(window.taker(n, order)) for n in (3, 1)]
    await _settle()
    assert order == []
    window.free = 3
    window.room.admit()
    await _settle()
    assert order == [3]
    window.free = 1
    window.room.admit()
    await asyncio.gather(*tasks)
    assert order == [3, 1]


async def test_who_gives_up_holds_up_nobody() -> None:
    """A cancelled waiter at the front lets the next one through."""
    window, order = Window(1), list[int]()
    large = asyncio.create_task(window.taker(3, order))
    small = asyncio.create_task(window.taker(1, order))
    await _settle()
    large.cancel()
    await small
    assert order == [1]
