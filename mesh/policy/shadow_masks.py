"""Where two maskings of one event disagree: by the paths of the policies, never by what the event holds.

Both sides' paths are followed at once, as `mask.py` follows one side's, and at each scalar the mask that either side
chooses is asked for. No value is looked at, and a member's name only to find its path. Whether a container shows its
member names or is one redacted value is not compared, as long as the members' masks agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from mesh.attributes import ATTRIBUTES_NEVER_MASKED
from mesh.policy import paths as walk
from mesh.policy.masktable import REDACT, Mask, MaskTable
from mesh.policy.paths import Path

Pairs: TypeAlias = tuple[tuple[Path, tuple[str, ...]], ...]
"""The classified paths of a type, each with its tags."""

MAX_PLACES = 5000  # of one event that are looked at: about 5 ms; a usual event has 50
MAX_NODES = 4096  # of one comparison; full means emptied
UNCLASSIFIED = "unclassified"

_Fixed: TypeAlias = tuple[Mask | None, Mask | None]
_OPEN: _Fixed = (None, None)

_AS_THEY_ARE = ATTRIBUTES_NEVER_MASKED | {"partitionkey"}


_Verdict: TypeAlias = tuple[Mask, Mask | None]


class MaskChange(NamedTuple):
    """At places of this path one side takes another mask than the other."""

    path: str
    active: Mask
    candidate: Mask


class _Side:
    """One side's classified paths among those of both, and its view's masks."""

    def __init__(self, first: int, pairs: Pairs, table: MaskTable) -> None:
        self.first = first
        self.tags = tuple(tags for _, tags in pairs)
        self.table = table

    def judge(self, places: frozenset[walk.Position], exact: list[int], subtree: list[int]) -> _Verdict:
        """(What becomes of a scalar here, what becomes of a whole container, None where each member is judged)."""
        mine = range(self.first, self.first + len(self.tags))
        named = [self.tags[i - self.first] for i in exact if i in mine]
        above = [self.tags[i - self.first] for i in subtree if i in mine]
        chosen = self.table.choose([t for tags in named for t in tags], [t for tags in above for t in tags])
        mask = chosen[0] if len(chosen) == 1 else REDACT
        here = sum(index in mine for index, _ in places)
        if named:  # a container where a scalar was expected
            return mask, mask if mask[0] == "drop" else REDACT
        if not here:
            return mask, self.table.otherwise
        if above and (mask[0] != "clear" or len(above) == here):
            return mask, mask
        return mask, None


class _Node:
    """A place, as both sides see it, and the places below it that were met.

    Attributes:
        label: The paths that end here.
        scalar, whole: What each side makes of a scalar, and of a container; None where it judges each member.
        change: The difference for a scalar, where both sides judge it here.
    """

    __slots__ = ("change", "elsewhere", "item", "kids", "label", "names", "other", "scalar", "whole")

    def __init__(self, label: str, active: _Verdict, candidate: _Verdict) -> None:
        self.label = label
        self.scalar = active[0], candidate[0]
        self.whole = active[1], candidate[1]
        self.change = None if active[0] == candidate[0] else MaskChange(label or UNCLASSIFIED, *self.scalar)
        self.names: dict[str, frozenset[walk.Position]] = {}
        self.other: frozenset[walk.Position] = frozenset()
        self.item: frozenset[walk.Position] = frozenset()
        self.kids: dict[str, _Node] = {}  # by the member names of paths
        self.elsewhere: _Node | None = None  # by any other name


class MaskComparison:
    """The same view of the same type, as two bundles have it.

    Args:
        active: Classified paths and masks of the bundle in force.
        candidate: Of the other one.

    Attributes:
        same: Whether no event can show a difference.
        otherwise: Each side's mask for what is not classified.
    """

    def __init__(self, active: tuple[Pairs, MaskTable], candidate: tuple[Pairs, MaskTable]) -> None:
        self._paths = tuple(path for path, _ in (*active[0], *candidate[0]))
        self._active = _Side(0, *active)
        self._candidate = _Side(len(active[0]), *candidate)
        self._nodes: dict[frozenset[walk.Position], _Node] = {}
        self.otherwise = active[1].otherwise, candidate[1].otherwise
        self.same = set(active[0]) == set(candidate[0]) and _agree(active, candidate)

    def changes(self, fields: Mapping[str, Any]) -> set[MaskChange]:
        """Where the two disagree about an event; of one with more than `MAX_PLACES` places only those are looked at."""
        if self.same:
            return set()
        if len(self._nodes) > MAX_NODES:
            self._nodes.clear()
        walker = _Walk(self)
        top = self.node(walk.begin(self._paths))
        for name, value in fields.items():
            if name not in _AS_THEY_ARE:
                walker.visit(value, self.member(top, "data" if name == "data_base64" else name), _OPEN, "")
        return walker.found

    def node(self, places: frozenset[walk.Position]) -> _Node:
        """What both sides make of *places*."""
        node = self._nodes.get(places)
        if node is None:
            exact, subtree = walk.ends(self._paths, places)
            texts = dict.fromkeys(self._paths[i].text for i in (*exact, *subtree))
            active = self._active.judge(places, exact, subtree)
            candidate = self._candidate.judge(places, exact, subtree)
            node = self._nodes[places] = _Node(" + ".join(sorted(texts)), active, candidate)
            node.names, node.other, node.item = walk.steps_from(self._paths, places)
        return node

    def member(self, node: _Node, name: str) -> _Node:
        """The place of the member *name* of a container at *node*; names that no path has share one."""
        known = node.kids.get(name)
        if known is None:
            places = node.names.get(name)
            if places is not None:
                known = node.kids[name] = self.node(places)
            else:
                known = node.elsewhere = node.elsewhere or self.node(node.other)
        return known


class _Walk:
    """One event, once."""

    def __init__(self, comparison: MaskComparison) -> None:
        self._comparison = comparison
        self._left = MAX_PLACES
        self.found: set[MaskChange] = set()

    def visit(self, value: Any, node: _Node, fixed: _Fixed, label: str) -> None:
        """Compare *value* and all below it.

        Args:
            value: Of the event.
            node: Its place.
            fixed: What each side does with a container that holds this; None where it judges each member.
            label: The path by which a side fixed it.
        """
        if self._left <= 0:
            return
        self._left -= 1
        kind = type(value)
        if kind is not dict and kind is not list:
            if fixed is not _OPEN:
                self._differ(fixed[0] or node.scalar[0], fixed[1] or node.scalar[1], node.label or label)
            elif node.change is not None:
                self.found.add(node.change)
            return
        label = node.label or label
        active, candidate = fixed[0] or node.whole[0], fixed[1] or node.whole[1]
        if not value:  # nothing classified in it
            otherwise = self._comparison.otherwise
            active, candidate = active or otherwise[0], candidate or otherwise[1]
        if active is not None and candidate is not None:
            self._differ(active, candidate, label)
            return
        fixed = _OPEN if active is candidate is None else (active, candidate)
        if kind is dict:
            for name, member in value.items():
                self.visit(member, self._comparison.member(node, name), fixed, label)
        else:
            below = self._comparison.node(node.item)
            for item in value:
                self.visit(item, below, fixed, label)

    def _differ(self, active: Mask, candidate: Mask, label: str) -> None:
        if active != candidate:
            self.found.add(MaskChange(label or UNCLASSIFIED, active, candidate))


def _agree(active: tuple[Pairs, MaskTable], candidate: tuple[Pairs, MaskTable]) -> bool:
    """Whether two tables say the same of every tag among the (equal) classified paths."""
    tags = {tag for _, tags in active[0] for tag in tags}
    one, other = active[1], candidate[1]
    return one.otherwise == other.otherwise and all(set(one.candidates(t)) == set(other.candidates(t)) for t in tags)
