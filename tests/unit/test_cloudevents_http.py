"""CloudEvents over HTTP, in all three modes and both directions: what our door reads, and what push writes.

Rows of `tests/tables/cloudevents_http.json`: a request and its events. One direction where it says `only`: `in` is what
others may write and we do not, `out` is how we write what the door would refuse or read otherwise.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from agent.push import requests
from agent.push.requests import Request
from mesh.event import Draft, draft_from_binary, draft_from_structured, drafts_from_batch
from tests.conftest import ROOT

ROWS: list[dict[str, Any]] = json.loads((ROOT / "tests" / "tables" / "cloudevents_http.json").read_text())
INCOMING = [row for row in ROWS if row.get("only") != "out"]
OUTGOING = [row for row in ROWS if row.get("only") != "in"]
NOW_MS = 1_769_860_800_000
OURS = ("correlationid",)  # filled in at the door


def _sdk_reads(row: dict[str, Any]) -> bool:
    """It has no batches, and refuses data that a mask has made something other than its media type says."""
    return row["mode"] != "batch" and "a mask has" not in row["name"]


def body_of(row: dict[str, Any]) -> bytes:
    """The body of a row's request."""
    return bytes.fromhex(row["body_hex"]) if "body_hex" in row else str(row["body"]).encode()


def read(row: dict[str, Any]) -> list[Draft]:
    """What the door makes of it."""
    body = body_of(row)
    if row["mode"] == "batch":
        return drafts_from_batch(body, now_ms=NOW_MS)
    if row["mode"] == "structured":
        return [draft_from_structured(body, now_ms=NOW_MS)]
    headers = dict(row["headers"])
    media = headers.get("content-type") or headers.get("Content-Type")
    return [draft_from_binary(headers.items(), body, media, now_ms=NOW_MS)]


def write(mode: str, events: list[dict[str, Any]]) -> Request:
    """What push makes of events."""
    if mode == "batch":
        return requests.batch(events)
    return (requests.binary if mode == "binary" else requests.structured)(events[0])


@pytest.mark.parametrize("row", INCOMING, ids=lambda row: row["name"])
def test_the_door_reads_it(row: dict[str, Any]) -> None:
    """Each request is read as exactly the events of its row."""
    read_ = [{name: value for name, value in draft.fields.items() if name not in OURS} for draft in read(row)]
    assert read_ == row["events"]


@pytest.mark.parametrize("row", OUTGOING, ids=lambda row: row["name"])
def test_push_writes_it(row: dict[str, Any]) -> None:
    """The events of each row are written as exactly its request, byte by byte."""
    request = write(row["mode"], row["events"])
    assert {name.lower(): value for name, value in request.headers} == row["headers"]
    assert len(request.headers) == len(row["headers"])
    assert request.body == body_of(row)


@pytest.mark.parametrize("row", [row for row in OUTGOING if _sdk_reads(row)], ids=lambda row: row["name"])
def test_the_official_sdk_reads_what_push_writes(row: dict[str, Any]) -> None:
    """The CloudEvents SDK for Python finds the same attributes and the same data."""
    event = row["events"][0]
    request = write(row["mode"], [event])
    said = from_http_event(HTTPMessage(headers=dict(request.headers), body=request.body))
    found = {name: value for name, value in said.get_attributes().items() if value is not None}
    assert {n: str(v) for n, v in found.items() if n != "time"} == {
        n: _as_text(v, row["mode"]) for n, v in event.items() if n not in ("data", "data_base64", "time")
    }
    assert found["time"].isoformat() == "2026-01-31T12:00:00+00:00"


@pytest.mark.parametrize("write_", [to_binary_event, to_structured_event], ids=["binary", "structured"])
@pytest.mark.parametrize("subject", ["plain", "Euro \u20ac \U0001f600", 'a "b" 100%', "a b"])
def test_the_door_reads_what_the_official_sdk_writes(write_: Any, subject: str) -> None:
    """An event made by the CloudEvents SDK for Python arrives as it was made."""
    attributes = {"id": "1", "source": "/crm", "type": "crm.contact.created.v1", "subject": subject, "region": "eu1"}
    message = write_(CloudEvent({**attributes, "datacontenttype": "application/json"}, {"country": "DE"}))
    body = message.body if isinstance(message.body, bytes) else message.body.encode()
    headers = {name.lower(): value for name, value in message.headers.items()}
    if "ce-specversion" in headers:
        draft = draft_from_binary(headers.items(), body, headers["content-type"], now_ms=NOW_MS)
    else:
        draft = draft_from_structured(body, now_ms=NOW_MS)
    assert {name: draft.fields[name] for name in attributes} == attributes
    assert draft.fields["data"] == {"country": "DE"}


def _as_text(value: Any, mode: str) -> str:
    """As the SDK hands it over: a header field is text, JSON has booleans."""
    return str(value).lower() if isinstance(value, bool) and mode == "binary" else str(value)
