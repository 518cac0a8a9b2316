"""What a team was handed of one subscription, until the test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.inbound import Admitted


class Box:
    """Events that no `expect` has taken, in the order in which they came."""

    def __init__(self) -> None:
        self.events: list[Admitted] = []
        self._came = anyio.Event()

    def put(self, event: Admitted) -> None:
        """It came."""
        self.events.append(event)
        self._came.set()
        self._came = anyio.Event()

    def has(self, fits: Callable[[Admitted], bool], count: int) -> bool:
        """Whether there are *count* that fit."""
        return sum(map(fits, self.events)) >= count

    async def holds(self, fits: Callable[[Admitted], bool], count: int) -> bool:
        """The same, once it is so."""
        while not self.has(fits, count):
            await self._came.wait()
        return True

    def take(self, fits: Callable[[Admitted], bool], count: int) -> list[Admitted]:
        """The first *count* that fit; none is taken where there are fewer."""
        found = [event for event in self.events if fits(event)][:count]
        if len(found) == count:
            for event in found:
                self.events.remove(event)
        return found
