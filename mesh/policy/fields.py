"""What views make of the fields of a type, each answer worked out once: many types share a masking."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from mesh.policy.compile import Plans
from mesh.policy.joint import TooManyPlaces
from mesh.policy.judge import Judge, Judged
from mesh.policy.mask import Masking
from mesh.policy.masktable import CLEAR
from mesh.policy.model_masks import STRICTNESS
from mesh.policy.paths import ANY_ITEM, ANY_MEMBER, Path
from mesh.policy.reach import places

TOO_MANY: Final = "more places than are looked at"
_SOMEWHERE: Final = "\x00"  # a member's name that no path holds


class Fields:
    """Asks the views of one tenant.

    Args:
        plans: Of the tenant.
    """

    def __init__(self, plans: Plans) -> None:
        self._plans = plans
        self._judges: dict[Masking, Judge] = {}
        self._known: dict[tuple[Masking, str], Judged] = {}
        self._places: dict[tuple[Masking, str | None], tuple[Judged, ...]] = {}

    def paths(self, view: str, type_: str) -> list[Path]:
        """The classified paths of *type_*, each once."""
        pairs, _ = self._plans.sides(view, type_)
        return list({path.text: path for path, _ in pairs}.values())

    def places(self, view: str, type_: str, question: Path | None = None) -> tuple[Judged, ...]:
        """What *view* makes of every place of *type_* that some path names, each different answer once.

        A path that names no place which shows by itself has one answer too: what closes it. Where there are too many
        places to look at, everything that may become of any of the fields is said of all of them.

        Args:
            view: Of the tenant.
            type_: Logical.
            question: Where given, the places that it names are meant, whether they are classified or not.
        """
        masking = self._plans.view(view, type_).masking
        key = (masking, None if question is None else question.text)
        known = self._places.get(key)
        if known is None:
            known = self._places[key] = tuple(self._looked_at(masking, self._judge(view, type_), question))
        return known

    def judged(self, view: str, type_: str, path: Path) -> Judged:
        """What *view* makes of *path* in *type_* at one place, that no other path names if that can be."""
        masking = self._plans.view(view, type_).masking
        known = self._known.get((masking, path.text))
        if known is None:
            deepest = max((len(p.steps) for p in self._judge(view, type_).paths), default=0) + 1
            known = self._known[masking, path.text] = _apart(masking, path, deepest)
        return known

    def _judge(self, view: str, type_: str) -> Judge:
        masking = self._plans.view(view, type_).masking
        judge = self._judges.get(masking)
        if judge is None:
            judge = self._judges[masking] = Judge(*self._plans.sides(view, type_))
        return judge

    def _looked_at(self, masking: Masking, judge: Judge, question: Path | None) -> list[Judged]:
        try:
            found = dict.fromkeys(_alike(places(judge, question)))
        except TooManyPlaces:
            return _anything(judge)
        deepest = max((len(path.steps) for path in judge.paths), default=0) + 1
        if question is not None:
            return list(found) or [_apart(masking, question, deepest)]
        order = {path.text: number for number, path in reversed(list(enumerate(judge.paths)))}
        seen = {path for judged in found for path in judged.paths}
        closed: dict[str, Judged] = {}
        for path, tags in zip(judge.paths, judge.tags, strict=True):
            if path.text not in seen:
                mine = closed.get(path.text) or replace(_apart(masking, path, deepest), tags=(), paths=(path.text,))
                closed[path.text] = replace(mine, tags=tuple(dict.fromkeys((*mine.tags, *tags))))
        classified = (judged for judged in (*found, *closed.values()) if judged.paths)
        return sorted(classified, key=lambda judged: [order[path] for path in judged.paths])


def _alike(judged: Iterable[Judged]) -> Iterable[Judged]:
    """*judged* without what is no matter to a scalar."""
    return (Judged(one.tags, one.masks, one.chosen, one.paths) for one in judged)


def _anything(judge: Judge) -> list[Judged]:
    tags = tuple(dict.fromkeys(tag for mine in judge.tags for tag in mine))
    masks = tuple(dict.fromkeys([CLEAR, *(mask for tag in tags for mask in judge.table.candidates(tag))]))
    return [Judged(tags, masks, mask, (TOO_MANY,)) for mask in masks]


def _apart(masking: Masking, path: Path, deepest: int) -> Judged:
    steps = tuple(_SOMEWHERE if step is ANY_MEMBER else step for step in path.steps)
    if not path.deep:
        return masking.at(steps)
    below = masking.at(("data", *(_SOMEWHERE,) * deepest, *steps))
    if len(steps) > 1 or steps[0] is ANY_ITEM:
        return below
    beside = masking.at(steps)  # an attribute of that name
    return min(below, beside, key=lambda judged: STRICTNESS[judged.chosen[0]])
