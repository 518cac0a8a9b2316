"""W3C Trace Context at the door: rows of `tests/tables/trace_context.json`, each with the section that it is from.

The same rows go through a whole mesh in `tests/interop/`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.traced import adopt
from mesh import tracing
from mesh.event import draft_from_binary, draft_from_fields, encode
from tests.conftest import ROOT

ROWS: list[dict[str, Any]] = json.loads((ROOT / "tests" / "tables" / "trace_context.json").read_text())
NOW_MS = 1_769_860_800_000
LIMIT = 262_144
EVENT = {"specversion": "1.0", "id": "1", "source": "/crm", "type": "crm.contact.created.v1"}


def _once(row: dict[str, Any]) -> bool:
    """Whether all of it can stand in `ce-` fields, of which there is one of each name."""
    names = [name.lower() for name, _ in row["headers"]]
    return bool(names) and len(set(names)) == len(names) and "event" not in row


def trace(fields: dict[str, Any]) -> dict[str, Any]:
    """What an event says of its trace."""
    return {name: fields[name] for name in ("traceparent", "tracestate") if name in fields}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_an_event_keeps_the_trace_it_came_with(row: dict[str, Any]) -> None:
    """What is valid is kept to the letter, what is not is left out, and the event is taken either way."""
    draft = draft_from_fields(EVENT | row.get("event", {}), now_ms=NOW_MS)
    adopt([draft], tracing.of_request([(name, value) for name, value in row["headers"]]), LIMIT)
    assert trace(draft.fields) == row["out"]


@pytest.mark.parametrize("row", [row for row in ROWS if _once(row)], ids=lambda row: row["name"])
def test_an_attribute_is_judged_as_a_header_is(row: dict[str, Any]) -> None:
    """The same values as `ce-` fields of binary mode lead to the same trace."""
    headers = {f"ce-{name}": value.strip() for name, value in row["headers"]}
    headers |= {f"ce-{name}": value for name, value in EVENT.items()}
    headers = {name: value.replace("%", "%25").replace('"', "%22") for name, value in headers.items()}
    assert trace(draft_from_binary(headers.items(), b"", None, now_ms=NOW_MS).fields) == row["out"]


def test_an_event_without_room_goes_without() -> None:
    """A trace never makes an event too large."""
    draft = draft_from_fields(EVENT, now_ms=NOW_MS)
    parent = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    size = len(encode(draft.fields | parent))
    adopt([draft], parent, size - 1)
    assert trace(draft.fields) == {}
    adopt([draft], parent, size)
    assert trace(draft.fields) == parent


@pytest.mark.parametrize("state", ["x" * 20_000, 7, None, "a=1," * 140, "é=" + "1" * 600])
def test_what_is_no_list_is_not_shortened(state: object) -> None:
    """Only a well-formed list loses members; anything else is left out whole."""
    assert tracing.shortened(state) is None
