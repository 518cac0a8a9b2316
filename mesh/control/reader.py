"""Stored events as the operator reads them: through a temporary consumer that vanishes, so no subscription notices.

Only the control plane's credentials can make a consumer. Whoever asks says whose view is meant: nobody looks without
one.
"""

from __future__ import annotations

import math
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from mesh.jetstream.manage import api
from mesh.jetstream.puller import Puller
from mesh.policy.grants import outermost
from mesh.subjects import Pattern, physical_pattern

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from anyio.streams.memory import MemoryObjectReceiveStream

    from mesh.jetstream.connection import Connection
    from mesh.policy.compile import Plans
    from mesh.signing import Received

IDLE_NS = 30_000_000_000  # the server removes the consumer this long after the last pull
ACK_WAIT_NS = 30_000_000_000
IN_FLIGHT = 500


def view_filters(plans: Plans, team: str, pattern: Pattern, *, now_ms: int) -> dict[str, list[str]]:
    """What *team* may look at within *pattern*: subject filters by stream, in the view of each of its grants."""
    grants = plans.grants(now_ms=now_ms)
    found: dict[str, list[str]] = {}
    for domain in grants.domains:
        reach = pattern.intersection(Pattern.parse(f"{domain}.>"))
        if reach is None:
            continue
        by_view: dict[str, list[Pattern]] = {}
        for grant in grants.teams.get(team, ()):
            seen = grant.pattern.intersection(reach)
            if seen is not None:
                by_view.setdefault(grant.view, []).append(seen)
        filters = [physical_pattern(grants.site, v, p) for v, patterns in by_view.items() for p in outermost(patterns)]
        if filters:
            found[grants.streams[domain]] = filters
    return found


@asynccontextmanager
async def reading(
    connection: Connection, filters: dict[str, list[str]], *, new_only: bool
) -> AsyncIterator[tuple[int, MemoryObjectReceiveStream[Received]]]:
    """Read events that match *filters* by stream.

    Args:
        connection: With the control plane's credentials in the tenant's account.
        filters: Stream -> subject filters, none contained in another.
        new_only: Begin with what is stored from now on, else with the oldest.

    Yields:
        How many are stored now, and a stream of them in the order of each stream; it goes on with new ones for ever.
    """
    send, receive = anyio.create_memory_object_stream["Received"](math.inf)
    stored = 0
    pullers = []
    for stream, subjects in filters.items():
        name = f"read-{secrets.token_hex(8)}"
        info = await api(
            connection, f"CONSUMER.CREATE.{stream}.{name}", _request(stream, name, subjects, new_only=new_only)
        )
        stored += info["num_pending"]
        pullers.append(_puller(connection, stream, name, send.send_nowait))
    async with anyio.create_task_group() as group:
        for puller in pullers:
            group.start_soon(puller.run)
        try:
            yield stored, receive
        finally:
            for puller in pullers:
                await puller.stop()
            group.cancel_scope.cancel()
            send.close()
            receive.close()


def _puller(connection: Connection, stream: str, name: str, deliver: Callable[[Received], None]) -> Puller:
    def take(received: Received) -> None:
        deliver(received)
        puller.ack(received)

    puller = Puller(connection, stream=stream, durable=name, on_event=take, max_in_flight=IN_FLIGHT)
    return puller


def _request(stream: str, name: str, subjects: Sequence[str], *, new_only: bool) -> dict[str, object]:
    config: dict[str, object] = {
        "name": name,
        "deliver_policy": "new" if new_only else "all",
        "ack_policy": "explicit",
        "ack_wait": ACK_WAIT_NS,
        "inactive_threshold": IDLE_NS,
        "mem_storage": True,
        "num_replicas": 1,
    }
    config.update({"filter_subject": subjects[0]} if len(subjects) == 1 else {"filter_subjects": list(subjects)})
    return {"stream_name": stream, "config": config, "action": "create"}
