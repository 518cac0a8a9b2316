"""Statement, tree, seal, and the checks V1 to V9."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

import mesh.signing
from mesh.ca import RootCA
from mesh.errors import (
    BadEnvelope,
    BadSignature,
    KeyRevoked,
    OutsideCertificate,
    PublisherNotAllowed,
    VerificationError,
)
from mesh.identity import Certificate, Keyring, Signer, TrustStatement, key_id
from mesh.keys import SpiffeId
from mesh.merkle import Climber
from mesh.signing import (
    MAX_BATCH,
    Received,
    Verifier,
    leaf_hash,
    message_id,
    pae,
    root_from_proof,
    seal,
    statement,
    tree,
    verify_ed25519,
)
from tests.tables import make_signatures as reference

VECTORS = json.loads((reference.HERE / "signing_vectors.json").read_text())
BAD = json.loads((reference.HERE / "bad_signatures.json").read_text())
BASE: dict[str, Any] = BAD["base"]
TRUST_SEED = bytes(reversed(range(100, 132)))
TRUST_KEY = Ed25519PrivateKey.from_private_bytes(TRUST_SEED).public_key().public_bytes_raw()
ROOT = RootCA.create("mesh.example", now_ms=reference.NOT_BEFORE_MS - 86_400_000)
CA = ROOT.issue_ca(now_ms=reference.NOT_BEFORE_MS - 86_400_000)


def issue(row: dict[str, Any]) -> bytes:
    """A certificate for the key, id and validity of a row."""
    now_ms = row["notBeforeMs"] + 60_000  # a certificate begins a minute before its issue
    lifetime_s = (row["notAfterMs"] - now_ms) / 1000
    return CA.issue(row["spiffeId"], base64.b64decode(row["publicKeyB64"]), now_ms=now_ms, lifetime_s=lifetime_s)


def keyring_for(row: dict[str, Any]) -> Keyring:
    """A keyring that trusts what a row says; a key that no CA certifies is not in it."""
    keyring = Keyring([ROOT.cert_pem], TRUST_KEY)
    try:
        certificate = keyring.add(issue(row))
    except mesh.errors.WeakKey:
        return keyring
    assert (certificate.not_before_ms, certificate.not_after_ms) == (row["notBeforeMs"], row["notAfterMs"])
    revoked = {} if row["revokedFromMs"] is None else {certificate.kid: row["revokedFromMs"]}
    keyring.apply(TrustStatement(tenant="acme", epoch=1, issued_ms=0, revoked=revoked).seal(TRUST_SEED))
    return keyring


def received(row: dict[str, Any]) -> Received:
    """What a puller would hand on for a row."""
    body, msg_ids = base64.b64decode(row["bodyB64"]), tuple(row["msgIds"])
    return Received(row["subject"], body, msg_ids, row["signature"], "EV_local_crm", 1, row["streamMs"], 1, "$JS.ACK")


def verifier_for(row: dict[str, Any], **options: Any) -> Verifier:
    """A verifier that trusts and allows what a row says."""
    return Verifier(keyring_for(row), lambda *asked: list(asked) in row["may"], tenant=row["tenant"], **options)


SIGNER = Signer.from_seed(reference.SEED, issue(BASE))


def sealed(size: int) -> Iterator[Received]:
    """A batch of the vectors' events, sealed by the product."""
    events = [reference.make_event(size, i) for i in range(size)]
    items = [(event["subject"], event["msg_id"], event["body"].encode()) for event in events]
    salts = b"".join(base64.urlsafe_b64decode(event["salt"] + "==") for event in events)
    headers = seal(items, SIGNER, signed_ms=reference.SIGNED_MS, salts=salts)
    for (subject, msg_id, body), header in zip(items, headers, strict=True):
        yield Received(subject, body, (msg_id,), header, "EV_local_crm", 1, reference.STREAM_MS, 1, "")


def anybody() -> Verifier:
    """A verifier that allows every grant."""
    return Verifier(keyring_for(BASE), lambda *_: True)


# --- the wire format -------------------------------------------------------------------------------------------------


def test_tables_are_what_their_maker_makes() -> None:
    """The committed tables are the output of the reference implementation beside them."""
    here = reference.HERE
    assert (here / "signing_vectors.json").read_text() == reference.dump(reference.vectors())
    assert (here / "bad_signatures.json").read_text() == reference.dump(reference.bad_rows())


@pytest.mark.parametrize("batch", VECTORS["batches"], ids=lambda batch: f"size-{batch['size']}")
def test_sealing_gives_the_vectors(batch: dict[str, Any]) -> None:
    """Message id, statement, leaf, root and header are byte for byte those of an independent implementation."""
    events = batch["events"]
    for event in events:
        named = (event["source"], event["id"], event["subject"])
        assert message_id(bytes.fromhex(VECTORS["dedupe_key"]), *named) == event["msg_id"]
        said = statement(event["subject"], event["msg_id"], event["salt"], event["body"].encode())
        assert said == event["statement"].encode()
        assert leaf_hash(said).hex() == event["leaf"]
    root, _ = tree([bytes.fromhex(event["leaf"]) for event in events])
    assert root.hex() == batch["root"]
    assert [event.signature for event in sealed(batch["size"])] == [event["header"] for event in events]


@pytest.mark.parametrize("size", [*reference.SIZES, MAX_BATCH])
def test_every_event_of_a_batch_verifies_alone(size: int) -> None:
    """Each event of a sealed batch is accepted by a verifier that saw no other, its header within 1024 bytes."""
    for event in sealed(size):
        verified = anybody().verify(event)
        assert (verified.spiffe_id, verified.kid, verified.received) == (reference.SPIFFE_ID, reference.KID, event)
        assert verified.fields == json.loads(event.body)
        assert verified.place.type == verified.fields["type"]
        assert len(event.signature or "") <= 1024


def test_pae_counts_bytes() -> None:
    """DSSE's own example: lengths are of bytes, in decimal, and the empty body is a body."""
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("ü", b"") == b"DSSEv1 2 \xc3\xbc 0 "


def test_a_signature_has_its_own_length() -> None:
    """Bytes of the message at the end of a signature, or bytes of it missing, do not verify."""
    message = b"one message"
    signature = reference.KEY.sign(message)
    assert verify_ed25519(reference.PUBLIC_KEY, message, signature)
    for longer in (1, 4):
        assert not verify_ed25519(reference.PUBLIC_KEY, message[longer:], signature + message[:longer])
    assert not verify_ed25519(reference.PUBLIC_KEY, signature[-1:] + message, signature[:-1])
    assert not verify_ed25519(reference.PUBLIC_KEY, message, b"")


def test_message_ids_differ_where_anything_differs() -> None:
    """Key, source, id, subject and generation each change the message id; the same five give the same one."""
    key = bytes(32)
    base = (key, "/crm", "1", "ev.local.clear.s00.crm.contact.v1", 0)
    others = [(b"\1" * 32, *base[1:]), (key, "/hr", *base[2:]), (key, "/crm", "2", *base[3:])]
    others += [(*base[:3], base[3][:-1] + "2", 0), (*base[:4], 1)]
    ids = [message_id(*one) for one in (base, *others)]
    assert len(set(ids)) == 6
    assert message_id(*base) == ids[0]
    assert {len(one) for one in ids} == {22}


@pytest.mark.parametrize("length", [0, 15, 65])
def test_a_weak_dedupe_key_is_refused(length: int) -> None:
    """A message id is never made with a key that could be guessed, least of all with none."""
    with pytest.raises(ValueError, match="dedupe key"):
        message_id(bytes(length), "/crm", "1", "s")


@pytest.mark.parametrize(
    ("change", "salts", "said"),
    [
        ({}, b"x" * 15, "not 1 and 15"),
        ({}, b"", "not 1 and 0"),
        ({"msg_id": "short"}, None, "message id"),
        ({"msg_id": "a" * 21 + "\n"}, None, "message id"),
        ({"msg_id": "A" * 22 + "\n" + "A" * 22}, None, "message id"),
        ({"subject": "a\nb"}, None, "newline"),
    ],
    ids=["short salt", "no salt", "short id", "id with LF", "two ids", "subject with LF"],
)
def test_sealing_refuses_what_nobody_could_verify(change: dict[str, str], salts: bytes | None, said: str) -> None:
    """A salt of another length, a missing one, and a newline in a part end at the signer."""
    event = {**reference.make_event(1, 0), **change}
    item = (event["subject"], event["msg_id"], event["body"].encode())
    with pytest.raises(ValueError, match=said):
        seal([item], SIGNER, signed_ms=reference.SIGNED_MS, salts=b"x" * 16 if salts is None else salts)


@pytest.mark.parametrize("size", [0, MAX_BATCH + 1])
def test_sealing_refuses_other_batch_sizes(size: int) -> None:
    """A batch has 1 to 256 events."""
    with pytest.raises(ValueError, match="batch"):
        seal([("s", "a" * 22, b"")] * size, SIGNER, signed_ms=reference.SIGNED_MS, salts=bytes(16 * size))


@pytest.mark.parametrize("signed_ms", [reference.NOT_BEFORE_MS - 1, reference.NOT_AFTER_MS + 1])
def test_sealing_stops_with_the_certificate(signed_ms: int) -> None:
    """A signer whose certificate is not valid says so instead of sealing what everybody would refuse."""
    with pytest.raises(OutsideCertificate):
        seal([("s", "a" * 22, b"")], SIGNER, signed_ms=signed_ms, salts=bytes(16))


# --- the tree --------------------------------------------------------------------------------------------------------


def leaves_of(count: int) -> list[bytes]:
    """Distinct leaf hashes."""
    return [leaf_hash(b"%d" % i) for i in range(count)]


@pytest.mark.parametrize("size", range(1, 34))
def test_small_trees_are_those_of_rfc_9162(size: int) -> None:
    """Root and every proof are the ones of the recursive definition."""
    leaves = leaves_of(size)
    root, proofs = tree(leaves)
    assert root == reference.root_of(leaves)
    assert proofs == [b"".join(reference.proof_of(i, leaves)) for i in range(size)]


def test_all_tree_sizes_are_those_of_rfc_9162() -> None:
    """For each size up to 256 the root is that of the recursive definition, and every proof leads to it."""
    for size in range(1, MAX_BATCH + 1):
        leaves = leaves_of(size)
        root, proofs = tree(leaves)
        assert root == reference.root_of(leaves)
        assert {root_from_proof(leaf, i, size, proofs[i]) for i, leaf in enumerate(leaves)} == {root}


@given(size=st.integers(34, MAX_BATCH), data=st.data())
@settings(max_examples=60, deadline=None)
def test_large_trees_have_the_proofs_of_rfc_9162(size: int, data: st.DataObject) -> None:
    """Any proof of a larger tree is the one of the recursive definition."""
    index = data.draw(st.integers(0, size - 1))
    leaves = leaves_of(size)
    assert tree(leaves)[1][index] == b"".join(reference.proof_of(index, leaves))


@given(size=st.integers(2, 64), data=st.data())
@settings(max_examples=200, deadline=None)
def test_no_other_proof_leads_to_the_root(size: int, data: st.DataObject) -> None:
    """A proof that is cut, extended, or changed in a bit leads elsewhere or nowhere, and so does another leaf."""
    leaves = leaves_of(size)
    index = data.draw(st.integers(0, size - 1))
    root, proofs = tree(leaves)
    proof, leaf = proofs[index], leaves[index]
    bit = data.draw(st.integers(0, len(proof) * 8 - 1))
    flipped = bytes(b ^ (1 << bit % 8 if at == bit // 8 else 0) for at, b in enumerate(proof))
    length = data.draw(st.integers(0, len(proof) - 1))
    for other in (flipped, proof[:length], proof + root, proof + b"x"):
        assert root_from_proof(leaf, index, size, other) != root
    assert root_from_proof(leaves[index - 1], index, size, proof) != root


@given(size=st.integers(2, 64), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_node_is_no_leaf(size: int, data: st.DataObject) -> None:
    """Two child hashes given as an event do not lead to the root from their parent's place."""
    leaves = leaves_of(size)
    root, proofs = tree(leaves)
    pair = data.draw(st.integers(0, size // 2 - 1))
    joined = leaves[2 * pair] + leaves[2 * pair + 1]
    rest = proofs[2 * pair][32:]
    assert root_from_proof(leaf_hash(joined), pair, (size + 1) // 2, rest) != root
    assert root_from_proof(leaf_hash(joined), 2 * pair, size, proofs[2 * pair]) != root


@pytest.mark.parametrize("size", range(1, 33))
def test_repeating_the_last_leaf_gives_another_root(size: int) -> None:
    """An odd level's last node moves up alone, so a batch and the same with its end doubled never share a root."""
    leaves = leaves_of(size)
    assert tree(leaves)[0] != tree([*leaves, leaves[-1]])[0]


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0), (1, 1)])
def test_a_place_outside_the_tree_has_no_root(index: int, size: int) -> None:
    """There is no root for an index that is not one of the tree's."""
    assert root_from_proof(leaf_hash(b""), index, size, b"") is None


@given(size=st.integers(1, 16), data=st.data())
@settings(max_examples=150, deadline=None)
def test_another_index_or_size_is_refused(size: int, data: st.DataObject) -> None:
    """The size is signed: an event of a batch is never accepted as a leaf elsewhere, or of another tree."""
    index = data.draw(st.integers(0, size - 1))
    event = list(sealed(size))[index]
    other_size = data.draw(st.integers(1, MAX_BATCH))
    other_index = data.draw(st.integers(0, other_size - 1))
    parts = str(event.signature).split(".")
    parts[4:6] = str(other_index), str(other_size)
    changed = msgspec.structs.replace(event, signature=".".join(parts))
    if (other_index, other_size) == (index, size):
        anybody().verify(changed)
    else:
        with pytest.raises(BadSignature):
            anybody().verify(changed)


# --- V1 to V9 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", BAD["rows"], ids=lambda row: row["name"])
def test_verifying_a_row(row: dict[str, Any]) -> None:
    """Each tampered event is refused at its step with its code, and what is just inside a limit is accepted."""
    event = {**BASE, **row["set"]}
    verifier = verifier_for(event)
    if row["step"] == "accept":
        verifier.verify(received(event))
        return
    with pytest.raises(VerificationError) as refused:
        verifier.verify(received(event))
    assert (refused.value.step, refused.value.code) == (row["step"], row["code"])


@pytest.mark.parametrize("row", BAD["rows"], ids=lambda row: row["name"])
def test_a_row_is_refused_after_the_true_event_was_seen(row: dict[str, Any]) -> None:
    """Having verified the true event helps no tampered one: the cache of roots answers for roots alone."""
    if row["step"] == "accept" or row["step"] == "V3" or set(row["set"]) & {"spiffeId", "notBeforeMs", "notAfterMs"}:
        return  # another trust store: there the true event is not accepted either
    event = {**BASE, **row["set"]}
    lenient = verifier_for({**event, "may": BASE["may"], "revokedFromMs": None, "publicKeyB64": BASE["publicKeyB64"]})
    lenient.verify(received(BASE))
    if row["step"] in {"V5", "V8"} or "publicKeyB64" in row["set"]:
        return  # judged by grant or revocation, see the tests below
    with pytest.raises(VerificationError) as refused:
        lenient.verify(received(event))
    assert refused.value.step == row["step"]


def test_errors_name_no_value() -> None:
    """No refusal repeats a value of the event; stream and sequence say which one it was."""
    for row in BAD["rows"]:
        if row["step"] != "accept":
            event = {**BASE, **row["set"]}
            with pytest.raises(VerificationError) as refused:
                verifier_for(event).verify(received(event))
            told = json.dumps(refused.value.as_dict(), ensure_ascii=False)
            assert not any(secret in told for secret in ("Zoë", "evt-3", "/crm/eu", "/billing"))
            assert refused.value.details["sequence"] == 1


class Counter:
    """Counts the Ed25519 verifications below a verifier."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._real = mesh.signing.verify_ed25519
        monkeypatch.setattr(mesh.signing, "verify_ed25519", self)

    def __call__(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Verify, and count."""
        self.count += 1
        return self._real(public_key, message, signature)


def test_one_signature_check_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole batch costs one Ed25519 verification."""
    counter, verifier = Counter(monkeypatch), anybody()
    for event in sealed(64):
        verifier.verify(event)
    assert counter.count == 1


def test_only_successes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged signature is checked anew each time and takes no place in the cache."""
    counter, verifier = Counter(monkeypatch), anybody()
    forged = received({**BASE, **reference.header(reference.SIGNATURE, reference.b64u(bytes(64)))})
    for _ in range(3):
        with pytest.raises(BadSignature):
            verifier.verify(forged)
    assert counter.count == 3
    assert not verifier._roots


def test_the_cache_forgets_the_least_recently_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full cache drops the root that was not asked for longest."""
    counter, verifier = Counter(monkeypatch), Verifier(keyring_for(BASE), lambda *_: True, cache_size=2)
    one, two, three = (next(sealed(size)) for size in (1, 2, 3))
    for event in (one, two, one, three):
        verifier.verify(event)
    assert counter.count == 3
    verifier.verify(one)
    assert counter.count == 3
    verifier.verify(two)
    assert counter.count == 4


def test_a_grant_is_asked_for_every_event() -> None:
    """Withdrawing a grant stops the next event, its root in the cache or not."""
    granted = True
    verifier = Verifier(keyring_for(BASE), lambda *_: granted)
    verifier.verify(received(BASE))
    granted = False
    with pytest.raises(PublisherNotAllowed):
        verifier.verify(received(BASE))


def _perturbed(proof: bytes, change: int) -> bytes:
    """*proof* with one byte changed, cut, or longer; as it is where *change* is 0."""
    if change == 0 or not proof:
        return proof
    at = change % len(proof)
    return [proof[:at], proof[:at] + bytes([proof[at] ^ 1]) + proof[at + 1 :], proof + b"x", proof[32:]][change % 4]


@given(
    size=st.integers(1, 20),
    asked=st.lists(
        st.tuples(
            st.integers(-1, 20), st.integers(0, 20), st.sampled_from([0, 0, 0, 1, 2, 3, 64, 65, 130]), st.integers(0, 1)
        ),
        max_size=30,
    ),
)
def test_remembering_a_path_changes_no_answer(size: int, asked: list[tuple[int, int, int, int]]) -> None:
    """Leaves in any order, proofs of others, other sizes, damage: the root is that of `root_from_proof`."""
    leaves = [leaf_hash(b"%d" % i) for i in range(size)]
    _, proofs = tree(leaves)
    climb = Climber().root
    in_order = [(i, i, 0, 0) for i in range(size)]
    for index, whose, change, more in [*in_order, *asked, *in_order]:
        leaf, proof = leaves[index % size], _perturbed(proofs[whose % size], change)
        arguments = (leaf, index, size + more, proof)
        assert climb(*arguments) == root_from_proof(*arguments)


def test_a_revocation_reaches_cached_roots() -> None:
    """Revoking a key stops the next event stored after it, its root in the cache or not."""
    keyring = keyring_for(BASE)
    verifier = Verifier(keyring, lambda *_: True)
    verifier.verify(received(BASE))
    newer = TrustStatement(tenant="acme", epoch=2, issued_ms=0, revoked={reference.KID: reference.STREAM_MS})
    keyring.apply(newer.seal(TRUST_SEED))
    with pytest.raises(KeyRevoked):
        verifier.verify(received(BASE))
    earlier = {**BASE, "streamMs": reference.STREAM_MS - 1}
    verifier.verify(received(earlier))


def test_revoking_the_mesh_ca_refuses_what_it_certified() -> None:
    """V8 asks for the issuer's kid too: from the cut on, no event under a certificate of that CA is accepted."""
    keyring = keyring_for(BASE)
    newer = TrustStatement(tenant="acme", epoch=2, issued_ms=0, revoked={CA.kid: reference.STREAM_MS})
    keyring.apply(newer.seal(TRUST_SEED))
    verifier = Verifier(keyring, lambda *_: True)
    with pytest.raises(KeyRevoked):
        verifier.verify(received(BASE))
    verifier.verify(received({**BASE, "streamMs": reference.STREAM_MS - 1}))


def test_without_a_tenant_any_is_taken() -> None:
    """A verifier that was given no tenant leaves it to the account."""
    events = {**BASE, "tenant": None}
    verifier_for(events).verify(received(BASE))


@pytest.mark.parametrize("key", reference.small_order_keys(), ids=lambda key: str(key.hex()))
def test_a_weak_key_verifies_nothing_even_if_trusted(key: bytes) -> None:
    """Were a small-order key in the trust store, its fixed signature would still not be accepted."""
    keyring, kid = Keyring([ROOT.cert_pem], TRUST_KEY), key_id(key)
    first, last = reference.NOT_BEFORE_MS, reference.NOT_AFTER_MS
    keyring._certificates[kid] = (Certificate(kid, SpiffeId(reference.SPIFFE_ID), key, first, last, b""),)
    weak = next(row for row in BAD["rows"] if row["name"] == f"weak key: {key.hex()}")
    with pytest.raises(BadSignature):
        Verifier(keyring, lambda *_: True).verify(received({**BASE, **weak["set"]}))


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a":' * 100_000, base64.b64decode(BASE["bodyB64"]) + b" " * 1_048_576],
    ids=["array", "object", "size"],
)
def test_a_hostile_body_is_an_envelope_fault(body: bytes) -> None:
    """A body nested beyond the limit, or larger than the server takes, is refused at V1."""
    event = msgspec.structs.replace(received(BASE), body=body)
    with pytest.raises(BadEnvelope):
        anybody().verify(event)


_CHARACTERS = st.characters(codec=None) | st.sampled_from("0123456789.-_AQgw\r\n\0 ")


@given(at=st.integers(0, len(BASE["signature"]) - 1), character=_CHARACTERS)
@settings(max_examples=300, deadline=None)
def test_no_character_of_a_header_can_change(at: int, character: str) -> None:
    """A header has one spelling: whatever replaces a character of it, the event is refused."""
    text: str = BASE["signature"]
    if text[at] == character:
        return
    event = received({**BASE, "signature": text[:at] + character + text[at + 1 :]})
    with pytest.raises(VerificationError):
        anybody().verify(event)


@given(subject=st.text(), body=st.binary(), msg_ids=st.lists(st.text(), max_size=3), header=st.none() | st.text())
@settings(max_examples=200, deadline=None)
def test_anything_received_is_refused_in_order(
    subject: str, body: bytes, msg_ids: list[str], header: str | None
) -> None:
    """Whatever arrives, verification answers with one of its own errors."""
    event = Received(subject, body, tuple(msg_ids), header, "EV_local_crm", 1, reference.STREAM_MS, 1, "")
    with pytest.raises(VerificationError):
        anybody().verify(event)
