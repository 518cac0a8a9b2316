"""Opening the spool's file: its lock, its key, how SQLite is set, and what its errors mean."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sqlite3
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.spool import wal
from agent.spool.record import KEY_BYTES
from mesh.errors import ConfigError, MeshError, SpoolDamaged, SpoolFull

PAGE_BYTES = 4096
LOG_BYTES = 4 * 1024 * 1024  # the log is cut back to this once its content is in the file
SPARE_BYTES = 16 * 1024 * 1024  # what the file may take beyond its bound and a quarter: pages are never quite full
REFUSED_BYTES = 16 * 1024 * 1024  # of copies that may not be sent any more, as sealed; beyond it the oldest go
SAVE = (
    "`mesh-agent spool export FILE` saves what can be read; then move all of the spool's files away together, and keep "
    "them: spool_file, those whose names go on behind its name, and spool_key_file; then start again"
)
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: a limit on the size of files

_PROBE_BYTES = 64 * 1024  # written to find out whether a disk takes anything


def translated(error: sqlite3.Error, file: Path) -> MeshError:
    """Our error for SQLite's about the spool at *file*."""
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    # The second is all that SQLite says of a quota, of a limit on the size of files, and of a disk that fails.
    if name == "SQLITE_FULL" or (name == "SQLITE_IOERR_WRITE" and _is_full(file)):
        return full(name)
    if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
        return ConfigError("the spool is in use by another process", got=name, next="stop that one first")
    return SpoolDamaged("the spool cannot be read or written", expected="a sound file and disk", got=name, next=SAVE)


def full(got: str) -> SpoolFull:
    """The spool takes nothing now."""
    return SpoolFull(
        "the spool cannot be written: its bound is reached, or its disk is full",
        expected="room on the disk, and below spool_max_bytes",
        got=got,
        next="send the same again later; make room, or let the stream take what the spool holds",
    )


def _is_full(file: Path) -> bool:
    """Whether a file as large as the log, and some more, may not be written beside it for want of room."""
    log = log_of(file)
    try:
        with tempfile.TemporaryFile(dir=file.parent) as probe:
            probe.truncate(max(each.stat().st_size for each in (file, log) if each.exists()) + PAGE_BYTES)
            probe.write(os.urandom(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno in FULL
    return False


def log_of(file: Path) -> Path:
    """SQLite's log of the spool at *file*."""
    return file.with_name(f"{file.name}-wal")


def page_bound(max_bytes: int) -> int:
    """The most pages that the file may take."""
    return (max_bytes + max_bytes // 4 + SPARE_BYTES + REFUSED_BYTES) // PAGE_BYTES


def connect(file: Path, max_bytes: int, *, read_only: bool) -> sqlite3.Connection:
    """The spool's file as SQLite's, set as the spool needs it; made where there is none, unless *read_only*.

    Raises:
        ConfigError: It cannot be made, or is not there.
        sqlite3.Error: It is no such file.
    """
    if not read_only:
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its other files the same mode
        except OSError as error:
            raise _cannot(file, error) from error
    elif not file.exists():
        raise ConfigError(
            f"there is no spool at {file}", expected="the spool of an agent", next="name another --config"
        )
    mode = "rw"
    if read_only:  # the key file's lock is ours, SQLite needs none; without a log there is nothing beside the file
        mode = "ro&vfs=unix-none" if log_of(file).exists() else "ro&immutable=1"
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=0
    )
    try:
        pragmas = ["locking_mode = EXCLUSIVE"]  # first of all: then the log's index is in memory, not in a file
        if not read_only:
            pragmas += [
                "journal_mode = WAL",
                "synchronous = FULL",
                f"journal_size_limit = {LOG_BYTES}",
                f"max_page_count = {page_bound(max_bytes)}",
            ]
            if not file.stat().st_size:  # both are for a file to be made, and the second writes: a disk may be full
                pragmas[1:1] = [f"page_size = {PAGE_BYTES}", "auto_vacuum = INCREMENTAL"]
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def locked_key(file: Path, key_file: Path, *, make: bool) -> int:
    """The key file, opened and locked: who has it has the spool.

    Two first starts at once make one key: it gets its name whole, and only where nothing has that name.

    Raises:
        ConfigError: Another process has it, it cannot be made, or the spool is there without it.
    """
    if not key_file.exists():
        if file.exists() and file.stat().st_size:
            raise SpoolDamaged(
                f"{key_file} is missing, and {file.name} cannot be read without it",
                expected="the key that was made with this spool",
                next="restore the key file; without it nobody can read what the spool holds",
            )
        if not make:
            raise ConfigError(
                f"there is no spool at {file}", expected="a spool and its key", next="name another --config"
            )
        try:
            _make_key(key_file)
        except OSError as error:
            raise _cannot(key_file, error) from error
    try:
        descriptor = os.open(key_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"{key_file} cannot be read: {error.strerror or error.__class__.__name__}",
            expected="the spool's key, which its owner may read",
            next="give it back to the user that the agent runs as",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError(
            f"another process has the spool {file}",
            expected="one agent for each spool",
            next="stop the other agent, or give this one a spool_file and a spool_key_file of its own",
        ) from None
    return descriptor


def _make_key(key_file: Path) -> None:
    descriptor, name = tempfile.mkstemp(dir=key_file.parent, prefix=f".{key_file.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "wb") as made:
            made.write(secrets.token_hex(KEY_BYTES).encode() + b"\n")
            made.flush()
            os.fsync(made.fileno())
        with suppress(FileExistsError):  # somebody else's start was a moment earlier: theirs is the key
            os.link(name, key_file)
    finally:
        Path(name).unlink()
    sync_directory(key_file.parent)


def check_there(file: Path) -> None:
    """Refuse a log whose file is gone, or empty: SQLite would begin anew, and drop what was synced to the log.

    Raises:
        SpoolDamaged: It is so.
    """
    log = log_of(file)
    kept = log.stat().st_size if log.exists() else 0
    if kept > wal.HEADER_BYTES and not (file.exists() and file.stat().st_size):
        raise SpoolDamaged(
            f"{file.name} is missing or empty, and {log.name} beside it holds {kept} bytes that were written to it",
            expected="all of the spool's files, or none",
            next=f"bring {file.name} back; or move all of the spool's files away together, key included, and keep them",
        )


def lost(file: Path) -> SpoolDamaged | None:
    """What is wrong with a log that lost synced commits, before SQLite drops what is left of them; see `wal`."""
    log = log_of(file)
    if not log.exists() or not wal.damaged(log.read_bytes()):
        return None
    return SpoolDamaged(
        f"{log.name} is damaged: what was synced to it from there on cannot be read, and nobody can say how much it is",
        expected="a log as this agent wrote it",
        next=SAVE,
    )


def sync_directory(directory: Path) -> None:
    """Have the disk keep that a file was made in *directory*."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot(file: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{file} cannot be written: {error.strerror or error.__class__.__name__}",
        expected="a directory of the agent's own, on a disk that outlives it",
        next="set spool_file and spool_key_file to such a place; an empty spool_file goes without a spool",
    )
