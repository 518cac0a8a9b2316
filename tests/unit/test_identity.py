"""SPIFFE ids, keys, the certificate profile, trust statements and the keyring."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_core_ed25519_is_valid_point

from mesh.certificates import BACKDATE_S
from mesh.errors import (
    BadCertificate,
    BadSpiffeId,
    BadTrustStatement,
    IdentityError,
    StaleTrust,
    TrustRollback,
    WeakKey,
)
from mesh.identity import (
    EVENT_SIGNING,
    Keyring,
    MeshCA,
    Signer,
    SpiffeId,
    TrustStatement,
    check_certificate,
    check_public_key,
    key_id,
    read_certificate,
    seed_from_pem,
    seed_to_pem,
)
from mesh.signing import pae, verify_ed25519
from tests.tables import make_signatures as reference

NOW_MS = reference.SIGNED_MS
NOW = datetime.fromtimestamp(NOW_MS / 1000, tz=UTC)
DAY = timedelta(days=1)
ID = "spiffe://mesh.example/ns/acme/sa/crm-adapter"
SEED = reference.SEED
PUBLIC = reference.PUBLIC_KEY
TRUST_SEED = bytes(range(100, 132))
TRUST_KEY = ed25519.Ed25519PrivateKey.from_private_bytes(TRUST_SEED).public_key().public_bytes_raw()
CA = MeshCA.create("mesh.example", now_ms=NOW_MS)
ROOTS = [CA.cert_pem]

# --- names and keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "spiffe://", "spiffe://mesh.example", "spiffe://mesh.example/", "spiffe:///ns/a", "http://mesh.example/a",
        "SPIFFE://mesh.example/a", "spiffe://Mesh.example/a", "spiffe://mesh.example/a/", "spiffe://mesh.example//a",
        "spiffe://mesh.example/.", "spiffe://mesh.example/a/..", "spiffe://mesh.example/../a", "spiffe://a:443/b",
        "spiffe://user@mesh.example/a", "spiffe://mesh.example/a?b", "spiffe://mesh.example/a#b", "spiffe://m/a%2fb",
        "spiffe://mesh.example/a\n", "spiffe://mesh.example/ü", "spiffe://" + "a" * 256 + "/b",
        "spiffe://m/" + "a" * 2048,
    ],
)  # fmt: skip
def test_what_is_no_spiffe_id(text: str) -> None:
    """Another scheme, a missing or empty path segment, dots, escapes, ports and controls are refused."""
    with pytest.raises(BadSpiffeId):
        SpiffeId.parse(text)


@pytest.mark.parametrize("text", [ID, "spiffe://m/a", "spiffe://a.b_c-1/.../a..b/_-."])
def test_what_is_a_spiffe_id(text: str) -> None:
    """A trust domain and a path of plain segments is an id, and stays the same text."""
    assert SpiffeId.parse(text) == text
    assert SpiffeId.parse(text).trust_domain == text.split("/")[2]


def test_the_id_of_an_agent() -> None:
    """Agent a of tenant t is `spiffe://<trust domain>/ns/t/sa/a`."""
    assert SpiffeId.for_agent("mesh.example", "acme", "crm-adapter") == ID
    with pytest.raises(BadSpiffeId):
        SpiffeId.for_agent("mesh.example", "acme", "../other")


def test_the_kid_is_the_digest_of_the_public_key_info() -> None:
    """A kid is computed over the DER SubjectPublicKeyInfo that every library writes."""
    assert key_id(PUBLIC) == "oFCDfYUHBYLM9zlLCYiEfA"  # of seed 00..1f, computed with OpenSSL


@pytest.mark.parametrize("key", reference.small_order_keys(), ids=lambda key: str(key.hex()))
def test_small_order_keys_are_refused(key: bytes) -> None:
    """None of the 14 encodings of small order is a key, at the CA's door nor anywhere else."""
    with pytest.raises(WeakKey):
        check_public_key(key)
    with pytest.raises(WeakKey):
        CA.issue(ID, key, now_ms=NOW_MS)
    with pytest.raises(WeakKey):
        Keyring(ROOTS, key)


def test_there_are_fourteen_of_them() -> None:
    """The table holds 14 distinct encodings, each of which libsodium refuses too."""
    keys = reference.small_order_keys()
    assert len(set(keys)) == 14
    assert not any(crypto_core_ed25519_is_valid_point(key) for key in keys)


@pytest.mark.parametrize("key", [b"", bytes(31), PUBLIC + b"\0", b"\2" + bytes(31), b"\xff" * 32], ids=len)
def test_what_is_no_key(key: bytes) -> None:
    """Another length, a y off the curve and a non-canonical y are refused."""
    with pytest.raises(WeakKey):
        check_public_key(key)


def test_a_seed_survives_its_file() -> None:
    """The PEM of an event key gives the same seed back; another kind of key is refused."""
    assert seed_from_pem(seed_to_pem(SEED)) == SEED
    with pytest.raises(IdentityError):
        seed_from_pem(CA.key_pem)
    with pytest.raises(IdentityError):
        seed_from_pem(b"nothing")


# --- certificates: security notes, table 4.1 -------------------------------------------------------------------------

Edit = Callable[[x509.CertificateBuilder], x509.CertificateBuilder]


def usage(**on: bool) -> x509.KeyUsage:
    """A key usage with only these bits."""
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    rest = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: on.get(name, False) for name in (*names, *rest)})


def san(*uris: str) -> x509.SubjectAlternativeName:
    """Alternative names that are URIs."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])


LEAF: dict[str, Any] = {
    "san": (san(ID), True),
    "eku": (x509.ExtendedKeyUsage([EVENT_SIGNING]), True),
    "ku": (usage(digital_signature=True), True),
}
ROOT: dict[str, Any] = {
    "san": (san("spiffe://mesh.example"), False),
    "bc": (x509.BasicConstraints(ca=True, path_length=0), True),
    "ku": (usage(key_cert_sign=True), True),
}
CA_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a CA")])
NO_NAME = x509.Name([])
CA_KEY = ec.generate_private_key(ec.SECP256R1())


def certify(
    public: Any,
    extensions: dict[str, Any],
    *,
    by: Any = CA_KEY,
    subject: x509.Name = NO_NAME,
    issuer: x509.Name = CA_NAME,
    span: tuple[datetime, datetime] = (NOW, NOW + DAY),
) -> bytes:
    """Any certificate at all, DER."""
    algorithm = None if isinstance(by, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateBuilder(issuer, subject, public, 7, *span)
    for extension in filter(None, extensions.values()):
        builder = builder.add_extension(*extension)
    key_ids = (
        (x509.SubjectKeyIdentifier.from_public_key(public),)
        if "bc" in extensions and subject == CA_NAME
        else (x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()),)
    )
    for key_identifier in key_ids:
        builder = builder.add_extension(key_identifier, critical=False)
    return builder.sign(by, algorithm).public_bytes(Encoding.DER)


def certify_root(
    key: Any = CA_KEY, span: tuple[datetime, datetime] = (NOW - DAY, NOW + 9 * DAY), **change: Any
) -> bytes:
    """A self-signed CA certificate with some extensions changed."""
    return certify(key.public_key(), {**ROOT, **change}, by=key, subject=CA_NAME, span=span)


def certify_leaf(key: Any = reference.KEY, **options: Any) -> bytes:
    """A leaf under `CA_KEY` with some extensions changed."""
    known = {name: options.pop(name) for name in ("by", "subject", "issuer", "span") if name in options}
    return certify(key.public_key(), {**LEAF, **options}, **known)


GOOD_ROOT = certify_root()
MORE_USAGE = x509.ExtendedKeyUsage([EVENT_SIGNING, ExtendedKeyUsageOID.CLIENT_AUTH])
CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
ANY_USAGE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), b"\x05\x00")
CONSTRAINT = x509.NameConstraints([x509.UniformResourceIdentifier("mesh.example")], None)
DNS_CONSTRAINT = x509.NameConstraints([x509.DNSName("mesh.example")], None)
WITH_DNS = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ID), x509.DNSName("mesh.example")])
ONLY_DNS = x509.SubjectAlternativeName([x509.DNSName("mesh.example")])
OTHER_CA_KEY = ec.generate_private_key(ec.SECP256R1())
AS_CA = {"bc": (x509.BasicConstraints(ca=True, path_length=None), True)}

REFUSED_LEAVES: dict[str, Callable[[], bytes]] = {
    "no EKU": lambda: certify_leaf(eku=None),
    "wrong EKU": lambda: certify_leaf(eku=(CLIENT, True)),
    "any EKU": lambda: certify_leaf(eku=(ANY_USAGE, True)),
    "our EKU and another": lambda: certify_leaf(eku=(MORE_USAGE, True)),
    "EKU not critical": lambda: certify_leaf(eku=(LEAF["eku"][0], False)),
    "no key usage": lambda: certify_leaf(ku=None),
    "key usage not critical": lambda: certify_leaf(ku=(LEAF["ku"][0], False)),
    "key usage for certificates": lambda: certify_leaf(ku=(usage(digital_signature=True, key_cert_sign=True), True)),
    "key usage for another thing": lambda: certify_leaf(ku=(usage(content_commitment=True), True)),
    "no SAN": lambda: certify_leaf(san=None),
    "SAN not critical": lambda: certify_leaf(san=(san(ID), False)),
    "SAN not critical, with a subject": lambda: certify_leaf(
        san=(san(ID), False), subject=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "crm")])
    ),
    "two URIs": lambda: certify_leaf(san=(san(ID, ID + "2"), True)),
    "the same URI twice": lambda: certify_leaf(san=(san(ID, ID), True)),
    "http URI": lambda: certify_leaf(san=(san("http://mesh.example/ns/acme/sa/crm-adapter"), True)),
    "URI of a trust domain": lambda: certify_leaf(san=(san("spiffe://mesh.example"), True)),
    "URI of another trust domain": lambda: certify_leaf(san=(san("spiffe://other.example/ns/acme/sa/a"), True)),
    "URI and DNS name": lambda: certify_leaf(san=(WITH_DNS, True)),
    "DNS name": lambda: certify_leaf(san=(ONLY_DNS, True)),
    "leaf is a CA": lambda: certify_leaf(bc=(x509.BasicConstraints(ca=True, path_length=None), True)),
    "unknown critical extension": lambda: certify_leaf(x=(UNKNOWN, True)),
    "name constraints in the leaf": lambda: certify_leaf(nc=(CONSTRAINT, False)),
    "P-256 key": lambda: certify_leaf(OTHER_CA_KEY),
    "RSA key": lambda: certify_leaf(rsa.generate_private_key(65537, 2048)),
    "X25519-like key of small order": lambda: certify_leaf(WeakHolder(bytes(32))),
    "outlives its issuer": lambda: certify_leaf(span=(NOW, NOW + 10 * DAY)),
    "begins before its issuer": lambda: certify_leaf(span=(NOW - 2 * DAY, NOW + DAY)),
    "begins after its issuer ended": lambda: certify_leaf(span=(NOW + 10 * DAY, NOW + 11 * DAY)),
    "issued by a stranger of the same name": lambda: certify_leaf(by=OTHER_CA_KEY),
    "issued by an unknown name": lambda: certify_leaf(issuer=NO_NAME),
    "self-signed": lambda: certify_leaf(by=reference.KEY),
    "not DER": lambda: b"-----BEGIN CERTIFICATE-----",
    "cut off": lambda: certify_leaf()[:-1],
    "one byte more": lambda: certify_leaf() + b"\0",
    "empty": lambda: b"",
}


class WeakHolder:
    """Stands where a private key stands, for a public key that no private key has."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def public_key(self) -> ed25519.Ed25519PublicKey:
        """The weak key; OpenSSL takes it."""
        return ed25519.Ed25519PublicKey.from_public_bytes(self._public)


def test_the_good_leaf_is_accepted() -> None:
    """What the rows below change is accepted unchanged, from DER and from PEM roots, as first or second root."""
    accepted = check_certificate(certify_leaf(), [*ROOTS, GOOD_ROOT])
    pem = x509.load_der_x509_certificate(GOOD_ROOT).public_bytes(Encoding.PEM)
    assert check_certificate(certify_leaf(), [pem]).kid == accepted.kid == reference.KID
    assert (accepted.spiffe_id, accepted.public_key) == (ID, PUBLIC)
    assert (accepted.not_before_ms, accepted.not_after_ms) == (NOW_MS, NOW_MS + 86_400_000)


def test_a_leaf_may_last_exactly_as_long_as_its_issuer() -> None:
    """Both ends of a validity belong to it."""
    check_certificate(certify_leaf(span=(NOW - DAY, NOW + 9 * DAY)), [GOOD_ROOT])


@pytest.mark.parametrize("name", REFUSED_LEAVES)
def test_a_leaf_outside_the_profile_is_refused(name: str) -> None:
    """Each certificate that differs from the profile in one thing is refused, also where stock verifiers take it."""
    with pytest.raises((BadCertificate, WeakKey)):
        check_certificate(REFUSED_LEAVES[name](), [GOOD_ROOT])


@pytest.mark.parametrize("key", reference.small_order_keys(), ids=lambda key: str(key.hex()))
def test_a_certified_weak_key_is_refused(key: bytes) -> None:
    """A certificate over a small-order key is refused although its signature and profile are good."""
    with pytest.raises(WeakKey):
        Keyring([GOOD_ROOT], None).add(certify_leaf(WeakHolder(key)))


OTHER_KINDS: dict[str, Any] = {
    "Ed25519 CA": reference.OTHER_KEY,
    "P-384 CA": ec.generate_private_key(ec.SECP384R1()),
    "RSA CA": rsa.generate_private_key(65537, 2048),
}
REFUSED_ROOTS: dict[str, Callable[[], bytes]] = {
    **{kind: partial(certify_root, key) for kind, key in OTHER_KINDS.items()},
    "no CA": lambda: certify_root(bc=(x509.BasicConstraints(ca=False, path_length=None), True)),
    "no basic constraints": lambda: certify_root(bc=None),
    "may not sign certificates": lambda: certify_root(ku=(usage(crl_sign=True), True)),
    "no trust domain": lambda: certify_root(san=None),
    "two trust domains": lambda: certify_root(san=(san("spiffe://mesh.example", "spiffe://other.example"), False)),
    "a workload's name": lambda: certify_root(san=(san(ID), False)),
    "another trust domain": lambda: certify_root(san=(san("spiffe://other.example"), False)),
    "http URI": lambda: certify_root(san=(san("http://mesh.example"), False)),
    "URI name constraint": lambda: certify_root(nc=(CONSTRAINT, True)),
    "unknown critical extension": lambda: certify_root(x=(UNKNOWN, True)),
    "not yet valid": lambda: certify_root(span=(NOW + DAY, NOW + 9 * DAY)),
    "expired": lambda: certify_root(span=(NOW - 9 * DAY, NOW - DAY)),
    "no certificate": lambda: b"a root",
    "no PEM certificate": lambda: b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
}


@pytest.mark.parametrize("name", REFUSED_ROOTS)
def test_a_root_outside_the_profile_is_refused(name: str) -> None:
    """A leaf is not accepted under a root that differs from the profile in one thing."""
    key = OTHER_KINDS.get(name, CA_KEY)
    with pytest.raises(BadCertificate):
        check_certificate(certify_leaf(by=key), [REFUSED_ROOTS[name]()])


def test_an_intermediate_is_not_followed() -> None:
    """A leaf under a CA that the root certified is refused; where that CA is itself a root, it is accepted."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "between")])
    middle = certify(OTHER_CA_KEY.public_key(), {**ROOT, **AS_CA}, subject=name)
    leaf = certify_leaf(by=OTHER_CA_KEY, issuer=name)
    with pytest.raises(BadCertificate):
        check_certificate(leaf, [GOOD_ROOT])
    check_certificate(leaf, [GOOD_ROOT, middle])


def test_without_roots_nothing_is_believed() -> None:
    """An empty list of roots accepts no certificate."""
    with pytest.raises(BadCertificate):
        check_certificate(certify_leaf(), [])


# --- the mesh CA -----------------------------------------------------------------------------------------------------


def test_what_the_ca_issues_is_of_the_profile() -> None:
    """An issued certificate is accepted under the CA's root, for 24 hours, from a minute before its issue."""
    issued = check_certificate(CA.issue(ID, PUBLIC, now_ms=NOW_MS), ROOTS)
    assert (issued.spiffe_id, issued.public_key, issued.kid) == (ID, PUBLIC, reference.KID)
    assert issued.not_before_ms == NOW_MS - BACKDATE_S * 1000
    assert issued.not_after_ms == NOW_MS + 86_400_000


def test_an_issued_certificate_holds_nothing_else() -> None:
    """It has an empty subject and four extensions; names that a CSR might bring have no way in."""
    made = x509.load_der_x509_certificate(CA.issue(ID, PUBLIC, now_ms=NOW_MS))
    critical = {extension.oid._name: extension.critical for extension in made.extensions}
    wanted = {"subjectAltName": True, "keyUsage": True, "extendedKeyUsage": True, "authorityKeyIdentifier": False}
    assert (made.subject, critical) == (NO_NAME, wanted)


def test_two_issues_have_two_serial_numbers() -> None:
    """Key and time decide the serial number."""
    ders = [CA.issue(ID, PUBLIC, now_ms=now_ms) for now_ms in (NOW_MS, NOW_MS + 1)]
    assert len({x509.load_der_x509_certificate(der).serial_number for der in ders}) == 2


def test_a_ca_survives_its_files() -> None:
    """A CA read back from its two files issues under the same root."""
    again = MeshCA.from_pem(CA.cert_pem, CA.key_pem)
    assert again.trust_domain == "mesh.example"
    assert check_certificate(again.issue(ID, PUBLIC, now_ms=NOW_MS), ROOTS).spiffe_id == ID


def test_a_ca_is_not_read_from_files_that_do_not_belong_together() -> None:
    """Another CA's key, an Ed25519 key and what is no key are refused."""
    other = MeshCA.create("mesh.example", now_ms=NOW_MS)
    locked = CA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for key in (other.key_pem, seed_to_pem(SEED), b"", locked):
        with pytest.raises(BadCertificate):
            MeshCA.from_pem(CA.cert_pem, key)
    with pytest.raises(BadCertificate):
        MeshCA.from_pem(b"", CA.key_pem)


def test_a_ca_speaks_for_its_own_trust_domain() -> None:
    """An id of another trust domain, or no id, is not certified; nor is a trust domain that is none."""
    for wrong in ("spiffe://other.example/ns/acme/sa/a", "crm-adapter"):
        with pytest.raises(BadSpiffeId):
            CA.issue(wrong, PUBLIC, now_ms=NOW_MS)
    with pytest.raises(BadSpiffeId):
        MeshCA.create("mesh example", now_ms=NOW_MS)


def test_a_certificate_never_outlives_its_ca() -> None:
    """Towards its end a CA issues shorter certificates, and after it none."""
    short = MeshCA.create("mesh.example", now_ms=NOW_MS, lifetime_s=3600)
    issued = check_certificate(short.issue(ID, PUBLIC, now_ms=NOW_MS), [short.cert_pem])
    assert issued.not_after_ms == NOW_MS + 3_600_000
    with pytest.raises(BadCertificate):
        short.issue(ID, PUBLIC, now_ms=NOW_MS + 3_600_000)
    with pytest.raises(BadCertificate):
        short.issue(ID, PUBLIC, now_ms=NOW_MS - 86_400_000)


# --- signer ----------------------------------------------------------------------------------------------------------


def test_a_signer_signs_as_its_certificate_says() -> None:
    """Signature, kid, id and validity are those of key and certificate, and no attribute shows the seed."""
    der = CA.issue(ID, PUBLIC, now_ms=NOW_MS)
    signer = Signer.from_seed(SEED, der)
    assert signer.sign(b"x") == reference.KEY.sign(b"x")
    held = read_certificate(der)
    assert (signer.kid, signer.spiffe_id, signer.certificate) == (held.kid, ID, der)
    assert (signer.not_before_ms, signer.not_after_ms) == (held.not_before_ms, held.not_after_ms)
    assert SEED.hex() not in repr(signer)


def test_a_signer_needs_its_own_certificate() -> None:
    """A certificate of another key is refused before anything is signed with it."""
    with pytest.raises(BadCertificate):
        Signer.from_seed(TRUST_SEED, CA.issue(ID, PUBLIC, now_ms=NOW_MS))


# --- trust statements ------------------------------------------------------------------------------------------------


def make_statement(epoch: int = 1, issued_ms: int = NOW_MS, **revoked: int) -> TrustStatement:
    """A trust statement."""
    return TrustStatement(epoch=epoch, issued_ms=issued_ms, revoked=revoked)


def envelope(payload: bytes, *, payload_type: str = "application/vnd.mesh.trust.v1", seed: bytes = TRUST_SEED) -> bytes:
    """A DSSE envelope around anything."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    signature = {"keyid": "", "sig": base64.b64encode(key.sign(pae(payload_type, payload))).decode()}
    coded = base64.b64encode(payload).decode()
    return json.dumps({"payloadType": payload_type, "payload": coded, "signatures": [signature]}).encode()


@given(epoch=st.integers(0, 2**53), issued_ms=st.integers(0, 2**53), when=st.integers(0, 2**53))
@settings(max_examples=30, deadline=None)
def test_a_sealed_statement_opens_to_itself(epoch: int, issued_ms: int, when: int) -> None:
    """What was sealed is what is read."""
    statement = TrustStatement(epoch=epoch, issued_ms=issued_ms, revoked={reference.KID: when})
    assert TrustStatement.open(statement.seal(TRUST_SEED), TRUST_KEY) == statement


def test_a_sealed_statement_is_a_dsse_envelope() -> None:
    """Any DSSE library reads it: payloadType, base64 payload, signatures over the pre-authentication encoding."""
    sealed = json.loads(make_statement(7).seal(TRUST_SEED))
    payload = base64.b64decode(sealed["payload"])
    assert json.loads(payload) == {"epoch": 7, "issued_ms": NOW_MS, "revoked": {}}
    signature = base64.b64decode(sealed["signatures"][0]["sig"])
    assert verify_ed25519(TRUST_KEY, pae(sealed["payloadType"], payload), signature)
    assert sealed["signatures"][0]["keyid"] == key_id(TRUST_KEY)


GOOD_PAYLOAD = b'{"epoch":1,"issued_ms":1,"revoked":{}}'


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, envelope(GOOD_PAYLOAD) + b" " * 1_048_576,
        envelope(GOOD_PAYLOAD, seed=SEED),
        envelope(GOOD_PAYLOAD, payload_type="application/vnd.mesh.root.v1"),
        envelope(GOOD_PAYLOAD).replace(b"trust.v1", b"trust.v2"),
        envelope(GOOD_PAYLOAD).replace(b'"signatures": [{', b'"signatures": [], "x": [{'),
        envelope(GOOD_PAYLOAD).replace(b'"sig": "', b'"sig": "AAAA'),
        envelope(GOOD_PAYLOAD).replace(b'"payload": "', b'"payload": "!'),
        envelope(b"not json"), envelope(b"[]"), envelope(b'{"epoch":1}'),
        envelope(b'{"epoch":1,"issued_ms":1,"revoked":{},"floor":3}'),
        envelope(b'{"epoch":-1,"issued_ms":1,"revoked":{}}'), envelope(b'{"epoch":true,"issued_ms":1,"revoked":{}}'),
        envelope(b'{"epoch":1.5,"issued_ms":1,"revoked":{}}'), envelope(b'{"epoch":"1","issued_ms":1,"revoked":{}}'),
        envelope(b'{"epoch":1,"issued_ms":1,"revoked":{"short":1}}'),
        envelope(b'{"epoch":1,"issued_ms":1,"revoked":{"oFCDfYUHBYLM9zlLCYiEfA":-1}}'),
        envelope(b'{"epoch":1,"issued_ms":1,"revoked":{"oFCDfYUHBYLM9zlLCYiEfB":1}}'),
    ],
    ids=[
        "empty", "no fields", "array", "null", "not UTF-8", "deep", "large", "another key", "another type",
        "type changed",
        "no signature", "long signature", "no base64", "payload no JSON", "payload array", "payload incomplete",
        "unknown field", "negative epoch", "boolean epoch", "fractional epoch", "textual epoch", "short kid",
        "negative time", "non-canonical kid",
    ],
)  # fmt: skip
def test_what_is_no_trust_statement(data: bytes) -> None:
    """Anything malformed, of another type, or not signed by the trust key is refused."""
    with pytest.raises(BadTrustStatement):
        TrustStatement.open(data, TRUST_KEY)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_never_changes_a_statement(at: int, bit: int) -> None:
    """With any bit of its envelope flipped, a statement is refused or says the same."""
    statement = make_statement(3, oFCDfYUHBYLM9zlLCYiEfA=5)
    raw = bytearray(statement.seal(TRUST_SEED))
    raw[at % len(raw)] ^= 1 << bit
    with suppress(BadTrustStatement):
        assert TrustStatement.open(bytes(raw), TRUST_KEY) == statement


# --- the keyring -----------------------------------------------------------------------------------------------------


def test_a_keyring_finds_what_was_added() -> None:
    """An added certificate is found by its kid, once, however often it is added."""
    keyring, der = Keyring(ROOTS, TRUST_KEY), CA.issue(ID, PUBLIC, now_ms=NOW_MS)
    assert keyring.find(reference.KID) is None
    added = keyring.add(der)
    assert keyring.add(der) == added == keyring.find(reference.KID) == keyring.find(reference.KID, 0)
    assert len(keyring._certificates[reference.KID]) == 1


def test_a_keyring_takes_only_what_its_roots_issued() -> None:
    """A certificate of another CA stays out, one of the same name and trust domain too."""
    other = MeshCA.create("mesh.example", now_ms=NOW_MS)
    keyring = Keyring(ROOTS, TRUST_KEY)
    with pytest.raises(BadCertificate):
        keyring.add(other.issue(ID, PUBLIC, now_ms=NOW_MS))
    assert keyring.find(reference.KID) is None


def test_one_key_belongs_to_one_workload() -> None:
    """A second certificate of a key for another id is refused: what was signed under the first stays the first's."""
    keyring = Keyring(ROOTS, TRUST_KEY)
    keyring.add(CA.issue(ID, PUBLIC, now_ms=NOW_MS))
    with pytest.raises(BadCertificate):
        keyring.add(CA.issue(ID + "2", PUBLIC, now_ms=NOW_MS))
    assert getattr(keyring.find(reference.KID), "spiffe_id", None) == ID


@pytest.mark.parametrize("order", [1, -1], ids=["older first", "newer first"])
def test_a_renewal_of_the_same_key_keeps_both_validities(order: int) -> None:
    """Where a key was certified twice, each time of signing finds the certificate that covered it."""
    keyring, later_ms = Keyring(ROOTS, TRUST_KEY), NOW_MS + 10 * 86_400_000
    older, newer = (CA.issue(ID, PUBLIC, now_ms=now_ms) for now_ms in (NOW_MS, later_ms))
    for der in (older, newer)[::order]:
        keyring.add(der)
    found = {at: keyring.find(reference.KID, at) for at in (None, NOW_MS, later_ms, NOW_MS + 5 * 86_400_000)}
    ders = {at: certificate.der for at, certificate in found.items() if certificate is not None}
    assert ders == {None: newer, NOW_MS: older, later_ms: newer, NOW_MS + 5 * 86_400_000: newer}


def test_an_epoch_must_rise() -> None:
    """An older statement, or another of the same epoch, is refused and leaves the one in force; the same is taken."""
    keyring = Keyring(ROOTS, TRUST_KEY)
    sealed = make_statement(5, oFCDfYUHBYLM9zlLCYiEfA=9).seal(TRUST_SEED)
    applied = keyring.apply(sealed)
    assert keyring.apply(sealed) == applied
    for other in (make_statement(4), make_statement(5), make_statement(5, NOW_MS + 1, oFCDfYUHBYLM9zlLCYiEfA=9)):
        with pytest.raises(TrustRollback):
            keyring.apply(other.seal(TRUST_SEED))
    assert keyring.statement == applied
    assert keyring.revoked_from("oFCDfYUHBYLM9zlLCYiEfA") == 9
    keyring.apply(make_statement(6).seal(TRUST_SEED))
    assert keyring.revoked_from("oFCDfYUHBYLM9zlLCYiEfA") is None


def test_a_forged_statement_leaves_the_one_in_force() -> None:
    """A statement of another key is refused, as is any where there is no trust key."""
    keyring = Keyring(ROOTS, TRUST_KEY)
    applied = keyring.apply(make_statement(1).seal(TRUST_SEED))
    with pytest.raises(BadTrustStatement):
        keyring.apply(make_statement(2).seal(SEED))
    assert keyring.statement == applied
    with pytest.raises(BadTrustStatement):
        Keyring(ROOTS, None).apply(make_statement(1).seal(TRUST_SEED))


def test_a_withheld_statement_is_noticed() -> None:
    """No statement, and one older than a minute, is stale; a minute old is not."""
    keyring = Keyring(ROOTS, TRUST_KEY)
    assert keyring.revoked_from(reference.KID) is None
    with pytest.raises(StaleTrust):
        keyring.check_fresh(NOW_MS)
    keyring.apply(make_statement().seal(TRUST_SEED))
    keyring.check_fresh(NOW_MS + 60_000)
    with pytest.raises(StaleTrust) as stale:
        keyring.check_fresh(NOW_MS + 60_001)
    assert stale.value.retryable
    keyring.check_fresh(NOW_MS + 60_001, max_age_s=3600)
