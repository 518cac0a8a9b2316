"""Any certificate at all, also those that no CA of ours would issue: a good one with some things changed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.certificates import EVENT_SIGNING
from tests.tables import make_signatures as reference

NOW_MS = reference.SIGNED_MS
NOW = datetime.fromtimestamp(NOW_MS / 1000, tz=UTC)
DAY = timedelta(days=1)
ID = reference.SPIFFE_ID
Span = tuple[datetime, datetime]
LEAF_SPAN: Span = (NOW, NOW + DAY)
MESH_CA_SPAN: Span = (NOW - DAY, NOW + 9 * DAY)
ROOT_SPAN: Span = (NOW - 2 * DAY, NOW + 90 * DAY)


def usage(**on: bool) -> x509.KeyUsage:
    """A key usage with only these bits."""
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    rest = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: on.get(name, False) for name in (*names, *rest)})


def san(*uris: str) -> x509.SubjectAlternativeName:
    """Alternative names that are URIs."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])


def purposes(*oids: x509.ObjectIdentifier) -> x509.ExtendedKeyUsage:
    """An extended key usage."""
    return x509.ExtendedKeyUsage(oids)


def named(text: str) -> x509.Name:
    """A name of one part."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def path_length(length: int | None) -> dict[str, Any]:
    """Basic constraints of that path length."""
    return {"bc": (x509.BasicConstraints(ca=True, path_length=length), True)}


def ca_extensions(path_length: int | None) -> dict[str, Any]:
    """What a CA of the profile has; key identifiers apart."""
    return {
        "san": (san("spiffe://mesh.example"), False),
        "bc": (x509.BasicConstraints(ca=True, path_length=path_length), True),
        "ku": (usage(key_cert_sign=True), True),
    }


NO_NAME = x509.Name([])
ROOT_NAME, MESH_CA_NAME = named("a root"), named("a mesh CA")
ROOT_KEY, MESH_CA_KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
LEAF: dict[str, Any] = {
    "san": (san(ID), True),
    "eku": (purposes(EVENT_SIGNING), True),
    "ku": (usage(digital_signature=True), True),
}
CLIENT_AUTH, SERVER_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
ANY_PURPOSE = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
NO_CA = (x509.BasicConstraints(ca=False, path_length=None), True)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), b"\x05\x00")
URI_CONSTRAINT = x509.NameConstraints([x509.UniformResourceIdentifier("mesh.example")], None)
DNS_CONSTRAINT = x509.NameConstraints([x509.DNSName("other.example")], None)


def certify(
    public: Any, extensions: Mapping[str, Any], *, by: Any, subject: x509.Name, issuer: x509.Name, span: Span
) -> bytes:
    """Any certificate, DER, with the identifiers of its own key and its issuer's."""
    algorithm = None if isinstance(by, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateBuilder(issuer, subject, public, 7, *span)
    for extension in filter(None, extensions.values()):
        builder = builder.add_extension(*extension)
    own = x509.SubjectKeyIdentifier.from_public_key(public)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key())
    signed = builder.add_extension(own, critical=False).add_extension(above, critical=False).sign(by, algorithm)
    return signed.public_bytes(Encoding.DER)


def certify_root(key: Any = ROOT_KEY, span: Span = ROOT_SPAN, **change: Any) -> bytes:
    """A root with some extensions changed."""
    extensions = {**ca_extensions(1), **change}
    return certify(key.public_key(), extensions, by=key, subject=ROOT_NAME, issuer=ROOT_NAME, span=span)


def certify_ca(
    key: Any = MESH_CA_KEY,
    *,
    by: Any = ROOT_KEY,
    subject: x509.Name = MESH_CA_NAME,
    issuer: x509.Name = ROOT_NAME,
    span: Span = MESH_CA_SPAN,
    **change: Any,
) -> bytes:
    """An intermediate under `ROOT_KEY` with some extensions changed."""
    extensions = {**ca_extensions(0), **change}
    return certify(key.public_key(), extensions, by=by, subject=subject, issuer=issuer, span=span)


def certify_leaf(
    key: Any = reference.KEY,
    *,
    by: Any = MESH_CA_KEY,
    subject: x509.Name = NO_NAME,
    issuer: x509.Name = MESH_CA_NAME,
    span: Span = LEAF_SPAN,
    **change: Any,
) -> bytes:
    """An event certificate under `MESH_CA_KEY` with some extensions changed."""
    return certify(key.public_key(), {**LEAF, **change}, by=by, subject=subject, issuer=issuer, span=span)


def kid_of(der: bytes) -> str:
    """Name of the key of a certificate, of any kind."""
    public = x509.load_der_x509_certificate(der).public_key()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return reference.b64u(sha256(spki).digest()[:16])


class WeakHolder:
    """Stands where a private key stands, for a public key that no private key has."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def public_key(self) -> ed25519.Ed25519PublicKey:
        """The weak key; OpenSSL takes it."""
        return ed25519.Ed25519PublicKey.from_public_bytes(self._public)
