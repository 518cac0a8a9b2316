"""Opening an adapter's state: its lock, its key, its file, each 0600.

state        SQLite with a write-ahead log, synchronous FULL: a commit that returned is on the disk
state.key    32 random bytes in hexadecimal; what is in the state can be read with it alone
state.lock   whoever has it locked polls; the kernel frees it however that process ends
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import anyio

from agent.adapter.cloak import KEY_BYTES, Cloak
from agent.keys import hex_key
from mesh.errors import ConfigError
from mesh.files import locked, replace_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

FORMAT = 1
BUSY_TIMEOUT_S = 30.0  # that `mesh-agent adapter retry` may hold the file
PRAGMAS = ("journal_mode = WAL", "synchronous = FULL")
STANDBY_S = 1.0  # between two looks whether the replica that polls has ended

BAD_ITEM = "bad-item"  # the code of what is parked because the developer's own function, or JSON, could not have it
IS_BAD = f"problem IS NOT NULL AND json_extract(problem, '$.code') = '{BAD_ITEM}'"

_ITEM = "name BLOB PRIMARY KEY, digest BLOB NOT NULL, listing INTEGER NOT NULL, sealed BLOB NOT NULL"
_EVENT = "seq INTEGER PRIMARY KEY AUTOINCREMENT, name BLOB NOT NULL, sealed BLOB NOT NULL, problem TEXT"
_SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    f"CREATE TABLE known ({_ITEM}) WITHOUT ROWID",
    "CREATE INDEX known_by_listing ON known (listing)",
    f"CREATE TABLE events ({_EVENT})",
    "CREATE INDEX events_waiting ON events (seq) WHERE problem IS NULL",
    "CREATE INDEX events_parked ON events (name) WHERE problem IS NOT NULL",
    f"PRAGMA user_version = {FORMAT}",
)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the block's changes, or none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite ends it by itself where the disk is full
            connection.execute("ROLLBACK")
        raise


@asynccontextmanager
async def leading(state: Path, stop: anyio.Event) -> AsyncIterator[bool]:
    """Wait until no other process polls with this state, then keep others away; False where *stop* came first.

    Raises:
        ConfigError: Its directory cannot be written.
    """
    try:
        descriptor = os.open(state.with_name(f"{state.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _cannot(state, error) from error
    try:
        leads = locked(descriptor)
        while not leads and not stop.is_set():
            with anyio.move_on_after(STANDBY_S):
                await stop.wait()
            leads = locked(descriptor)
        yield leads
    finally:
        os.close(descriptor)


def connect(state: Path, *, make: bool) -> tuple[sqlite3.Connection, Cloak]:
    """The opened file, and what opens its contents.

    Args:
        state: Where it is.
        make: Make it where it is missing; only while leading.

    Raises:
        ConfigError: It is missing, of another version, or its key is missing or another one's.
    """
    key_file = state.with_name(f"{state.name}.key")
    there = state.exists() and state.stat().st_size > 0
    if not there and not make:
        raise ConfigError(f"there is no state at {state}", expected="the state of an adapter", next="name another file")
    try:
        if not there and not key_file.exists():
            replace_file(key_file, secrets.token_hex(KEY_BYTES).encode() + b"\n")
        cloak = Cloak(hex_key(key_file, KEY_BYTES))
        os.close(os.open(state, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its other files the same mode
    except OSError as error:
        raise _cannot(state, error) from error
    connection = sqlite3.connect(state, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, cloak, state)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise ConfigError(
                f"{state} cannot be opened: {error}",
                expected="the state of an adapter",
                next="name another file; without its state, an adapter lists everything again as created",
            ) from error
        raise
    return connection, cloak


def _prepare(connection: sqlite3.Connection, cloak: Cloak, state: Path) -> None:
    """Make the tables where there are none, else see that they are ours."""
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").fetchall()
    ((found,),) = connection.execute("PRAGMA user_version")
    if found == 0:
        with transaction(connection):
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES ('check', ?)", (cloak.digest("check"),))
    elif found != FORMAT:
        raise ConfigError(f"{state} is of another version", expected=f"{FORMAT}", got=f"{found}")
    elif connection.execute("SELECT value FROM meta WHERE name = 'check'").fetchone() != (cloak.digest("check"),):
        raise ConfigError(
            f"{state.name}.key is not the key of {state.name}",
            expected="the key that was made with this state",
            next="restore the key file; without it, move the state away: all is listed again as created",
        )


def _cannot(state: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the adapter's state {state} cannot be written: {error.strerror or error.__class__.__name__}",
        expected="a directory of the adapter's own, on a disk that outlives it",
        next="name another file",
    )
