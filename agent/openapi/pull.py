"""The subscriptions of the application's team, over HTTP: fetch events under a lease, then say what became of each.

An event that was fetched is leased: nobody else is handed it until the lease ends. `ack` ends it for good, `retry`
hands it back for a later attempt, `reject` makes it a dead letter, `extend` gives it more time. A lease that ends by
itself is an attempt that failed. Leases live in the agent's memory: after a restart events come again, under new ones.
"""

from __future__ import annotations

from typing import Any, Final

from agent.openapi import events
from agent.openapi.frame import DOOR, JSON, answer, component, refusals
from mesh.errors import (
    Disconnected,
    Draining,
    InputError,
    NoBundle,
    NotFound,
    NotJson,
    Overloaded,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)

BASE: Final = "/v1/subscriptions/{subscription}"
SSE: Final = "text/event-stream"
MAX_EVENTS: Final = 1000  # in one answer, and leases in one request
MAX_REASON_CHARS: Final = 1000

_AWAY: Final = (Draining, Disconnected, NoBundle, Overloaded, Unavailable)
_ANY: Final = (*DOOR, Unauthorized, NotFound, InputError, *_AWAY)
_ANSWERS: Final = (*_ANY, NotJson, TooLarge, UnsupportedMediaType)
_SECURITY: Final[list[dict[str, list[str]]]] = [{"token": []}]
_SECONDS: Final = {"type": "number", "minimum": 0}
_COUNT: Final = {"type": "integer", "minimum": 0}

# What an application says of events it fetched: verb, summary, what else the body may hold.
_VERBS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "ack": ("Handled: they never come again.", {}),
    "retry": (
        "Not handled: hand them back, for another attempt.",
        {"delay_s": _SECONDS | {"description": "Not before so many seconds; else by the subscription's backoff."}},
    ),
    "reject": (
        "Cannot be handled: make dead letters of them.",
        {"reason": {"type": "string", "maxLength": MAX_REASON_CHARS, "description": "Stands in the letter."}},
    ),
    "extend": (
        "Still at it: give the leases more time.",
        {"lease_s": _SECONDS | {"description": "From now; else as long as it was given at first."}},
    ),
}


def paths() -> dict[str, Any]:
    """The paths of the pull door."""
    name = {
        "name": "subscription",
        "in": "path",
        "required": True,
        "description": "One of the team's, without the team's name.",
        "schema": {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 40},
    }
    fetch = {"parameters": [name], "get": _fetch()}
    return {f"{BASE}/events": fetch} | {
        f"{BASE}/{verb}": {"parameters": [name], "post": _settle(verb)} for verb in _VERBS
    }


def schemas() -> dict[str, Any]:
    """The schemas that the paths refer to."""
    return {
        "Delivered": events.delivered(),
        "Leased": {
            "type": "object",
            "required": ["lease", "attempt", "expires_s", "event"],
            "properties": {
                "lease": {"type": "string", "description": "Opaque; what `ack` and the others name."},
                "attempt": {"type": "integer", "minimum": 1, "description": "1 the first time it is handed out."},
                "expires_s": _SECONDS | {"description": "Seconds from now until the lease ends."},
                "event": component("Delivered"),
            },
        },
        "Fetched": {
            "type": "object",
            "required": ["events"],
            "properties": {"events": {"type": "array", "items": component("Leased"), "maxItems": MAX_EVENTS}},
        },
        "Settled": {
            "type": "object",
            "description": "For each lease of the request what became of it.",
            "required": ["results"],
            "properties": {
                "results": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["lease", "ok"],
                        "properties": {
                            "lease": {"type": "string"},
                            "ok": {"type": "boolean"},
                            "code": {"type": "string", "description": "Why not, stable; absent where it is ok."},
                        },
                    },
                }
            },
        },
    }


def _fetch() -> dict[str, Any]:
    return {
        "operationId": "fetch",
        "summary": "The next events of a subscription, each under a lease.",
        "description": (
            "Waits up to `wait_s` for the first event, and answers with those that are there; an empty list is no "
            "error. With `Accept: text/event-stream` the answer goes on: a server-sent event each, its lease as `id:`."
        ),
        "security": _SECURITY,
        "parameters": [
            _query("max", "Events in one answer at most.", {"type": "integer", "minimum": 1, "maximum": MAX_EVENTS}),
            _query("wait_s", "How long to wait for the first event, in seconds.", _SECONDS),
            _query("lease_s", "How long each event is leased, in seconds; else the subscription's ack_wait.", _SECONDS),
            _query("ack", "With server-sent events: `auto` acks what was written to the socket.", {"enum": ["auto"]}),
        ],
        "responses": {
            "200": answer("Those that are there.", {JSON: component("Fetched"), SSE: {"type": "string"}}),
            **refusals(*_ANY),
        },
    }


def _settle(verb: str) -> dict[str, Any]:
    summary, more = _VERBS[verb]
    leases = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_EVENTS}
    body = {"type": "object", "required": ["leases"], "properties": {"leases": leases, **more}}
    return {
        "operationId": verb,
        "summary": summary,
        "security": _SECURITY,
        "requestBody": {"required": True, "content": {JSON: {"schema": body}}},
        "responses": {"200": answer("One result a lease.", {JSON: component("Settled")}), **refusals(*_ANSWERS)},
    }


def _query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}
