"""The mesh CA of one control plane, from files: certificates for agents, and the trust statement that all verify by.

`trust/ca.crt` and `trust/trust.pub` are what everybody may read and has to trust; `ca.key` and `trust.key` never leave
the control plane. The event keys of a development mesh are files too, so that a restart goes on with the same identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from mesh.control.datadir import hex_key, write_private
from mesh.errors import ConfigError, IdentityError
from mesh.identity import MeshCA, Signer, TrustStatement, check_certificate

if TYPE_CHECKING:
    from pathlib import Path

    from mesh.control.datadir import DataDirectory

CA_LIFETIME_S = 10 * 365 * 86_400
CERTIFICATE_LIFETIME_S = 30 * 86_400  # a mesh on a laptop has no enrolment to renew by, and is restarted more often
RENEW_AT = 0.5  # of the lifetime: at the next start


class Authority:
    """The CA and the trust key of a data directory; made on first use."""

    def __init__(self, directory: Path, *, trust_domain: str, now_ms: int) -> None:
        self._directory = directory
        crt, key = directory / "ca.crt", directory / "ca.key"
        if not (crt.exists() and key.exists()):
            made = MeshCA.create(trust_domain, now_ms=now_ms, lifetime_s=CA_LIFETIME_S)
            write_private(key, made.key_pem)
            write_private(crt, made.cert_pem)
        self.ca = MeshCA.from_pem(crt.read_bytes(), key.read_bytes())
        self._trust_seed = hex_key(directory / "trust.key")
        self.trust_public = Ed25519PrivateKey.from_private_bytes(self._trust_seed).public_key().public_bytes_raw()
        write_private(directory / "trust.pub", self.trust_public.hex().encode() + b"\n")

    def statement(self, *, epoch: int, now_ms: int) -> bytes:
        """The signed statement of who is revoked (nobody, before revocation is built), as of now."""
        return TrustStatement(epoch=epoch, issued_ms=now_ms, revoked={}).seal(self._trust_seed)

    def signer(self, agent_directory: Path, spiffe_id: str, *, now_ms: int) -> Signer:
        """The event key of an agent and its certificate; made, or renewed past half its life, where needed.

        Raises:
            ConfigError: `event.key` is not a key.
        """
        key_file, certificate_file = agent_directory / "event.key", agent_directory / "event.crt"
        if not key_file.exists():
            pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_private(key_file, pem)
        key = load_pem_private_key(key_file.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(
                f"{key_file} is not an event key", expected="an Ed25519 key", next="delete it: a new one is made"
            )
        seed, public = key.private_bytes_raw(), key.public_key().public_bytes_raw()
        if not self._good(certificate_file, spiffe_id, public, now_ms):
            der = self.ca.issue(spiffe_id, public, now_ms=now_ms, lifetime_s=CERTIFICATE_LIFETIME_S)
            write_private(certificate_file, x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
        return Signer.from_seed(seed, _der(certificate_file))

    def _good(self, file: Path, spiffe_id: str, public: bytes, now_ms: int) -> bool:
        if not file.exists():
            return False
        try:
            held = check_certificate(_der(file), [self.ca.cert_pem])
        except (IdentityError, ValueError):
            return False
        renew_ms = held.not_before_ms + RENEW_AT * (held.not_after_ms - held.not_before_ms)
        return str(held.spiffe_id) == spiffe_id and held.public_key == public and now_ms < renew_ms


def open_authority(data: DataDirectory, *, trust_domain: str, now_ms: int) -> Authority:
    """The authority of a data directory."""
    return Authority(data.trust, trust_domain=trust_domain, now_ms=now_ms)


def _der(file: Path) -> bytes:
    return x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(Encoding.DER)
