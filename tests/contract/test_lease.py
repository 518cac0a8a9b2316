"""Who leads, on a real server: one at a time, whatever stops, and by no wall clock."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

import anyio
import pytest

from mesh.control import lease as lease_module
from mesh.control.lease import HOLD_S, KEY, MAX_SKEW_S, RENEW_S, TTL_S, Lease, read_record
from mesh.control.lease_connection import LeaderConnection
from mesh.control.nats_server import NatsServer
from mesh.control.vault import BUCKET, STREAM
from mesh.control.vault_bucket import ensure_bucket
from mesh.errors import Deposed
from mesh.jetstream.connection import Connection
from mesh.jetstream.manage import api
from mesh.jetstream.store import KeyValue

pytestmark = pytest.mark.anyio

NEVER = 1e9  # seconds; a test that waits for it fails by its own deadline


@dataclass
class Clock:
    """Seconds that a test sets."""

    now: float = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now


@pytest.fixture
async def connection(shared_nats: NatsServer) -> AsyncIterator[Connection]:
    """With an empty bucket."""
    connection = await Connection.open(shared_nats.url, name="control")
    try:
        await ensure_bucket(connection, 1)
        await api(connection, f"STREAM.PURGE.{STREAM}")
        yield connection
    finally:
        await connection.close()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for in real seconds is short; what is counted stays as it is."""
    monkeypatch.setattr(lease_module, "LOOK_S", 0.01)


def replica(connection: Connection, name: str, clock: Clock, *, ahead_s: float = 0.0) -> Lease:
    """A replica whose wall clock is so many seconds ahead of the server's."""
    return Lease(KeyValue(connection, BUCKET), name, uptime=clock, wall=lambda: time.time() + ahead_s)


async def nothing() -> None:
    """While another one leads."""


async def taken(lease: Lease) -> int:
    """The term, once it leads."""
    with anyio.fail_after(60):
        return await lease.acquire(nothing)


async def looks(lease: Lease, times: int) -> bool:
    """Whether it leads after so many looks."""
    seen = 0
    scope = anyio.CancelScope()

    async def look() -> None:
        nonlocal seen
        seen += 1
        if seen == times:
            scope.cancel()

    with scope, anyio.fail_after(60):
        await lease.acquire(look)
    return lease.valid()


async def test_a_lease_that_nobody_renews_is_another_one_s_after_its_time(connection: Connection) -> None:
    """Not a look before; and whoever had it knew before that."""
    clock = Clock()
    first, second = replica(connection, "cp-1", clock), replica(connection, "cp-2", clock)
    before = await taken(first)
    assert not await looks(second, 2)
    clock.now = HOLD_S
    assert not first.valid()
    clock.now = TTL_S - 0.1
    assert not await looks(second, 2)
    clock.now = TTL_S
    assert await taken(second) > before
    with pytest.raises(Deposed):
        first.guard(before)


async def test_a_lease_that_is_renewed_stays(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as its holder lives: whoever waits counts from the last renewal."""
    monkeypatch.setattr(lease_module, "RENEW_S", 0.01)
    clock = Clock()
    first, second = replica(connection, "cp-1", clock), replica(connection, "cp-2", clock)
    await taken(first)
    store = KeyValue(connection, BUCKET)

    async def revision() -> int:
        entry = await store.get(KEY)
        assert entry is not None
        return entry.revision

    async with anyio.create_task_group() as group:
        group.start_soon(first.hold)
        for _ in range(5):
            before = await revision()
            with anyio.fail_after(60):
                while await revision() < before + 2:  # so one that began with this clock is confirmed
                    await anyio.sleep(0.01)
            assert first.valid()
            assert not await looks(second, 2)
            clock.now += RENEW_S
        group.cancel_scope.cancel()


async def test_a_lease_that_was_given_back_is_taken_at_once(connection: Connection) -> None:
    """No replica waits for one that said it ends."""
    clock = Clock()
    first, second = replica(connection, "cp-1", clock), replica(connection, "cp-2", clock)
    before = await taken(first)
    await first.release()
    assert not first.valid()
    assert await taken(second) > before


async def test_what_was_begun_in_one_term_is_not_done_in_the_next(connection: Connection) -> None:
    """Although the same process leads again."""
    clock = Clock()
    lease = replica(connection, "cp-1", clock)
    before = await taken(lease)
    lease.guard(before)
    await lease.release()
    after = await taken(lease)
    lease.guard(after)
    with pytest.raises(Deposed):
        lease.guard(before)


async def test_two_that_take_it_in_the_same_moment_are_one_leader(connection: Connection) -> None:
    """The server lets one write stand."""
    clock = Clock()
    replicas = [replica(connection, f"cp-{number}", clock) for number in range(5)]
    over = 0
    async with anyio.create_task_group() as group:

        async def take_part(lease: Lease) -> None:
            nonlocal over
            if await looks(lease, 1) or lease.valid():
                over += 100
            over += 1

        for one in replicas:
            group.start_soon(take_part, one)
    assert over == 105
    assert sum(one.valid() for one in replicas) == 1


async def test_whoever_was_stopped_for_longer_than_the_lease_finds_another_leader(connection: Connection) -> None:
    """Its next renewal, whenever that is, says so; the other one's record stands."""
    clock = Clock()
    first, second = replica(connection, "cp-1", clock), replica(connection, "cp-2", clock)
    await taken(first)
    assert not await looks(second, 1)
    clock.now = TTL_S
    term = await taken(second)
    first._until_s = NEVER  # as if its clock had been stopped too
    with pytest.raises(Deposed), anyio.fail_after(60):
        await first._renew()
    entry = await KeyValue(connection, BUCKET).get(KEY)
    assert entry is not None
    assert read_record(entry).term == term


async def set_back(connection: Connection, record: bytes | None) -> int:
    """Servers that come back with an older store, which counts again from there; the revision of *record* in it."""
    await api(connection, f"STREAM.DELETE.{STREAM}")
    await ensure_bucket(connection, 1)
    return 0 if record is None else await KeyValue(connection, BUCKET).put(KEY, record)


async def test_two_leaders_that_do_not_know_of_each_other_have_two_terms(connection: Connection) -> None:
    """The servers lost the second one's record: the first takes the lead again, and the second finds that out."""
    clock = Clock()
    first, second = replica(connection, "cp-1", clock), replica(connection, "cp-2", clock)
    await taken(first)
    await first.release()
    old = await KeyValue(connection, BUCKET).get(KEY)
    assert old is not None
    lost = await taken(second)
    await set_back(connection, old.value)
    again = await taken(first)
    assert again > lost
    second._revision = first._revision  # revisions are counted again: its next write would fit
    with pytest.raises(Deposed):
        await second._renew()
    assert not second.valid()
    assert (await first._renew()).revision > first._revision


@pytest.mark.parametrize("left", ["nothing", "an older record"])
async def test_a_leader_whose_record_the_servers_lost_puts_it_back(connection: Connection, left: str) -> None:
    """It leads on; whoever saw its record takes no older one for the truth, released or not, before its time."""
    clock = Clock()
    first, second = replica(connection, "cp-1", clock), replica(connection, "cp-2", clock)
    await taken(first)
    await first.release()
    old = await KeyValue(connection, BUCKET).get(KEY)
    assert old is not None
    term = await taken(second)
    assert not await looks(first, 1)
    await set_back(connection, None if left == "nothing" else old.value)
    assert not await looks(first, 2)
    second._take_note(await second._renew())
    entry = await KeyValue(connection, BUCKET).get(KEY)
    assert entry is not None
    assert read_record(entry).term == term
    assert second.valid()


async def test_a_renewal_that_got_no_answer_costs_nothing(connection: Connection) -> None:
    """It is stored: the next one finds its own record and goes on."""
    clock = Clock()
    lease = replica(connection, "cp-1", clock)
    await taken(lease)
    stale = lease._revision
    await lease._renew()
    assert lease._revision == stale  # as after an answer that was lost
    assert (await lease._renew()).revision > stale + 1


@pytest.mark.parametrize("ahead_s", [MAX_SKEW_S + 10, -MAX_SKEW_S - 10])
async def test_a_replica_whose_clock_is_wrong_leaves_the_lead_to_others(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """Its statements would be stale, or of tomorrow."""
    monkeypatch.setattr(lease_module, "TTL_S", 0.0)
    wrong = replica(connection, "cp-1", Clock(), ahead_s=ahead_s)
    assert not await looks(wrong, 2)
    right = replica(connection, "cp-2", Clock())
    assert await taken(right)


@pytest.mark.parametrize("ahead_s", [MAX_SKEW_S - 5, -MAX_SKEW_S + 5])
async def test_the_term_rises_whatever_the_clocks_say(connection: Connection, ahead_s: float) -> None:
    """A leader whose clock is behind has a higher number than the one before."""
    first = replica(connection, "cp-1", Clock(), ahead_s=ahead_s)
    before = await taken(first)
    await first.release()
    assert await taken(replica(connection, "cp-2", Clock(), ahead_s=-ahead_s)) > before


async def test_nothing_is_sent_after_the_term(connection: Connection, shared_nats: NatsServer) -> None:
    """Neither a message nor a request, although the link is there."""
    clock = Clock()
    lease = replica(connection, "cp-1", clock)
    await taken(lease)
    heard: list[bytes] = []
    connection.listen("lease.test", lambda _s, _r, _h, data: heard.append(data))
    await connection.flush(5)
    leading = await LeaderConnection.lead(shared_nats.url, "control-1", None, partial(lease.guard, lease.term))
    try:
        await leading.publish("lease.test", b"in time")
        clock.now = HOLD_S
        with pytest.raises(Deposed):
            await leading.publish("lease.test", b"too late")
        with pytest.raises(Deposed):
            await leading.request("$JS.API.INFO", b"")
        await leading.flush(5)
        await connection.flush(5)
        assert heard == [b"in time"]
    finally:
        await leading.close()
