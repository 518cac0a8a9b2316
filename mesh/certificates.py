"""Who a key belongs to: the certificate profile of event keys, and the mesh CA that issues them.

The profile, checked at issue and again by everybody who receives a certificate: an ECDSA P-256 CA whose one URI SAN is
its trust domain; under it, without intermediates, an Ed25519 leaf with a critical SAN of exactly one SPIFFE id of that
domain, a critical extended key usage that holds our private OID alone, and a critical key usage of digitalSignature
alone. Stock verifiers accept more than that (no EKU, several SANs, small-order keys), hence the checks of our own.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from mesh.errors import BadCertificate, BadSpiffeId
from mesh.keys import TRUST_DOMAIN, Certificate, SpiffeId, check_public_key, key_id

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENT_SIGNING = x509.ObjectIdentifier(
    "2.25.198375390399600205831974807597014566871"
)  # the private EKU; ITU-T X.667 arc
LEAF_LIFETIME_S = 86_400  # rotated at half of it
CA_LIFETIME_S = 10 * 365 * 86_400
BACKDATE_S = 60  # so that an agent whose clock is behind the CA's can sign at once; V7 allows 30 s anyway


def read_certificate(der: bytes) -> Certificate:
    """Read a certificate and check all of its profile but the issuer.

    Raises:
        BadCertificate: Malformed or outside the profile.
        WeakKey: See `check_public_key`.
    """
    return _read(_load(der))


def check_certificate(der: bytes, roots: Sequence[bytes]) -> Certificate:
    """Check that a root issued the certificate, within the root's own validity, for a workload of its trust domain.

    No clock is read: whether the certificate was valid when an event was signed is V4's question, at signing time.

    Args:
        der: The certificate, DER.
        roots: CA certificates, PEM or DER.

    Raises:
        BadCertificate: Malformed, outside the profile, or issued by none of the roots.
        WeakKey: See `check_public_key`.
    """
    leaf = _load(der)
    certificate = _read(leaf)
    anchors = [_load_root(root) for root in roots]
    if not anchors:
        raise BadCertificate("there is no root to check a certificate against")
    builder = PolicyBuilder().store(Store(anchors)).time(leaf.not_valid_before_utc).max_chain_depth(0)
    policies = builder.extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=_LEAF_POLICY)
    try:
        chain = policies.build_client_verifier().verify(leaf, []).chain
    except VerificationError as error:
        raise BadCertificate(f"certificate not accepted: {error}") from error
    root = chain[-1]
    if leaf.not_valid_after_utc > root.not_valid_after_utc:
        raise BadCertificate("the certificate outlives its issuer")
    if certificate.spiffe_id.trust_domain != _trust_domain(root):
        raise BadCertificate("the issuer does not speak for this trust domain", got=certificate.spiffe_id.trust_domain)
    return certificate


class MeshCA:
    """The CA of one trust domain: a P-256 key and its self-signed certificate. It sets every SPIFFE id itself."""

    __slots__ = ("_certificate", "_key", "trust_domain")

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key
        self.trust_domain = _trust_domain(certificate)

    @classmethod
    def create(cls, trust_domain: str, *, now_ms: int, lifetime_s: float = CA_LIFETIME_S) -> MeshCA:
        """Make a new CA with a new key, valid from shortly before *now_ms* for *lifetime_s* seconds."""
        if TRUST_DOMAIN.fullmatch(trust_domain) is None:
            raise BadSpiffeId("not a trust domain", expected=TRUST_DOMAIN.pattern)
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key()
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"mesh CA of {trust_domain}"[:64])])
        domain = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")])
        point = public.public_numbers()
        unsigned = (
            _builder(name, name, point.x.to_bytes(32, "big"), now_ms)
            .public_key(public)
            .not_valid_before(_utc(now_ms) - timedelta(seconds=2 * BACKDATE_S))
            .not_valid_after(_utc(now_ms) + timedelta(seconds=lifetime_s))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True), critical=True)
            .add_extension(domain, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        return cls(unsigned.sign(key, hashes.SHA256()), key)

    @classmethod
    def from_pem(cls, cert_pem: bytes, key_pem: bytes) -> MeshCA:
        """Read a CA from its two files.

        Raises:
            BadCertificate: Not a CA of the profile, or the key is another one's.
        """
        certificate = _load_root(cert_pem)
        try:
            key = load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise BadCertificate("the CA's key is no unencrypted PEM key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise BadCertificate("the CA's key and certificate do not belong together")
        return cls(certificate, key)

    @property
    def cert_pem(self) -> bytes:
        """The certificate, PEM: the root that everybody checks against."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key, PEM, not encrypted: keep it in a file that only the control plane reads."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def issue(self, spiffe_id: str, public_key: bytes, *, now_ms: int, lifetime_s: float = LEAF_LIFETIME_S) -> bytes:
        """Issue an event-signing certificate, DER.

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
        workload = SpiffeId.parse(spiffe_id)
        if workload.trust_domain != self.trust_domain:
            raise BadSpiffeId(
                "the id is of another trust domain", expected=self.trust_domain, got=workload.trust_domain
            )
        ours = self._certificate
        now = _utc(now_ms)
        if not ours.not_valid_before_utc <= now < ours.not_valid_after_utc:
            raise BadCertificate("the CA's own certificate is not valid now", next="make a new CA")
        public = Ed25519PublicKey.from_public_bytes(check_public_key(public_key))
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(workload)])
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        unsigned = (
            _builder(x509.Name([]), ours.subject, public_key, now_ms)
            .public_key(public)
            .not_valid_before(max(ours.not_valid_before_utc, now - timedelta(seconds=BACKDATE_S)))
            .not_valid_after(min(ours.not_valid_after_utc, now + timedelta(seconds=lifetime_s)))
            .add_extension(names, critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([EVENT_SIGNING]), critical=True)
            .add_extension(issuer_key, critical=False)
        )
        return unsigned.sign(self._key, hashes.SHA256()).public_bytes(Encoding.DER)


def _utc(ms: int) -> datetime:
    return datetime.fromtimestamp(ms // 1000, tz=UTC)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000


def _builder(subject: x509.Name, issuer: x509.Name, key: bytes, now_ms: int) -> x509.CertificateBuilder:
    """A builder whose serial number follows from key and time: unique, without chance of our own."""
    serial = int.from_bytes(sha256(key + now_ms.to_bytes(8, "big")).digest()[:16], "big") | 1
    return x509.CertificateBuilder(issuer_name=issuer, subject_name=subject, serial_number=serial)


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise BadCertificate("not a DER certificate") from error


def _load_root(data: bytes) -> x509.Certificate:
    """A CA certificate of the profile, from PEM or DER."""
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        root = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
        key = root.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadCertificate("the root is no PEM or DER certificate") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadCertificate("the root's key is not ECDSA P-256")
    _trust_domain(root)
    return root


def _one_uri(certificate: x509.Certificate) -> str:
    try:
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise BadCertificate("the certificate's alternative names cannot be read") from error
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise BadCertificate("expected exactly one URI as alternative name", got=f"{len(names)} names")
    return names[0].value


def _trust_domain(root: x509.Certificate) -> str:
    """SPIFFE X.509-SVID 3.2: a signing certificate's URI names its trust domain and has no path."""
    prefix, _, domain = _one_uri(root).partition("://")
    if prefix != "spiffe" or TRUST_DOMAIN.fullmatch(domain) is None:
        raise BadCertificate("the root's URI names no trust domain", expected="spiffe://<trust domain>")
    return domain


def _read(leaf: x509.Certificate) -> Certificate:
    try:
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadCertificate("the certificate's key cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadCertificate("an event key is Ed25519")
    raw = check_public_key(key.public_bytes_raw())
    try:
        spiffe_id = SpiffeId.parse(_one_uri(leaf))
    except BadSpiffeId as error:
        raise BadCertificate("the alternative name is no workload's SPIFFE id", expected=error.expected) from error
    first, last = _ms(leaf.not_valid_before_utc), _ms(leaf.not_valid_after_utc)
    return Certificate(key_id(raw), spiffe_id, raw, first, last, leaf.public_bytes(Encoding.DER))


def _event_signing_alone(_policy: Policy, _leaf: x509.Certificate, usage: x509.ExtendedKeyUsage) -> None:
    if list(usage) != [EVENT_SIGNING]:
        raise ValueError("the extended key usage is not event signing alone")


def _signature_alone(_policy: Policy, _leaf: x509.Certificate, usage: x509.KeyUsage) -> None:
    if usage != _key_usage(digital_signature=True):
        raise ValueError("the key usage is not digital signature alone")


def _no_authority(_policy: Policy, _leaf: x509.Certificate, basic: x509.BasicConstraints | None) -> None:
    if basic is not None and basic.ca:
        raise ValueError("an event key is no CA")


_LEAF_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.SubjectAlternativeName, Criticality.CRITICAL, None)  # its content: `_read`
    .require_present(x509.ExtendedKeyUsage, Criticality.CRITICAL, _event_signing_alone)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _signature_alone)
    .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _no_authority)
    .require_not_present(x509.NameConstraints)
)
