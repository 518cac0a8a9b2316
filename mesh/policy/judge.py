"""What becomes of a value at each place of an event, under one view: read off the policies alone, no event needed.

`mask.py` builds its maskers by it, `traces.py` explains with it, `tighten.py` compares two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.attributes import ATTRIBUTES_NEVER_MASKED
from mesh.policy import paths as walk
from mesh.policy.masktable import CLEAR, DROP, REDACT, Mask, MaskTable, strictest
from mesh.policy.model_masks import STRICTNESS
from mesh.policy.paths import ANY_ITEM, ANY_MEMBER, Path, Position

AS_THEY_ARE: Final = ATTRIBUTES_NEVER_MASKED | {"partitionkey"}  # partitionkey is a pseudonym in every view
MAX_PLACES: Final = 2000  # looked at for one question about everything below a place; beyond it the answer is no

Pair = tuple[Path, tuple[str, ...]]
"""A classified path and its tags."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a place in an event is to a view.

    Attributes:
        paths: The texts of the classification paths that meet there.
        tags: Theirs.
        masks: Of each tag; `otherwise` where there is no tag.
        chosen: The strictest, which a scalar there gets; `redact` where two contradict each other.
        container: What an object or array there becomes as a whole, or None where it is looked into.
        cipher_path: The path that an encrypted value is bound to.
    """

    tags: tuple[str, ...]
    masks: tuple[Mask, ...]
    chosen: Mask
    paths: tuple[str, ...] = ()
    container: Mask | None = None
    cipher_path: str = ""


_ATTRIBUTE = Judged((), (CLEAR,), CLEAR)


class Judge:
    """One view over one set of classifications.

    Args:
        classified: Paths and their tags.
        table: The view's.
    """

    def __init__(self, classified: Iterable[Pair], table: MaskTable) -> None:
        pairs = tuple(classified)
        self.paths = tuple(path for path, _ in pairs)
        self.tags = tuple(tags for _, tags in pairs)
        self.table = table

    def begin(self) -> frozenset[Position]:
        """Before the first step."""
        return walk.begin(self.paths)

    def judge(self, places: frozenset[Position]) -> Judged:
        """What becomes of a value at *places*."""
        exact, subtree = walk.ends(self.paths, places)
        by_name = [tag for i in exact for tag in self.tags[i]]
        through = [tag for i in subtree for tag in self.tags[i]]
        masks = self.table.among(by_name, through)
        chosen = strictest(masks)
        mask = chosen[0] if len(chosen) == 1 else REDACT
        covered = bool(subtree) and len(exact) + len(subtree) == len(places)
        return Judged(
            tuple(dict.fromkeys(by_name + through)),
            masks,
            mask,
            paths=tuple(dict.fromkeys(self.paths[i].text for i in (*exact, *subtree))),
            container=self._container(mask, exact=bool(exact), subtree=bool(subtree), covered=covered),
            cipher_path=self._cipher_path(exact, mask) if mask[0] == "encrypt" else "",
        )

    def _container(self, mask: Mask, *, exact: bool, subtree: bool, covered: bool) -> Mask | None:
        if exact:  # where a scalar was expected
            return CLEAR if self.table.all_clear else DROP if mask[0] == "drop" else REDACT
        if subtree and mask[0] != "clear":
            return mask
        return CLEAR if covered else None  # only clear `.**`: nothing stricter can follow below

    def _cipher_path(self, exact: Iterable[int], mask: Mask) -> str:
        meant = [self.paths[i].text for i in exact if any(mask in self.table.candidates(t) for t in self.tags[i])]
        return min(meant)  # of several the same one, whatever the order of the documents

    def at(self, steps: Sequence[object]) -> Judged:
        """What a scalar gets that stands at *steps*: the names of members, and `ANY_ITEM` for any item of an array.

        Where a container above it is not looked into, that decides: the scalar does not show by itself.
        """
        if steps and steps[0] in AS_THEY_ARE:
            return _ATTRIBUTE
        places = self.begin()
        for number, step in enumerate(steps):
            name = "data" if number == 0 and step == "data_base64" else step
            names, other, item = walk.steps_from(self.paths, places)
            places = item if name is ANY_ITEM else names.get(str(name), other)
            judged = self.judge(places)
            if number < len(steps) - 1 and judged.container is not None and judged.container[0] != "clear":
                return Judged(judged.tags, judged.masks, judged.container, judged.paths, judged.container)
        return self.judge(places)

    def wholly_clear(self, path: Path) -> bool:
        """Whether every value that *path* leads to shows as it is, in every event, and so does all that is in it."""
        if self.table.all_clear or (path.root in AS_THEY_ARE):
            return True
        if path.deep:
            return False
        reached = {self.begin()}
        for number, step in enumerate(path.steps):
            last = number == len(path.steps) - 1
            reached = {place for places in reached for place in self._step(places, step)}
            closed = (self.judge(places).container for places in reached)
            if not last and any(mask is not None and mask != CLEAR for mask in closed):
                return False
        return all(self._shows(places, whole=path.subtree) for places in reached)

    def _step(self, places: frozenset[Position], step: object) -> Iterator[frozenset[Position]]:
        names, other, item = walk.steps_from(self.paths, places)
        if step is ANY_ITEM:
            yield item
        elif step is ANY_MEMBER:
            yield from (*names.values(), other)
        else:
            yield names.get(str(step), other)

    def _shows(self, start: frozenset[Position], *, whole: bool) -> bool:
        """Whether a value at *start* is clear, and all below it; a classified scalar (unless *whole*) has no below."""
        judged = self.judge(start)
        if judged.chosen != CLEAR:
            return False
        if judged.container == REDACT and not whole:
            return True
        seen, todo = {start}, [start]
        while todo:
            places = todo.pop()
            judged = self.judge(places)
            if judged.chosen != CLEAR or judged.container not in (None, CLEAR) or len(seen) > MAX_PLACES:
                return False
            if judged.container is None and places:
                names, other, item = walk.steps_from(self.paths, places)
                new = {*names.values(), other, item} - seen
                seen |= new
                todo.extend(new)
        return True


def same_or_looser(then: Judge, now: Judge) -> bool:
    """Whether the view *now* shows at every place at least what *then* did, and masks alike what it still masks.

    Asked of the policies as a whole: a no means that some place has to be looked at.
    """
    if now.table.all_clear:
        return True
    if then.table.all_clear or _by_path(then) != _by_path(now):
        return False
    tags = {tag for tags in now.tags for tag in tags}
    return _looser((then.table.otherwise,), (now.table.otherwise,)) and all(
        _looser(then.table.candidates(tag), now.table.candidates(tag)) for tag in tags
    )


def _by_path(judge: Judge) -> dict[str, frozenset[str]]:
    """The tags that each path gives, in whichever documents it stands."""
    found: dict[str, frozenset[str]] = {}
    for path, tags in zip(judge.paths, judge.tags, strict=True):
        found[path.text] = found.get(path.text, frozenset()) | frozenset(tags)
    return found


def _looser(then: tuple[Mask, ...], now: tuple[Mask, ...]) -> bool:
    return set(then) == set(now) or rank(now) < rank(then)


def rank(masks: Iterable[Mask]) -> int:
    """How strict the strictest of *masks* is."""
    return max(STRICTNESS[action] for action, _ in masks)
