"""Names and keys of workloads: SPIFFE ids, key ids, and which Ed25519 keys are refused."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256

from nacl.bindings import crypto_core_ed25519_is_valid_point

from mesh.base64url import b64u
from mesh.errors import BadSpiffeId, WeakKey

KEY_BYTES = 32
MAX_SPIFFE_ID_BYTES = 2048  # SPIFFE-ID 2.3

_DOMAIN = r"[a-z0-9._-]{1,255}"  # SPIFFE-ID 2.1
_SPIFFE_ID = re.compile(
    rf"spiffe://({_DOMAIN})((?:/(?!\.{{1,2}}(?:/|\Z))[A-Za-z0-9._-]+)+)"
)  # 2.2: no `.`, `..`, empty
TRUST_DOMAIN = re.compile(_DOMAIN)
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")  # RFC 8410: SubjectPublicKeyInfo of Ed25519, then the key
# Every encoding of a point of small order: y = 0, 1, -1, two of order 8, p and p + 1, each with both signs.
_SMALL_ORDER = frozenset(
    bytes.fromhex(y + sign)
    for y, signs in (
        ("00" * 31, ("00", "80")),
        ("01" + "00" * 30, ("00", "80")),
        ("ec" + "ff" * 30, ("7f", "ff")),
        ("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc", ("05", "85")),
        ("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03", ("7a", "fa")),
        ("ed" + "ff" * 30, ("7f", "ff")),
        ("ee" + "ff" * 30, ("7f", "ff")),
    )
    for sign in signs
)


class SpiffeId(str):
    """A workload's name, `spiffe://<trust domain>/<path>`; made by `parse` or `for_agent`, so it is well formed."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Check *text* against the SPIFFE-ID specification, sections 2.1 to 2.3.

        Raises:
            BadSpiffeId: Not of that form, too long, or without a path.
        """
        if len(text) > MAX_SPIFFE_ID_BYTES or _SPIFFE_ID.fullmatch(text) is None:
            raise BadSpiffeId("not a workload's SPIFFE id", expected="spiffe://<trust domain>/<path>")
        return cls(text)

    @classmethod
    def for_agent(cls, trust_domain: str, tenant: str, agent: str) -> SpiffeId:
        """The id an agent has unless its Tenant document gives another."""
        return cls.parse(f"spiffe://{trust_domain}/ns/{tenant}/sa/{agent}")

    @property
    def trust_domain(self) -> str:
        """The part after `spiffe://`."""
        return self.split("/", 3)[2]


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that passed the profile. Times are Unix milliseconds; both ends belong to the validity.

    `issuer_kid` names the key of the CA that signed it, `chain` holds all that was presented: the DER certificate and
    the CA's after it. Two certificates are equal when they say the same, however they are encoded.
    """

    kid: str
    spiffe_id: SpiffeId
    public_key: bytes
    not_before_ms: int
    not_after_ms: int
    der: bytes = field(compare=False)
    issuer_kid: str = ""
    chain: bytes = field(default=b"", compare=False)


def key_id(public_key: bytes) -> str:
    """Name of an Ed25519 key of 32 bytes; see `spki_id`."""
    return spki_id(_SPKI_PREFIX + public_key)


def spki_id(spki: bytes) -> str:
    """Name of any key: base64url of the first 16 bytes of SHA-256 over its DER SubjectPublicKeyInfo."""
    return b64u(sha256(spki).digest()[:16])


def check_public_key(raw: bytes) -> bytes:
    """Return *raw* if it is an Ed25519 public key that can be trusted to verify.

    Raises:
        WeakKey: One of the 14 encodings of small order, or no canonical point of the main subgroup. OpenSSL takes
            some of them, and then one fixed signature verifies for any message.
    """
    if len(raw) != KEY_BYTES:
        raise WeakKey("not an Ed25519 public key", expected=f"{KEY_BYTES} bytes", got=f"{len(raw)} bytes")
    if raw in _SMALL_ORDER or not crypto_core_ed25519_is_valid_point(raw):
        raise WeakKey("public key of small order, or no point of the main subgroup", next="make a new key")
    return raw
