r"""A candidate for the next bundle, as it lies in the store for agents to try beside the one in force.

    mesh-shadow-1.<kid>.<signature b64u>\n<head, canonical JSON>\n<the bundle's canonical bytes>
    signed = DSSE PAE("application/vnd.mesh.shadow.v1+json", head "\n" bundle)        Ed25519, by the policy key

The type that is signed is not a bundle's: a candidate, which nobody has applied yet, can never pass for a bundle,
wherever somebody puts it.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from mesh.base64url import b64u, unb64u
from mesh.errors import BadBundle, BundleFormat, BundleSignature
from mesh.keys import key_id
from mesh.policy.bundle import MAX_BUNDLE_BYTES, Bundle
from mesh.statements import SIGNATURE_BYTES, pae, verify_ed25519

PAYLOAD_TYPE: Final = "application/vnd.mesh.shadow.v1+json"
_VERSION: Final = b"mesh-shadow-1"
_ANY_VERSION = re.compile(rb"mesh-shadow-[0-9]+\.")
_ENVELOPE = re.compile(rb"mesh-shadow-1\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{86})\n")
_MAX_HEAD_BYTES = 4096
MAX_CANDIDATE_BYTES = MAX_BUNDLE_BYTES + _MAX_HEAD_BYTES + 256


class Head(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a candidate is to be tried.

    Attributes:
        sample: Part of the events that are compared, above 0 and at most 1.
        started_ms: Unix milliseconds.
        author: Who asked for it, as the control plane was told.
    """

    sample: float
    started_ms: int
    author: str = ""


class Candidate(msgspec.Struct, frozen=True):
    """A bundle to try, and how."""

    head: Head
    bundle: Bundle

    @property
    def key(self) -> str:
        """Names this trial: the same bundle tried anew is another one."""
        return f"{self.bundle.digest}.{self.head.started_ms}"


def seal_candidate(candidate: Candidate, seed: bytes) -> bytes:
    """The candidate in its envelope.

    Args:
        candidate: Its bundle has at most `MAX_BUNDLE_BYTES`.
        seed: The policy key's, 32 bytes.

    Raises:
        BadBundle: It is too large.
    """
    payload = msgspec.json.encode(candidate.head, order="sorted") + b"\n" + candidate.bundle.encode()
    if len(payload) > MAX_CANDIDATE_BYTES - 256:
        raise BadBundle(f"the candidate has {len(payload)} bytes", next="give a shorter author")
    public, secret = crypto_sign_seed_keypair(seed)
    signature = crypto_sign(pae(PAYLOAD_TYPE, payload), secret)[:SIGNATURE_BYTES]
    return b"%b.%b.%b\n%b" % (_VERSION, key_id(public).encode(), b64u(signature).encode(), payload)


def open_candidate(data: bytes, policy_key: bytes) -> Candidate:
    """Read a sealed candidate. Nothing in it is parsed before its signature holds.

    Args:
        data: As it lay in the store.
        policy_key: The public key of the control plane's policy key, 32 bytes.

    Raises:
        BundleFormat: Of a version we do not know.
        BundleSignature: No envelope, or not signed by that key over exactly these bytes.
        BadBundle: Too large, or signed and still no candidate.
    """
    if len(data) > MAX_CANDIDATE_BYTES:
        raise BadBundle(f"the candidate has {len(data)} bytes, limit {MAX_CANDIDATE_BYTES}", next="it is not tried")
    envelope = _ENVELOPE.match(data)
    if envelope is None:
        if _ANY_VERSION.match(data) and not data.startswith(_VERSION + b"."):
            got = data[: data.index(b".")].decode()[:40]
            raise BundleFormat("a candidate of a version we do not know", expected=_VERSION.decode(), got=got)
        raise BundleSignature("the candidate is not signed: it has no envelope", got=f"{len(data)} bytes")
    payload = data[envelope.end() :]
    if not _signed(envelope[2].decode(), payload, policy_key):
        raise BundleSignature(
            "the candidate is not signed by the policy key",
            expected=f"a signature of the policy key {key_id(policy_key)}",
            got=f"one that names the key {envelope[1].decode()}",
            next="it is not tried; find out who wrote it",
        )
    head, _, bundle = payload.partition(b"\n")
    try:
        return Candidate(msgspec.json.decode(head, type=Head), Bundle.decode(bundle))
    except msgspec.MsgspecError as error:
        raise BadBundle(f"the candidate does not decode: {type(error).__name__}", next="it is not tried") from error


def _signed(signature: str, payload: bytes, policy_key: bytes) -> bool:
    try:
        raw = unb64u(signature)
    except ValueError:
        return False
    return verify_ed25519(policy_key, pae(PAYLOAD_TYPE, payload), raw)
