"""The document of the health door: probes and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agent.openapi.frame import JSON, LISTENER, answer, component, frame, loopback, refusals

if TYPE_CHECKING:
    from agent.settings import AgentSettings

PORT: Final = 8482
PROMETHEUS: Final = "text/plain"

_COUNT: Final = {"type": "integer", "minimum": 0}
_NAMES: Final = {"type": "array", "items": {"type": "string"}}
_STATE: Final = {
    "type": "object",
    "description": "Facts for people who look at a probe; no data of any event.",
    "required": ["ok", "because"],
    "properties": {
        "ok": {"type": "boolean"},
        "because": _NAMES | {"description": "Stable codes; empty where it is ok."},
        "nats_connected": {"type": "boolean"},
        "nats_refused": {"type": ["string", "null"], "description": "Why NATS will not have the agent."},
        "bundle_revision": _COUNT | {"description": "Of the policies in force; 0 before the first."},
        "bundle_digest": {"type": "string"},
        "bundle_refused": {"type": ["object", "null"], "description": "The last bundle that was not taken."},
        "identity": {"type": "object", "description": "The key in use, and how long its certificate holds."},
        "spool": {"type": ["object", "null"], "description": "What waits on disk; null without one."},
        "waiting_events": _COUNT | {"description": "Accepted and not acknowledged."},
        "domains_lacking": _NAMES | {"description": "Pseudonym domains without a key here."},
        "ciphers_lacking": _NAMES | {"description": "Cipher keys that are not here."},
        "draining": {"type": "boolean"},
        "pulling": {"type": "boolean", "description": "False once stop_pull.py was run: no more events are taken."},
        "consuming": {
            "type": "object",
            "description": "The team's connection; there once something was consumed here.",
            "required": ["nats_connected", "nats_refused", "bundle_revision", "subscriptions"],
            "properties": {
                "nats_connected": {"type": "boolean"},
                "nats_refused": {"type": ["string", "null"], "description": "Why NATS will not have the team."},
                "bundle_revision": _COUNT | {"description": "Of the team's policies in force; 0 before the first."},
                "subscriptions": {
                    "type": "object",
                    "description": "The state of each that runs here: `running`, or why it pauses.",
                    "additionalProperties": {"type": "string"},
                },
            },
        },
        "push": {
            "type": "object",
            "description": "Each target by its subscription; there where agent.toml has a [push] table.",
            "additionalProperties": {
                "type": "object",
                "required": ["target", "state", "because", "in_flight"],
                "properties": {
                    "target": {"type": "string", "description": "Host and port."},
                    "state": {"type": "string", "description": "`running`, or why it is not pushed."},
                    "because": {"type": "string", "description": "What went wrong last; empty where nothing did."},
                    "in_flight": _COUNT | {"description": "Requests under way."},
                },
            },
        },
        "pull": {
            "type": "object",
            "description": "The open leases of each subscription that was pulled; there where the agent reads.",
            "additionalProperties": _COUNT,
        },
    },
}


def document(settings: AgentSettings) -> dict[str, Any]:
    """The document."""
    started = "Whether every door is open, so that the application may start. It asks for no mesh."
    alive = "Whether the process should be restarted; it stays 200 while the agent drains."
    ready = "Whether the application's door takes events now."
    return frame(
        title="Mesh agent: health",
        summary="Probes and metrics.",
        description="A port without data, for the kubelet and for Prometheus. HEAD is taken as well as GET.",
        servers=[loopback(settings.health_port, PORT, host=settings.health_host)],
        paths={
            "/startupz": {"get": _probe("startupz", "Started?", started)},
            "/livez": {"get": _probe("livez", "Alive?", alive)},
            "/readyz": {"get": _probe("readyz", "Ready?", ready)},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _describe()},
        },
        schemas={"State": _STATE},
    )


def _probe(name: str, summary: str, description: str) -> dict[str, Any]:
    refused = refusals(*LISTENER)
    away = refused["503"]
    away["description"] = f"No; `because` says why. Or:\n{away['description']}"
    away["headers"] = {field: {**said, "required": False} for field, said in away["headers"].items()}
    away["content"] = {JSON: {"schema": component("State")}, **away["content"]}
    return {
        "operationId": name,
        "summary": summary,
        "description": description,
        "responses": {"200": answer("Yes.", {JSON: component("State")}), **refused},
    }


def _metrics() -> dict[str, Any]:
    return {
        "operationId": "metrics",
        "summary": "Every metric, in the Prometheus text format.",
        "responses": {"200": answer("The agent's README lists them.", {PROMETHEUS: {"type": "string"}})}
        | refusals(*LISTENER),
    }


def _describe() -> dict[str, Any]:
    return {
        "operationId": "describe",
        "summary": "This document.",
        "responses": {"200": answer("OpenAPI 3.1.", {JSON: {"type": "object"}}), **refusals(*LISTENER)},
    }
