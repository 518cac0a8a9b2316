"""OpenAPI 3.1 for every door of the agent, one document a door: whoever reads one has that door in front of them. Pure.

    application.py   publish, pull, and these documents: for who writes the application
    pull.py          the subscriptions of the application's team, over HTTP
    webhooks.py      one path for each configured source: for who sets up a provider, or an ingress; providers.py
                     is what each of them sends
    health.py        probes and metrics: for who runs it
    events.py        the CloudEvent, as a door takes it and as it hands it out
    frame.py         what the documents have in common; above all every problem an operation can answer

All three are served by the application's door (`GET /openapi.json`, `/openapi/webhooks.json`, `/openapi/health.json`),
none by the webhooks' listener: it is reachable from outside, and strangers learn nothing there. `mesh-agent openapi`
prints them offline.

Source: OpenAPI Specification 3.1.1, RFC 9457 (problem documents).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from agent.openapi import application, health, webhooks

if TYPE_CHECKING:
    from agent.settings import AgentSettings

DOORS: Final[dict[str, Callable[[AgentSettings], dict[str, Any]]]] = {
    "application": application.document,
    "webhooks": webhooks.document,
    "health": health.document,
}
PATHS: Final = application.DESCRIPTIONS
"""Where the application's door serves which door's document."""


def document(settings: AgentSettings, door: str = "application") -> dict[str, Any]:
    """The document of *door*, one of `DOORS`, with the limits and sources of *settings* in it."""
    return DOORS[door](settings)
