"""Masks: what a copy does not show must not come back, whoever helps.

Support sees contacts in the view `service`: the e-mail address as a pseudonym, the IBAN encrypted for itself, anything
unclassified redacted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mesh.base64url import unb64u
from mesh.merkle import leaf_hash
from mesh.policy.actions import pseudonym
from mesh.policy.model_masks import With
from mesh.statements import statement
from tests.attacks.insider import CONTACT, CRM, Wire, batch, contact, sealed, until
from tests.attacks.world import World

pytestmark = pytest.mark.anyio


SALT = 3  # its place among the parts of a signature


class Held:
    """One pseudonym key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def domain(self, _name: str) -> bytes:
        """It."""
        return self._key


def token(value: str, key: bytes) -> str:
    """The pseudonym of a value, for who has the key."""
    keys: Any = Held(key)
    return str(pseudonym(With(domain="customer"), keys)(value))


def parts(wire: Wire) -> list[str]:
    """Of the signature."""
    return wire.headers["Mesh-Signature"].split(".")


async def test_guessing_a_masked_field_from_hashes(world: World) -> None:
    """Confirm a guess about an event one may not see, by the hashes that travel with one that one may.

    Holds: a copy of its own with its proof, and all of its sibling's body but one field of few values; and tokens of a
    pseudonym. Tries: every value. Stopped: each leaf is salted with 128 random bits that only the sibling's readers
    have; pseudonyms are keyed. Whoever has the salt, or the key, finds the value.
    """
    signer = await world.signer("crm-adapter")
    countries = ["DE", "FR", "IT", "ES"]
    mine, sibling = batch(signer, 2, data=[{"country": "AT"}, {"country": "FR"}])
    assert await world.put(mine) == "delivered"
    hashed = unb64u(parts(mine)[6])

    def found(salt: str) -> list[str]:
        bodies = {country: sibling.fields(data={"country": country}) for country in countries}
        guess = {
            c: leaf_hash(statement(sibling.subject, sibling.headers["Nats-Msg-Id"], salt, b)) for c, b in bodies.items()
        }
        return [country for country, leaf in guess.items() if leaf == hashed]

    assert found(parts(sibling)[SALT]) == ["FR"]
    assert found("") == found(parts(mine)[SALT]) == found("A" * 22) == []
    event = await world.handed_over(await world.publish())
    key = world.data.domain_key("acme", "customer")
    assert token("ada@example.org", key) == event.data["email"]
    for other in (bytes(32), world.data.dedupe_key("desk"), world.data.domain_key("acme", "another")):
        assert token("ada@example.org", other).partition("_")[2] != event.data["email"].partition("_")[2]


async def test_a_copy_that_claims_another_view(world: World) -> None:
    """Have a reader take an unmasked copy for one in its view.

    Holds: crm-adapter's event key and credentials, whose agent masks. Tries: a clear body under the reader's subject
    that says `clear`; one that says nothing. Stopped: the view stands in the subject, which NATS delivers by, and in
    the body, and both are one (V1). What the source itself writes into its own view is its own to disclose.
    """
    signer, by = await world.signer("crm-adapter"), await world.insider("crm-adapter")
    assert await world.put(sealed(signer), by) == "delivered"
    for fields in (contact(view="clear"), contact(view="bare"), contact(view=""), contact(view=None)):
        assert await world.put(sealed(signer, fields), by) == "bad-envelope"


async def test_a_copy_that_was_made_for_another(world: World) -> None:
    """Have a reader handed a copy of a view that shows more, honestly made for somebody else.

    Holds: the broker; he widens the filter of support's durable to the copies in `clear`. Tries: to have support's
    application see them. Stopped: the library hands over copies of the subscription's own view, whatever arrives.
    """
    admin, signer = await world.admin(), await world.signer("crm-adapter")
    assert await world.put(sealed(signer)) == "delivered"
    config = (await admin.api(f"CONSUMER.INFO.{CRM}.support--contacts"))["config"]
    wider = {**config, "filter_subject": "ev.local.*.*.crm.contact.>"}
    await admin.api(f"CONSUMER.CREATE.{CRM}.support--contacts", {"stream_name": CRM, "config": wider})
    try:
        clear = sealed(signer, contact(view="clear"), subject=f"ev.local.clear.s03.{CONTACT}")
        assert await world.put(clear) == "withheld: other-view"
    finally:
        await admin.api(f"CONSUMER.CREATE.{CRM}.support--contacts", {"stream_name": CRM, "config": config})


async def test_a_copy_that_claims_another_policy(world: World) -> None:
    """Have a copy judged by policies that showed more, or that do not exist.

    Holds: crm-adapter's event key and credentials. Tries: to say that a copy was made under revision 0, a negative one,
    a text, and one to come. Stopped: a revision that nobody remembers hands nothing over; a newer one is looked for,
    and waits.
    """
    signer, by = await world.signer("crm-adapter"), await world.insider("crm-adapter")
    assert await world.put(sealed(signer), by) == "delivered"
    for revision in (0, -1, "1", None):
        verdict = await world.put(sealed(signer, contact(policyrevision=revision)), by)
        assert verdict in {"withheld: unknown-revision", "bad-envelope"}, revision


async def test_a_copy_from_before_a_mask(world: World) -> None:
    """Have a copy shown as it was made, after security has masked one field more.

    Holds: team support's subscription, and crm-adapter's key: it goes on to make copies that claim the revision before.
    Tries: to have `notes` handed over in clear after a revision redacted them. Stopped: the reader compares the copy's
    revision with the one in force and tightens what is stricter now.
    """
    signer, by = await world.signer("crm-adapter"), await world.insider("crm-adapter")
    before = sealed(signer, contact(data={"country": "DE", "notes": "secret"}))
    assert await world.put(before, by) == "delivered"
    assert (await world.handed_over(before.id)).data["notes"] == "secret"
    await world.apply({"tags: [public, free.text], as: clear": "tags: [public], as: clear"})
    try:
        after = sealed(signer, contact(data={"country": "DE", "notes": "secret"}))
        assert await world.put(after, by) == "delivered"
        assert (await world.handed_over(after.id)).data == {"country": "DE", "notes": "[REDACTED]"}
    finally:
        await world.apply({})


async def test_moving_a_ciphertext(world: World) -> None:
    """Have the reader decrypt a value in another place and hand it on.

    Holds: the broker; and crm-adapter's event key, as a publisher that may not read what it moves. Tries: to move an
    encrypted IBAN in the broker; to put it under another name, and into an event of another type. Stopped: the body is
    signed; the ciphertext is bound to tenant, type and path, and opens nowhere else.
    """
    reader, signer = await world.reader(), await world.signer("crm-adapter")
    event = await world.handed_over(await world.publish())
    secret = event.data["iban"]
    assert secret.startswith("e")
    assert reader.mesh.reveal(event)["data"]["iban"] == "DE02"
    moved = sealed(signer)
    broken = moved.with_(body=moved.fields(data={"iban": secret}))
    assert await world.put(broken) == "bad-signature"
    for data, type_ in (
        ({"notes": secret}, CONTACT),
        ({"list": [secret]}, CONTACT),
        ({"iban": secret}, "crm.contact.merged.v1"),
    ):
        fields = contact(data=data, type=type_)
        wire = sealed(signer, fields, subject=f"ev.local.service.s03.{type_}")
        assert await world.put(wire) == "delivered"
        revealed = reader.mesh.reveal(await world.handed_over(wire.id))["data"]
        assert "DE02" not in msgspec.json.encode(revealed).decode()


async def test_erasing_an_event(world: World) -> None:
    """Read a deleted event in the files of the server.

    Holds: the disk of the server, or a backup made after the deletion. Tries: to find the bytes of an event that the
    control plane removed. Stopped: streams of events are made so that a deletion overwrites; a bucket would keep them.
    """
    admin = await world.admin()
    secret = "erase-me-" + "x" * 40
    wire = sealed(await world.signer("crm-adapter"), contact(data={"notes": secret}))
    assert await world.put(wire) == "delivered"
    sequence = next(s for (_, s), e in (await world.reader()).events.items() if e.id == wire.id)
    store = world.data.nats / "store"
    await until(lambda: held(store, secret))
    await admin.api(f"STREAM.MSG.DELETE.{CRM}", {"seq": sequence})
    await until(lambda: not held(store, secret))
    assert not await admin.reaches(f"$JS.API.DIRECT.GET.{CRM}", b'{"seq":%d}' % sequence)


def held(store: Path, secret: str) -> bool:
    """Whether a secret stands in any file of the server."""
    return any(secret.encode() in file.read_bytes() for file in store.rglob("*") if file.is_file())
