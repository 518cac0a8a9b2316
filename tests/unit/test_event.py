"""The door of the mesh for events: what is taken as it is, what is filled in, and what is refused with which code."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.attributes import REQUIRED
from mesh.errors import BadAttribute, InputError, NotJson, TooDeep, TooLarge
from mesh.event import (
    ATTRIBUTES_NEVER_MASKED,
    RESERVED,
    Draft,
    Limits,
    check_headers,
    decode,
    draft_from_binary,
    draft_from_fields,
    draft_from_structured,
    drafts_from_batch,
    encode,
    rfc3339,
)
from tests.tables.bad_events import BASE, Request, requests

NOW_MS = 1_769_860_800_123
NOW = "2026-01-31T12:00:00.123Z"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
FILLED_IN = {"datacontenttype": "application/json", "correlationid": BASE["id"]}


def structured(**changes: Any) -> Draft:
    """The good event of the table with *changes*, sent in structured mode."""
    return draft_from_structured(json.dumps({**BASE, **changes}).encode(), now_ms=NOW_MS)


def binary(headers: dict[str, str], body: bytes = b"", content_type: str | None = "application/json") -> Draft:
    """The good event's attributes and *headers*, sent in binary mode."""
    fields = {f"ce-{name}": value for name, value in BASE.items() if name != "data"} | headers
    return draft_from_binary(fields.items(), body, content_type, now_ms=NOW_MS)


def send(request: Request) -> list[Draft]:
    """What the door's parser makes of one row."""
    if request.mode == "batch":
        return drafts_from_batch(request.body, now_ms=NOW_MS)
    if request.mode == "binary":
        return [draft_from_binary(request.headers, request.body, request.content_type, now_ms=NOW_MS)]
    return [draft_from_structured(request.body, now_ms=NOW_MS)]


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", requests(), ids=lambda request: request.name)
def test_each_bad_request_gets_its_code(request_: Request) -> None:
    """Each row of the table is refused with its code and status, and says what was expected and what came."""
    with pytest.raises(InputError) as caught:
        send(request_)
    error = caught.value
    assert (error.code, error.status, error.details.get("index")) == (request_.code, request_.status, request_.index)
    assert error.expected
    assert error.got
    assert not error.retryable


@pytest.mark.parametrize("name", ["id", "source", "time", "subject", "partitionkey", "region", "datacontenttype"])
def test_a_refusal_never_repeats_a_value(name: str) -> None:
    """What an attribute held is in no part of the error: it may be personal data."""
    with pytest.raises(InputError) as caught:
        structured(**{name: "Ann Example \x00 secret"})
    assert "Ann" not in repr(caught.value.as_dict())


def test_a_strange_name_is_not_repeated() -> None:
    """An attribute's name is repeated only where it is short and harmless."""
    with pytest.raises(BadAttribute) as caught:
        structured(**{"ann@example.org": "x"})
    assert "ann" not in repr(caught.value.as_dict())


def test_attributes_are_reserved_in_the_library_too() -> None:
    """No way in lets a sender say what only the mesh may say."""
    for name in RESERVED:
        with pytest.raises(InputError) as caught:
            draft_from_fields({**BASE, name: "x"}, now_ms=NOW_MS)
        assert caught.value.code == "reserved-attribute"


# --- accepted --------------------------------------------------------------------------------------------------------


def test_what_the_sender_leaves_out_is_filled_in() -> None:
    """Without them, `time` is now, `datacontenttype` is JSON and `correlationid` is the id; nothing else is added."""
    fields = {name: BASE[name] for name in REQUIRED}
    draft = draft_from_structured(json.dumps(fields).encode(), now_ms=NOW_MS)
    assert draft.fields == {**fields, **FILLED_IN, "time": NOW}


def test_what_the_sender_says_stays() -> None:
    """Every attribute of the grammar, and extensions of all three kinds, come out as they went in."""
    said = {
        **BASE,
        "subject": "contact/c-17, \u00e4\u2028\U0001f600",
        "dataschema": "https://example.org/schemas/contact?version=1#top",
        "datacontenttype": 'application/vnd.example+json; charset="utf-8"',
        "correlationid": "order:1/2+3=4~5",
        "causationid": "c-1",
        "partitionkey": "ann@example.org",
        "expirytime": "2028-02-29T23:59:60.123456789+14:00",
        "traceparent": TRACE,
        "tracestate": "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7,,a@b=x y",
        "region": "eu",
        "urgent": True,
        "priority": -(2**31),
        "empty": "",
    }
    assert draft_from_structured(json.dumps(said).encode(), now_ms=NOW_MS).fields == said


def test_the_draft_names_its_main_attributes() -> None:
    """A draft's properties read the fields; `partitionkey` is None where the sender named none."""
    draft = structured()
    assert (draft.id, draft.source, draft.type) == (BASE["id"], BASE["source"], BASE["type"])
    assert (draft.partitionkey, draft.correlationid) == (None, BASE["id"])
    assert structured(partitionkey="k", correlationid="c").partitionkey == "k"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "a" * 256),
        ("id", "A-Za-z0-9._:/+=~-"),
        ("source", "/" + "a" * 255),
        ("source", "https://example.org:8080/a%20b/c;d=e?f=g&h[]=i#j"),
        ("source", "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66"),
        ("source", "/crm/a..b/.well-known/v1.2"),
        ("source", "/crm?path=../a"),
        ("type", "crm.v1"),
        ("type", "a.b.c.d.e.f.g.h"),
        ("type", "crm.contact_updated.v1-beta"),
        ("type", "a" * 64 + "." + "b" * 64),
        ("time", "2026-01-31T12:00:00Z"),
        ("time", "2026-01-31t12:00:00.1z"),
        ("time", "2024-02-29T00:00:00-23:59"),
        ("time", "2000-02-29T00:00:00+00:00"),
        ("datacontenttype", "text/plain"),
        ("datacontenttype", 'multipart/form-data; boundary="a b\\"c"'),
        ("a" * 20, "x"),
        ("region", 2**31 - 1),
        ("region", False),
        ("region", "x" * 1024),
        ("subject", "\U0001f600" * 1024),
    ],
)
def test_values_at_the_edge_of_the_grammar_are_taken(name: str, value: object) -> None:
    """The longest, the shortest and the oddest value that the grammar allows is taken unchanged."""
    assert structured(**{name: value}).fields[name] == value


@pytest.mark.parametrize("name", ["time", "subject", "tenant", "region", "traceparent", "data_base64", "partitionkey"])
def test_null_is_the_same_as_unset(name: str) -> None:
    """An optional attribute that is null counts as not there (JSON event format 1.0.2, 2)."""
    without = {key: value for key, value in BASE.items() if key != name}
    draft = draft_from_structured(json.dumps({**without, name: None}).encode(), now_ms=NOW_MS)
    assert draft.fields == draft_from_structured(json.dumps(without).encode(), now_ms=NOW_MS).fields


@pytest.mark.parametrize(
    ("traceparent", "kept"),
    [
        (TRACE, True),
        ("cc" + TRACE[2:] + "-what-the-future-brings", True),
        (TRACE + "-more", False),
        ("ff" + TRACE[2:], False),
        (TRACE.upper(), False),
        ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01", False),
        ("", False),
        (7, False),
        (TRACE + "\n", False),
    ],
)
def test_a_broken_traceparent_is_dropped_with_its_state(traceparent: object, *, kept: bool) -> None:
    """A traceparent outside the W3C grammar is dropped, tracestate with it, and the event is taken."""
    fields = structured(traceparent=traceparent, tracestate="a=b").fields
    assert ("traceparent" in fields, "tracestate" in fields) == (kept, kept)


@pytest.mark.parametrize("tracestate", ["a", "A=b", "a=b\n", "a=" + "x" * 257, ",".join(["a=b"] * 33), "a=b=c", 1])
def test_a_broken_tracestate_is_dropped_alone(tracestate: object) -> None:
    """A tracestate outside the W3C grammar is dropped; traceparent stays."""
    fields = structured(traceparent=TRACE, tracestate=tracestate).fields
    assert "tracestate" not in fields
    assert fields["traceparent"] == TRACE


def test_tracestate_without_traceparent_is_dropped() -> None:
    """A tracestate says nothing without its traceparent."""
    assert "tracestate" not in structured(tracestate="a=b").fields


def test_of_duplicate_keys_the_last_wins_and_only_it_is_written() -> None:
    """A member given twice, or once with escapes, is one member afterwards: nothing hides under a second key."""
    body = json.dumps(BASE)[:-1] + r', "subject": "first", "subj\u0065ct": "last", "data": {"a": 1, "\u0061": 2}}'
    draft = draft_from_structured(body.encode(), now_ms=NOW_MS)
    assert (draft.fields["subject"], draft.fields["data"]) == ("last", {"a": 2})
    assert b"first" not in encode(draft.fields)


def test_a_good_duplicate_saves_a_bad_one() -> None:
    """Only the last of two attributes is looked at, since only it is published."""
    body = '{"type": "BAD", "id": 1,' + json.dumps(BASE)[1:]
    assert draft_from_structured(body.encode(), now_ms=NOW_MS).type == BASE["type"]


@pytest.mark.parametrize(
    "number", [2**53 + 1, -(2**53) - 1, 2**63, 2**64 + 1, -(2**63) - 1, 10**30 + 7, 0.1, 5e-324, 1e308]
)
def test_numbers_stay_what_they_are(number: float) -> None:
    """Integers beyond 2^53 and 2^64 and the extreme doubles survive decoding and encoding."""
    draft = structured(data={"n": number})
    assert decode(encode(draft.fields))["data"]["n"] == number


def test_text_stays_what_it_is() -> None:
    """NUL, separators, astral characters and normal forms inside data are kept."""
    text = "\x00\x1f\x7f\u0085\u2028\ufeff\U0001f600e\u0301\u00e9"
    assert decode(encode(structured(data=text).fields))["data"] == text


@pytest.mark.parametrize("data", [None, False, 0, "", [], {}, "text", [1, [2]], {"": {"a.b": None}}])
def test_any_json_value_can_be_data(data: object) -> None:
    """`data` is any JSON value, null included."""
    assert structured(data=data).fields["data"] == data


def test_binary_data_travels_as_base64() -> None:
    """`data_base64` is kept as it is; a null `data` beside it is no second data."""
    fields = structured(data=None, data_base64="AAECAw==", datacontenttype="image/png").fields
    assert fields["data_base64"] == "AAECAw=="
    assert "data" not in fields


# --- limits ----------------------------------------------------------------------------------------------------------


def nested(levels: int, kinds: str) -> str:
    """JSON of that many containers, one in the other, of the given kinds in turn."""
    text = "1"
    for level in range(levels):
        text = f"[{text}]" if kinds[level % len(kinds)] == "[" else f'{{"a": {text}}}'
    return text


@pytest.mark.parametrize("length", [0, 8192])
@pytest.mark.parametrize("kinds", ["[", "{", "[{", "{{["])
def test_depth_64_is_taken_and_65_refused(kinds: str, length: int) -> None:
    """The event is level 1; the limit is exact, whatever stands beside and in strings, in short texts and long ones."""
    text = json.dumps({**BASE, "data": None}) + " " * length
    for data in (nested(63, kinds), f'["[{{[{{", [], {{}}, {nested(62, kinds)}]'):
        draft_from_structured(text.replace("null", data).encode(), now_ms=NOW_MS)
    for data in (nested(64, kinds), f'["[{{[{{", [], {{}}, {nested(63, kinds)}]'):
        with pytest.raises(TooDeep):
            draft_from_structured(text.replace("null", data).encode(), now_ms=NOW_MS)


def test_many_brackets_are_not_depth() -> None:
    """Ten thousand siblings, and brackets in strings, are not deep."""
    assert structured(data=[[], {}, "[{[{"] * 5000).fields["data"]


@pytest.mark.parametrize(("size", "taken"), [(262_144, True), (262_145, False)])
def test_the_size_limit_counts_the_event_as_it_will_be_written(size: int, *, taken: bool) -> None:
    """256 KiB once encoded again is taken, one byte more refused; spaces between members do not count."""
    spare = size - len(encode(structured(data="").fields))
    body = json.dumps({**BASE, "data": "x" * spare}, indent=400).encode()
    if taken:
        assert len(encode(draft_from_structured(body, now_ms=NOW_MS).fields)) == size
        return
    with pytest.raises(TooLarge) as caught:
        draft_from_structured(body, now_ms=NOW_MS)
    assert (caught.value.details["limit"], caught.value.details["size"]) == (262_144, size)


@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(st.sampled_from(["1e15", "9e15", "1e9", "-1E14", "1e-5", "12e14"]), max_size=60).map(
            lambda numbers: msgspec.Raw(f"[{','.join(numbers)}]".encode())
        ),
        st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False), max_size=9),
    )
)
def test_no_event_slips_past_the_size_limit(data: Any) -> None:
    """Whatever an accepted event grows to when it is written again, it is within the limit."""
    limits = Limits(max_event_bytes=700)
    body = msgspec.json.encode({**BASE, "data": data})
    try:
        draft = draft_from_structured(body, now_ms=NOW_MS, limits=limits)
    except TooLarge as error:
        assert error.details["size"] > limits.max_event_bytes  # noqa: PT017 - both ways are the promise
    else:
        assert len(encode(draft.fields)) <= limits.max_event_bytes


def test_a_batch_is_all_or_nothing_and_in_order() -> None:
    """A batch gives its events in order; none at all where it is empty."""
    events = [{**BASE, "id": str(i)} for i in range(1000)]
    drafts = drafts_from_batch(json.dumps(events).encode(), now_ms=NOW_MS)
    assert [draft.id for draft in drafts] == [event["id"] for event in events]
    assert drafts_from_batch(b" [ ] ", now_ms=NOW_MS) == []


def test_limits_are_settings() -> None:
    """Smaller limits refuse what the default ones take."""
    body = json.dumps([BASE] * 3).encode()
    for limits in (Limits(max_batch_events=2), Limits(max_batch_bytes=100), Limits(max_event_bytes=200)):
        with pytest.raises(TooLarge):
            drafts_from_batch(body, now_ms=NOW_MS, limits=limits)
    with pytest.raises(TooDeep):
        drafts_from_batch(body, now_ms=NOW_MS, limits=Limits(max_depth=1))


# --- binary mode -----------------------------------------------------------------------------------------------------


def test_binary_mode_reads_attributes_from_headers() -> None:
    """`ce-` headers in any case become attributes, Content-Type `datacontenttype`; other headers are left alone."""
    draft = draft_from_binary(
        [
            ("CE-SpecVersion", "1.0"),
            ("ce-id", "1"),
            ("Ce-Source", "/crm"),
            ("ce-type", "crm.contact"),
            ("ce-region", "eu"),
            ("User-Agent", "curl"),
            ("X-Twice", "a"),
            ("X-Twice", "b"),
        ],
        b'{"a": [1, 2]}',
        "application/vnd.example+json; charset=UTF-8",
        now_ms=NOW_MS,
    )
    assert draft.fields == {
        "specversion": "1.0",
        "id": "1",
        "source": "/crm",
        "type": "crm.contact",
        "region": "eu",
        "datacontenttype": "application/vnd.example+json; charset=UTF-8",
        "data": {"a": [1, 2]},
        "time": NOW,
        "correlationid": "1",
    }


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro \u20ac \U0001f600"),
        ("%41%2525", "A%25"),
        ("%e2%82%ac", "\u20ac"),
        (" \tpadded\t ", "padded"),
        ("a b", "a b"),
        ('"quoted \\"text\\" \\\\"', 'quoted "text" \\'),
        ('"%C3%BC"', "\u00fc"),
        ('"', '"'),
        ("a+b", "a+b"),
    ],
)
def test_header_values_are_decoded_once(raw: str, value: str) -> None:
    """Quoted strings are unquoted, then one round of percent-decoding (HTTP binding 1.0.2, 3.1.3.2)."""
    assert binary({"ce-subject": raw}).fields["subject"] == value


@pytest.mark.parametrize(
    ("content_type", "body", "name", "value"),
    [
        ("application/json", b"null", "data", None),
        (None, b"[1]", "data", [1]),
        ("text/json", b'"x"', "data", "x"),
        ("Application/JSON ; Charset=utf-8", b"1", "data", 1),
        ("text/plain", "\u00fc\n".encode(), "data", "\u00fc\n"),
        ("text/csv; charset=utf-8", b"a,b", "data", "a,b"),
        ("application/octet-stream", b"\x00\xff", "data_base64", "AP8="),
        ("application/xml", b"<a/>", "data_base64", "PGEvPg=="),
        ("application/jsonx", b"{}", "data_base64", "e30="),
    ],
)
def test_the_body_becomes_data_as_its_type_says(
    content_type: str | None, body: bytes, name: str, value: object
) -> None:
    """JSON is parsed, text is a string, everything else base64."""
    fields = binary({}, body, content_type).fields
    assert fields[name] == value
    assert len({"data", "data_base64"} & fields.keys()) == 1


def test_an_empty_body_is_no_data() -> None:
    """Binary mode without a body is an event without data."""
    assert not {"data", "data_base64"} & binary({}).fields.keys()


def test_check_headers_returns_lower_case_names() -> None:
    """The door's own check keeps order and values, and lowers the names."""
    assert check_headers([("Host", "a"), ("X-A", "B\tc\u00fc")], Limits()) == [("host", "a"), ("x-a", "B\tc\u00fc")]


# --- the library's way in --------------------------------------------------------------------------------------------


def test_fields_are_copied() -> None:
    """What the caller does with its objects afterwards does not change the draft."""
    data = {"list": [1]}
    draft = draft_from_fields({**BASE, "data": data}, now_ms=NOW_MS)
    data["list"].append(2)
    assert draft.fields == {**BASE, **FILLED_IN, "data": {"list": [1]}}


def test_bytes_become_base64() -> None:
    """`data` as bytes is `data_base64`."""
    fields = draft_from_fields({**BASE, "data": b"\x00\xff"}, now_ms=NOW_MS).fields
    assert fields["data_base64"] == "AP8="
    assert "data" not in fields


@pytest.mark.parametrize(
    "value", [math.nan, [math.inf], {"a": -math.inf}, object(), {(1, 2): 3}, {None: 1}, "\ud800", {"\udfff": 1}, {1j}]
)
def test_what_json_has_no_form_for_is_refused(value: object) -> None:
    """NaN, infinities, lone surrogates and foreign objects are refused, not turned into something else."""
    with pytest.raises(NotJson):
        draft_from_fields({**BASE, "data": value}, now_ms=NOW_MS)


def test_a_circle_is_too_deep() -> None:
    """A list that holds itself is refused as too deep."""
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(TooDeep):
        draft_from_fields({**BASE, "data": circle}, now_ms=NOW_MS)


# --- small things ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (NOW_MS, NOW),
        (951_782_400_999, "2000-02-29T00:00:00.999Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
    ],
)
def test_rfc3339_writes_milliseconds(ms: int, text: str) -> None:
    """Unix milliseconds are written in UTC with three digits."""
    assert rfc3339(ms) == text


def test_reserved_attributes_are_never_masked() -> None:
    """What the mesh says of an event is alike in every view."""
    assert RESERVED < ATTRIBUTES_NEVER_MASKED
    assert not {"subject", "partitionkey", "data"} & ATTRIBUTES_NEVER_MASKED


# --- whatever comes --------------------------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from([*ATTRIBUTES_NEVER_MASKED, "subject", "partitionkey", "data", "data_base64", "region"])
EVENTS = st.builds(
    lambda base, extra, dropped: {k: v for k, v in {**base, **extra}.items() if k not in dropped},
    st.just(BASE) | st.just({}),
    st.dictionaries(NAMES | st.text(max_size=22), JSON_VALUES | st.text(max_size=30), max_size=4),
    st.sets(NAMES, max_size=2),
)
TEXTS = EVENTS.map(lambda event: json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The bytes of an event with a few cut out, put in or changed."""
    body = bytearray(draw(TEXTS))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 4))] = draw(
            st.binary(max_size=4) | st.sampled_from([b"[", b"{", b'"', b","])
        )
    return bytes(body)


def check_draft(draft: Draft) -> None:
    """An accepted event is written and read as itself, and taken again as itself."""
    body = encode(draft.fields)
    assert decode(body) == draft.fields
    assert draft_from_structured(body, now_ms=0).fields == draft.fields
    assert set(REQUIRED) <= draft.fields.keys()
    assert not RESERVED & draft.fields.keys()
    for name, value in draft.fields.items():
        if name not in ("data", "data_base64") and isinstance(value, str):
            assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in value)


@settings(max_examples=400)
@given(st.binary(max_size=200) | damaged() | TEXTS)
def test_any_bytes_are_an_event_or_an_input_error(body: bytes) -> None:
    """Structured mode answers any bytes with a sound draft or an `InputError`, never with anything else."""
    try:
        draft = draft_from_structured(body, now_ms=NOW_MS)
    except InputError:
        return
    check_draft(draft)


@settings(max_examples=300)
@given(
    st.binary(max_size=200) | st.lists(damaged() | TEXTS, max_size=4).map(lambda bodies: b"[%b]" % b",".join(bodies))
)
def test_any_bytes_are_a_batch_or_an_input_error(body: bytes) -> None:
    """Batch mode answers any bytes with sound drafts or an `InputError`."""
    try:
        drafts = drafts_from_batch(body, now_ms=NOW_MS)
    except InputError:
        return
    for draft in drafts:
        check_draft(draft)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(NAMES.map("ce-{}".format) | st.text(max_size=12), st.text(max_size=20)), max_size=4),
    st.binary(max_size=60) | JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.none()
    | st.sampled_from(["application/json", "text/plain", "image/png", "text/plain; charset=utf-8"])
    | st.text(max_size=20),
)
def test_any_request_is_an_event_or_an_input_error(
    headers: list[tuple[str, str]], body: bytes, content_type: str | None
) -> None:
    """Binary mode answers any headers and body with a sound draft or an `InputError`."""
    names = {name.lower() for name, _ in headers}
    headers = headers + [(f"ce-{k}", v) for k, v in BASE.items() if k != "data" and f"ce-{k}" not in names]
    try:
        draft = draft_from_binary(headers, body, content_type, now_ms=NOW_MS)
    except InputError:
        return
    check_draft(draft)


@settings(max_examples=200)
@given(st.dictionaries(NAMES | st.text(max_size=6), JSON_VALUES | st.binary(max_size=5) | st.floats(), max_size=4))
def test_any_fields_are_an_event_or_an_input_error(extra: dict[str, Any]) -> None:
    """The library's way in answers any fields with a sound draft or an `InputError`."""
    try:
        draft = draft_from_fields({**BASE, **extra}, now_ms=NOW_MS)
    except InputError:
        return
    check_draft(draft)
