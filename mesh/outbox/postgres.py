"""An outbox in PostgreSQL, through asyncpg (extra `postgres`). An advisory lock of the session says who relays."""

from __future__ import annotations

import time as clock
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio

from mesh.errors import ConfigError
from mesh.inbox.tables import PostgresTable
from mesh.outbox.relay import POLL_S, relaying
from mesh.outbox.rows import TABLE, Level, Refused, Row, compose, created, refused
from mesh.subscription import handling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from mesh.client import Mesh, Typed
    from mesh.outbox.relay import Publish

STANDBY_S = 1.0  # between two looks whether the relay that works has ended
LOCK_CLASS = 0x6D657368  # "mesh": the first half of our advisory lock; the second is the table's oid

_CREATE = created("bigint", "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY")
_ADD = f"INSERT INTO {TABLE} (source, event, at_ms) VALUES ($1, $2, $3)"  # noqa: S608 - constants alone, here and below
_WAITING = (
    f"SELECT seq, source, event FROM {TABLE} WHERE problem IS NULL "  # noqa: S608
    "AND source <> ALL($1::text[]) ORDER BY seq LIMIT $2"
)
_ACCEPTED = f"DELETE FROM {TABLE} WHERE seq = ANY($1::bigint[])"  # noqa: S608
_SET_ASIDE = f"UPDATE {TABLE} SET problem = $1 WHERE seq = $2"  # noqa: S608
_LEVEL = f"SELECT count(*) - count(problem), count(problem), min(at_ms) FILTER (WHERE problem IS NULL) FROM {TABLE}"  # noqa: S608
_REFUSED = f"SELECT seq, event, problem FROM {TABLE} WHERE problem IS NOT NULL ORDER BY seq"  # noqa: S608
_AGAIN = f"INSERT INTO {TABLE} (source, event, at_ms) SELECT source, event, at_ms FROM {TABLE} WHERE seq = $1 AND problem IS NOT NULL"  # noqa: S608, E501 - one statement
_DROP = f"DELETE FROM {TABLE} WHERE seq = $1 AND problem IS NOT NULL"  # noqa: S608
_LOCK = f"SELECT pg_try_advisory_lock({LOCK_CLASS}, '{TABLE}'::regclass::oid::int)"


class PostgresOutbox:
    """Events that wait beside an application's data, in the first schema of its search path.

    Args:
        pool: For the relay, which keeps one connection of it; direct ones, since a session holds a lock. `add` takes
            the application's own connections.
    """

    def __init__(self, pool: asyncpg.Pool | None = None) -> None:
        self._pool = pool
        self._table = PostgresTable(TABLE, _CREATE)

    @property
    def faults(self) -> tuple[type[Exception], ...]:
        """What asyncpg raises when the database is away; `InternalClientError` where its goodbye meets our request."""
        import asyncpg

        return asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError

    async def add(
        self,
        connection: asyncpg.Connection,
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
        """Write an event into the open transaction of *connection*; returns the event's id.

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
            ConfigError: No transaction is open.
        """
        now_ms = clock.time_ns() // 1_000_000
        name = id or uuid4().hex
        event = compose(
            type, data, source=source, id=name, now_ms=now_ms, subject=subject, time=time,
            partitionkey=partitionkey, extensions=extensions, cause=handling.get(),
        )  # fmt: skip
        await self._table.execute(connection, _ADD, source, event, now_ms)
        return name

    async def refused(self, connection: asyncpg.Connection) -> list[Refused]:
        """What the agent refused for good, in the order it was added."""
        return [refused(*row) for row in await connection.fetch(_REFUSED)]

    async def again(self, connection: asyncpg.Connection, seq: int) -> bool:
        """Put an event that was refused back at the end of the line, in the open transaction; False where none was."""
        await self._table.execute(connection, _AGAIN, seq)
        return await self.drop(connection, seq)

    async def drop(self, connection: asyncpg.Connection, seq: int) -> bool:
        """Delete an event that was refused, in the open transaction; False where there is no such event."""
        return await self._table.execute(connection, _DROP, seq) == "DELETE 1"

    def relay(self, to: Mesh | Publish, *, poll_s: float = POLL_S) -> AbstractAsyncContextManager[None]:
        """Post what waits, for the length of the block.

        Args:
            to: The mesh whose agent takes it, or what publishes one event's attributes and data: `Agent.publish`.
            poll_s: Seconds between two looks at an empty outbox.

        Raises:
            ConfigError: The outbox has no pool.
        """
        if self._pool is None:
            raise ConfigError(
                "this outbox has no pool of connections",
                expected="PostgresOutbox(pool)",
                next="hand in the pool; `add` alone needs none",
            )
        return relaying(self, to, poll_s=poll_s)

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[_Store]:
        """Wait until no other relay works on this table, then keep others away. Ends with its connection."""
        assert self._pool is not None, "relay() has looked"  # noqa: S101 - for the type checker
        async with self._pool.acquire() as connection:
            async with connection.transaction():
                await self._table.make(connection)
            while not await connection.fetchval(_LOCK):  # noqa: ASYNC110 - another process ends, and tells nobody
                await anyio.sleep(STANDBY_S)
            yield _Store(connection)  # the pool frees the lock: it resets each session that it gets back


class _Store:
    """The relay's connection."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def waiting(self, without: Collection[str], limit: int) -> list[Row]:
        """The first *limit* events that wait, but those of the sources *without*."""
        return [Row(*row) for row in await self._connection.fetch(_WAITING, list(without), limit)]

    async def accepted(self, seqs: Sequence[int]) -> None:
        """Delete them."""
        await self._connection.execute(_ACCEPTED, list(seqs))

    async def set_aside(self, seq: int, problem: str) -> None:
        """Keep it, and why it was refused."""
        await self._connection.execute(_SET_ASIDE, problem, seq)

    async def level(self) -> Level:
        """How much there is."""
        return Level(*await self._connection.fetchrow(_LEVEL))
