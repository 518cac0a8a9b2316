"""`plain`, compiled: where it says yes, the grammar of attributes would have changed nothing and refused nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.attributes import GRAMMAR, INT32_MAX, INT32_MIN, RESERVED, SOURCES, TYPES
from mesh.errors import InputError
from mesh.event import _check, draft_from_structured
from mesh.tracing import is_traceparent
from tests.unit.native_twins import SETS, compares, compiled, outcome, running

PARENT = f"00-{'0a' * 16}-{'b0' * 8}-01"
LATER = PARENT.replace("00-", "cc-", 1)
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
    "causationid": "c" * 256,
    "dataschema": "https://schemas.acme.com/shop/v1.json?a=[1]&b=(!$*,;'@~_+)#at",
    "traceparent": PARENT,
    "tracestate": "rojo=00f067aa0ba902b7,congo/1*a_b-c=!t61:rcWkgMzE;~<>",
    "tenantregion": "",
    "retries": INT32_MIN,
    "express": False,
    "data": {"any": [None]},
}
SEEN = {name: {GOOD[name]: True} for name in ("source", "type")}
REQUIRED = ("specversion", "id", "source", "type")
ODD_VALUES: list[Any] = [
    None, True, 1, 1.5, "", " ", "\0", "\n", "\x7f", "é", "\ud800", "x" * 257, "x" * 1025, "1.0", "1.0\n", "a b",
    "/crm/../hr", "2026-02-29T00:00:00Z", "2026-01-28t12:00:00Z", "0000-01-01T00:00:00Z", b"e-1", ["e-1"], {"e": 1},
    "application/JSON", "a" * 256, "x" * 1024, "e%1", "e\0", "/crm#.", "crm.contact.updated.v1", "/crm", "/CRM/é",
    INT32_MIN - 1, INT32_MAX, INT32_MAX + 1, 2**64, -(2**80), "é" * 1024, "𝄞" * 1025, "a:", PARENT, "a=b", "https://a.b/c",
]  # fmt: skip
EDGES = "\x1f ~\x7f\x9f\xa0ÿĀ\ud7ff\ud800\udfff\ue000\uffff𝄞\U0010ffff"  # of what a string may have in it
STRINGS = st.text(EDGES, max_size=3) | st.builds(
    lambda character, size: character * size, st.sampled_from(EDGES), st.sampled_from([1, 1023, 1024, 1025])
)
URIS = st.text("a./?#:", max_size=8) | st.builds(
    lambda *parts: "".join(parts),
    st.sampled_from(["", "a:", "A9+.-:", "9a:", "+:", ":", "/", "https://github.com/", "http:", "urn:x", "a"]),
    st.text("aZ9._~:/?#[]@!$&'()*+,;=-% \"<>\\^`{|}\x7fé", max_size=6),
    st.sampled_from(["", "/.", "/..", "/...", ".", "..", "/../", "?/../", "#/./", "x" * 253, "x" * 256]),
)
PARENTS = st.builds(
    lambda *parts: "".join(parts),
    st.sampled_from(["00-", "01-", "fe-", "ff-", "0f-", "f0-", "0g-", "FF-", "A0-", "00_", "", "0-"]),
    st.sampled_from(["0" * 32, "0" * 31 + "1", "1" + "0" * 31, "a" * 32, "A" * 32, "g" + "a" * 31, "a" * 31, "9" * 33]),
    st.sampled_from(["-", "-", "-", "_", ""]),
    st.sampled_from(["0" * 16, "0" * 15 + "f", "1" + "0" * 15, "b" * 16, "b" * 15 + "F", "b" * 15, "0" * 17]),
    st.sampled_from(["-", "-", "-", "/", ""]),
    st.sampled_from(["00", "ff", "01", "0G", "FF", "1", "a/"]),
    st.sampled_from(["", "", "-", "-!~-", "- ", "-é", "-\x7f", "_", "-" + "x" * 200, "-" + "x" * 201, "\n"]),
)
MEMBERS = st.text("a9_*/-@=,A \té", max_size=6) | st.builds(
    lambda key, sign, value: key + sign + value,
    st.sampled_from(["a", "a9_*/-", "9a", "9", "_a", "A", "a@b", "", "k" * 256, "k" * 257, "a a", "aé"]),
    st.sampled_from(["=", "=", "=", "", "==", " ="]),
    st.sampled_from(
        ["1", "!~", "+-<>", "", " ", "a ", " a", "v" * 254, "v" * 256, "v" * 257, "a,", "é", "\x7f", "1=2"]
    ),
)
STATES = st.lists(MEMBERS, max_size=3).map(",".join) | st.builds(
    lambda member, count, join: join.join([member] * count),
    st.sampled_from(["a=1", "a=" + "1" * 14]), st.sampled_from([31, 32, 33]), st.sampled_from([",", " , ", ",,"]),
)  # fmt: skip
ODD_NAMES = ["", "é", "a-b", "a_b", "A", "a b", "a\0", "a" * 20, "9" * 20, "a" * 21, "data_base64", "\uff41", "\ud800"]
NAMES = st.text("az09", min_size=1, max_size=4) | st.sampled_from([*ODD_NAMES, *sorted(RESERVED)])
VALUES: st.SearchStrategy[Any] = (
    STRINGS
    | st.sampled_from([INT32_MIN - 1, INT32_MIN, INT32_MAX, INT32_MAX + 1, 2**63 - 1, 2**63, -(2**63) - 1, -(2**64)])
    | st.sampled_from([None, True, False, 0, -1, 1.0, [], {}, b"a", ""])
    | st.integers()
)  # fmt: skip
TIMES = st.from_regex(r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{0,20})?(Z|z|\+01:00)?\Z")
NEAR = st.builds(
    lambda y, mo, d, h, mi, s, end: f"{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}{end}",
    st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32), st.integers(0, 25), st.integers(0, 61),
    st.integers(0, 61), st.sampled_from(["Z", "z", "", ".Z", ".1Z", f".{10**17}Z", f".{10**18}Z", ".1", "ZZ"]),
)  # fmt: skip
TOUCHED = st.dictionaries(
    st.sampled_from([*GOOD, *GRAMMAR, *sorted(RESERVED), "data_base64", "myextension", "Id", "", "x" * 21]) | NAMES,
    st.sampled_from(ODD_VALUES)
    | TIMES
    | NEAR
    | URIS
    | PARENTS
    | STATES
    | VALUES
    | st.text(max_size=8)
    | st.text("aZ09._:/+=~- %", max_size=8),
    max_size=2,
)


def _takes(fields: dict[str, Any]) -> bool:
    """Whether the grammar leaves *fields* as they are."""
    checked = copy.deepcopy(fields)
    try:
        _check(checked)
    except InputError:
        return False
    return repr(checked) == repr(fields)


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
        more = {"traceparent": PARENT} if name == "tracestate" else {}
        assert _looks(least | {name: value} | more)
    for time in ("2026-01-01T00:00:00Z", "1999-12-28T23:59:59.9Z"):
        assert _looks(least | {"time": time})
    assert _looks(least | {"id": "x" * 256, "source": "/" + "x" * 255, "data": None})


LONGEST: dict[str, list[Any]] = {
    "id": ["x" * 256],
    "causationid": ["x" * 256],
    "subject": ["~" * 1024, "\xa0" * 1024, "Ā" * 1024, "𝄞" * 1024],
    "tenantregion": ["~" * 1024, "𝄞" * 1024, "", INT32_MIN, INT32_MAX, True],
    "a1234567890123456789": ["a name of 20"],
    "dataschema": ["a:" + "x" * 254, "a:"],
    "traceparent": [LATER, LATER + "-", LATER + "-" + "~" * 200],
    "tracestate": ["k" * 256 + "=1", "a=" + "v" * 256, ",".join(["a=1"] * 32), f"a={'v' * 253},b={'v' * 254}"],
    "source": ["/" + "." * 255, "a:" + "/" * 254, "/.a/..a/...", "?..", "#/..", "a?/../", "." * 256],
}


@compares("plain")
def test_plain_takes_the_longest_that_there_may_be() -> None:
    """And the shortest, and the largest."""
    for name, values in LONGEST.items():
        for value in values:
            assert _looks(GOOD | {name: value}), (name, value)


@compares("plain")
@given(
    st.sampled_from(["subject", "partitionkey", "causationid", "id"]), STRINGS | st.text("aZ9._:/+=~-%,", max_size=4)
)
def test_plain_takes_the_strings_that_the_grammar_takes(name: str, value: str) -> None:
    """All of them: what no control character is in, ids and their like."""
    fields = GOOD | {name: value}
    assert _looks(fields) == _takes(fields)


@compares("plain")
@given(PARENTS)
def test_plain_takes_the_traces_that_the_grammar_takes(parent: str) -> None:
    """All of them."""
    assert _looks(GOOD | {"traceparent": parent}) == bool(is_traceparent(parent))


@compares("plain")
@given(STATES)
def test_plain_takes_trace_states_beside_a_trace(state: str) -> None:
    """Those that are sure; none without a trace."""
    fields = GOOD | {"tracestate": state}
    simple = (
        " " not in state and "\t" not in state and "@" not in state and ",," not in state and state.strip(",") == state
    )
    assert _looks(fields) == (_takes(fields) and simple)
    del fields["traceparent"]
    assert not _looks(fields)


@compares("plain")
@given(URIS)
def test_plain_takes_the_uris_that_the_grammar_takes(uri: str) -> None:
    """As a schema all without a `%`; as a source all, once they are known."""
    schema, source = GOOD | {"dataschema": uri}, GOOD | {"source": uri}
    assert _looks(schema) == (_takes(schema) and "%" not in uri)
    assert _looks(source) == _takes(source)


@compares("plain")
@given(NAMES, VALUES)
def test_plain_takes_the_extensions_that_the_grammar_takes(name: str, value: object) -> None:
    """All of them, and nothing that only looks like one."""
    fields = GOOD | {name: value}
    assert _looks(fields) == (_takes(fields) and name != "data_base64")


@compares("plain")
def test_plain_looks_at_every_character() -> None:
    """Of the first few hundred, in each place where one can be of use."""
    before = {name: str(GOOD[name]) for name in ("id", "subject", "dataschema", "traceparent", "tenantregion")}
    for code in range(0x180):
        for name, value in before.items():
            for at in {0, len(value) // 2, len(value)}:
                fields = GOOD | {name: value[:at] + chr(code) + value[at + (name != "tenantregion") :]}
                assert _looks(fields) == (_takes(fields) and (name != "dataschema" or chr(code) != "%")), (name, code)
        for fields in (GOOD | {chr(code): ""}, GOOD | {f"a{chr(code)}": True}, GOOD | {"source": f"/a.b/{chr(code)}"}):
            assert _looks(fields) == _takes(fields), code
        for state in (
            f"{chr(code)}=1",
            f"a{chr(code)}=1",
            f"a={chr(code)}",
            f"a=1{chr(code)}b=2",
            f"a=1,b{chr(code)}2",
        ):
            fields = GOOD | {"tracestate": state}
            assert _looks(fields) == (_takes(fields) and chr(code) not in " \t"), (state, code)


@compares("plain")
def test_plain_changes_a_byte_of_a_trace() -> None:
    """Each, one at a time, and each length."""
    for parent in (PARENT, LATER + "-more"):
        for at in range(len(parent)):
            for character in "0fFg-_ ":
                changed = parent[:at] + character + parent[at + 1 :]
                assert _looks(GOOD | {"traceparent": changed}) == bool(is_traceparent(changed))
            assert _looks(GOOD | {"traceparent": parent[:at]}) == bool(is_traceparent(parent[:at]))


@compares("plain")
@given(st.sampled_from(sorted(RESERVED | {*GRAMMAR} - {*GOOD})), VALUES)
def test_plain_takes_no_name_that_has_a_meaning_of_its_own(name: str, value: object) -> None:
    """A name that the mesh gives a meaning later has to be known here too; none of them is an extension."""
    assert not _looks(GOOD | {name: value})


REALISTIC: dict[str, dict[str, Any]] = {
    "a trace": {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
    "a trace and its state": {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        "tracestate": "dd=s:2;o:rum;t.dm:-4,rojo=00f067aa0ba902b7",
    },
    "a trace of a later version": {"traceparent": "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes"},
    "a subject with spaces": {"subject": "Order 17 of the day"},
    "a subject in another language": {"subject": "Größe für 東京 𝄞", "partitionkey": "Kundė"},
    "a schema": {"dataschema": "https://schemas.acme.com/shop/order/v1.json"},
    "a schema by its name": {"dataschema": "urn:acme:shop:order:1"},
    "a source with a host": {"source": "https://github.com/acme/shop"},
    "a source with a file": {"source": "/shop.eu/orders/v1.2/..2?from=/../x"},
    "a cause": {"causationid": "0190a5b2-7c1e-7d3f-9a4b-1234567890ab"},
    "an extension": {"tenantregion": "eu"},
    "extensions": {"tenantregion": "eu", "retries": 3, "express": True, "comment1": "Straße 東京", "empty": ""},
}


@compares("plain")
def test_plain_knows_what_is_realistic() -> None:
    """What senders write beside the least, each by itself and all together."""
    least = {name: GOOD[name] for name in REQUIRED}
    for what, more in REALISTIC.items():
        assert _looks(least | more), what
    for number in (INT32_MIN, -1, 0, INT32_MAX):
        assert _looks(GOOD | {"a": number})


NO: dict[str, list[Any]] = {
    "specversion": ["1.1", 1.0, "1.0 ", ""],
    "id": ["", "a b", "x" * 257, "é", 7, "a\0", "a,b"],
    "source": ["/never seen", "/crm/../hr", "/crm/.", "..", "https://./a", "/never.seen", None, "/crm/..?a"],
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
    "subject": ["", "x" * 1025, "\t", "\x7f", "\x85", "é\x1f", "é" * 1025, "\ud800", "𝄞\udfff", None, True],
    "partitionkey": ["", 1, "\x1f"],
    "correlationid": ["a,b", ""],
    "causationid": ["a,b", "", "x" * 257, None],
    "dataschema": ["", "x", "/x", ":x", "1a:x", "a b:x", "a:%41", "a:" + "x" * 255, "a:é", "a_b:x", 'a:"', None],
    "traceparent": [
        "", PARENT[:-1], PARENT + "-", PARENT.upper(), PARENT.replace("00-", "ff-", 1), None, "0" * 55, PARENT + "\n",
        LATER + "-" + "x" * 201, LATER + "x", f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'a' * 32}-{'0' * 16}-01",
    ],
    "tracestate": [
        "", "a", "a=", "=b", "a=b,", "a=b c", "1=b", "a@b=c", "a=b, c=d", "a=b=c", "a=b;c,", None, "k" * 257 + "=1",
        "a=" + "v" * 257, ",".join(["a=1"] * 33), f"a={'v' * 254},b={'v' * 254}", "a=\x7f", "a=é",
    ],
    "expirytime": ["2026-01-01T00:00:00Z"],
    "mine": [None, 1.0, [], {}, INT32_MAX + 1, INT32_MIN - 1, 2**70, "\n", "x" * 1025, "\x9f", b"x"],
}  # fmt: skip
NO |= {name: ["x"] for name in ("data_base64", *sorted(RESERVED), "Data", "my-extension", "é", "x" * 21, "")}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NO.items() for value in values])
def test_plain_leaves_the_rest_to_the_grammar(name: str, value: object) -> None:
    """One step aside, and the answer is no."""
    dotted = {"/crm/../hr", "/crm/.", "..", "https://./a", "/crm/..?a"}
    sources = SEEN["source"] | dict.fromkeys(dotted, True)  # of the grammar, but not all that is asked of one
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
