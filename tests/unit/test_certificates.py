"""Which certificates are believed: security notes, table 4.1, over chains of one and two levels."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from mesh.certificates import EVENT_SIGNING, MAX_CHAIN_BYTES, check_chain, read_certificate, split_chain
from mesh.errors import BadCertificate, WeakKey
from mesh.identity import Keyring
from tests.tables import make_signatures as reference
from tests.unit.certify import (
    ANY_PURPOSE,
    CLIENT_AUTH,
    DAY,
    DNS_CONSTRAINT,
    ID,
    LEAF,
    MESH_CA_KEY,
    MESH_CA_NAME,
    MESH_CA_SPAN,
    NO_CA,
    NO_NAME,
    NOW,
    NOW_MS,
    OTHER_KEY,
    ROOT_KEY,
    ROOT_NAME,
    SERVER_AUTH,
    UNKNOWN,
    URI_CONSTRAINT,
    WeakHolder,
    certify_ca,
    certify_leaf,
    certify_root,
    kid_of,
    named,
    path_length,
    purposes,
    san,
    usage,
)

Make = Callable[[], bytes]
ROOT, MESH_CA, GOOD_LEAF = certify_root(), certify_ca(), certify_leaf()
OLD_ROOT = certify_root(OTHER_KEY, bc=(x509.BasicConstraints(ca=True, path_length=0), True))
TWO_KINDS = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ID), x509.DNSName("mesh.example")])
ONLY_DNS = x509.SubjectAlternativeName([x509.DNSName("mesh.example")])
under_root = partial(certify_leaf, by=ROOT_KEY, issuer=ROOT_NAME)


def as_pem(*ders: bytes) -> bytes:
    """A file of certificates."""
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)


# --- what is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "roots"),
    [
        (GOOD_LEAF + MESH_CA, [ROOT]),
        (GOOD_LEAF + MESH_CA, [as_pem(ROOT)]),
        (GOOD_LEAF + MESH_CA, [as_pem(OLD_ROOT, ROOT)]),
        (GOOD_LEAF + MESH_CA, [OLD_ROOT, ROOT]),
        (under_root(), [ROOT]),
        (certify_leaf(by=OTHER_KEY, issuer=ROOT_NAME), [OLD_ROOT]),
        (certify_leaf(by=OTHER_KEY, issuer=ROOT_NAME), [as_pem(OLD_ROOT, ROOT)]),
        (GOOD_LEAF + MESH_CA, [MESH_CA]),
        (GOOD_LEAF, [MESH_CA]),
        (certify_leaf(span=MESH_CA_SPAN) + MESH_CA, [ROOT]),
        (certify_leaf(span=MESH_CA_SPAN) + certify_ca(), [certify_root(span=MESH_CA_SPAN)]),
        (certify_leaf(bc=NO_CA) + MESH_CA, [ROOT]),
        (certify_leaf(x=(UNKNOWN, False)) + MESH_CA, [ROOT]),
        (GOOD_LEAF + certify_ca(nc=(DNS_CONSTRAINT, True)), [ROOT]),
    ],
    ids=[
        "DER root", "PEM root", "second in a PEM file", "second root", "under a root itself",
        "under an old root of path length 0", "under an old root, beside the new one", "the mesh CA is the anchor",
        "the mesh CA is the anchor, and not sent", "as long as the mesh CA", "as long as mesh CA and root",
        "says that it is no CA", "an extension nobody has to understand",
        "a DNS constraint, which says nothing about URIs",
    ],
)  # fmt: skip
def test_a_chain_of_the_profile_is_accepted(chain: bytes, roots: list[bytes]) -> None:
    """What the rows below change is accepted unchanged, under a root itself or through one mesh CA."""
    accepted = check_chain(chain, roots)
    assert (accepted.kid, accepted.spiffe_id, accepted.public_key) == (reference.KID, ID, reference.PUBLIC_KEY)
    assert (accepted.chain, accepted.der) == (chain, split_chain(chain)[0])


def test_a_certificate_says_who_issued_it_and_for_how_long() -> None:
    """Validity is in Unix milliseconds, and the issuer's key has the name that OpenSSL's SubjectPublicKeyInfo gives."""
    accepted = check_chain(GOOD_LEAF + MESH_CA, [ROOT])
    assert (accepted.not_before_ms, accepted.not_after_ms) == (NOW_MS, NOW_MS + 86_400_000)
    assert accepted.issuer_kid == kid_of(MESH_CA)
    assert check_chain(under_root(), [ROOT]).issuer_kid == kid_of(ROOT)


# --- leaves that are refused -----------------------------------------------------------------------------------------

REFUSED_LEAVES: dict[str, Make] = {
    "no EKU": lambda: certify_leaf(eku=None),
    "wrong EKU": lambda: certify_leaf(eku=(purposes(CLIENT_AUTH), True)),
    "any EKU": lambda: certify_leaf(eku=(purposes(ANY_PURPOSE), True)),
    "our EKU and another": lambda: certify_leaf(eku=(purposes(EVENT_SIGNING, CLIENT_AUTH), True)),
    "our EKU twice": lambda: certify_leaf(eku=(purposes(EVENT_SIGNING, EVENT_SIGNING), True)),
    "EKU not critical": lambda: certify_leaf(eku=(LEAF["eku"][0], False)),
    "no key usage": lambda: certify_leaf(ku=None),
    "key usage not critical": lambda: certify_leaf(ku=(LEAF["ku"][0], False)),
    "key usage for certificates": lambda: certify_leaf(ku=(usage(digital_signature=True, key_cert_sign=True), True)),
    "key usage for another thing": lambda: certify_leaf(ku=(usage(content_commitment=True), True)),
    "no SAN": lambda: certify_leaf(san=None),
    "SAN not critical": lambda: certify_leaf(san=(san(ID), False)),
    "SAN not critical, with a subject": lambda: certify_leaf(san=(san(ID), False), subject=named("crm")),
    "two URIs": lambda: certify_leaf(san=(san(ID, ID + "2"), True)),
    "the same URI twice": lambda: certify_leaf(san=(san(ID, ID), True)),
    "http URI": lambda: certify_leaf(san=(san("http://mesh.example/ns/acme/sa/crm-adapter"), True)),
    "URI of a trust domain": lambda: certify_leaf(san=(san("spiffe://mesh.example"), True)),
    "URI of another trust domain": lambda: certify_leaf(san=(san("spiffe://other.example/ns/acme/sa/a"), True)),
    "URI and DNS name": lambda: certify_leaf(san=(TWO_KINDS, True)),
    "DNS name": lambda: certify_leaf(san=(ONLY_DNS, True)),
    "leaf is a CA": lambda: certify_leaf(bc=(x509.BasicConstraints(ca=True, path_length=None), True)),
    "unknown critical extension": lambda: certify_leaf(x=(UNKNOWN, True)),
    "name constraints in the leaf": lambda: certify_leaf(nc=(URI_CONSTRAINT, False)),
    "P-256 key": lambda: certify_leaf(OTHER_KEY),
    "RSA key": lambda: certify_leaf(rsa.generate_private_key(65537, 2048)),
    "key of small order": lambda: certify_leaf(WeakHolder(bytes(32))),
    "outlives its issuer": lambda: certify_leaf(span=(NOW, NOW + 10 * DAY)),
    "begins before its issuer": lambda: certify_leaf(span=(NOW - 2 * DAY, NOW + DAY)),
    "begins after its issuer ended (expired CA)": lambda: certify_leaf(span=(NOW + 10 * DAY, NOW + 11 * DAY)),
    "ended before its issuer began (future CA)": lambda: certify_leaf(span=(NOW - 4 * DAY, NOW - 3 * DAY)),
    "issued by a stranger of the same name": lambda: certify_leaf(by=OTHER_KEY),
    "issued by an unknown name": lambda: certify_leaf(issuer=NO_NAME),
    "self-signed": lambda: certify_leaf(by=reference.KEY),
    "self-signed under the CA's name": lambda: certify_leaf(by=reference.KEY, subject=MESH_CA_NAME),
    "cut off": lambda: GOOD_LEAF[:-1],
}


@pytest.mark.parametrize("name", REFUSED_LEAVES)
def test_a_leaf_outside_the_profile_is_refused(name: str) -> None:
    """Each certificate that differs from the profile in one thing is refused, also where stock verifiers take it.

    With and without the mesh CA's certificate behind it, which here is an anchor too.
    """
    leaf = REFUSED_LEAVES[name]()
    for chain, roots in ((leaf + MESH_CA, [ROOT]), (leaf, [MESH_CA])):
        with pytest.raises((BadCertificate, WeakKey)):
            check_chain(chain, roots)


SEEN_ALONE = {name for name in REFUSED_LEAVES if "EKU" in name or "key" in name or "SAN" in name or "URI" in name}


@pytest.mark.parametrize("name", sorted(SEEN_ALONE - {"URI of another trust domain"}))
def test_a_leaf_is_refused_before_anybody_asks_who_issued_it(name: str) -> None:
    """Keys, names and uses are checked where a certificate is read without roots, too."""
    with pytest.raises((BadCertificate, WeakKey)):
        read_certificate(REFUSED_LEAVES[name]())


@pytest.mark.parametrize("key", reference.small_order_keys(), ids=lambda key: str(key.hex()))
def test_a_certified_weak_key_is_refused(key: bytes) -> None:
    """A chain over a small-order key is refused although its signatures and profile are good."""
    with pytest.raises(WeakKey):
        Keyring([ROOT], None).add(certify_leaf(WeakHolder(key)) + MESH_CA)


# --- CAs that are refused --------------------------------------------------------------------------------------------

OTHER_KINDS: dict[str, Any] = {
    "Ed25519 key": reference.OTHER_KEY,
    "P-384 key": ec.generate_private_key(ec.SECP384R1()),
    "RSA key": rsa.generate_private_key(65537, 2048),
}
CHANGES: dict[str, dict[str, Any]] = {
    "no CA": {"bc": NO_CA},
    "no basic constraints": {"bc": None},
    "basic constraints not critical": {},
    "may not sign certificates": {"ku": (usage(crl_sign=True), True)},
    "signs, but no certificates": {"ku": (usage(digital_signature=True), True)},
    "an EKU of event signing": {"eku": (purposes(EVENT_SIGNING), True)},
    "an EKU of TLS": {"eku": (purposes(CLIENT_AUTH, SERVER_AUTH), False)},
    "no trust domain": {"san": None},
    "two trust domains": {"san": (san("spiffe://mesh.example", "spiffe://other.example"), False)},
    "a workload's name": {"san": (san(ID), False)},
    "another trust domain": {"san": (san("spiffe://other.example"), False)},
    "http URI": {"san": (san("http://mesh.example"), False)},
    "DNS name": {"san": (ONLY_DNS, False)},
    "URI name constraint": {"nc": (URI_CONSTRAINT, True)},
    "unknown critical extension": {"x": (UNKNOWN, True)},
}
SPANS = {
    "not yet valid": (NOW + DAY, NOW + 9 * DAY),
    "expired": (NOW - 2 * DAY, NOW - DAY),
    "ends before the leaf": (NOW - DAY, NOW + DAY / 2),
}


@pytest.mark.parametrize("name", [*CHANGES, *SPANS, *OTHER_KINDS])
@pytest.mark.parametrize("level", ["root", "root above a mesh CA", "mesh CA"])
def test_a_ca_outside_the_profile_is_refused(level: str, name: str) -> None:
    """A leaf is refused under a root or a mesh CA that differs from the profile in one thing."""
    change: dict[str, Any] = {**CHANGES.get(name, {})}
    key = OTHER_KINDS.get(name)
    if name in SPANS:
        change["span"] = SPANS[name]
    if name == "basic constraints not critical":
        change["bc"] = (x509.BasicConstraints(ca=True, path_length=0 if level == "mesh CA" else 1), False)
    if level == "mesh CA":
        chain = certify_leaf(by=key or MESH_CA_KEY) + certify_ca(key or MESH_CA_KEY, **change)
        root = ROOT
    elif level == "root":
        chain, root = under_root(by=key or ROOT_KEY), certify_root(key or ROOT_KEY, **change)
    else:
        chain, root = GOOD_LEAF + certify_ca(by=key or ROOT_KEY), certify_root(key or ROOT_KEY, **change)
    with pytest.raises(BadCertificate):
        check_chain(chain, [root])


TLS_LEAF = certify_leaf(OTHER_KEY, eku=(purposes(CLIENT_AUTH), True))
BELOW = certify_ca(OTHER_KEY, by=MESH_CA_KEY, subject=named("below"), issuer=MESH_CA_NAME)
UNDER_BELOW = certify_leaf(by=OTHER_KEY, issuer=named("below"))
STRANGER_ROOT = certify_root(OTHER_KEY)
LARGE = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), bytes(MAX_CHAIN_BYTES))
VERSION, NO_VERSION = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"  # X.509 v3, and one that does not exist
REFUSED_CHAINS: dict[str, Make] = {
    "without the mesh CA": lambda: GOOD_LEAF,
    "another mesh CA of the same name": lambda: GOOD_LEAF + certify_ca(OTHER_KEY),
    "a mesh CA of a stranger's root": lambda: GOOD_LEAF + certify_ca(by=OTHER_KEY),
    "a mesh CA that signed itself": lambda: GOOD_LEAF + certify_ca(by=MESH_CA_KEY),
    "a mesh CA that signed itself, under the root's name": lambda: (
        certify_leaf(issuer=ROOT_NAME) + certify_ca(by=MESH_CA_KEY, subject=ROOT_NAME)
    ),
    "a mesh CA that may certify CAs": lambda: GOOD_LEAF + certify_ca(**path_length(1)),
    "a mesh CA that may certify any depth of CAs": lambda: GOOD_LEAF + certify_ca(**path_length(None)),
    "a mesh CA below a mesh CA": lambda: UNDER_BELOW + BELOW,
    "a mesh CA below a mesh CA that is an anchor": lambda: UNDER_BELOW + BELOW,
    "three levels": lambda: UNDER_BELOW + BELOW + MESH_CA,
    "three levels, each of which may": lambda: UNDER_BELOW + BELOW + certify_ca(**path_length(1)),
    "a mesh CA under an old root of path length 0": lambda: GOOD_LEAF + certify_ca(by=OTHER_KEY),
    "a TLS certificate as the CA": lambda: certify_leaf(by=OTHER_KEY, issuer=NO_NAME) + TLS_LEAF,
    "an event certificate as the CA": lambda: (
        certify_leaf(reference.OTHER_KEY, by=reference.KEY, issuer=NO_NAME) + GOOD_LEAF
    ),
    "its root instead of the mesh CA": lambda: GOOD_LEAF + ROOT,
    "under a root, and its root": lambda: under_root() + ROOT,
    "under a root, and a mesh CA that did nothing": lambda: under_root() + MESH_CA,
    "its own root": lambda: certify_leaf(by=OTHER_KEY, issuer=ROOT_NAME) + STRANGER_ROOT,
    "the wrong way round": lambda: MESH_CA + GOOD_LEAF,
    "the mesh CA alone": lambda: MESH_CA,
    "the root alone": lambda: ROOT,
    "the leaf twice": lambda: GOOD_LEAF + GOOD_LEAF,
    "the mesh CA twice": lambda: GOOD_LEAF + MESH_CA + MESH_CA,
    "the root as well": lambda: GOOD_LEAF + MESH_CA + ROOT,
    "one byte more": lambda: GOOD_LEAF + MESH_CA + b"\0",
    "one byte less": lambda: (GOOD_LEAF + MESH_CA)[:-1],
    "two bytes more": lambda: GOOD_LEAF + MESH_CA + b"\x30\x00",
    "a byte between": lambda: GOOD_LEAF + b"\0" + MESH_CA,
    "empty": lambda: b"",
    "too large": lambda: certify_leaf(x=(LARGE, False)) + MESH_CA,
    "of no definite length": lambda: b"\x30\x80" + GOOD_LEAF[2:] + b"\0\0",
    "of a length of 127 bytes": lambda: b"\x30\xff" + GOOD_LEAF[2:],
    "longer than it is": lambda: b"\x30\x82\xff\xff" + GOOD_LEAF[4:],
    "one byte": lambda: b"\x30",
    "PEM": lambda: as_pem(GOOD_LEAF, MESH_CA),
    "a leaf of an X.509 version that is none": lambda: GOOD_LEAF.replace(VERSION, NO_VERSION) + MESH_CA,
    "a mesh CA of an X.509 version that is none": lambda: GOOD_LEAF + MESH_CA.replace(VERSION, NO_VERSION),
}


@pytest.mark.parametrize("name", REFUSED_CHAINS)
def test_a_chain_that_leads_nowhere_is_refused(name: str) -> None:
    """A chain is a leaf and the one mesh CA that issued it, which a root issued; nothing is missing or left over."""
    roots = [OLD_ROOT] if "old root" in name else [MESH_CA] if "anchor" in name else [ROOT]
    with pytest.raises(BadCertificate):
        check_chain(REFUSED_CHAINS[name](), roots)


@pytest.mark.parametrize("chain", [GOOD_LEAF + MESH_CA, GOOD_LEAF, MESH_CA])
def test_a_chain_is_cut_where_it_was_joined(chain: bytes) -> None:
    """The items are the certificates as they were issued, and together they are the chain."""
    items = split_chain(chain)
    assert b"".join(items) == chain
    assert set(items) <= {GOOD_LEAF, MESH_CA}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x30", b"\x30\x01", b"\x30\x80\x00\x00", b"\x30\x80" + bytes(128), b"\x30\x81", b"\x30\x82\x01",
        b"\x30\xff\x00", b"\x31\x00", b"\x30\x00\x31\x00", b"\x30\x00\x00", b"\x30\x00" * 3,
        b"\x30\x82\x40\x00" + bytes(0x4000),
    ],
    ids=lambda data: data[:4].hex(),
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(data: bytes) -> None:
    """Cutting is strict by itself: whoever stores a chain relies on it before anything in it is checked."""
    with pytest.raises(BadCertificate):
        split_chain(data)


@pytest.mark.parametrize(
    "roots",
    [[], [b""], [b"a root"], [b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"], [ROOT, b"a root"],
     [as_pem(ROOT)[:-60]], [STRANGER_ROOT], [GOOD_LEAF], [reference.PUBLIC_KEY],
     [ROOT, certify_root(OTHER_KEY, san=None)], [ROOT.replace(VERSION, NO_VERSION)]],
    ids=["none", "empty", "text", "empty PEM", "a good one and another", "cut off", "a stranger's", "a leaf", "a key",
         "a good one and one of no trust domain", "another version"],
)  # fmt: skip
def test_without_a_root_nothing_is_believed(roots: list[bytes]) -> None:
    """An empty list of roots, or what cannot be read as one, accepts no certificate."""
    with pytest.raises(BadCertificate):
        check_chain(GOOD_LEAF + MESH_CA, roots)


def test_a_leaf_that_outlives_the_root_alone_is_refused() -> None:
    """A mesh CA whose certificate says that it outlives its root does not lend that to its leaves."""
    root = certify_root(span=(NOW - DAY, NOW + DAY / 2))
    with pytest.raises(BadCertificate, match="outlives"):
        check_chain(GOOD_LEAF + MESH_CA, [root])
    short = certify_leaf(span=(NOW, NOW + DAY / 2))
    assert check_chain(short + MESH_CA, [root]).not_after_ms == NOW_MS + 43_200_000


@pytest.mark.filterwarnings("ignore:Parsed a serial number:DeprecationWarning")
def test_a_changed_chain_is_refused_or_says_the_same() -> None:
    """With a bit flipped, or bytes put in or taken out, a chain never says anything else, and brings no surprise.

    It may pass where a signature has several encodings: the padding of a bit string, which happens to be zero.
    """
    good = check_chain(GOOD_LEAF + MESH_CA, [ROOT])
    chain, chance = GOOD_LEAF + MESH_CA, random.Random(4)
    for place in range(0, len(chain) * 8, 5):
        changed = bytearray(chain)
        changed[place // 8] ^= 1 << place % 8
        if place % 3 == 0:
            changed.insert(chance.randrange(len(chain)), chance.randrange(256))
        elif place % 3 == 1:
            del changed[chance.randrange(len(chain))]
        with suppress(BadCertificate, WeakKey):
            assert check_chain(bytes(changed), [ROOT]) == good
