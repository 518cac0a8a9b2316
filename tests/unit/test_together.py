"""Events verified together: what is said of each is what the nine checks say of it alone, and never more."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mesh.batches
import mesh.signing
import mesh.together
from mesh import native
from mesh.errors import VerificationError
from mesh.merkle import HASH_BYTES, span
from mesh.signing import MAX_BATCH, Received, Verified, Verifier, b64u, leaf_hash, statement, tree
from mesh.statements import root_signed
from mesh.together import Together
from tests.tables import make_signatures as reference
from tests.unit.test_signing import BAD, BASE, SIGNER, Counter, anybody, leaves_of, received, sealed, verifier_for

LOOPS = ("neighbours", "agreed", "common_root")


@pytest.fixture(autouse=True, scope="module", params=["in Python", "compiled"])
def twins(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test runs on both twins of the loops, where there are two."""
    if request.param == "compiled" and native.compiled is None:
        pytest.skip("they run in Python here: tests/unit/test_native_verifying.py compares them")
    with pytest.MonkeyPatch.context() as patch:
        for name in LOOPS:
            python = native.IN_PYTHON[name]
            patch.setattr(
                mesh.together, name, getattr(native.compiled, name) if request.param == "compiled" else python
            )
        yield


def alone(verifier: Verifier, event: Received) -> Verified | None:
    """What `Verifier.verify` says of it; None for a no."""
    try:
        return verifier.verify(event)
    except VerificationError:
        return None


@pytest.mark.parametrize("size", [*reference.SIZES, MAX_BATCH])
def test_a_batch_in_order_is_plain(size: int) -> None:
    """Every event of it is verified, and as it would have been alone."""
    events = list(sealed(size))
    assert Together(anybody()).verify(events) == [anybody().verify(event) for event in events]


def test_batches_may_be_cut_and_mixed() -> None:
    """A read ends where it ends: any part of a batch is verified, and the next batch behind it, or one of before."""
    some, others = list(sealed(8)), list(sealed(33))
    events = [*some[5:], *others[:7], *some[1:3], *others[30:], some[0], some[0]]
    assert Together(anybody()).verify(events) == [anybody().verify(event) for event in events]


@pytest.mark.parametrize(
    ("late_ms", "verified"), [(-30_001, False), (-30_000, True), (120_000, True), (120_001, False)]
)
def test_the_stream_takes_events_in_time(late_ms: int, verified: bool) -> None:
    """The last moment that is allowed is, as for the event alone."""
    stored = {"stream_ms": reference.SIGNED_MS + late_ms}
    events = [msgspec.structs.replace(event, **stored) for event in sealed(3)]
    assert Together(anybody()).verify(events) == [alone(anybody(), event) for event in events]
    assert (alone(anybody(), events[0]) is not None) == verified


def test_one_signature_check_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for `Verifier.verify`, and either knows the roots of the other."""
    counter, verifier = Counter(monkeypatch), anybody()
    first, *others = sealed(64)
    verifier.verify(first)
    assert None not in Together(verifier).verify(others)
    assert counter.count == 1


@pytest.mark.parametrize("row", BAD["rows"], ids=lambda row: row["name"])
def test_a_bad_row_is_never_verified(row: dict[str, Any]) -> None:
    """Not alone, not behind the true event, and not before it; and what is accepted alone may be accepted here."""
    event = {**BASE, **row["set"]}
    true, bad = received(BASE), received(event)
    for events in ([bad], [true, bad], [bad, true], [true, bad, true]):
        verdicts = Together(verifier_for(event)).verify(events)
        for each, verdict in zip(events, verdicts, strict=True):
            assert verdict in (None, alone(verifier_for(event), each))


@dataclass
class Change:
    """Another value in one field of one event."""

    field: str
    value: Any


CHANGES = (
    Change("body", b"{}"),
    Change("body", b"["),
    Change("body", b"\xff"),
    Change("body", b" " * 1_048_577),
    Change("subject", "ev.local.clear.s00.crm.other.v1"),
    Change("subject", "ev"),
    Change("msg_ids", ()),
    Change("msg_ids", ("A" * 22, "A" * 22)),
    Change("msg_ids", ("A" * 22,)),
    Change("msg_ids", ("A" * 21,)),
    Change("msg_ids", ("A" * 21 + "\ud800",)),
    Change("subject", "ev.local.clear.s00.crm.\ud800.v1"),
    Change("body", b'{"id":"\\ud800"}'),
    Change("signature", None),
    Change("signature", ""),
    Change("signature", "1......."),
    Change("signature", "\ud800"),
    Change("signature", "." * 7),
    Change("signature", "." * 100_000),
    Change("stream_ms", reference.SIGNED_MS - 30_001),
    Change("stream_ms", reference.SIGNED_MS + 120_001),
    Change("stream_ms", 2**63),
    Change("stream_ms", -(10**40)),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.field}={str(change.value)[:20]}")
def test_one_that_was_changed_is_left_to_the_verifier(change: Change) -> None:
    """It alone is refused: whatever is said of those around it, they are events that verify."""
    events = list(sealed(8))
    events[3] = msgspec.structs.replace(events[3], **{change.field: change.value})
    verdicts = Together(anybody()).verify(events)
    assert alone(anybody(), events[3]) is None
    assert verdicts[3] is None
    assert all(verdict in (None, alone(anybody(), event)) for event, verdict in zip(events, verdicts, strict=True))


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10_000), character=st.sampled_from("AQgw01.-_=\n"), which=st.integers(0, 7))
def test_no_character_of_a_header_can_change(at: int, character: str, which: int) -> None:
    """Proof, place and salt are held against each event, even where its neighbours prove where the tree leads."""
    events = list(sealed(8))
    header = events[which].signature or ""
    at %= len(header)
    changed = header[:at] + character + header[at + 1 :]
    events[which] = msgspec.structs.replace(events[which], signature=changed)
    verdict = Together(anybody()).verify(events)[which]
    assert (verdict is None) == (changed != header)


PARTS: dict[int, list[str]] = {
    0: ["2", "01", ""],
    1: ["A" * 22, ""],
    2: ["0", "0" + str(reference.SIGNED_MS), str(reference.SIGNED_MS + 1), "9" * 15, "9" * 16, "9" * 400],
    3: ["A" * 22, "A" * 21 + "B", "\ud800", ""],
    4: ["0", "1", "2", "3", "7", "00", "07", "+1", "-1", "255", "256", "9" * 30, "\u0661", ""],
    5: ["1", "2", "4", "7", "8", "9", "08", "256", "257", "9" * 30, "\u0668", ""],
    6: ["", "A", "A" * 43, "A" * 86, "A" * 128, "A" * 171, "A" * 342, "A" * 343, "\ud800", "="],
    7: ["A" * 86, "A" * 85, "A" * 85 + "B", ""],
}
"""What a header could have for each of its parts."""


def batches() -> list[list[Received]]:
    """Some of several sizes, each with a root and a signature of its own."""
    return [list(sealed(size)) for size in (1, 2, 5, 8, 13)]


BATCHES = batches()
WHERE = st.tuples(st.sampled_from(range(len(BATCHES))), st.integers(0, 12), st.integers(1, 6))
CHANGED = st.tuples(st.integers(0, 30), st.sampled_from(sorted(PARTS)), st.integers(0, 20), st.integers(0, 30))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(WHERE, min_size=1, max_size=5), st.lists(CHANGED, max_size=3), st.sampled_from(["part", "own", "field"])
)
def test_whatever_comes_nothing_is_said_that_is_not_so(cuts: Any, changes: Any, how: str) -> None:
    """Parts of batches in any order, some with parts of another's header or an odd value: never more than alone."""
    events = [event for which, at, count in cuts for event in BATCHES[which][at % len(BATCHES[which]) :][:count]]
    whole = len(changes) == 0
    for at, part, value, other in changes:
        at, other = at % len(events), other % len(events)  # noqa: PLW2901 - of those that there are
        parts, others = ((events[i].signature or "").split(".") for i in (at, other))
        if how == "field":
            change = CHANGES[value % len(CHANGES)]
            events[at] = msgspec.structs.replace(events[at], **{change.field: change.value})
        elif len(parts) == len(others) == len(PARTS):
            parts[part] = others[part] if how == "own" else PARTS[part][value % len(PARTS[part])]
            events[at] = msgspec.structs.replace(events[at], signature=".".join(parts))
    expected = [alone(anybody(), event) for event in events]
    verdicts = Together(anybody()).verify(events)
    assert all(verdict in (None, one) for verdict, one in zip(verdicts, expected, strict=True))
    assert not whole or verdicts == expected


def test_proofs_are_not_swapped() -> None:
    """Two events with each other's proofs prove nothing, though every hash in them belongs to the tree."""
    events = list(sealed(8))
    parts = [(event.signature or "").split(".") for event in events]
    parts[2][6], parts[5][6] = parts[5][6], parts[2][6]
    events = [
        msgspec.structs.replace(event, signature=".".join(part)) for event, part in zip(events, parts, strict=True)
    ]
    verdicts = Together(anybody()).verify(events)
    assert verdicts[2] is verdicts[5] is None


SUBJECT = "ev.eu1.clear.s00.crm.contact.v1"
TRUE = {"specversion": "1.0", "id": "1", "source": "/crm", "type": "crm.contact.v1", "view": "clear", "tenant": "acme"}


@pytest.mark.parametrize(
    ("change", "msg_id", "padding", "verified"),
    [
        ({}, "A" * 22, 0, True),
        ({"type": "crm.other.v1"}, "A" * 22, 0, False),
        ({"view": "masked"}, "A" * 22, 0, False),
        ({"tenant": "other"}, "A" * 22, 0, False),
        ({"specversion": "2.0"}, "A" * 22, 0, False),
        ({"source": ""}, "A" * 22, 0, False),
        ({"source": 1}, "A" * 22, 0, False),
        ({"id": ""}, "A" * 22, 0, False),
        ({"id": None}, "A" * 22, 0, False),
        ({"id": ["1"]}, "A" * 22, 0, False),
        ({"type": None}, "A" * 22, 0, False),
        ({"view": 1}, "A" * 22, 0, False),
        ({"specversion": 1.0}, "A" * 22, 0, False),
        ({"tenant": {"acme": "acme"}}, "A" * 22, 0, False),
        ({"tenant": 10**30}, "A" * 22, 0, False),
        ({}, "A" * 21 + "B", 0, False),
        ({}, "A" * 22, 1_048_576, False),
    ],
)
def test_what_an_insider_seals_is_judged_all_the_same(
    change: dict[str, Any], msg_id: str, padding: int, verified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good signature is the last of nine checks, and makes up for none of the others."""
    monkeypatch.setattr(mesh.batches, "MESSAGE_IDS", re.compile(".*\n"))  # theirs: `seal` would refuse it
    monkeypatch.setattr(mesh.signing, "batch", native.IN_PYTHON["batch"])
    body = msgspec.json.encode(TRUE | change) + b" " * padding
    header = mesh.signing.seal([(SUBJECT, msg_id, body)], SIGNER, signed_ms=reference.SIGNED_MS, salts=bytes(16))[0]
    monkeypatch.undo()
    event = Received(SUBJECT, body, (msg_id,), header, "EV_local_crm", 1, reference.STREAM_MS, 1, "")
    verifier = Verifier(anybody().keyring, lambda *_: True, tenant="acme")
    assert (alone(verifier, event) is not None) == verified
    assert Together(verifier).verify([event]) == [alone(verifier, event)]


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_an_insider_cannot_bring_a_proof_of_another_length(length: int) -> None:
    """Though the root that it leads to is signed: to all who look at the event alone it would be none."""
    event, size, salt = next(sealed(1)), 2, "A" * 22
    leaf, proof = leaf_hash(statement(event.subject, event.msg_ids[0], salt, event.body)), bytes(length)
    root = sha256(b"\x01" + leaf + proof[:32]).digest()
    signed = root_signed(SIGNER.spiffe_id, SIGNER.kid, reference.SIGNED_MS, size, root)
    start, end = f"1.{SIGNER.kid}.{reference.SIGNED_MS}.{salt}.0.{size}", b64u(SIGNER.sign(signed))
    true = msgspec.structs.replace(event, signature=f"{start}.{b64u(bytes(32))}.{end}")
    event = msgspec.structs.replace(event, signature=f"{start}.{b64u(proof)}.{end}")
    assert alone(anybody(), event) is None
    assert Together(anybody()).verify([event]) == [None]
    assert (alone(anybody(), true) is None) == (length < HASH_BYTES)  # else the test would prove nothing


def test_a_header_of_dots_is_not_taken_apart() -> None:
    """It may be as long as a message: nothing is made of it."""
    event = msgspec.structs.replace(next(sealed(1)), signature="." * 100_000)
    together = Together(anybody())
    tracemalloc.start()
    try:
        assert together.verify([event]) == [None]
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()


def test_a_grant_is_asked_for_each_time() -> None:
    """What policy allowed for the events before says nothing of those that come next."""
    granted = True
    verifier = Verifier(anybody().keyring, lambda *_: granted)
    together, events = Together(verifier), list(sealed(4))
    assert None not in together.verify(events)
    granted = False
    assert together.verify(events) == [None] * 4


def test_a_batch_may_say_several_things() -> None:
    """Each type from each source is asked for once a batch; where one is denied, nothing is said of those around it."""
    asked: list[tuple[str, str, str]] = []
    denied: list[str] = []

    def permits(spiffe_id: str, type_: str, source: str) -> bool:
        asked.append((spiffe_id, type_, source))
        return source not in denied

    verifier, items = Verifier(anybody().keyring, permits), []
    for i in range(6):
        body = msgspec.json.encode(TRUE | {"source": f"/crm/{i % 2}", "id": str(i)})
        items.append((SUBJECT, "A" * 22, body))
    headers = mesh.signing.seal(items, SIGNER, signed_ms=reference.SIGNED_MS, salts=bytes(16 * 6))
    events = [
        Received(subject, body, (msg_id,), header, "EV_local_crm", 1, reference.STREAM_MS, 1, "")
        for (subject, msg_id, body), header in zip(items, headers, strict=True)
    ]
    assert None not in Together(verifier).verify(events)
    expected = [(SIGNER.spiffe_id, "crm.contact.v1", f"/crm/{i}") for i in range(2)]
    assert sorted(asked) == expected
    denied.append("/crm/1")
    assert Together(verifier).verify(events) == [None] * 6
    assert [alone(verifier, event) is None for event in events] == [False, True] * 3


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 13, 32, 33])
def test_a_part_of_a_tree_leads_to_its_root(size: int) -> None:
    """With the proofs of its first and last leaf, any part of the leaves gives root and proofs as the whole does."""
    leaves = leaves_of(size)
    root, proofs = tree(leaves)
    for start in range(size):
        for end in range(start + 1, size + 1):
            assert span(leaves[start:end], start, size, proofs[start], proofs[end - 1]) == (root, proofs[start:end])


@settings(max_examples=100, deadline=None)
@given(size=st.integers(2, 40), data=st.data())
def test_a_part_of_a_tree_with_a_wrong_hash_leads_elsewhere(size: int, data: st.DataObject) -> None:
    """Whichever leaf or proof is wrong, it is another root, or another proof than the one that was brought."""
    leaves = leaves_of(size)
    root, proofs = tree(leaves)
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    some, brought = leaves[start:end], proofs[start:end]
    which = data.draw(st.integers(0, len(some) - 1))
    if data.draw(st.booleans()):
        some[which] = bytes(32)
    elif brought[which]:
        cut = data.draw(st.integers(0, len(brought[which]) - 1))
        brought[which] = brought[which][:cut] + data.draw(st.sampled_from([b"", bytes(len(brought[which]) - cut)]))
    else:
        return
    try:
        found = span(some, start, size, brought[0], brought[-1])
    except ValueError:  # a hash that is needed is short
        return
    assert found != (root, brought)
