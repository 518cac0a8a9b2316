"""The trust statement: who is revoked, and since when, signed by the trust key."""

from __future__ import annotations

import re
from binascii import Error as Base64Error

import msgspec
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from mesh.errors import BadTrustStatement
from mesh.keys import key_id
from mesh.statements import SIGNATURE_BYTES, pae, verify_ed25519
from mesh.subjects import NAME_RE

TRUST_TYPE = "application/vnd.mesh.trust.v1"
MAX_TRUST_BYTES = 1_048_576  # the server's max_payload; some 25,000 revoked keys
MAX_SIGNATURES = 8  # on one statement: a trust key and its successors
_KID = re.compile(r"[A-Za-z0-9_-]{21}[AQgw]")


class _Signature(msgspec.Struct, frozen=True):
    keyid: str
    sig: bytes


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """DSSE 1.0.2, JSON envelope; base64 of the standard alphabet."""

    payload_type: str
    payload: bytes
    signatures: list[_Signature]


class TrustStatement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for keys now: `revoked` maps a key id to the stream time (Unix ms) from which its events are refused.

    A key id is that of an event key, or of an intermediate: then of every event key that it certified. `tenant` is
    whom it speaks for: what is true in one tenant says nothing in another. `epoch` rises with every statement, so that
    an older one cannot come back; `issued_ms` lets a reader notice that newer ones are being withheld. Unknown fields
    are refused, since one might restrict: a new field is a new type.
    """

    tenant: str
    epoch: int
    issued_ms: int
    revoked: dict[str, int]

    def seal(self, seed: bytes) -> bytes:
        """The statement in a DSSE envelope, JSON, signed with the trust key of that seed (32 bytes)."""
        public, secret = crypto_sign_seed_keypair(seed)
        payload = msgspec.json.encode(self, order="sorted")
        signature = crypto_sign(pae(TRUST_TYPE, payload), secret)[:SIGNATURE_BYTES]
        envelope = _Envelope(TRUST_TYPE, payload, [_Signature(key_id(public), signature)])
        return msgspec.json.encode(envelope)

    @classmethod
    def open(cls, data: bytes, public_key: bytes) -> TrustStatement:
        """Read a sealed statement.

        Args:
            data: The envelope, at most 1 MiB.
            public_key: The trust key, 32 bytes.

        Raises:
            BadTrustStatement: Malformed, or not signed by that key.
        """
        if len(data) > MAX_TRUST_BYTES:
            raise BadTrustStatement(f"trust statement of {len(data)} bytes, limit {MAX_TRUST_BYTES}")
        try:
            envelope = _ENVELOPE.decode(data)
        except (msgspec.MsgspecError, Base64Error, UnicodeDecodeError, RecursionError) as error:
            raise BadTrustStatement("the trust statement is no DSSE envelope") from error
        signed = pae(envelope.payload_type, envelope.payload)
        signatures = [signature.sig for signature in envelope.signatures[:MAX_SIGNATURES]]
        if not any(verify_ed25519(public_key, signed, signature) for signature in signatures):
            raise BadTrustStatement("the trust statement is not signed by the trust key")
        if envelope.payload_type != TRUST_TYPE:
            raise BadTrustStatement("signed, but something else", expected=TRUST_TYPE)
        try:
            statement = _STATEMENT.decode(envelope.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadTrustStatement("the signed payload is no trust statement") from error
        numbers = (statement.epoch, statement.issued_ms, *statement.revoked.values())
        if min(numbers) < 0 or not all(map(_KID.fullmatch, statement.revoked)):
            raise BadTrustStatement("a negative number, or a key id that is none, in the trust statement")
        if NAME_RE.fullmatch(statement.tenant) is None:
            raise BadTrustStatement("the trust statement names no tenant")
        return statement


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_STATEMENT = msgspec.json.Decoder(TrustStatement)
