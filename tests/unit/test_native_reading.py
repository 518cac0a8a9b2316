"""`text_from_structured`, compiled: what `verbatim`, `glimpse` and `plain` say one after the other, in one call."""

from __future__ import annotations

import json
import shutil
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.attributes import RESERVED, SOURCES, TYPES, Limits
from mesh.errors import InputError
from mesh.event import fields_from_structured, rfc3339
from mesh.jsontext import decode, encode
from tests.unit import native_twins
from tests.unit.native_twins import PYTHON, compares, compiled, compiled_one, hostile, outcome, running
from tests.unit.test_native_plain import GOOD, TOUCHED
from tests.unit.test_native_text import MEMBERS, PROVEN, WANTED

NOW_MS = 1_795_300_000_000
WON = "crm.deal.won.v1"
LIMITS = Limits()
READS: dict[str, Any] = {GOOD["type"]: {}, WON: {"a": None, "b": {"a": None, "c": {}}}}
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/crm",
    "type": WON,
    "time": "2026-01-28T12:00:00Z",
    "datacontenttype": "application/json",
    "correlationid": "c-1",
    "data": {"z": [1, {"a": 2}], "a": "é", "b": {"c": {"x": 1}, "a": 1.5, "d": []}, "y": {"a": "\n"}},
}


class Reads:
    """What of data is read, and of which types it was asked."""

    def __init__(self, wanted: Any) -> None:
        self.wanted = wanted
        self.asked: list[str] = []

    def __call__(self, type_: str) -> Any:
        """What there is for any type."""
        self.asked.append(type_)
        if isinstance(self.wanted, Exception):
            raise self.wanted
        return self.wanted


def ends_alike(body: bytes, known: Any, wanted: Any, limits: Limits = LIMITS, now_ms: Any = NOW_MS) -> Any:
    """Assert that both twins do the same, and what the long way does; what that is."""
    ends = []
    for twin in (PYTHON["text_from_structured"], compiled().text_from_structured):
        reads = Reads(wanted)
        sizes = limits.max_batch_bytes, limits.max_depth, limits.max_event_bytes
        ends.append((outcome(twin, body, now_ms, *sizes, known, reads), reads.asked))
    python, c = ends
    assert repr(c) == repr(python)
    end, asked = c
    if end[0] == "answers" and end[1] is not None:
        text, more, fields, found = end[1]
        everything = fields_from_structured(body, now_ms, limits)
        assert text[:-1] + more + b"}" == encode(everything)
        assert list(fields) == list(everything)
        assert {**fields, "data": 0} == {**everything, "data": 0}
        assert type(found) is tuple
        assert (found is known) is (asked == [])
        assert found[0] == fields["type"]
    return end[1]


def usual(fields: dict[str, Any]) -> None:
    """As a process that has seen these before."""
    for known, name in ((SOURCES, "source"), (TYPES, "type")):
        outcome(lambda known=known, name=name: known[fields[name]])


FORMS: Any = st.sampled_from(
    [
        *3 * (encode,),
        lambda fields: json.dumps(fields, ensure_ascii=False).encode(),
        lambda fields: b" " + json.dumps(fields, indent=1).encode() + b"\n",
        lambda fields: encode(fields)[:-1] + b',"id":"twice"}',
        lambda fields: encode(fields)[:-1],
    ]
)
DATA: Any = st.dictionaries(st.sampled_from(MEMBERS), PROVEN, max_size=6) | PROVEN


@compares("text_from_structured")
@given(
    st.tuples(TOUCHED | st.just({}), st.sets(st.sampled_from(sorted(GOOD)), max_size=3), DATA),
    st.randoms(use_true_random=False), FORMS, st.tuples(st.sampled_from([GOOD["type"], WON, ""]), WANTED), WANTED,
)  # fmt: skip
def test_any_event(parts: tuple[Any, ...], chance: Any, form: Any, known: Any, wanted: Any) -> None:
    """Attributes that are odd, that are not there, in any order; any data, of which anything is read."""
    touched, gone, data = parts
    fields = {name: value for name, value in (GOOD | {"data": data} | touched).items() if name not in gone}
    if chance.random() < 0.5:
        fields = dict(chance.sample([*fields.items()], len(fields)))
    if chance.random() < 0.5:
        fields |= {name: value for name, value in EVENT.items() if name in fields and name != "data"}
    usual(fields)
    try:
        body = form(fields)
    except (TypeError, ValueError):
        return  # nothing that JSON has a form for
    with running(compiled_one):
        ends_alike(body, known, wanted)


@compares("text_from_structured")
def test_what_is_left_out_is_put_behind() -> None:
    """Each of the three, in this order."""
    put = {"time": rfc3339(NOW_MS), "datacontenttype": "application/json", "correlationid": EVENT["id"]}
    with running(compiled_one):
        usual(EVENT)
        for count in range(4):
            for gone in combinations(put, count):
                fields = {name: value for name, value in EVENT.items() if name not in gone}
                text, more, read, _ = ends_alike(encode(fields), (WON, {}), None)
                assert text == encode(fields)
                assert more == b"".join(f',"{name}":"{put[name]}"'.encode() for name in gone)
                assert list(read) == [*fields, *gone]
                for name in gone:
                    assert read[name] == put[name]
        for odd in (0, -1, 10**12 + 7, 10**30, None, "now"):
            ends_alike(encode({name: EVENT[name] for name in EVENT if name != "time"}), (WON, {}), None, now_ms=odd)
            ends_alike(encode(EVENT), (WON, {}), None, now_ms=odd)


@compares("text_from_structured")
def test_each_limit_to_the_byte() -> None:
    """Of the body as it came, of its depth, and of what the event becomes."""
    with running(compiled_one):
        usual(EVENT)
        for fields in (EVENT, {name: value for name, value in EVENT.items() if name not in ("time", "correlationid")}):
            for body in (encode(fields), json.dumps(fields, ensure_ascii=False).encode()):
                becomes = len(encode(fields_from_structured(body, NOW_MS, LIMITS)))
                for less, taken in ((0, True), (1, False)):
                    for limits in (
                        Limits(max_batch_bytes=len(body) - less),
                        Limits(max_depth=4 - less),
                        Limits(max_event_bytes=becomes - less),
                    ):
                        assert (ends_alike(body, (WON, {}), None, limits) is not None) is taken
                for size in (0, -1, 1):
                    for limits in (
                        Limits(max_batch_bytes=size), Limits(max_depth=size), Limits(max_event_bytes=size),
                    ):  # fmt: skip
                        assert ends_alike(body, (WON, {}), None, limits) is None


@compares("text_from_structured")
def test_what_is_read_is_asked_of_another_type() -> None:
    """Wherever the data stands, and never of an event that is not taken."""
    first, last = {"data": EVENT["data"]} | EVENT, {name: EVENT[name] for name in EVENT if name != "data"}
    last["data"] = EVENT["data"]
    wanteds: list[Any] = [
        *(None, {}, {"a": None}, {"z": None, "y": {"a": None}}, {"not there": None}, {"a": {"b": {}}}),
    ]
    only = decode(encode({"a": "é", "b": {"c": {}, "a": 1.5}}))
    with running(compiled_one):
        usual(EVENT)
        for fields, spaced in product((first, last), (False, True)):
            body = json.dumps(fields, ensure_ascii=False).encode() if spaced else encode(fields)
            for known in ((WON, READS[WON]), (WON + ".", None), (WON[:-1], {"z": None}), ("", {})):
                _, _, read, found = ends_alike(body, known, READS[WON])
                assert read["data"] == only
                assert found == (WON, READS[WON])
            for wanted in wanteds:
                asked = ends_alike(body, ("", {}), wanted)
                assert ends_alike(body, (WON, wanted), None)[2] == asked[2]
            for odd in (ZeroDivisionError(), KeyError(), 7, [1]):
                assert ends_alike(body, ("", {}), odd) in (TypeError, type(odd))
            assert ends_alike(body.replace(b"/crm", b"/.."), ("", {}), ZeroDivisionError()) is None
            assert ends_alike(body, (WON, {}), ZeroDivisionError()) is not None
        bare = encode({name: EVENT[name] for name in EVENT if name != "data"})
        for known in ((WON, None), ("", None)):
            assert "data" not in ends_alike(bare, known, None)[2]


@compares("text_from_structured")
def test_each_attribute_at_each_place() -> None:
    """The last one ends few bytes before the text does; names that are nearly one; those that are the mesh's."""
    usual(GOOD)
    known = GOOD["type"], None
    values: list[Any] = ["", "x", 7, True, None, 1.5, [], {"a": 1}, "2026-01-28T12:00:00Z", "1.0", "\n", "a" * 1025]
    names = [*GOOD, *sorted(RESERVED), "expirytime", "data_base64", "iban"]
    near = [name[:at] + "x" + name[at + 1 :] for name in GOOD for at in range(len(name))]
    near += [name[:-1] for name in GOOD] + [name + "s" for name in GOOD] + ["", "é", "d", "A", "a" * 20, "a" * 21]
    with running(compiled_one):
        for name in GOOD:
            fields = {other: value for other, value in GOOD.items() if other != name}
            assert ends_alike(encode(fields | {name: GOOD[name]}), known, None) is not None
            assert ends_alike(encode({name: GOOD[name]} | fields), known, None) is not None
            required = name in ("specversion", "id", "source", "type", "traceparent")
            assert (ends_alike(encode(fields), known, None) is None) is required
        least = {name: GOOD[name] for name in ("specversion", "id", "source", "type")}
        for name in dict.fromkeys([*names, *near]):
            for value in values:
                for fields in (least, GOOD):
                    for put in (fields | {name: value}, {name: value} | fields):
                        ends_alike(encode(put), known, None)


@compares("text_from_structured")
@given(st.binary(max_size=40))
@example(b"")
@example(b"{}")
@example(b" {}")
@example(b"[]")
def test_any_bytes(body: bytes) -> None:
    """Hardly an event."""
    with running(compiled_one):
        ends_alike(body, (WON, {}), None)
        ends_alike(encode(EVENT)[:-1] + b"," + body + b"}", (WON, None), None)


@compares("text_from_structured")
def test_all_the_members_that_there_may_be() -> None:
    """One more is not surely fine, with white space and without."""
    usual(EVENT)
    with running(compiled_one):
        for count in (256, 257):
            fields = EVENT | {f"x{i}": i for i in range(count - len(EVENT))}
            for body in (encode(fields), json.dumps(fields, ensure_ascii=False).encode()):
                assert (ends_alike(body, (WON, {}), None) is not None) is (count == 256)


@compares("text_from_structured")
def test_only_what_was_seen_before_is_taken() -> None:
    """A source, and a type, of which nothing is known: whether they match is for the long way to say."""
    with running(compiled_one):
        for name, value in (("source", "/never/seen"), ("type", "crm.never.seen.v1")):
            fields = EVENT | {name: value}
            usual(EVENT)
            assert ends_alike(encode(fields), (WON, {}), None) is None
            usual(fields)
            assert ends_alike(encode(fields), (WON, {}), None) is not None
            (SOURCES if name == "source" else TYPES).pop(value)
            assert ends_alike(encode(fields), (WON, {}), None) is None


@hostile
def test_what_it_takes() -> None:
    """Another type is refused, and too many or too few arguments are."""
    read = compiled().text_from_structured
    right: tuple[Any, ...] = (encode(EVENT), NOW_MS, 4096, 64, 4096, (WON, {}), Reads(None))
    usual(EVENT)
    assert read(*right) is not None
    odd: list[tuple[int, Any]] = [(0, odd) for odd in ("{}", bytearray(b"{}"), memoryview(b"{}"), None, 1)]
    odd += [(place, odd) for place in (2, 3, 4) for odd in ("1", None, 1.5, b"1")]
    pairs: list[Any] = [None, (), (WON,), (WON, {}, {}), [WON, {}], (1, {}), (None, {}), (WON, 7), (WON, [])]
    odd += [(5, pair) for pair in pairs]
    for place, value in odd:
        assert outcome(read, *right[:place], value, *right[place + 1 :]) == ("raises", TypeError), (place, value)
    assert outcome(read, *right[:5], ("", {}), None) == ("raises", TypeError)
    assert outcome(read, *right[:-1]) == ("raises", TypeError)
    assert outcome(read, *right, None) == ("raises", TypeError)
    for place in (2, 3, 4):
        assert outcome(read, *right[:place], 10**30, *right[place + 1 :]) == ("raises", OverflowError)
    for end in range(len(right[0])):
        assert read(right[0][:end], *right[1:]) is None


def test_it_says_so_where_nothing_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of types and sources, that is."""
    copied = tmp_path / Path(compiled().__file__).name
    shutil.copy(compiled().__file__, copied)
    monkeypatch.setattr(native_twins, "GIVEN", {})
    fresh = native_twins.load(copied)
    ends = outcome(fresh.text_from_structured, b"{}", 0, 9, 9, 9, ("", {}), Reads(None))
    assert ends == ("raises", RuntimeError)


def test_the_long_way_says_what_is_wrong() -> None:
    """Nothing that it refuses is taken."""
    usual(EVENT)
    for fields in (EVENT | {"time": "no"}, EVENT | {"id": ""}, EVENT | {"view": "clear"}):
        with pytest.raises(InputError):
            fields_from_structured(encode(fields), NOW_MS, LIMITS)
        assert compiled().text_from_structured(encode(fields), NOW_MS, 9999, 64, 9999, (WON, {}), Reads({})) is None
