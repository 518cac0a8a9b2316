"""The document of the webhooks' door: one path for each configured source, with what its provider signs and sends.

It is for whoever sets up the provider or the ingress, and stands at the application's door: the webhooks' own listener
is reachable from outside and tells strangers nothing. It names no secret and no file of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agent.openapi import events
from agent.openapi.application import PUBLISHING
from agent.openapi.frame import DOOR, JSON, answer, component, frame, loopback, refusals
from agent.openapi.providers import Described, described
from agent.webhooks import PROVIDERS
from mesh.errors import BadWebhookSignature, InputError, WebhookNotFresh

if TYPE_CHECKING:
    from agent.settings import AgentSettings
    from agent.webhooks.settings import WebhookSource

PORT: Final = 8481
PREFIX: Final = "/v1/webhooks/"
HANDSHAKES: Final = frozenset({"slack"})  # providers that try an address, and want to see something of theirs back

_TEXT: Final = {"type": "string"}
_REFUSALS: Final = (*DOOR, BadWebhookSignature, WebhookNotFresh, InputError, *PUBLISHING)


def document(settings: AgentSettings) -> dict[str, Any]:
    """The document; without sources it has no paths."""
    sources = settings.webhooks
    batch = any(described(source).batch for source in sources)
    return frame(
        title="Mesh agent: webhooks",
        summary="Where providers deliver webhooks.",
        description=(
            "A listener of its own, for an ingress. The provider's signature stands for the token; it is checked over "
            "the raw body before anything reads it. One delivery id is one event, however often it comes."
            + ("" if sources else " No source is configured: agent.toml has no `[webhooks.<source>]`.")
        ),
        servers=[loopback(settings.webhooks_port, PORT, host=settings.webhooks_host)],
        paths={f"{PREFIX}{source.name}": {"post": _deliver(settings, source)} for source in sources},
        schemas=events.receipts() | ({"Batch": events.batch_receipt()} if batch else {}),
        security={source.name: _scheme(described(source)) for source in sources},
    )


def _scheme(provider: Described) -> dict[str, Any]:
    name, text = provider.signature
    return {"type": "apiKey", "in": "header", "name": name, "description": f"{provider.title} signs: {text}"}


def _deliver(settings: AgentSettings, source: WebhookSource) -> dict[str, Any]:
    provider = described(source)
    bodies = PROVIDERS[source.provider].CONTENT_TYPES
    made: dict[str, Any] = {
        "operationId": f"deliver-{source.name}",
        "summary": f"A delivery of {provider.title}, for the source {source.name}.",
        "description": f"It becomes {provider.types}. At most {settings.max_event_bytes} bytes.",
        "security": [{source.name: []}],
        "parameters": [
            {"name": field.name, "in": "header", "required": field.required, "description": field.text}
            | {"schema": {"type": "string", "pattern": field.pattern}}
            for field in provider.fields
        ],
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": {"type": "object"} if provider.object else {}} for kind in bodies},
        },
        "responses": {**_accepted(source, provider), **refusals(*_REFUSALS)},
    }
    if source.hosts:
        made["servers"] = [{"url": f"https://{host}"} for host in source.hosts]
    return made


def _accepted(source: WebhookSource, provider: Described) -> dict[str, Any]:
    """Durable: the receipt, or what this provider expects instead."""
    expected = PROVIDERS[source.provider].ACCEPTED
    if expected is not None:
        tried = " So is a handshake." if source.provider in HANDSHAKES else ""
        text = answer(f"Durable; what {provider.title} expects to see.{tried}", {expected.content_type: _TEXT})
        return {str(expected.status): text}
    receipt = component("Receipt")
    shown = {"oneOf": [receipt, component("Batch")]} if provider.batch else receipt
    return {"202": answer("Durable, as for an event that an application publishes.", {JSON: shown})}
