"""What happened to an item since it was last seen, and the event that says so. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from agent.adapter.page import Item
from mesh.event import rfc3339

Change = Literal["created", "updated", "deleted"]


def change(known: bytes | None, digest: bytes | None) -> Change | None:
    """What happened; None where nothing did.

    Args:
        known: The digest of the item when it was last seen; None where it was not there.
        digest: Its digest now; None where it is gone.
    """
    if digest is None:
        return None if known is None else "deleted"
    if known is None:
        return "created"
    return None if known == digest else "updated"


@dataclass(frozen=True, slots=True)
class Words:
    """How an adapter tells of its items.

    Attributes:
        source: Of every event: a URI reference below `/<team>`, or what the policy adds.
        type: Of every event; `{change}` in it becomes `created`, `updated` or `deleted`.
        gone: The data of a deleted item, from its key.
    """

    source: str
    type: str
    gone: Callable[[str], Any]

    def told(self, item: Item) -> tuple[Any, ...]:
        """What an event about *item* is about: with another one of these it is another event."""
        return item.key, item.type or self.type, item.subject, item.data

    def event(self, what: Change, item: Item, *, id: str, now_ms: int) -> dict[str, Any]:
        """The event.

        Args:
            what: Happened.
            item: To whom. Of a deleted one the key and subject are enough.
            id: Unique; the caller keeps it, so that the event has it however often it is published.
            now_ms: Unix milliseconds; its time, where the item names none.
        """
        data = self.gone(item.key) if what == "deleted" and item.data is None else item.data
        fields = {
            "specversion": "1.0",
            "id": id,
            "source": self.source,
            "type": (item.type or self.type).replace("{change}", what),
            "subject": item.subject,
            "time": item.time or rfc3339(now_ms),
            "partitionkey": item.key,
            "data": data,
        }
        return {name: value for name, value in fields.items() if value is not None}
