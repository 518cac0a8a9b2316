"""A full disk: what is in the spool still leaves it, nothing is added meanwhile, and it opens again."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.spool import opening, reserve
from agent.spool import store as store_module
from agent.spool.database import Database, Row
from agent.spool.record import Copy, Sent
from agent.spool.store import Store
from mesh.errors import MeshError, SpoolDamaged, SpoolFull
from tests.conftest import ROOT

pytestmark = pytest.mark.anyio

KIB = 1024
SENT = Sent(0, 1_700_000_000_000, ("k" * 2000,))  # long, so that marks take pages


def rows(first: int, count: int, *, size: int = 3000) -> list[Row]:
    """Copies of one stream, numbered from *first*."""
    return [
        Row(n, "EV", 1, Copy("ev.l.v.s00.a.b.v1", "/a", f"e-{n}", None, b"x" * size))
        for n in range(first, first + count)
    ]


def opened(directory: Path, *, read_only: bool = False) -> Database:
    """The spool of a directory, with a bound of 64 KiB."""
    return Database(directory / "spool.db", directory / "spool.key", max_bytes=64 * KIB, read_only=read_only)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 80 KiB at most, and a reserve of 256 KiB."""
    monkeypatch.setattr(opening, "SPARE_BYTES", 0)
    monkeypatch.setattr(opening, "REFUSED_BYTES", 0)
    monkeypatch.setattr(reserve, "RESERVE_BYTES", 256 * KIB)
    monkeypatch.setattr(store_module, "RESERVE_BYTES", 256 * KIB)


@asynccontextmanager
async def stored(directory: Path) -> AsyncIterator[Store]:
    """The thread of a spool, closed behind."""
    store = Store(opened(directory), asyncio.get_running_loop())
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)


async def append(store: Store, *items: Row) -> MeshError | None:
    """What came of it."""
    told: asyncio.Future[MeshError | None] = asyncio.get_running_loop().create_future()
    store.append(items, told.set_result)
    return await told


def tight(store: Store) -> bool:
    """Whether the disk lacks room."""
    return store.tight


async def fill(store: Store) -> int:
    """Until not even a small row fits; how many are there."""
    count = 0
    for size in (3000, 300, 1):
        while await append(store, *rows(count + 1, 1, size=size)) is None:
            count += 1
    return count


# --- the bound of the file stands for the disk's ----------------------------------------------------------------------


@pytest.mark.usefixtures("small")
async def test_a_full_spool_is_drained(tmp_path: Path) -> None:
    """Marks, deletions and refusals find room in the reserve; nothing is added until it is back, and then it is."""
    async with stored(tmp_path) as store:
        count = await fill(store)
        assert not tight(store)
        await store.mark_sent([(n, SENT) for n in range(1, count + 1)])
        assert tight(store)
        assert isinstance(await append(store, *rows(count + 1, 1)), SpoolFull)
        assert not (tmp_path / "spool.db-reserve").exists()
        (first, second, *others) = await store.read("EV", 0, limit=count, max_bytes=1 << 20)
        assert first.sent == SENT
        await store.refuse([first], "no-reader", 1)
        await store.drop([second.id, *(row.id for row in others)])
        async with asyncio.timeout(60):
            while tight(store):
                await asyncio.sleep(0.01)
        assert (tmp_path / "spool.db-reserve").stat().st_size == 256 * KIB
        assert await append(store, *rows(count + 1, 1)) is None
        store.tidy()
    assert not (tmp_path / "spool.db-reserve").exists()
    database = opened(tmp_path)
    assert [row.id for row in database.rows()] == [count + 1]
    database.close()


async def test_nothing_is_added_without_a_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room for it takes nothing; once it has room it is found out without anybody's asking."""
    fallocate, room = os.posix_fallocate, False

    def full(descriptor: int, at: int, size: int) -> None:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fallocate(descriptor, at, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(store_module, "RESERVE_AGAIN_S", 0.01)
    async with stored(tmp_path) as store:
        assert isinstance(await append(store, *rows(1, 1)), SpoolFull)
        assert tight(store)
        assert store.broken is None
        room = True
        async with asyncio.timeout(60):
            while tight(store):
                await asyncio.sleep(0.01)
        assert await append(store, *rows(1, 1)) is None


async def test_a_file_system_that_allocates_only_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reserve is written."""

    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    held = reserve.Reserve(tmp_path / "spool.db")
    held.take()
    assert held.held
    assert (tmp_path / "spool.db-reserve").stat().st_blocks * 512 >= reserve.RESERVE_BYTES


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.EDQUOT, SpoolFull), (errno.EFBIG, SpoolFull), (errno.EIO, SpoolDamaged), (0, SpoolDamaged)],
)
def test_a_disk_that_fails_is_not_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[MeshError]
) -> None:
    """SQLite has one word for both; a probe tells them apart."""

    def failing(_: int) -> None:
        if code:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", failing)
    word = sqlite3.OperationalError("disk I/O error")
    word.sqlite_errorname = "SQLITE_IOERR_WRITE"
    (tmp_path / "spool.db").write_bytes(b"")
    assert type(opening.translated(word, tmp_path / "spool.db")) is error
    assert [file.name for file in tmp_path.iterdir()] == ["spool.db"]


async def test_whatever_fails_is_told_to_everybody(tmp_path: Path) -> None:
    """No memory, a defect: nothing works any more, those who ask hear it, and the agent is told to end."""
    broken = asyncio.Event()
    store = Store(opened(tmp_path), asyncio.get_running_loop(), broken.set)

    def failing(_: Database) -> None:
        raise MemoryError

    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    store._call(failing, told.set_result)
    async with asyncio.timeout(60):
        assert isinstance(await told, SpoolDamaged)
        await broken.wait()
        assert isinstance(await append(store, *rows(1, 1)), SpoolDamaged)
        with pytest.raises(SpoolDamaged):
            await store.mark_sent([(1, SENT)])
    await asyncio.to_thread(store.close)


# --- a limit on the size of files stands for the disk's: in a process of its own --------------------------------------

CHILD = """
import asyncio, json, resource, sys
from pathlib import Path
from tests.unit.test_spool_full import SENT, append, fill, opened, rows, stored

limit = int(sys.argv[2])

def limited():
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

async def drain(directory):
    async with stored(directory) as store:
        await append(store, *rows(100_000, 1))  # the reserve is there
        limited()
        count = await fill(store)
        await store.mark_sent([(n, SENT) for n in range(1, count + 1)])
        await store.drop(list(range(2, count + 1)))
        return [count, store.tight]

async def look(directory):
    limited()
    found = []
    for read_only in (True, False):
        database = opened(directory, read_only=read_only)
        found.append(sum(held.copies for held in database.contents().streams.values()))
        database.close()
    return found

print(json.dumps(asyncio.run(globals()[sys.argv[3]](Path(sys.argv[1])))))
"""


def child(directory: Path, limit: int, what: str) -> Any:
    """What a process found that may write no file beyond *limit*."""
    command = [sys.executable, "-c", CHILD, str(directory), str(limit), what]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=60, check=True)
    return json.loads(done.stdout)


def test_a_log_that_cannot_grow_is_brought_into_the_file(tmp_path: Path) -> None:
    """Then what the stream has taken is forgotten, and what it has not is there at the next start."""
    count, tight = child(tmp_path, 512 * KIB, "drain")
    assert count > 10
    assert tight
    database = opened(tmp_path)
    assert [row.id for row in database.rows()] == [1, 100_000]
    database.close()


def test_it_opens_on_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    """As a killed process left it, to look and to go on; opening writes nothing."""
    database = opened(tmp_path)
    database.begin()
    database.append(rows(1, 3))
    database.commit()
    left = {name: (tmp_path / name).read_bytes() for name in ("spool.db", "spool.db-wal", "spool.key")}
    database.close()
    for name, content in left.items():
        (tmp_path / name).write_bytes(content)
    assert child(tmp_path, 0, "look") == [3, 3]
