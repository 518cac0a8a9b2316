"""Random automata of masking, which either set of twins can be made into, and values that no event has."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from mesh.policy.actions import DROPPED
from mesh.policy.walkers import UNMET, as_it_is, unmet
from tests.unit.random_masks import NAMES

Twins = Callable[[str], Any]


class OddError(Exception):
    """What a mask raises that has a mistake in it."""


def raising(_value: Any) -> Any:
    """A mask with a mistake in it."""
    raise OddError


ACTS: dict[str, Callable[[Any], Any] | None] = {
    "clear": None,
    "same": lambda value: value,
    "drop": lambda value: DROPPED,
    "null": lambda value: None,
    "wrap": lambda value: [value],
    "text": lambda value: "masked",
    "unmet": lambda value: UNMET,
    "raise": raising,
}


class Text(str):
    """No JSON value."""

    __slots__ = ()


class Number(int):
    """No JSON value."""


class Members(dict[str, Any]):
    """No JSON value."""


class Items(list[Any]):
    """No JSON value."""


@dataclass(frozen=True)
class Place:
    """How a node is made: `walks` is None where no walker of the twins' is in it, but the one called `plain`."""

    act: str
    classified: bool
    leads: bool
    plain: str
    walks: Walks | None = None


@dataclass(frozen=True)
class Walks:
    """How the walkers of a node are made."""

    drops: bool
    shows: bool
    classified: bool
    otherwise: str
    names: tuple[tuple[str, Place], ...]
    other: Place
    item: Place


YES_OR_NO = (False, True)
EVERY_PLACE = [
    Place(act, classified, leads, plain)
    for act in ("clear", "drop")
    for classified in YES_OR_NO
    for leads in YES_OR_NO
    for plain in ("unmet", "as_it_is")
]


def node(place: Place, twins: Twins) -> Any:
    """The node of *place*, of these twins."""
    made = twins("Node")(frozenset({1} if place.leads else ()), unmet)
    made.act = ACTS[place.act]
    made.classified = place.classified
    made.on_dict = made.on_list = {"unmet": unmet, "as_it_is": as_it_is}.get(place.plain) or ACTS[place.plain]
    if place.walks is not None:
        made.on_dict, made.on_list = walkers(place.walks, twins)
    return made


def walkers(walks: Walks, twins: Twins) -> tuple[Any, Any]:
    """The walkers of an object and of an array."""
    names, other = {name: node(place, twins) for name, place in walks.names}, node(walks.other, twins)
    if walks.drops:
        on_dict = twins("dropping_dict")(names, other, classified=walks.classified)
    else:
        on_dict = twins("masking_dict")(names, other, classified=walks.classified, shows=walks.shows)
    return on_dict, twins("item_list")(node(walks.item, twins), ACTS[walks.otherwise], classified=walks.classified)


# --- one walker ------------------------------------------------------------------------------------------------------


def node_of(twins: Twins, act: Any = None, on_dict: Any = unmet, on_list: Any = unmet) -> Any:
    """A classified node that masks so."""
    node = twins("Node")(frozenset({1}), unmet)
    node.classified, node.act, node.on_dict, node.on_list = True, act, on_dict, on_list
    return node


def walk_of(kind: str, twins: Twins, node: Any) -> Callable[[Any], Any]:
    """A walker, all of whose members or items lead to *node*."""
    if kind == "item_list":
        return twins(kind)(node, None, classified=False)  # type: ignore[no-any-return]  # of either twin
    if kind == "masking_dict":
        return twins(kind)({}, node, classified=False, shows=True)  # type: ignore[no-any-return]
    if kind == "dropping_dict":
        return twins(kind)({}, node, classified=False)  # type: ignore[no-any-return]
    if kind == "listed":
        nowhere = twins("Node")(frozenset(), unmet)
        names = {f"name {i}": node for i in range(9)}
        return twins("dropping_dict")(names, nowhere, classified=False)  # type: ignore[no-any-return]
    return lambda value: twins("shown")(value, {}, node, None, lambda name, masked, out: out.update({name: masked}))


KINDS = ["masking_dict", "dropping_dict", "listed", "item_list", "shown"]


def value_of(kind: str, part: Callable[[int], Any]) -> Any:
    """An array or an object of new things that nobody else holds."""
    return [part(i) for i in range(5)] if kind == "item_list" else {f"name {i}": part(i) for i in range(5)}


# --- any of them -----------------------------------------------------------------------------------------------------

_ACTS = st.sampled_from([name for name in ACTS if name != "raise"] * 4 + ["raise"])
_PLAIN = st.sampled_from(["unmet", "as_it_is", "as_it_is", "drop", "text", "same", "raise"])
_LEAVES = st.builds(Place, _ACTS, st.booleans(), st.booleans(), _PLAIN)


def _walks(place: st.SearchStrategy[Place]) -> st.SearchStrategy[Walks]:
    names = st.dictionaries(st.sampled_from(NAMES), place, max_size=3).map(lambda made: tuple(made.items()))
    return st.builds(Walks, st.booleans(), st.booleans(), st.booleans(), _ACTS, names, place, place)


PLACES = st.recursive(
    _LEAVES, lambda place: st.builds(Place, _ACTS, st.booleans(), st.booleans(), _PLAIN, _walks(place)), max_leaves=8
)
WALKS = _walks(PLACES)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, -(2**63), float("nan"), "\ud800", "\0", ""])
)
ODD = st.sampled_from([(), (1,), b"x", Text("t"), Number(3), Members(a=1), Items([1]), frozenset({1}), 1j])
VALUES = st.recursive(
    SCALARS | ODD,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.sampled_from(NAMES), part, max_size=4),
    max_leaves=12,
)
WORDS = st.text(string.ascii_letters + string.digits + "._$-", min_size=1, max_size=40)
OBJECTS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4)
ARRAYS = st.lists(VALUES, max_size=4)
