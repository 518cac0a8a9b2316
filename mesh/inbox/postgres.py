"""An inbox in PostgreSQL, through asyncpg (extra `postgres`). Its connections come from the application's pool."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from mesh.errors import ConfigError
from mesh.inbox.notes import KEEP_S, KEY, PRUNE_EVERY, PRUNE_ROWS, TABLE, created, key
from mesh.inbox.tables import PostgresTable
from mesh.typed import taking_the_event, wanted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    import asyncpg

    from mesh.inbound import Admitted

    Handler = (
        Callable[[asyncpg.Connection, Any], Awaitable[object]]
        | Callable[[asyncpg.Connection, Any, Any], Awaitable[object]]
    )

_CLAIM = (
    f"INSERT INTO {TABLE} ({KEY}, at_ms) "  # noqa: S608 - constants alone
    "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING"
)
_PRUNE = (
    f"DELETE FROM {TABLE} WHERE ({KEY}) IN "  # noqa: S608 - constants alone
    f"(SELECT {KEY} FROM {TABLE} WHERE at_ms < $1 ORDER BY at_ms LIMIT {PRUNE_ROWS} FOR UPDATE SKIP LOCKED)"
)


class PostgresInbox:
    """Notes in a PostgreSQL database which events were handled.

    Args:
        consumer: Whose effects these are: the subscription's name. All its replicas share it.
        pool: Where `once` gets its connections: as many as handlers run at once, at best.
        keep_s: Seconds until a note is forgotten. Longer than any event may come again.
        now_s: Unix seconds.
    """

    def __init__(
        self,
        consumer: str,
        pool: asyncpg.Pool | None = None,
        *,
        keep_s: float = KEEP_S,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._consumer = consumer
        self._pool = pool
        self._keep_s = keep_s
        self._now_s = now_s
        self._table = PostgresTable(TABLE, created("text", "bigint"))
        self._noted = 0

    def once(self, handler: Handler) -> Callable[[Admitted], Coroutine[Any, Any, None]]:
        """*handler*, called for each event once: in a transaction of its own, which the return commits.

        It gets the connection and then what it asks for by annotation: the event, its data, or both.

        Raises:
            ConfigError: The inbox has no pool, or the handler asks for what an event has not.
        """
        pool = self._pool
        if pool is None:
            raise ConfigError(
                "this inbox has no pool of connections",
                expected="PostgresInbox(consumer, pool)",
                next="hand in the pool, or call `first` in a transaction of yours",
            )

        call: Callable[..., Awaitable[object]] = handler
        take = wanted(handler, skip=1).take

        @functools.wraps(handler)
        async def handle(event: Admitted) -> None:
            arguments = take(event)
            async with pool.acquire() as connection, connection.transaction():
                if await self.first(connection, event):
                    await call(connection, *arguments)

        taking_the_event(handle)
        return handle

    async def first(self, connection: asyncpg.Connection, event: Admitted) -> bool:
        """Note in the open transaction of *connection* that *event* is handled.

        Where another transaction has noted it and is still open, this waits for its end.

        Returns:
            True the first time. False where it was handled before: then there is nothing to do but to ack it.

        Raises:
            ConfigError: No transaction is open.
        """
        now_ms = int(self._now_s() * 1000)
        status = await self._table.execute(connection, _CLAIM, *key(self._consumer, event), now_ms)
        if self._noted % PRUNE_EVERY == 0:
            await connection.execute(_PRUNE, now_ms - int(self._keep_s * 1000))
        self._noted += 1
        return bool(status == "INSERT 0 1")
