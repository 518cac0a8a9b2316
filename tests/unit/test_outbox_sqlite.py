"""An outbox in SQLite: one transaction with the data, order per source, refusals, restarts, one relay at a time."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from mesh.client import PublishFailed
from mesh.errors import ConfigError, CrossOrigin, Denied, MeshError, Overloaded, TooLarge
from mesh.inbound import Admitted
from mesh.outbox import SqliteOutbox
from mesh.outbox import relay as relaying
from mesh.outbox import sqlite as module
from mesh.subscription import handling
from tests.contract.outboxes import DEADLINE_S, TYPE, StandIn

pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "shop.db"


@pytest.fixture
def db(file: Path) -> Iterator[sqlite3.Connection]:
    """The application's connection."""
    db = sqlite3.connect(file)
    db.execute("PRAGMA synchronous = OFF")  # this machine does not fail, and hundreds of commits are quick
    db.execute("CREATE TABLE orders (id TEXT)")
    yield db
    db.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a test are short."""
    monkeypatch.setattr(relaying, "BACKOFF_S", (0.01,))
    monkeypatch.setattr(module, "STANDBY_S", 0.01)


def add(db: sqlite3.Connection, outbox: SqliteOutbox, *ids: str, source: str = "/shop") -> None:
    """Place orders, each in a transaction of its own."""
    for id_ in ids:
        with db:
            db.execute("INSERT INTO orders VALUES (?)", (id_,))
            outbox.add(db, TYPE, {"order": id_}, source=source, id=id_)


def left(db: sqlite3.Connection) -> list[str]:
    """Ids that still wait."""
    return [row[0] for row in db.execute("SELECT json_extract(event, '$.id') FROM mesh_outbox ORDER BY seq")]


async def empty(db: sqlite3.Connection) -> None:
    """Wait until nothing does."""
    with anyio.fail_after(DEADLINE_S):
        while left(db):
            await anyio.sleep(0.005)


async def test_events_are_posted_in_order_and_deleted(file: Path, db: sqlite3.Connection) -> None:
    """What was committed before the relay began, and what is added while it runs, arrives once and in order."""
    outbox, agent = SqliteOutbox(file), StandIn()
    add(db, outbox, "a", "b", "c")
    async with outbox.relay(agent.publish, poll_s=0.01):
        await agent.until(3)
        add(db, outbox, "d", "e")
        await agent.until(5)
        await empty(db)
    assert agent.tried == agent.ids == ["a", "b", "c", "d", "e"]


async def test_what_is_rolled_back_was_never_there(file: Path, db: sqlite3.Connection) -> None:
    """Data and event are committed together, or neither is."""
    outbox, agent = SqliteOutbox(file), StandIn()
    db.execute("INSERT INTO orders VALUES ('gone')")
    outbox.add(db, TYPE, source="/shop", id="gone")
    db.rollback()
    add(db, outbox, "there")
    async with outbox.relay(agent.publish, poll_s=0.01):
        await agent.until(1)
        await empty(db)
    assert agent.ids == ["there"]
    assert [row[0] for row in db.execute("SELECT id FROM orders")] == ["there"]


async def test_an_event_is_what_publish_would_make(file: Path, db: sqlite3.Connection) -> None:
    """All attributes, the time of the transaction, and the event being handled as its cause."""
    outbox, agent = SqliteOutbox(file), StandIn()
    cause = Admitted(
        {"id": "c-1", "source": "/crm", "correlationid": "case-7"}, "v", "spiffe://m/x", "EV", 1, 1, 1, None
    )
    token = handling.set(cause)
    with db:
        id_ = outbox.add(
            db, TYPE, {"n": 1}, source="/shop", subject="order/1", partitionkey="k", extensions={"tier": "gold"}
        )
        outbox.add(db, TYPE, source="/shop", id="timed", time="2026-01-31T12:00:00Z")
    handling.reset(token)
    async with outbox.relay(agent.publish, poll_s=0.01):
        await agent.until(2)
    first, timed = agent.taken
    assert first.pop("time").endswith("Z")
    assert first == {
        "specversion": "1.0", "id": id_, "source": "/shop", "type": TYPE, "subject": "order/1", "partitionkey": "k",
        "data": {"n": 1}, "tier": "gold", "correlationid": "case-7", "causationid": "c-1",
    }  # fmt: skip
    assert timed["time"] == "2026-01-31T12:00:00Z"


async def test_a_source_that_has_to_wait_keeps_its_order_and_holds_up_no_other(
    file: Path, db: sqlite3.Connection
) -> None:
    """While the agent does not take one source's events, others go on; later they come in their order."""
    away = True
    agent = StandIn(lambda fields: 0 if fields["source"] == "/slow" and away else 202)
    outbox = SqliteOutbox(file)
    add(db, outbox, *(f"slow-{n}" for n in range(300)), source="/slow")  # more than a round takes
    add(db, outbox, "a", "b", source="/quick")
    async with outbox.relay(agent.publish, poll_s=0.01):
        await agent.until(2)
        assert agent.ids == ["a", "b"]
        assert set(agent.tried) == {"slow-0", "a", "b"}
        away = False
        await agent.until(302)
        await empty(db)
    assert agent.ids[2:] == [f"slow-{n}" for n in range(300)]


@pytest.mark.parametrize("status", [0, 401, 404, 408, 429, 500, 503])
async def test_a_fault_on_the_way_is_tried_again(file: Path, db: sqlite3.Connection, status: int) -> None:
    """Nothing is set aside because the agent is away, full, slow, or does not know our token."""
    agent = StandIn(lambda _: status if len(agent.tried) < 3 else 202)
    outbox = SqliteOutbox(file)
    add(db, outbox, "a")
    async with outbox.relay(agent.publish, poll_s=0.01):
        await agent.until(1)
        await empty(db)
    assert agent.tried == ["a", "a", "a"]
    assert outbox.refused(db) == []


@pytest.mark.parametrize("status", [400, 403, 413, 422])
async def test_a_refused_event_is_set_aside_and_the_others_go_on(
    file: Path, db: sqlite3.Connection, status: int
) -> None:
    """It is kept with the problem, tried once, and comes again after the others where somebody says so."""
    poisonous = True
    agent = StandIn(lambda fields: status if fields["id"] == "bad" and poisonous else 202)
    outbox = SqliteOutbox(file)
    add(db, outbox, "a", "bad", "b")
    counted = relaying.REFUSED.value(code="denied")
    async with outbox.relay(agent.publish, poll_s=0.01):
        await agent.until(2)
        add(db, outbox, "c")
        await agent.until(3)
        (aside,) = outbox.refused(db)
        poisonous = False
        with db:
            assert outbox.again(db, aside.seq)
        await agent.until(4)
        await empty(db)
    assert agent.ids == ["a", "b", "c", "bad"]
    assert agent.tried.count("bad") == 2
    assert (aside.id, aside.type, aside.source) == ("bad", TYPE, "/shop")
    assert aside.problem == {"code": "denied", "rule": "no-hr", "detail": "policy refuses"}
    assert relaying.REFUSED.value(code="denied") == counted + 1


@pytest.mark.parametrize(
    ("error", "aside"),
    [
        (Denied("policy refuses", rule="no-hr"), {"code": "denied", "rule": "no-hr", "message": "policy refuses"}),
        (TooLarge("300 bytes, limit 200", limit=200), {"code": "too-large", "message": "300 bytes, limit 200"}),
        (Overloaded("no room"), None),
        (CrossOrigin("a browser"), None),
        (PublishFailed(403, {"code": "cross-origin"}), None),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
async def test_an_embedded_agent_refuses_by_raising(
    file: Path, db: sqlite3.Connection, error: MeshError, aside: dict[str, str] | None
) -> None:
    """What `Agent.publish` raises is told apart as the door's answers are."""
    tried = []

    async def publish(fields: Mapping[str, Any]) -> None:
        tried.append(fields["id"])
        if len(tried) == 1:
            raise error

    outbox = SqliteOutbox(file)
    add(db, outbox, "a", "b")
    async with outbox.relay(publish, poll_s=0.01):
        with anyio.fail_after(DEADLINE_S):
            while "b" not in tried or left(db) != (["a"] if aside else []):
                await anyio.sleep(0.005)
    assert tried == (["a", "b"] if aside else ["a", "a", "b"])
    assert [refused.problem for refused in outbox.refused(db)] == ([aside] if aside else [])


async def test_a_refused_event_can_be_dropped(file: Path, db: sqlite3.Connection) -> None:
    """`drop` deletes what was refused and nothing else."""
    outbox, agent = SqliteOutbox(file), StandIn(lambda _: 403)
    add(db, outbox, "bad")
    async with outbox.relay(agent.publish, poll_s=0.01):
        with anyio.fail_after(DEADLINE_S):
            while not (aside := outbox.refused(db)):
                await anyio.sleep(0.005)
    add(db, outbox, "waiting")
    with db:
        assert [outbox.drop(db, aside[0].seq + number) for number in range(2)] == [True, False]
    assert left(db) == ["waiting"]


async def test_of_two_relays_one_works(file: Path, db: sqlite3.Connection) -> None:
    """The second begins when the first ends, and posts nothing before."""
    outbox, first, second = SqliteOutbox(file), StandIn(), StandIn()
    async with anyio.create_task_group() as group, outbox.relay(first.publish, poll_s=0.01):
        add(db, outbox, "a")
        await first.until(1)

        async def stand_by(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
            async with SqliteOutbox(file).relay(second.publish, poll_s=0.01):
                task_status.started()
                await second.until(1)

        await group.start(stand_by)
        first.answer = lambda _: 0
        add(db, outbox, *"bcdef")
        await first.tries(12)  # it leads on, gets nothing through, and the other could take all of it
        assert second.tried == []
        first.answer = lambda _: 202
        await first.until(6)
        await empty(db)
        first.answer = lambda _: 0
        add(db, outbox, "g")
        with anyio.fail_after(DEADLINE_S):
            while first.tried[-1] != "g":
                await anyio.sleep(0.005)
        group.start_soon(second.until, 1)
        # leaving the block ends the first
    await empty(db)
    assert second.ids == ["g"]


KILLED = """
import os, signal, sqlite3, sys
import anyio
from mesh.outbox import SqliteOutbox

async def publish(fields):
    print(fields["id"], flush=True)
    if fields["id"] == "3":
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with SqliteOutbox(sys.argv[1]).relay(publish):
        await anyio.sleep_forever()

anyio.run(main)
"""


async def test_killed_while_it_posts(file: Path, db: sqlite3.Connection) -> None:
    """A relay killed after the agent took an event posts it again under the same id, and loses none."""
    outbox, agent = SqliteOutbox(file), StandIn()
    add(db, outbox, *"12345")
    killed = subprocess.run([sys.executable, "-c", KILLED, file], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert killed.stdout.split() == [b"1", b"2", b"3"]
    async with outbox.relay(agent.publish, poll_s=0.01):
        with anyio.fail_after(DEADLINE_S):
            while "5" not in agent.ids:
                await anyio.sleep(0.005)
        await empty(db)
    assert agent.ids in (["1", "2", "3", "4", "5"], ["4", "5"])


async def test_a_database_that_cannot_be_used_for_a_while(
    file: Path, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While somebody holds the database longer than the relay waits, it says so and goes on afterwards."""
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0.01)
    outbox, agent = SqliteOutbox(file), StandIn()
    add(db, outbox, "a")
    db.execute("BEGIN EXCLUSIVE")
    async with outbox.relay(agent.publish, poll_s=0.01):
        with anyio.fail_after(DEADLINE_S):
            while "outbox_database_failed" not in caplog.messages:
                await anyio.sleep(0.005)
        db.rollback()
        await agent.until(1)
        await empty(db)
    assert agent.ids == ["a"]


async def test_a_mistake_of_ours_ends_the_block(file: Path, db: sqlite3.Connection) -> None:
    """What is no fault of agent or database is not tried for ever: it reaches the application."""
    outbox = SqliteOutbox(file)
    add(db, outbox, "a")

    async def publish(fields: object) -> None:
        raise TypeError

    with pytest.raises(ExceptionGroup) as raised, anyio.fail_after(DEADLINE_S):
        async with outbox.relay(publish, poll_s=0.01):
            await anyio.sleep_forever()
    assert raised.group_contains(TypeError)
    assert left(db) == ["a"]


async def test_what_a_block_raises_passes_as_it_is(file: Path) -> None:
    """An exception inside the block reaches the caller unwrapped."""
    with pytest.raises(ZeroDivisionError):
        async with SqliteOutbox(file).relay(StandIn().publish):
            _ = 1 / 0


def test_what_cannot_be_sent_fails_at_once(file: Path, db: sqlite3.Connection) -> None:
    """Data that is no JSON is refused in the transaction, where the application can still do something."""
    with pytest.raises(TypeError):
        SqliteOutbox(file).add(db, TYPE, {"n": object()}, source="/shop")
    assert not db.in_transaction


def test_an_event_without_a_transaction_is_refused(file: Path, db: sqlite3.Connection) -> None:
    """A connection that commits each statement would send the event without its data."""
    autocommit = sqlite3.connect(file, isolation_level=None)
    outbox = SqliteOutbox(file)
    with pytest.raises(ConfigError, match="commits every statement"):
        outbox.add(autocommit, TYPE, source="/shop")
    autocommit.execute("BEGIN")
    outbox.add(autocommit, TYPE, source="/shop", id="a")
    autocommit.execute("COMMIT")
    autocommit.close()
    assert left(db) == ["a"]
