r"""The envelope a bundle travels in: who made it can be proved, and an older or a foreign one does not get in.

    mesh-policy-1.<kid>.<signature b64u>\n<the bundle's canonical bytes>
    signed = DSSE PAE("application/vnd.mesh.policy.v1+json", the bundle's bytes)        Ed25519, by the policy key

`open_bundle` says whether the bytes are the control plane's; `follows` whether the bundle may take the place of the one
in force. Revisions only rise: a rollback is a new revision that brings older policies back and says so in
`rollback_of`. So "an older revision" is always a replay, and refused.

Source: DSSE 1.0.2 (PAE). There it may name any key; here there is one, so another name is another envelope.
"""

from __future__ import annotations

import re
from typing import Final

from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from mesh.base64url import b64u, unb64u
from mesh.errors import BadBundle, BundleChain, BundleFormat, BundleRollback, BundleSignature
from mesh.keys import key_id
from mesh.policy.bundle import MAX_BUNDLE_BYTES, PAYLOAD_TYPE, Bundle
from mesh.statements import SIGNATURE_BYTES, pae, verify_ed25519

__all__ = ["MAX_ENVELOPE_BYTES", "follows", "open_bundle", "seal_bundle"]

VERSION: Final = b"mesh-policy-1"
_ANY_VERSION = re.compile(rb"mesh-policy-[0-9]+\.")
_HEAD = re.compile(rb"mesh-policy-1\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{86})\n")
_HEAD_BYTES = len(VERSION) + 1 + 22 + 1 + 86 + 1
MAX_ENVELOPE_BYTES = MAX_BUNDLE_BYTES + _HEAD_BYTES


def seal_bundle(bundle: Bundle, seed: bytes) -> bytes:
    """The bundle in its envelope.

    Args:
        bundle: Of at most `MAX_BUNDLE_BYTES`.
        seed: The policy key's, 32 bytes.

    Raises:
        BadBundle: It is too large.
    """
    payload = bundle.encode()
    public, secret = crypto_sign_seed_keypair(seed)
    signature = crypto_sign(pae(PAYLOAD_TYPE, payload), secret)[:SIGNATURE_BYTES]
    return b"%b.%b.%b\n%b" % (VERSION, key_id(public).encode(), b64u(signature).encode(), payload)


def open_bundle(data: bytes, policy_key: bytes) -> Bundle:
    """Read a sealed bundle. Nothing in it is parsed before its signature holds.

    Args:
        data: As it lay in the store or on disk.
        policy_key: The public key of the control plane's policy key, 32 bytes.

    Raises:
        BundleFormat: An envelope or a bundle of a version we do not know.
        BundleSignature: No envelope, or not signed by that key over exactly these bytes.
        BundleChain: Signed, but the revisions it says came before it have a gap.
        BadBundle: Too large, or signed and still no bundle.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise BadBundle(
            f"the bundle's envelope has {len(data)} bytes, limit {MAX_ENVELOPE_BYTES}", next="keep the last good one"
        )
    head = _HEAD.match(data)
    if head is None:
        raise _no_envelope(data)
    payload = data[head.end() :]
    kid, expected = head[1].decode(), key_id(policy_key)
    if kid != expected or not _signed(head[2].decode(), payload, policy_key):
        raise BundleSignature(
            "the bundle is not signed by the policy key" if kid != expected else "the bundle is not what was signed",
            expected=f"a signature of the policy key {expected}",
            got=f"one that names the key {kid}",
            next="keep the last good one, and find out who wrote the other",
        )
    return Bundle.decode(payload)


def follows(newer: Bundle, current: Bundle) -> None:
    """Check that *newer* may take the place of *current*; equal bundles may.

    Where *newer* no longer names revisions as old as *current*, because we were away for longer than the streams keep
    events, its signature and its higher number are all there is to go by.

    Raises:
        BundleRollback: It is older, or another one of the same revision.
        BundleChain: It says that *current* was never in force, or is another tenant's.
    """
    if newer.tenant != current.tenant:
        raise BundleChain("a bundle of another tenant", expected=current.tenant, got=newer.tenant)
    if newer.revision == current.revision and newer.digest == current.digest:
        return
    if newer.revision <= current.revision:
        raise BundleRollback(
            f"bundle {newer.revision} cannot replace bundle {current.revision}",
            expected=f"a revision above {current.revision}, or that very bundle",
            got=f"revision {newer.revision}, digest {newer.digest[:12]}",
            next="keep the one in force; a rollback is a new revision",
        )
    named = next((past.digest for past in newer.lineage if past.revision == current.revision), None)
    reaches_back = newer.lineage[0].revision <= current.revision  # there is one: `newer` is above revision 1
    if reaches_back and named != current.digest:
        raise BundleChain(
            f"bundle {newer.revision} does not follow the bundle {current.revision} in force",
            expected=f"digest {current.digest[:12]} as revision {current.revision}",
            got=f"digest {(named or 'none')[:12]}",
            next="keep the one in force, look at the control plane",
        )


def _signed(signature: str, payload: bytes, policy_key: bytes) -> bool:
    try:
        raw = unb64u(signature)
    except ValueError:
        return False
    return verify_ed25519(policy_key, pae(PAYLOAD_TYPE, payload), raw)


def _no_envelope(data: bytes) -> BadBundle:
    if _ANY_VERSION.match(data) and not data.startswith(VERSION + b"."):
        return BundleFormat(
            "the bundle's envelope is of a version we do not know",
            expected=VERSION.decode(),
            got=data[: data.index(b".")].decode()[:40],
            next="upgrade this agent, or the control plane if it is the older one",
        )
    return BundleSignature(
        "the bundle is not signed: it has no envelope",
        expected="mesh-policy-1.<key id>.<signature>",
        got=f"{len(data)} bytes of something else",
        next="keep the last good one, and find out who wrote the other",
    )
