"""The operator's reader against a real server: what it holds is bounded, and every event is taken once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from mesh.control import reader
from mesh.control.nats_server import NatsServer
from mesh.control.reader import IN_FLIGHT, reading
from mesh.jetstream import wire
from mesh.jetstream.connection import Connection
from tests.contract.streams import DEADLINE_S, STREAM, api, make_stream, until

pytestmark = pytest.mark.anyio

SUBJECT = "ev.local.clear.s00.crm.contact.v1"
FILTERS = {STREAM: ["ev.local.>"]}


@pytest.fixture
async def control(nats_server: NatsServer) -> AsyncIterator[Connection]:
    """A connection that may do everything, with the stream made."""
    connection = await Connection.open(nats_server.url, name="control")
    await make_stream(connection)
    yield connection
    await connection.close()


async def publish(connection: Connection, count: int) -> None:
    """Store *count* numbers, and wait until they are."""
    for n in range(count):
        connection.write(wire.publish_frame(SUBJECT, b"%d" % n))
    with anyio.fail_after(DEADLINE_S):
        while (await api(connection, f"STREAM.INFO.{STREAM}"))["state"]["messages"] < count:
            await anyio.sleep(0.01)


async def consumers(connection: Connection) -> list[dict[str, Any]]:
    """What the server says about each consumer."""
    found: list[dict[str, Any]] = (await api(connection, f"CONSUMER.LIST.{STREAM}"))["consumers"]
    return found


async def test_a_reader_that_takes_nothing_holds_what_may_be_in_flight(control: Connection) -> None:
    """Until an event is taken it is not acked, so no more than `IN_FLIGHT` wait here; then all come, in order."""
    count = 2 * IN_FLIGHT + 100
    await publish(control, count)
    async with reading(control, FILTERS, new_only=False) as (stored, events):
        assert stored == count
        await until(lambda: len(events) >= IN_FLIGHT)
        await control.flush(DEADLINE_S)
        (info,) = await consumers(control)
        assert (len(events), info["num_ack_pending"], info["num_pending"]) == (IN_FLIGHT, IN_FLIGHT, count - IN_FLIGHT)
        with anyio.fail_after(DEADLINE_S):
            got = [int((await events.receive()).body) for _ in range(count)]
    assert got == list(range(count))


async def test_a_slow_reader_takes_each_event_once(control: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits longer than the ack wait the server delivers again, and the reader still takes it once."""
    monkeypatch.setattr(reader, "ACK_WAIT_NS", 100_000_000)
    monkeypatch.setattr(reader, "IN_FLIGHT", 10)
    await publish(control, 20)
    got: list[int] = []
    async with reading(control, FILTERS, new_only=False) as (_, events):
        with anyio.fail_after(DEADLINE_S):
            while len(got) < 20:
                got.append(int((await events.receive()).body))
                await anyio.sleep(0.05)  # the work
        (info,) = await consumers(control)
        assert info["delivered"]["consumer_seq"] > 20
        assert len(events) == 0
    assert sorted(got) == list(range(20))


async def test_a_reader_that_leaves_leaves_no_consumer(control: Connection) -> None:
    """The server keeps nothing of it, even where it was cancelled."""
    with anyio.CancelScope() as scope:
        async with reading(control, FILTERS, new_only=True):
            assert len(await consumers(control)) == 1
            scope.cancel()
            await anyio.sleep_forever()
    assert await consumers(control) == []


async def test_new_events_reach_a_reader_that_waits(control: Connection) -> None:
    """With nothing stored it waits; what comes then is handed over."""
    async with reading(control, FILTERS, new_only=True) as (stored, events), anyio.create_task_group() as group:
        assert stored == 0
        group.start_soon(publish, control, 2)
        with anyio.fail_after(DEADLINE_S):
            assert [int((await events.receive()).body) for _ in range(2)] == [0, 1]
