"""What the root and the mesh CA issue: three kinds of certificates, none of which passes for another."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from mesh.ca import BACKDATE_S, CA_LIFETIME_S, ROOT_LIFETIME_S, MeshCA, RootCA
from mesh.certificates import EVENT_SIGNING, check_chain, split_chain
from mesh.errors import BadCertificate, BadSpiffeId, WeakKey
from mesh.identity import seed_to_pem
from tests.tables import make_signatures as reference
from tests.unit.certify import (
    CLIENT_AUTH,
    ID,
    NO_CA,
    NO_NAME,
    NOW_MS,
    OTHER_KEY,
    SERVER_AUTH,
    certify_ca,
    certify_root,
    kid_of,
    path_length,
    usage,
)

DAY_MS = 86_400_000
PUBLIC = reference.PUBLIC_KEY
ROOT = RootCA.create("mesh.example", now_ms=NOW_MS)
CA = ROOT.issue_ca(now_ms=NOW_MS)
OTHER_PEM = OTHER_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load(data: bytes) -> x509.Certificate:
    """The first certificate of a chain in DER or PEM."""
    if data.startswith(b"-----"):
        return x509.load_pem_x509_certificate(data)
    return x509.load_der_x509_certificate(split_chain(data)[0])


def extensions(certificate: x509.Certificate) -> dict[str, bool]:
    """Which extensions there are, and which are critical."""
    return {extension.oid._name: extension.critical for extension in certificate.extensions}


# --- the CAs ---------------------------------------------------------------------------------------------------------


def test_a_root_certifies_mesh_cas_and_a_mesh_ca_leaves_alone() -> None:
    """Both have the same five extensions and one URI, the trust domain; only the path lengths differ."""
    root, mesh_ca = load(ROOT.cert_pem), load(CA.cert_pem)
    wanted = {"basicConstraints": True, "keyUsage": True, "subjectAltName": False, "subjectKeyIdentifier": False}
    assert extensions(root) == wanted
    assert extensions(mesh_ca) == {**wanted, "authorityKeyIdentifier": False}
    for ca, length in ((root, 1), (mesh_ca, 0)):
        constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert (constraints.ca, constraints.path_length) == (True, length)
        assert ca.extensions.get_extension_for_class(x509.KeyUsage).value == usage(key_cert_sign=True)
        names = list(ca.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        assert names == [x509.UniformResourceIdentifier("spiffe://mesh.example")]
    mesh_ca.verify_directly_issued_by(root)


def test_cas_have_names_of_their_own() -> None:
    """Two CAs of a trust domain differ in name, so that a path is found without trying each of them."""
    cas = [ROOT, RootCA.create("mesh.example", now_ms=NOW_MS), CA, ROOT.issue_ca(now_ms=NOW_MS)]
    assert len({load(ca.cert_pem).subject for ca in cas}) == 4
    long = RootCA.create("a" * 255, now_ms=NOW_MS)
    assert long.issue_ca(now_ms=NOW_MS).trust_domain == "a" * 255


def test_a_ca_says_what_it_is() -> None:
    """Kid, trust domain and validity are those of its certificate; a root lasts ten years, a mesh CA one."""
    assert (CA.kid, CA.trust_domain) == (kid_of(load(CA.cert_pem).public_bytes(Encoding.DER)), "mesh.example")
    assert (ROOT.not_before_ms, ROOT.not_after_ms) == (NOW_MS - 120_000, NOW_MS + ROOT_LIFETIME_S * 1000)
    assert (CA.not_before_ms, CA.not_after_ms) == (NOW_MS - 120_000, NOW_MS + CA_LIFETIME_S * 1000)
    assert CA.root_pem == ROOT.cert_pem
    for ca in (ROOT, CA):
        assert "PRIVATE" not in repr(ca)


def test_nothing_outlives_what_it_hangs_from() -> None:
    """Towards its end a root issues shorter mesh CAs and a mesh CA shorter leaves, and after it none."""
    short = RootCA.create("mesh.example", now_ms=NOW_MS, lifetime_s=3600)
    ca = short.issue_ca(now_ms=NOW_MS)
    assert ca.not_after_ms == short.not_after_ms == NOW_MS + 3_600_000
    assert check_chain(ca.issue(ID, PUBLIC, now_ms=NOW_MS), [short.cert_pem]).not_after_ms == NOW_MS + 3_600_000
    for now_ms in (NOW_MS + 3_600_000, NOW_MS - DAY_MS):
        with pytest.raises(BadCertificate):
            short.issue_ca(now_ms=now_ms)
        with pytest.raises(BadCertificate):
            ca.issue(ID, PUBLIC, now_ms=now_ms)
        with pytest.raises(BadCertificate):
            ca.issue_tls_server(["localhost"], now_ms=now_ms)


def test_a_new_ca_issues_at_once() -> None:
    """What is issued right after the CA began does not begin before it: it is accepted."""
    chain = CA.issue(ID, PUBLIC, now_ms=CA.not_before_ms + 10_000)
    assert check_chain(chain, [ROOT.cert_pem]).not_before_ms == CA.not_before_ms
    early = ROOT.issue_ca(now_ms=ROOT.not_before_ms + 10_000)
    assert early.not_before_ms == ROOT.not_before_ms


def test_cas_survive_their_files() -> None:
    """A root and a mesh CA read back from their two files issue under the same root."""
    root = RootCA.from_pem(ROOT.cert_pem, ROOT.key_pem)
    ca = MeshCA.from_pem(CA.cert_pem, CA.key_pem)
    assert (root.kid, ca.kid, ca.trust_domain, ca.root_pem) == (ROOT.kid, CA.kid, "mesh.example", b"")
    for issuer in (ca, root.issue_ca(now_ms=NOW_MS)):
        assert check_chain(issuer.issue(ID, PUBLIC, now_ms=NOW_MS), [ROOT.cert_pem]).spiffe_id == ID


@pytest.mark.parametrize(
    ("read", "cert", "key"),
    [
        (MeshCA.from_pem, CA.cert_pem, ROOT.key_pem),
        (MeshCA.from_pem, CA.cert_pem, seed_to_pem(reference.SEED)),
        (MeshCA.from_pem, CA.cert_pem, b""),
        (MeshCA.from_pem, CA.cert_pem, CA.cert_pem),
        (MeshCA.from_pem, b"", CA.key_pem),
        (MeshCA.from_pem, ROOT.cert_pem, ROOT.key_pem),
        (MeshCA.from_pem, certify_ca(OTHER_KEY, **path_length(1)), OTHER_PEM),
        (MeshCA.from_pem, certify_ca(OTHER_KEY, bc=None), OTHER_PEM),
        (MeshCA.from_pem, certify_ca(OTHER_KEY, san=None), OTHER_PEM),
        (RootCA.from_pem, CA.cert_pem, CA.key_pem),
        (RootCA.from_pem, ROOT.cert_pem, CA.key_pem),
        (RootCA.from_pem, certify_root(OTHER_KEY, **path_length(0)), OTHER_PEM),
        (RootCA.from_pem, certify_root(OTHER_KEY, bc=NO_CA), OTHER_PEM),
        (RootCA.from_pem, certify_ca(OTHER_KEY, **path_length(1)), OTHER_PEM),
        (MeshCA.from_pem, certify_root(OTHER_KEY, **path_length(0)), OTHER_PEM),
    ],
    ids=[
        "another CA's key", "an Ed25519 key", "no key", "no private key", "no certificate", "a root as mesh CA",
        "a mesh CA that may certify CAs", "no CA", "no trust domain", "a mesh CA as root", "root, another key",
        "an old root, which may not certify a mesh CA", "a root that is no CA", "a root that another one signed",
        "an old root as mesh CA",
    ],
)  # fmt: skip
def test_a_ca_is_not_read_from_files_that_do_not_belong_together(
    read: Callable[[bytes, bytes], object], cert: bytes, key: bytes
) -> None:
    """Certificate and key have to be one CA's, of the level that is asked for."""
    with pytest.raises(BadCertificate):
        read(cert, key)


def test_a_locked_key_is_refused() -> None:
    """A key under a passphrase cannot be read, and says so."""
    locked = OTHER_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    with pytest.raises(BadCertificate):
        MeshCA.from_pem(certify_ca(OTHER_KEY), locked)


def test_a_ca_speaks_for_its_own_trust_domain() -> None:
    """An id of another trust domain, or no id, is not certified; nor is a trust domain that is none."""
    for wrong in ("spiffe://other.example/ns/acme/sa/a", "crm-adapter"):
        with pytest.raises(BadSpiffeId):
            CA.issue(wrong, PUBLIC, now_ms=NOW_MS)
        with pytest.raises(BadSpiffeId):
            CA.issue_tls_client(wrong, now_ms=NOW_MS)
    for make in (RootCA.create, MeshCA.create):
        with pytest.raises(BadSpiffeId):
            make("mesh example", now_ms=NOW_MS)


# --- event certificates ----------------------------------------------------------------------------------------------


def test_what_the_mesh_ca_issues_is_of_the_profile() -> None:
    """An issued chain is accepted under the root, for 24 hours, from a minute before its issue."""
    issued = check_chain(CA.issue(ID, PUBLIC, now_ms=NOW_MS), [ROOT.cert_pem])
    assert (issued.spiffe_id, issued.public_key, issued.kid, issued.issuer_kid) == (ID, PUBLIC, reference.KID, CA.kid)
    assert issued.not_before_ms == NOW_MS - BACKDATE_S * 1000
    assert issued.not_after_ms == NOW_MS + DAY_MS


def test_one_call_makes_a_ca_for_a_test() -> None:
    """`MeshCA.create` gives a mesh CA and its root, and what it issues verifies under that root alone."""
    made, other = (MeshCA.create("mesh.example", now_ms=NOW_MS) for _ in range(2))
    chain = made.issue(ID, PUBLIC, now_ms=NOW_MS)
    assert check_chain(chain, [made.root_pem]).issuer_kid == made.kid
    with pytest.raises(BadCertificate):
        check_chain(chain, [other.root_pem])


def test_an_issued_certificate_holds_nothing_else() -> None:
    """It has an empty subject and four extensions; names that a CSR might bring have no way in."""
    made = load(CA.issue(ID, PUBLIC, now_ms=NOW_MS))
    wanted = {"subjectAltName": True, "keyUsage": True, "extendedKeyUsage": True, "authorityKeyIdentifier": False}
    assert (made.subject, extensions(made)) == (NO_NAME, wanted)


def test_two_issues_have_two_serial_numbers() -> None:
    """Key and time decide the serial number."""
    chains = [CA.issue(ID, PUBLIC, now_ms=now_ms) for now_ms in (NOW_MS, NOW_MS + 1)]
    assert len({load(chain).serial_number for chain in chains}) == 2


@pytest.mark.parametrize("key", reference.small_order_keys(), ids=lambda key: str(key.hex()))
def test_a_small_order_key_is_not_certified(key: bytes) -> None:
    """None of the 14 encodings of small order gets a certificate."""
    with pytest.raises(WeakKey):
        CA.issue(ID, key, now_ms=NOW_MS)


# --- TLS certificates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["client", "server"])
def test_a_tls_certificate_has_one_purpose(kind: str) -> None:
    """It has a P-256 key of its own, an empty subject, its names and one extended key usage, for 24 hours."""
    if kind == "client":
        (chain, key_pem), purpose = CA.issue_tls_client(ID, now_ms=NOW_MS), CLIENT_AUTH
        names = ["UniformResourceIdentifier(value='spiffe://mesh.example/ns/acme/sa/crm-adapter')"]
    else:
        (chain, key_pem), purpose = CA.issue_tls_server(["nats", "*.Nats.svc", "::1"], now_ms=NOW_MS), SERVER_AUTH
        names = ["DNSName(value='nats')", "DNSName(value='*.Nats.svc')", "IPAddress(value=::1)"]
    made, above = x509.load_pem_x509_certificates(chain)
    key = load_pem_private_key(key_pem, None)
    assert (above, made.subject) == (load(CA.cert_pem), NO_NAME)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert (key.curve.name, key.public_key()) == ("secp256r1", made.public_key())
    wanted = {"subjectAltName": True, "keyUsage": True, "extendedKeyUsage": True, "authorityKeyIdentifier": False}
    assert extensions(made) == wanted
    assert list(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
    found = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [repr(name).strip("<>") for name in found] == names
    assert int(made.not_valid_after_utc.timestamp() * 1000) == NOW_MS + DAY_MS


def test_two_tls_certificates_have_two_keys() -> None:
    """Each issue makes a new key."""
    keys = {CA.issue_tls_client(ID, now_ms=NOW_MS)[1] for _ in range(3)}
    assert len(keys) == 3


@pytest.mark.parametrize(
    "names",
    [[], [""], ["a b"], ["a..b"], ["-a"], ["a_b"], ["ünicode"], ["a\n"], ["a\0.b"], ["*"], ["a.*"], ["*.*.a"],
     ["127.0.0.1/8"], ["localhost:4222"], ["tls://localhost"], ["256.1.1.1"], ["1"], ["fe80::1%eth0"], ["::1", "::g"],
     ["a" * 64], ["a." * 127 + "a"], ["localhost", ""]],
    ids=repr,
)  # fmt: skip
def test_what_is_no_name_of_a_server(names: list[str]) -> None:
    """Ports, schemes, zones, controls, what is almost an address, and wildcards within a name are refused."""
    with pytest.raises(BadCertificate):
        CA.issue_tls_server(names, now_ms=NOW_MS)


@pytest.mark.parametrize("make", ["client", "server"])
def test_a_tls_certificate_is_no_event_certificate(make: str) -> None:
    """Its chain is refused where event keys are checked."""
    made = CA.issue_tls_client(ID, now_ms=NOW_MS) if make == "client" else CA.issue_tls_server(["a"], now_ms=NOW_MS)
    ders = [certificate.public_bytes(Encoding.DER) for certificate in x509.load_pem_x509_certificates(made[0])]
    with pytest.raises(BadCertificate):
        check_chain(b"".join(ders), [ROOT.cert_pem])


def real_now_ms() -> int:
    """OpenSSL verifies at the time of the clock."""
    return int(time.time() * 1000)


TLS_ROOT = RootCA.create("mesh.example", now_ms=real_now_ms())
TLS_CA = TLS_ROOT.issue_ca(now_ms=real_now_ms())


def handshake(tmp_path: Path, server: tuple[bytes, bytes], client: tuple[bytes, bytes]) -> str:
    """Shake hands over TLS 1.3 in memory, both sides verifying; the subject names of the client that was believed."""
    sides = []
    for name, purpose, (chain, key) in (
        ("server", ssl.PROTOCOL_TLS_SERVER, server),
        ("client", ssl.PROTOCOL_TLS_CLIENT, client),
    ):
        context = ssl.SSLContext(purpose)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=TLS_ROOT.cert_pem.decode())
        (tmp_path / f"{name}.crt").write_bytes(chain)
        (tmp_path / f"{name}.key").write_bytes(key)
        context.load_cert_chain(tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
        sides.append((context, ssl.MemoryBIO(), ssl.MemoryBIO()))
    (server_context, to_server, from_server), (client_context, _, _) = sides
    serving = server_context.wrap_bio(to_server, from_server, server_side=True)
    asking = client_context.wrap_bio(from_server, to_server, server_hostname="localhost")
    for _ in range(4):  # a TLS 1.3 handshake is done after two rounds, errors included
        for side in (asking, serving):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    peer = serving.getpeercert()
    assert peer is not None
    return str(peer["subjectAltName"])


def test_openssl_believes_client_and_server(tmp_path: Path) -> None:
    """A strict OpenSSL accepts both over the chain, and the server learns the client's SPIFFE id."""
    server = TLS_CA.issue_tls_server(["localhost", "127.0.0.1"], now_ms=real_now_ms())
    client = TLS_CA.issue_tls_client(ID, now_ms=real_now_ms())
    assert handshake(tmp_path, server, client) == f"(('URI', '{ID}'),)"


def event_pair() -> tuple[bytes, bytes]:
    """An event key with its chain, in the files that TLS would want."""
    chain = TLS_CA.issue(ID, PUBLIC, now_ms=real_now_ms())
    pems = [x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in split_chain(chain)]
    return b"".join(pems), seed_to_pem(reference.SEED)


@pytest.mark.parametrize("swapped", ["event key as client", "server as client", "client as server", "stranger"])
def test_openssl_believes_no_certificate_of_another_purpose(swapped: str, tmp_path: Path) -> None:
    """An event certificate opens no connection, and client and server do not stand in for each other."""
    server = TLS_CA.issue_tls_server(["localhost"], now_ms=real_now_ms())
    client = TLS_CA.issue_tls_client(ID, now_ms=real_now_ms())
    match swapped:
        case "event key as client":
            client = event_pair()
        case "server as client":
            client = server
        case "client as server":
            server = client
        case "stranger":
            client = MeshCA.create("mesh.example", now_ms=real_now_ms()).issue_tls_client(ID, now_ms=real_now_ms())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, server, client)


def test_an_event_certificate_has_the_private_purpose_alone() -> None:
    """The extended key usage of an event certificate is none that TLS knows."""
    made = load(CA.issue(ID, PUBLIC, now_ms=NOW_MS))
    assert list(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [EVENT_SIGNING]
