"""A puller that is closed at once: the server has read what it asked for before there is nobody to give it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mesh.control.nats_server import NatsServer
from mesh.jetstream.connection import Connection
from mesh.jetstream.puller import Puller
from tests.contract.streams import STREAM, make_durable, make_stream

pytestmark = pytest.mark.anyio

DURABLE = "team--sub"


@pytest.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    """With stream and durable made."""
    opened = await Connection.open(nats_server.url, name="team")
    await make_stream(opened)
    await make_durable(opened)
    yield opened
    await opened.close()


async def closed_at_once(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What went out and came in, in that order, from the first pull to the end of the inbox."""
    seen: list[str] = []
    write, on_status = Connection.write, Puller._on_status

    def written(self: Connection, frames: bytes) -> None:
        seen.extend(word for word in ("PUB $JS.API.CONSUMER.MSG.NEXT", "UNSUB") if frames.startswith(word.encode()))
        write(self, frames)

    def answered(self: Puller, subject: str, headers: bytes | None, data: bytes) -> None:
        seen.append("status")
        on_status(self, subject, headers, data)

    monkeypatch.setattr(Connection, "write", written)
    monkeypatch.setattr(Puller, "_on_status", answered)
    puller = Puller(connection, stream=STREAM, durable=DURABLE, on_event=lambda _: None)
    running = asyncio.create_task(puller.run())
    async with asyncio.timeout(60):
        while not seen:
            await asyncio.sleep(0)
        await puller.stop()
        await running
    return seen


async def test_its_inbox_goes_when_its_pull_was_read(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through an account's import, a pull read later would be served to nobody, and its events wait for an ack.

    The server answers at once, after the pull, to one that nothing fits in; only then the inbox goes.
    """
    pull = "PUB $JS.API.CONSUMER.MSG.NEXT"
    assert (await closed_at_once(connection, monkeypatch))[:4] == [pull, pull, "status", "UNSUB"]


async def test_a_server_that_does_not_answer_holds_a_close_for_a_moment_only(
    nats_server: NatsServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends, although nobody said that the pull was read."""
    monkeypatch.setattr("mesh.jetstream.puller._KNOWN_S", 0.05)
    nats_server.pause()
    try:
        seen = await closed_at_once(connection, monkeypatch)
    finally:
        nats_server.resume()
    assert "status" not in seen
    assert "UNSUB" in seen
