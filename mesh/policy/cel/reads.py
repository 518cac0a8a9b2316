"""Which paths a condition reads, and which of them without a `has()` that makes sure they are there."""

from __future__ import annotations

import json
import re
from itertools import chain

from mesh.policy.cel import nodes
from mesh.policy.cel.nodes import Node

_PLAIN = re.compile(r"[A-Za-z0-9_+-]+")
_ALWAYS_THERE = frozenset(
    f"event.{name}" for name in ("specversion", "id", "source", "type", "time", "datacontenttype", "correlationid")
)  # every event of the mesh has these
_Places = frozenset[str]
_NOWHERE: _Places = frozenset()


class Reads:
    """The paths of one tree, as classifications write them: `data.items[*].sku`, `event.type`.

    An item picked by number is `[*]`; one picked by a value of the event is `.**`, for it can be any.
    """

    def __init__(self, tree: Node) -> None:
        self._read: dict[str, None] = {}  # in the order of the text
        self._bare: dict[str, None] = {}  # read where nothing makes sure that they are there
        self._elements: _Places = _NOWHERE  # where the comprehension's variable points to
        self._visit(tree, frozenset())
        self.fields = tuple(self._read)
        bare = [path for path in self._bare if _can_be_missing(path)]
        self.unguarded = tuple(path for path in bare if not any(_is_below(other, path) for other in bare))

    def _visit(self, node: Node, safe: frozenset[str], *, whole: bool = True) -> None:
        """Note what *node* reads, when the paths in *safe* are known to be there.

        *whole* is false for what only leads to the field that is read, as `data.a` in `data.a.b`.
        """
        match node:
            case nodes.Has():
                self._read.update(dict.fromkeys(sorted(self._below(node.operand, node.field))))
                self._visit(node.operand, safe, whole=False)
            case nodes.And() | nodes.Or():
                self._visit_logical(node, safe)
            case nodes.If():
                self._visit(node.condition, safe)
                self._visit(node.yes, safe | self._without(node.condition, decides=False))
                self._visit(node.no, safe | self._without(node.condition, decides=True))
            case nodes.Comprehension():
                self._visit_comprehension(node, safe)
            case nodes.Select() | nodes.Index():
                self._note(node, safe, whole=whole)
                self._visit(node.operand, safe, whole=False)
                if isinstance(node, nodes.Index):
                    self._visit(node.index, safe)
            case _:
                self._note(node, safe, whole=whole)
                for child in nodes.children(node):
                    self._visit(child, safe)

    def _note(self, node: Node, safe: frozenset[str], *, whole: bool) -> None:
        places = sorted(self._places(node))
        if whole:
            self._read.update(dict.fromkeys(places))
        self._bare.update(dict.fromkeys(path for path in places if path not in safe))

    def _visit_logical(self, node: nodes.And | nodes.Or, safe: frozenset[str]) -> None:
        decides = isinstance(node, nodes.Or)
        settled = [self._without(operand, decides=decides) for operand in node.operands]
        for at, operand in enumerate(node.operands):
            others = chain.from_iterable(paths for other, paths in enumerate(settled) if other != at)
            self._visit(operand, safe.union(others))

    def _visit_comprehension(self, node: nodes.Comprehension, safe: frozenset[str]) -> None:
        self._visit(node.over, safe)
        self._elements = self._items(node.over)
        if node.predicate is not None:
            self._visit(node.predicate, safe)
            safe |= self._without(node.predicate, decides=False)
        if node.transform is not None:
            self._visit(node.transform, safe)
        self._elements = _NOWHERE

    # --- what a missing path settles ---

    def _without(self, node: Node, *, decides: bool) -> frozenset[str]:
        """The paths without which *node* is false (or, where *decides*, true), and so absorbs errors beside it."""
        match node:
            case nodes.Has() if not decides:
                return frozenset(self._below(node.operand, node.field))
            case nodes.Binary(operator="in", left=nodes.Literal(value=str(key))) if not decides:
                return frozenset(self._below(node.right, key))
            case nodes.Binary(operator="in") if not decides:
                return frozenset(f"{place}.**" for place in self._places(node.right))
            case nodes.Not():
                return self._without(node.operand, decides=not decides)
            case nodes.And() | nodes.Or():
                found = [self._without(operand, decides=decides) for operand in node.operands]
                any_settles = isinstance(node, nodes.Or) is decides
                return frozenset.union(*found) if any_settles else frozenset.intersection(*found)
            case _:
                return frozenset()

    # --- where a value stands in the event ---

    def _places(self, node: Node) -> _Places:
        match node:
            case nodes.Root():
                return frozenset({node.name})
            case nodes.Variable():
                return self._elements
            case nodes.Select():
                return self._below(node.operand, node.field)
            case nodes.Index(index=nodes.Literal(value=str(key))):
                return self._below(node.operand, key)
            case nodes.Index():
                return self._picked(node)
            case nodes.If():
                return self._places(node.yes) | self._places(node.no)
            case nodes.Call(function="dyn"):
                return self._places(node.arguments[0])
            case _:
                return _NOWHERE

    def _below(self, operand: Node, field: str) -> _Places:
        if isinstance(operand, nodes.MapOf):
            return self._places(operand.values[operand.keys.index(field)]) if field in operand.keys else _NOWHERE
        name = field if _PLAIN.fullmatch(field) else json.dumps(field, ensure_ascii=False)
        return frozenset(f"{place}.{name}" for place in self._places(operand))

    def _picked(self, node: nodes.Index) -> _Places:
        if isinstance(node.index, nodes.Literal) or isinstance(node.operand, nodes.ListOf):
            return self._items(node.operand)
        return frozenset(f"{place}.**" for place in self._places(node.operand))

    def _items(self, node: Node) -> _Places:
        """Where the elements of a list stand."""
        match node:
            case nodes.ListOf():
                return _NOWHERE.union(*(self._places(item) for item in node.items))
            case nodes.Binary(operator="+"):
                return self._items(node.left) | self._items(node.right)
            case nodes.If():
                return self._items(node.yes) | self._items(node.no)
            case nodes.Comprehension(macro="filter"):
                return self._items(node.over)
            case nodes.Comprehension() | nodes.MapOf():
                return _NOWHERE
            case _:
                return frozenset(f"{place}[*]" for place in self._places(node))


def _can_be_missing(path: str) -> bool:
    return "." in path and path not in _ALWAYS_THERE and not path.startswith("principal.") and not path.endswith("[*]")


def _is_below(path: str, other: str) -> bool:
    return path.startswith((f"{other}.", f"{other}["))
