"""GitHub webhooks: `X-Hub-Signature-256` over the raw body; one delivery id is one event.

`type` is `github.<event>[.<action>].v1`, `source` `/github/<configured source>`, `id` the delivery's GUID, `data` the
payload as it came. A redelivery has the same GUID, and so is the same event.

Source: GitHub Docs, "Validating webhook deliveries" and "Webhook events and payloads".
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from mesh.errors import BadAttribute, BadWebhookSignature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIGNATURE = "X-Hub-Signature-256"
DELIVERY = "X-GitHub-Delivery"
EVENT = "X-GitHub-Event"
CONTENT_TYPES: tuple[str, ...] = (
    "application/json",
)  # the form-encoded variant wraps JSON in a field: one way in is enough
MAX_TOKEN = 64  # the subject grammar's

_PREFIX = "sha256="
_SIGNATURE = re.compile(r"sha256=[0-9a-f]{64}")
_DELIVERY = re.compile(r"[A-Za-z0-9-]{8,64}")
_EVENT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OUTSIDE_TOKEN = re.compile(r"[^a-z0-9_-]+")


def verify(headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes]) -> None:
    """Check that GitHub signed *body* with one of *secrets*; every secret is tried, in constant time each.

    Raises:
        BadWebhookSignature: It is missing, malformed, or made with none of *secrets*.
    """
    given = headers.get(SIGNATURE, "")
    if not _SIGNATURE.fullmatch(given):
        raise BadWebhookSignature(
            f"{SIGNATURE} is missing or malformed",
            expected=f"{_PREFIX} and 64 hexadecimal digits",
            got=f"{len(given)} characters",
            next="set a secret in the webhook's settings at GitHub",
        )
    fits = [hmac.compare_digest(_PREFIX + hmac.new(s, body, sha256).hexdigest(), given) for s in secrets]
    if not any(fits):
        raise BadWebhookSignature(
            f"{SIGNATURE} does not fit this body",
            expected=f"HMAC-SHA-256 of the raw body with one of {len(secrets)} configured secrets",
            got="another digest",
            next="compare the secret at GitHub with the agent's secret_files; a proxy must not touch the body",
        )


def translate(headers: Mapping[str, str], payload: Any, source: str) -> dict[str, Any]:
    """The event of one verified delivery. `ping`, which tries the address, is an event like any other.

    Raises:
        BadAttribute: The delivery id or the event's name is missing or malformed.
    """
    event = _field(headers, EVENT, _EVENT, "1 to 64 characters A-Z a-z 0-9 _ -")
    delivery = _field(headers, DELIVERY, _DELIVERY, "the delivery's GUID")
    tokens = ["github", token(event)]
    action = payload.get("action") if isinstance(payload, dict) else None
    if isinstance(action, str) and action:
        tokens.append(token(action))
    return {
        "specversion": "1.0",
        "id": delivery,
        "source": f"/github/{source}",
        "type": ".".join([*tokens, "v1"]),
        "datacontenttype": "application/json",
        "data": payload,
    }


def token(text: str) -> str:
    """*text* as one token of a type: lower case, what is outside the grammar becomes `_`, 64 characters at most."""
    return _OUTSIDE_TOKEN.sub("_", text.lower())[:MAX_TOKEN]


def _field(headers: Mapping[str, str], name: str, grammar: re.Pattern[str], expected: str) -> str:
    value = headers.get(name, "")
    if not grammar.fullmatch(value):
        raise BadAttribute(
            f"{name} is missing or malformed",
            expected=expected,
            got=f"{len(value)} characters",
            next="is this GitHub, and does the proxy pass its headers on?",
        )
    return value
