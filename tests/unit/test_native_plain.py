"""`plain`, compiled: where it says yes, the grammar of attributes would have changed nothing and refused nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.attributes import GRAMMAR, SOURCES, TYPES
from mesh.errors import InputError
from mesh.event import _check, draft_from_structured
from tests.unit.native_twins import SETS, compares, compiled, outcome, running

GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/crm",
    "type": "crm.contact.updated.v1",
    "time": "2026-01-28T12:00:00.123456789012345678Z",
    "datacontenttype": "application/json",
    "subject": " ~",
    "correlationid": "A/z:._+=~-9",
    "partitionkey": "p" * 1024,
    "data": {"any": [None]},
}
SEEN = {name: {GOOD[name]: True} for name in ("source", "type")}
REQUIRED = ("specversion", "id", "source", "type")
ODD_VALUES: list[Any] = [
    None, True, 1, 1.5, "", " ", "\0", "\n", "\x7f", "é", "\ud800", "x" * 257, "x" * 1025, "1.0", "1.0\n", "a b",
    "/crm/../hr", "2026-02-29T00:00:00Z", "2026-01-28t12:00:00Z", "0000-01-01T00:00:00Z", b"e-1", ["e-1"], {"e": 1},
    "application/JSON", "a" * 256, "x" * 1024, "e%1", "e\0", "/crm#.", "crm.contact.updated.v1", "/crm", "/CRM/é",
]  # fmt: skip
TIMES = st.from_regex(r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{0,20})?(Z|z|\+01:00)?\Z")
NEAR = st.builds(
    lambda y, mo, d, h, mi, s, end: f"{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}{end}",
    st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32), st.integers(0, 25), st.integers(0, 61),
    st.integers(0, 61), st.sampled_from(["Z", "z", "", ".Z", ".1Z", f".{10**17}Z", f".{10**18}Z", ".1", "ZZ"]),
)  # fmt: skip
TOUCHED = st.dictionaries(
    st.sampled_from([*GOOD, *GRAMMAR, "sequence", "tenant", "data_base64", "myextension", "Id", "", "x" * 21]),
    st.sampled_from(ODD_VALUES) | TIMES | NEAR | st.text(max_size=8) | st.text("aZ09._:/+=~- %", max_size=8),
    max_size=2,
)


def _looks(fields: dict[str, Any]) -> bool:
    """Whether the compiled `plain` says yes; and if it does, assert that the grammar takes *fields* as they stand."""
    for known, name in ((SOURCES, "source"), (TYPES, "type")):  # as a process that has seen the values before
        outcome(lambda known=known, name=name: known[fields[name]])
    before = copy.deepcopy(fields)
    yes = compiled().plain(fields, SOURCES, TYPES)
    assert type(yes) is bool
    assert fields == before
    if yes:
        _check(fields)
        assert fields == before
        assert list(fields) == list(before)
    return yes


@compares("plain")
@given(TOUCHED, st.sets(st.sampled_from(sorted(GOOD)), max_size=2))
def test_plain_says_yes_only_where_the_grammar_does(touched: dict[str, Any], gone: set[str]) -> None:
    """One or two attributes of an event are odd, or are not there."""
    fields = {name: value for name, value in (GOOD | touched).items() if name not in gone}
    if _looks(fields):
        assert set(REQUIRED) <= set(fields)


@compares("plain")
@given(TIMES | NEAR)
def test_plain_looks_at_times(time: str) -> None:
    """Whatever looks like a time, and nearly is one."""
    _looks(GOOD | {"time": time})


@compares("plain")
def test_plain_knows_what_is_usual() -> None:
    """Else the shortcut would be none: each attribute as it mostly is, all together and one by one."""
    least = {name: GOOD[name] for name in REQUIRED}
    assert _looks(dict(GOOD))
    assert _looks(dict(least))
    for name, value in GOOD.items():
        assert _looks(least | {name: value})
    for time in ("2026-01-01T00:00:00Z", "1999-12-28T23:59:59.9Z"):
        assert _looks(least | {"time": time})
    assert _looks(least | {"id": "x" * 256, "source": "/" + "x" * 255, "data": None})


NO: dict[str, list[Any]] = {
    "specversion": ["1.1", 1.0, "1.0 ", ""],
    "id": ["", "a b", "x" * 257, "é", 7, "a\0", "a,b"],
    "source": ["/never seen", "/crm/../hr", "/crm.eu", None],
    "type": ["never.seen", None],
    "time": [
        "2028-02-29T00:00:00Z", "2026-01-31T00:00:00Z", "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z",
        "2026-01-00T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z", "2026-01-01T00:00:60Z",
        "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00ZZ",
        "2026-01-01T00:00:00." + "1" * 19 + "Z", "2026-01-01t00:00:00Z", "26-01-01T00:00:00ZZZ", "x026-01-01T00:00:00Z",
        "2026-01-01T00:00:0xZ", "2026/01/01T00:00:00Z", "2026-01/01T00:00:00Z", "2026-01-01T00.00:00Z",
        "2026-01-01T00:00.00Z", "20x6-01-01T00:00:00Z", "", "Z" * 20, "2026-01-01T00:00:00.1z", 1,
    ],
    "datacontenttype": ["text/plain", "application/json ", "application/jso", None],
    "subject": ["", "x" * 1025, "\t", "\x7f", "é", None, True],
    "partitionkey": ["", 1, "\x1f"],
    "correlationid": ["a,b", ""],
    "traceparent": ["00-" + "a" * 32 + "-" + "b" * 16 + "-01"],
    "expirytime": ["2026-01-01T00:00:00Z"],
}  # fmt: skip
NO |= {name: ["x"] for name in ("data_base64", "dataschema", "causationid", "sequence", "tenant", "mine", "Data", "")}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NO.items() for value in values])
def test_plain_leaves_the_rest_to_the_grammar(name: str, value: object) -> None:
    """One step aside, and the answer is no."""
    sources = SEEN["source"] | {"/crm/../hr": True, "/crm.eu": True}  # of the grammar, but not all that is asked of one
    assert compiled().plain(GOOD, sources, SEEN["type"])
    assert not compiled().plain(GOOD | {name: value}, sources, SEEN["type"])


@pytest.mark.parametrize("name", REQUIRED)
def test_plain_misses_what_is_required(name: str) -> None:
    """Each of the four."""
    fields = {other: value for other, value in GOOD.items() if other != name}
    assert not compiled().plain(fields, SEEN["source"], SEEN["type"])


@pytest.mark.parametrize("twins", SETS, ids=["python", "compiled"])
def test_an_empty_event_is_refused(twins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that has seen none before, too."""
    for known in (SOURCES, TYPES):
        for value in list(known):
            monkeypatch.delitem(known, value)
    with running(twins), pytest.raises(InputError):
        draft_from_structured(b"{}", now_ms=0)
