"""Reading what comes again to another team: replays and redrives have durables of their own, beside the first.

Support reads contacts in the view `service`; analytics has an ordered subscription, whose slots are durables too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg

from mesh.jetstream.durables import REDRIVE_STREAM, redrive
from mesh.jetstream.topology import PIN_GROUP, consumer
from tests.attacks.insider import CONTACT, CRM, DEADLINE_S, NEXT, Insider, sealed, until
from tests.attacks.world import World

pytestmark = pytest.mark.anyio

REPLAYED, REDRIVEN = "support--contacts--replay", "support--contacts--redrive"
SLOT, OTHER_SLOT = "analytics--ordered--s03", "analytics--ordered--s04"  # each is pulled by the first who does
ORDER = "crm.order.placed.v1"


@asynccontextmanager
async def replayed(world: World) -> AsyncIterator[None]:
    """Contacts are replayed to support for the length of the block."""
    for _ in range(3):
        wire = sealed(await world.signer("crm-adapter"))
        assert await (await world.insider("crm-adapter")).reaches(wire.subject, wire.body, wire.headers)
    begun = await world.asked("replay.start", team="support", subscription="contacts", author="ada")
    try:
        yield
    finally:
        await world.asked("replay.cancel", run=begun["run"], author="ada")


@asynccontextmanager
async def redriven(world: World) -> AsyncIterator[None]:
    """Dead letters of support and of crm lie in `REDRIVE`, and support's durable is there, while the block runs."""
    admin = await world.insider("acme")
    grant = world.control().policies.grants.subscriptions["support", "contacts"]
    stated = consumer(redrive(grant), grant, start="all")
    config = {key: value for key, value in {**stated.config(), **stated.start_config()}.items() if value is not None}
    await admin.api(f"CONSUMER.CREATE.{stated.stream}.{stated.name}", {"stream_name": stated.stream, "config": config})
    for whose in ("crm.contacts", "support.contacts", "support.contacts", "support.scores"):
        assert await admin.reaches(f"redrive.{whose}", b"{}")
    try:
        yield
    finally:
        await admin.api(f"CONSUMER.DELETE.{stated.stream}.{stated.name}")
        await admin.api(f"STREAM.PURGE.{REDRIVE_STREAM}")


async def pulled(insider: Insider, durable: str, stream: str, count: int = 1) -> list[Msg]:
    """What a durable delivers to who may pull it, however busy the server is."""
    got: list[Msg] = []

    async def some() -> bool:
        got.extend(await insider.pull(durable, count, stream=stream))
        return bool(got)

    await until(some)
    return got


async def in_slot(insider: Insider, durable: str, count: int = 50) -> list[Msg]:
    """What a slot's durable delivers now, as the library asks for it."""
    ask = msgspec.json.encode({"batch": count, "no_wait": True, "group": PIN_GROUP})
    return await insider.collect(f"{NEXT}.{CRM}.{durable}", ask, count)


async def state(admin: Insider, stream: str, durable: str) -> tuple[int, int]:
    """How often a durable has handed anything out, and how much of it is not acked."""
    info: dict[str, Any] = await admin.api(f"CONSUMER.INFO.{stream}.{durable}")
    return int(info["delivered"]["consumer_seq"]), int(info["num_ack_pending"])


async def steals_nothing(world: World, stream: str, durable: str, thief: Insider) -> None:
    """Neither a pull, nor an ack, nor `+NXT` of *thief* does anything to a durable that its owner pulls."""
    admin, owner = await world.insider("acme"), await world.insider("team-support")
    (message,) = await pulled(owner, durable, stream)
    before = await state(admin, stream, durable)
    for name in (durable, "*", ">"):
        assert await thief.pull(name, stream=stream) == []
    assert await thief.pull(durable, stream="*") == []
    tail = message.reply.removeprefix("$JS.ACK.")
    for subject in (message.reply, f"$JS.ACK._.znJdjy7f.{tail}.rnd", f"$JS.ACK.{stream}.{durable}.1.1.1.1.0"):
        assert await thief.collect(subject, b"+NXT", wait_s=0.3) == []
    for verb in (b"+ACK", b"+TERM stolen", b'-NAK {"delay": 1}'):
        assert await thief.ask(message.reply, verb, timeout_s=0.3) is None
    assert await state(admin, stream, durable) == before
    assert await owner.ask(message.reply, b"+ACK") is not None


async def test_pulling_another_teams_replay(world: World) -> None:
    """Read what is replayed to another team.

    Holds: team analytics' credentials and an ack subject of support's replay. Tries: to pull it by name and by
    wildcards, to ack, term and postpone in its place, to read on by `+NXT`. Stopped: the account imports the pull and
    the acks of its own replays, by exact name; that they are there beforehand opens nothing.
    """
    async with replayed(world):
        await steals_nothing(world, CRM, REPLAYED, await world.insider("team-analytics"))


async def test_pulling_another_teams_redrive(world: World) -> None:
    """Read another team's dead letters as they come again, or send it some.

    Holds: team analytics' credentials and an ack subject of support's redrive. Tries: what it would try on a replay,
    in the stream that all teams' redrives share, and to write there. Stopped: as for replays; no workload's account
    imports a subject of `redrive`.
    """
    thief = await world.insider("team-analytics")
    async with redriven(world):
        await steals_nothing(world, REDRIVE_STREAM, REDRIVEN, thief)
        for name in ("team-analytics", "lake"):
            for subject in ("redrive.support.contacts", "redrive.analytics.all"):
                assert not await (await world.insider(name)).reaches(subject, b"{}")


async def test_pulling_another_teams_slot(world: World) -> None:
    """Read a slot of another team's ordered subscription, or take it from whoever pulls it.

    Holds: team support's credentials. Tries: to pull analytics' slot, with the group that the library names and
    without, and by a wildcard. Stopped: each slot's durable is imported by exact name; the pin is never asked for.
    """
    wire = sealed(await world.signer("crm-adapter"), subject=f"ev.local.bare.s03.{CONTACT}")
    assert await (await world.insider("crm-adapter")).reaches(wire.subject, wire.body, wire.headers)
    admin, owner, thief = [await world.insider(name) for name in ("acme", "team-analytics", "team-support")]
    before = await state(admin, CRM, SLOT)
    for durable in (SLOT, "*", "analytics--ordered"):
        assert await in_slot(thief, durable, 1) == []
        assert await thief.pull(durable) == []
    assert await state(admin, CRM, SLOT) == before
    await until(lambda: in_slot(owner, SLOT, 1))


async def test_a_sideline_in_another_stream(world: World) -> None:
    """Read a stream that the team has no subscription in, through the names of its replay, its redrive and its slots.

    Holds: the credentials of support and analytics. Tries: to pull those names from the streams of dead letters and
    audit, where somebody made such durables, and to ack there. Stopped: an import names stream and durable together.
    """
    admin = await world.insider("acme")
    await admin.nc.request("dlq.nobody.nothing", b"{}", timeout=DEADLINE_S)
    for name, durable in (("support", REPLAYED), ("support", REDRIVEN), ("analytics", SLOT)):
        thief = await world.insider(f"team-{name}")
        for stream in ("AUDIT", "DLQ"):
            config = {"durable_name": durable, "ack_policy": "explicit"}
            await admin.api(f"CONSUMER.CREATE.{stream}.{durable}", {"stream_name": stream, "config": config})
            assert await thief.pull(durable, stream=stream) == []
            (message,) = await pulled(admin, durable, stream)
            for verb in (b"+NXT", b"+ACK"):
                assert await thief.ask(message.reply, verb, timeout_s=0.2) is None
            assert (await state(admin, stream, durable))[1] == 1
            await admin.api(f"CONSUMER.DELETE.{stream}.{durable}")


async def test_what_comes_again_is_the_teams_own(world: World) -> None:
    """Find a copy of another view, of another type, or another's dead letter among what comes again, or in a slot.

    Holds: the credentials of support and analytics. Tries: to pull all there is, as a plain client without our library.
    Stopped: the filters of replays, redrives and slots are the compiled grant, as those of the first durable are.
    """
    adapter, support = await world.insider("crm-adapter"), await world.insider("team-support")
    for view in ("clear", "service", "bare"):
        for type_ in (CONTACT, ORDER):
            await adapter.reaches(f"ev.local.{view}.s04.{type_}", b"{}")
    async with replayed(world):
        again = [message.subject for message in await pulled(support, REPLAYED, CRM, 50)]
    assert {(subject.split(".")[2], subject.split(".", 4)[4]) for subject in again} == {("service", CONTACT)}
    async with redriven(world):
        letters = await pulled(support, REDRIVEN, REDRIVE_STREAM, 50)
    assert {letter.subject for letter in letters} == {"redrive.support.contacts"}
    owner = await world.insider("team-analytics")
    mine: list[str] = []

    async def some() -> bool:
        mine.extend(message.subject for message in await in_slot(owner, OTHER_SLOT))
        return bool(mine)

    await until(some)
    assert {(subject.split(".")[2], subject.split(".", 4)[4]) for subject in mine} == {("bare", CONTACT)}
