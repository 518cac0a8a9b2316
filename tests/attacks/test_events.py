"""Events that nobody honest signed: what is left to somebody who holds the broker itself.

`admin` has the tenant's account, as whoever operates or has broken NATS. He can store anything; the honest consumer of
team support has to refuse it and say why. Each test first has an honestly signed copy go the same way.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from copy import copy

import pytest

from mesh.base64url import b64u, unb64u
from mesh.merkle import leaf_hash, node_hash
from mesh.statements import statement
from tests.attacks.insider import CONTACT, CRM, Wire, batch, contact, frame, now_ms, sealed
from tests.attacks.keys import enrol, issued, trust
from tests.attacks.world import World

pytestmark = pytest.mark.anyio

SIGNATURE = "Mesh-Signature"
ID = "Nats-Msg-Id"
BARE = f"ev.local.bare.s03.{CONTACT}"


def parts(wire: Wire) -> list[str]:
    """Version, kid, signed_ms, salt, index, size, proof and signature."""
    return wire.headers[SIGNATURE].split(".")


def signed(wire: Wire, **changes: str) -> Wire:
    """The same under a new id, so that it is stored, with other parts of the signature header."""
    names = ("version", "kid", "signed_ms", "salt", "index", "size", "proof", "sig")
    held = dict(zip(names, parts(wire), strict=True)) | changes
    return wire.with_(headers={SIGNATURE: ".".join(held[name] for name in names)})


def fresh(wire: Wire) -> Wire:
    """The same under an id that no stream has seen."""
    return wire.with_(headers={ID: b64u(secrets.token_bytes(16))})


async def test_an_event_forged_by_another_agent(world: World) -> None:
    """Publish contacts under another agent's name.

    Holds: lake's event key, and the broker, so that NATS does not stop it. Tries: crm's type and source; its own source
    on crm's type; and crm's key id on a signature of its own. Stopped: V5, a key may only publish what policy lets its
    workload publish, and V9, the key id is part of what is signed.
    """
    thief, honest = await world.signer("lake"), await world.signer("crm-adapter")
    assert await world.put(sealed(honest)) == "delivered"
    assert await world.put(sealed(thief)) == "publisher-not-allowed"
    assert await world.put(sealed(thief, contact(source="/analytics"))) == "publisher-not-allowed"
    assert await world.put(signed(sealed(thief), kid=honest.kid)) == "bad-signature"


async def test_a_source_that_is_not_the_publishers(world: World) -> None:
    """Say that an event comes from another system.

    Holds: crm-adapter's event key and credentials. Tries: the source of another team, the root, and a look-alike of its
    own. Stopped: V5 compares the source with the team's, segment by segment.
    """
    signer, by = await world.signer("crm-adapter"), await world.insider("crm-adapter")
    assert await world.put(sealed(signer, contact(source="/crm/eu")), by) == "delivered"
    for source in ("/support", "/", "/crmx", "/crm/../support", "crm", "//crm"):
        assert await world.put(sealed(signer, contact(source=source)), by) == "publisher-not-allowed"


async def test_tampering_with_what_was_signed(world: World) -> None:
    """Change an event in the broker.

    Holds: the broker. Tries: one bit of the body, another member in it, each part of the headers, one after the other.
    Stopped: V9, the signature covers subject, id and the exact bytes of the body; what is not signed, nobody reads.
    """
    signer = await world.signer("crm-adapter")

    def flipped(wire: Wire) -> bytes:
        body = bytearray(wire.body)
        body[wire.body.index(b"hello")] ^= 1
        return bytes(body)

    attempts: dict[str, Callable[[Wire], Wire]] = {
        "one bit": lambda wire: wire.with_(body=flipped(wire)),
        "a space": lambda wire: wire.with_(body=wire.body + b" "),
        "the data": lambda wire: wire.with_(body=wire.fields(data={"country": "FR"})),
        "the policy revision": lambda wire: wire.with_(body=wire.fields(policyrevision=0)),
        "a sequence": lambda wire: wire.with_(body=wire.fields(sequence="9")),
        "the id header": fresh,
        "the salt": lambda wire: signed(wire, salt=b64u(secrets.token_bytes(16))),
        "the time": lambda wire: signed(wire, signed_ms=str(int(parts(wire)[2]) - 1)),
        "the signature": lambda wire: signed(wire, sig=b64u(secrets.token_bytes(64))),
    }
    for name, attempt in attempts.items():
        assert await world.put(attempt(sealed(signer))) == "bad-signature", name
    unsigned = {"Content-Type": "text/html", "ce-type": "crm.order.placed.v1", "Nats-Sequence": "1"}
    wire = sealed(signer).with_(headers=unsigned)
    assert await world.put(wire) == "delivered"
    assert (await world.handed_over(wire.id)).type == CONTACT


async def test_the_same_event_in_another_place(world: World) -> None:
    """Replay a signed event to another subject: another slot, view, type or domain.

    Holds: the broker and an honest copy. Tries: each. Stopped: the subject is signed (V9), and type, view and tenant of
    the body have to be the subject's (V1).
    """
    signer = await world.signer("crm-adapter")
    assert await world.put(sealed(signer)) == "delivered"
    for subject, code in {
        f"ev.local.service.s04.{CONTACT}": "bad-signature",
        f"ev.other.service.s03.{CONTACT}": "not stored",
        "ev.local.service.s03.crm.contact.deleted.v1": "bad-envelope",
        "ev.local.service.s03.crm.contact.updated.v2": "bad-envelope",
    }.items():
        assert await world.put(sealed(signer).with_(subject=subject)) == code
    everything = await world.reader("analytics", "all")
    assert await world.put(sealed(signer, contact(view="bare"), subject=BARE), reader=everything) == "delivered"
    assert await world.put(sealed(signer).with_(subject=BARE), reader=everything) == "bad-envelope"


async def test_the_same_event_in_another_tenant(world: World) -> None:
    """Replay a signed event into another tenant, with the certificate that makes it verify.

    Holds: the broker, an honest copy of acme's, and acme's certificates. Tries: the copy in globex' stream of the same
    name; then with the certificate put into globex' trust store. Stopped: V3, each tenant has its own trust store; V5,
    globex' policies know no publisher of acme's.
    """
    honest, insider = await world.signer("rival"), await world.signer("crm-adapter")
    leads = await world.reader("sales", "leads", tenant="globex")
    admin = await world.admin("globex")
    own = contact(tenant="globex", source="/sales")
    assert await world.put(sealed(honest, own), admin, leads) == "delivered"
    assert await world.put(sealed(insider), admin, leads) == "unknown-key"
    known = await enrol(world, "crm-adapter")  # nobody in globex has asked for this one, and found nothing
    await trust(world, known.kid, known.certificate, tenant="globex")
    for fields in (contact(), own, contact(tenant="globex")):
        assert await world.put(sealed(known, fields), admin, leads) == "publisher-not-allowed"


async def test_a_replay_within_the_window(world: World) -> None:
    """Store the same event again while the server remembers its id.

    Holds: crm-adapter's credentials, and a copy that it once published. Tries: the exact copy; the copy without its id,
    with another, and with two. Stopped: the server keeps one under an id; the id is signed, and there must be one (V6).
    """
    signer, by = await world.signer("crm-adapter"), await world.insider("crm-adapter")
    wire = sealed(signer)
    assert await world.put(wire, by) == "delivered"
    assert await world.put(wire, by) == "duplicate"
    assert await world.put(wire.with_(headers={ID: None}), by) == "bad-message-id"
    assert await world.put(fresh(wire), by) == "bad-signature"
    assert await world.put(wire.with_(headers={ID: "evt-1"}), by) == "bad-message-id"
    admin, twice, last = await world.admin(), sealed(signer), await world.last()
    lines = [f"{ID}: {b64u(secrets.token_bytes(16))}", *(f"{name}: {value}" for name, value in twice.headers.items())]
    await admin.raw(frame(twice.subject, lines, twice.body))
    assert await world.verdict(CRM, last + 1, await world.reader()) == "bad-message-id"


async def test_a_replay_after_the_window(world: World) -> None:
    """Store the same event again when the server has forgotten its id.

    Holds: the broker, and a copy that was honestly signed 121 s ago. Tries: to store it now. Stopped: V7, an event is
    stored within 120 s of its signature, and the duplicate window is longer than that. 100 s ago is accepted.
    """
    signer = await issued(world, "crm-adapter", at_ms=now_ms() - 3_600_000)
    assert await world.put(sealed(signer, signed_ms=now_ms() - 100_000)) == "delivered"
    assert await world.put(sealed(signer, signed_ms=now_ms() - 121_000)) == "not-fresh"
    admin = await world.admin()
    window_ns = (await admin.api(f"STREAM.INFO.{CRM}"))["config"]["duplicate_window"]
    assert window_ns > 121 * 10**9


async def test_a_clock_that_is_wrong(world: World) -> None:
    """Sign with a clock that runs ahead, so that the event stays fresh for longer.

    Holds: crm-adapter's event key. Tries: to sign 35 s and an hour ahead of the stream, and before the certificate
    began. Stopped: V7 allows 30 s; V4 asks that the signing time lies within the certificate. 25 s ahead is accepted.
    """
    signer = await issued(world, "crm-adapter", at_ms=now_ms())
    assert await world.put(sealed(signer, signed_ms=now_ms() + 25_000)) == "delivered"
    assert await world.put(sealed(signer, signed_ms=now_ms() + 35_000)) == "not-fresh"
    assert await world.put(sealed(signer, signed_ms=now_ms() + 3_600_000)) == "not-fresh"
    unbound = copy(signer)
    unbound.not_before_ms = 0
    unbound.not_after_ms = 2 * now_ms()
    assert await world.put(sealed(unbound, signed_ms=now_ms() - 3_600_000)) == "outside-certificate"
    assert await world.put(sealed(unbound, signed_ms=now_ms() + 25 * 3_600_000)) == "outside-certificate"


async def test_a_stripped_signature(world: World) -> None:
    """Take the signature away, or put something lesser in its place.

    Holds: the broker, and crm-adapter's credentials. Tries: no signature; version 0 and 2; an empty one; two of them; a
    name in other letters; spellings that decode alike. Stopped: V2, a signature is always required; V1, there is one
    version and one spelling.
    """
    signer, by = await world.signer("crm-adapter"), await world.insider("crm-adapter")
    assert await world.put(sealed(signer), by) == "delivered"
    assert await world.put(sealed(signer).with_(headers={SIGNATURE: None}), by) == "signature-missing"
    wire = sealed(signer)
    lower = wire.with_(headers={SIGNATURE: None, "mesh-signature": wire.headers[SIGNATURE]})
    assert await world.put(lower, by) == "signature-missing"
    for changes in (
        {"version": "0"}, {"version": "2"}, {"version": "1 "}, {"index": "00"}, {"index": "\u0660"}, {"size": "1.0"},
        {"sig": ""}, {"proof": "AA=="}, {"kid": "none"}, {"signed_ms": "-1"}, {"salt": ""},
    ):  # fmt: skip
        assert await world.put(signed(sealed(signer), **changes), by) in {"bad-envelope", "signature-missing"}, changes
    for text in ("", "none", "1." * 600, wire.headers[SIGNATURE] + "," + wire.headers[SIGNATURE]):
        attempt = sealed(signer).with_(headers={SIGNATURE: text})
        assert await world.put(attempt, by) in {"bad-envelope", "signature-missing"}, text


async def test_tricks_with_the_tree(world: World) -> None:
    """Have one honest signature speak for an event that was not in its batch.

    Holds: the broker, and the copies of an honest batch of three. Tries: another index or size, a proof cut short, made
    longer or swapped, a sibling's place, an inner node in a leaf's place, a leaf in a root's. Stopped: V9 climbs as RFC
    9162 says, size is signed, and leaves and nodes are hashed under different prefixes.
    """
    signer = await world.signer("crm-adapter")
    first, second, third = batch(signer, 3)
    assert await world.put(first) == "delivered"
    other = dict(zip(("index", "size", "proof"), (parts(third)[4], parts(third)[5], parts(third)[6]), strict=True))
    proof = unb64u(parts(second)[6])
    forged = sealed(signer)
    root = {"sig": parts(second)[7], "signed_ms": parts(second)[2]}
    leaf = leaf_hash(statement(forged.subject, forged.headers[ID], parts(forged)[3], forged.body))
    attempts: list[Callable[[Wire], Wire]] = [
        lambda wire: signed(wire, **other),
        lambda wire: signed(wire, index="0"),
        lambda wire: signed(wire, size="4"),
        lambda wire: signed(wire, size="256", index="255"),
        lambda wire: signed(wire, proof=b64u(unb64u(parts(wire)[6])[:32])),
        lambda wire: signed(wire, proof=b64u(unb64u(parts(wire)[6]) + bytes(32))),
        lambda wire: signed(wire, proof=b64u(unb64u(parts(wire)[6])[32:] + unb64u(parts(wire)[6])[:32])),
        lambda wire: signed(wire, proof=""),
        lambda _: signed(forged, **root, index="1", size="3", proof=b64u(proof)),
        lambda _: signed(fresh(forged), **root, index="0", size="1", proof=""),
        lambda _: signed(fresh(forged), **root, index="0", size="2", proof=b64u(node_hash(leaf, proof[:32]))),
    ]
    for number, attempt in enumerate(attempts):
        assert await world.put(attempt(batch(signer, 3)[1])) in {"bad-signature", "bad-envelope"}, number
    assert await world.put(second) == "delivered"
    assert await world.put(third) == "delivered"


async def test_literal_wildcards_in_a_subject(world: World) -> None:
    """Use a wildcard of the grant as a literal (finding 2).

    Holds: crm-adapter's credentials and key; its grant has `*` in the place of the slot. Tries: to publish to the
    literal `*` there, or in the place of a type's token, which a server stores and delivers. Stopped: verification
    reads the subject token by token (V1), and `*` is none.
    """
    thief, signer = await world.insider("crm-adapter"), await world.signer("crm-adapter")
    assert await world.put(sealed(signer), thief) == "delivered"
    for subject in (
        f"ev.local.service.*.{CONTACT}",
        f"ev.local.service.s99.{CONTACT}",
        "ev.local.service.s03.crm.contact.*.v1",
    ):
        assert await world.put(sealed(signer, subject=subject), thief) == "bad-envelope"
