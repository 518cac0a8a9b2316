"""Every place in an event that a set of classifications tells from the others, as one view sees it.

A path such as `**.contact.email` stands for many places. Other paths may close one of them and leave the next open, so
no single place can answer for it. The automaton of the paths is followed from the event inwards; where two ways come
to the same state, one of them answers for both. What a view closes is not looked into, as agents do not.

Source: the subset construction in `paths.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

from mesh.policy import paths as walk
from mesh.policy.joint import MAX_PLACES, TooManyPlaces
from mesh.policy.judge import AS_THEY_ARE, Judge, Judged
from mesh.policy.paths import Path, Position

_State: TypeAlias = tuple[frozenset[Position], frozenset[Position]]  # of the classified paths, and of the question
_DATA: Final = "data"  # of all attributes it alone has anything inside


def places(judge: Judge, question: Path | None = None) -> Iterator[Judged]:
    """What *judge* makes of a scalar, at each place that shows by itself.

    Args:
        judge: A view over the classifications of a type.
        question: Where given, only the places that it names.

    Raises:
        TooManyPlaces: Not all were looked at: there are more than `MAX_PLACES`, beyond one for each step of a path.
    """
    asked = () if question is None else (question,)
    limit = MAX_PLACES + sum(len(path.steps) + 1 for path in judge.paths)
    top, other, _ = _steps(judge, asked, (judge.begin(), walk.begin(asked)))
    start = top.pop(_DATA, other)
    for state in dict.fromkeys([*(top[name] for name in top if name not in AS_THEY_ARE), other]):
        if _meant(asked, state):
            yield judge.judge(state[0])
    seen, todo = {start}, [start]
    while todo:
        state = todo.pop()
        judged = judge.judge(state[0])
        if _meant(asked, state):
            yield judged
        closed = judged.container is not None and judged.container[0] != "clear"
        if closed or not (state[1] if asked else state[0]):
            continue
        names, other, item = _steps(judge, asked, state)
        for reached in (*names.values(), other, item):
            if reached not in seen:
                if len(seen) >= limit:
                    raise TooManyPlaces
                seen.add(reached)
                todo.append(reached)


def _meant(asked: tuple[Path, ...], state: _State) -> bool:
    """Whether *state* is a place to tell of: any, or one that is asked about."""
    return any(walk.ends(asked, state[1])) if asked else True


def _steps(judge: Judge, asked: tuple[Path, ...], state: _State) -> tuple[dict[str, _State], _State, _State]:
    """One step on: by each member's name that some path has, by any other, and into an array."""
    names, other, item = walk.steps_from(judge.paths, state[0])
    wanted, wanted_other, wanted_item = walk.steps_from(asked, state[1])
    named = {n: (names.get(n, other), wanted.get(n, wanted_other)) for n in sorted({*names, *wanted})}
    return named, (other, wanted_other), (item, wanted_item)
