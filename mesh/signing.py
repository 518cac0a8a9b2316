r"""Seal and verify: what a signature on an event says, and the nine checks before anybody believes it.

A batch is whatever queued while the last one was in flight. Each of its events becomes a leaf of a Merkle tree, the
source signs the root once, and each event carries its own proof, so it can be verified alone, anywhere, later:

    statement = "mesh-event-v1\n" subject "\n" msg_id "\n" salt "\n" body      the salt hides a leaf from siblings
    leaf      = SHA-256(0x00 || statement)
    root_stmt = "mesh-root-v1\n" spiffe-id "\n" kid "\n" signed_ms "\n" size "\n" b64u(root) "\n"
    signed    = Ed25519 over DSSE PAE("application/vnd.mesh.root.v1", root_stmt)

    Mesh-Signature: 1.<kid>.<signed_ms>.<salt>.<index>.<size>.<proof>.<sig>          unpadded base64url, <= 1024 bytes

`Verifier.verify` is the only way from `Received` to `Verified`. Its steps are numbered V1 to V9, cheapest first.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from mesh.base64url import b64u, unb64u
from mesh.batches import batch
from mesh.errors import (
    BadEnvelope,
    BadMessageId,
    BadSignature,
    InputError,
    KeyRevoked,
    NotFresh,
    OutsideCertificate,
    PublisherNotAllowed,
    SignatureMissing,
    UnknownKey,
)
from mesh.event import decode
from mesh.merkle import Climber, leaf_hash, root_from_proof, tree
from mesh.statements import (
    MAX_BATCH,
    MESSAGE_ID,
    SALT_BYTES,
    Header,
    message_id,
    pae,
    root_signed,
    statement,
    verify_ed25519,
)
from mesh.subjects import parse_physical

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.identity import Certificate, Keyring, Signer
    from mesh.subjects import Physical

__all__ = [
    "ID_HEADER",
    "MAX_BATCH",
    "SIGNATURE_HEADER",
    "Received",
    "Verified",
    "Verifier",
    "b64u",
    "leaf_hash",
    "message_id",
    "pae",
    "root_from_proof",
    "seal",
    "statement",
    "tree",
    "verify_ed25519",
]

SIGNATURE_HEADER = "Mesh-Signature"
ID_HEADER = "Nats-Msg-Id"  # the server deduplicates by it
MAX_BODY_BYTES = 1_048_576  # the server's max_payload: nothing larger can arrive honestly
CLOCK_AHEAD_MS = 30_000  # a signer's clock may run ahead of the stream's by this
SIGNED_AGE_MS = 120_000  # sealing to storing; the publisher seals anew what would be older than 60 s
CACHED_ROOTS = 4096  # of verified roots; about 400 bytes each

place_of = lru_cache(4096)(parse_physical)  # subjects repeat: types x views x 16 slots


class Received(msgspec.Struct, frozen=True, gc=False):
    """A stored event as it was pulled; nothing in it is believed yet.

    `msg_ids` holds every `Nats-Msg-Id` found. `signature` is None only when there is no `Mesh-Signature` at all.
    `stream_ms` is the server's time of storing, `sequence` its number in `stream`, `deliveries` counts from 1, and
    `reply` is where the ack goes. An event that is delivered anew because an operator asked for it names the run: of
    `mesh replay` in `replay`, of `mesh dlq redrive` in `redrive`.
    """

    subject: str
    body: bytes
    msg_ids: tuple[str, ...]
    signature: str | None
    stream: str
    sequence: int
    stream_ms: int
    deliveries: int
    reply: str
    replay: str = ""
    redrive: str = ""


class Verified(msgspec.Struct, frozen=True, gc=False):
    """An event that passed V1 to V9: `fields` is its CloudEvent, `place` its subject, `spiffe_id` who sealed it."""

    received: Received
    fields: dict[str, Any]
    place: Physical
    spiffe_id: str
    kid: str


def seal(items: list[tuple[str, str, bytes]], signer: Signer, *, signed_ms: int, salts: bytes) -> list[str]:
    """Sign one batch with one signature.

    Args:
        items: (subject, msg_id, body) of each event, 1 to 256. One tenant and one view: siblings see leaf hashes.
        signer: The source's event key.
        signed_ms: Now, Unix milliseconds; inside the signer's certificate, else nobody would accept the batch.
        salts: SALT_BYTES random bytes for each item, joined, never used before.

    Returns:
        The value of `Mesh-Signature` for each item.

    Raises:
        OutsideCertificate: The certificate is not valid at *signed_ms*; a new one is needed first.
        ValueError: Batch size, salts, or a newline where none may be: a mistake of the caller's.
    """
    size = len(items)
    if not 1 <= size <= MAX_BATCH or len(salts) != size * SALT_BYTES:
        raise ValueError(
            f"a batch has 1 to {MAX_BATCH} events and {SALT_BYTES} bytes of salt for each, not {size} and {len(salts)}"
        )
    if not signer.not_before_ms <= signed_ms <= signer.not_after_ms:
        raise _outside(signed_ms, signer.not_before_ms, signer.not_after_ms, kid=signer.kid)
    made = batch(items, salts)
    if made is None:
        raise ValueError("a message id has 22 characters of base64url, and a subject no newline")
    root, middles = made
    kid = signer.kid
    end = b64u(signer.sign(root_signed(signer.spiffe_id, kid, signed_ms, size, root)))
    start = f"1.{kid}.{signed_ms}."
    return [f"{start}{middle}{end}" for middle in middles]


class Verifier:
    """V1 to V9 for one consumer. Not for use from several threads at once.

    Args:
        keyring: Certificates by key id, and what has been revoked.
        may_publish: `(spiffe_id, type, source)`: does policy let this identity publish that? Asked for every event.
        might_publish: `(spiffe_id, type, source, stream_ms)`: did it when the stream took the event? Asked where the
            policy of now does not: withdrawing a right does not kill what was published by it. What it raises passes.
        tenant: When given, the events' `tenant` must be this one.
        cache_size: Verified roots kept (least recently used leave). Only successes: a forgery cannot fill it.
    """

    __slots__ = (
        "_cache_size", "_climb", "_last_root", "_might_publish", "_roots", "keyring", "permits", "tenant",
    )  # fmt: skip

    def __init__(
        self,
        keyring: Keyring,
        may_publish: Callable[[str, str, str], bool],
        *,
        might_publish: Callable[[str, str, str, int], bool] | None = None,
        tenant: str | None = None,
        cache_size: int = CACHED_ROOTS,
    ) -> None:
        self.keyring = keyring
        self.permits = may_publish
        self._might_publish = might_publish
        self.tenant = tenant
        self._climb = Climber().root
        self._cache_size = cache_size
        self._roots: OrderedDict[tuple[object, ...], None] = OrderedDict()
        self._last_root: tuple[object, ...] = ()  # of `_roots`, or it was until just now

    def verify(self, received: Received) -> Verified:
        """Check that an identity that may publish this event sealed it, shortly before the stream took it.

        Args:
            received: As pulled. Judged at stream time, so a backlog verifies as it did on the day it was stored.

        Returns:
            The event as `Verified`, the only type that goes on.

        Raises:
            VerificationError: The subclass names the first failed step, V1 to V9; `retryable` says whether waiting
                helps (only an unknown key may arrive later). Details name stream and sequence, never a value.
        """
        parts = _read_header(received)
        place, fields = self._read_event(received)
        if parts is None:
            raise SignatureMissing("the event carries no Mesh-Signature", **_where(received))
        kid = parts.kid
        certificate = self._certificate(received, parts)
        spiffe_id = certificate.spiffe_id
        if not self.permits(spiffe_id, place.type, fields["source"]) and not self._might(
            spiffe_id, place.type, fields["source"], received.stream_ms
        ):
            what = f"{spiffe_id} may not publish {place.type} from this source"
            raise PublisherNotAllowed(
                what, next="is its Access document in force, or its key stolen?", **_where(received)
            )
        if len(received.msg_ids) != 1 or MESSAGE_ID.fullmatch(received.msg_ids[0]) is None:
            wanted, got = "one Nats-Msg-Id of 22 base64url characters", f"{len(received.msg_ids)} of them"
            raise BadMessageId(f"expected {wanted}, found {got}", expected=wanted, got=got, **_where(received))
        self._check_times(received, parts, certificate)
        self._check_signature(received, parts, certificate)
        return Verified(received, fields, place, spiffe_id, kid)

    def _might(self, spiffe_id: str, type_: str, source: str, stream_ms: int) -> bool:
        """V5, where the policy of now says no."""
        return self._might_publish is not None and self._might_publish(spiffe_id, type_, source, stream_ms)

    def _read_event(self, received: Received) -> tuple[Physical, dict[str, Any]]:
        """V1, subject and body."""
        if len(received.body) > MAX_BODY_BYTES:
            raise _malformed(received, f"body of {len(received.body)} bytes, limit {MAX_BODY_BYTES}")
        try:
            place = place_of(received.subject)
            fields = decode(received.body)
        except InputError as error:
            raise _malformed(received, error.message) from error
        get = fields.get
        if get("type") != place.type or get("view") != place.view:
            raise _malformed(received, "the body's type or view is not the subject's")
        if self.tenant is not None and get("tenant") != self.tenant:
            raise _malformed(received, "the body's tenant is not this one")
        source, id_ = get("source"), get("id")
        if get("specversion") != "1.0" or type(source) is not str or type(id_) is not str or not source or not id_:
            raise _malformed(received, "the body is no CloudEvent 1.0 with id and source")
        return place, fields

    def _certificate(self, received: Received, parts: Header) -> Certificate:
        """V3 and V4."""
        certificate = self.keyring.find(parts.kid, parts.signed_ms)
        if certificate is None:
            next_step = "certificates arrive through mesh_trust; retry when it has caught up"
            raise UnknownKey("no certificate for this key id", next=next_step, kid=parts.kid, **_where(received))
        if not certificate.not_before_ms <= parts.signed_ms <= certificate.not_after_ms:
            first, last = certificate.not_before_ms, certificate.not_after_ms
            raise _outside(parts.signed_ms, first, last, kid=parts.kid, **_where(received))
        return certificate

    def _check_times(self, received: Received, parts: Header, certificate: Certificate) -> None:
        """V7 and V8: both by the stream's clock."""
        age_ms = received.stream_ms - parts.signed_ms
        if not -CLOCK_AHEAD_MS <= age_ms <= SIGNED_AGE_MS:
            expected = f"{-CLOCK_AHEAD_MS / 1000:.0f} to {SIGNED_AGE_MS / 1000:.0f} s"
            got = f"{age_ms / 1000:.3f} s"
            both = f"stored {got} after it was signed, allowed {expected}"
            raise NotFresh(both, expected=expected, got=got, **_where(received))
        revoked_ms = self.keyring.refused_from(certificate)
        if revoked_ms is not None and received.stream_ms >= revoked_ms:
            both = f"key revoked from {revoked_ms} ms, event stored at {received.stream_ms} ms"
            raise KeyRevoked(both, kid=parts.kid, **_where(received))

    def _check_signature(self, received: Received, parts: Header, certificate: Certificate) -> None:
        """V9: the proof leads to a root that this key signed, as remembered or by Ed25519."""
        kid = parts.kid
        leaf = leaf_hash(statement(received.subject, received.msg_ids[0], parts.salt, received.body))
        root = self._climb(leaf, parts.position, parts.size, parts.proof)
        if root is None:
            raise BadSignature("proof, index and size do not fit", kid=kid, **_where(received))
        if not self.is_signed(root, certificate, parts.signed_ms, parts.size, parts.signature):
            next_step = "changed after sealing, or sealed with another key: no retry helps"
            raise BadSignature("signature and event do not fit", next=next_step, kid=kid, **_where(received))

    def is_signed(self, root: bytes, certificate: Certificate, signed_ms: int, size: int, signature: str) -> bool:
        """V9, of a whole batch: whether the certificate's key signed this root, as remembered or by Ed25519."""
        spiffe_id, kid = certificate.spiffe_id, certificate.kid
        key = (kid, signed_ms, size, root, signature, spiffe_id)
        if key == self._last_root:  # as for all but the first of a batch in order
            return True
        roots = self._roots
        if key in roots:
            roots.move_to_end(key)
        else:
            signed = root_signed(spiffe_id, kid, signed_ms, size, root)
            if not verify_ed25519(certificate.public_key, signed, unb64u(signature)):
                return False
            roots[key] = None
            if len(roots) > self._cache_size:
                roots.popitem(last=False)
        self._last_root = key
        return True


def _where(received: Received) -> dict[str, Any]:
    return {"stream": received.stream, "sequence": received.sequence}


def _malformed(received: Received, what: str) -> BadEnvelope:
    return BadEnvelope(f"not an event of the mesh: {what}", **_where(received))


def _outside(signed_ms: int, first_ms: int, last_ms: int, **details: Any) -> OutsideCertificate:
    expected, got = f"{first_ms} to {last_ms} ms", f"{signed_ms} ms"
    return OutsideCertificate(f"signed at {got}, certificate valid {expected}", expected=expected, got=got, **details)


def _read_header(received: Received) -> Header | None:
    """V1, the signature header; None when there is none."""
    if received.signature is None:
        return None
    try:
        return Header.parse(received.signature)
    except ValueError as error:
        raise _malformed(received, str(error)) from error
