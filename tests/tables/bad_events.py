"""Rows of `bad_events.json` as requests, for the tests of the parser and of the agent's door alike.

A row has `name`, `mode` (structured, batch, binary), the `code` and `status` it gets (`index` where one event of a
batch is at fault), and how its request differs from the good event `base`:
    set, unset          attributes to change and to leave out (binary: `ce-` headers)
    data_text, data_hex the data, as text or bytes that stand where JSON should; `data_repeat` times
    text, hex           the whole body; `text_repeat` times, or `text_depth` arrays around nothing
    depth, braces       an event nested that deep, in arrays or objects
    size                an event (binary: a body) of exactly that many bytes
    numbers             data of that many `1e15`
    copies, last        a batch of that many; `last` changes one more at its end
    headers             more header fields; `header_count` fills up to that many
    content_type        binary only; JSON otherwise
A string may be `{"text", "then", "times"}`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLE = json.loads(Path(__file__).with_name("bad_events.json").read_text(encoding="utf-8"))
BASE: dict[str, Any] = _TABLE["base"]
_TYPES = {"structured": "application/cloudevents+json", "batch": "application/cloudevents-batch+json"}


@dataclass(frozen=True)
class Request:
    """What a sender sends, and what it gets. `headers` are without Content-Type."""

    name: str
    mode: str
    headers: list[tuple[str, str]]
    body: bytes
    content_type: str
    code: str
    status: int
    index: int | None


def _long(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"text", "then", "times"}:
            return value["text"] + value["then"] * value["times"]
        return {name: _long(item) for name, item in value.items()}
    return [_long(item) for item in value] if isinstance(value, list) else value


def _attributes(row: dict[str, Any]) -> dict[str, Any]:
    changed = {**BASE, **row.get("set", {})}
    return {name: value for name, value in changed.items() if name not in row.get("unset", [])}


def _with_data(event: dict[str, Any], data: bytes) -> bytes:
    rest = json.dumps({name: value for name, value in event.items() if name != "data"}).encode()
    return rest[:-1] + b', "data": ' + data + b"}"


def _filled(event: dict[str, Any], size: int) -> bytes:
    """The event with a string of data that makes it exactly *size* bytes once re-encoded."""
    extra = {"datacontenttype": "application/json", "correlationid": event["id"], "data": ""}
    spare = size - len(json.dumps({**event, **extra}, separators=(",", ":")))
    return json.dumps({**event, "data": "x" * spare}).encode()


def _event(row: dict[str, Any]) -> bytes:
    event = _attributes(row)
    if "size" in row:
        return _filled(event, row["size"])
    if "depth" in row:
        levels = row["depth"] - 1
        opened, closed = (b'{"a":', b"}") if row.get("braces") else (b"[", b"]")
        return _with_data(event, opened * levels + b"1" * bool(row.get("braces")) + closed * levels)
    if "numbers" in row:
        return _with_data(event, b"[" + b",".join([b"1e15"] * row["numbers"]) + b"]")
    if "data_text" in row:
        return _with_data(event, (row["data_text"] * row.get("data_repeat", 1)).encode())
    if "data_hex" in row:
        return _with_data(event, bytes.fromhex(row["data_hex"]))
    return json.dumps(event).encode()


def _body(row: dict[str, Any]) -> bytes:
    if "hex" in row:
        return bytes.fromhex(row["hex"])
    if "text" in row:
        return str(row["text"] * row.get("text_repeat", 1)).encode()
    if "text_depth" in row:
        return bytes(b"[" * row["text_depth"] + b"]" * row["text_depth"])
    if row["mode"] == "binary":
        return bytes(b"x" * row["size"]) if "size" in row else json.dumps(BASE["data"]).encode()
    if row["mode"] == "structured":
        return _event(row)
    events = [_event(row)] * row["copies"]
    if "last" in row:
        events.append(json.dumps({**BASE, **row["last"]}).encode())
    return b"[" + b",".join(events) + b"]"


def _headers(row: dict[str, Any]) -> list[tuple[str, str]]:
    if row["mode"] != "binary":
        return []
    attributes = _attributes(row) if row.get("base", True) else {}
    headers = [(f"ce-{name}", str(value)) for name, value in attributes.items() if name != "data"]
    headers += [(name, value) for name, value in row.get("headers", [])]
    return headers + [(f"X-Filler-{i}", "x") for i in range(row.get("header_count", 0) - len(headers))]


def request(row: dict[str, Any]) -> Request:
    """One row as the request it stands for."""
    row = _long(row)
    content_type = _TYPES.get(row["mode"]) or row.get("content_type", "application/json")
    return Request(
        f"{row['mode']}: {row['name']}",
        row["mode"],
        _headers(row),
        _body(row),
        content_type,
        row["code"],
        row["status"],
        row.get("index"),
    )


def requests() -> list[Request]:
    """Every row of the table."""
    return [request(row) for row in _TABLE["rows"]]
