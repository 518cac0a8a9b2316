"""The CloudEvent as it travels: what is accepted at the door, in three modes, and how it is written.

Rules of this file:
  1. What travels is what one parser (msgspec) read and one encoder wrote. So duplicate keys (the last wins), NaN, byte
     order marks and lone surrogates end here. A text that is surely what both would make of it is not taken apart
     (`text_from_structured`, `mesh/verbatim.py`).
  2. A `Draft` is an accepted event: its attributes hold to the grammar, its size and depth to the limits.
  3. Everything refused raises an `InputError`, which names attributes, types and lengths and never repeats data.

Source: CloudEvents 1.0.2, JSON event format 1.0.2, HTTP protocol binding 1.0.2.
"""

from __future__ import annotations

import math
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from mesh import native
from mesh.attributes import (
    ATTRIBUTES_NEVER_MASKED,
    GRAMMAR,
    RESERVED,
    SOURCES,
    TYPES,
    Limits,
    check_required,
    check_rest,
    keep,
)
from mesh.content import check_base64, set_data
from mesh.errors import InputError, NotJson, TooLarge
from mesh.expiry import expired, refuse_expired
from mesh.headers import PREFIX, attribute_value, check_headers
from mesh.headers import refuse as refuse_header
from mesh.jsontext import decode, encode, not_json, too_deep
from mesh.tracing import TRACESTATE, shortened
from mesh.verbatim import glimpse, verbatim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mesh.verbatim import Wanted

__all__ = [
    "ATTRIBUTES_NEVER_MASKED",
    "BATCH_CONTENT_TYPE",
    "CONTENT_TYPE",
    "RESERVED",
    "Draft",
    "Limits",
    "check_headers",
    "decode",
    "draft_from_binary",
    "draft_from_fields",
    "draft_from_structured",
    "drafts_from_batch",
    "encode",
    "events_of_batch",
    "expired",
    "fields_from_structured",
    "refuse_expired",
    "rfc3339",
    "text_from_structured",
]

CONTENT_TYPE = "application/cloudevents+json"
BATCH_CONTENT_TYPE = "application/cloudevents-batch+json"
JSON = "application/json"

_DEFAULT = Limits()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_GROWTH = 6  # re-encoding adds at most this factor: `1e15` becomes `1000000000000000.0`
_MAX_ADDED_BYTES = 512  # and this many bytes: time, datacontenttype and correlationid where the sender named none
_decode_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Draft(msgspec.Struct, eq=False, gc=False):
    """An accepted event: nothing decided, masked or signed yet.

    Attributes:
        fields: CloudEvents attributes by name, and `data` or `data_base64` where there is one. Owned by the draft.
    """

    fields: dict[str, Any]

    def __repr__(self) -> str:
        return "Draft(...)"  # without the event's values

    @property
    def id(self) -> str:
        """Unique within its source."""
        return self.fields["id"]  # type: ignore[no-any-return]  # checked at the door

    @property
    def source(self) -> str:
        """The URI reference of what it happened to."""
        return self.fields["source"]  # type: ignore[no-any-return]  # checked at the door

    @property
    def type(self) -> str:
        """Logical: as the sender wrote it."""
        return self.fields["type"]  # type: ignore[no-any-return]  # checked at the door

    @property
    def partitionkey(self) -> str | None:
        """Events with an equal key keep their order."""
        return self.fields.get("partitionkey")

    @property
    def correlationid(self) -> str:
        """Shared by all events of one chain; the own id where the sender named none."""
        return self.fields["correlationid"]  # type: ignore[no-any-return]  # filled in at the door


def rfc3339(ms: int) -> str:
    """Unix milliseconds as `2026-01-31T12:00:00.000Z`."""
    return f"{_second(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


# --- the three modes, and the fourth without HTTP --------------------------------------------------------------------


def draft_from_structured(body: bytes, *, now_ms: int, limits: Limits = _DEFAULT) -> Draft:
    """Accept one event as `application/cloudevents+json`.

    Args:
        body: The whole body.
        now_ms: Unix milliseconds; the event's `time` where it names none.
        limits: What is too large.

    Raises:
        InputError: NotJson, TooLarge, BadAttribute, ReservedAttribute or BadType.
    """
    return Draft(fields_from_structured(body, now_ms, limits))


def fields_from_structured(body: bytes, now_ms: int, limits: Limits) -> dict[str, Any]:
    """The `Draft.fields` of one structured event, for who decides at once and keeps no draft. Arguments as above.

    Raises:
        InputError: As `draft_from_structured`.
    """
    size = len(body)
    if size > limits.max_batch_bytes:
        _too_large("body", size, limits.max_batch_bytes)
    return _accept(decode(body, max_depth=limits.max_depth), size, now_ms, limits)


@native.twin
def text_from_structured(  # noqa: PLR0917 - called once for each event: names would take longer
    body: bytes,
    now_ms: int,
    max_body: int,
    max_depth: int,
    max_event: int,
    known: tuple[str, Wanted],
    reads: Callable[[str], Wanted],
) -> tuple[bytes, bytes, dict[str, Any], tuple[str, Wanted]] | None:
    """One structured event without taking it apart, where that is surely the same: for who shows most of it as it is.

    Args:
        body: As for `draft_from_structured`, and so is the next one.
        now_ms: See there.
        max_body: Of `Limits` the `max_batch_bytes`.
        max_depth: Of them.
        max_event: Of them the `max_event_bytes`.
        known: A type, and what *reads* says of it; another type costs a call.
        reads: What of `data` is read, by the event's type.

    Returns:
        A text, and members to put behind it: that is what `encode` makes of the fields that `fields_from_structured`
        gives; those fields, of `data` only what is read; and what is *known* of their type. None where it is not sure,
        and where the event is to be refused. No view masks these members.
    """
    if len(body) > max_body:
        return None
    text = verbatim(body, max_depth)
    if text is None:
        return None
    fields = glimpse(text, known[1])
    if not plain(fields, SOURCES, TYPES) or "expirytime" in fields:
        return None
    type_ = fields["type"]
    if type_ != known[0]:
        known = type_, reads(type_)
        fields = glimpse(text, known[1])
    more = _fill_in(fields, now_ms).encode()
    return None if len(text) + len(more) > max_event else (text, more, fields, known)


def events_of_batch(body: bytes, limits: Limits = _DEFAULT) -> list[bytes]:
    """The events of `application/cloudevents-batch+json`, each as the bytes of a structured one, which nobody has read.

    Raises:
        InputError: NotJson, TooLarge or TooDeep of the whole.
    """
    _check_body(len(body), limits)
    try:
        events = _decode_batch(body)
    except RecursionError:
        too_deep(limits.max_depth)
    except msgspec.ValidationError:
        raise NotJson("the batch is not a JSON array", expected="a JSON array of events", got="no array") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        not_json(body, error)
    if len(events) > limits.max_batch_events:
        raise TooLarge(
            f"the batch has {len(events)} events, limit {limits.max_batch_events}",
            expected=f"at most {limits.max_batch_events} events",
            got=f"{len(events)} events",
            next="send smaller batches",
            limit=limits.max_batch_events,
            size=len(events),
        )
    return list(map(bytes, events))


def drafts_from_batch(body: bytes, *, now_ms: int, limits: Limits = _DEFAULT) -> list[Draft]:
    """Accept a batch as `application/cloudevents-batch+json`: all of it or nothing.

    Raises:
        InputError: As `draft_from_structured`; `details["index"]` says which event, where it is one of them.
    """
    drafts = []
    for index, event in enumerate(events_of_batch(body, limits)):
        try:
            drafts.append(Draft(_accept(decode(event, max_depth=limits.max_depth), len(event), now_ms, limits)))
        except InputError as error:
            error.details["index"] = index
            raise
    return drafts


def draft_from_binary(
    headers: Iterable[tuple[str, str]],
    body: bytes,
    content_type: str | None,
    *,
    now_ms: int,
    limits: Limits = _DEFAULT,
) -> Draft:
    """Accept one event in binary mode: attributes in `ce-` headers, data as the body.

    Args:
        headers: All header fields of the request, in any case.
        body: The data; empty means none. JSON is parsed, `text/*` becomes a string, anything else `data_base64`.
        content_type: Becomes `datacontenttype`; None means JSON.
        now_ms: Unix milliseconds; the event's `time` where it names none.
        limits: What is too large.

    Raises:
        InputError: As `draft_from_structured`, and BadHeader, TooManyHeaders or UnsupportedMediaType.
    """
    _check_body(len(body), limits)
    fields: dict[str, Any] = {}
    for name, value in check_headers(headers, limits):
        if name.startswith(PREFIX):
            attribute = name[len(PREFIX) :]
            if attribute in ("datacontenttype", "data", "data_base64"):
                refuse_header(name, "data in the body, and its type in Content-Type", "a header for it")
            fields[attribute] = attribute_value(name, value)
    media = JSON if content_type is None else content_type.strip(" \t")
    fields["datacontenttype"] = media
    if body:
        set_data(fields, body, media, limits)
    return Draft(_accept(fields, len(body) * 2 + limits.max_header_bytes, now_ms, limits))


def draft_from_fields(fields: Mapping[str, Any], *, now_ms: int, limits: Limits = _DEFAULT) -> Draft:
    """Accept an event given as Python values; they are copied, and checked like any other.

    Args:
        fields: Attributes by name, and `data` (JSON values; bytes become `data_base64`).
        now_ms: Unix milliseconds; the event's `time` where it names none.
        limits: What is too large.

    Raises:
        InputError: As `draft_from_structured`; NotJson also for values that JSON has no form for.
    """
    given = dict(fields)
    data = given.get("data")
    if isinstance(data, (bytes, bytearray, memoryview)):
        given["data_base64"] = b64encode(given.pop("data")).decode()
    try:
        body = encode(given)
    except RecursionError:
        too_deep(limits.max_depth)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise NotJson(
            "a value of the event has no form in JSON",
            expected="objects with string keys, arrays, strings, numbers, booleans and null",
            got=type(error).__name__,
        ) from None
    _check_body(len(body), limits)
    accepted = _accept(decode(body, max_depth=limits.max_depth), len(body), now_ms, limits)
    if b"null" in body and _has_nan(given):
        raise NotJson("the event holds NaN or an infinity", expected="finite numbers", got="one that is not")
    return Draft(accepted)


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_has_nan(v) for v in value.values())
    return isinstance(value, (list, tuple, set, frozenset)) and any(_has_nan(v) for v in value)


# --- what every mode ends in -----------------------------------------------------------------------------------------


def _check_body(size: int, limits: Limits) -> None:
    if size > limits.max_batch_bytes:
        _too_large("body", size, limits.max_batch_bytes)


def _too_large(what: str, size: int, limit: int) -> NoReturn:
    raise TooLarge(
        f"the {what} has {size} bytes, limit {limit}",
        expected=f"at most {limit} bytes",
        got=f"{size} bytes",
        next="send a reference to large content instead of the content",
        limit=limit,
        size=size,
    )


@native.twin
def plain(fields: dict[str, Any], sources: dict[str, bool], types: dict[str, bool]) -> bool:  # noqa: ARG001
    """Whether all that `_check` would find in order is surely in order. No says nothing.

    Args:
        fields: Of an event.
        sources: Some that match the grammar; segments like `..` in them are looked for here.
        types: Some that match.
    """
    return False  # compiled, it looks; in Python that would take as long as `_check`


def _check(fields: dict[str, Any]) -> None:
    """Hold *fields* to the grammar, and take out what counts as not there."""
    grammar = GRAMMAR
    dropped = []
    for name, value in fields.items():
        match = grammar.get(name)
        if match is not None:
            if value.__class__ is str and match(value):
                continue
        elif name in ("data", "data_base64"):
            continue
        if not keep(name, value):
            dropped.append(name)
    for name in dropped:
        value = fields.pop(name)
        if name == TRACESTATE and (shorter := shortened(value)):
            fields[name] = shorter
    if "id" not in fields or "source" not in fields or "type" not in fields or "specversion" not in fields:
        check_required(fields)
    if "." in fields["source"] or "expirytime" in fields or fields.get("time", "")[5:10] == "02-29":
        check_rest(fields)
    if "tracestate" in fields and "traceparent" not in fields:
        del fields["tracestate"]
    if "data_base64" in fields:
        check_base64(fields)


def _fill_in(fields: dict[str, Any], now_ms: int) -> str:
    """Put behind *fields* what the sender left out; its text, in which nothing needs an escape."""
    more = ""
    if "time" not in fields:
        time = fields["time"] = rfc3339(now_ms)
        more = f',"time":"{time}"'
    if "datacontenttype" not in fields:
        fields["datacontenttype"] = JSON
        more += f',"datacontenttype":"{JSON}"'
    if "correlationid" not in fields:
        event_id = fields["correlationid"] = fields["id"]
        more += f',"correlationid":"{event_id}"'
    return more


def _accept(fields: dict[str, Any], size: int, now_ms: int, limits: Limits) -> dict[str, Any]:
    """Check *fields* and fill in what the sender may leave out; *size* is of the bytes they came in."""
    if not plain(fields, SOURCES, TYPES):
        _check(fields)
    _fill_in(fields, now_ms)
    if size * _MAX_GROWTH + _MAX_ADDED_BYTES > limits.max_event_bytes:
        encoded = len(encode(fields))
        if encoded > limits.max_event_bytes:
            _too_large("event", encoded, limits.max_event_bytes)
    return fields


if native.compiled is not None:
    native.compiled.reading_with(SOURCES, TYPES, rfc3339)
