"""One replica of a consuming team: its effects are rows in a database that all replicas share.

Its handler fails now and then, before its effect or after it, and refuses a few events for good; which ones, their ids
say. What it begins and ends it writes to the kernel at once, so that kill -9 loses none of it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable
from zlib import crc32

import anyio

from mesh import logs
from mesh.client import connect
from mesh.delivery import Reject
from mesh.inbound import Admitted
from mesh.inbox import SqliteInbox

CONCURRENCY = 32
LOCKED_S = 60.0  # a replica that is stopped may hold the database for seconds
BEGUN, DONE, REJECTED, FAILED = "begun", "done", "rejected", "failed"


def is_poison(event_id: str) -> bool:
    """Whether the handler refuses it for good."""
    return crc32(event_id.encode()) % 2000 == 7


class TroubleInHandler(Exception):
    """What the handler raises now and then."""


def database(file: str) -> sqlite3.Connection:
    """The database of one subscription."""
    connection = sqlite3.connect(file, timeout=LOCKED_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing; only a power cut would
    connection.execute("CREATE TABLE IF NOT EXISTS effects (id TEXT NOT NULL)")
    return connection


def effect(connection: sqlite3.Connection, event: Admitted) -> None:
    """What handling *event* comes to: a row more."""
    connection.execute("INSERT INTO effects VALUES (?)", (event.id,))


class Handler:
    """What happens to each event."""

    def __init__(self, effect: Callable[[Admitted], Awaitable[None]], log: int) -> None:
        self._effect = effect
        self._log = log
        self._troubled: set[str] = set()

    async def __call__(self, event: Admitted) -> None:
        """Handle one event."""
        mark = crc32(event.id.encode())
        self._write(BEGUN, event)
        await anyio.sleep((mark >> 12) % 8 / 1000)
        if is_poison(event.id):
            self._write(REJECTED, event)
            raise Reject("poison")
        trouble = mark % 200 < 2 and event.id not in self._troubled
        if trouble:
            self._troubled.add(event.id)
        if trouble and mark % 200 == 0:
            self._write(FAILED, event)
            raise TroubleInHandler
        await self._effect(event)
        if trouble:
            self._write(FAILED, event)
            raise TroubleInHandler
        self._write(DONE, event)

    def _write(self, what: str, event: Admitted) -> None:
        os.write(self._log, f"{what} {time.monotonic_ns()} {event.id}\n".encode())


async def consume(given: argparse.Namespace) -> None:
    """Handle events until SIGTERM."""
    log = os.open(given.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with SqliteInbox(given.subscription, lambda: database(given.effects)) as inbox:
        handler = Handler(inbox.once(effect), log)
        async with anyio.create_task_group() as group:
            group.start_soon(_until_signal, group.cancel_scope)
            async with (
                connect(given.context, team=given.team) as mesh,
                mesh.subscription(given.subscription) as subscription,
            ):
                await subscription.run(handler, concurrency=CONCURRENCY)


async def _until_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        await anext(aiter(signals))
    scope.cancel()


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    for name in ("context", "team", "subscription", "effects", "log"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    logs.setup("consumer")
    anyio.run(consume, given)
