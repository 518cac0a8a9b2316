"""Whom a process believes: its own signing key, the trust statement of who is revoked, and the keyring of the rest.

Certificates are believed because a root issued them (`mesh.certificates`), the trust statement because the trust key
signed it. So both may travel through a broker that nobody trusts: the worst it can do is to withhold them, and a
statement that is too old says so.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from mesh.certificates import EVENT_SIGNING, MeshCA, check_certificate, read_certificate
from mesh.errors import BadCertificate, BadTrustStatement, IdentityError, StaleTrust, TrustRollback
from mesh.keys import Certificate, SpiffeId, check_public_key, key_id
from mesh.statements import SIGNATURE_BYTES, pae, verify_ed25519

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EVENT_SIGNING",
    "Certificate",
    "Keyring",
    "MeshCA",
    "Signer",
    "SpiffeId",
    "TrustStatement",
    "check_certificate",
    "check_public_key",
    "key_id",
    "read_certificate",
    "seed_from_pem",
    "seed_to_pem",
]

TRUST_TYPE = "application/vnd.mesh.trust.v1"
TRUST_MAX_AGE_S = 60.0  # reissued every 10 s: five may get lost
MAX_TRUST_BYTES = 1_048_576  # the server's max_payload; some 25,000 revoked keys
MAX_SIGNATURES = 8  # on one statement: a trust key and its successors
_KID = re.compile(r"[A-Za-z0-9_-]{21}[AQgw]")


def seed_to_pem(seed: bytes) -> bytes:
    """The 32-byte seed of an Ed25519 key as PEM PKCS#8, not encrypted: what `event.key` holds."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def seed_from_pem(pem: bytes) -> bytes:
    """The inverse of `seed_to_pem`.

    Raises:
        IdentityError: Not an unencrypted Ed25519 key.
    """
    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError("not an unencrypted PEM key", expected="Ed25519, PKCS#8") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise IdentityError("an event key is Ed25519")
    return private.private_bytes_raw()


class Signer:
    """An event key with its certificate. The seed stays inside; nothing prints it.

    `not_before_ms` and `not_after_ms` bound the signing times that verifiers accept.
    """

    __slots__ = ("_secret", "certificate", "kid", "not_after_ms", "not_before_ms", "spiffe_id")

    def __init__(self, secret: bytes, certificate: Certificate) -> None:
        self._secret = secret
        self.kid = certificate.kid
        self.spiffe_id = certificate.spiffe_id
        self.certificate = certificate.der
        self.not_before_ms = certificate.not_before_ms
        self.not_after_ms = certificate.not_after_ms

    @classmethod
    def from_seed(cls, seed: bytes, certificate_der: bytes) -> Signer:
        """Join a seed of 32 bytes with the certificate of its public key.

        Raises:
            BadCertificate: It cannot be read, or is another key's.
            WeakKey: See `check_public_key`.
        """
        certificate = read_certificate(certificate_der)
        public, secret = crypto_sign_seed_keypair(seed)
        if public != certificate.public_key:
            raise BadCertificate("the certificate is for another key", expected=certificate.kid, got=key_id(public))
        return cls(secret, certificate)

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return crypto_sign(message, self._secret)[:SIGNATURE_BYTES]


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

    `epoch` rises with every statement, so that an older one cannot come back; `issued_ms` lets a reader notice that
    newer ones are being withheld. Unknown fields are refused, since one might restrict: a new field is a new type.
    """

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
        return statement


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_STATEMENT = msgspec.json.Decoder(TrustStatement)


class Keyring:
    """Certificates by key id, and the newest trust statement.

    Args:
        roots: CA certificates, PEM or DER; only what they issued gets in.
        trust_key: Public key of 32 bytes that signs trust statements; None refuses them all.
    """

    __slots__ = ("_certificates", "_roots", "_trust_key", "statement")

    def __init__(self, roots: Sequence[bytes], trust_key: bytes | None) -> None:
        self._roots = tuple(roots)
        self._trust_key = None if trust_key is None else check_public_key(trust_key)
        self._certificates: dict[str, tuple[Certificate, ...]] = {}
        self.statement: TrustStatement | None = None

    def add(self, der: bytes) -> Certificate:
        """Check a certificate and keep it; adding it again changes nothing.

        Raises:
            BadCertificate: No root of ours issued it, it is outside the profile, or its key is already another's.
            WeakKey: See `check_public_key`.
        """
        certificate = check_certificate(der, self._roots)
        held = self._certificates.get(certificate.kid, ())
        if any(other.spiffe_id != certificate.spiffe_id for other in held):
            raise BadCertificate("this key already belongs to another workload", got=certificate.kid)
        if certificate not in held:
            both = sorted((*held, certificate), key=lambda c: c.not_after_ms)
            self._certificates[certificate.kid] = tuple(both)
        return certificate

    def find(self, kid: str, at_ms: int | None = None) -> Certificate | None:
        """The certificate of a key; the one valid at *at_ms* where a key has several, else the one that ends last."""
        held = self._certificates.get(kid)
        if held is None:
            return None
        if at_ms is not None and len(held) > 1:
            for certificate in held:
                if certificate.not_before_ms <= at_ms <= certificate.not_after_ms:
                    return certificate
        return held[-1]

    def apply(self, statement: bytes) -> TrustStatement:
        """Adopt a sealed trust statement if it is newer; the one in force again changes nothing.

        Raises:
            BadTrustStatement: Malformed, not signed by the trust key, or there is no trust key.
            TrustRollback: Its epoch does not rise. The one in force stays.
        """
        if self._trust_key is None:
            raise BadTrustStatement("there is no trust key to check a trust statement with")
        newer, held = TrustStatement.open(statement, self._trust_key), self.statement
        if held is not None and newer.epoch <= held.epoch and newer != held:
            raise TrustRollback(
                f"trust statement of epoch {newer.epoch}, in force is {held.epoch}",
                expected=f"more than {held.epoch}",
                got=str(newer.epoch),
            )
        self.statement = newer
        return newer

    def revoked_from(self, kid: str) -> int | None:
        """Stream time (Unix ms) from which events under this key are refused; None where it is not revoked."""
        return None if self.statement is None else self.statement.revoked.get(kid)

    def check_fresh(self, now_ms: int, max_age_s: float = TRUST_MAX_AGE_S) -> None:
        """Raise unless the trust statement is young enough to rely on.

        Raises:
            StaleTrust: There is none yet, or it is older than *max_age_s* seconds.
        """
        next_step = "is the control plane running, and mesh_trust readable?"
        if self.statement is None:
            raise StaleTrust("no trust statement yet", next=next_step)
        age_s = (now_ms - self.statement.issued_ms) / 1000
        if age_s > max_age_s:
            raise StaleTrust(f"trust statement {age_s:.0f} s old, limit {max_age_s:.0f} s", next=next_step)
