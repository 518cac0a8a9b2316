"""The trace of events at a door: that of their request, or a `publish` span's where the mesh takes part in traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.event import encode
from mesh.tracing import TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.core import Agent
    from agent.receipts import Receipt
    from mesh.event import Draft
    from mesh.spans import Tracer


def adopt(drafts: Sequence[Draft], trace: Mapping[str, str], limit: int) -> None:
    """Give the events that name no trace this one, if there is one; an event that has no room for it goes without.

    Args:
        drafts: Of one request.
        trace: As attributes; empty for none.
        limit: Bytes of an event.
    """
    if not trace:
        return
    for draft in drafts:
        if TRACEPARENT not in draft.fields and len(encode(draft.fields | dict(trace))) <= limit:
            draft.fields.update(trace)


async def publish(agent: Agent, drafts: Sequence[Draft], request: Mapping[str, str], tracer: Tracer) -> list[Receipt]:
    """Publish *drafts* in a span, where their trace is recorded. An event that names its trace keeps it.

    Args:
        agent: Publishes.
        drafts: Of one request.
        request: The trace of that; empty for none.
        tracer: Of this process.

    Raises:
        MeshError: As `Agent.publish_drafts`; its code is the span's `error.type`.
    """
    limit = agent.limits.max_event_bytes
    own = drafts[0].fields.get(TRACEPARENT) if drafts else None
    if not drafts or not tracer.samples(request.get(TRACEPARENT) or own):
        adopt(drafts, request, limit)
        return await agent.publish_drafts(drafts)
    with tracer.publish([draft.fields for draft in drafts], request) as context:
        adopt(drafts, context, limit)
        return await agent.publish_drafts(drafts)
