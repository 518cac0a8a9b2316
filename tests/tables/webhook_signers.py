"""The providers' side of their webhooks: each request is signed by the provider's own library, where that can sign.

Shopify, Zendesk and Atlassian publish none that signs, no library signs Ed25519 for Standard Webhooks, and a generic
scheme has nobody: these five follow the page named at them, in code of this file's own.
"""

from __future__ import annotations

import hmac
import json
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

import standardwebhooks
import stripe
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hubspot.utils.signature import Signature  # type: ignore[import-untyped]  # none published
from slack_sdk.signature import SignatureVerifier
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]  # none published

SCRIPT = Path(__file__).parents[1] / "node" / "sign_webhooks.mjs"
FORM = "application/x-www-form-urlencoded"


class Secret(NamedTuple):
    """What the provider signs with, and what lies in the agent's file; they differ where a key has two halves."""

    theirs: str
    ours: str


def _pair(seed: bytes) -> Secret:
    """An Ed25519 key pair as Standard Webhooks writes one."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public = private.public_key().public_bytes_raw()
    return Secret(f"whsk_{b64encode(seed + public).decode()}", f"whpk_{b64encode(public).decode()}")


def _both(first: str, following: str) -> tuple[Secret, Secret]:
    return Secret(first, first), Secret(following, following)


# The one in use, and the next.
SECRETS: dict[str, tuple[Secret, Secret]] = {
    "github": _both("It's a Secret to Everybody", "another secret, used from tomorrow"),
    "stripe": _both("whsec_Zk3bHLW5FRB0tXvGV5QrKq8Ii8xjvMvF", "whsec_next5FRB0tXvGV5QrKq8Ii8xjvMvFAA"),
    "shopify": _both("hush_4f1c9a0e7b2d", "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"),
    "slack": _both("8f742231b10e8888abcd99yyyzzz85a5", "e6b19c573432dcc6b075501d51b51bb8"),
    "standard": _both("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"),
    "standard-ed25519": (_pair(bytes(range(32))), _pair(bytes(range(1, 33)))),
    "hubspot": _both("yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy", "zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz"),
    "twilio": _both("12345123451234512345123451234512", "a sharedkey of the account's own"),
    "zendesk": _both("dGhpc19zZWNyZXRfaXNfZm9yX3Rlc3Rpbmdfb25seQ==", "bmV4dF9zZWNyZXRfaXNfZm9yX3Rlc3Rpbmdfb25seQ=="),
    "atlassian": _both("It's a Secret to Everybody", "another secret, used from tomorrow"),
    "generic": _both("a secret of 32 characters or more", "another secret, used from tomorrow"),
    "generic-signed-id": _both("a secret of 32 characters or more", "another secret, used from tomorrow"),
}


class Signers:
    """Signs as the providers do.

    Args:
        node: The Node executable; started with the first GitHub signature and ended by `close`.
    """

    def __init__(self, node: Path) -> None:
        self._node = node
        self._octokit: subprocess.Popen[str] | None = None

    def close(self) -> None:
        """End Node."""
        if self._octokit is not None:
            with self._octokit as process:
                process.communicate()

    def sign(
        self, scheme: str, secret: str, body: bytes, *, at_s: int, url: str, headers: Mapping[str, str]
    ) -> dict[str, str]:
        """The header fields that a provider adds to a request.

        Args:
            scheme: A key of `SECRETS`.
            secret: The provider's half.
            body: As sent.
            at_s: Unix seconds.
            url: Where it is sent to.
            headers: What the request has already; some schemes sign an id among them.
        """
        sign = getattr(self, f"_{scheme.replace('-', '_')}")
        made: dict[str, str] = sign(secret, body, at_s, url, headers)
        return made

    def _github(self, secret: str, body: bytes, *_: object) -> dict[str, str]:
        """Of `@octokit/webhooks-methods`."""
        if self._octokit is None:
            command = [str(self._node), str(SCRIPT)]
            self._octokit = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process = self._octokit
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"secret": secret, "body": body.decode()}) + "\n")
        process.stdin.flush()
        return {"X-Hub-Signature-256": process.stdout.readline().strip()}

    @staticmethod
    def _stripe(secret: str, body: bytes, at_s: int, *_: object) -> dict[str, str]:
        """Of `stripe`."""
        header = stripe.WebhookSignature.generate_signature_header(body.decode(), secret, timestamp=at_s)
        return {"Stripe-Signature": header}

    @staticmethod
    def _slack(secret: str, body: bytes, at_s: int, *_: object) -> dict[str, str]:
        """Of `slack_sdk`."""
        signature = SignatureVerifier(secret).generate_signature(timestamp=str(at_s), body=body)
        assert signature is not None
        return {"X-Slack-Request-Timestamp": str(at_s), "X-Slack-Signature": signature}

    @staticmethod
    def _standard(secret: str, body: bytes, at_s: int, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Of `standardwebhooks`."""
        at = datetime.fromtimestamp(at_s, UTC)
        signature = standardwebhooks.Webhook(secret).sign(headers["webhook-id"], at, body.decode())
        return {"webhook-timestamp": str(at_s), "webhook-signature": signature}

    @staticmethod
    def _standard_ed25519(secret: str, body: bytes, at_s: int, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Standard Webhooks 1.0.0, "Asymmetric signatures": `v1a`, over the same content."""
        seed = b64decode(secret.removeprefix("whsk_"))[:32]
        content = f"{headers['webhook-id']}.{at_s}.".encode() + body
        made = b64encode(Ed25519PrivateKey.from_private_bytes(seed).sign(content)).decode()
        return {"webhook-timestamp": str(at_s), "webhook-signature": f"v1a,{made}"}

    @staticmethod
    def _hubspot(secret: str, body: bytes, at_s: int, url: str, *_: object) -> dict[str, str]:
        """Of `hubspot-api-client`. It signs the URI it is given; the page has it decoded first."""
        made = Signature.get_signature(
            secret, body.decode(), "v3", http_uri=url.replace("%3A", ":"), http_method="POST", timestamp=f"{at_s}000"
        )
        return {"X-HubSpot-Signature-v3": made, "X-HubSpot-Request-Timestamp": f"{at_s}000"}

    @staticmethod
    def _twilio(secret: str, body: bytes, at_s: int, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Of `twilio`."""
        form = headers["Content-Type"] == FORM
        params = dict(parse_qsl(body.decode(), keep_blank_values=True)) if form else {}
        algorithm = "HMAC_SHA256" if "SHA256" in headers.get("X-Twilio-Webhooks-Signature-Settings", "") else None
        return {"X-Twilio-Signature": RequestValidator(secret).compute_signature(url, params, algorithm)}

    @staticmethod
    def _shopify(secret: str, body: bytes, *_: object) -> dict[str, str]:
        """Shopify Dev Docs, "Deliver webhooks through HTTPS": base64 of the HMAC-SHA256 of the body."""
        return {"X-Shopify-Hmac-Sha256": _mac64(secret, body)}

    @staticmethod
    def _zendesk(secret: str, body: bytes, at_s: int, *_: object) -> dict[str, str]:
        """Zendesk Developer Docs, "Verifying webhook authenticity": base64(HMACSHA256(TIMESTAMP + BODY))."""
        at = datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        made = _mac64(secret, at.encode() + body)
        return {"X-Zendesk-Webhook-Signature-Timestamp": at, "X-Zendesk-Webhook-Signature": made}

    @staticmethod
    def _atlassian(secret: str, body: bytes, *_: object) -> dict[str, str]:
        """Jira Cloud platform, "Webhooks", secure admin webhooks: `method=signature` as WebSub has it."""
        return {"X-Hub-Signature": "sha256=" + hmac.new(secret.encode(), body, "sha256").hexdigest()}

    @staticmethod
    def _generic(secret: str, body: bytes, at_s: int, *_: object) -> dict[str, str]:
        """`signed = "{timestamp}.{body}"`, SHA-512 in base64, milliseconds."""
        made = hmac.new(secret.encode(), f"{at_s}000.".encode() + body, "sha512").digest()
        return {"X-Erp-Timestamp": f"{at_s}000", "X-Erp-Signature": "v1=" + b64encode(made).decode()}

    @staticmethod
    def _generic_signed_id(secret: str, body: bytes, at_s: int, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Method and URL, id, timestamp and body on lines of their own; SHA-256 in hexadecimal, RFC 3339."""
        at = datetime.fromtimestamp(at_s, UTC).isoformat()
        content = f"POST {url}\n{headers['X-Id']}\n{at}\n".encode() + body
        return {"X-At": at, "X-Mac": hmac.new(secret.encode(), content, "sha256").hexdigest()}


def _mac64(secret: str, message: bytes) -> str:
    return b64encode(hmac.new(secret.encode(), message, "sha256").digest()).decode()
