"""Then and now: a stored copy shows no more than today's view would of the event, and never more than it did."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.expressions import compile_condition
from mesh.policy.mask import Masking
from mesh.policy.masktable import MaskTable
from mesh.policy.model_masks import MaskLine
from mesh.policy.paths import Path
from mesh.policy.tighten import Side, Tightening
from tests.unit.policy_world import Keys, event
from tests.unit.random_masks import ACTIONS, CLASSES, DATAS, MASKS, OTHERWISE, Fields, Lines, leaves, masks_of, shows

KEYS = Keys()
PUBLIC: Fields = {"data.a": ["t0"], "data.b": ["public"]}
CLEAR: Lines = [{"tags": ["public"], "as": "clear"}]
EMAIL = {"as": "partial", "with": {"style": "email"}}
ENDS = {"as": "partial", "with": {"first": 1}}
BILLING = {"as": "encrypt", "with": {"mode": "deterministic", "for": ["billing"]}}
SUPPORT = {"as": "encrypt", "with": {"mode": "deterministic", "for": ["support"]}}
TOKEN = {"as": "pseudonym", "with": {"domain": "d"}}
OTHER_TOKEN = {"as": "pseudonym", "with": {"domain": "e"}}
YEAR = {"as": "generalize", "with": {"date": "year"}}


def side(fields: Fields, mask: Lines, otherwise: str) -> Side:
    """What one revision says of a type in a view."""
    pairs = tuple((Path.parse(path), tuple(tags)) for path, tags in fields.items())
    return Side(pairs, MaskTable(msgspec.convert(mask, list[MaskLine]), otherwise))


def under(action: dict[str, Any]) -> Side:
    """A view in which `data.a` gets *action*."""
    return side(PUBLIC, [*CLEAR, {"tags": ["t0"], **action}], "redact")


def stored(then: Side, fields: dict[str, Any]) -> dict[str, Any]:
    """The copy that *then* made of an event, as it comes off the stream."""
    made: dict[str, Any] = json.loads(json.dumps(Masking(*then).apply(fields, KEYS)))
    return made


def tightened(then: Side, now: Side, fields: dict[str, Any]) -> dict[str, Any]:
    """That copy as it may be shown now."""
    return Tightening(then, now).apply(stored(then, fields))


@pytest.mark.parametrize(
    ("then", "now", "shown"),
    [
        ({"as": "clear"}, {"as": "drop"}, "absent"),
        ({"as": "clear"}, {"as": "redact"}, "[REDACTED]"),
        ({"as": "clear"}, EMAIL, "a***@***.org"),
        ({"as": "clear"}, ENDS, "a***"),
        ({"as": "clear"}, YEAR, "[REDACTED]"),
        ({"as": "clear"}, TOKEN, "[REDACTED]"),
        ({"as": "clear"}, BILLING, "[REDACTED]"),
        ({"as": "clear"}, {"as": "clear"}, "left"),
        (EMAIL, {"as": "clear"}, "left"),
        (EMAIL, EMAIL, "left"),
        (EMAIL, ENDS, "[REDACTED]"),
        (EMAIL, TOKEN, "left"),
        (EMAIL, BILLING, "left"),
        (EMAIL, YEAR, "[REDACTED]"),
        (EMAIL, {"as": "drop"}, "absent"),
        (TOKEN, TOKEN, "left"),
        (TOKEN, OTHER_TOKEN, "[REDACTED]"),
        (TOKEN, EMAIL, "[REDACTED]"),
        (TOKEN, BILLING, "left"),
        (BILLING, BILLING, "left"),
        (BILLING, SUPPORT, "[REDACTED]"),
        (BILLING, TOKEN, "[REDACTED]"),
        (BILLING, {"as": "clear"}, "left"),
        ({"as": "redact"}, {"as": "drop"}, "absent"),
        ({"as": "redact"}, YEAR, "left"),
        ({"as": "redact"}, {"as": "clear"}, "left"),
        ({"as": "drop"}, {"as": "redact"}, "absent"),
        ({"as": "drop"}, {"as": "clear"}, "absent"),
    ],
)
def test_a_value_becomes_what_is_stricter(then: dict[str, Any], now: dict[str, Any], shown: str) -> None:
    """Looser or alike is left; stricter is applied to what is still original, and hides what is not."""
    before = stored(under(then), event({"a": "anna@example.org", "b": "beta"}))
    after = Tightening(under(then), under(now)).apply(before)
    assert after["data"].get("a", "absent") == (before["data"]["a"] if shown == "left" else shown)
    assert after["data"]["b"] == "beta"


@pytest.mark.parametrize(
    ("name", "value", "now", "shown"),
    [
        ("subject", "customers/4711", {"as": "drop"}, None),
        ("subject", "customers/4711", {"as": "redact"}, None),
        ("subject", "customers/4711", ENDS, "c***"),
        ("customerref", "4711", TOKEN, None),
        ("data_base64", "AAEC", {"as": "drop"}, None),
        ("data_base64", "AAEC", ENDS, None),
    ],
)
def test_attributes_are_tightened_as_fields(name: str, value: str, now: dict[str, Any], shown: str | None) -> None:
    """`subject`, extensions and binary data follow today's masks; what is hidden is left out."""
    fields = {name.removesuffix("_base64"): ["t0"]}
    then = side(fields, [{"tags": ["t0"], "as": "clear"}], "redact")
    after = tightened(then, side(fields, [{"tags": ["t0"], **now}], "redact"), event(**{name: value}))
    assert after.get(name) == shown
    assert after["id"] == "e-1"
    if name == "data_base64":
        assert after.get("data") == (None if now["as"] == "drop" else "[REDACTED]")


def test_what_is_newly_classified_is_hidden() -> None:
    """A path that was not there when the copy was made is masked in it now."""
    then = side({"data.b": ["public"]}, CLEAR, "clear")
    now = side({"data.b": ["public"], "**.iban": ["t0"]}, CLEAR, "clear")
    data = {"b": 1, "iban": "x", "c": [{"iban": "y", "d": 2}]}
    assert tightened(then, now, event(data))["data"] == {"b": 1, "iban": "x", "c": [{"iban": "y", "d": 2}]}
    strict = side({"data.b": ["public"], "**.iban": ["t0"]}, [*CLEAR, {"tags": ["t0"], "as": "drop"}], "clear")
    assert tightened(then, strict, event(data))["data"] == {"b": 1, "c": [{"d": 2}]}


@pytest.mark.parametrize(("otherwise", "shown"), [("redact", {"a": 1, "c": None}), ("drop", {"a": 1})])
def test_a_container_nobody_classifies_now_is_one_value(otherwise: str, shown: Any) -> None:
    """Where nothing in a container is classified any more, its member names do not show either."""
    then = side({"data.a": ["public"], "data.c.**": ["public"]}, CLEAR, "redact")
    now = side({"data.a": ["public"]}, CLEAR, otherwise)
    assert tightened(then, now, event({"a": 1, "c": {"d": [2]}}))["data"] == shown


def test_a_view_that_stops_being_clear_closes_containers() -> None:
    """Once any tag is masked, a container in the place of a scalar is redacted, also under a tag that is clear."""
    fields = {"data.a": ["public"]}
    now = side(fields, [*CLEAR, {"tags": ["t9"], "as": "drop"}], "clear")
    assert tightened(side(fields, CLEAR, "clear"), now, event({"a": {"x": 1}}))["data"] == {"a": None}


def test_a_container_that_was_looked_into_stays_open() -> None:
    """What an equal view dropped out of a container does not close it: nothing there is stricter than it was."""
    fields = {"data.c.iban": ["t0"], "data.b": ["public"]}
    then = side(fields, [*CLEAR, {"tags": ["t0"], "as": "drop"}], "redact")
    now = side(fields, [{"tags": ["public"], "as": "drop"}, {"tags": ["t0"], "as": "drop"}], "redact")
    assert tightened(then, now, event({"b": "x", "c": {"iban": "y", "d": "z"}}))["data"] == {"c": {"d": "[REDACTED]"}}


def test_a_container_that_was_looked_into_for_another_reason_closes() -> None:
    """What opened a container then and is not classified now opens it no longer."""
    then = side({"data.c.iban": ["t0"], "data.b": ["public"]}, [*CLEAR, {"tags": ["t0"], "as": "drop"}], "redact")
    now = side({"data.c.other": ["t0"], "data.b": ["public"]}, [*CLEAR, {"tags": ["t0"], "as": "drop"}], "redact")
    assert tightened(then, now, event({"b": "x", "c": {"iban": "y", "d": "z"}}))["data"] == {"b": "x", "c": None}


@pytest.mark.parametrize("before", ["redact", "drop"])
def test_a_container_of_which_nothing_is_left_goes(before: str) -> None:
    """Under `otherwise: drop` an object or array that today's masks empty does not show; one that was empty stays."""
    fields = {"data.c.a": ["t0"], "data.l[*]": ["t0"], "data.e.**": ["public"], "data.e.a": ["t0"]}
    then = side(fields, [*CLEAR, {"tags": ["t0"], "as": "clear"}], before)
    now = side(fields, [*CLEAR, {"tags": ["t0"], "as": "drop"}], "drop")
    after = tightened(then, now, event({"b": 1, "c": {"a": 1}, "l": ["x"], "e": {}}))
    assert after.get("data", "absent") == ({"e": {}} if before == "drop" else "absent")


def test_many_shapes_do_not_make_it_grow() -> None:
    """What is remembered of the places that events have is bounded, and forgetting changes nothing."""
    fields = {f"**.a{'.*' * n}.b": ["t0"] for n in range(1, 10)}
    then, now = (side(fields, [{"tags": ["t0"], "as": action}], "clear") for action in ("clear", "drop"))
    data: dict[str, Any] = {}
    for n in range(512):
        inner: Any = {"b": "secret"}
        for bit in f"{n:09b}":
            inner = {"a" if bit == "1" else "y": inner}
        data[f"x{n}"] = inner
    free, bounded = Tightening(then, now), Tightening(then, now)
    assert bounded._max_spots > 4096
    bounded._max_spots = 40
    assert bounded.apply(event({"a": data})) == free.apply(event({"a": data}))
    assert len(free._spots) > 500
    assert len(bounded._spots) <= 40


# --- row filters -----------------------------------------------------------------------------------------------------

ROWS = side(
    {
        "data.country": ["public"], "data.items[*].sku": ["public"], "data.notes.**": ["public"], "data.name": ["t0"],
        "subject": ["public"], "data.notes.secret": ["t0"], "data.whole.**": ["public"],
        "data.pair": ["public"], "data.pair.b": ["public"],
    },
    CLEAR,
    "redact",
)  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "readable"),
    [
        ("data.country in ['DE', 'FR']", True),
        ("data.country == 'DE' && event.subject == 'x'", True),
        ("event.type == 'crm.x.v1' && event.source == '/crm'", True),
        ("data.items[0].sku == 'x'", True),
        ("data.whole.anything == 1", True),
        ("size(data.whole) > 1", True),
        ("data.name == 'x'", False),
        ("data.other == 'x'", False),
        ("event.customerref == 'x'", False),
        ("size(data.items) > 1", False),
        ("data.items.exists(i, i.sku == 'x')", False),
        ("size(data.notes) > 1", False),
        ("data.notes.secret == 'x'", False),
        ("data.country.part == 'x'", False),
        ("data.pair == 'x'", True),
        ("data.pair.b == 'x'", False),
        ("data[event.subject] == 'x'", False),
        ("size(data) > 1", False),
    ],
)
def test_a_row_filter_is_asked_only_where_it_sees_all_it_reads(condition: str, *, readable: bool) -> None:
    """A filter can be asked of a copy if, and only if, everything that it reads was clear in the copy's view."""
    reads = compile_condition(condition, roots=frozenset({"event", "data"})).fields
    assert Tightening(ROWS, ROWS).rows_readable(reads) is readable
    assert Tightening(side({}, [], "clear"), ROWS).rows_readable(reads), "a clear copy shows everything"


@pytest.mark.parametrize(
    "condition", ["event.partitionkey == 'x'", "has(event.view)", "size(event) > 3", "event[data.a] == 'x'"]
)
def test_a_row_filter_over_what_the_mesh_wrote_is_not_asked(condition: str) -> None:
    """A copy has a pseudonym for its partition key and attributes of the mesh: nobody can ask a filter of those."""
    reads = compile_condition(condition, roots=frozenset({"event", "data"})).fields
    clear = side({}, [], "clear")
    assert not Tightening(clear, clear).rows_readable(reads)


# --- properties ------------------------------------------------------------------------------------------------------

SIDES = st.builds(side, CLASSES, MASKS, OTHERWISE)
KEYLESS = [a for a in ACTIONS if a["as"] not in ("pseudonym", "encrypt")]
KEYLESS_SIDES = st.builds(side, CLASSES, masks_of(KEYLESS), OTHERWISE)


def _walked(then: Side, now: Side) -> Tightening:
    """A tightening that looks at every place, also where it knows that nothing can change."""
    tightening = Tightening(then, now)
    tightening.identity = False
    return tightening


def _open(side_: Side) -> bool:
    """Whether the view shows everything, containers in the place of scalars included: the one it needs no walk for."""
    return side_.table.all_clear


@given(DATAS, SIDES)
def test_an_equal_revision_changes_nothing(data: Any, same: Side) -> None:
    """What a revision made is handed over as it is while that revision, or an equal one, is in force."""
    assert Tightening(same, same).identity
    copied = stored(same, event(data, subject="s-1"))
    if not _open(same):
        assert _walked(same, same).apply(copied) == copied


@given(DATAS, SIDES, SIDES)
def test_nothing_can_change_where_it_says_so(data: Any, then: Side, now: Side) -> None:
    """`identity` is true only where walking the copy changes nothing."""
    copied = stored(then, event(data))
    if Tightening(then, now).identity and not _open(now):
        assert _walked(then, now).apply(copied) == copied


@given(DATAS, SIDES, SIDES)
def test_a_copy_shows_no_more_than_then_and_than_now(data: Any, then: Side, now: Side) -> None:
    """A value shows only if the copy showed it and today's view would; so does a member's name."""
    original = event(data)
    copied = stored(then, original)
    today = Masking(*now).apply(original, KEYS)
    after = Tightening(then, now).apply(copied)
    text, before, fresh = (json.dumps(f) for f in (after, copied, today))
    for _, value in leaves(data):
        if shows(value, text):
            assert shows(value, before)
            assert shows(value, fresh)
    names = _names(after.get("data"))
    assert names <= _names(copied.get("data"))
    if not Tightening(then, now).identity:
        assert names <= _names(today.get("data"))


def _names(value: Any, at: tuple[object, ...] = ()) -> set[tuple[object, ...]]:
    """The ways to every member; items count alike."""
    if isinstance(value, dict):
        return {way for name, item in value.items() for way in {(*at, name)} | _names(item, (*at, name))}
    return {way for item in value for way in _names(item, (*at, 0))} if isinstance(value, list) else set()


@given(DATAS, KEYLESS_SIDES)
def test_a_clear_copy_becomes_what_now_shows(data: Any, now: Side) -> None:
    """From a copy in clear, and without keys, today's view comes out exactly."""
    original = event(data, subject="<the subject>")
    clear = side({}, [], "clear")
    assert tightened(clear, now, original) == Masking(*now).apply(original, KEYS)


@given(DATAS, SIDES, SIDES)
def test_the_copy_itself_is_not_changed(data: Any, then: Side, now: Side) -> None:
    """The stored fields are as they were, deep inside too."""
    copied = stored(then, event(data))
    before = copy.deepcopy(copied)
    assert _walked(then, now).apply(copied) is not copied
    assert copied == before
