"""The spool's file: SQLite with a write-ahead log, every row sealed; opened by one process at a time.

    meta      store id; a sealed word that says whether a key is the store's
    copies    copies that wait for their stream, in order of their id
    sent      of those, what is known of the ones that were sent before
    refused   copies that may not be sent any more, kept for whoever wants to know

Names of streams and times stand in clear; all else is sealed (`record.py`). Synchronous FULL: a commit that returned is
on the disk. Whatever does not open as it was written ends the start, loudly.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from agent.keys import hex_key
from agent.spool.opening import (
    PAGE_BYTES,
    REFUSED_BYTES,
    SAVE,
    check_there,
    connect,
    locked_key,
    lost,
    page_bound,
    sync_directory,
    translated,
)
from agent.spool.record import (
    CHECK,
    COPIES,
    KEY_BYTES,
    NONCE_BYTES,
    NOT_SENT,
    REFUSED,
    SENT,
    Cipher,
    Contents,
    Copy,
    Held,
    Place,
    Refused,
    RefusedRow,
    Sent,
)
from mesh.errors import SpoolDamaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from mesh.errors import MeshError

FORMAT = 1
STORE_ID_BYTES = 16
_WORD = "mesh-spool"
_T = TypeVar("_T")

_ROW = "stream TEXT NOT NULL, at_ms INTEGER NOT NULL, sealed BLOB NOT NULL"
_SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    f"CREATE TABLE copies (id INTEGER PRIMARY KEY AUTOINCREMENT, {_ROW})",
    "CREATE INDEX copies_by_stream ON copies (stream, id)",
    "CREATE TABLE sent (id INTEGER PRIMARY KEY, sealed BLOB NOT NULL)",
    f"CREATE TABLE refused (id INTEGER PRIMARY KEY, {_ROW})",
    f"PRAGMA user_version = {FORMAT}",
)


class Row(NamedTuple):
    """A copy in the spool, and how it was sent before."""

    id: int
    stream: str
    at_ms: int
    copy: Copy
    sent: Sent = NOT_SENT


class Database:
    """An opened spool file. One thread at a time.

    Args:
        file: The spool; made where there is none, unless *read_only*.
        key_file: Its key, 32 bytes in hexadecimal, 0600; made where there is neither key nor spool.
        max_bytes: The bound; about a quarter more is the most that the file may take.
        read_only: Nothing is written, not even what a crash left to tidy up.

    Attributes:
        lost: That its log lost synced commits; such a spool is opened only to read.

    Raises:
        ConfigError: Another process has it, its directory cannot be written, or a file is missing.
        SpoolDamaged: It is not what was written, or the key is not its own.
    """

    def __init__(self, file: Path, key_file: Path, *, max_bytes: int, read_only: bool = False) -> None:
        self.file = file
        self._read_only = read_only
        self._max_bytes = max_bytes
        check_there(file)
        self._lock = locked_key(file, key_file, make=not read_only)
        try:
            key = hex_key(key_file, KEY_BYTES)
            self.lost = lost(file)
            if self.lost is not None and not read_only:  # looking at what is left is what that is for
                raise self.lost
            self._connection = connect(file, max_bytes, read_only=read_only)
            try:
                self.cipher = self._cipher(key)
            except BaseException:
                self._connection.close()
                raise
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, sqlite3.Error):
                raise self.failure(error) from error
            raise

    def failure(self, error: sqlite3.Error) -> MeshError:
        """Our error for SQLite's."""
        return translated(error, self.file)

    def close(self) -> None:
        """Close the file; another process may open it then."""
        self._connection.close()
        os.close(self._lock)

    # --- opening -----------------------------------------------------------------------------------------------------

    def _cipher(self, key: bytes) -> Cipher:
        execute = self._connection.execute
        place = Place(CHECK, 0)
        found = execute("PRAGMA user_version").fetchone()[0]
        if found == 0 and not self._read_only:
            store_id = secrets.token_bytes(STORE_ID_BYTES)
            cipher = Cipher(key, store_id)
            word = cipher.seal(place, _WORD, secrets.token_bytes(NONCE_BYTES))
            self.begin()
            for statement in _SCHEMA:
                execute(statement)
            execute("INSERT INTO meta VALUES ('id', ?), ('check', ?)", (store_id, word))
            self.commit()
            sync_directory(self.file.parent)
            return cipher
        if found != FORMAT:
            raise SpoolDamaged(
                f"{self.file} is a spool of another version", expected=f"{FORMAT}", got=f"{found}", next=SAVE
            )
        meta = dict(execute("SELECT name, value FROM meta").fetchall())
        cipher = Cipher(key, meta.get("id", b""))
        try:
            cipher.open(place, meta.get("check", b""), str)
        except SpoolDamaged:
            raise SpoolDamaged(
                f"the key file is not the key of {self.file.name}",
                expected="the key that was made with this spool",
                next="restore the key file; without it nobody can read what the spool holds",
            ) from None
        return cipher

    def contents(self) -> Contents:
        """Open every row once, and say what there is.

        Raises:
            SpoolDamaged: Rows do not open; `damaged` says how many.
        """
        streams: dict[str, Held] = {}
        refused = refused_bytes = last = 0
        damaged: list[SpoolDamaged] = []
        try:
            for row in self.rows(damaged=damaged):
                held = streams.get(row.stream, Held(0, 0, row.at_ms))
                streams[row.stream] = Held(held.copies + 1, held.bytes + len(row.copy.body), held.oldest_ms)
            for kept in self.refused(damaged=damaged):
                refused += 1
                refused_bytes += len(kept.refused.copy.body)
            last = self._connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()[0]
        except sqlite3.Error as error:
            raise self.failure(error) from error
        if damaged:
            damaged[0].details["damaged"] = len(damaged)
            raise damaged[0]
        return Contents(streams, refused, refused_bytes, last)

    # --- reading -----------------------------------------------------------------------------------------------------

    def rows(self, damaged: list[SpoolDamaged] | None = None) -> Iterator[Row]:
        """Every copy in order; what does not open goes to *damaged*, and without one is raised."""
        query = f"{_SELECT} ORDER BY copies.id"
        yield from _opened(self._row, self._connection.execute(query), damaged)

    def read(self, stream: str, after: int, limit: int, max_bytes: int) -> list[Row]:
        """The next copies of a stream in order: at least one where there is one, at most *limit* and *max_bytes*.

        Raises:
            SpoolDamaged: A row does not open.
        """
        rows: list[Row] = []
        query = f"{_SELECT} WHERE copies.stream = ? AND copies.id > ? ORDER BY copies.id LIMIT ?"
        for raw in self._connection.execute(query, (stream, after, limit)):
            row = self._row(raw)
            max_bytes -= len(row.copy.body)
            if rows and max_bytes < 0:
                break
            rows.append(row)
        return rows

    def refused(self, damaged: list[SpoolDamaged] | None = None) -> Iterator[RefusedRow]:
        """Every refused copy; what does not open as for `rows`."""
        query = "SELECT id, stream, at_ms, sealed FROM refused ORDER BY id"
        yield from _opened(self._refused, self._connection.execute(query), damaged)

    def _row(self, raw: tuple[int, str, int, bytes, bytes | None]) -> Row:
        number, stream, at_ms, sealed, sent = raw
        copy = self.cipher.open(Place(COPIES, number, stream, at_ms), sealed, Copy)
        known = NOT_SENT if sent is None else self.cipher.open(Place(SENT, number), sent, Sent)
        return Row(number, stream, at_ms, copy, known)

    def _refused(self, raw: tuple[int, str, int, bytes]) -> RefusedRow:
        number, stream, at_ms, sealed = raw
        return RefusedRow(*raw[:3], self.cipher.open(Place(REFUSED, number, stream, at_ms), sealed, Refused))

    # --- writing: within `begin` and `commit` -------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction."""
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """End it; when this returns, the disk has it."""
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        """Undo it, if there is one."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def append(self, rows: Sequence[Row]) -> None:
        """Add copies, with how they were sent before."""
        seal = self._seal
        self._connection.executemany(
            "INSERT INTO copies (id, stream, at_ms, sealed) VALUES (?, ?, ?, ?)",
            [(r.id, r.stream, r.at_ms, seal(Place(COPIES, r.id, r.stream, r.at_ms), r.copy)) for r in rows],
        )
        self.mark_sent([(row.id, row.sent) for row in rows if row.sent is not NOT_SENT])

    def mark_sent(self, sent: Sequence[tuple[int, Sent]]) -> None:
        """Remember how copies are about to be sent."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO sent (id, sealed) VALUES (?, ?)",
            [(number, self._seal(Place(SENT, number), known)) for number, known in sent],
        )

    def delete(self, ids: Sequence[int]) -> None:
        """Forget copies that their stream has."""
        keys = [(number,) for number in ids]
        self._connection.executemany("DELETE FROM copies WHERE id = ?", keys)
        self._connection.executemany("DELETE FROM sent WHERE id = ?", keys)

    def refuse(self, rows: Sequence[Row], reason: str, now_ms: int) -> list[RefusedRow]:
        """Put copies aside that may not be sent any more.

        Returns:
            The oldest refused copies, which are gone: those that there is no room for in `REFUSED_BYTES`.
        """
        self._connection.executemany(
            "INSERT INTO refused (id, stream, at_ms, sealed) VALUES (?, ?, ?, ?)",
            [
                (r.id, r.stream, r.at_ms, self._seal(Place(REFUSED, r.id, r.stream, r.at_ms), content))
                for r in rows
                for content in [Refused(r.copy, reason, now_ms)]
            ],
        )
        self.delete([row.id for row in rows])
        return self._trim_refused()

    def _trim_refused(self) -> list[RefusedRow]:
        execute = self._connection.execute
        over = execute("SELECT coalesce(sum(length(sealed)), 0) FROM refused").fetchone()[0] - REFUSED_BYTES
        oldest: list[RefusedRow] = []
        for raw in execute("SELECT id, stream, at_ms, sealed FROM refused ORDER BY id") if over > 0 else ():
            oldest.append(self._refused(raw))
            over -= len(raw[3])
            if over <= 0:
                break
        self.forget_refused([row.id for row in oldest])
        return oldest

    def forget_refused(self, ids: Iterable[int]) -> None:
        """Remove refused copies that somebody has taken."""
        self._connection.executemany("DELETE FROM refused WHERE id = ?", [(number,) for number in ids])

    def tidy(self) -> None:
        """Give the disk back what an empty spool does not need. Outside a transaction."""
        self._connection.execute("PRAGMA incremental_vacuum").fetchall()
        self.checkpoint()

    def checkpoint(self) -> None:
        """Bring the log into the file, and cut it to nothing. Outside a transaction."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def shrink(self, pages: int) -> bool:
        """Give up to *pages* unused pages back to the disk; whether there were any. Outside a transaction."""
        unused = bool(self._connection.execute("PRAGMA freelist_count").fetchone()[0])
        if unused:
            self._connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
        self.checkpoint()
        return unused

    def bound(self, extra_bytes: int) -> None:
        """Let the file take its bound and so much more."""
        pages = page_bound(self._max_bytes) + extra_bytes // PAGE_BYTES
        self._connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()

    def _seal(self, place: Place, content: Copy | Sent | Refused) -> bytes:
        return self.cipher.seal(place, content, os.urandom(NONCE_BYTES))


_SELECT = (
    "SELECT copies.id, copies.stream, copies.at_ms, copies.sealed, sent.sealed FROM copies "
    "LEFT JOIN sent ON sent.id = copies.id"
)


def _opened(
    opener: Callable[[Any], _T], rows: Iterable[tuple[Any, ...]], damaged: list[SpoolDamaged] | None
) -> Iterator[_T]:
    for raw in rows:
        try:
            row = opener(raw)
        except SpoolDamaged as error:
            if damaged is None:
                raise
            damaged.append(error)
        else:
            yield row
