"""The two CAs of a trust domain: a root that may be taken away, and the mesh CA that issues certificates every day.

Each certificate has one purpose: an event certificate (its profile is in `mesh.certificates`), a TLS client's or a TLS
server's. None of them verifies as another, since each has an extended key usage of its own and nothing beside it.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.authorities import ca_kid, key_usage, load_cas, path_length, to_ms, to_utc, trust_domain_of
from mesh.certificates import EVENT_SIGNING
from mesh.errors import BadCertificate, BadSpiffeId
from mesh.keys import TRUST_DOMAIN, SpiffeId, check_public_key, spki_id

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAF_LIFETIME_S = 86_400  # rotated at half of it
CA_LIFETIME_S = 365 * 86_400  # renewed at half of it, where the root's key is there
ROOT_LIFETIME_S = 10 * 365 * 86_400
BACKDATE_S = 60  # so that an agent whose clock is behind the CA's can sign at once; V7 allows 30 s anyway
_NAME_CHARS = 64  # X.520, upper bound of a common name
_KID_CHARS = 8  # of a CA's kid, in its name: enough for a path to be found without trying each CA of a trust domain
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
_DNS_NAME = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")  # RFC 1123, 2.1; digits alone end an address
_MAX_DNS_CHARS = 253


class _Authority:
    """A P-256 key and the CA certificate over it."""

    __slots__ = ("_certificate", "_key", "kid", "not_after_ms", "not_before_ms", "trust_domain")

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key
        self.kid = ca_kid(certificate)
        self.trust_domain = trust_domain_of(certificate)
        self.not_before_ms = to_ms(certificate.not_valid_before_utc)
        self.not_after_ms = to_ms(certificate.not_valid_after_utc)

    @property
    def cert_pem(self) -> bytes:
        """The certificate, PEM."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key, PEM, not encrypted: keep it in a file that only the control plane reads."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def _sign(
        self, unsigned: x509.CertificateBuilder, *, now_ms: int, lifetime_s: float, backdate_s: float = BACKDATE_S
    ) -> x509.Certificate:
        """Sign what is to be valid from shortly before now for *lifetime_s* seconds, cut to our own validity."""
        ours, now = self._certificate, to_utc(now_ms)
        if not ours.not_valid_before_utc <= now < ours.not_valid_after_utc:
            raise BadCertificate("the CA's own certificate is not valid now", next="make a new CA")
        first = max(ours.not_valid_before_utc, now - timedelta(seconds=backdate_s))
        last = min(ours.not_valid_after_utc, now + timedelta(seconds=lifetime_s))
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        named = unsigned.issuer_name(ours.subject).add_extension(issuer_key, critical=False)
        return named.not_valid_before(first).not_valid_after(last).sign(self._key, hashes.SHA256())


class RootCA(_Authority):
    """The root of one trust domain: everybody has its certificate, and its key signs mesh CAs, nothing else."""

    __slots__ = ()

    @classmethod
    def create(cls, trust_domain: str, *, now_ms: int, lifetime_s: float = ROOT_LIFETIME_S) -> RootCA:
        """Make a new root with a new key, valid from shortly before *now_ms* for *lifetime_s* seconds.

        Raises:
            BadSpiffeId: Not a trust domain.
        """
        if TRUST_DOMAIN.fullmatch(trust_domain) is None:
            raise BadSpiffeId("not a trust domain", expected=TRUST_DOMAIN.pattern)
        key, now = ec.generate_private_key(ec.SECP256R1()), to_utc(now_ms)
        signed = (
            _ca_builder("mesh root", trust_domain, key.public_key(), now_ms, path_length=1)
            .issuer_name(_ca_name("mesh root", trust_domain, key.public_key()))
            .not_valid_before(now - timedelta(seconds=2 * BACKDATE_S))
            .not_valid_after(now + timedelta(seconds=lifetime_s))
            .sign(key, hashes.SHA256())
        )
        return cls(signed, key)

    @classmethod
    def from_pem(cls, cert_pem: bytes, key_pem: bytes) -> RootCA:
        """Read a root from its two files.

        Raises:
            BadCertificate: Not a root that may sign mesh CAs, or the key is another one's.
        """
        certificate, key = _read_pair(cert_pem, key_pem)
        if certificate.issuer != certificate.subject or path_length(certificate) == 0:
            raise BadCertificate("not a root that may certify a mesh CA", next="make a new root")
        return cls(certificate, key)

    def issue_ca(self, *, now_ms: int, lifetime_s: float = CA_LIFETIME_S) -> MeshCA:
        """Make a new mesh CA with a new key.

        Raises:
            BadCertificate: The root itself is not valid now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        unsigned = _ca_builder("mesh CA", self.trust_domain, key.public_key(), now_ms, path_length=0)
        signed = self._sign(unsigned, now_ms=now_ms, lifetime_s=lifetime_s, backdate_s=2 * BACKDATE_S)
        return MeshCA(signed, key, root_pem=self.cert_pem)


class MeshCA(_Authority):
    """The CA that issues: an intermediate under a root. It sets every name itself.

    `root_pem` is its root's certificate, where that was given.
    """

    __slots__ = ("root_pem",)

    def __init__(
        self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, *, root_pem: bytes = b""
    ) -> None:
        super().__init__(certificate, key)
        self.root_pem = root_pem

    @classmethod
    def create(cls, trust_domain: str, *, now_ms: int, lifetime_s: float = CA_LIFETIME_S) -> MeshCA:
        """Make a new mesh CA under a new root whose key is thrown away: for whoever needs certificates for a while."""
        return RootCA.create(trust_domain, now_ms=now_ms).issue_ca(now_ms=now_ms, lifetime_s=lifetime_s)

    @classmethod
    def from_pem(cls, cert_pem: bytes, key_pem: bytes, *, root_pem: bytes = b"") -> MeshCA:
        """Read a mesh CA from its two files.

        Raises:
            BadCertificate: Not an intermediate of the profile, or the key is another one's.
        """
        certificate, key = _read_pair(cert_pem, key_pem)
        if certificate.issuer == certificate.subject or path_length(certificate) != 0:
            raise BadCertificate("not a mesh CA: an intermediate of path length 0", next="issue one with the root")
        return cls(certificate, key, root_pem=root_pem)

    def issue(self, spiffe_id: str, public_key: bytes, *, now_ms: int, lifetime_s: float = LEAF_LIFETIME_S) -> bytes:
        """Issue an event certificate: the chain, DER.

        Args:
            spiffe_id: Of this trust domain; the caller has established that the key's holder is that workload.
            public_key: Ed25519, 32 bytes. A renewal takes a new key: events signed under the old one keep theirs.
            now_ms: Unix milliseconds.
            lifetime_s: Seconds; cut to the CA's own end.

        Raises:
            BadSpiffeId: Malformed, or of another trust domain.
            WeakKey: See `check_public_key`.
            BadCertificate: The CA itself is not valid now.
        """
        names = self._workload(spiffe_id)
        public = Ed25519PublicKey.from_public_bytes(check_public_key(public_key))
        unsigned = _leaf_builder(names, public, now_ms, EVENT_SIGNING)
        leaf = self._sign(unsigned, now_ms=now_ms, lifetime_s=lifetime_s)
        return leaf.public_bytes(Encoding.DER) + self._certificate.public_bytes(Encoding.DER)

    def issue_tls_client(
        self, spiffe_id: str, *, now_ms: int, lifetime_s: float = LEAF_LIFETIME_S
    ) -> tuple[bytes, bytes]:
        """Make a TLS client's key and certificate: its chain and its private key, PEM.

        Raises:
            BadSpiffeId: Malformed, or of another trust domain.
            BadCertificate: The CA itself is not valid now.
        """
        names = self._workload(spiffe_id)
        return self._issue_tls(names, ExtendedKeyUsageOID.CLIENT_AUTH, now_ms=now_ms, lifetime_s=lifetime_s)

    def issue_tls_server(
        self, names: Sequence[str], *, now_ms: int, lifetime_s: float = LEAF_LIFETIME_S
    ) -> tuple[bytes, bytes]:
        """Make a TLS server's key and certificate for DNS names and IP addresses: its chain and its private key, PEM.

        Raises:
            BadCertificate: A name is neither, there is none, or the CA itself is not valid now.
        """
        if not names:
            raise BadCertificate("a server needs a name", expected="DNS names or IP addresses")
        known = x509.SubjectAlternativeName([_server_name(name) for name in names])
        return self._issue_tls(known, ExtendedKeyUsageOID.SERVER_AUTH, now_ms=now_ms, lifetime_s=lifetime_s)

    def _issue_tls(
        self, names: x509.SubjectAlternativeName, purpose: x509.ObjectIdentifier, *, now_ms: int, lifetime_s: float
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        unsigned = _leaf_builder(names, key.public_key(), now_ms, purpose)
        leaf = self._sign(unsigned, now_ms=now_ms, lifetime_s=lifetime_s)
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return leaf.public_bytes(Encoding.PEM) + self.cert_pem, key_pem

    def _workload(self, spiffe_id: str) -> x509.SubjectAlternativeName:
        workload = SpiffeId.parse(spiffe_id)
        if workload.trust_domain != self.trust_domain:
            raise BadSpiffeId(
                "the id is of another trust domain", expected=self.trust_domain, got=workload.trust_domain
            )
        return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(workload)])


def _ca_name(what: str, trust_domain: str, public: ec.EllipticCurvePublicKey) -> x509.Name:
    kid = spki_id(_spki(public))
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"{what} {kid[:_KID_CHARS]} of {trust_domain}"[:_NAME_CHARS])]
    )


def _ca_builder(
    what: str, trust_domain: str, public: ec.EllipticCurvePublicKey, now_ms: int, *, path_length: int
) -> x509.CertificateBuilder:
    """A CA certificate, but for issuer and validity."""
    domain = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")])
    return (
        x509.CertificateBuilder()
        .subject_name(_ca_name(what, trust_domain, public))
        .serial_number(_serial(public, now_ms))
        .public_key(public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(key_usage(key_cert_sign=True), critical=True)
        .add_extension(domain, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _leaf_builder(
    names: x509.SubjectAlternativeName,
    public: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    now_ms: int,
    purpose: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    """A leaf, but for issuer and validity."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .serial_number(_serial(public, now_ms))
        .public_key(public)
        .add_extension(names, critical=True)
        .add_extension(key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    )


def _spki(public: ec.EllipticCurvePublicKey | Ed25519PublicKey) -> bytes:
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _serial(public: ec.EllipticCurvePublicKey | Ed25519PublicKey, now_ms: int) -> int:
    """A serial number that follows from key and time: unique, without chance of our own."""
    return int.from_bytes(sha256(_spki(public) + now_ms.to_bytes(8, "big")).digest()[:16], "big") | 1


def _server_name(name: str) -> x509.GeneralName:
    if len(name) <= _MAX_DNS_CHARS and _DNS_NAME.fullmatch(name) is not None:
        return x509.DNSName(name)
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        address = None
    if address is None or "%" in name:  # a certificate has no place for the zone of an address
        raise BadCertificate("not a server's name", expected="a DNS name or an IP address", got=name[:80])
    return x509.IPAddress(address)


def _read_pair(cert_pem: bytes, key_pem: bytes) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A CA certificate of the profile and its private key."""
    certificate = load_cas(cert_pem)[0]
    try:
        key = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadCertificate("the CA's key is no unencrypted PEM key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise BadCertificate("the CA's key and certificate do not belong together")
    return certificate, key
