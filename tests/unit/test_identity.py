"""SPIFFE ids, keys, signers, trust statements and the keyring."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_core_ed25519_is_valid_point

from mesh.ca import MeshCA, RootCA
from mesh.certificates import split_chain
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
    Keyring,
    Signer,
    SpiffeId,
    TrustStatement,
    check_chain,
    check_public_key,
    key_id,
    seed_from_pem,
    seed_to_pem,
)
from mesh.keys import spki_id
from mesh.signing import pae, verify_ed25519
from tests.tables import make_signatures as reference

NOW_MS = reference.SIGNED_MS
DAY_MS = 86_400_000
ID = "spiffe://mesh.example/ns/acme/sa/crm-adapter"
SEED = reference.SEED
PUBLIC = reference.PUBLIC_KEY
OTHER_PUBLIC = reference.OTHER_KEY.public_key().public_bytes_raw()
TRUST_SEED = bytes(range(100, 132))
TRUST_KEY = ed25519.Ed25519PrivateKey.from_private_bytes(TRUST_SEED).public_key().public_bytes_raw()
ROOT = RootCA.create("mesh.example", now_ms=NOW_MS)
CA, NEXT_CA = (ROOT.issue_ca(now_ms=NOW_MS) for _ in range(2))
ROOTS = [ROOT.cert_pem]

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
    assert spki_id(reference.SPKI + PUBLIC) == key_id(PUBLIC)


@pytest.mark.parametrize("key", reference.small_order_keys(), ids=lambda key: str(key.hex()))
def test_small_order_keys_are_refused(key: bytes) -> None:
    """None of the 14 encodings of small order is a key, of an event signer or of trust."""
    with pytest.raises(WeakKey):
        check_public_key(key)
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
        seed_from_pem(ROOT.key_pem)
    with pytest.raises(IdentityError):
        seed_from_pem(b"nothing")


# --- signer ----------------------------------------------------------------------------------------------------------


def test_a_signer_signs_as_its_certificate_says() -> None:
    """Signature, kid, id, issuer and validity are those of key and certificate, and no attribute shows the seed."""
    chain = CA.issue(ID, PUBLIC, now_ms=NOW_MS)
    signer = Signer.from_seed(SEED, chain)
    assert signer.sign(b"x") == reference.KEY.sign(b"x")
    held = check_chain(chain, ROOTS)
    assert (signer.kid, signer.spiffe_id, signer.issuer_kid) == (held.kid, ID, CA.kid)
    assert (signer.certificate, held.chain) == (chain, chain)
    assert (signer.not_before_ms, signer.not_after_ms) == (held.not_before_ms, held.not_after_ms)
    assert SEED.hex() not in repr(signer)


def test_a_signer_under_a_root_names_no_issuer() -> None:
    """A chain of one says nothing of who issued it; its bytes are the certificate's."""
    leaf = split_chain(CA.issue(ID, PUBLIC, now_ms=NOW_MS))[0]
    signer = Signer.from_seed(SEED, leaf)
    assert (signer.issuer_kid, signer.certificate) == ("", leaf)


@pytest.mark.parametrize("change", [b"", b"\0", b"\x30\x00"])
def test_a_signer_needs_its_own_certificate(change: bytes) -> None:
    """A certificate of another key, and a chain that is none, is refused before anything is signed with it."""
    chain = CA.issue(ID, PUBLIC, now_ms=NOW_MS)
    with pytest.raises(BadCertificate):
        Signer.from_seed(SEED if change else TRUST_SEED, chain + change)


# --- trust statements ------------------------------------------------------------------------------------------------


def make_statement(epoch: int = 1, issued_ms: int = NOW_MS, tenant: str = "acme", **revoked: int) -> TrustStatement:
    """A trust statement."""
    return TrustStatement(tenant=tenant, epoch=epoch, issued_ms=issued_ms, revoked=revoked)


def revoke(epoch: int, revoked: dict[str, int]) -> bytes:
    """A sealed statement that revokes keys of any name."""
    return TrustStatement(tenant="acme", epoch=epoch, issued_ms=NOW_MS, revoked=revoked).seal(TRUST_SEED)


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
    statement = TrustStatement(tenant="acme", epoch=epoch, issued_ms=issued_ms, revoked={reference.KID: when})
    assert TrustStatement.open(statement.seal(TRUST_SEED), TRUST_KEY) == statement


def test_a_sealed_statement_is_a_dsse_envelope() -> None:
    """Any DSSE library reads it: payloadType, base64 payload, signatures over the pre-authentication encoding."""
    sealed = json.loads(make_statement(7).seal(TRUST_SEED))
    payload = base64.b64decode(sealed["payload"])
    assert json.loads(payload) == {"tenant": "acme", "epoch": 7, "issued_ms": NOW_MS, "revoked": {}}
    signature = base64.b64decode(sealed["signatures"][0]["sig"])
    assert verify_ed25519(TRUST_KEY, pae(sealed["payloadType"], payload), signature)
    assert sealed["signatures"][0]["keyid"] == key_id(TRUST_KEY)


GOOD_PAYLOAD = b'{"tenant":"acme","epoch":1,"issued_ms":1,"revoked":{}}'


def test_the_payload_that_the_rows_change_is_good() -> None:
    """A statement written by hand opens."""
    assert TrustStatement.open(envelope(GOOD_PAYLOAD), TRUST_KEY) == make_statement(1, 1)


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
        envelope(b"not json"), envelope(b"[]"), envelope(b'{"tenant":"acme","epoch":1}'),
        envelope(b'{"tenant":"acme","epoch":1,"issued_ms":1,"revoked":{},"floor":3}'),
        envelope(GOOD_PAYLOAD.replace(b'"epoch":1', b'"epoch":-1')),
        envelope(GOOD_PAYLOAD.replace(b'"epoch":1', b'"epoch":true')),
        envelope(GOOD_PAYLOAD.replace(b'"epoch":1', b'"epoch":1.5')),
        envelope(GOOD_PAYLOAD.replace(b'"epoch":1', b'"epoch":"1"')),
        envelope(b'{"tenant":"acme","epoch":1,"issued_ms":1,"revoked":{"short":1}}'),
        envelope(b'{"tenant":"acme","epoch":1,"issued_ms":1,"revoked":{"oFCDfYUHBYLM9zlLCYiEfA":-1}}'),
        envelope(b'{"tenant":"acme","epoch":1,"issued_ms":1,"revoked":{"oFCDfYUHBYLM9zlLCYiEfB":1}}'),
        envelope(GOOD_PAYLOAD.replace(b'"tenant":"acme",', b"")), envelope(GOOD_PAYLOAD.replace(b"acme", b"")),
        envelope(GOOD_PAYLOAD.replace(b"acme", b"Acme")), envelope(GOOD_PAYLOAD.replace(b'"acme"', b"7")),
    ],
    ids=[
        "empty", "no fields", "array", "null", "not UTF-8", "deep", "large", "another key", "another type",
        "type changed",
        "no signature", "long signature", "no base64", "payload no JSON", "payload array", "payload incomplete",
        "unknown field", "negative epoch", "boolean epoch", "fractional epoch", "textual epoch", "short kid",
        "negative time", "non-canonical kid", "no tenant", "empty tenant", "no name of a tenant", "a number as tenant",
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
    """An added certificate is found by its kid, once, however often it is added, with its chain."""
    keyring, chain = Keyring(ROOTS, TRUST_KEY), CA.issue(ID, PUBLIC, now_ms=NOW_MS)
    assert keyring.find(reference.KID) is None
    added = keyring.add(chain)
    assert keyring.add(chain) == added == keyring.find(reference.KID) == keyring.find(reference.KID, 0)
    assert keyring.certificates() == [added]
    assert (added.chain, added.issuer_kid) == (chain, CA.kid)


def test_a_certificate_signed_twice_is_kept_once() -> None:
    """ECDSA has many signatures for one content: a stranger cannot fill the keyring with variants."""
    keyring = Keyring(ROOTS, TRUST_KEY)
    chains = {CA.issue(ID, PUBLIC, now_ms=NOW_MS) for _ in range(3)}
    assert len(chains) == 3
    for chain in chains:
        keyring.add(chain)
    assert len(keyring.certificates()) == 1


def test_a_keyring_takes_only_what_its_roots_issued() -> None:
    """A certificate of another CA stays out, one of the same trust domain too."""
    other = MeshCA.create("mesh.example", now_ms=NOW_MS)
    keyring = Keyring(ROOTS, TRUST_KEY)
    with pytest.raises(BadCertificate):
        keyring.add(other.issue(ID, PUBLIC, now_ms=NOW_MS))
    assert keyring.find(reference.KID) is None


def test_a_keyring_of_two_roots_takes_what_either_issued() -> None:
    """While a root is replaced, the old one's certificates stand beside the new one's, from one PEM file."""
    other = MeshCA.create("mesh.example", now_ms=NOW_MS)
    keyring = Keyring([ROOT.cert_pem + other.root_pem], TRUST_KEY)
    keyring.add(CA.issue(ID, PUBLIC, now_ms=NOW_MS))
    keyring.add(other.issue(ID, OTHER_PUBLIC, now_ms=NOW_MS))
    assert {certificate.kid for certificate in keyring.certificates()} == {reference.KID, key_id(OTHER_PUBLIC)}


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
    keyring, later_ms = Keyring(ROOTS, TRUST_KEY), NOW_MS + 10 * DAY_MS
    older, newer = (CA.issue(ID, PUBLIC, now_ms=now_ms) for now_ms in (NOW_MS, later_ms))
    for chain in (older, newer)[::order]:
        keyring.add(chain)
    found = {at: keyring.find(reference.KID, at) for at in (None, NOW_MS, later_ms, NOW_MS + 5 * DAY_MS)}
    chains = {at: certificate.chain for at, certificate in found.items() if certificate is not None}
    assert chains == {None: newer, NOW_MS: older, later_ms: newer, NOW_MS + 5 * DAY_MS: newer}


def test_a_keyring_forgets_what_ended_long_ago() -> None:
    """Certificates that ended before a time are dropped, the rest stays, also of the same key."""
    keyring, later_ms = Keyring(ROOTS, TRUST_KEY), NOW_MS + 10 * DAY_MS
    for key, now_ms in ((PUBLIC, NOW_MS), (PUBLIC, later_ms), (OTHER_PUBLIC, NOW_MS)):
        keyring.add(CA.issue(ID, key, now_ms=now_ms))
    keyring.forget(NOW_MS + DAY_MS)
    assert len(keyring.certificates()) == 3
    keyring.forget(NOW_MS + DAY_MS + 1)
    assert [certificate.kid for certificate in keyring.certificates()] == [reference.KID]
    assert keyring.find(key_id(OTHER_PUBLIC)) is None


# --- revocation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("revoked", "from_ms"),
    [
        ({}, None),
        ({reference.KID: 5}, 5),
        ({CA.kid: 7}, 7),
        ({reference.KID: 5, CA.kid: 7}, 5),
        ({reference.KID: 9, CA.kid: 7}, 7),
        ({reference.KID: 0}, 0),
        ({reference.KID: 0, CA.kid: 7}, 0),
        ({NEXT_CA.kid: 7, key_id(OTHER_PUBLIC): 5, ROOT.kid: 1}, None),
    ],
    ids=["nobody", "key", "issuer", "key first", "issuer first", "from the beginning", "both", "others"],
)
def test_a_key_is_revoked_by_its_name_or_its_issuers(revoked: dict[str, int], from_ms: int | None) -> None:
    """The earlier of both times counts; keys of others and other CAs change nothing."""
    keyring = Keyring(ROOTS, TRUST_KEY)
    certificate = keyring.add(CA.issue(ID, PUBLIC, now_ms=NOW_MS))
    keyring.apply(revoke(1, revoked))
    assert keyring.revoked_from(reference.KID) == from_ms
    assert keyring.refused_from(certificate) == from_ms


def test_a_key_that_nobody_knows_can_be_revoked() -> None:
    """A kid is revoked by its name before its certificate arrives."""
    keyring = Keyring(ROOTS, TRUST_KEY)
    keyring.apply(revoke(1, {reference.KID: 5}))
    assert (keyring.revoked_from(reference.KID), keyring.revoked_from(key_id(OTHER_PUBLIC))) == (5, None)


def test_a_root_that_issued_a_leaf_itself_is_its_issuer() -> None:
    """Where the anchor signed the certificate, the anchor's kid revokes it."""
    keyring = Keyring([CA.cert_pem], TRUST_KEY)
    keyring.add(split_chain(CA.issue(ID, PUBLIC, now_ms=NOW_MS))[0])
    keyring.apply(revoke(1, {CA.kid: 7}))
    assert keyring.revoked_from(reference.KID) == 7


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_issuers_the_one_in_force_counts(order: int) -> None:
    """A key that a good CA certified too does not fall with the revoked one."""
    keyring = Keyring(ROOTS, TRUST_KEY)
    chains = [ca.issue(ID, PUBLIC, now_ms=NOW_MS + late) for ca, late in ((CA, 60_000), (NEXT_CA, 0))]
    for chain in chains[::order]:
        keyring.add(chain)
    for epoch, revoked, issuer, from_ms in (
        (1, {CA.kid: 7}, NEXT_CA, None),
        (2, {NEXT_CA.kid: 7}, CA, None),
        (3, {CA.kid: 7, NEXT_CA.kid: 9}, NEXT_CA, 9),
        (4, {CA.kid: 7, reference.KID: 3}, NEXT_CA, 3),
    ):
        keyring.apply(revoke(epoch, revoked))
        assert getattr(keyring.find(reference.KID, NOW_MS), "issuer_kid", None) == issuer.kid
        assert keyring.revoked_from(reference.KID) == from_ms


def test_the_revision_rises_with_other_revocations_alone() -> None:
    """A statement that revokes the same, from the same times, is no news; more, fewer and other times are."""
    keyring = Keyring(ROOTS, TRUST_KEY)
    seen = []
    for epoch, revoked in enumerate(
        [{}, {}, {reference.KID: 5}, {reference.KID: 5}, {reference.KID: 6}, {reference.KID: 6, CA.kid: 6}, {}]
    ):
        keyring.apply(revoke(epoch + 1, revoked))
        seen.append(keyring.revision)
    assert seen == [0, 0, 1, 1, 2, 3, 4]
    with pytest.raises(TrustRollback):
        keyring.apply(revoke(1, {CA.kid: 1}))
    assert keyring.revision == 4


def test_a_statement_of_another_tenant_is_refused() -> None:
    """What the trust key said for one tenant does not pass in another, however new it is."""
    keyring = Keyring(ROOTS, TRUST_KEY, tenant="acme")
    applied = keyring.apply(make_statement(1).seal(TRUST_SEED))
    with pytest.raises(BadTrustStatement):
        keyring.apply(make_statement(2, tenant="umbrella", oFCDfYUHBYLM9zlLCYiEfA=5).seal(TRUST_SEED))
    assert (keyring.statement, keyring.revoked_from(reference.KID)) == (applied, None)
    Keyring(ROOTS, TRUST_KEY).apply(make_statement(2, tenant="umbrella").seal(TRUST_SEED))


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
