"""The request that hands events to an application. What can be written in header fields is, percent-encoded.

    structured          the event as one JSON text
    binary              attributes as `ce-` fields, the data as the body; what has no form there goes structured, and so
                        does data that calls itself an event: a receiver would read that one instead
    batch               a JSON array of events
    standard-webhooks   structured, with the three `webhook-` fields that sign it

Beside the event there are `traceparent` and `tracestate`, as the event has them, so that an instrumented application
goes on with the trace; and fields of ours: `Mesh-Subscription`, `Mesh-Attempt` (deliveries so far, this one included),
`Mesh-Replay` and `Mesh-Redrive` (the run that brought it again), `Mesh-Stale-Trust` (see `mesh.inbound.Admitted`).

Source: CloudEvents HTTP protocol binding 1.0.2, 3.1 to 3.3; CloudEvents distributed tracing extension.
"""

from __future__ import annotations

import binascii
import re
import string
from base64 import b64decode
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from mesh.event import BATCH_CONTENT_TYPE, CONTENT_TYPE, JSON, encode
from mesh.headers import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mesh.inbound import Admitted

MAX_FIELD_BYTES = 6144  # of `ce-` fields: most servers take 8 KiB of header; an event with more goes structured

EVENTS = "application/cloudevents"  # with this before it a body is read as events, whatever `ce-` fields say (3)

_PLAIN = "".join(c for c in string.printable if "!" <= c <= "~" and c not in '"%')  # binding 1.0.2, 3.1.3.2
_DATA = frozenset({"data", "data_base64", "datacontenttype"})
_TRACE = ("traceparent", "tracestate")
_name = re.compile(r"[a-z0-9]{1,64}").fullmatch
_visible = re.compile(r"[!-~](?:[\t -~]*[!-~])?").fullmatch


class Request(NamedTuple):
    """What is posted."""

    headers: list[tuple[str, str]]
    body: bytes


def structured(fields: Mapping[str, Any]) -> Request:
    """One event as JSON."""
    return Request([("Content-Type", CONTENT_TYPE)], encode(fields))


def batch(events: Sequence[Mapping[str, Any]]) -> Request:
    """Events as a JSON array."""
    return Request([("Content-Type", BATCH_CONTENT_TYPE)], b"[" + b",".join(map(encode, events)) + b"]")


def binary(fields: Mapping[str, Any]) -> Request:
    """One event with its attributes in header fields; structured where an attribute or the data has no form there."""
    headers = [("Content-Type", str(fields.get("datacontenttype", JSON)))]
    if headers[0][1].strip().lower().startswith(EVENTS):
        return structured(fields)
    for name, value in fields.items():
        if name in _DATA or value is None:
            continue
        text = _text(value)
        if text is None or not _name(name):
            return structured(fields)
        headers.append((PREFIX + name, quote(text, safe=_PLAIN)))
    body = _body(fields, headers[0][1])
    size = sum(len(name) + len(value) + 4 for name, value in headers)
    if body is None or size > MAX_FIELD_BYTES or not _visible(headers[0][1]):
        return structured(fields)
    return Request(headers, body)


def beside(event: Admitted, subscription: str) -> list[tuple[str, str]]:
    """The fields that go with one event, whatever the mode."""
    headers = [("Mesh-Subscription", subscription), ("Mesh-Attempt", str(event.attempt))]
    headers += [(name, event.fields[name]) for name in _TRACE if _visible(str(event.fields.get(name, "")))]
    for name, run in (("Mesh-Replay", event.replay), ("Mesh-Redrive", event.redrive)):
        if run:
            headers.append((name, quote(run, safe=_PLAIN)))
    if event.stale_trust:
        headers.append(("Mesh-Stale-Trust", "true"))
    return headers


def _text(value: object) -> str | None:
    """An attribute as the type system writes it (CloudEvents 1.0.2, 3.1); None where it has no such form."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else None


def _body(fields: Mapping[str, Any], media: str) -> bytes | None:
    """The data as *media* has it; None where it has no such form, as a mask may have left it."""
    encoded, data = fields.get("data_base64"), fields.get("data")
    if encoded is not None:
        try:
            return b64decode(encoded, validate=True)
        except (TypeError, ValueError, binascii.Error):
            return None
    if data is None:
        return b""
    kind = media.partition(";")[0].strip().lower()
    if kind.endswith(("/json", "+json")):
        return encode(data)
    return data.encode() if isinstance(data, str) else None
