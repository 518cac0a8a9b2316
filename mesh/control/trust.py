"""The mesh CA of one control plane, from files: certificates for agents, the trust statement, and who signs policies.

`trust/ca.crt`, `trust/trust.pub` and `trust/policy.pub` are what everybody may read and has to trust; `ca.key`,
`trust.key` and `admin/policy.key` never leave the control plane. The event keys of a development mesh are files too, so
that a restart goes on with the same identity.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from mesh.control.datadir import hex_key, write_if_changed, write_private
from mesh.identity import MeshCA, Signer, TrustStatement, check_certificate, seed_from_pem, seed_to_pem
from mesh.policy.candidate import seal_candidate
from mesh.policy.envelope import seal_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from mesh.policy.bundle import Bundle
    from mesh.policy.candidate import Candidate


CA_LIFETIME_S = 10 * 365 * 86_400
CERTIFICATE_LIFETIME_S = 30 * 86_400  # a mesh on a laptop has no enrolment to renew by, and is restarted more often
RENEW_AT = 0.5  # of the lifetime: at the next start
SEED_BYTES = 32


class Authority:
    """The CA, the trust key and the policy key of a data directory; made on first use.

    Args:
        directory: Of what is trusted.
        policy_key: The file of the policy key, which is apart from it.
        trust_domain: Of the certificates.
        now_ms: Unix milliseconds.
    """

    def __init__(self, directory: Path, policy_key: Path, *, trust_domain: str, now_ms: int) -> None:
        self._directory = directory
        crt, key = directory / "ca.crt", directory / "ca.key"
        if not (crt.exists() and key.exists()):
            made = MeshCA.create(trust_domain, now_ms=now_ms, lifetime_s=CA_LIFETIME_S)
            write_private(key, made.key_pem)
            write_private(crt, made.cert_pem)
        self.ca = MeshCA.from_pem(crt.read_bytes(), key.read_bytes())
        self._trust_seed = hex_key(directory / "trust.key")
        self.trust_public = _public(self._trust_seed)
        write_private(directory / "trust.pub", self.trust_public.hex().encode() + b"\n")
        self._policy_seed = hex_key(policy_key)
        self.policy_public = _public(self._policy_seed)
        write_if_changed(directory / "policy.pub", self.policy_public.hex().encode() + b"\n")

    def statement(self, *, epoch: int, now_ms: int) -> bytes:
        """The signed statement of who is revoked (nobody, before revocation is built), as of now."""
        return TrustStatement(epoch=epoch, issued_ms=now_ms, revoked={}).seal(self._trust_seed)

    def seal(self, bundle: Bundle) -> bytes:
        """*bundle* in its envelope, signed with the policy key.

        Raises:
            BadBundle: It is too large.
        """
        return seal_bundle(bundle, self._policy_seed)

    def seal_candidate(self, candidate: Candidate) -> bytes:
        """*candidate* in its envelope, signed with the policy key as what it is.

        Raises:
            BadBundle: It is too large.
        """
        return seal_candidate(candidate, self._policy_seed)

    def signer(self, directory: Path, spiffe_id: str, *, now_ms: int) -> Signer:
        """The event key of an agent and its certificate; made, or replaced past half its life, where needed.

        Key and certificate are replaced together: the trust store keeps one certificate a key, and events sealed under
        the old one go on to verify by it.

        Raises:
            IdentityError: `event.key` is not a key; delete it, and a new one is made.
        """
        key_file, certificate_file = directory / "event.key", directory / "event.crt"
        if key_file.exists() and certificate_file.exists():
            held = check_certificate(_der(certificate_file), [self.ca.cert_pem])
            renew_ms = held.not_before_ms + RENEW_AT * (held.not_after_ms - held.not_before_ms)
            if str(held.spiffe_id) == spiffe_id and now_ms < renew_ms:
                return Signer.from_seed(seed_from_pem(key_file.read_bytes()), held.der)
        seed = secrets.token_bytes(SEED_BYTES)
        public = _public(seed)
        der = self.ca.issue(spiffe_id, public, now_ms=now_ms, lifetime_s=CERTIFICATE_LIFETIME_S)
        write_private(key_file, seed_to_pem(seed))
        write_private(certificate_file, x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
        return Signer.from_seed(seed, der)


def _public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def _der(file: Path) -> bytes:
    return x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(Encoding.DER)
