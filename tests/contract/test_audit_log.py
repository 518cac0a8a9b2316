"""Writing the audit trail to a real server: in order, each record until it is stored, never at its caller's cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from mesh import audit
from mesh.audit import Record
from mesh.audit_check import Stored, Verification
from mesh.audit_log import LOST, AuditLog
from mesh.control.nats_server import NatsServer
from mesh.control.trail import stored_trail
from mesh.errors import Disconnected
from mesh.jetstream import manage
from mesh.jetstream.changes import plan
from mesh.jetstream.connection import Connection
from mesh.jetstream.requests import Reply
from mesh.jetstream.topology import Sizes, desired
from tests.contract.streams import until

pytestmark = pytest.mark.anyio

SMALL = Sizes(event_bytes=16 << 20, dlq_bytes=16 << 20, audit_bytes=16 << 20, small_bytes=16 << 20)


@pytest.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    """The control plane's connection to a server with the mesh's streams."""
    opened = await Connection.open(nats_server.url, name="control", creds=None)
    await manage.apply(opened, plan(desired("local", ("crm",), (), SMALL), await manage.read_actual(opened)))
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def writing(log: AuditLog) -> AsyncIterator[AuditLog]:
    """The log with its task, for the length of the block."""
    task = asyncio.create_task(log.run())
    try:
        yield log
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def trail(connection: Connection) -> tuple[list[Record], Verification]:
    """Every record that is stored, and what verifying them found."""
    checking, records = Verification(), []
    async for item in stored_trail(connection):
        record = checking.add(item)
        assert record is not None
        records.append(record)
    return records, checking


async def test_records_are_stored_in_order(connection: Connection) -> None:
    """What was written is stored as one chain that verifies, many records to a message."""
    log = AuditLog(connection, "crm-adapter", "0a1b2c3d")
    for number in range(1000):
        log.write(audit.POLICY_REFUSED, revision=number)
    async with writing(log):
        assert await log.flush(20)
    records, checking = await trail(connection)
    assert [record.facts["revision"] for record in records] == list(range(1000))
    assert checking.problems() == []
    messages = (await manage.stream_info(connection, "AUDIT"))["state"]["messages"]
    assert messages < 10


async def test_writers_have_chains_of_their_own(connection: Connection) -> None:
    """Several processes of one name, and several names, verify side by side."""
    logs = [AuditLog(connection, name, instance) for name in ("crm-adapter", "desk") for instance in ("a1", "b2")]
    for log in logs:
        async with writing(log):
            log.write(audit.DENIED, event="e-1")
            assert await log.flush(20)
    _, checking = await trail(connection)
    assert checking.writers == ["crm-adapter.a1", "crm-adapter.b2", "desk.a1", "desk.b2"]
    assert checking.problems() == []


class Lossy:
    """A connection whose answers get lost on the way back, though the server has done what was asked."""

    def __init__(self, connection: Connection, lost: int) -> None:
        self._connection = connection
        self.lost = lost
        self.max_payload = connection.max_payload

    def on_connect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """As a connection's."""
        return self._connection.on_connect(callback)

    async def request(self, subject: str, payload: bytes, **more: Any) -> Reply:
        """Served, and then as if the link had ended."""
        reply = await self._connection.request(subject, payload, **more)
        if self.lost:
            self.lost -= 1
            raise Disconnected("the connection to NATS ended")
        return reply


async def test_a_lost_acknowledgement_stores_nothing_twice(connection: Connection) -> None:
    """The same bytes are sent again under the same id, and the stream keeps one of them."""
    log = AuditLog(Lossy(connection, 2), "crm-adapter", "0a1b2c3d")  # type: ignore[arg-type]
    async with writing(log):
        log.write(audit.DENIED, event="e-1")
        assert await log.flush(20)
        log.write(audit.DENIED, event="e-2")
        assert await log.flush(20)
    records, checking = await trail(connection)
    assert [record.facts["event"] for record in records] == ["e-1", "e-2"]
    assert checking.problems() == []


async def test_what_is_written_while_nats_is_away_is_stored_after(
    connection: Connection, nats_server: NatsServer
) -> None:
    """Records wait for the server, and come in their order."""
    log = AuditLog(connection, "crm-adapter", "0a1b2c3d")
    async with writing(log):
        log.write(audit.DENIED, event="before")
        assert await log.flush(20)
        nats_server.kill()
        await until(lambda: not connection.connected)
        for number in range(3):
            log.write(audit.DENIED, event=f"away-{number}")
        assert len(log) == 3
        await nats_server.restart()
        assert await log.flush(20)
    records, checking = await trail(connection)
    assert [record.facts["event"] for record in records] == ["before", "away-0", "away-1", "away-2"]
    assert checking.problems() == []


async def test_what_finds_no_room_is_counted_and_owned_up_to(connection: Connection) -> None:
    """Beyond `max_waiting` records are dropped, counted once, and the next record says how many."""
    log = AuditLog(connection, "crm-adapter", "0a1b2c3d", max_waiting=2)
    before = LOST.total()
    for number in range(7):
        log.write(audit.POLICY_REFUSED, revision=number)
    assert LOST.total() - before == 5
    async with writing(log):
        assert await log.flush(20)
        log.write(audit.DENIED, event="after")
        assert await log.flush(20)
    records, checking = await trail(connection)
    assert [(r.kind, r.facts) for r in records] == [
        (audit.POLICY_REFUSED, {"revision": 0}),
        (audit.POLICY_REFUSED, {"revision": 1}),
        (audit.LOST, {"lost": 5}),
        (audit.DENIED, {"event": "after"}),
    ]
    assert (checking.problems(), checking.lost) == ([], 5)


class Clock:
    """Seconds that pass when a test says so."""

    now_s = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


def denied(log: AuditLog, count: int, *, start: int = 0, **facts: str) -> None:
    """Refuse *count* events alike."""
    for number in range(start, start + count):
        log.write(audit.DENIED, **({"event": f"e-{number}", "type": "crm.x.v1", "rule": "no-tests"} | facts))


def told(records: list[Record]) -> list[tuple[str, str | None, int]]:
    """The events that records are about: the last, the first of several, and how many."""
    return [(r.facts["event"], r.facts.get("first"), r.facts.get("count", 1)) for r in records]


async def test_a_flood_of_refusals_takes_one_record_a_second(connection: Connection) -> None:
    """The first refusals show at once, the rest of each second is one record, and each is in one count."""
    clock = Clock()
    log = AuditLog(connection, "crm-adapter", "0a1b2c3d", clock=clock)
    async with writing(log):
        denied(log, 1)
        await until(lambda: not len(log))  # nothing holds a single refusal back
        for second in range(3):
            denied(log, 300, start=1 + 300 * second)
            clock.now_s += 1
            await until(lambda: not len(log))
    records, checking = await trail(connection)
    assert checking.problems() == []
    assert told(records) == [
        ("e-0", None, 1), ("e-1", None, 1), ("e-2", None, 1),
        ("e-300", "e-3", 298), ("e-600", "e-301", 300), ("e-900", "e-601", 300),
    ]  # fmt: skip


async def test_a_flood_without_room_is_counted_until_there_is(connection: Connection) -> None:
    """What is held back is no loss: it goes on counting while the queue is full, and is stored after."""
    clock = Clock()
    log = AuditLog(connection, "crm-adapter", "0a1b2c3d", max_waiting=3, clock=clock)
    before = LOST.total()
    denied(log, 300)
    clock.now_s += 60
    denied(log, 300, start=300)
    assert LOST.total() == before
    async with writing(log):
        assert await log.flush(20)
    records, _ = await trail(connection)
    assert told(records) == [("e-0", None, 1), ("e-1", None, 1), ("e-2", None, 1), ("e-599", "e-3", 597)]


async def test_flushing_stores_what_is_held_back(connection: Connection) -> None:
    """Who stops does not wait for the second to end."""
    log = AuditLog(connection, "crm-adapter", "0a1b2c3d", clock=Clock())
    async with writing(log):
        denied(log, 10)
        assert await log.flush(20)
    records, _ = await trail(connection)
    assert told(records)[3:] == [("e-9", "e-3", 7)]


class Odd(Mapping[str, int]):
    """A mapping that cannot be read."""

    def __getitem__(self, name: str) -> int:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(("a",))

    def __len__(self) -> int:
        return 1


async def test_a_fact_that_cannot_be_written_costs_its_record_alone(connection: Connection) -> None:
    """Whatever is handed in, the caller goes on and so does the chain."""
    log = AuditLog(connection, "crm-adapter", "0a1b2c3d")
    log.write(audit.DENIED, fact=Odd())
    log.write(audit.DENIED, event="e-1")
    async with writing(log):
        assert await log.flush(20)
    records, checking = await trail(connection)
    assert [(r.seq, r.kind) for r in records] == [(1, audit.LOST), (2, audit.DENIED)]
    assert checking.problems() == []


async def test_flush_says_when_it_was_too_short(connection: Connection) -> None:
    """Without a task nothing is stored, and flush does not pretend."""
    log = AuditLog(connection, "crm-adapter", "0a1b2c3d")
    log.write(audit.DENIED, event="e-1")
    assert not await log.flush(0.01)


async def test_a_full_stream_is_waited_for(connection: Connection) -> None:
    """A refusal of the stream loses nothing: the record waits and is stored once there is room."""
    info = await manage.stream_info(connection, "AUDIT")
    full = info["config"] | {"max_msgs": 1}
    await manage.api(connection, "STREAM.UPDATE.AUDIT", full)
    log = AuditLog(connection, "crm-adapter", "0a1b2c3d")
    async with writing(log):
        log.write(audit.DENIED, event="e-1")
        assert await log.flush(20)
        log.write(audit.DENIED, event="e-2")
        await until(lambda: log._failing == "jetstream-refused")
        await manage.api(connection, "STREAM.UPDATE.AUDIT", info["config"])
        assert await log.flush(20)
    records, _ = await trail(connection)
    assert [record.facts["event"] for record in records] == ["e-1", "e-2"]


async def test_reading_ends_where_the_trail_did_when_it_began(connection: Connection) -> None:
    """An empty trail reads as none, and one of several pages reads whole."""
    assert [item async for item in stored_trail(connection)] == []
    for number in range(1199):
        await connection.publish("audit.desk", b"%d" % number)
    await connection.request("audit.desk", b"1199")  # answered once it is stored, and so all before it
    found: list[Stored] = [item async for item in stored_trail(connection)]
    assert [int(item.line) for item in found] == list(range(1200))
    assert found[-1].stream_seq == 1200
    some = [int(item.line) async for item in stored_trail(connection, first=1100, last=1150)]
    assert some == list(range(1099, 1150))


async def test_only_what_is_asked_for_is_read(connection: Connection) -> None:
    """By workload and by time: the server sends no more."""
    for name in ("desk", "crm-adapter"):
        log = AuditLog(connection, name, "a1")
        async with writing(log):
            log.write(audit.DENIED, event=name)
            assert await log.flush(20)
    only = [item async for item in stored_trail(connection, name="desk")]
    assert [msgspec.json.decode(item.line)["facts"]["event"] for item in only] == ["desk"]
    for since, count in (("2020-01-01T00:00:00Z", 2), ("2999-01-01T01:00:00+01:00", 0)):
        assert len([item async for item in stored_trail(connection, since=since)]) == count
