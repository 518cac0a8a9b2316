"""Masking: one event as one view shows it, in one pass, without touching the original.

For a view and a set of classified paths, a `Masking` follows the event through an automaton (see `paths.py`). At each
value the tags of every path that meets there add up; each tag gives the masks of the lines that name it, else
`otherwise`; no tag gives `otherwise`; the strictest of all is taken. What it does not know it hides:

* a container where a path names a scalar is redacted, and so is a `.**` node under an action that reads values;
* a container with nothing classified found inside is one value: `otherwise` decides, and its member names do not show;
* two different masks of equal rank (a load error, so not met here) redact.

Under `otherwise: drop` a container of which nothing is left is not shown either.

Source: design section 4, Classifying, Masking, Attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mesh.attributes import ATTRIBUTES_NEVER_MASKED
from mesh.policy import paths as walk
from mesh.policy.actions import DROPPED, REDACTED, Masker, MaskKeys, drop, partial, pseudonym, redact
from mesh.policy.masktable import REDACT, Mask, MaskTable
from mesh.policy.paths import Path
from mesh.policy.walkers import SCALARS, UNMET, Node, dropping_dict, item_list, masking_dict, unmet, whole

__all__ = ["MaskKeys", "Masking"]

_AS_THEY_ARE = ATTRIBUTES_NEVER_MASKED | {"partitionkey"}  # partitionkey is a pseudonym in every view: journey sets it
SPARE_NODES = 4096  # of one automaton, beyond one for each step of its paths: no event can make it grow much further


class Masking:
    """How one view shows the events of some types. Made once per view and set of classifications, then shared.

    Args:
        classified: Path and its tags, of every Classification that covers the types.
        table: The view's.

    Attributes:
        identity: Whether everything shows as it is.
        domains: The pseudonym domains whose keys are needed.
    """

    def __init__(self, classified: Iterable[tuple[Path, tuple[str, ...]]], table: MaskTable) -> None:
        pairs = tuple(classified)
        self._paths = tuple(path for path, _ in pairs)
        self._tags = tuple(tags for _, tags in pairs)
        self._table = table
        self._dropping = table.otherwise[0] == "drop"
        self.identity = table.all_clear
        self.domains = table.domains({tag for tags in self._tags for tag in tags})
        self._keys: MaskKeys | None = None
        self._maskers: dict[Mask, Masker | None] = {}
        self._nodes: dict[frozenset[walk.Position], Node] = {}
        self._max_nodes = SPARE_NODES + sum(len(path.steps) + 1 for path in self._paths)
        self._top: dict[str, Node] = {}
        self._elsewhere = Node(frozenset())

    def bind(self, keys: MaskKeys) -> None:
        """Build the maskers with *keys*.

        Raises:
            ConfigError: A pseudonym domain of this view has no usable key.
        """
        masks = {mask for tags in self._tags for tag in tags for mask in self._table.candidates(tag)}
        self._maskers = {mask: _masker(mask, keys) for mask in (*masks, self._table.otherwise, REDACT)}
        self._nodes = {}
        names, other, _ = walk.steps_from(self._paths, walk.begin(self._paths))
        self._top = {name: self._node(places) for name, places in names.items()}
        self._elsewhere = self._node(other)
        self._top["data_base64"] = self._top.get("data", self._elsewhere)  # binary data is the field `data`
        self._keys = keys

    def apply(self, fields: Mapping[str, Any], keys: MaskKeys) -> dict[str, Any]:
        """*fields* as the view shows them: a fresh dict at the top, deeper values shared where unchanged.

        Args:
            fields: CloudEvents attributes, extensions and `data` or `data_base64`. Never changed.
            keys: Bound at the first call, and again when another object is handed in.

        Raises:
            ConfigError: A pseudonym domain of this view has no usable key.
        """
        if self.identity:
            return dict(fields)
        if keys is not self._keys or len(self._nodes) > self._max_nodes:
            self.bind(keys)
        shown = dict(fields)
        top = self._top
        for name in fields:
            if name in _AS_THEY_ARE:
                continue
            value = fields[name]
            node = top.get(name, self._elsewhere)
            kind = type(value)
            if kind in SCALARS:
                masked = value if node.act is None else node.act(value)
            else:
                masked = node.on_dict(value) if kind is dict else node.on_list(value) if kind is list else None
                if masked is UNMET:
                    masked = self._unclassified(value)
            if masked is not value:
                _put(name, masked, shown)
        return shown

    def _unclassified(self, value: Any) -> Any:
        act = self._maskers[self._table.otherwise]
        return value if act is None else act(value)

    # --- the automaton -----------------------------------------------------------------------------------------------

    def _node(self, places: frozenset[walk.Position]) -> Node:
        node = self._nodes.get(places)
        if node is None:
            node = self._nodes[places] = self._judge(Node(places))
        return node

    def _judge(self, node: Node) -> Node:
        """Work out what becomes of a scalar and of a container at *node*."""
        exact, subtree = walk.ends(self._paths, node.places)
        chosen = self._table.choose(
            [tag for i in exact for tag in self._tags[i]], [tag for i in subtree for tag in self._tags[i]]
        )
        mask = chosen[0] if len(chosen) == 1 else REDACT
        node.act = self._maskers[mask]
        node.classified = bool(exact or subtree)
        if exact:  # a container where a scalar was expected
            node.on_dict = node.on_list = whole(drop if mask[0] == "drop" else redact)
        elif subtree and mask[0] != "clear":
            node.on_dict = node.on_list = whole(node.act)
        elif subtree and len(subtree) == len(node.places):  # only clear `.**`: nothing stricter can follow below
            node.on_dict = node.on_list = whole(None)
        elif not node.places:
            node.on_dict = node.on_list = unmet
        else:
            node.on_dict = lambda value: self._enter(node).on_dict(value)
            node.on_list = lambda value: self._enter(node).on_list(value)
        return node

    def _enter(self, node: Node) -> Node:
        """Build the walkers of *node*, now that an event has a container there."""
        if len(self._nodes) > 2 * self._max_nodes:  # only an event made for it comes here: it shows less
            closed = Node(node.places)
            closed.on_dict = closed.on_list = whole(drop if self._dropping else redact)
            return closed
        by_name, other_places, item_places = walk.steps_from(self._paths, node.places)
        names = {name: self._node(places) for name, places in by_name.items()}
        other, item = self._node(other_places), self._node(item_places)
        if self._dropping:
            node.on_dict = dropping_dict(names, other, classified=node.classified)
        else:
            shows = self._table.otherwise[0] == "clear"
            node.on_dict = masking_dict(names, other, classified=node.classified, shows=shows)
        node.on_list = item_list(item, self._maskers[self._table.otherwise], classified=node.classified)
        return node


def _masker(mask: Mask, keys: MaskKeys) -> Masker | None:
    """The function of a mask; None for clear."""
    action, params = mask
    if action == "clear":
        return None
    if action == "drop":
        return drop
    if action == "partial":
        return partial(params)
    if action == "pseudonym":
        return pseudonym(params, keys)
    return redact  # and whatever this version does not know


def _put(name: str, masked: Any, shown: dict[str, Any]) -> None:
    """Put a field that has changed into *shown*, or take it out."""
    if name == "data_base64":  # binary data is one field, `data`; what is hidden is no longer base64
        del shown[name]
        if masked is not DROPPED:
            shown["data"] = REDACTED
    elif masked is DROPPED or (name != "data" and (masked is None or masked == REDACTED)):
        del shown[name]  # no attribute can be null, and one that says nothing is left out
    else:
        shown[name] = masked
