"""The compiled walk through an event does what the Python one says: automata, views and values at random."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import policy_world
from tests.unit.native_twins import SETS, both, compares, drawn, numbered, outcome, running
from tests.unit.native_walks import (
    ACTS,
    ARRAYS,
    EVERY_PLACE,
    OBJECTS,
    PLACES,
    WALKS,
    YES_OR_NO,
    Place,
    Walks,
    node,
    walkers,
)
from tests.unit.random_masks import CLASSES, DATAS, MASKS, NAMES, OTHERWISE, Fields, Lines

KEYS = policy_world.Keys()


def _walked(make: Callable[[Any], Callable[[Any], Any]], value: Any) -> Any:
    """Assert that what *make* makes of each set of twins does the same with *value*, and changes nothing in it."""
    of = numbered(value)
    before = drawn(value, of)
    did = []
    for twins in SETS:
        kind, answer = outcome(make(twins), value)
        did.append((kind, drawn(answer, of)))
        assert drawn(value, of) == before
    assert did[1] == did[0]
    return did[1]


@compares("Node", "masking_dict", "dropping_dict")
@given(WALKS, OBJECTS)
def test_walk_of_an_object(walks: Walks, value: dict[str, Any]) -> None:
    """The same answer, which shares what is untouched; the same refusal where a mask raises."""
    _walked(lambda twins: walkers(walks, twins)[0], value)


@compares("Node", "item_list")
@given(WALKS, ARRAYS)
def test_walk_of_an_array(walks: Walks, value: list[Any]) -> None:
    """Likewise."""
    _walked(lambda twins: walkers(walks, twins)[1], value)


SMALL: list[Any] = [
    {},
    {"a": 1},
    {"b": 1},
    {"a": {}},
    {"b": {}},
    {"a": []},
    {"b": ["x"]},
    {"a": 1, "b": {"c": 1}},
    {"b": (1,)},
]


def test_every_small_walk() -> None:
    """What counts as met, of all automata of two places: chance seldom makes the few that tell."""
    for named, other, drops, shows, classified in product(EVERY_PLACE, EVERY_PLACE, YES_OR_NO, YES_OR_NO, YES_OR_NO):
        walks = Walks(drops, shows, classified, "drop" if shows else "clear", (("a", named),), other, named)
        python, c = (walkers(walks, twins) for twins in SETS)
        for value in SMALL:
            items = list(value.values())
            assert repr(c[0](value)) == repr(python[0](value)), (walks, value)
            assert repr(c[1](items)) == repr(python[1](items)), (walks, items)


@compares("shown")
@given(
    st.dictionaries(st.sampled_from(NAMES), st.none() | PLACES, max_size=3),
    PLACES,
    st.sampled_from(sorted(ACTS)),
    OBJECTS,
)
def test_walk_of_an_event(
    top: dict[str, Place | None], elsewhere: Place, otherwise: str, fields: dict[str, Any]
) -> None:
    """Each field once, in order, put where it has changed; a fresh object at the top."""

    def put(name: str, masked: Any, out: dict[str, Any]) -> None:
        del out[name]
        out[f"{name} is"] = masked

    def make(twins: Any) -> Any:
        nodes = {name: None if place is None else node(place, twins) for name, place in top.items()}
        other = node(elsewhere, twins)
        return lambda value: twins("shown")(value, nodes, other, ACTS[otherwise], put)

    kind, (_, which, _) = _walked(make, fields)
    assert which is None or kind == "raises"


@compares("Node")
def test_node() -> None:
    """What a new one has, and what can be set."""
    for twin in both("Node"):
        made = twin(frozenset({1}), repr)
        assert (made.places, made.act, made.classified) == (frozenset({1}), None, False)
        assert made.on_dict is made.on_list is repr
        made.act, made.classified, made.on_dict, made.on_list = abs, True, str, len
        assert (made.act, made.classified, made.on_dict, made.on_list) == (abs, True, str, len)
        assert outcome(setattr, made, "other", 1) == ("raises", AttributeError)
    assert [outcome(twin, 1) for twin in both("Node")] == [("raises", TypeError)] * 2


@compares("Node", "shown", "masking_dict", "dropping_dict", "item_list")
@settings(max_examples=3 * settings().max_examples)
@given(DATAS, CLASSES, MASKS, OTHERWISE)
def test_masking_by_a_view(data: Any, fields: Fields, mask: Lines, otherwise: str) -> None:
    """A whole event by a whole view, two events in a row: the same result, of the same parts."""
    original = policy_world.event(data, subject="<the subject>", customerref="<a reference>", sampled=True)
    other = policy_world.event([data, data], partitionkey="p")
    of, before, did = numbered([original, other]), copy.deepcopy([original, other]), []
    for twins in SETS:
        with running(twins):
            view = policy_world.masking(fields, mask, otherwise)
            did.append([drawn(view.apply(event, KEYS), of) for event in (original, other, original)])
        assert [original, other] == before
    assert did[1] == did[0]
