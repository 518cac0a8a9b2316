"""For the tests of outboxes: an agent that does as it is told, and what both databases are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio

from mesh.client import PublishFailed
from mesh.errors import Unavailable

DEADLINE_S = 60
TYPE = "shop.order.placed.v1"


class StandIn:
    """Takes events as an agent does: `answers` may refuse one, or have it wait."""

    def __init__(self, answer: Callable[[Mapping[str, Any]], int] = lambda _: 202) -> None:
        self.answer = answer
        self.tried: list[str] = []
        self.taken: list[dict[str, Any]] = []

    @property
    def ids(self) -> list[str]:
        """Of what was taken, in its order."""
        return [fields["id"] for fields in self.taken]

    async def publish(self, fields: Mapping[str, Any]) -> None:
        """One event."""
        self.tried.append(fields["id"])
        await anyio.sleep(0)
        status = self.answer(fields)
        if status == 0:
            raise Unavailable("the agent cannot be reached")
        if status != 202:
            raise PublishFailed(
                status, {"code": "denied", "rule": "no-hr", "detail": "policy refuses", "retry_after_s": 0}
            )
        self.taken.append(dict(fields))

    async def until(self, count: int) -> None:
        """Wait until so many were taken."""
        with anyio.fail_after(DEADLINE_S):
            while len(self.taken) < count:
                await anyio.sleep(0.005)

    async def tries(self, count: int) -> None:
        """Wait until it was asked so often."""
        with anyio.fail_after(DEADLINE_S):
            while len(self.tried) < count:
                await anyio.sleep(0.005)
