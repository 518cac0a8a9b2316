"""What plain NATS clients could still pull of a backlog after a change that shows a team less.

The copies in the streams stay as they were made. Agents and the library show them as the policies of now have it; a
plain client with a team's credentials is handed what its durable holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.errors import RequestFailed
from mesh.jetstream.durables import durables
from mesh.jetstream.manage import consumer_info
from mesh.subjects import Pattern

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.jetstream.connection import Connection
    from mesh.policy.compile import Plans
    from mesh.policy.diff import Diff
    from mesh.policy.grants import SubscriptionGrant


@dataclass(frozen=True, slots=True)
class Backlog:
    """Copies in `stream` that wait for a subscription, among them all whose view, masks or rows were narrowed."""

    team: str
    subscription: str
    view: str
    stream: str
    waiting: int


async def narrowed_backlog(connection: Connection, old: Plans, diff: Diff, *, now_ms: int) -> list[Backlog]:
    """What waits in the durables of teams that *diff* narrows: at most so many copies are clearer than allowed now.

    Args:
        connection: With the control plane's credentials in the tenant's account.
        old: The policies that the durables were made for.
        diff: From *old* to what is to come.
        now_ms: Unix milliseconds, for rights that end.

    Raises:
        Unavailable: Nobody answered.
    """
    grants = old.grants(now_ms=now_ms)
    found = []
    for grant in grants.active:
        if not _meets(grant, diff):
            continue
        by_stream: dict[str, int] = {}
        for durable in durables(grants.site, grants.domains, grant):
            waiting = await _waiting(connection, durable.stream, durable.name)
            by_stream[durable.stream] = by_stream.get(durable.stream, 0) + waiting
        found += [Backlog(grant.team, grant.name, grant.view, stream, n) for stream, n in by_stream.items() if n]
    return found


def _meets(grant: SubscriptionGrant, diff: Diff) -> bool:
    """Whether the team sees less of some type that the durable delivers."""
    reading = (c for c in (*diff.changes, *diff.closed) if c.who == grant.team and c.reads and c.kind != "widened")
    return any(_intersect(change.types, grant.filters) for change in reading)


def _intersect(types: Iterable[str], filters: tuple[Pattern, ...]) -> bool:
    return any(Pattern.parse(text).intersects(pattern) for text in types for pattern in filters)


async def _waiting(connection: Connection, stream: str, durable: str) -> int:
    try:
        info = await consumer_info(connection, stream, durable)
    except RequestFailed:  # it was not made yet
        return 0
    return int(info["num_pending"]) + int(info["num_ack_pending"])
