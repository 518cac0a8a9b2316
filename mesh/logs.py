"""One event name per line, with ids and codes: JSON off a terminal, a short line on one. Never an event's values.

    log = logs.get("agent")
    log.info("spool_opened", events=12)
    log.warning("event_rejected", code=error.code, id=event_id)

Event names are snake_case and stable: they are what an operator greps and alerts on. Lines go to stderr, so that
stdout stays what a command prints. Other libraries' records appear as `library_log` with their logger, level and the
place they came from; of their text only the unformatted first line is kept, since arguments and reprs may hold event
data. For the same reason an exception that is not ours is named by its type and place, without its text.

A line that is written while a request or an event with a trace is worked on has `trace_id` and `span_id`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, TextIO

import msgspec

from mesh.errors import MeshError
from mesh.tracing import ids, is_traceparent

MAX_TEXT = 300  # characters of one field; an error sentence fits, a payload does not
_MAX_FOREIGN_TEXT = 120  # characters of another library's line: enough to recognise it
_ROOT = "mesh"  # our loggers live below it, so that libraries' records can be told apart
_FIELDS = "mesh_fields"

_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_COLOURS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}


_traces: list[Callable[[], str | None]] = []
_request: ContextVar[str | None] = ContextVar("mesh_log_trace", default=None)


def look_for_trace(find: Callable[[], str | None]) -> None:
    """Ask *find* for the `traceparent` of what is worked on, whenever a line is written; the latest is asked first."""
    _traces.insert(0, find)


@contextmanager
def of_trace(traceparent: str | None) -> Iterator[None]:
    """Lines of this block belong to a trace, unless it is no valid one."""
    token = _request.set(traceparent)
    try:
        yield
    finally:
        _request.reset(token)


look_for_trace(_request.get)


class Log:
    """Writes named events of one part of the mesh."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"{_ROOT}.{name}")

    def debug(self, event: str, **fields: Any) -> None:
        """For whoever develops this; off by default."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """A change of state an operator may want to see: started, connected, adopted, drained."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something failed and the mesh copes by itself."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something failed and somebody has to look."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, error: BaseException, **fields: Any) -> None:
        """An error nobody foresaw: its type and the line it came from, never its text, which may quote an event."""
        self._write(logging.ERROR, event, {**fields, **_exception_fields(error)})

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if not self._logger.isEnabledFor(level):
            return
        fields |= _trace()
        # where nobody set up logging, Python's last resort prints the message alone
        message = event if self._logger.hasHandlers() else f"{event} {_text(fields)}".rstrip()
        self._logger.log(level, message, extra={_FIELDS: fields})


def get(name: str) -> Log:
    """The log of one part of the mesh: `agent`, `feed`, `control`."""
    return Log(name)


def setup(
    service: str, json: bool | None = None, *, level: str = "info", stream: TextIO | None = None
) -> logging.Handler:
    """Send every record of this process to stderr; a second call replaces the first.

    Args:
        service: The process, as it stands in every JSON line: `agent`, `control`, `cli`.
        json: True for JSON lines, False for short ones; None asks the stream whether it is a terminal.
        level: The least of our own records to write. Libraries' records below `warning` are dropped.
        stream: Where to, if not stderr.

    Returns:
        The handler, so that a test can take it off again.
    """
    out = stream or sys.stderr
    terminal = out.isatty()
    as_json = not terminal if json is None else json
    colours = terminal and not os.environ.get("NO_COLOR")  # the NO_COLOR convention: set to anything means none
    handler = _Handler(out)
    handler.setFormatter(_JsonFormatter(service) if as_json else _ShortFormatter(colours=colours))
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(level.upper())
    return handler


class _Handler(logging.StreamHandler[TextIO]):
    """Never lets a record that cannot be written stop its caller, and never prints it in another form."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """A closed pipe or a full disk: the line is lost. Standard logging would print the record's arguments."""


class _JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        log, event, fields = _parts(record)
        level = record.levelname.lower()
        line = {"time": _time(record), "level": level, "service": self._service, "log": log, "event": event}
        return msgspec.json.encode({**line, **{k: v for k, v in fields.items() if k not in line}}).decode()


class _ShortFormatter(logging.Formatter):
    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        log, event, fields = _parts(record)
        level = record.levelname.lower()
        time = _time(record)[11:23]
        text = _text(fields)
        if not self._colours:
            return f"{time} {level:<7} {log} {event} {text}".rstrip()
        return f"{_DIM}{time}{_RESET} {_COLOURS[level]}{level:<7}{_RESET} {log} {event} {_DIM}{text}{_RESET}"


def _parts(record: logging.LogRecord) -> tuple[str, str, dict[str, Any]]:
    """Logger, event name and fields, each safe to write on one line."""
    fields = getattr(record, _FIELDS, None)
    if fields is not None:
        return record.name.removeprefix(f"{_ROOT}."), str(record.msg), {k: _plain(v) for k, v in fields.items()}
    first = str(record.msg).partition("\n")[0][:_MAX_FOREIGN_TEXT]
    foreign: dict[str, Any] = {"text": _plain(first), "at": f"{record.filename}:{record.lineno}"}
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        foreign |= _exception_fields(error)
    return record.name, "library_log", foreign


def _trace() -> dict[str, str]:
    for find in _traces:
        if (found := find()) and is_traceparent(found):
            trace_id, span_id = ids(found)
            return {"trace_id": trace_id, "span_id": span_id}
    return {}


def _text(fields: dict[str, Any]) -> str:
    return " ".join(f"{name}={_plain(value)}" for name, value in fields.items())


def _plain(value: Any) -> Any:
    """Numbers and truth as they are; errors by code or type; the rest as short text without control characters."""
    match value:
        case None | bool() | int() | float():
            return value
        case MeshError():
            text = value.code
        case BaseException():
            text = type(value).__name__
        case bytes() | bytearray() | memoryview():
            text = f"<{len(value)} bytes>"
        case _:
            text = str(value)
    text = "".join(c if c.isprintable() else "�" for c in text[: MAX_TEXT + 1])
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _exception_fields(error: BaseException) -> dict[str, Any]:
    fields: dict[str, Any] = {"error": type(error).__name__}
    if isinstance(error, MeshError):
        fields |= {"code": error.code, "message": error.message}  # our sentences never quote an event's values
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None:
        fields["raised_at"] = f"{PurePath(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    return fields


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
