"""Who a key belongs to: the profile of event certificates, chains of them, and requests for one.

The profile, checked at issue (`mesh.ca`) and again by everybody who receives a certificate:

    root CA   ECDSA P-256, offline; its one URI SAN is its trust domain
    mesh CA   ECDSA P-256, an intermediate of path length 0; the same URI SAN
    leaf      Ed25519; critical SAN of exactly one SPIFFE id of that domain, critical extended key usage that holds our
              private OID alone, critical key usage of digitalSignature alone

A *chain* is the DER leaf followed by the DER mesh CA, concatenated. A leaf that a root signed itself is a chain of one.
Stock verifiers accept more than that (no EKU, several SANs, small-order keys), hence the checks of our own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from mesh.authorities import ca_kid, extension, key_usage, load_cas, one_uri, path_length, to_ms, trust_domain_of
from mesh.errors import BadCertificate, BadEnrolment, BadSpiffeId
from mesh.keys import Certificate, SpiffeId, check_public_key, key_id
from mesh.statements import verify_ed25519

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EVENT_SIGNING = x509.ObjectIdentifier(
    "2.25.198375390399600205831974807597014566871"
)  # the private EKU; ITU-T X.667 arc
MAX_CHAIN = 2  # certificates: a leaf, and the intermediate that signed it where no root did
MAX_CHAIN_BYTES = 16_384  # ours have about 1,000; a limit for what a stranger stores
MAX_CSR_BYTES = 4096  # ours have about 150; names in it, which nobody reads, may make it longer
_SEQUENCE = 0x30  # X.690, 8.9.1: the tag of a certificate
_LONG_FORM = 0x80  # X.690, 8.1.3.5: the first octet of a length that follows in as many octets


def split_chain(data: bytes) -> tuple[bytes, ...]:
    """The DER certificates of a chain, leaf first; none of them is checked.

    Raises:
        BadCertificate: Empty, too large, more than a leaf and one intermediate, or no sequence of DER items.
    """
    if not 0 < len(data) <= MAX_CHAIN_BYTES:
        expected = f"1 to {MAX_CHAIN_BYTES} bytes"
        raise BadCertificate("not a certificate chain", expected=expected, got=f"{len(data)} bytes")
    items = tuple(_der_items(data))
    if len(items) > MAX_CHAIN:
        raise BadCertificate("the chain is too long", expected=f"at most {MAX_CHAIN} certificates", got=str(len(items)))
    return items


def read_certificate(der: bytes) -> Certificate:
    """Read one event certificate and check all of its profile but the issuer.

    Raises:
        BadCertificate: Malformed or outside the profile.
        WeakKey: See `check_public_key`.
    """
    return _read(_load(der), der)


def check_chain(chain: bytes, roots: Sequence[bytes]) -> Certificate:
    """Check that a root issued the certificate, itself or through the intermediate, for a workload of its trust domain.

    No clock is read: whether the certificate was valid when an event was signed is V4's question, at signing time. All
    the certificates above it have to cover its whole validity.

    Args:
        chain: The event certificate, DER, and the intermediate's after it where there is one.
        roots: CA certificates: DER, or PEM of one or more.

    Raises:
        BadCertificate: Malformed, outside the profile, or issued by none of the roots.
        WeakKey: See `check_public_key`.
    """
    first, *rest = split_chain(chain)
    leaf, between = _load(first), [ca for der in rest for ca in load_cas(der)]
    certificate = _read(leaf, chain)
    if any(path_length(ca) != 0 for ca in between):
        raise BadCertificate("an intermediate may certify leaves alone", expected="path length 0")
    anchors = [root for data in roots for root in load_cas(data)]
    if not anchors:
        raise BadCertificate("there is no root to check a certificate against")
    builder = PolicyBuilder().store(Store(anchors)).time(leaf.not_valid_before_utc).max_chain_depth(MAX_CHAIN - 1)
    policies = builder.extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
    try:
        issuers = policies.build_client_verifier().verify(leaf, between).chain[1:]
    except VerificationError as error:
        raise BadCertificate(f"certificate not accepted: {error}") from error
    if between and issuers[0] != between[0]:
        raise BadCertificate("the chain holds a certificate that did not issue the one before it")
    if any(leaf.not_valid_after_utc > ca.not_valid_after_utc for ca in issuers):
        raise BadCertificate("the certificate outlives its issuer")
    domain = certificate.spiffe_id.trust_domain
    if any(trust_domain_of(ca) != domain for ca in issuers):
        raise BadCertificate("the issuer does not speak for this trust domain", got=domain)
    return replace(certificate, issuer_kid=ca_kid(issuers[0]))


# --- requests --------------------------------------------------------------------------------------------------------


def make_csr(seed: bytes) -> bytes:
    """A certificate signing request (PKCS#10, DER) for the Ed25519 key of that seed; it names nobody.

    Its signature cannot pass for an event's: here a DER sequence is signed, there a DSSE pre-authentication encoding.
    """
    builder = x509.CertificateSigningRequestBuilder(subject_name=x509.Name([]))
    return builder.sign(Ed25519PrivateKey.from_private_bytes(seed), None).public_bytes(Encoding.DER)


def read_csr(der: bytes) -> bytes:
    """The public key, 32 bytes, that a request proves to be in its sender's hands. Names and extensions are ignored.

    Raises:
        BadEnrolment: Malformed, another kind of key, or not signed with it.
        WeakKey: See `check_public_key`; under such a key a signature proves nothing.
    """
    if len(der) > MAX_CSR_BYTES:
        raise BadEnrolment("the request is too large", expected=f"at most {MAX_CSR_BYTES} bytes", got=f"{len(der)}")
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise BadEnrolment("not a certificate signing request", expected="PKCS#10, DER") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadEnrolment("the request is for another kind of key", expected="Ed25519")
    public = check_public_key(key.public_bytes_raw())
    if not verify_ed25519(public, request.tbs_certrequest_bytes, request.signature):
        raise BadEnrolment("the request is not signed with the key it is for")
    return public


# --- inside ----------------------------------------------------------------------------------------------------------


def _der_items(data: bytes) -> Iterator[bytes]:
    """Cut at the ends of the outermost sequences. What they hold, and in which encoding, is for who reads them."""
    start = 0
    while start < len(data):
        tag, first = data[start : start + 2].ljust(2, b"\0")
        octets = max(first - _LONG_FORM, 0)
        body = start + 2 + octets
        length = int.from_bytes(data[start + 2 : body], "big") if octets else first
        if tag != _SEQUENCE or first == _LONG_FORM or body + length > len(data):
            raise BadCertificate("not a chain of DER certificates")
        yield data[start : body + length]
        start = body + length


def _load(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise BadCertificate("not a DER certificate") from error


def _read(leaf: x509.Certificate, chain: bytes) -> Certificate:
    """The profile of a leaf, all but what the verifier sees to: unknown critical extensions, and who issued it."""
    try:
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadCertificate("the certificate's key cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadCertificate("an event key is Ed25519")
    raw = check_public_key(key.public_bytes_raw())
    names, purposes = extension(leaf, x509.SubjectAlternativeName), extension(leaf, x509.ExtendedKeyUsage)
    usage = extension(leaf, x509.KeyUsage)
    if list(purposes.value) != [EVENT_SIGNING]:
        raise BadCertificate("the extended key usage is not event signing alone")
    if usage.value != key_usage(digital_signature=True):
        raise BadCertificate("the key usage is not digital signature alone")
    if not (names.critical and purposes.critical and usage.critical):
        raise BadCertificate("alternative name, key usage and extended key usage have to be critical")
    try:
        spiffe_id = SpiffeId.parse(one_uri(names.value))
    except BadSpiffeId as error:
        raise BadCertificate("the alternative name is no workload's SPIFFE id", expected=error.expected) from error
    first, last = to_ms(leaf.not_valid_before_utc), to_ms(leaf.not_valid_after_utc)
    return Certificate(key_id(raw), spiffe_id, raw, first, last, leaf.public_bytes(Encoding.DER), chain=chain)


def _no_authority(_policy: Policy, _leaf: x509.Certificate, basic: x509.BasicConstraints | None) -> None:
    if basic is not None and basic.ca:
        raise ValueError("an event key is no CA")


_CA_POLICY = ExtensionPolicy.webpki_defaults_ca().require_not_present(x509.ExtendedKeyUsage)
_LEAF_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.SubjectAlternativeName, Criticality.CRITICAL, None)  # their content: `_read`
    .require_present(x509.ExtendedKeyUsage, Criticality.CRITICAL, None)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, None)
    .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _no_authority)
    .require_not_present(x509.NameConstraints)
)
