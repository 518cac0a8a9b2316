"""An inbox in SQLite. Handlers are plain functions; they run in a thread, one at a time: SQLite has one writer."""

from __future__ import annotations

import functools
import sqlite3
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread

from mesh.errors import ConfigError
from mesh.inbox.notes import KEEP_S, KEY, PRUNE_EVERY, PRUNE_ROWS, TABLE, created, key
from mesh.typed import taking_the_event, wanted

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Iterator
    from types import TracebackType

    from mesh.inbound import Admitted

    Handler = Callable[[sqlite3.Connection, Any], object] | Callable[[sqlite3.Connection, Any, Any], object]

BUSY_TIMEOUT_S = 30.0  # that another process may hold the database; as long as an event may be silent by default

_CREATE = created("TEXT", "INTEGER")
_CLAIM = f"INSERT OR IGNORE INTO {TABLE} ({KEY}, at_ms) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants alone
_PRUNE = (
    f"DELETE FROM {TABLE} WHERE rowid IN "  # noqa: S608 - constants alone
    f"(SELECT rowid FROM {TABLE} WHERE at_ms < ? ORDER BY at_ms LIMIT {PRUNE_ROWS})"
)


class SqliteInbox:
    """Notes in a SQLite database which events were handled. Use it as a `with` block, or `close` it in the end.

    Args:
        consumer: Whose effects these are: the subscription's name. All its replicas share it.
        database: The file that the handler writes to, or a function that opens it (with `check_same_thread=False`).
            For `once` alone; `first` uses the connection that it is given.
        keep_s: Seconds until a note is forgotten. Longer than any event may come again.
        now_s: Unix seconds.
    """

    def __init__(
        self,
        consumer: str,
        database: str | os.PathLike[str] | Callable[[], sqlite3.Connection] | None = None,
        *,
        keep_s: float = KEEP_S,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._consumer = consumer
        self._database = database
        self._keep_s = keep_s
        self._now_s = now_s
        self._connection: sqlite3.Connection | None = None
        self._noted = 0
        self._one = anyio.CapacityLimiter(1)

    def once(self, handler: Handler) -> Callable[[Admitted], Coroutine[Any, Any, None]]:
        """*handler*, called for each event once: in a transaction of its own, which the return commits.

        It gets the connection and then what it asks for by annotation: the event, its data, or both.

        The handler must not end the transaction (`commit`, `rollback`, `executescript`, `with connection`): its effects
        would be kept without the note, or the note without the effects. Trying raises. Savepoints are fine.

        Opens the database, so that what is wrong with it is said here and not at every event.

        Raises:
            ConfigError: There is no database, it is open in a way that does not serve, the handler asks for what an
                event has not, or, when one is handled, tried to end the transaction.
        """
        if self._database is None:
            raise ConfigError(
                "this inbox has no database to open",
                expected="SqliteInbox(consumer, database)",
                next="name the database, or call `first` in a transaction of yours",
            )

        self._opened()
        take = wanted(handler, skip=1).take

        @functools.wraps(handler)
        async def handle(event: Admitted) -> None:
            await anyio.to_thread.run_sync(self._handle, handler, event, take(event), limiter=self._one)

        taking_the_event(handle)
        return handle

    def first(self, connection: sqlite3.Connection, event: Admitted) -> bool:
        """Note in the transaction of *connection* that *event* is handled; begins one where none is open.

        Commit after the effects, roll back where one of them fails. Nothing of another event's may use the connection
        between the two.

        Returns:
            True the first time. False where it was handled before: then there is nothing to do but to ack it.

        Raises:
            ConfigError: The connection commits each statement by itself.
        """
        if not connection.in_transaction:
            if getattr(connection, "autocommit", False) is True:  # Python 3.12
                raise ConfigError(
                    "the connection commits every statement by itself",
                    expected="an open transaction",
                    next="open it without autocommit=True, or execute BEGIN first",
                )
            connection.execute("BEGIN IMMEDIATE")  # a transaction that reads before it writes may fail at once
        for statement in _CREATE:
            connection.execute(statement)
        now_ms = int(self._now_s() * 1000)
        claimed = connection.execute(_CLAIM, (*key(self._consumer, event), now_ms)).rowcount == 1
        if self._noted % PRUNE_EVERY == 0:
            connection.execute(_PRUNE, (now_ms - int(self._keep_s * 1000),))
        self._noted += 1
        return claimed

    def close(self) -> None:
        """Close what was opened for `once`; what is still in its handler fails and comes again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _handle(self, handler: Callable[..., object], event: Admitted, arguments: tuple[Any, ...]) -> None:
        connection = self._opened()
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self.first(connection, event):
                with _no_end(connection):
                    handler(connection, *arguments)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite ends it by itself where the disk is full
                connection.execute("ROLLBACK")
            raise

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._open()
        try:
            self._connection.cursor().close()
        except sqlite3.ProgrammingError as error:
            raise ConfigError(
                "the inbox's connection belongs to one thread",
                expected="sqlite3.connect(..., check_same_thread=False)",
                next="open it so: the inbox uses it from one thread at a time",
            ) from error
        return self._connection

    def _open(self) -> sqlite3.Connection:
        database = self._database
        if not callable(database):
            return sqlite3.connect(str(database), timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection = database()
        if connection.in_transaction:
            connection.close()
            raise ConfigError(
                "the inbox's connection is in a transaction as soon as it is open",
                expected="sqlite3.connect(..., isolation_level=None, check_same_thread=False)",
                got="one that was begun, or autocommit=False, which begins one by itself",
                next="open it so: the inbox begins and ends a transaction for each event",
            )
        return connection


@contextmanager
def _no_end(connection: sqlite3.Connection) -> Iterator[None]:
    """Nobody ends the transaction inside this block."""
    tried = False

    def authorize(action: int, *_about: str | None) -> int:
        nonlocal tried
        if action != sqlite3.SQLITE_TRANSACTION:
            return sqlite3.SQLITE_OK
        tried = True
        return sqlite3.SQLITE_DENY

    connection.set_authorizer(authorize)
    try:
        yield
    finally:
        connection.set_authorizer(None)
        if tried:
            raise ConfigError(
                "a handler tried to end its inbox's transaction",
                expected="no commit, rollback, executescript or `with connection` in the handler",
                next="leave the end to the inbox; use a savepoint for a part of the effects",
            )
