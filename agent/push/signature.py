"""Standard Webhooks: the three header fields that sign a request, with every secret that is in force.

    webhook-id          the same for every attempt at one event, and for no other
    webhook-timestamp   Unix seconds of this attempt
    webhook-signature   `v1,` and base64 of HMAC-SHA-256 over `<id>.<timestamp>.<body>`; one for each secret, in a row

A receiver accepts a request that any of its secrets fits. While a secret is rotated we sign with both, so that neither
side has to be changed first.

Source: Standard Webhooks 1.0.0, "Signature scheme" and "Secrets".
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode, urlsafe_b64encode
from hashlib import sha256
from typing import TYPE_CHECKING

from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX = b"whsec_"
MIN_BYTES, MAX_BYTES = 24, 64  # of a secret, decoded


def read_secret(text: bytes) -> bytes:
    """The key in a file: base64, with or without `whsec_` before it.

    Raises:
        ConfigError: It is not base64, or of another length.
    """
    try:
        key = b64decode(text.strip().removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not MIN_BYTES <= len(key) <= MAX_BYTES:
        raise ConfigError(
            "a secret of a push target is none of Standard Webhooks",
            expected=f"`whsec_` and base64 of {MIN_BYTES} to {MAX_BYTES} bytes",
            got="another text",
            next="make one: echo whsec_$(openssl rand -base64 32)",
        )
    return key


def message_id(source: str, id_: str) -> str:
    """What names the event (*source*, *id_*) to a receiver that looks at `webhook-id` alone."""
    digest = sha256(f"{source}\n{id_}".encode()).digest()  # neither holds a line feed
    return f"evt_{urlsafe_b64encode(digest[:24]).decode()}"


def sign(message: str, body: bytes, secrets: Sequence[bytes], *, now_s: int) -> list[tuple[str, str]]:
    """The header fields for one attempt.

    Args:
        message: As `message_id` makes it.
        body: The bytes as they are sent.
        secrets: Keys, as `read_secret` reads them.
        now_s: Unix seconds.
    """
    signed = f"{message}.{now_s}.".encode() + body
    signatures = [f"v1,{b64encode(hmac.digest(secret, signed, sha256)).decode()}" for secret in secrets]
    return [
        ("webhook-id", message),
        ("webhook-timestamp", str(now_s)),
        ("webhook-signature", " ".join(signatures)),
    ]
