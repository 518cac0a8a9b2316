"""Effects once in PostgreSQL: a real server, two replicas at once, transactions that end in every way."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import asyncpg
import pytest

from mesh.errors import ConfigError
from mesh.inbound import Admitted
from mesh.inbox import PostgresInbox
from mesh.inbox.notes import PRUNE_EVERY
from tests.contract.postgres import Postgres, running_postgres

DEADLINE_S = 60

pytestmark = pytest.mark.anyio


def admitted(id_: str, *, source: str = "/crm", tenant: str = "acme", replay: str = "", redrive: str = "") -> Admitted:
    """An event as a handler gets it."""
    fields = {"id": id_, "source": source, "tenant": tenant, "type": "crm.contact.created.v1", "data": {}}
    return Admitted(fields, "service", "spiffe://m/ns/acme/sa/crm", "EV", 1, 1, 1, None, replay=replay, redrive=redrive)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """One server for the tests of this file."""
    with running_postgres() as server:
        yield server


@pytest.fixture
async def pool(server: Postgres) -> AsyncIterator[Any]:
    """Connections to a schema of this test's own, with a table of effects."""
    async with asyncpg.create_pool(server.dsn, min_size=1, max_size=8) as pool:
        await pool.execute("DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public; CREATE TABLE effects (id text)")
        yield pool


async def effects(pool: Any) -> list[str]:
    """What was done, sorted."""
    return [row["id"] for row in await pool.fetch("SELECT id FROM effects ORDER BY id")]


async def write(db: Any, event: Admitted) -> None:
    """A handler."""
    await db.execute("INSERT INTO effects VALUES ($1)", event.id)


async def test_an_event_that_comes_again_has_no_second_effect(pool: Any) -> None:
    """What was committed and not acked is only acked when it comes again, here or at another replica."""
    for replica in (PostgresInbox("contacts", pool), PostgresInbox("contacts", pool)):
        handle = replica.once(write)
        for id_ in ("a", "b", "a"):
            await handle(admitted(id_))
    assert await effects(pool) == ["a", "b"]


async def test_what_raises_leaves_neither_effect_nor_note(pool: Any) -> None:
    """A handler that fails after its write is rolled back whole, the table made on demand too, and may try again."""
    inbox = PostgresInbox("contacts", pool)

    @inbox.once
    async def fails(db: Any, event: Admitted) -> None:
        await write(db, event)
        raise LookupError

    for _ in range(2):
        with pytest.raises(LookupError):
            await fails(admitted("a"))
    assert await effects(pool) == []
    await inbox.once(write)(admitted("a"))
    assert await effects(pool) == ["a"]


async def test_a_table_lost_with_its_transaction_is_made_again(pool: Any) -> None:
    """After the transaction that made the table was rolled back, one try finds out, and the one after succeeds."""
    inbox = PostgresInbox("contacts", pool)
    async with pool.acquire() as db:
        transaction = db.transaction()
        await transaction.start()
        assert [await inbox.first(db, admitted(id_)) for id_ in "ab"] == [True, True]
        await transaction.rollback()
    with pytest.raises(asyncpg.UndefinedTableError):
        await inbox.once(write)(admitted("a"))
    await inbox.once(write)(admitted("a"))
    assert await effects(pool) == ["a"]


@pytest.mark.parametrize("commits", [True, False], ids=["first-commits", "first-rolls-back"])
async def test_of_two_replicas_the_second_waits_for_the_first(pool: Any, *, commits: bool) -> None:
    """While one transaction has the event, another waits; it has nothing to do if that commits, else all of it."""
    await PostgresInbox("contacts", pool).once(write)(admitted("before"))
    first, second = PostgresInbox("contacts"), PostgresInbox("contacts", pool)
    async with pool.acquire() as db:
        transaction = db.transaction()
        await transaction.start()
        assert await first.first(db, admitted("a"))
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(second.once(write), admitted("a"))
                while not await pool.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                    await anyio.sleep(0.01)
                await (transaction.commit() if commits else transaction.rollback())
    assert await effects(pool) == (["before"] if commits else ["a", "before"])


async def test_many_replicas_race_for_the_same_events(pool: Any) -> None:
    """Eight replicas that begin together with the same events, the table not made yet, write each once."""
    ids = [f"{number:02}" for number in range(20)]
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            for _ in range(8):
                handle = PostgresInbox("contacts", pool).once(write)
                for id_ in ids:
                    group.start_soon(handle, admitted(id_))
    assert await effects(pool) == ids


async def test_what_counts_as_the_same_event(pool: Any) -> None:
    """Source, id, tenant, subscription and replay run together; a redrive is the same event once more."""
    await PostgresInbox("contacts", pool).once(write)(admitted("a"))
    others = [
        ("contacts", admitted("a", source="/billing")),
        ("contacts", admitted("a", tenant="other")),
        ("contacts", admitted("a", replay="run-1")),
        ("contacts", admitted("a", replay="run-2")),
        ("invoices", admitted("a")),
    ]
    same = [("contacts", admitted("a", redrive="run-1")), ("contacts", admitted("a", replay="run-1"))]
    for consumer, event in others + same:
        await PostgresInbox(consumer, pool).once(write)(event)
    assert await effects(pool) == ["a"] * (1 + len(others))


async def test_old_notes_are_forgotten(pool: Any) -> None:
    """A note older than the inbox keeps them goes by and by; younger ones stay."""
    now = 1_000_000.0
    inbox = PostgresInbox("contacts", pool, keep_s=60, now_s=lambda: now)
    handle = inbox.once(write)
    await handle(admitted("old"))
    now += 61
    for number in range(PRUNE_EVERY):
        async with pool.acquire() as db, db.transaction():
            await inbox.first(db, admitted(f"young-{number}"))
    found = {row["id"] for row in await pool.fetch("SELECT id FROM mesh_inbox")}
    assert "old" not in found
    assert len(found) == PRUNE_EVERY


async def test_without_a_transaction_nothing_is_noted(pool: Any) -> None:
    """`first` outside of a transaction, and `once` without a pool, say what is missing."""
    async with pool.acquire() as db:
        with pytest.raises(ConfigError, match="none is open"):
            await PostgresInbox("contacts").first(db, admitted("a"))
    with pytest.raises(ConfigError, match="no pool"):
        PostgresInbox("contacts").once(functools.partial(write))
