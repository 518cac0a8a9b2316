"""Linked events are read, buried, sent back and replayed as any other: their links are for the first publish only."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from mesh import deadletters
from mesh.control import redrive, stored_messages
from mesh.delivery import Reject
from mesh.errors import MeshError
from mesh.event import encode
from mesh.inbound import Admitted
from mesh.jetstream import links, wire
from mesh.jetstream.connection import Connection
from mesh.jetstream.durables import REDRIVE_STREAM
from mesh.jetstream.publisher import Outgoing, PubAck, Publisher
from mesh.signing import message_id, seal
from tests.contract.agent_mesh import now_ms, until
from tests.contract.consumer_mesh import DEDUPE_KEY, STREAM, SUBJECT, TENANT, TYPE, VIEW, Source, take
from tests.contract.letters import messages, pulled, stored_letters
from tests.contract.test_redrive import SIDE, gone, opened

pytestmark = pytest.mark.anyio

EXPECTED = b"Nats-Expected-"
COUNT = 16


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often; and a busy machine may take any time from an ack to what is linked."""
    monkeypatch.setattr(redrive, "LOOK_S", 0.05)
    monkeypatch.setattr(links, "FRESH_S", float("inf"))


@asynccontextmanager
async def publishing(source: Source) -> AsyncIterator[Publisher]:
    """A publisher that seals as an agent does."""
    connection = await Connection.open(source.streams.server.url, name="crm-adapter")
    publisher = Publisher(
        connection,
        seal=lambda batch: seal(batch, source.signer, signed_ms=now_ms(), salts=secrets.token_bytes(16 * len(batch))),
        message_id=lambda item: message_id(DEDUPE_KEY, item.source, item.event_id, item.subject),
        clock_ms=now_ms,
    )
    running = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        running.cancel()
        await asyncio.wait([running])
        publisher.close()
        await connection.close()


async def publish_linked(source: Source) -> list[str]:
    """Store a first event, and COUNT that are linked; all their ids, in order."""
    ended: dict[str, PubAck | MeshError] = {}

    def event(id_: str) -> Outgoing:
        fields = {
            "specversion": "1.0", "id": id_, "source": "/crm", "type": TYPE, "tenant": TENANT, "view": VIEW,
            "policyrevision": 1, "data": {"country": "DE"},
        }  # fmt: skip
        return Outgoing(SUBJECT, STREAM, encode(fields), "/crm", id_, on_done=lambda _, said: ended.update({id_: said}))

    ids = ["first", *(f"e{n}" for n in range(COUNT))]
    async with publishing(source) as publisher:
        publisher.submit([event("first")])
        await until(lambda: ended)
        publisher.submit([event(id_) for id_ in ids[1:]])
        await until(lambda: len(ended) == len(ids))
    assert list(ended.values()) == [PubAck(STREAM, n) for n in range(1, COUNT + 2)]
    assert [EXPECTED in block for block in await blocks(source, STREAM)] == [False] + [True] * COUNT
    return ids


async def blocks(source: Source, stream: str) -> list[bytes]:
    """The headers of all that *stream* holds."""
    return [each.headers or b"" async for each in stored_messages.stored(source.streams.connection, stream)]


async def test_linked_events_are_verified_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The team reads all of them in order; and none is read the long way, header by header."""
    long_way: list[bytes | None] = []
    read = wire.event_headers

    def reading_long(block: bytes | None) -> tuple[tuple[str, ...], str | None]:
        long_way.append(block)
        return read(block)

    monkeypatch.setattr(wire, "event_headers", reading_long)
    async with Source.running(tmp_path) as source:
        ids = await publish_linked(source)
        long_way.clear()
        async with source.reader() as reader, reader.subscription() as reading:
            assert [event.id for event in await take(reading, len(ids))] == ids
            await until(source.settled)
    assert not [block for block in long_way if EXPECTED in (block or b"")]


async def test_a_linked_event_that_fails_is_buried_sent_back_and_handled(tmp_path: Path) -> None:
    """Its letter, and the copy that is sent back, expect nothing of the streams that hold them."""
    async with opened(tmp_path) as (source, office):
        await publish_linked(source)
        failing, handled = {"e4", "e5", f"e{COUNT - 1}"}, []

        async def handle(event: Admitted) -> None:
            if event.id in failing:
                raise Reject("no-customer")
            handled.append((event.id, bool(event.redrive)))

        async with source.reader() as reader, reader.subscription() as reading, anyio.create_task_group() as group:
            group.start_soon(reading.run, handle)
            await until(lambda: _count(source, 3))
            letters = await stored_letters(source)
            assert {letter.key for letter in letters.values()} == {("/crm", id_) for id_ in failing}
            assert all(EXPECTED not in block for block in await blocks(source, deadletters.STREAM))
            await until(lambda: len(handled) == COUNT - 2)
            back, failing = failing, set()
            assert len((await office.ask("redrive", run="r1"))["sent"]) == 3
            assert all(EXPECTED not in block for block in await blocks(source, REDRIVE_STREAM))
            await until(lambda: gone(source, *letters))
            group.cancel_scope.cancel()
        assert sorted(handled[-3:]) == sorted((id_, True) for id_ in back)
        assert not await stored_letters(source)


async def _count(source: Source, letters: int) -> bool:
    return await messages(source, deadletters.STREAM) == letters


async def test_a_linked_event_that_a_plain_client_ends_is_buried_and_sent_back(tmp_path: Path) -> None:
    """The control plane reads it out of its stream, verifies it, and has its letter stored, and its copy."""
    async with opened(tmp_path) as (source, office):
        await publish_linked(source)
        for word in (b"+ACK", b"+TERM none", b"+TERM none"):
            reply = await pulled(source)
            assert reply is not None
            await source.streams.connection.request(reply, word)
        await until(lambda: _count(source, 2))
        letters = await stored_letters(source)
        assert [(one.key, one.has_event, one.reason) for one in letters.values()] == [
            (("/crm", "e0"), True, "none"),
            (("/crm", "e1"), True, "none"),
        ]
        assert (await office.ask("redrive", run="r1"))["sent"] == list(letters)
        for stream in (deadletters.STREAM, REDRIVE_STREAM):
            assert [EXPECTED in block for block in await blocks(source, stream)] == [False] * 2
        for _ in letters:
            reply = await pulled(source, stream=REDRIVE_STREAM, durable=SIDE)
            assert reply is not None
            await source.streams.connection.request(reply, b"+ACK")
        await until(lambda: gone(source, *letters))
