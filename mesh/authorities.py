"""CA certificates: reading them, the trust domain and the key they speak for, and how deep they may certify.

What both a root and a mesh CA have to be: ECDSA P-256, with one alternative name, the URI of a trust domain.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mesh.errors import BadCertificate
from mesh.keys import TRUST_DOMAIN, spki_id

E = TypeVar("E", bound=x509.ExtensionType)


@lru_cache(16)  # a process has one or two roots and meets few mesh CAs
def load_cas(data: bytes) -> tuple[x509.Certificate, ...]:
    """The CA certificates in *data*, which is DER of one or PEM of one or more.

    What they may sign is the verifier's question.

    Raises:
        BadCertificate: No certificate, or one that is not of a P-256 key, or names no trust domain.
    """
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        found = x509.load_pem_x509_certificates(data) if pem else [x509.load_der_x509_certificate(data)]
        keys = [ca.public_key() for ca in found]
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise BadCertificate("the CA's certificate is no PEM or DER certificate") from error
    for key in keys:
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise BadCertificate("a CA's key is ECDSA P-256")
    for ca in found:
        trust_domain_of(ca)
    return tuple(found)


def trust_domain_of(ca: x509.Certificate) -> str:
    """SPIFFE X.509-SVID 3.2: a signing certificate's URI names its trust domain and has no path.

    Raises:
        BadCertificate: There is no such URI, or another name beside it.
    """
    prefix, _, domain = one_uri(extension(ca, x509.SubjectAlternativeName).value).partition("://")
    if prefix != "spiffe" or TRUST_DOMAIN.fullmatch(domain) is None:
        raise BadCertificate("the CA's URI names no trust domain", expected="spiffe://<trust domain>")
    return domain


def ca_kid(ca: x509.Certificate) -> str:
    """Name of a CA's key, as `revoked` of a trust statement has it."""
    return spki_id(ca.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def path_length(ca: x509.Certificate) -> int | None:
    """How many CAs may stand between this one and a leaf; None where it does not say.

    Raises:
        BadCertificate: Not a CA's certificate.
    """
    constraints = extension(ca, x509.BasicConstraints).value
    if not constraints.ca:
        raise BadCertificate("not a CA's certificate")
    return constraints.path_length


def extension(certificate: x509.Certificate, kind: type[E]) -> x509.Extension[E]:
    """An extension that has to be there.

    Raises:
        BadCertificate: It is not, or the certificate's extensions cannot be read.
    """
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound as error:
        raise BadCertificate("an extension is missing", expected=kind.__name__) from error
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise BadCertificate("the certificate's extensions cannot be read") from error


def one_uri(names: x509.SubjectAlternativeName) -> str:
    """The URI that is the only alternative name.

    Raises:
        BadCertificate: There are more names, or another kind.
    """
    found = list(names)
    if len(found) != 1 or not isinstance(found[0], x509.UniformResourceIdentifier):
        raise BadCertificate("expected exactly one URI as alternative name", got=f"{len(found)} names")
    return found[0].value


def key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    """A key usage of these bits alone."""
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


def to_ms(moment: datetime) -> int:
    """Unix milliseconds of a certificate's time."""
    return int(moment.timestamp()) * 1000


def to_utc(ms: int) -> datetime:
    """The inverse of `to_ms`; certificates know whole seconds."""
    return datetime.fromtimestamp(ms // 1000, tz=UTC)
