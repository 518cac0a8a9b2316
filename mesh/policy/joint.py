"""Every place an event can have, under two sets of policies at once: what no path by itself would show.

What a change does may hang on two paths: a line that goes lets values below it show which it closed, wherever another
path leads. So both sets of paths are followed together, from the event inwards, and each place that they tell from the
others is judged by both.

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

MAX_PLACES: Final = 5_000  # looked at, beyond one for each step of a path; what has more counts as different

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
    """There are more places than are looked at: an answer to whoever walks, never shown."""


def places(old: Sequence[Judge], new: Sequence[Judge]) -> Iterator[tuple[list[Place], list[Place]]]:
    """What the views *old* and the views *new* make of a scalar, place by place.

    Args:
        old: At least one; all over the same classified paths.
        new: The same.

    Raises:
        TooManyPlaces: Not all were looked at.
    """
    start = (old[0].begin(), new[0].begin())
    nothing: tuple[_Closed, _Closed] = ((None,) * len(old), (None,) * len(new))
    for before, after in _steps(old[0].paths, new[0].paths, *start):
        yield _judged(old, before, nothing[0]), _judged(new, after, nothing[1])
    data = (_named(old[0].paths, start[0], "data"), _named(new[0].paths, start[1], "data"))
    todo: list[_State] = [(*data, *nothing)]  # of all attributes it alone has anything inside
    seen: set[_State] = set(todo)
    limit = MAX_PLACES + sum(len(path.steps) + 1 for path in (*old[0].paths, *new[0].paths))
    while todo:
        state = todo.pop()
        seen_as = (_judged(old, state[0], state[2]), _judged(new, state[1], state[3]))
        yield seen_as
        closed = (_closed(seen_as[0]), _closed(seen_as[1]))
        if all(closed[0]) and all(closed[1]):
            continue
        for step in _steps(old[0].paths, new[0].paths, *state[:2]):
            below = (*step, *closed)
            if below not in seen:
                if len(seen) >= limit:
                    raise TooManyPlaces
                seen.add(below)
                todo.append(below)


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
