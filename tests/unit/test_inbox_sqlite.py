"""Effects once in SQLite: what comes again, what fails, who races, and who is killed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from mesh.errors import ConfigError
from mesh.inbound import Admitted
from mesh.inbox import SqliteInbox
from mesh.inbox.notes import PRUNE_EVERY

DEADLINE_S = 60

pytestmark = pytest.mark.anyio


def admitted(id_: str, *, source: str = "/crm", tenant: str = "acme", replay: str = "", redrive: str = "") -> Admitted:
    """An event as a handler gets it."""
    fields = {"id": id_, "source": source, "tenant": tenant, "type": "crm.contact.created.v1", "data": {}}
    return Admitted(fields, "service", "spiffe://m/ns/acme/sa/crm", "EV", 1, 1, 1, None, replay=replay, redrive=redrive)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database with a table of effects."""
    file = tmp_path / "desk.db"
    db = sqlite3.connect(file)
    db.execute("CREATE TABLE effects (id TEXT)")
    db.close()
    return file


def effects(file: Path) -> list[str]:
    """What was done, sorted."""
    db = sqlite3.connect(file)
    found = [row[0] for row in db.execute("SELECT id FROM effects ORDER BY id")]
    db.close()
    return found


def write(db: sqlite3.Connection, event: Admitted) -> None:
    """A handler."""
    db.execute("INSERT INTO effects VALUES (?)", (event.id,))


async def test_an_event_that_comes_again_has_no_second_effect(file: Path) -> None:
    """What was committed and not acked is only acked when it comes again, here or at another replica."""
    for _ in range(2):
        with SqliteInbox("contacts", file) as inbox:
            handle = inbox.once(write)
            for id_ in ("a", "b", "a"):
                await handle(admitted(id_))
    assert effects(file) == ["a", "b"]


async def test_what_raises_leaves_neither_effect_nor_note(file: Path) -> None:
    """A handler that fails after its write is rolled back whole, and the event may be tried again."""
    with SqliteInbox("contacts", file) as inbox:

        @inbox.once
        def fails(db: sqlite3.Connection, event: Admitted) -> None:
            write(db, event)
            raise LookupError

        for _ in range(2):
            with pytest.raises(LookupError):
                await fails(admitted("a"))
        assert effects(file) == []
        await inbox.once(write)(admitted("a"))
    assert effects(file) == ["a"]


async def test_replicas_race_for_the_same_events(file: Path) -> None:
    """Four replicas that begin together with the same events, the table not made yet, write each once."""
    inboxes = [SqliteInbox("contacts", file) for _ in range(4)]
    ids = [f"{number:02}" for number in range(10)]
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            for inbox in inboxes:
                handle = inbox.once(write)
                for id_ in ids:
                    group.start_soon(handle, admitted(id_))
    assert effects(file) == ids
    for inbox in inboxes:
        inbox.close()


async def test_a_writer_ahead_is_waited_for(file: Path) -> None:
    """Who finds the database locked waits, and then sees the note that the other wrote; in write-ahead mode too."""
    other = sqlite3.connect(file)
    other.execute("PRAGMA journal_mode = WAL")
    with other:
        SqliteInbox("contacts").first(other, admitted("before"))
    other.execute("BEGIN IMMEDIATE")
    assert SqliteInbox("contacts").first(other, admitted("a"))
    write(other, admitted("a"))
    with SqliteInbox("contacts", file) as inbox, anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(inbox.once(write), admitted("a"))
            while not inbox._one.borrowed_tokens:
                await anyio.sleep(0.005)
            await anyio.sleep(0.05)  # until it waits for the lock; where it does not yet, this proves less
            other.commit()
    other.close()
    assert effects(file) == ["a"]


async def test_the_loop_goes_on_while_a_handler_works(file: Path) -> None:
    """A handler that waits for the database, or works long, holds up nothing else."""
    with SqliteInbox("contacts", file) as inbox:
        seen = threading.Event()

        @inbox.once
        def waits(db: sqlite3.Connection, event: Admitted) -> None:
            assert seen.wait(DEADLINE_S)
            write(db, event)

        async with anyio.create_task_group() as group:
            group.start_soon(waits, admitted("a"))
            await anyio.sleep(0)
            seen.set()  # set by this loop while the handler waits: else it never ends
    assert effects(file) == ["a"]


@pytest.mark.parametrize(
    "end",
    [
        lambda db: db.commit(),
        lambda db: db.rollback(),
        lambda db: db.executescript("INSERT INTO effects VALUES ('script')"),
        lambda db: db.execute("COMMIT"),
        lambda db: db.__exit__(None, None, None),
    ],
    ids=["commit", "rollback", "executescript", "COMMIT", "with"],
)
async def test_a_handler_cannot_end_the_transaction(file: Path, end: Callable[[sqlite3.Connection], object]) -> None:
    """Whatever would keep effects without the note, or the other way round, raises and leaves nothing."""
    with SqliteInbox("contacts", file) as inbox:

        @inbox.once
        def handle(db: sqlite3.Connection, event: Admitted) -> None:
            write(db, event)
            try:
                end(db)
            except sqlite3.DatabaseError:
                return  # a handler that looks away does not get through either

        with pytest.raises(ConfigError, match="end its inbox's transaction"):
            await handle(admitted("a"))
        assert effects(file) == []
        await inbox.once(write)(admitted("a"))
    assert effects(file) == ["a"]


async def test_a_savepoint_is_fine(file: Path) -> None:
    """A part of the effects may be rolled back."""
    with SqliteInbox("contacts", file) as inbox:

        @inbox.once
        def handle(db: sqlite3.Connection, event: Admitted) -> None:
            write(db, event)
            db.execute("SAVEPOINT part")
            write(db, event)
            db.execute("ROLLBACK TO part")

        await handle(admitted("a"))
    assert effects(file) == ["a"]


def test_first_in_a_transaction_of_ones_own(file: Path) -> None:
    """`first` opens a transaction where there is none, and ends as the caller ends it."""
    inbox = SqliteInbox("contacts")
    db = sqlite3.connect(file)
    for id_, error in (("a", None), ("a", None), ("b", LookupError), ("b", None)):
        try:
            with db:
                if inbox.first(db, admitted(id_)):
                    write(db, admitted(id_))
                    if error is not None:
                        raise error
        except LookupError:
            pass
    assert not db.in_transaction
    db.close()
    assert effects(file) == ["a", "b"]


def test_what_counts_as_the_same_event(file: Path) -> None:
    """Source, id, tenant, subscription and replay run together; a redrive is the same event once more."""
    db = sqlite3.connect(file)
    others = [
        ("contacts", admitted("a")),
        ("contacts", admitted("a", source="/billing")),
        ("contacts", admitted("a", tenant="other")),
        ("contacts", admitted("a", replay="run-1")),
        ("contacts", admitted("a", replay="run-2")),
        ("invoices", admitted("a")),
    ]
    assert all(SqliteInbox(consumer).first(db, event) for consumer, event in others)
    again = [*others, ("contacts", admitted("a", redrive="run-1"))]
    assert not any(SqliteInbox(consumer).first(db, event) for consumer, event in again)
    db.close()


def test_old_notes_are_forgotten(file: Path) -> None:
    """A note older than the inbox keeps them goes by and by; younger ones stay."""
    now = 1_000_000.0
    inbox = SqliteInbox("contacts", keep_s=60, now_s=lambda: now)
    db = sqlite3.connect(file)
    inbox.first(db, admitted("old"))
    now += 61
    for number in range(PRUNE_EVERY):
        inbox.first(db, admitted(f"young-{number}"))
    found = {row[0] for row in db.execute("SELECT id FROM mesh_inbox")}
    db.close()
    assert "old" not in found
    assert len(found) == PRUNE_EVERY


async def test_a_connection_of_one_thread_is_refused(file: Path) -> None:
    """A function that opens its connection for one thread alone is told so."""
    opened = sqlite3.connect(file)
    with SqliteInbox("contacts", lambda: opened) as inbox, pytest.raises(ConfigError, match="belongs to one thread"):
        await inbox.once(write)(admitted("a"))


def test_an_inbox_without_a_database_says_so() -> None:
    """`once` needs a database to open."""
    with pytest.raises(ConfigError, match="no database"):
        SqliteInbox("contacts").once(write)


KILLED = """
import os, signal, sqlite3, sys
from mesh.inbound import Admitted
from mesh.inbox import SqliteInbox

event = Admitted({"id": "a", "source": "/crm", "tenant": "acme"}, "service", "spiffe://m/x", "EV", 1, 1, 1, None)
db = sqlite3.connect(sys.argv[1])
assert SqliteInbox("contacts").first(db, event)
db.execute("INSERT INTO effects VALUES ('a')")
if sys.argv[2] == "after":
    db.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_killed_around_its_commit(file: Path, moment: str) -> None:
    """A process killed before or after the commit, and then the event again: one effect."""
    killed = subprocess.run([sys.executable, "-c", KILLED, file, moment], check=False)
    assert killed.returncode == -9
    assert effects(file) == (["a"] if moment == "after" else [])
    with SqliteInbox("contacts", file) as inbox:
        await inbox.once(write)(admitted("a"))
    assert effects(file) == ["a"]


def test_a_connection_in_a_transaction_is_refused_at_once(file: Path) -> None:
    """As Python 3.12 opens it with autocommit=False: it is said before the first event, and not of every event."""

    def database() -> sqlite3.Connection:
        opened = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        opened.execute("BEGIN")
        return opened

    with SqliteInbox("contacts", database) as inbox, pytest.raises(ConfigError, match="in a transaction"):
        inbox.once(write)
