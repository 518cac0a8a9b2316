"""The spool's database on a thread of its own, with group commit: one sync for all that queued during the last one.

Calls come from the event loop and return at once; what came of them is told there, in the order of the calls. A call
that fails (the disk is full) fails alone: what was committed with it is tried again by itself.

While the spool holds anything, a reserve of the disk is held with it. Where a mark or a deletion finds no room the
reserve is given up, and nothing is appended until it is back: so a full spool can always be drained (`reserve.py`).
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from agent.spool.opening import FULL, full
from agent.spool.reserve import RESERVE_BYTES, Reserve
from mesh import logs
from mesh.errors import Closed, MeshError, SpoolDamaged, SpoolFull

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from agent.spool.database import Database, Row
    from agent.spool.record import RefusedRow, Sent

MAX_GROUP = 1024  # calls in one transaction
RESERVE_AGAIN_S = 1.0  # between tries to get the reserve back
SHRINK_PAGES = 512  # unused pages given back at once, 2 MiB: as much may pass through the log meanwhile
SHRINK_TIMES = 8  # in one try

log = logs.get("spool")


class _Call(NamedTuple):
    """One call: what to do with the database, and whom to tell what came of it."""

    work: Callable[[Database], Any]
    done: Callable[[Any], None]
    alone: bool = False  # outside a transaction
    appends: bool = False  # not while the reserve is away


class Store:
    """An opened database and its thread.

    Args:
        database: Used by this thread alone from now on.
        loop: Where results are told.
        on_broken: Called there once nothing works any more.

    Attributes:
        broken: Why nothing works any more; None while it does.
        tight: The disk lacks the room for the reserve: nothing is appended until it is back.
    """

    def __init__(
        self, database: Database, loop: asyncio.AbstractEventLoop, on_broken: Callable[[], None] = lambda: None
    ) -> None:
        self._database = database
        self._loop = loop
        self._on_broken = on_broken
        self._reserve = Reserve(database.file)
        self._try_at = 0.0
        self.tight = False
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._closed = False
        self.broken: MeshError | None = None
        self._thread.start()

    # --- calls -------------------------------------------------------------------------------------------------------

    def append(self, rows: Sequence[Row], done: Callable[[MeshError | None], None]) -> None:
        """Keep *rows*, all or none; *done* gets None once they are synced."""
        self._call(lambda database: database.append(rows), done, appends=True)

    def mark_sent(self, sent: Sequence[tuple[int, Sent]]) -> asyncio.Future[None]:
        """Remember how copies are about to be sent."""
        return self._ask(lambda database: database.mark_sent(sent))

    def delete(self, ids: Sequence[int], done: Callable[[MeshError | None], None]) -> None:
        """Forget copies that their stream has."""
        self._call(lambda database: database.delete(ids), done)

    def drop(self, ids: Sequence[int]) -> asyncio.Future[None]:
        """Forget copies that nobody wants any more."""
        return self._ask(lambda database: database.delete(ids))

    def refuse(self, rows: Sequence[Row], reason: str, now_ms: int) -> asyncio.Future[list[RefusedRow]]:
        """Put copies aside that may not be sent any more, see `Database.refuse`."""
        return self._ask(lambda database: database.refuse(rows, reason, now_ms))

    def read(self, stream: str, after: int, *, limit: int, max_bytes: int) -> asyncio.Future[list[Row]]:
        """The next copies of a stream, see `Database.read`."""
        return self._ask(lambda database: database.read(stream, after, limit, max_bytes))

    def tidy(self) -> None:
        """Give the disk back what an empty spool does not need."""
        self._calls.put(_Call(self._tidy, _tidied, alone=True))

    def close(self) -> None:
        """Finish what was called, then close the file. Blocks for a sync at most."""
        if not self._closed:
            self._closed = True
            self._calls.put(None)
            self._thread.join()

    def _call(self, work: Callable[[Database], Any], done: Callable[[Any], None], *, appends: bool = False) -> None:
        if self._closed:
            self._loop.call_soon(done, Closed("the spool is closed"))
        else:
            self._calls.put(_Call(work, done, appends=appends))

    def _ask(self, work: Callable[[Database], Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()

        def done(result: Any) -> None:
            if future.done():
                return  # whoever asked has gone
            if isinstance(result, MeshError):
                future.set_exception(result)
            else:
                future.set_result(result)

        self._call(work, done)
        return future

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        going_on = True
        while going_on:
            calls: list[_Call | None] = []
            with suppress(queue.Empty):
                calls.append(self._calls.get(timeout=RESERVE_AGAIN_S if self.tight else None))
                while len(calls) < MAX_GROUP:
                    calls.append(self._calls.get_nowait())
            if self.tight:
                self._have_reserve()
            going_on = None not in calls
            asked = [call for call in calls if call is not None]
            told = [(call.done, result) for call, result in zip(asked, self._serve(asked), strict=True)]
            with suppress(RuntimeError):  # the loop was closed first, and nobody is left to tell
                self._loop.call_soon_threadsafe(_tell, told)
        self._database.close()

    def _serve(self, calls: Sequence[_Call]) -> list[Any]:
        refused: SpoolFull | None = None
        if any(call.appends for call in calls) and not self._have_reserve() and self.broken is None:
            refused = full("no room for the reserve")
        together = [call for call in calls if not call.alone and not (call.appends and refused)]
        results = iter(self._commit(together) if together else [])
        return [
            self._alone(call) if call.alone else refused if call.appends and refused else next(results)
            for call in calls
        ]

    def _commit(self, calls: Sequence[_Call]) -> list[Any]:
        """Do *calls* in one transaction; where that fails, each in one of its own."""
        if self.broken is not None:
            return [self.broken] * len(calls)
        try:
            return self._transaction(calls)
        except Exception as error:  # noqa: BLE001 - whatever it is, everybody is told
            failure = self._undone(error)
        if len(calls) == 1 and isinstance(failure, SpoolFull) and not calls[0].appends:
            return [self._with_reserve(calls[0])]
        if not isinstance(failure, SpoolFull):
            self._break(failure)
        if len(calls) == 1 or self.broken is not None:
            return [failure] * len(calls)
        return [self._commit([call])[0] for call in calls]

    def _transaction(self, calls: Sequence[_Call]) -> list[Any]:
        self._database.begin()
        results = [call.work(self._database) for call in calls]
        self._database.commit()
        return results

    def _undone(self, error: Exception) -> MeshError:
        """Roll back; what went wrong, and whatever is not about a full disk is final."""
        try:
            self._database.rollback()
        except Exception as worse:  # noqa: BLE001 - as above
            return self._failure(worse)
        return self._failure(error)

    def _failure(self, error: Exception) -> MeshError:
        if isinstance(error, sqlite3.Error):
            return self._database.failure(error)
        if isinstance(error, MeshError):
            return error
        return SpoolDamaged(
            "the spool cannot be worked with", got=type(error).__name__, next="restart the agent; what it took is kept"
        )

    def _break(self, failure: MeshError) -> None:
        if self.broken is None:
            log.error("spool_broken", code=failure.code, error=failure.message, got=failure.got)
            self.broken = failure
            with suppress(RuntimeError):  # the loop was closed first, and nobody is left to tell
                self._loop.call_soon_threadsafe(self._on_broken)

    def _alone(self, call: _Call) -> Any:
        if self.broken is not None:
            return self.broken
        try:
            return call.work(self._database)
        except Exception as error:  # noqa: BLE001 - as above
            failure = self._failure(error)
            if not isinstance(failure, SpoolFull):
                self._break(failure)
            return failure

    # --- the reserve -------------------------------------------------------------------------------------------------

    def _with_reserve(self, call: _Call) -> Any:
        """Do once more what found no room, with that of the reserve."""
        if not self.tight:
            self.tight = True
            self._try_at = time.monotonic() + RESERVE_AGAIN_S
            log.error("spool_reserve_given_up")
        try:
            self._reserve.give_up()
            self._database.bound(RESERVE_BYTES)
            with suppress(sqlite3.OperationalError):  # the log is too long for what there is; it may do as it is
                self._database.checkpoint()
            return self._transaction([call])[0]
        except Exception as error:  # noqa: BLE001 - as above
            failure = self._undone(error)
            if not isinstance(failure, SpoolFull):
                self._break(failure)
            return failure

    def _have_reserve(self) -> bool:
        """Hold the reserve, if that is possible; whether it is held. Tried once in `RESERVE_AGAIN_S`."""
        if self._reserve.held:
            return True
        if self.broken is not None or (self.tight and time.monotonic() < self._try_at):
            return False
        self._try_at = time.monotonic() + RESERVE_AGAIN_S
        try:
            self._take_reserve()
        except Exception as error:  # noqa: BLE001 - as above
            failure = full(str(error.strerror)) if _no_room(error) else self._failure(error)
            if not isinstance(failure, SpoolFull):
                self._break(failure)
            elif not self.tight:
                log.error("spool_reserve_lacking")
            self.tight = True
            return False
        if self.tight:
            log.info("spool_reserve_back")
        self.tight = False
        return True

    def _take_reserve(self) -> None:
        """Hold it, after giving the disk what the file does not use where that is what it takes."""
        for _ in range(SHRINK_TIMES if self.tight else 0):
            if not self._database.shrink(SHRINK_PAGES):
                break
        self._reserve.take()
        self._database.bound(0)

    def _tidy(self, database: Database) -> None:
        self._reserve.give_up()  # an empty spool has nothing to delete
        database.tidy()


def _tell(told: Sequence[tuple[Callable[[Any], None], Any]]) -> None:
    """Tell results in the event loop; one who fails at it does not keep the others from theirs."""
    for done, result in told:
        try:
            done(result)
        except Exception as error:
            log.exception("spool_callback_failed", error)  # noqa: PLE1205, TRY401 - ours takes the error


def _no_room(error: Exception) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in FULL


def _tidied(result: MeshError | None) -> None:
    if result is not None:
        log.warning("spool_not_tidied", code=result.code, got=result.got)
