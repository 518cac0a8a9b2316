"""What can be known without an event: types that never fit are refused when the policy loads, not at an event."""

from __future__ import annotations

from typing import NoReturn

from mesh.policy.cel import nodes
from mesh.policy.cel.conversions import CONVERSIONS
from mesh.policy.cel.lexer import refuse
from mesh.policy.cel.nodes import Node
from mesh.policy.cel.values import NUMBERS, CelError, kind_of

DYN = "dyn"  # known only with the event
_ADDED = {
    ("timestamp", "duration"): "timestamp",
    ("duration", "timestamp"): "timestamp",
    ("duration", "duration"): "duration",
}
_SUBTRACTED = {
    ("timestamp", "timestamp"): "duration",
    ("timestamp", "duration"): "timestamp",
    ("duration", "duration"): "duration",
}
_ARITHMETIC = {
    "+": {"int", "uint", "double", "string", "list"},
    "-": {"int", "uint", "double"},
    "*": {"int", "uint", "double"},
    "/": {"int", "uint", "double"},
    "%": {"int", "uint"},
}
_ORDERED = {"bool", "string", "timestamp", "duration"} | NUMBERS
_CONVERTED_FROM = {
    "int": {"int", "uint", "double", "string", "timestamp"},
    "uint": {"int", "uint", "double", "string"},
    "double": {"int", "uint", "double", "string"},
    "bool": {"bool", "string"},
    "string": {"string", "bool", "int", "uint", "double", "timestamp", "duration"},
    "timestamp": {"int", "string", "timestamp"},
    "duration": {"string", "duration"},
}


class Types:
    """The static type of every node of one tree, by `of(node)`: a CEL type's name, or `dyn`."""

    def __init__(self, tree: Node) -> None:
        """Check *tree*, whose value must be a bool.

        Raises:
            ExpressionError: An operator or function gets what it never takes, or the condition is never true or false.
        """
        self._types: dict[int, str] = {}
        self._need(tree, {"bool"}, "a condition is true or false", "compare it with something")

    def of(self, node: Node) -> str:
        """The type found for a node of the tree."""
        return self._types[id(node)]

    def _type(self, node: Node) -> str:
        found = self._infer(node)
        self._types[id(node)] = found
        return found

    def _need(self, node: Node, wanted: set[str], message: str, fix: str) -> str:
        found = self._type(node)
        if found != DYN and found not in wanted:
            self._refuse(node, message, wanted, found, fix)
        return found

    def _refuse(self, node: Node, message: str, wanted: set[str], found: str, fix: str) -> NoReturn:
        refuse(message, at=node.start, expected=" or ".join(sorted(wanted - {"integer"})), got=found, fix=fix)

    def _infer(self, node: Node) -> str:
        match node:
            case nodes.Literal():
                return kind_of(node.value)
            case nodes.Select() | nodes.Has():
                return self._field(node)
            case nodes.Index():
                return self._index(node)
            case nodes.Not():
                return self._bools(node.operand)
            case nodes.Negative():
                return self._need(node.operand, {"int", "double"}, "- takes a number", "remove the minus")
            case nodes.And() | nodes.Or():
                return self._bools(*node.operands)
            case nodes.If():
                self._bools(node.condition)
                yes, no = self._type(node.yes), self._type(node.no)
                return yes if yes == no else DYN
            case nodes.Binary():
                return self._binary(node)
            case nodes.Call():
                return self._call(node)
            case nodes.Comprehension():
                return self._comprehension(node)
            case nodes.ListOf() | nodes.MapOf():
                for child in nodes.children(node):
                    self._type(child)
                return "list" if isinstance(node, nodes.ListOf) else "map"
            case _:
                return DYN

    def _field(self, node: nodes.Select | nodes.Has) -> str:
        if node.field == "data" and isinstance(node.operand, nodes.Root) and node.operand.name == "event":
            self._refuse(node, "an event's data is a root of its own", {"data"}, "event.data", "write data")
        self._need(node.operand, {"map"}, "only a map has fields", "select from data or event")
        return "bool" if isinstance(node, nodes.Has) else DYN

    def _bools(self, *operands: Node) -> str:
        for operand in operands:
            self._need(operand, {"bool"}, "&&, ||, ! and ? take conditions", "compare it with something")
        return "bool"

    def _index(self, node: nodes.Index) -> str:
        operand = self._need(node.operand, {"list", "map"}, "only a list or a map has elements", "index data or a list")
        wanted = {"string"} if operand == "map" else set(NUMBERS) if operand == "list" else {"string"} | NUMBERS
        self._need(node.index, wanted, "no list or map of JSON has such an index", "index by number, or by name")
        return DYN

    def _binary(self, node: nodes.Binary) -> str:
        left, right = self._type(node.left), self._type(node.right)
        if node.operator in _ARITHMETIC:
            return self._arithmetic(node, left, right)
        if node.operator == "in":
            if right not in {DYN, "list", "map"}:
                self._refuse(node.right, "`in` looks into a list or a map", {"list", "map"}, right, "use contains()")
            return "bool"
        if node.operator not in {"==", "!="}:
            for operand, found in ((node.left, left), (node.right, right)):
                if found != DYN and found not in _ORDERED:
                    self._refuse(operand, f"{node.operator} needs an order", _ORDERED, found, "use ==")
        if DYN not in {left, right} and left != right and not {left, right} <= NUMBERS:
            self._refuse(node.right, "the two sides are never comparable", {left}, right, "compare with the same type")
        return "bool"

    def _arithmetic(self, node: nodes.Binary, left: str, right: str) -> str:
        times = {"+": _ADDED, "-": _SUBTRACTED}.get(node.operator, {})
        takes = _ARITHMETIC[node.operator] | {kind for pair in times for kind in pair}
        for operand, found in ((node.left, left), (node.right, right)):
            if found != DYN and found not in takes:
                self._refuse(operand, f"{node.operator} does not take it", takes, found, "use another operator")
        if DYN in {left, right}:
            known = left if right == DYN else right
            return known if known in _ARITHMETIC[node.operator] else DYN
        if (left, right) in times:
            return times[left, right]
        if left != right:
            self._refuse(node.right, f"{node.operator} takes two of one type", {left}, right, "convert one: int(), ...")
        return left

    def _call(self, node: nodes.Call) -> str:
        name = node.function
        if name == "size":
            self._need(node.arguments[0], {"string", "list", "map"}, "it has no size", "size() of a string or list")
            return "int"
        if name not in CONVERSIONS:
            for argument in node.arguments:
                self._need(argument, {"string"}, f"{name}() is about strings", "convert it with string()")
            return "bool"
        (argument,) = node.arguments
        if name == "dyn":
            self._type(argument)
            return DYN
        self._need(argument, _CONVERTED_FROM[name], f"{name}() does not convert it", "give it another value")
        if isinstance(argument, nodes.Literal):
            try:
                CONVERSIONS[name](argument.value)
            except CelError as error:
                self._refuse(argument, f"{name}() cannot read this constant", {name}, error.reason, "correct it")
        return name

    def _comprehension(self, node: nodes.Comprehension) -> str:
        self._need(node.over, {"list", "map"}, f"{node.macro}() goes over a list or a map", "name a list")
        if node.predicate is not None:
            self._bools(node.predicate)
        if node.transform is not None:
            self._type(node.transform)
        return "list" if node.macro in {"map", "filter"} else "bool"
