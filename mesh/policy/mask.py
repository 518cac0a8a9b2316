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

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from mesh.policy import paths as walk
from mesh.policy.actions import Masker, MaskKeys, drop, partial, pseudonym, redact
from mesh.policy.ciphers import Current, encrypt
from mesh.policy.generalize import generalize, truncate_ip
from mesh.policy.judge import AS_THEY_ARE, Judge, Judged, Pair
from mesh.policy.masktable import CLEAR, DROP, REDACT, Mask, MaskTable
from mesh.policy.model_masks import With
from mesh.policy.traces import PathTrace, trace
from mesh.policy.walkers import Node, as_it_is, dropping_dict, item_list, masking_dict, put, shown, unmet, whole
from mesh.verbatim import masked

__all__ = ["Judged", "MaskKeys", "Masking", "PathTrace"]

SPARE_NODES = 4096  # of one automaton, beyond one for each step of its paths: no event can make it grow much further
_KEYLESS: dict[str, Callable[[With], Masker]] = {
    "partial": partial,
    "generalize": generalize,
    "truncate-ip": truncate_ip,
}


Look: TypeAlias = "tuple[MaskKeys | None, dict[str, Node | None], Node, Masker | None]"


class Masking:
    """How one view shows the events of some types. Made once per view and set of classifications, then shared.

    Args:
        classified: Path and its tags, of every Classification that covers the types.
        table: The view's.
        tenant: Whose events they are; what is encrypted is bound to it.

    Attributes:
        identity: Whether everything shows as it is.
        domains: The pseudonym domains whose keys are needed.
        ciphers: The names of the `encrypt` keys that are needed.
        look: What `splice` hands to `mesh.verbatim.masked`, behind the keys that it holds for (None: any): for
            `mesh.cutting.cut`, which needs no call then. None where `splice` has to be asked.
    """

    def __init__(self, classified: Iterable[Pair], table: MaskTable, *, tenant: str = "") -> None:
        self._judge = judge = Judge(classified, table)
        self._tenant = tenant
        self._table = table
        self._dropping = table.otherwise[0] == "drop"
        tags = {tag for tags in judge.tags for tag in tags}
        self._masks: set[Mask] = {mask for tag in tags for mask in table.candidates(tag)}
        self.identity = table.all_clear
        self.domains = table.domains(tags)
        self.ciphers = table.ciphers(tags)
        self._current = Current()
        self._keys: MaskKeys | None = None
        self._maskers: dict[Mask, Masker | None] = {}
        self._ciphers: dict[Mask, Callable[[str], Masker]] = {}
        self._encrypting: dict[tuple[Mask, str], Masker] = {}
        self._nodes: dict[frozenset[walk.Position], Node] = {}
        self._max_nodes = SPARE_NODES + sum(len(path.steps) + 1 for path in judge.paths)
        self._top: dict[str, Node | None] = {}
        self._elsewhere = Node(frozenset(), unmet)
        self._otherwise: Masker | None = None
        self._open = Node(frozenset(), as_it_is)  # where everything shows
        self.look: Look | None = (None, {}, self._open, None) if self.identity else None

    def bind(self, keys: MaskKeys) -> None:
        """Build the maskers with *keys*.

        Raises:
            ConfigError: A pseudonym domain or cipher of this view has no usable key.
        """
        ciphers = {mask: self._cipher(mask[1], keys) for mask in self._masks if mask[0] == "encrypt"}
        masks = (*self._masks, self._table.otherwise, REDACT, DROP, CLEAR)
        maskers = {mask: _masker(mask, keys) for mask in masks if mask[0] != "encrypt"}
        self._keys = None  # until all of it is of these keys
        self._show()
        self._maskers = maskers
        self._ciphers = ciphers
        self._encrypting = {}
        self._nodes = {}
        names, other, _ = walk.steps_from(self._judge.paths, self._judge.begin())
        self._top = {name: self._node(places) for name, places in names.items()}
        self._elsewhere = self._node(other)
        self._otherwise = self._maskers[self._table.otherwise]
        self._top |= dict.fromkeys(AS_THEY_ARE)
        self._top["data_base64"] = self._top.get("data", self._elsewhere)  # binary data is the field `data`
        self._keys = keys
        self._show()

    def _show(self) -> None:
        """Say in `look` what holds until another object of keys, or an event that makes too many nodes."""
        if not self.identity:
            asked = self._keys is None or self.ciphers or len(self._nodes) > self._max_nodes
            self.look = None if asked else (self._keys, self._top, self._elsewhere, self._otherwise)

    def _cipher(self, params: With, keys: MaskKeys) -> Callable[[str], Masker]:
        return encrypt(params, keys, tenant=self._tenant, current=self._current)

    def apply(self, fields: dict[str, Any], keys: MaskKeys) -> dict[str, Any]:
        """*fields* as the view shows them: a fresh dict at the top, deeper values shared where unchanged.

        Args:
            fields: CloudEvents attributes, extensions and `data` or `data_base64`. Never changed.
            keys: Bound at the first call, and again when another object is handed in.

        Raises:
            ConfigError: A pseudonym domain or cipher of this view has no usable key.
        """
        if self.identity:
            return dict(fields)
        if self._keys is None or keys is not self._keys or len(self._nodes) > self._max_nodes:
            self.bind(keys)
        if self.ciphers:
            self._current.begin(fields)
        return shown(fields, self._top, self._elsewhere, self._otherwise, put)

    def splice(
        self, text: bytes, behind: bytes, token: str | None, fields: dict[str, Any], keys: MaskKeys
    ) -> bytes | None:
        """`encode` of what `apply` gives, cut out of the text of an event, of which most shows as it is.

        Args:
            text: As `mesh.verbatim.verbatim` gave it.
            behind: Members that go behind all others, as for `mesh.jsontext.extended`.
            token: What its `partitionkey` becomes, which no view masks; None where it has none.
            fields: The attributes of the same event.
            keys: As for `apply`.

        Returns:
            None where `apply` has to be asked: always before it was asked the first time.
        """
        instead = {} if token is None else {"partitionkey": token}
        if self.identity:
            return masked(text, instead, {}, self._open, None, behind)
        if self._keys is None or keys is not self._keys or len(self._nodes) > self._max_nodes:
            return None
        if self.ciphers:
            self._current.begin(fields)
        return masked(text, instead, self._top, self._elsewhere, self._otherwise, behind)

    # --- for tools ---------------------------------------------------------------------------------------------------

    def trace(self, fields: Mapping[str, Any]) -> list[PathTrace]:
        """Why *fields* look as they do in this view: one entry for each different answer of its places."""
        return trace(self._judge, fields)

    def at(self, steps: Sequence[object]) -> Judged:
        """What a scalar gets that stands at *steps*: names of members, `ANY_ITEM` for the items of an array."""
        return self._judge.at(steps)

    # --- the automaton -----------------------------------------------------------------------------------------------

    def _node(self, places: frozenset[walk.Position]) -> Node:
        node = self._nodes.get(places)
        if node is None:
            node = self._nodes[places] = self._make(places)
            if len(self._nodes) > self._max_nodes:
                self._show()
        return node

    def _make(self, places: frozenset[walk.Position]) -> Node:
        """A node for *places*, with what becomes there of a scalar and of a container."""
        node = Node(places, unmet)
        judged = self._judge.judge(places)
        node.act = self._act(judged)
        node.classified = bool(judged.paths)
        if judged.container is not None:
            node.on_dict = node.on_list = whole(self._maskers[judged.container])
        elif not places:
            node.on_dict = node.on_list = unmet
        else:
            node.on_dict = lambda value: self._enter(node).on_dict(value)
            node.on_list = lambda value: self._enter(node).on_list(value)
        return node

    def _act(self, judged: Judged) -> Masker | None:
        """What masks a scalar; an encrypted one is bound to its path, so each path has a masker of its own."""
        mask, path = judged.chosen, judged.cipher_path
        if not path:
            return self._maskers[mask]
        made = self._encrypting.get((mask, path))
        if made is None:
            made = self._encrypting[mask, path] = self._ciphers[mask](path)
        return made

    def _enter(self, node: Node) -> Node:
        """Build the walkers of *node*, now that an event has a container there."""
        if len(self._nodes) > 2 * self._max_nodes:  # only an event made for it comes here: it shows less
            closed = Node(node.places, unmet)
            closed.on_dict = closed.on_list = whole(drop if self._dropping else redact)
            return closed
        by_name, other_places, item_places = walk.steps_from(self._judge.paths, node.places)
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
    if action == "pseudonym":
        return pseudonym(params, keys)
    return keyless(mask)


def keyless(mask: Mask) -> Masker:
    """The function of a mask that reads a value and needs no key; redact for whatever else there may be."""
    make = _KEYLESS.get(mask[0])
    return redact if make is None else make(mask[1])
