"""Whom a process believes: its own signing key, the trust statement of who is revoked, and the keyring of the rest.

Certificates are believed because a root issued them (`mesh.certificates`), the trust statement because the trust key
signed it. So both may travel through a broker that nobody trusts: the worst it can do is to withhold them, and a
statement that is too old says so.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from mesh.authorities import ca_kid, load_cas
from mesh.certificates import EVENT_SIGNING, check_chain, read_certificate, split_chain
from mesh.errors import BadCertificate, BadTrustStatement, IdentityError, StaleTrust, TrustRollback
from mesh.keys import Certificate, SpiffeId, check_public_key, key_id
from mesh.statements import SIGNATURE_BYTES
from mesh.trust_statement import MAX_TRUST_BYTES, TrustStatement

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EVENT_SIGNING",
    "MAX_TRUST_BYTES",
    "Certificate",
    "Keyring",
    "Signer",
    "SpiffeId",
    "TrustStatement",
    "check_chain",
    "check_public_key",
    "key_id",
    "read_certificate",
    "seed_from_pem",
    "seed_to_pem",
]

TRUST_MAX_AGE_S = 60.0  # reissued every 10 s: five may get lost


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

    `certificate` is the whole chain. `not_before_ms` and `not_after_ms` bound the signing times that verifiers accept.
    `issuer_kid` names the key of the intermediate that signed the certificate; empty where a root did.
    """

    __slots__ = ("_secret", "certificate", "issuer_kid", "kid", "not_after_ms", "not_before_ms", "spiffe_id")

    def __init__(self, secret: bytes, certificate: Certificate) -> None:
        self._secret = secret
        self.kid = certificate.kid
        self.spiffe_id = certificate.spiffe_id
        self.issuer_kid = certificate.issuer_kid
        self.certificate = certificate.chain
        self.not_before_ms = certificate.not_before_ms
        self.not_after_ms = certificate.not_after_ms

    @classmethod
    def from_seed(cls, seed: bytes, chain: bytes) -> Signer:
        """Join a seed of 32 bytes with the certificate chain of its public key. No root is asked: `check_chain` does.

        Raises:
            BadCertificate: It cannot be read, or is another key's.
            WeakKey: See `check_public_key`.
        """
        leaf, *issuers = split_chain(chain)
        certificate = read_certificate(leaf)
        public, secret = crypto_sign_seed_keypair(seed)
        if public != certificate.public_key:
            raise BadCertificate("the certificate is for another key", expected=certificate.kid, got=key_id(public))
        issuer_kid = ca_kid(load_cas(issuers[0])[0]) if issuers else ""
        return cls(secret, replace(certificate, issuer_kid=issuer_kid, chain=chain))

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return crypto_sign(message, self._secret)[:SIGNATURE_BYTES]


class Keyring:
    """Certificates by key id, and the newest trust statement.

    `revision` rises whenever other revocations come into force: whoever keeps verdicts judges them again then.

    Args:
        roots: CA certificates, PEM (of one or more) or DER; only what they issued gets in.
        trust_key: Public key of 32 bytes that signs trust statements; None refuses them all.
        tenant: Whose trust statements are taken; None takes any tenant's.
    """

    __slots__ = ("_certificates", "_roots", "_tenant", "_trust_key", "revision", "statement")

    def __init__(self, roots: Sequence[bytes], trust_key: bytes | None, *, tenant: str | None = None) -> None:
        self._roots = tuple(roots)
        self._trust_key = None if trust_key is None else check_public_key(trust_key)
        self._tenant = tenant
        self._certificates: dict[str, tuple[Certificate, ...]] = {}
        self.statement: TrustStatement | None = None
        self.revision = 0

    def add(self, chain: bytes) -> Certificate:
        """Check a certificate chain and keep it; adding it again changes nothing.

        Raises:
            BadCertificate: No root of ours issued it, it is outside the profile, or its key is already another's.
            WeakKey: See `check_public_key`.
        """
        certificate = check_chain(chain, self._roots)
        held = self._certificates.get(certificate.kid, ())
        if any(other.spiffe_id != certificate.spiffe_id for other in held):
            raise BadCertificate("this key already belongs to another workload", got=certificate.kid)
        if certificate not in held:
            both = sorted((*held, certificate), key=lambda c: c.not_after_ms)
            self._certificates[certificate.kid] = tuple(both)
        return certificate

    def certificates(self) -> list[Certificate]:
        """Every certificate held."""
        return [certificate for held in self._certificates.values() for certificate in held]

    def forget(self, before_ms: int) -> None:
        """Drop the certificates that ended before that: as long as events are kept, theirs are needed."""
        self._certificates = {
            kid: kept
            for kid, held in self._certificates.items()
            if (kept := tuple(certificate for certificate in held if certificate.not_after_ms >= before_ms))
        }

    def find(self, kid: str, at_ms: int | None = None) -> Certificate | None:
        """The certificate of a key; the one valid at *at_ms* where a key has several, else the one that ends last.

        Of several that are valid then, it is the one that is refused last.
        """
        held = self._certificates.get(kid)
        if held is None:
            return None
        if at_ms is not None and len(held) > 1:
            valid = [c for c in held if c.not_before_ms <= at_ms <= c.not_after_ms]
            if valid:
                return max(valid, key=self._refused_order)
        return held[-1]

    def apply(self, statement: bytes) -> TrustStatement:
        """Adopt a sealed trust statement if it is newer; the one in force again changes nothing.

        Raises:
            BadTrustStatement: Malformed, not signed by the trust key, another tenant's, or there is no trust key.
            TrustRollback: Its epoch does not rise. The one in force stays.
        """
        if self._trust_key is None:
            raise BadTrustStatement("there is no trust key to check a trust statement with")
        newer, held = TrustStatement.open(statement, self._trust_key), self.statement
        if self._tenant is not None and newer.tenant != self._tenant:
            raise BadTrustStatement("a trust statement of another tenant", expected=self._tenant, got=newer.tenant)
        if held is not None and newer.epoch <= held.epoch and newer != held:
            raise TrustRollback(
                f"trust statement of epoch {newer.epoch}, in force is {held.epoch}",
                expected=f"more than {held.epoch}",
                got=str(newer.epoch),
            )
        self.statement = newer
        if newer.revoked != ({} if held is None else held.revoked):
            self.revision += 1
        return newer

    def revoked_from(self, kid: str) -> int | None:
        """Stream time (Unix ms) from which events under this key are refused; None where it is not revoked.

        A key is revoked by its own name or by its issuer's. Where it was certified more than once, the certificate
        that is refused last decides.
        """
        if self.statement is None:
            return None
        held = self._certificates.get(kid, ())
        if not held:
            return self.statement.revoked.get(kid)
        return self.refused_from(max(held, key=self._refused_order))

    def refused_from(self, certificate: Certificate) -> int | None:
        """Stream time (Unix ms) from which events under this certificate are refused; None where it is not revoked."""
        if self.statement is None:
            return None
        revoked = self.statement.revoked
        own, issuer = revoked.get(certificate.kid), revoked.get(certificate.issuer_kid)
        if own is None or issuer is None:
            return issuer if own is None else own
        return min(own, issuer)

    def _refused_order(self, certificate: Certificate) -> float:
        refused = self.refused_from(certificate)
        return inf if refused is None else refused

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
