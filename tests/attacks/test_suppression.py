"""Taking events away, moving them and bringing some in, with everything that the control plane's account may do.

Agents number what they publish, under their signature; `mesh events verify` reads a source's numbers back.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from mesh.cli.session import operator_session
from mesh.control.completeness import Stores, check_source
from mesh.findings import Range, Report
from tests.attacks.insider import CRM, Insider, Wire, now_ms, until
from tests.attacks.world import World

pytestmark = pytest.mark.anyio

LATER_MS = 3_600_000  # nothing is on its way any more
FORGETFUL_NS = 100_000_000

Store = Callable[[Wire], Awaitable[None]]


@pytest.fixture
def source() -> str:
    """A source that no other test publishes."""
    return f"/crm/{secrets.token_hex(4)}"


async def checked(world: World, source: str) -> Report:
    """What an operator finds an hour on, in the view that support reads."""
    async with operator_session(str(world.data.root), tenant="acme") as session:
        trust = session.trust
        stores = Stores(session.connection, session.verify, trust.certificate, trust.keyring, "local")
        return await check_source(stores, source, Range(), view="service", now_ms=now_ms() + LATER_MS)


def found(report: Report) -> list[tuple[str, int]]:
    """Each finding's name and first number."""
    return sorted((finding.what, finding.first) for finding in report.findings)


async def published(world: World, source: str, count: int) -> list[Wire]:
    """Publish events and see them stored, as support's view has them."""
    before = await world.last()
    for _ in range(count):
        await world.publish(source=source)
    wires = [await world.stored(sequence) for sequence in range(before + 1, await world.last() + 1)]
    return [
        wire for wire in wires if ".service." in wire.subject and msgspec.json.decode(wire.body)["source"] == source
    ]


async def place(world: World, wire: Wire) -> int:
    """Where a message is stored."""
    for sequence in range(await world.last(), 0, -1):
        if (await world.stored(sequence)).body == wire.body:
            return sequence
    raise AssertionError("it is not stored")


async def delete(world: World, admin: Insider, wire: Wire) -> None:
    """Take one message out of its stream."""
    await admin.api(f"STREAM.MSG.DELETE.{CRM}", {"seq": await place(world, wire)})


@asynccontextmanager
async def forgetful(admin: Insider) -> AsyncIterator[Store]:
    """For the length of the block the stream takes again what it had, moments after; gives what stores a message there.

    A server that gets a shorter window may never begin to forget (nats-server 2.15.1, one time in 500): it does at the
    next change, so each try is one.
    """
    config: dict[str, Any] = (await admin.api(f"STREAM.INFO.{CRM}"))["config"]
    windows = itertools.count(FORGETFUL_NS)

    async def store(wire: Wire) -> None:
        async def stored() -> bool:
            await admin.api(f"STREAM.UPDATE.{CRM}", {**config, "duplicate_window": next(windows)})
            answer = await admin.ask(wire.subject, wire.body, wire.headers)
            return answer is not None and not msgspec.json.decode(answer.data).get("duplicate")

        await until(stored)

    try:
        yield store
    finally:
        await admin.api(f"STREAM.UPDATE.{CRM}", config)


async def test_taking_an_event_away(world: World, source: str) -> None:
    """Make an event disappear before anybody reads it.

    Holds: the broker. Tries: to delete a message between others. Stopped: its number lacks, and nobody but its agent
    could give that number to something else.
    """
    _, second, *_ = await published(world, source, 4)
    assert found(await checked(world, source)) == []
    await delete(world, await world.admin(), second)
    assert found(await checked(world, source)) == [("missing", 2)]


async def test_moving_an_event(world: World, source: str) -> None:
    """Have two events handed over in another order.

    Holds: the broker. Tries: to delete both and store them again, byte for byte, one for the other. Stopped: both
    verify, and the later one's number stands before the earlier one's.
    """
    admin = await world.admin()
    *_, third, fourth = await published(world, source, 4)
    async with forgetful(admin) as store:
        for wire in (third, fourth):
            await delete(world, admin, wire)
        for wire in (fourth, third):
            await store(wire)
    assert found(await checked(world, source)) == [("reordered", 3)]


async def test_bringing_in_an_event(world: World, source: str) -> None:
    """Add an event that its source never published.

    Holds: the broker. Tries: a copy with other data under the next number, with the signature of another and with none.
    Stopped: neither verifies, and the check names both.
    """
    admin = await world.admin()
    first, _ = await published(world, source, 2)
    fields = msgspec.json.decode(first.body)
    fields |= {"sequence": fields["sequence"][:-1] + "3", "data": {"country": "FR"}}
    body = msgspec.json.encode(fields)
    for headers in ({**first.headers, "Nats-Msg-Id": secrets.token_urlsafe(16)}, {}):
        async with forgetful(admin) as store:
            await store(Wire(first.subject, headers, body))
    assert found(await checked(world, source)) == [("not-verified", 3), ("not-verified", 3)]


async def test_storing_an_event_again(world: World, source: str) -> None:
    """Have an event handled twice, after the stream was made to forget that it has it.

    Holds: the broker. Tries: the same message again, byte for byte. Stopped: consumers know it by source and id, and
    the check tells that one message is stored twice, which its agent never does.
    """
    admin = await world.admin()
    first, _ = await published(world, source, 2)
    async with forgetful(admin) as store:
        await store(first)
    assert found(await checked(world, source)) == [("stored-again", 1)]
