"""Paths of policies in one concrete event: where they lead, and how a test changes what is there.

A place is the way to a value: member names and, in arrays, positions. `data_base64` is not entered: it is one value.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from mesh.errors import BadFixture
from mesh.policy.paths import ANY_ITEM, ANY_MEMBER, Path

Place: TypeAlias = tuple[str | int, ...]
Steps: TypeAlias = tuple[object, ...]

MISSING: Final[Any] = object()  # what a path that leads nowhere is given


def find(path: Path, fields: Mapping[str, Any]) -> dict[Place, Any]:
    """Every place in *fields* that *path* leads to, with its value; a trailing `.**` is the node itself.

    Args:
        path: Of a Classification, or of a test.
        fields: An event's attributes and `data`.
    """
    starts = _below((), fields) if path.deep else iter([((), fields)])
    return {place: value for start, inside in starts for place, value in _follow(path.steps, start, inside)}


def _below(place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    """*value* and every container below it: where a leading `**.` may begin."""
    yield place, value
    items: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    for name, item in items:
        if isinstance(item, dict | list):
            yield from _below((*place, name), item)


def _follow(steps: Steps, place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    if not steps:
        yield place, value
        return
    step, rest = steps[0], steps[1:]
    if step is ANY_ITEM:
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield from _follow(rest, (*place, index), item)
    elif isinstance(value, Mapping):
        names = list(value) if step is ANY_MEMBER else [str(step)] if step in value else []
        for name in names:
            yield from _follow(rest, (*place, name), value[name])


def steps_of(place: Place) -> Steps:
    """*place* as the masking walks it: positions in arrays are any item."""
    return tuple(ANY_ITEM if isinstance(step, int) else step for step in place)


def written(place: Place) -> str:
    """*place* for a person: `data.lines[1].price`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def changed(fields: Mapping[str, Any], put: Mapping[str, Any], taken: tuple[str, ...]) -> dict[str, Any]:
    """A copy of *fields* with the values of *put* in their places and without *taken*.

    Args:
        fields: Of an event; never changed.
        put: Value by path. Members are made where they are missing; `*` and `[*]` mean those that are there.
        taken: Paths of what is left out.

    Raises:
        BadFixture: A path leads nowhere, or through a value that has no members.
        BadPattern: A path does not parse.
    """
    made: dict[str, Any] = copy.deepcopy(dict(fields))
    for text in taken:
        path = Path.parse(text)
        found = find(path, made)
        if not found:
            raise _nothing(text, "unset")
        for place in reversed(found):  # positions in an array move when one before them goes
            del _at(made, place[:-1])[place[-1]]
    for text, value in put.items():
        path = Path.parse(text)
        if path.deep or path.subtree:
            raise _nothing(text, "set")
        if _put(made, path.steps, value) == 0:
            raise _nothing(text, "set")
    return made


def _put(inside: Any, steps: Steps, value: Any) -> int:
    """Put a copy of *value* at *steps* below *inside*; how many places took it."""
    step, rest = steps[0], steps[1:]
    if step is ANY_ITEM:
        names: list[Any] = list(range(len(inside))) if isinstance(inside, list) else []
    elif not isinstance(inside, dict):
        return 0
    elif step is ANY_MEMBER:
        names = list(inside)
    else:
        names = [str(step)]
        if rest:
            inside.setdefault(str(step), [] if rest[0] is ANY_ITEM else {})
    count = 0
    for name in names:
        if rest:
            count += _put(inside[name], rest, value)
        else:
            inside[name] = copy.deepcopy(value)
            count += 1
    return count


def _at(fields: Any, place: Place) -> Any:
    for step in place:
        fields = fields[step]
    return fields


def value_at(fields: Any, place: Place) -> Any:
    """The value at *place*, or `MISSING`."""
    try:
        return _at(fields, place)
    except (LookupError, TypeError):
        return MISSING


def _nothing(text: str, what: str) -> BadFixture:
    return BadFixture(
        f"`{what}` finds nothing to change at `{text}`",
        expected="a path to a value of the event" + ("" if what == "unset" else ", or to a new member of an object"),
        next="correct the path, or the fixture",
    )
