"""How `mesh dlq redrive` sends letters back, page by page at a rate, and sees what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from mesh.cli.dlq_pages import BATCH, pages

if TYPE_CHECKING:
    from mesh.cli.operator import OperatorConnection

LOOK_S = 0.5  # between two looks at what became of a run


@dataclass
class Sending:
    """What a redrive has done so far: the letters sent, those refused, and the last that is looked at."""

    sent: list[int] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    last: int = 0


async def send(connection: OperatorConnection, body: dict[str, Any], rate: float, sending: Sending) -> None:
    """Send letters back, and note page by page what was done: after an error it stands in *sending*.

    Args:
        connection: The operator's.
        body: What the door is asked.
        rate: At most so many letters a second.
        sending: Takes what is done.

    Raises:
        MeshError: See `ask`.
    """
    began = anyio.current_time()
    async for page in pages(connection, "redrive", {**body, "limit": max(1, min(BATCH, int(rate)))}):
        sending.sent += page["sent"]
        sending.refused += page["refused"]
        sending.last = page["last"]
        if page["next"] and not body["dry_run"]:
            await anyio.sleep(max(0.0, began + len(sending.sent) / rate - anyio.current_time()))


async def outcome_of(connection: OperatorConnection, run: str, sending: Sending, within_s: float) -> dict[str, int]:
    """What became of *run* within so many seconds: how many were handled, are back as other letters, or wait still.

    Raises:
        MeshError: See `ask`.
    """
    waiting = sending.sent
    with anyio.move_on_after(within_s):
        while waiting:
            there = set()
            for first in range(0, len(waiting), BATCH):
                chosen = {"letters": waiting[first : first + BATCH]}
                async for page in pages(connection, "list", {"chosen": chosen}):
                    there |= {row["letter"] for row in page["letters"] if row["run"]}
            waiting = [number for number in waiting if number in there]
            if waiting:
                await anyio.sleep(LOOK_S)
    back = 0
    async for page in pages(connection, "list", {"chosen": {"run": run}, "after": sending.last}):
        back += len(page["letters"])
    return {"handled": len(sending.sent) - len(waiting) - back, "back": back, "waiting": len(waiting)}
