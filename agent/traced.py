"""Traces of the events that an agent takes: that of their request, or of whoever calls, or a `publish` span's."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mesh import spans
from mesh.event import encode
from mesh.tracing import TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AsyncExitStack

    from agent.core import Agent
    from agent.receipts import Receipt
    from agent.settings import AgentSettings
    from mesh.event import Draft
    from mesh.spans import Tracer


async def begin(stack: AsyncExitStack, settings: AgentSettings) -> None:
    """Take part in traces until *stack* closes, where the environment or the application asks for it."""
    who = {"mesh.tenant": settings.tenant, "mesh.team": settings.team, "mesh.agent": settings.name}
    server = urlsplit(settings.nats_url.partition(",")[0])
    common = {"server.address": server.hostname or "", "messaging.client.id": settings.name}
    await spans.begin(stack, "mesh-agent", who, {**common, "server.port": server.port or 4222})


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
    with tracer.publish([draft.fields for draft in drafts], request) as span:
        adopt(drafts, span.context, limit)
        receipts = await agent.publish_drafts(drafts)
        span.stored({copy.stream for receipt in receipts for copy in receipt.copies})
    return receipts
