"""The spool's file: what is told stays true through kills, full disks, torn logs, and whoever changes a byte."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.spool.database import Database, Row
from agent.spool.record import Copy, Sent
from agent.spool.store import Store
from mesh.errors import Closed, ConfigError, SpoolDamaged, SpoolFull
from tests.conftest import ROOT

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
LAST_FRAME = 4096 + 24  # the mark that ends a commit is in its last frame
SECRET = b"ada@example.org"


def rows(first: int, count: int, *, size: int = 200) -> list[Row]:
    """Copies of one stream, numbered from *first*."""
    return [
        Row(
            n,
            f"EV_local_{n % 2}",
            1000 + n,
            Copy(f"ev.local.clear.s00.crm.x.v{n}", "/crm", f"e-{n}", None, _body(n, size)),
        )
        for n in range(first, first + count)
    ]


def _body(number: int, size: int) -> bytes:
    return (SECRET + b"%d" % number).ljust(size, b".")


def opened(directory: Path, *, max_bytes: int = MIB, read_only: bool = False) -> Database:
    """The spool of a directory."""
    return Database(directory / "spool.db", directory / "spool.key", max_bytes=max_bytes, read_only=read_only)


def ids(directory: Path) -> list[int]:
    """What another process finds there, in order; every row opens."""
    database = opened(directory)
    try:
        database.contents()
        return [row.id for row in database.rows()]
    finally:
        database.close()


def write(directory: Path, *commits: list[Row]) -> None:
    """Each list in a transaction of its own."""
    database = opened(directory)
    try:
        for commit in commits:
            database.begin()
            database.append(commit)
            database.commit()
    finally:
        database.close()


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    """In order, by stream, with how they were sent; deleted ones do not; the numbers go on."""
    kept = rows(1, 6)
    kept[2] = kept[2]._replace(sent=Sent(2, 5000, ("k1", "k2")))
    write(tmp_path, kept)
    database = opened(tmp_path)
    try:
        database.begin()
        database.mark_sent([(4, Sent(0, 7000, ("k3",)))])
        database.delete([1, 6])
        database.commit()
        assert database.read("EV_local_1", 0, 10, MIB) == [kept[2], kept[4]]
        assert database.read("EV_local_0", 2, 10, MIB) == [kept[3]._replace(sent=Sent(0, 7000, ("k3",)))]
        assert [row.id for row in database.read("EV_local_1", 0, 10, 1)] == [3], "at least one, however large"
        contents = database.contents()
        assert contents.last_id == 6
        assert {name: held.copies for name, held in contents.streams.items()} == {"EV_local_0": 2, "EV_local_1": 2}
    finally:
        database.close()


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    """Files are 0600, the key has 32 bytes, and no value of an event is in any of them, log included."""
    database = opened(tmp_path)
    try:
        database.begin()
        database.append(rows(1, 20))
        database.commit()
        files = sorted(tmp_path.iterdir())
        assert [file.name for file in files] == ["spool.db", "spool.db-wal", "spool.key"]
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
        assert not any(SECRET in file.read_bytes() or b"e-1" in file.read_bytes() for file in files)
    finally:
        database.close()


def test_one_process_has_it(tmp_path: Path) -> None:
    """While somebody has it open nobody else may, not even to look; after that they may."""
    database = opened(tmp_path)
    for read_only in (False, True):
        with pytest.raises(ConfigError, match="another process"):
            opened(tmp_path, read_only=read_only)
    database.close()
    opened(tmp_path, read_only=True).close()


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """Opened to look, also at what a killed process left in its log, every file stays as it is."""
    database = opened(tmp_path)
    database.begin()
    database.append(rows(1, 3))
    database.commit()
    left = {name: (tmp_path / name).read_bytes() for name in ("spool.db", "spool.db-wal", "spool.key")}
    database.close()
    for name, content in left.items():
        (tmp_path / name).write_bytes(content)
    for _ in range(2):
        looked = opened(tmp_path, read_only=True)
        assert [row.id for row in looked.rows()] == [1, 2, 3]
        looked.close()
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == left


# --- who changes it --------------------------------------------------------------------------------------------------


def _sql(directory: Path, statement: str) -> None:
    with sqlite3.connect(directory / "spool.db") as connection:
        connection.execute(statement)
    connection.close()


CHANGES = {
    "bytes of a row": (
        "UPDATE copies SET sealed = CAST(substr(sealed, 1, 40) || x'0000' || substr(sealed, 43) AS BLOB) WHERE id = 3"
    ),
    "a row in another's place": "UPDATE copies SET sealed = (SELECT sealed FROM copies WHERE id = 4) WHERE id = 3",
    "a row in another stream": "UPDATE copies SET stream = 'EV_local_7' WHERE id = 3",
    "another time": "UPDATE copies SET at_ms = 1 WHERE id = 3",
    "another order": "UPDATE copies SET id = 99 WHERE id = 3",
    "sent as another": "UPDATE sent SET id = 3 WHERE id = 2",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_row_is_refused_loudly(tmp_path: Path, name: str) -> None:
    """Nothing that was not written so is sent, and nothing of it is dropped: the start ends, and says what to do."""
    kept = rows(1, 5)
    kept[1] = kept[1]._replace(sent=Sent(1, 1, ("k",)))
    write(tmp_path, kept)
    _sql(tmp_path, CHANGES[name])
    database = opened(tmp_path)
    try:
        with pytest.raises(SpoolDamaged) as refused:
            database.contents()
        assert refused.value.details["damaged"] == 1
        assert "spool export" in refused.value.next
        damaged: list[SpoolDamaged] = []
        assert len(list(database.rows(damaged))) == 4, "the others can still be read"
    finally:
        database.close()


def test_another_key_is_refused(tmp_path: Path) -> None:
    """With another key, or none, nothing opens."""
    write(tmp_path, rows(1, 1))
    key = tmp_path / "spool.key"
    right = key.read_text()
    key.write_text("00" * 32 + "\n")
    with pytest.raises(SpoolDamaged, match="not the key"):
        opened(tmp_path)
    key.unlink()
    with pytest.raises(SpoolDamaged, match="missing"):
        opened(tmp_path)
    assert not key.exists(), "no other key is made for a spool that has one"
    key.write_text(right)
    assert ids(tmp_path) == [1]


def test_two_first_starts_make_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes second uses the key that is there: the first one's rows stay readable."""
    theirs, token_hex = "ab" * 32 + "\n", secrets.token_hex

    def between(count: int) -> str:
        (tmp_path / "spool.key").write_text(theirs)
        (tmp_path / "spool.key").chmod(0o600)
        return token_hex(count)

    monkeypatch.setattr(secrets, "token_hex", between)
    opened(tmp_path).close()
    assert (tmp_path / "spool.key").read_text() == theirs
    assert sorted(file.name for file in tmp_path.iterdir()) == ["spool.db", "spool.key"]


def test_a_key_that_is_another_user_s_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misconfiguration, not a traceback."""
    opened(tmp_path).close()
    open_ = os.open

    def refused(path: Any, *arguments: Any, **named: Any) -> int:
        if path == tmp_path / "spool.key":
            raise PermissionError(13, "Permission denied")
        return open_(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        opened(tmp_path)


@pytest.mark.parametrize("emptied", [False, True])
@pytest.mark.parametrize("with_key", [False, True])
def test_a_log_without_its_file_is_refused(tmp_path: Path, *, emptied: bool, with_key: bool) -> None:
    """A file that is gone or empty beside a log of synced commits: nothing begins anew, and the log stays."""
    database = opened(tmp_path)
    database.begin()
    database.append(rows(1, 3))
    database.commit()
    log = (tmp_path / "spool.db-wal").read_bytes()
    database.close()
    (tmp_path / "spool.db-wal").write_bytes(log)
    (tmp_path / "spool.db").write_bytes(b"") if emptied else (tmp_path / "spool.db").unlink()
    if not with_key:
        (tmp_path / "spool.key").unlink()
    for read_only in (False, True):
        with pytest.raises(SpoolDamaged, match="missing or empty") as refused:
            opened(tmp_path, read_only=read_only)
        assert "together" in refused.value.next
        assert (tmp_path / "spool.db-wal").read_bytes() == log


def test_refused_copies_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it the oldest go, and whoever put more aside is told which."""
    monkeypatch.setattr("agent.spool.database.REFUSED_BYTES", 3000)
    database = opened(tmp_path)
    try:
        database.begin()
        database.append(rows(1, 12))
        assert database.refuse(rows(1, 6), "no-reader", 1) == []
        gone = database.refuse(rows(7, 6), "no-reader", 1)
        database.commit()
        kept = [row.id for row in database.refused()]
        assert [row.id for row in gone] + kept == list(range(1, 13))
        assert 6 <= len(kept) <= 11
        assert gone[0].refused.copy == rows(1, 1)[0].copy
    finally:
        database.close()


def test_another_file_is_refused(tmp_path: Path) -> None:
    """What is no spool is left as it is."""
    write(tmp_path, rows(1, 1))
    (tmp_path / "spool.db").write_bytes(b"hello" * 1000)
    with pytest.raises(SpoolDamaged):
        opened(tmp_path)
    assert (tmp_path / "spool.db").read_bytes() == b"hello" * 1000


# --- torn logs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[int]]]:
    """A spool whose 12 commits of 3 rows are all in the log, and how long the log was after each."""
    directory = tmp_path_factory.mktemp("log")
    database = opened(directory)
    lengths = []
    for n in range(12):
        database.begin()
        database.append(rows(1 + 3 * n, 3, size=2000))
        database.commit()
        lengths.append((directory / "spool.db-wal").stat().st_size)
    yield directory, lengths
    database.close()


def _copy(source: Path, target: Path, log: bytes) -> None:
    target.mkdir()
    for name in ("spool.db", "spool.key"):
        (target / name).write_bytes((source / name).read_bytes())
    (target / "spool.db-wal").write_bytes(log)


@pytest.mark.parametrize("seed", range(12))
def test_a_commit_that_was_cut_short_is_undone_whole(tmp_path: Path, log: tuple[Path, list[int]], seed: int) -> None:
    """Wherever the log ends: each commit before is there, the one that was being written is not, in no part."""
    directory, lengths = log
    chance = random.Random(seed)
    end = chance.randrange(lengths[0], lengths[-1])
    _copy(directory, tmp_path / "torn", (directory / "spool.db-wal").read_bytes()[:end])
    whole = sum(length <= end for length in lengths)
    assert ids(tmp_path / "torn") == list(range(1, 1 + 3 * whole))


@pytest.mark.parametrize("seed", range(24))
def test_a_damaged_log_is_refused_or_was_the_last_commit(
    tmp_path: Path, log: tuple[Path, list[int]], seed: int
) -> None:
    """A byte that changed in a synced commit ends the start. In the very last one it looks like one cut short."""
    directory, lengths = log
    chance = random.Random(seed)
    content = bytearray((directory / "spool.db-wal").read_bytes())
    at = chance.randrange(lengths[-1]) if seed % 4 else chance.randrange(lengths[-2], lengths[-1])
    content[at] ^= 1 << chance.randrange(8)
    _copy(directory, tmp_path / "torn", bytes(content))
    before = list(range(1, 1 + 3 * 11))
    try:
        found = ids(tmp_path / "torn")
    except SpoolDamaged:
        for _ in range(2):  # and so it stays, however often somebody tries
            with pytest.raises(SpoolDamaged):
                ids(tmp_path / "torn")
    else:
        assert found in (before, [*before, 34, 35, 36]) or at >= lengths[-2] - LAST_FRAME
        assert len(found) == 36 or at >= lengths[-2] - LAST_FRAME, "a synced commit was dropped silently"


def test_what_is_left_of_a_longer_commit_is_no_damage(tmp_path: Path) -> None:
    """One that was cut short is written over by the next; cut short too, it leaves its end and the other's middle."""
    live, torn = tmp_path / "live", tmp_path / "torn"
    for directory in (live, torn):
        directory.mkdir()
    database = opened(live)
    for commit in (rows(1, 3), rows(4, 60, size=3000)):
        database.begin()
        database.append(commit)
        database.commit()
    _copy(live, tmp_path / "cut", (live / "spool.db-wal").read_bytes()[: -3 * LAST_FRAME])
    database.close()
    database = opened(tmp_path / "cut")
    log = tmp_path / "cut" / "spool.db-wal"
    before = log.read_bytes()
    database.begin()
    database.append(rows(100, 1, size=2000))
    database.commit()
    content = bytearray(log.read_bytes())
    changed = [
        at for at in range(32, len(content), LAST_FRAME) if content[at:][:LAST_FRAME] != before[at:][:LAST_FRAME]
    ]
    assert len(changed) > 1
    content[changed[0] : changed[0] + LAST_FRAME] = before[changed[0] : changed[0] + LAST_FRAME]
    torn.rmdir()
    _copy(tmp_path / "cut", torn, bytes(content))
    database.close()
    assert ids(torn) == [1, 2, 3]


# --- the thread ------------------------------------------------------------------------------------------------------


class _Gated(Database):
    """Counts its commits; the first one takes as long as the test says."""

    def gated(self) -> None:
        """From now on."""
        self.commits = 0
        self.begun, self.gate = threading.Event(), threading.Event()

    def commit(self) -> None:
        """As the other."""
        super().commit()
        if hasattr(self, "gate"):
            self.commits += 1
            self.begun.set()
            self.gate.wait(20)


def _store(database: Database) -> Store:
    return Store(database, asyncio.get_running_loop())


async def told(count: int, told_: list[Any]) -> list[Any]:
    """Once so many calls were told what came of them."""
    async with asyncio.timeout(60):
        while len(told_) < count:
            await asyncio.sleep(0.005)
    return told_


async def test_one_sync_for_all_that_came_meanwhile(tmp_path: Path) -> None:
    """Whatever queues during a commit is committed together, told in the order of the calls, and read in order."""
    database = _Gated(tmp_path / "spool.db", tmp_path / "spool.key", max_bytes=MIB)
    database.gated()
    store = _store(database)
    order: list[Any] = []
    store.append(rows(1, 1), lambda error: order.append((0, error)))
    assert await asyncio.to_thread(database.begun.wait, 20)
    for n in range(1, 50):
        store.append(rows(1 + n, 1), lambda error, n=n: order.append((n, error)))  # type: ignore[misc]
    read = store.read("EV_local_0", 0, limit=100, max_bytes=MIB)
    assert order == []
    database.gate.set()
    assert len(await read) == 25
    assert order == [(n, None) for n in range(50)]
    assert database.commits == 2
    store.close()
    assert ids(tmp_path) == list(range(1, 51))
    store.append(rows(99, 1), order.append)
    assert isinstance((await told(51, order))[-1], Closed)


async def test_a_call_that_fails_fails_alone(tmp_path: Path) -> None:
    """Of calls that are committed together, the one that finds no room is told so, and the others are kept."""
    database = _Gated(tmp_path / "spool.db", tmp_path / "spool.key", max_bytes=MIB)
    database.gated()
    store = _store(database)
    order: list[Any] = []
    store.append(rows(1, 2), order.append)
    assert await asyncio.to_thread(database.begun.wait, 20)
    store.append(rows(10, 1), order.append)
    store.append(rows(100, 400, size=256 * 1024), order.append)
    store.append(rows(20, 1), order.append)
    store.delete([1], order.append)
    database.gate.set()
    await told(5, order)
    assert isinstance(order.pop(2), SpoolFull)
    assert order == [None] * 4
    store.close()
    assert ids(tmp_path) == [2, 10, 20]


async def test_full_is_said_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    """Beyond its pages a call fails whole; others that came with it do not; deleting makes room."""
    store = _store(opened(tmp_path, max_bytes=MIB))
    order: list[Any] = []
    big = 256 * 1024
    for n in range(100):
        store.append(rows(1 + n, 1, size=big), order.append)
    store.append(rows(200, 400, size=big), order.append)  # more than there is: none of them
    await told(101, order)
    full = [error for error in order if error is not None]
    assert full
    assert all(isinstance(error, SpoolFull) for error in full)
    assert isinstance(order[-1], SpoolFull)
    assert store.broken is None
    kept = [n + 1 for n in range(100) if order[n] is None]
    order.clear()
    store.delete(kept[:10], order.append)
    store.append(rows(900, 1, size=big), order.append)
    assert await told(2, order) == [None, None]
    store.close()
    assert ids(tmp_path) == [*kept[10:], 900]


# --- processes -------------------------------------------------------------------------------------------------------

CHILD = """
import asyncio, resource, sys
from pathlib import Path
from agent.spool.database import Database, Row
from agent.spool.record import Copy
from agent.spool.store import Store

async def main():
    directory, limit = Path(sys.argv[1]), int(sys.argv[2])
    database = Database(directory / "spool.db", directory / "spool.key", max_bytes=1 << 30)
    n = database.contents().last_id + 1
    store = Store(database, asyncio.get_running_loop())
    failed, begun = asyncio.Event(), asyncio.Event()
    def done(n, error):
        print(n, error.code if error else "kept", flush=True)
        begun.set()
        if error:
            failed.set()
    store.append([Row(n, "EV", 1, Copy("ev.a.b.s00.c.d.v1", "/c", "x", None, b"x"))], lambda error: begun.set())
    store.delete([n], lambda error: None)
    n += 3
    await begun.wait()  # the reserve is there
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    while not failed.is_set():
        for _ in range(5):
            rows = [Row(i, "EV", 1, Copy("ev.a.b.s00.c.d.v1", "/c", str(i), None, b"x" * 200)) for i in range(n, n + 3)]
            store.append(rows, lambda error, n=n: done(n, error))
            n += 3
        store.delete([n - 32, n - 62], lambda error: None)  # the second row of a call each
        await asyncio.sleep(0.001)
    store.close()

asyncio.run(main())
"""


def _child(directory: Path, *, limit: int = 0) -> subprocess.Popen[str]:
    """A process that appends calls of three rows, says which were kept, and deletes a row now and then."""
    command = [sys.executable, "-c", CHILD, str(directory), str(limit)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_what_was_told_outlives_a_kill_at_any_moment(tmp_path: Path) -> None:
    """Through kill -9 again and again: of every call that was told each row is there, of any other all or none."""
    chance = random.Random(20261122)
    told_: set[int] = set()
    for _ in range(5):
        child = _child(tmp_path)
        assert child.stdout is not None
        first = child.stdout.readline()  # it writes
        time.sleep(chance.uniform(0, 0.08))  # when it is killed, not something to wait for
        child.send_signal(signal.SIGKILL)
        lines = [first, *child.stdout.read().splitlines(keepends=True)]
        child.stdout.close()
        child.wait()
        told_ |= {int(line.split()[0]) for line in lines if line.endswith(" kept\n")}
        found = ids(tmp_path)
        assert found == sorted(found)
        calls = {number for number in found if number % 3 == 1}
        assert told_ <= calls
        assert {number - 2 for number in found if number % 3 == 0} == calls
    assert len(told_) >= 5  # each began to write; how often depends on the disk


def test_a_disk_that_takes_no_more_is_said(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the full disk: the call that meets it is told so, and all before it stay."""
    output, _ = _child(tmp_path, limit=MIB).communicate(timeout=60)
    lines = [line.split() for line in output.splitlines()]
    refused = {int(number) for number, what in lines if what != "kept"}
    assert {what for _, what in lines} == {"kept", SpoolFull.code}
    found = ids(tmp_path)
    calls = {number for number in found if number % 3 == 1}
    assert len(calls) > 100
    assert calls == {int(number) for number, _ in lines} - refused
