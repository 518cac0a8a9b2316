"""The document of the application's door: publish, pull, and the documents themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agent.openapi import events, pull
from agent.openapi.frame import DOOR, JSON, answer, component, frame, loopback, refusals
from mesh.errors import (
    BadAttribute,
    BadType,
    ClockWrong,
    Denied,
    Disconnected,
    Draining,
    EventExpired,
    NoBundle,
    NoDomainKey,
    NotEnrolled,
    NotJson,
    Overloaded,
    RateLimited,
    ReservedAttribute,
    SignerExpired,
    SpoolFull,
    StreamUnavailable,
    SubjectRefused,
    TooDeep,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from mesh.event import BATCH_CONTENT_TYPE, CONTENT_TYPE

if TYPE_CHECKING:
    from agent.settings import AgentSettings

PORT: Final = 8480  # where the settings leave it to the system
DESCRIPTIONS: Final = {
    "/openapi.json": "application",
    "/openapi/webhooks.json": "webhooks",
    "/openapi/health.json": "health",
}

# What taking an event can end in, whoever brings it.
EVENT: Final = (NotJson, TooDeep, TooLarge, BadAttribute, BadType, UnsupportedMediaType, EventExpired, Denied)
AWAY: Final = (
    Draining, Disconnected, NoBundle, ClockWrong, NotEnrolled, SignerExpired, Overloaded, NoDomainKey,
    StreamUnavailable, SubjectRefused, SpoolFull, Unavailable,
)  # fmt: skip
PUBLISHING: Final = (*EVENT, *AWAY, RateLimited)


def document(settings: AgentSettings) -> dict[str, Any]:
    """The document, with the limits of *settings* in it."""
    return frame(
        title="Mesh agent",
        summary="Publish CloudEvents to the mesh, and pull those your team may see.",
        description=(
            "The agent beside one application, on loopback. 202 means that every copy is durable. Every answer that is "
            "no success is a problem document: a program looks at its `code`, a person at `next`."
        ),
        servers=[_server(settings)],
        paths={
            "/v1/events": {"post": _publish(settings)},
            **pull.paths(settings),
            **{path: {"get": _describe(door)} for path, door in DESCRIPTIONS.items()},
        },
        schemas={
            "Event": events.accepted(settings),
            **events.receipts(),
            "Batch": events.batch_receipt(),
            **pull.schemas(),
        },
        security={
            "token": {"type": "http", "scheme": "bearer", "description": "The content of the agent's token file."}
        },
    )


def _server(settings: AgentSettings) -> dict[str, Any]:
    if settings.http_socket:
        return {"url": "http://localhost", "description": f"Over the Unix socket {settings.http_socket}."}
    return loopback(settings.http_port, PORT, host=settings.http_host)


def _publish(settings: AgentSettings) -> dict[str, Any]:
    batch = {"type": "array", "maxItems": settings.max_batch_events, "items": component("Event")}
    return {
        "operationId": "publish",
        "summary": "Publish one event, or a batch that is refused whole or accepted whole.",
        "description": (
            "Structured and batched mode as below. Binary mode: attributes as `ce-` fields, percent-encoded, and "
            "the data as the body under its own content type. Repeating an id stores nothing new, so a request that "
            f"failed with 503 or 429 is safe to repeat. A batch has at most {settings.max_batch_bytes} bytes."
        ),
        "security": [{"token": []}],
        "requestBody": {
            "required": True,
            "content": {
                CONTENT_TYPE: {"schema": component("Event"), "example": events.EXAMPLE},
                BATCH_CONTENT_TYPE: {"schema": batch, "example": [events.EXAMPLE]},
            },
        },
        "responses": {
            "202": answer(
                "Durable: every copy is acknowledged by its stream, or synced to the agent's spool, which sends it as "
                "soon as that can be.",
                {JSON: {"oneOf": [component("Receipt"), component("Batch")]}},
            ),
            **refusals(*DOOR, Unauthorized, ReservedAttribute, *PUBLISHING),
        },
    }


def _describe(door: str) -> dict[str, Any]:
    what = "This document." if door == "application" else f"The document of the {door} door."
    return {
        "operationId": f"describe-{door}",
        "summary": what,
        "security": [],
        "responses": {"200": answer("OpenAPI 3.1.", {JSON: {"type": "object"}}), **refusals(*DOOR)},
    }
