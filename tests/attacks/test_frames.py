"""Bytes that break readers: frames that a client dies of, headers that it obeys, bodies that it chokes on.

A publisher chooses subject, headers and body of what it may publish, and what it stores comes back until it is settled.
Plain nats-py 2.16 stops reading at some of these without a word.
"""

from __future__ import annotations

import time

import pytest

from mesh.event import encode
from tests.attacks.insider import CRM, SUBJECT, contact, frame, sealed, until
from tests.attacks.world import World

pytestmark = pytest.mark.anyio

VICTIM = "support--contacts"
BARE = "ev.local.bare.s03.crm.note.written.v1"


def hpub(subject: bytes, block: bytes, body: bytes = b"{}") -> bytes:
    """A HPUB frame whose header block is any bytes."""
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (subject, len(block), len(block) + len(body), block, body)


PILLS = {
    "a header block of eight bytes": hpub(SUBJECT.encode(), b"NATS/1.0"),
    "a header block that is none": hpub(SUBJECT.encode(), b"XXXX"),
    "a header that is not UTF-8": hpub(SUBJECT.encode(), b"NATS/1.0\r\nMesh-Signature: \xff\xfe\r\n\r\n"),
    "a status that is not UTF-8": hpub(SUBJECT.encode(), b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
    "a header without an end": hpub(SUBJECT.encode(), b"NATS/1.0\r\nA: b"),
    "a subject that is not UTF-8": b"PUB ev.local.service.s03.crm.contact.\xff\xfe 2\r\n{}\r\n",
    "a subject with a vertical tab": b"PUB ev.local.service.s03.crm.contact.a\x0bb 2\r\n{}\r\n",
    "a NUL in a header": hpub(SUBJECT.encode(), b"NATS/1.0\r\nNats-Msg-Id: a\x00b\r\n\r\n"),
}


@pytest.mark.parametrize("pill", PILLS)
async def test_poison_pills(world: World, pill: str) -> None:
    """Kill every reader of a subject with one stored message.

    Holds: crm-adapter's NATS credentials. Tries: a frame that no library writes, stored and delivered for ever.
    Stopped: our client checks the shape of a frame before anything reads it, and ends the delivery of one that is
    unsound; what comes after it is handed over.
    """
    thief, admin = await world.insider("crm-adapter"), await world.admin()
    await world.handed_over(await world.publish())
    last = await world.last()
    await thief.raw(PILLS[pill])
    await world.handed_over(await world.publish())
    assert await world.last() >= last + 1

    async def settled() -> bool:
        return not (await admin.api(f"CONSUMER.INFO.{CRM}.{VICTIM}"))["num_ack_pending"]

    await until(settled)


async def test_a_reply_that_is_not_text(world: World) -> None:
    """Kill whoever answers requests, with a reply subject that is no text.

    Holds: an agent's credentials, and the control plane's in the tenant, as an operator's tool may leak. Tries: a
    request whose reply has bytes beyond ASCII. Stopped: the message is dropped unread; the door answers the next one.
    """
    admin, thief = await world.admin(), await world.insider("crm-adapter")
    assert (await world.asked("policy.status"))["tenant"] == "acme"
    await admin.raw(b"PUB ctl.policy.status \xff\xfe.x 2\r\n{}\r\n")
    await thief.raw(b"PUB %b _INBOX_crm-adapter.\xff 2\r\n{}\r\n" % SUBJECT.encode())
    assert (await world.asked("policy.status"))["tenant"] == "acme"
    await world.handed_over(await world.publish())


async def test_a_status_that_an_application_sends(world: World) -> None:
    """Make an event disappear at its reader, or end his pull, with a header that only a server sends.

    Holds: crm-adapter's event key and credentials. Tries: `Status: 404`, `Status: 100`, `Description`, `Nats-Sequence`
    and others on a good event. Stopped: a status is a status line, not a header; what is not signed is not read.
    """
    signer, by = await world.signer("crm-adapter"), await world.insider("crm-adapter")
    assert await world.put(sealed(signer), by) == "delivered"
    for headers in (
        {"Status": "404"},
        {"Status": "408", "Description": "Request Timeout"},
        {"Status": "100", "Nats-Consumer-Stalled": "_INBOX.x"},
        {"Nats-Sequence": "1", "Nats-Stream": "EV_local_lake", "Nats-Subject": BARE, "Nats-Time-Stamp": "1970-01-01"},
        {"traceparent": "00-" + "0" * 400, "X": "\u0000"},
    ):
        wire = sealed(signer).with_(headers=headers)
        lines = [f"{name}: {value}" for name, value in wire.headers.items()]
        last = await world.last()
        await by.raw(frame(wire.subject, lines, wire.body))
        assert await world.verdict(CRM, last + 1, await world.reader()) == "delivered", headers


async def test_a_copied_stream_source(world: World) -> None:
    """Pass for an event of another stream, whose times nobody checks.

    Holds: crm-adapter's event key and credentials. Tries: `Nats-Stream-Source` on an event of its own, as only a
    sourcing stream writes it. Stopped: the server refuses the header from a client.
    """
    by, signer = await world.insider("crm-adapter"), await world.signer("crm-adapter")
    assert await world.put(sealed(signer), by) == "delivered"
    wire = sealed(signer).with_(headers={"Nats-Stream-Source": f"{CRM} 1 > > {SUBJECT}"})
    assert await world.put(wire, by) == "not stored"


BODIES = {
    "deep nesting": b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no UTF-8": b'{"id":"\xff"}',
    "a very long number": b'{"id":' + b"9" * 100_000 + b"}",
    "a hundred thousand members": b"{" + b",".join(b'"k%d":1' % n for n in range(12_000)) + b"}",
    "not an object": b"[1,2,3]",
    "nothing": b"",
    "NaN": b'{"specversion":"1.0","data":NaN}',
}


@pytest.mark.parametrize("name", BODIES)
async def test_bodies_that_parsers_choke_on(world: World, name: str) -> None:
    """Stop a reader with a body, signed by a key that is trusted.

    Holds: crm-adapter's event key and credentials. Tries: nesting, numbers, members and bytes that parsers die of.
    Stopped: sizes are bounded by the stream; the parser's every error is a refusal (V1), and the next event comes.
    """
    signer, by = await world.signer("crm-adapter"), await world.insider("crm-adapter")
    began = time.process_time()
    assert await world.put(sealed(signer, body=BODIES[name]), by) == "bad-envelope"
    assert await world.put(sealed(signer), by) == "delivered"
    assert time.process_time() - began < 10  # seconds of work, however busy the machine is: far from hanging


async def test_two_members_of_one_name(world: World) -> None:
    """Show a masked field under a name that stands twice, so that two readers see two values.

    Holds: crm-adapter's event key and credentials. Tries: a body with two `data`, and with two `type`. Stopped: the
    last one counts for every check and for the handler alike: there is one parse, and what is handed over came out of
    it.
    """
    signer, by = await world.signer("crm-adapter"), await world.insider("crm-adapter")
    assert await world.put(sealed(signer), by) == "delivered"
    another_type = encode(contact())[:-1] + b',"type":"crm.order.placed.v1"}'
    assert await world.put(sealed(signer, body=another_type), by) == "bad-envelope"
    wire = sealed(signer, body=encode(contact())[:-1] + b',"data":{"country":"FR"}}')
    assert await world.put(wire, by) == "delivered"
    assert (await world.handed_over(wire.id)).data == {"country": "FR"}
