"""The loops of masking: what a place in the automaton does with an object or an array it meets.

Each factory closes over what is known of the place, so that the loop over members looks up nothing twice. A walker
answers with the masked container (the original where nothing changed), `DROPPED`, or `UNMET` where it found nothing
classified: the container is then one unclassified value, for its parent to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from mesh import native
from mesh.attributes import MAX_STRING_CHARS
from mesh.policy.actions import DROPPED, REDACTED, Masker
from mesh.policy.paths import Position

Walker: TypeAlias = Callable[[Any], Any]

SCALARS: Final = frozenset({str, int, float, bool, type(None)})
CONTAINERS: Final = frozenset({dict, list})
UNMET: Final[Any] = object()


def unmet(_value: Any) -> Any:
    """Where no path leads: nothing in here can be classified."""
    return UNMET


def whole(act: Masker | None) -> Walker:
    """Where a container is not entered: it becomes what *act* makes of it, or stays."""
    return as_it_is if act is None else act


def as_it_is(value: Any) -> Any:
    """Where everything below shows."""
    return value


@native.twin
class Node:
    """A place in an event.

    Attributes:
        places: Which paths are matched, how far.
        act: Masks a scalar here; None leaves it.
        classified: Whether some path meets here.
        on_dict, on_list: Mask a container here.
    """

    __slots__ = ("act", "classified", "on_dict", "on_list", "places")

    def __init__(self, places: frozenset[Position], walker: Walker) -> None:
        self.places = places
        self.act: Masker | None = None
        self.classified = False
        self.on_dict = walker
        self.on_list = walker


@native.twin
def masking_dict(names: dict[str, Node], other: Node, *, classified: bool, shows: bool) -> Walker:
    """For an object under `otherwise: redact` or `clear`: copy it at the first change.

    Args:
        names: Where the members lead that some path names.
        other: Where all others lead.
        classified: Of the object itself.
        shows: Whether an unclassified container shows as it is; else it is redacted to null.
    """
    act_of = {name: node.act for name, node in names.items()}.get
    shown = frozenset(name for name, node in names.items() if node.act is None)
    node_of = names.get
    other_act = other.act
    others_count = other.classified
    disjoint = frozenset(name for name, node in names.items() if node.classified).isdisjoint

    def on_dict(value: dict[str, Any]) -> Any:
        met = classified
        out = value
        for name, item in value.items():
            kind = type(item)
            if kind in SCALARS:
                if name in shown:
                    continue
                act = act_of(name, other_act)
                if act is None:
                    continue
                masked = act(item)
            elif kind in CONTAINERS:
                node = node_of(name, other)
                masked = node.on_dict(item) if kind is dict else node.on_list(item)
                if masked is not UNMET:
                    met = True
                elif shows:
                    continue
                else:
                    masked = None
            else:  # no JSON value
                masked = None
            if masked is not item:
                if out is value:
                    out = value.copy()
                if masked is DROPPED:
                    del out[name]
                else:
                    out[name] = masked
        return out if met or not disjoint(value) or (others_count and value) else UNMET

    return on_dict


@native.twin
def dropping_dict(names: dict[str, Node], other: Node, *, classified: bool) -> Walker:
    """For an object under `otherwise: drop`, where little is left: collect that.

    Whether something classified was met makes no difference here: what is not kept is dropped. Where nothing that goes
    unnamed can be classified, only the named members are looked at.
    """
    listed = not other.places
    known = tuple(names.items())
    node_of = names.get

    def keep(out: dict[str, Any], name: str, item: Any, node: Node) -> None:
        kind = type(item)
        if kind is dict:
            masked = node.on_dict(item)
        elif kind is list:
            masked = node.on_list(item)
        elif node.act is None:
            masked = item if kind in SCALARS else None
        else:
            masked = node.act(item)
        if masked is not DROPPED and masked is not UNMET:
            out[name] = masked

    def on_dict(value: dict[str, Any]) -> Any:
        if not value:
            return value if classified else UNMET
        out: dict[str, Any] = {}
        if listed:
            for name, node in known:
                if name in value:
                    keep(out, name, value[name], node)
        else:
            for name, item in value.items():
                node = node_of(name, other)
                if node.classified or type(item) in CONTAINERS:
                    keep(out, name, item, node)
        return out or DROPPED

    return on_dict


@native.twin
def item_list(node: Node, otherwise: Masker | None, *, classified: bool) -> Walker:
    """For an array: *node* is where its items lead, *otherwise* what becomes of an unclassified container."""
    if node.classified and node.act is None and node.on_dict is node.on_list is as_it_is:
        return lambda value: value if value or classified else UNMET

    def on_list(value: list[Any]) -> Any:
        met = classified or (node.classified and len(value) > 0)
        out = []
        for item in value:
            kind = type(item)
            if kind in SCALARS:
                masked = item if node.act is None else node.act(item)
            elif kind in CONTAINERS:
                masked = node.on_dict(item) if kind is dict else node.on_list(item)
                if masked is not UNMET:
                    met = True
                else:
                    masked = item if otherwise is None else otherwise(item)
            else:  # no JSON value
                masked = None
            if masked is not DROPPED:
                out.append(masked)
        if not met:
            return UNMET
        return DROPPED if value and not out and otherwise is not None and otherwise(None) is DROPPED else out

    return on_list


@native.twin
def shown(
    fields: dict[str, Any],
    top: dict[str, Node | None],
    elsewhere: Node,
    otherwise: Masker | None,
    put: Callable[[str, Any, dict[str, Any]], None],
) -> dict[str, Any]:
    """An event as a view shows it.

    Args:
        fields: Its attributes and data; not changed.
        top: Where the fields lead that some path names; None for what no policy masks.
        elsewhere: Where all others lead.
        otherwise: What becomes of an unclassified container.
        put: Puts a field that has changed into what is shown, or takes it out.
    """
    out = dict(fields)
    for name, value in fields.items():
        node = top.get(name, elsewhere)
        if node is None:
            continue
        kind = type(value)
        if kind in SCALARS:
            masked = value if node.act is None else node.act(value)
        else:
            masked = node.on_dict(value) if kind is dict else node.on_list(value) if kind is list else None
            if masked is UNMET:
                masked = value if otherwise is None else otherwise(value)
        if masked is not value:
            put(name, masked, out)
    return out


def put(name: str, masked: Any, shown: dict[str, Any]) -> None:
    """Put a field that has changed into *shown*, or take it out."""
    if name == "data_base64":  # binary data is one field, `data`; what is hidden is no longer base64
        del shown[name]
        if masked is not DROPPED:
            shown["data"] = REDACTED
    elif masked is DROPPED or (name != "data" and _is_no_attribute(masked)):
        del shown[name]
    else:
        shown[name] = masked


def _is_no_attribute(masked: Any) -> bool:
    """Whether an attribute is left out: none can be null or longer than a limit, and `[REDACTED]` says nothing."""
    return masked is None or masked == REDACTED or (type(masked) is str and len(masked) > MAX_STRING_CHARS)


if native.compiled is not None:
    native.compiled.masking_with(DROPPED, UNMET, as_it_is)
