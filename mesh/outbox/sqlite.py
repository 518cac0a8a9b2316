"""An outbox in a SQLite file. Its relay has a connection of its own, used in a thread; a lock file says who relays."""

from __future__ import annotations

import os
import sqlite3
import time as clock
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec

from mesh.errors import ConfigError
from mesh.files import locked
from mesh.outbox.relay import POLL_S, relaying
from mesh.outbox.rows import TABLE, Level, Refused, Row, compose, created, refused
from mesh.subscription import handling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from mesh.client import Mesh, Typed
    from mesh.outbox.relay import Publish

    T = TypeVar("T")

BUSY_TIMEOUT_S = 30.0  # that another process may hold the database
STANDBY_S = 1.0  # between two looks whether the relay that works has ended
LOCK_SUFFIX = ".mesh-outbox"  # beside the database; the kernel frees it however its holder ends

_CREATE = created("INTEGER", "INTEGER PRIMARY KEY AUTOINCREMENT")
_ADD = f"INSERT INTO {TABLE} (source, event, at_ms) VALUES (?, ?, ?)"  # noqa: S608 - constants alone, here and below
_WAITING = (
    f"SELECT seq, source, event FROM {TABLE} WHERE problem IS NULL "  # noqa: S608
    "AND source NOT IN (SELECT value FROM json_each(?)) ORDER BY seq LIMIT ?"
)
_ACCEPTED = f"DELETE FROM {TABLE} WHERE seq IN (SELECT value FROM json_each(?))"  # noqa: S608
_SET_ASIDE = f"UPDATE {TABLE} SET problem = ? WHERE seq = ?"  # noqa: S608
_LEVEL = f"SELECT count(*) - count(problem), count(problem), min(iif(problem IS NULL, at_ms, NULL)) FROM {TABLE}"  # noqa: S608
_REFUSED = f"SELECT seq, event, problem FROM {TABLE} WHERE problem IS NOT NULL ORDER BY seq"  # noqa: S608
_AGAIN = f"INSERT INTO {TABLE} (source, event, at_ms) SELECT source, event, at_ms FROM {TABLE} WHERE seq = ? AND problem IS NOT NULL"  # noqa: S608, E501 - one statement
_DROP = f"DELETE FROM {TABLE} WHERE seq = ? AND problem IS NOT NULL"  # noqa: S608


class SqliteOutbox:
    """Events that wait beside an application's data.

    Args:
        database: The file. `add` takes the application's own connections to it.
    """

    def __init__(self, database: str | os.PathLike[str]) -> None:
        self._database = Path(database)

    @property
    def faults(self) -> tuple[type[Exception], ...]:
        """What SQLite raises when the file cannot be used."""
        return sqlite3.OperationalError, OSError

    def add(
        self,
        connection: sqlite3.Connection,
        type: str | Typed,
        data: object = None,
        *,
        source: str,
        id: str | None = None,
        subject: str | None = None,
        time: str | None = None,
        partitionkey: str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> str:
        """Write an event into the transaction of *connection*; begins one where none is open. Returns the event's id.

        Args:
            connection: The one that the data is written through. Its commit sends the event on its way.
            type: As for `Mesh.publish`, and so are the others. While handling an event, that is named as the cause.
            data: JSON values.
            source: A URI reference below `/<team>`, or what the policy adds.
            id: Unique within the source; a random one where there is none.
            subject: What the event is about, within the source.
            time: RFC 3339; now, where there is none.
            partitionkey: Events with equal keys keep their order.
            extensions: More CloudEvents attributes.

        Raises:
            TypeError, DataMismatch: As for `Mesh.publish`.
            ConfigError: The connection commits each statement by itself.
        """
        now_ms = clock.time_ns() // 1_000_000
        name = id or uuid4().hex
        event = compose(
            type, data, source=source, id=name, now_ms=now_ms, subject=subject, time=time,
            partitionkey=partitionkey, extensions=extensions, cause=handling.get(),
        )  # fmt: skip
        _in_transaction(connection)
        _make(connection)
        connection.execute(_ADD, (source, event, now_ms))
        return name

    def refused(self, connection: sqlite3.Connection) -> list[Refused]:
        """What the agent refused for good, in the order it was added."""
        _make(connection)
        return [refused(*row) for row in connection.execute(_REFUSED)]

    def again(self, connection: sqlite3.Connection, seq: int) -> bool:
        """Put an event that was refused back at the end of the line; False where there is no such event. Commit it."""
        _in_transaction(connection)
        connection.execute(_AGAIN, (seq,))
        return self.drop(connection, seq)

    def drop(self, connection: sqlite3.Connection, seq: int) -> bool:
        """Delete an event that was refused; False where there is no such event. Commit it."""
        _in_transaction(connection)
        return connection.execute(_DROP, (seq,)).rowcount == 1

    def relay(self, to: Mesh | Publish, *, poll_s: float = POLL_S) -> AbstractAsyncContextManager[None]:
        """Post what waits, for the length of the block.

        Args:
            to: The mesh whose agent takes it, or what publishes one event's attributes and data: `Agent.publish`.
            poll_s: Seconds between two looks at an empty outbox.
        """
        return relaying(self, to, poll_s=poll_s)

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[_Store]:
        """Wait until no other relay works on this file, then keep others away."""
        lock = self._database.with_name(self._database.name + LOCK_SUFFIX)
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            while not locked(descriptor):  # noqa: ASYNC110 - another process ends, and tells nobody
                await anyio.sleep(STANDBY_S)
            connection = sqlite3.connect(
                self._database, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            with closing(connection):
                store = _Store(connection)
                await store.call(_make, connection)
                yield store
        finally:
            os.close(descriptor)


class _Store:
    """The relay's connection, each use of it in a thread and one at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._one = anyio.CapacityLimiter(1)

    async def call(self, work: Callable[..., T], *arguments: object) -> T:
        """Work in the thread."""
        return await anyio.to_thread.run_sync(work, *arguments, limiter=self._one)

    async def waiting(self, without: Collection[str], limit: int) -> list[Row]:
        """The first *limit* events that wait, but those of the sources *without*."""
        rows = await self._execute(_WAITING, _json(list(without)), limit)
        return [Row(*row) for row in rows]

    async def accepted(self, seqs: Sequence[int]) -> None:
        """Delete them."""
        await self._execute(_ACCEPTED, _json(list(seqs)))

    async def set_aside(self, seq: int, problem: str) -> None:
        """Keep it, and why it was refused."""
        await self._execute(_SET_ASIDE, problem, seq)

    async def level(self) -> Level:
        """How much there is."""
        ((waiting, aside, oldest_ms),) = await self._execute(_LEVEL)
        return Level(waiting, aside, oldest_ms)

    async def _execute(self, statement: str, *values: object) -> list[Any]:
        return await self.call(lambda: self._connection.execute(statement, values).fetchall())


def _make(connection: sqlite3.Connection) -> None:
    for statement in _CREATE:
        connection.execute(statement)


def _in_transaction(connection: sqlite3.Connection) -> None:
    """Have a transaction open, which the caller commits.

    Raises:
        ConfigError: There is none, and what is written would be committed at once, without what belongs with it.
    """
    if connection.in_transaction:
        return
    if connection.isolation_level is None or getattr(connection, "autocommit", False) is True:
        raise ConfigError(
            "the connection commits every statement by itself",
            expected="an open transaction",
            next="execute BEGIN before the data is written, and COMMIT after the event is added",
        )
    connection.execute("BEGIN IMMEDIATE")


def _json(values: list[str] | list[int]) -> str:
    return msgspec.json.encode(values).decode()
