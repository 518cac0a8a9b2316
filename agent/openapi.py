"""The OpenAPI 3.1 document of the application's door, with every problem it can answer. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.problems import CONTENT_TYPE as PROBLEM
from mesh import __version__
from mesh.event import BATCH_CONTENT_TYPE, CONTENT_TYPE

if TYPE_CHECKING:
    from agent.settings import AgentSettings

_ID = r"^[A-Za-z0-9._:/+=~-]{1,256}$"
_TYPE = r"^[a-z0-9_-]{1,64}(\.[a-z0-9_-]{1,64}){1,7}$"
_EXAMPLE = {
    "specversion": "1.0",
    "id": "c-4711-17",
    "source": "/crm",
    "type": "crm.contact.updated.v1",
    "data": {"contact": {"id": "c-4711", "email": "ada@example.org"}, "country": "DE"},
}
# status -> what it means at this door; the codes are in the document's `code`
_REFUSALS = {
    400: "The event or the request is malformed; `code` and `expected` say how. Of a batch, `index` says which event.",
    401: "The bearer token is missing or wrong.",
    403: "Policy refuses it (`rule`, `reason`), or a browser sent it.",
    408: "The header or the body did not arrive in time.",
    413: "The body, the event or the batch is over its limit (`limit`, `size`).",
    415: "Not one of the three CloudEvents modes, another charset than UTF-8, or a compressed body.",
    421: "The Host is not one of this door's names.",
    422: "The event is past its `expirytime`. Of a batch, `index` says which.",
    429: "A source sends faster than it may. Send the same again after Retry-After.",
    431: "Too many header fields, or too long ones.",
    503: "Not durable now: draining, overloaded, no bundle yet, or not acknowledged. Send the same again.",
}
_PATH_REFUSALS = {404: "Nothing is at this path.", 405: "Another method is expected; see Allow."}


def document(settings: AgentSettings) -> dict[str, Any]:
    """The document, with the limits of *settings* in it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mesh agent",
            "version": __version__,
            "summary": "Publish CloudEvents to the mesh; 202 means that every copy is durable.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": {"/v1/events": {"post": _publish(settings)}, "/openapi.json": {"get": _describe()}},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(settings),
            "responses": {f"Problem{status}": _problem(text) for status, text in (_REFUSALS | _PATH_REFUSALS).items()},
        },
    }


def _publish(settings: AgentSettings) -> dict[str, Any]:
    accepted = {
        "description": (
            "Durable: every copy is acknowledged by its stream, or synced to the agent's spool, which sends it as soon "
            "as that can be. Repeating an id stores nothing new."
        ),
        "content": {
            "application/json": {
                "schema": {"oneOf": [{"$ref": "#/components/schemas/Receipt"}, {"$ref": "#/components/schemas/Batch"}]}
            }
        },
    }
    return {
        "operationId": "publish",
        "summary": "Publish one event, or a batch that is refused whole or accepted whole.",
        "description": (
            "Structured and batched mode as below. Binary mode: attributes as `ce-` fields, percent-encoded, and "
            "the data as the body under its own content type."
        ),
        "requestBody": {
            "required": True,
            "content": {
                CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Event"}, "example": _EXAMPLE},
                BATCH_CONTENT_TYPE: {
                    "schema": {
                        "type": "array",
                        "maxItems": settings.max_batch_events,
                        "items": {"$ref": "#/components/schemas/Event"},
                    },
                    "example": [_EXAMPLE],
                },
            },
        },
        "responses": {"202": accepted, **_refusals(_REFUSALS), **_refusals(_PATH_REFUSALS)},
    }


def _describe() -> dict[str, Any]:
    statuses = {status: _REFUSALS[status] for status in (400, 403, 421, 431, 503)}
    return {
        "operationId": "describe",
        "summary": "This document.",
        "security": [],
        "responses": {
            "200": {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}},
            **_refusals(statuses),
            **_refusals(_PATH_REFUSALS),
        },
    }


def _refusals(texts: dict[int, str]) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in texts}


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def _schemas(settings: AgentSettings) -> dict[str, Any]:
    text = {"type": "string"}
    count = {"type": "integer", "minimum": 0}
    return {
        "Event": {
            "type": "object",
            "description": f"CloudEvents 1.0; at most {settings.max_event_bytes} bytes, {settings.max_depth} levels.",
            "required": ["specversion", "id", "source", "type"],
            "properties": {
                "specversion": {"const": "1.0"},
                "id": {"type": "string", "pattern": _ID},
                "source": {"type": "string", "minLength": 1, "maxLength": 256, "format": "uri-reference"},
                "type": {"type": "string", "pattern": _TYPE},
                "time": {"type": "string", "format": "date-time"},
                "subject": {"type": "string", "minLength": 1, "maxLength": 1024},
                "datacontenttype": text,
                "partitionkey": {"type": "string", "minLength": 1, "maxLength": 1024},
                "data": {},
                "data_base64": {"type": "string", "contentEncoding": "base64"},
            },
        },
        "Receipt": {
            "type": "object",
            "required": ["id", "durable", "duplicate", "copies"],
            "properties": {
                "id": text,
                "durable": {"enum": ["stream", "spool"]},
                "duplicate": {"type": "boolean", "description": "Every copy was stored already."},
                "copies": {"type": "array", "items": {"$ref": "#/components/schemas/Copy"}},
            },
        },
        "Copy": {
            "type": "object",
            "required": ["view", "stream", "seq"],
            "properties": {
                "view": text,
                "stream": text,
                "seq": count | {"description": "In its stream; 0 while the copy rests in the spool."},
            },
        },
        "Batch": {
            "type": "object",
            "required": ["accepted", "events"],
            "properties": {
                "accepted": count,
                "events": {"type": "array", "items": {"$ref": "#/components/schemas/Receipt"}},
            },
        },
        "Problem": {
            "type": "object",
            "description": "RFC 9457.",
            "required": ["type", "title", "status", "code", "instance"],
            "properties": {
                "type": text,
                "title": text,
                "status": {"type": "integer"},
                "code": {"type": "string", "description": "Stable; what a program looks at."},
                "detail": text,
                "expected": text,
                "got": text,
                "next": {"type": "string", "description": "What to do about it."},
                "rule": {"type": ["string", "null"], "description": "The policy rule that decided."},
                "reason": text,
                "instance": {"type": "string", "description": "Names this occurrence; the agent's log has it too."},
                "index": count,
                "accepted": count,
                "failed": {"type": "array", "items": count},
                "limit": count,
                "size": count,
            },
        },
    }
