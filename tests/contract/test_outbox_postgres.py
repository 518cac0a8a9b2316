"""An outbox in PostgreSQL: one transaction with the data, order, refusals, one relay at a time, a server that ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import asyncpg
import pytest

from mesh.errors import ConfigError
from mesh.outbox import PostgresOutbox
from mesh.outbox import postgres as module
from mesh.outbox import relay as relaying
from tests.contract.outboxes import DEADLINE_S, TYPE, StandIn
from tests.contract.postgres import Postgres, running_postgres

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """One server for the tests of this file."""
    with running_postgres() as server:
        yield server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a test are short."""
    monkeypatch.setattr(relaying, "BACKOFF_S", (0.01,))
    monkeypatch.setattr(relaying, "ROUND", 4)
    monkeypatch.setattr(module, "STANDBY_S", 0.01)


@pytest.fixture
async def pool(server: Postgres) -> AsyncIterator[Any]:
    """Connections to a schema of this test's own."""
    async with asyncpg.create_pool(server.dsn, min_size=1, max_size=4) as pool:
        await pool.execute("DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public; CREATE TABLE orders (id text)")
        yield pool


async def add(pool: Any, outbox: PostgresOutbox, *ids: str, source: str = "/shop") -> None:
    """Place orders, each in a transaction of its own."""
    async with pool.acquire() as db:
        for id_ in ids:
            async with db.transaction():
                await db.execute("INSERT INTO orders VALUES ($1)", id_)
                await outbox.add(db, TYPE, {"order": id_}, source=source, id=id_)


async def left(pool: Any) -> list[str]:
    """Ids that still wait."""
    return [row[0] for row in await pool.fetch("SELECT event::json->>'id' FROM mesh_outbox ORDER BY seq")]


async def empty(pool: Any) -> None:
    """Wait until nothing does."""
    with anyio.fail_after(DEADLINE_S):
        while await left(pool):
            await anyio.sleep(0.005)


async def test_events_are_posted_in_order_and_deleted(pool: Any) -> None:
    """What was committed before the relay began, and what is added while it runs; what is rolled back never was."""
    outbox, agent = PostgresOutbox(pool), StandIn()
    async with pool.acquire() as db:
        transaction = db.transaction()
        await transaction.start()
        await outbox.add(db, TYPE, source="/shop", id="gone")
        await transaction.rollback()
    await add(pool, outbox, "a", "b")
    async with outbox.relay(agent.publish, poll_s=0.01):
        await agent.until(2)
        await add(pool, outbox, "c", "d")
        await agent.until(4)
        await empty(pool)
    assert agent.tried == agent.ids == ["a", "b", "c", "d"]
    assert agent.taken[0]["data"] == {"order": "a"}


async def test_waiting_and_refused_events_hold_up_nobody(pool: Any) -> None:
    """A source whose agent is away keeps its order, a refused event is set aside, and all of it arrives in the end."""
    away, poisonous = True, True

    def answer(fields: Any) -> int:
        if fields["source"] == "/slow" and away:
            return 0
        return 403 if fields["id"] == "bad" and poisonous else 202

    agent, outbox = StandIn(answer), PostgresOutbox(pool)
    slow = [f"s{number}" for number in range(6)]  # more than a round takes
    await add(pool, outbox, *slow, source="/slow")
    await add(pool, outbox, "a", "bad", "b")
    async with outbox.relay(agent.publish, poll_s=0.01):
        await agent.until(2)
        away = False
        await agent.until(8)
        async with pool.acquire() as db:
            with anyio.fail_after(DEADLINE_S):
                while not (aside := await outbox.refused(db)):
                    await anyio.sleep(0.005)
            poisonous = False
            async with db.transaction():
                assert await outbox.again(db, aside[0].seq)
                assert not await outbox.drop(db, aside[0].seq)
        await agent.until(9)
        await empty(pool)
    assert agent.ids == ["a", "b", *slow, "bad"]
    assert aside[0].problem["rule"] == "no-hr"


async def test_of_two_relays_one_works(pool: Any) -> None:
    """The second begins when the first one's session ends, and posts nothing before."""
    outbox, first, second = PostgresOutbox(pool), StandIn(), StandIn()
    async with PostgresOutbox(pool).relay(first.publish, poll_s=0.01):
        await add(pool, outbox, "a")
        await first.until(1)
        async with outbox.relay(second.publish, poll_s=0.01):
            first.answer = lambda _: 0
            await add(pool, outbox, *"bcdef")
            await first.tries(12)  # it leads on, gets nothing through, and the other could take all of it
            assert second.tried == []
            first.answer = lambda _: 202
            await first.until(6)
            await empty(pool)
            first.answer = lambda _: 0
            await add(pool, outbox, "g")
            (leader,) = await pool.fetch("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")
            await pool.execute("SELECT pg_terminate_backend($1)", leader["pid"])
            first.answer = lambda _: 202
            with anyio.fail_after(DEADLINE_S):
                while "g" not in first.ids + second.ids:
                    await anyio.sleep(0.005)
            await empty(pool)


async def test_a_server_that_ends_its_sessions(pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A relay whose connection is cut says so, gets another, and loses and reorders nothing."""
    outbox, agent = PostgresOutbox(pool), StandIn()
    await add(pool, outbox, "a")
    async with outbox.relay(agent.publish, poll_s=0.01):
        await agent.until(1)
        await empty(pool)
        (leader,) = await pool.fetch("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")
        await pool.execute("SELECT pg_terminate_backend($1)", leader["pid"])
        with anyio.fail_after(DEADLINE_S):
            while "outbox_database_failed" not in caplog.messages:
                await anyio.sleep(0.005)
        await add(pool, outbox, "b", "c")
        await agent.until(3)
        await empty(pool)
    assert agent.ids == ["a", "b", "c"]


async def test_what_is_missing_is_said(pool: Any) -> None:
    """`add` without a transaction, and a relay without a pool."""
    async with pool.acquire() as db:
        with pytest.raises(ConfigError, match="none is open"):
            await PostgresOutbox().add(db, TYPE, source="/shop")
    with pytest.raises(ConfigError, match="no pool"):
        PostgresOutbox().relay(StandIn().publish)
