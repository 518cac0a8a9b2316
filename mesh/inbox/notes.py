"""What a note in an inbox says, alike in every database. Nothing here touches one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.inbound import Admitted

TABLE = "mesh_inbox"
KEY = "consumer, tenant, source, id, run"
DAY_S = 86_400.0
KEEP_S = 45 * DAY_S  # an event may come again for 7 days from its stream, and for 30 more as a redriven dead letter
PRUNE_EVERY = 500  # events between two looks for notes that are too old
PRUNE_ROWS = 1000  # of those, forgotten at a time: twice as many as came, so an inbox shrinks to its age

Key = tuple[str, str, str, str, str]


def key(consumer: str, event: Admitted) -> Key:
    """What makes a handling of *event* the same as another.

    A replay is a space of its own: each event is handled once in each run, whatever was handled before. A redriven dead
    letter is not: where its effects were committed after all, they stay the only ones.
    """
    return consumer, str(event.fields.get("tenant", "")), event.source, event.id, event.replay


def created(text: str, number: str) -> tuple[str, str]:
    """The statements that make the table and its index, where they are missing.

    Args:
        text: The database's type for text.
        number: Its type for milliseconds.
    """
    names = KEY.split(", ")
    columns = ", ".join(f"{name} {text} NOT NULL" for name in names)
    return (
        f"CREATE TABLE IF NOT EXISTS {TABLE} ({columns}, at_ms {number} NOT NULL, PRIMARY KEY ({KEY}))",
        f"CREATE INDEX IF NOT EXISTS {TABLE}_at ON {TABLE} (at_ms)",
    )
