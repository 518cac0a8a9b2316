"""Looking into the spool of an agent that does not run: what is there, and all of it as JSON lines. It only reads."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from agent.spool.database import Database
from agent.spool.record import Held
from mesh.errors import ConfigError, MeshError, SpoolDamaged
from mesh.subjects import parse_physical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from agent.settings import AgentSettings
    from agent.spool.record import Copy, RefusedRow

MAX_LISTED = 1000  # refused copies that are named

_T = TypeVar("_T")


class Inspection(NamedTuple):
    """What a spool holds, without a value of any event.

    Attributes:
        streams: By stream.
        refused: The first `MAX_LISTED` copies that may not be sent any more: event, source, type, view, reason, time.
        refused_copies: How many there are.
        damaged: How many rows cannot be read; a log that lost synced commits, however many, counts for one more.
        lost: What is wrong with such a log, and what to do; empty where nothing is.
    """

    streams: dict[str, Held]
    refused: list[dict[str, Any]]
    refused_copies: int
    damaged: int
    lost: str

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        streams = {stream: held._asdict() for stream, held in self.streams.items()}
        return self._asdict() | {"streams": streams}


class Exported(NamedTuple):
    """What was written: copies that wait, refused ones by their number; `damaged` and `lost` as in `Inspection`."""

    copies: int
    refused: list[int]
    damaged: int
    lost: str


def open_stopped(settings: AgentSettings, base: Path, *, read_only: bool = True) -> Database:
    """The spool that *settings* name, of an agent that does not run.

    Raises:
        ConfigError: There is none, or the agent runs.
        SpoolDamaged: Nothing of it can be read.
    """
    if not settings.spool_file:
        raise ConfigError("this agent has no spool", expected="a spool_file in its settings")
    file, key_file = base / settings.spool_file, base / settings.spool_key_file
    return Database(file, key_file, max_bytes=settings.spool_max_bytes, read_only=read_only)


def inspect(database: Database) -> Inspection:
    """Count what there is, and name what was refused."""
    streams: dict[str, Held] = {}
    damaged = _lost(database)
    for row in _readable(database, database.rows, damaged):
        held = streams.get(row.stream, Held(0, 0, row.at_ms))
        streams[row.stream] = Held(held.copies + 1, held.bytes + len(row.copy.body), held.oldest_ms)
    refused: list[dict[str, Any]] = []
    count = 0
    for put_aside in _readable(database, database.refused, damaged):
        count += 1
        if count <= MAX_LISTED:
            refused.append(_named(put_aside))
    return Inspection(streams, refused, count, len(damaged), _said(database))


def export(database: Database, out: BinaryIO) -> Exported:
    """Write every copy as a JSON line, decrypted: those that wait, then those that were refused."""
    copies = 0
    refused: list[int] = []
    damaged = _lost(database)
    for row in _readable(database, database.rows, damaged):
        sent = {"generation": row.sent.generation, "first_signed_ms": row.sent.first_signed_ms}
        _write(out, {"table": "copies", "id": row.id, "stream": row.stream, "at_ms": row.at_ms} | sent, row.copy)
        copies += 1
    for put_aside in _readable(database, database.refused, damaged):
        why = {"reason": put_aside.refused.reason, "refused_ms": put_aside.refused.refused_ms}
        place = {"id": put_aside.id, "stream": put_aside.stream, "at_ms": put_aside.at_ms}
        _write(out, {"table": "refused", **place, **why}, put_aside.refused.copy)
        refused.append(put_aside.id)
    return Exported(copies, refused, len(damaged), _said(database))


def forget_refused(database: Database, ids: list[int]) -> None:
    """Remove refused copies that were exported.

    Raises:
        MeshError: The file cannot be written.
    """
    try:
        database.begin()
        database.forget_refused(ids)
        database.commit()
        database.tidy()
    except sqlite3.Error as error:
        raise database.failure(error) from error


def _lost(database: Database) -> list[MeshError]:
    return [] if database.lost is None else [database.lost]


def _said(database: Database) -> str:
    return "" if database.lost is None else f"{database.lost.message}; {database.lost.next}"


def _readable(
    database: Database, read: Callable[[list[SpoolDamaged]], Iterator[_T]], damaged: list[MeshError]
) -> Iterator[_T]:
    """Rows as far as they can be read: a page that is none ends its table."""
    rows: list[SpoolDamaged] = []
    try:
        yield from read(rows)
    except sqlite3.Error as error:
        damaged.append(database.failure(error))
    damaged.extend(rows)


def _named(row: RefusedRow) -> dict[str, Any]:
    copy, refused = row.refused.copy, row.refused
    place = parse_physical(copy.subject)
    facts = {"event": copy.event_id, "source": copy.source, "type": place.type, "view": place.view}
    return facts | {"reason": refused.reason, "at_ms": row.at_ms, "refused_ms": refused.refused_ms}


def _write(out: BinaryIO, facts: dict[str, Any], copy: Copy) -> None:
    event: Any = copy.body.decode(errors="replace")
    with suppress(msgspec.DecodeError):
        event = msgspec.json.decode(copy.body)
    line = facts | {"subject": copy.subject, "source": copy.source, "event_id": copy.event_id, "event": event}
    out.write(msgspec.json.encode(line) + b"\n")
