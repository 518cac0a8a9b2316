"""The subscriptions of the application's team, over HTTP: fetch events under a lease, then say what became of each.

An event that was fetched is leased: nobody else is handed it until the lease ends. `ack` ends it for good, `retry`
hands it back for a later attempt, `reject` makes it a dead letter, `extend` gives it more time. A lease that ends by
itself is an attempt that failed. Leases live in the agent's memory: after a restart events come again, under new ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agent.openapi import events
from agent.openapi.frame import DOOR, JSON, answer, component, refusals
from agent.pull.asking import MAX_EVENTS, MAX_LEASE_CHARS, MIN_LEASE_S, USUAL_EVENTS, USUAL_WAIT_S
from mesh.delivery import MAX_REASON_CHARS
from mesh.errors import (
    Disconnected,
    Draining,
    InputError,
    LeaseGone,
    NoBundle,
    NotFound,
    NotJson,
    Overloaded,
    StreamUnavailable,
    SubscriptionPushed,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from mesh.retry import MAX_DELAY_S

if TYPE_CHECKING:
    from agent.settings import AgentSettings

BASE: Final = "/v1/subscriptions/{subscription}"
SSE: Final = "text/event-stream"

_AWAY: Final = (Draining, Disconnected, NoBundle, Overloaded, Unavailable)
_ANY: Final = (*DOOR, Unauthorized, NotFound, InputError, SubscriptionPushed, UnsupportedMediaType, *_AWAY)
_ANSWERS: Final = (*_ANY, NotJson, TooLarge, LeaseGone)
_SECURITY: Final[list[dict[str, list[str]]]] = [{"token": []}]
_SECONDS: Final = {"type": "number", "minimum": 0}


def _verbs(settings: AgentSettings) -> dict[str, tuple[str, dict[str, Any]]]:
    """What an application says of events it fetched: verb, summary, what else the body may hold."""
    delay = {"type": ["number", "null"], "minimum": 0, "maximum": MAX_DELAY_S}
    reason = {"type": "string", "maxLength": MAX_REASON_CHARS}
    return {
        "ack": (
            "Handled: they never come again. Written to the server, which is not asked to confirm it: at least once.",
            {},
        ),
        "retry": (
            "Not handled: hand them back. It counts as an attempt; after the last one an event is a dead letter.",
            {
                "delay_s": delay | {"description": "Not before so many seconds; else by the subscription's backoff."},
                "reason": reason | {"description": "For the history of its attempts."},
            },
        ),
        "reject": (
            "Cannot be handled: make dead letters of them. What is `ok` is stored.",
            {"reason": reason | {"description": "Stands in the letter, and in lists."}},
        ),
        "extend": (
            "Still at it: give the leases more time.",
            {"lease_s": _lease_s(settings, "number", "null") | {"description": "From now; else as it was given last."}},
        ),
    }


def _lease_s(settings: AgentSettings, *kinds: str) -> dict[str, Any]:
    kind = list(kinds) if len(kinds) > 1 else kinds[0]
    return {"type": kind, "minimum": MIN_LEASE_S, "maximum": settings.max_lease_s}


def paths(settings: AgentSettings) -> dict[str, Any]:
    """The paths of the pull door."""
    name = {
        "name": "subscription",
        "in": "path",
        "required": True,
        "description": "One of the team's, without the team's name.",
        "schema": {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 40},
    }
    fetch = {"parameters": [name], "get": _fetch(settings)}
    return {f"{BASE}/events": fetch} | {
        f"{BASE}/{verb}": {"parameters": [name], "post": _settle(verb, summary, more)}
        for verb, (summary, more) in _verbs(settings).items()
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
                "attempt": {"type": "integer", "minimum": 1, "description": "Deliveries so far, this one included."},
                "expires_s": _SECONDS | {"description": "Seconds from now until the lease ends."},
                "replayed": {"const": True, "description": "Somebody asked for a replay: it may have been handled."},
                "stale_trust": {"const": True, "description": "The news of revoked keys are older than is usual."},
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
                            "code": {
                                "enum": [LeaseGone.code, StreamUnavailable.code],
                                "description": "Why not. `lease-gone`: it ran out, or was settled; its event comes "
                                "again if it was not. `stream-unavailable`: not stored yet; the agent goes on trying.",
                            },
                            "expires_s": _SECONDS | {"description": "Where it was extended: seconds from now."},
                        },
                    },
                }
            },
        },
    }


def _fetch(settings: AgentSettings) -> dict[str, Any]:
    longest_s = settings.max_pull_wait_s
    wait = {"type": "number", "minimum": 0, "maximum": longest_s, "default": min(USUAL_WAIT_S, longest_s)}
    most = {"type": "integer", "minimum": 1, "maximum": MAX_EVENTS, "default": USUAL_EVENTS}
    return {
        "operationId": "fetch",
        "summary": "The next events of a subscription, each under a lease.",
        "description": (
            "Waits up to `wait_s` for the first event, and answers with those that are there; an empty list is no "
            "error. With `Accept: text/event-stream` the answer goes on: a server-sent event each, its lease as `id:`, "
            "`max` of them unsettled at once. A lease that runs out counts as a failed attempt."
        ),
        "security": _SECURITY,
        "parameters": [
            _query("max", "Events in one answer at most.", most),
            _query("wait_s", "How long to wait for the first event, in seconds.", wait),
            _query(
                "lease_s",
                "How long each event is leased, in seconds; else the subscription's ack_wait.",
                _lease_s(settings, "number"),
            ),
            _query("ack", "`auto`: acked once the answer is written.", {"enum": ["auto"]}),
        ],
        "responses": {
            "200": answer("Those that are there.", {JSON: component("Fetched"), SSE: {"type": "string"}}),
            **refusals(*_ANY),
        },
    }


def _settle(verb: str, summary: str, more: dict[str, Any]) -> dict[str, Any]:
    lease = {"type": "string", "maxLength": MAX_LEASE_CHARS}
    leases = {"type": "array", "items": lease, "minItems": 1, "maxItems": MAX_EVENTS}
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
