"""What the signing schemes share: digests compared in constant time, timestamps read strictly, tolerance. Pure.

A given digest is held against the grammar of its encoding first, and then compared as text with the one that we make:
so there is one text for each digest, and what is compared is ASCII.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64encode
from typing import TYPE_CHECKING

from mesh.errors import BadWebhookSignature, WebhookNotFresh

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.webhooks.provider import Incoming

HEX, BASE64 = "hex", "base64"
MAX_SIGNATURES = 16  # in one header: providers send one for each secret they rotate, which is two
GRAMMAR = {
    (HEX, "sha256"): re.compile(r"[0-9a-f]{64}"),
    (HEX, "sha512"): re.compile(r"[0-9a-f]{128}"),
    (BASE64, "sha1"): re.compile(r"[A-Za-z0-9+/]{27}="),
    (BASE64, "sha256"): re.compile(r"[A-Za-z0-9+/]{43}="),
    (BASE64, "sha512"): re.compile(r"[A-Za-z0-9+/]{86}=="),
}
_SAYS = {HEX: "lower-case hexadecimal digits", BASE64: "base64"}
_DIGITS = re.compile(r"0|[1-9][0-9]{0,15}")  # not \d: other scripts have digits too; one text for each number


def header(incoming: Incoming, name: str, expected: str) -> str:
    """A header field that a signature needs.

    Raises:
        BadWebhookSignature: It is not there.
    """
    value = incoming.headers.get(name, "")
    if not value:
        raise missing(name, expected, value)
    return value


def missing(name: str, expected: str, value: str) -> BadWebhookSignature:
    """The error for a field that is not there, or not of its grammar. It gives the length, never the value."""
    return BadWebhookSignature(
        f"{name} is missing or malformed",
        expected=expected,
        got=f"{len(value)} characters" if value else "none",
        next="set a signing secret at the provider; a proxy has to pass its headers on",
    )


def raw(text: str) -> bytes:
    """A header's value as it came: bytes that are no UTF-8 are lone surrogates in it."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no byte gives such a surrogate; a caller's own text may hold one
        return text.encode("utf-8", "surrogatepass")


def mac(secret: bytes, message: bytes, *, digest: str = "sha256", encoding: str = HEX) -> str:
    """HMAC of *message* as text."""
    made = hmac.new(secret, message, digest)
    return made.hexdigest() if encoding == HEX else b64encode(made.digest()).decode()


def check_mac(
    name: str,
    given: Sequence[str],
    messages: Iterable[bytes],
    secrets: Sequence[bytes],
    *,
    digest: str = "sha256",
    encoding: str = HEX,
) -> None:
    """Check that one of *given* is the HMAC of one of *messages* with one of *secrets*.

    Args:
        name: Of the header, for errors.
        given: Digests as they came, without prefixes.
        messages: What may have been signed; all but Twilio know exactly.
        secrets: Each is tried, whatever the others did.
        digest: Of the HMAC.
        encoding: `hex` or `base64`.

    Raises:
        BadWebhookSignature: None is of the grammar, or none fits.
    """
    grammar = GRAMMAR[encoding, digest]
    well_formed = [text for text in given[:MAX_SIGNATURES] if grammar.fullmatch(text)]
    if not well_formed:
        raise missing(name, f"{digest} in {_SAYS[encoding]}", "".join(given))
    if not fits(well_formed, messages, secrets, digest=digest, encoding=encoding):
        raise unfit(name, f"HMAC-{digest.upper()} with one of {len(secrets)} configured secrets")


def fits(
    given: Iterable[str],
    messages: Iterable[bytes],
    secrets: Sequence[bytes],
    *,
    digest: str = "sha256",
    encoding: str = HEX,
) -> bool:
    """Whether one of *given* is the HMAC of one of *messages* with one of *secrets*. All are compared, none twice."""
    theirs = [raw(text) for text in given]
    ours = [mac(s, m, digest=digest, encoding=encoding).encode() for m in messages for s in secrets]
    return any([hmac.compare_digest(one, other) for one in ours for other in theirs])  # noqa: C419 - no early end


def unfit(name: str, expected: str) -> BadWebhookSignature:
    """The error for a signature that is well formed and not ours to believe."""
    return BadWebhookSignature(
        f"{name} does not fit this body",
        expected=expected,
        got="another signature",
        next="compare the secret at the provider with the agent's secret_files; a proxy must not touch the body",
    )


def digits(name: str, text: str) -> int:
    """A timestamp of ASCII digits, without zeros before it. Raises BadWebhookSignature for anything else."""
    if not _DIGITS.fullmatch(text):
        raise missing(name, "a timestamp of 1 to 16 digits", text)
    return int(text)


def check_fresh(name: str, at_s: float, *, now_s: float, tolerance_s: float) -> None:
    """Refuse a delivery that was signed too long ago, or is from the future.

    Call it after the signature was checked: then the timestamp is the provider's, and the error means a replay, a
    wrong clock, or a proxy that held the request back.

    Raises:
        WebhookNotFresh: The message gives age and tolerance, both in seconds.
    """
    age_s = now_s - at_s
    if abs(age_s) > tolerance_s:
        when = f"{age_s:.0f} s ago" if age_s >= 0 else f"{-age_s:.0f} s ahead of our clock"
        raise WebhookNotFresh(
            f"{name} says {when}, tolerance {tolerance_s:g} s",
            expected=f"at most {tolerance_s:g} s either way",
            got=when,
            next="let the provider send it again; if it happens often, check this machine's clock",
        )
