"""Every place an event can have, under two sets of policies at once: what no path by itself would show.

A path is judged where no other path meets it (`matrix.py`). What a change does may hang on two: a line that goes lets
values below it show which it closed, wherever another path leads. So both sets of paths are followed together, from the
event inwards, and each place that they tell from the others is judged by both.

Source: the product of two automata, as in `paths.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from mesh.policy import paths as walk
from mesh.policy.judge import Judge, Judged
from mesh.policy.masktable import DROP, Mask
from mesh.policy.paths import Path, Position

MAX_PLACES: Final = 5_000  # looked at; what has more is not said to be without a difference

_Positions: TypeAlias = frozenset[Position]
_Closed: TypeAlias = tuple[Judged | None, ...]  # by view: what a container above became as a whole
_State: TypeAlias = tuple[_Positions, _Positions, _Closed, _Closed]


@dataclass(frozen=True, slots=True)
class Place:
    """What one view makes of a scalar at a place.

    Attributes:
        judged: As `Judge` has it; where something above closes the place, that.
        shut: Whether a container above is not looked into: the scalar does not even show that it is there.
    """

    judged: Judged
    shut: bool

    @property
    def mask(self) -> Mask:
        """What the scalar's reader learns of it."""
        return DROP if self.shut else self.judged.chosen


class TooManyPlaces(Exception):
    """There are more than `MAX_PLACES`: an answer to whoever walks, never shown."""


def places(old: Sequence[Judge], new: Sequence[Judge]) -> Iterator[tuple[list[Place], list[Place]]]:
    """What the views *old* and the views *new* make of a scalar, place by place.

    Args:
        old: At least one; all over the same classified paths.
        new: The same.

    Raises:
        TooManyPlaces: Not all were looked at.
    """
    start = (old[0].begin(), new[0].begin())
    todo: list[_State] = [
        (*step, (None,) * len(old), (None,) * len(new)) for step in _steps(old[0].paths, new[0].paths, *start)
    ]
    inside = _inside_data(old[0].paths, new[0].paths, start)
    seen: set[_State] = set(todo)
    while todo:
        state = todo.pop()
        seen_as = (_judged(old, state[0], state[2]), _judged(new, state[1], state[3]))
        yield seen_as
        closed = (_closed(seen_as[0]), _closed(seen_as[1]))
        if state[:2] not in inside or (all(closed[0]) and all(closed[1])):
            continue
        for step in _steps(old[0].paths, new[0].paths, *state[:2]):
            inside.add(step)
            below = (*step, *closed)
            if below not in seen:
                if len(seen) >= MAX_PLACES:
                    raise TooManyPlaces
                seen.add(below)
                todo.append(below)


def _inside_data(
    old: tuple[Path, ...], new: tuple[Path, ...], start: tuple[_Positions, _Positions]
) -> set[tuple[_Positions, _Positions]]:
    """Where `data` leads: of all attributes it alone has anything inside."""
    return {(_named(old, start[0], "data"), _named(new, start[1], "data"))}


def _named(paths: tuple[Path, ...], positions: _Positions, name: str) -> _Positions:
    names, other, _ = walk.steps_from(paths, positions)
    return names.get(name, other)


def _steps(
    old: tuple[Path, ...], new: tuple[Path, ...], before: _Positions, after: _Positions
) -> list[tuple[_Positions, _Positions]]:
    """One step on: by each member's name that either side knows, by any other, and into an array."""
    names_old, other_old, item_old = walk.steps_from(old, before)
    names_new, other_new, item_new = walk.steps_from(new, after)
    named = [
        (names_old.get(n, other_old), names_new.get(n, other_new)) for n in sorted({*names_old, *names_new, "data"})
    ]
    return list(dict.fromkeys([*named, (other_old, other_new), (item_old, item_new)]))


def _judged(views: Sequence[Judge], positions: _Positions, closed: _Closed) -> list[Place]:
    pairs = zip(views, closed, strict=True)
    return [Place(above or view.judge(positions), above is not None) for view, above in pairs]


def _closed(places_here: list[Place]) -> _Closed:
    """What each view makes of a container here as a whole; None where it is looked into."""
    return tuple(
        None
        if one.container is None or one.container[0] == "clear"
        else Judged(one.tags, one.masks, one.container, one.paths, one.container)
        for one in (place.judged for place in places_here)
    )
