"""Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature` over `<id>.<timestamp>.<body>`.

Many providers sign this way (Svix, Clerk, OpenAI, Supabase, and this mesh's own push). A secret is `whsec_` and base64
for HMAC-SHA-256 (`v1`), or `whpk_` and base64, the provider's public key, for Ed25519 (`v1a`); the two may stand beside
each other while one follows the other. The secret's kind says which signatures are looked at.

`type` is `<source>.<type>.v1`, with the name of the table as its first word, `id` the `webhook-id`, which is signed and
stays through retries, `time` the payload's `timestamp`, else the time of signing.

Source: the Standard Webhooks specification 1.0.0, "Webhook metadata", "Webhook signature", "Payload structure".
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.webhooks import checks, events
from agent.webhooks.provider import Incoming, Provider
from mesh.errors import ConfigError, WeakKey
from mesh.keys import check_public_key

if TYPE_CHECKING:
    from collections.abc import Sequence

ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"

_HMAC, _ED25519 = "v1", "v1a"
_SECRET, _PUBLIC, _PRIVATE = b"whsec_", b"whpk_", b"whsk_"
_SAYS = "v1,<base64> or v1a,<base64>, separated by spaces"
_MIN_SECRET = 16  # bytes; the specification asks for 24 to 64, and its own library for one
_ED25519_TEXT = re.compile(r"[A-Za-z0-9+/]{86}==")


class StandardWebhooks(Provider):
    """A provider that follows the specification."""

    def check_secret(self, secret: bytes) -> None:
        """A secret is `whsec_…`, or base64 alone, or `whpk_…`. Raises ConfigError."""
        if secret.startswith(_PRIVATE):
            raise ConfigError(
                "a webhook secret is a private key",
                expected="whsec_…, or the sender's public key whpk_…",
                got="whsk_…",
                next="only the sender keeps it: put the public key there, and tell the sender to make another pair",
            )
        key = _public_key(secret) if secret.startswith(_PUBLIC) else _hmac_key(secret)
        if key is None:
            raise ConfigError(
                "a webhook secret is not of the form of Standard Webhooks",
                expected=f"whsec_ and base64 of {_MIN_SECRET} bytes or more, or whpk_ and base64 of 32",
                got=f"{len(secret)} characters of another form",
                next="copy it from the provider's page once more",
            )

    def verify(self, incoming: Incoming, secrets: Sequence[bytes], *, now_s: float) -> None:
        """As every provider."""
        name = checks.header(incoming, ID, "the message's id")
        timestamp = checks.header(incoming, TIMESTAMP, "Unix seconds")
        at_s = checks.digits(TIMESTAMP, timestamp)
        given = checks.header(incoming, SIGNATURE, _SAYS)
        signatures = [part.partition(",")[::2] for part in given.split(" ")[: checks.MAX_SIGNATURES]]
        message = b".".join((checks.raw(name), timestamp.encode(), incoming.body))
        if not any([_fits(secret, message, signatures) for secret in secrets]):  # noqa: C419 - no early end
            raise checks.unfit(SIGNATURE, f"v1 or v1a, by one of {len(secrets)} configured secrets")
        checks.check_fresh(TIMESTAMP, at_s, now_s=now_s, tolerance_s=self.tolerance_s)

    def translate(self, incoming: Incoming, payload: Any) -> list[dict[str, Any]]:
        """As every provider."""
        own = events.from_rfc3339(events.at(payload, "timestamp"))
        return [
            self.event(
                id=events.event_id(incoming.headers.get(ID), what=ID),
                type=events.type_of(self.name, events.parts(events.at(payload, "type"))),
                time_ms=events.milliseconds(incoming.headers.get(TIMESTAMP)) if own is None else own,
                subject=events.subject(events.at(payload, "data", "id")),
                data=payload,
            )
        ]


def _fits(secret: bytes, message: bytes, signatures: Sequence[Sequence[str]]) -> bool:
    """Whether *secret* made one of *signatures*, among those of its own kind."""
    if secret.startswith(_PUBLIC):
        public = _public_key(secret)
        signed = [text for kind, text in signatures if kind == _ED25519 and _ED25519_TEXT.fullmatch(text)]
        return public is not None and any([_signed(public, message, text) for text in signed])  # noqa: C419 - no early end
    key = _hmac_key(secret)
    signed = [text for kind, text in signatures if kind == _HMAC]
    return key is not None and checks.fits(signed, [message], [key], encoding=checks.BASE64)


def _signed(public: Ed25519PublicKey, message: bytes, text: str) -> bool:
    try:
        public.verify(a2b_base64(text), message)
    except InvalidSignature:
        return False
    return True


def _hmac_key(secret: bytes) -> bytes | None:
    key = _base64(secret.removeprefix(_SECRET))
    return key if key is not None and len(key) >= _MIN_SECRET else None


def _public_key(secret: bytes) -> Ed25519PublicKey | None:
    key = _base64(secret.removeprefix(_PUBLIC))
    try:
        return None if key is None else Ed25519PublicKey.from_public_bytes(check_public_key(key))
    except (ValueError, WeakKey):
        return None


def _base64(text: bytes) -> bytes | None:
    """Padded, or not, as the specification's own library takes it."""
    try:
        return a2b_base64(text.rstrip(b"=") + b"=" * (-len(text.rstrip(b"=")) % 4), strict_mode=True)
    except Base64Error:
        return None
