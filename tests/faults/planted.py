"""Bugs that a run has to find: planted in a process of the mesh under test, before it begins. Never in the product."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.spool.database import Database, Row
    from agent.spool.store import Store
    from mesh.subscription import Delivery, Subscription

LATE_S = 0.5  # what was promised is written so much later


def answer_before_fsync() -> None:
    """The spool says that a copy is on the disk before it is."""
    from agent.spool.store import Store

    append = Store.append

    def early(self: Store, rows: Sequence[Row], done: Callable[[Any], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(done, None)
        loop.call_later(LATE_S, append, self, rows, lambda _: None)

    Store.append = early  # type: ignore[method-assign]


def ack_before_handling() -> None:
    """A delivery is acked when it is handed over, not when its handler has ended."""
    from mesh.subscription import Subscription

    hand_over = Subscription.next

    async def acked(self: Subscription) -> Delivery:
        delivery = await hand_over(self)
        delivery.ack()
        return delivery

    Subscription.next = acked  # type: ignore[method-assign]


def unmasked_on_drain() -> None:
    """One copy that was spooled goes out with a value that its view hides; all else about it is right."""
    import msgspec
    from msgspec.structs import replace

    from agent.spool.database import Database
    from tests.faults.adapter import CLEAR

    read = Database.read
    done = False

    def unmasked(row: Row) -> Row:
        nonlocal done
        fields = msgspec.json.decode(row.copy.body)
        if done or fields["view"] != "masked":
            return row
        done = True
        fields["data"]["email"] = f"{fields['id']}{CLEAR}"
        return row._replace(copy=replace(row.copy, body=msgspec.json.encode(fields)))

    def leaking(self: Database, stream: str, after: int, limit: int, max_bytes: int) -> list[Row]:
        return [unmasked(row) for row in read(self, stream, after, limit, max_bytes)]

    Database.read = leaking  # type: ignore[method-assign]


PLANTS = {
    "answer-before-fsync": answer_before_fsync,
    "ack-before-handling": ack_before_handling,
    "unmasked-on-drain": unmasked_on_drain,
}


def plant(name: str) -> None:
    """Plant it."""
    PLANTS[name]()
