"""The fast form of a condition: one Python function, written from our own tree and never from the condition's text.

The function answers only where the answer is certain. Whatever else happens in it (a key is missing, a bool stands
where a number should, a list is long) raises, and then the exact interpreter decides. So it needs no error handling of
its own, and it is never wrong, only sometimes in vain.

What keeps it safe: field names and strings enter as `repr`, all other names are made here, there are no builtins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mesh.policy.cel import nodes
from mesh.policy.cel.check import DYN, Types
from mesh.policy.cel.conversions import CONVERSIONS
from mesh.policy.cel.nodes import Node
from mesh.policy.cel.support import ARITHMETIC_NAMES, ORDER_NAMES, helpers
from mesh.policy.cel.values import NUMBERS, UInt, kind_of

Evaluate = Callable[[Mapping[str, object]], bool]
_FEW = 4  # constants: up to here a tuple is faster to look through than a set
_EXACT_BELOW = 2**53  # beyond it CEL compares int and double with loss, and Python does not
_SEARCHES = {"startsWith": "{}.startswith({})", "endsWith": "{}.endswith({})", "contains": "({}.find({}) >= 0)"}


def generate(tree: Node, types: Types, exact: Evaluate) -> Evaluate:
    """The fast form of *tree*, which asks *exact* wherever it is not certain."""
    writer = _Writer(types, tree)
    result = writer.write(tree)
    names = {**writer.constants, **helpers(tree), "exact": exact, "Exception": Exception}
    lines = [f"        {local} = bindings[{name!r}]" for name, local in writer.roots.items()]
    if types.of(tree) == "bool":
        answer = [f"        return {result}"]
    else:
        answer = [f"        result = {result}", "        if result is True or result is False: return result"]
    source = "\n".join(
        [
            "def condition(bindings):",
            "    try:",
            *lines,
            *answer,
            "    except Exception: pass",
            "    return exact(bindings)",
        ]
    )
    names["__builtins__"] = {}
    exec(compile(source, "<condition>", "exec"), names)  # noqa: S102 - written above from our tree: see this file's head
    made: Evaluate = names["condition"]  # type: ignore[assignment]
    return made


class _Writer:
    def __init__(self, types: Types, tree: Node) -> None:
        self.constants: dict[str, object] = {}
        self._types = types
        used = [node.name for node in nodes.walk(tree) if isinstance(node, nodes.Root)]
        self.roots = {name: f"root_{at}" for at, name in enumerate(sorted({n for n in used if used.count(n) > 1}))}
        self._names = 0
        self._variable = ""  # of the comprehension whose body is being written
        self._iterable = 0  # above 0 inside what a comprehension goes over, where Python takes no `:=`

    def write(self, node: Node) -> str:
        """A Python expression that needs no brackets around it."""
        match node:
            case nodes.Literal():
                return self._literal(node.value)
            case nodes.Root():
                return self.roots.get(node.name) or f"bindings[{node.name!r}]"
            case nodes.Variable():
                return self._variable
            case nodes.Select():
                return f"{self.write(node.operand)}[{node.field!r}]"
            case nodes.Has():
                return f"({self.write(node.operand)}.get({node.field!r}, missing) is not missing)"
            case nodes.Index(index=nodes.Literal(value=str(key))):
                return f"{self.write(node.operand)}[{key!r}]"
            case nodes.Index():
                return f"index({self.write(node.operand)}, {self.write(node.index)})"
            case nodes.Not():
                return f"(not {self._test(node.operand)})"
            case nodes.Negative():
                return f"negate({self.write(node.operand)})"
            case nodes.And() | nodes.Or():
                word = " and " if isinstance(node, nodes.And) else " or "
                return f"({word.join(self._test(operand) for operand in node.operands)})"
            case nodes.If():
                return f"({self.write(node.yes)} if {self._test(node.condition)} else {self.write(node.no)})"
            case nodes.Binary():
                return self._binary(node)
            case nodes.Call():
                return self._call(node)
            case nodes.ListOf():
                return f"[{', '.join(map(self.write, node.items))}]"
            case nodes.MapOf():
                entries = zip(node.keys, node.values, strict=True)
                return f"{{{', '.join(f'{key!r}: {self.write(value)}' for key, value in entries)}}}"
            case nodes.Comprehension():
                return self._comprehension(node)

    def _constant(self, value: object) -> str:
        self._names += 1
        name = f"constant_{self._names}"
        self.constants[name] = value
        return name

    def _literal(self, value: Any) -> str:
        if value is None or value.__class__ in {bool, str} or (value.__class__ is int and value >= 0):
            return repr(value)
        return self._constant(value)  # a negative number, a double that may be infinite, a UInt

    def _held(self, node: Node) -> tuple[str, str]:
        """The node's value with a name for it: first the expression that also names it, then the name."""
        self._names += 1
        name = f"value_{self._names}"
        return f"({name} := {self.write(node)})", name

    def _test(self, node: Node) -> str:
        """As `write`, of a value that has to be a bool: anything else is left to the interpreter."""
        if self._types.of(node) == "bool":
            return self.write(node)
        if self._iterable:
            return f"as_bool({self.write(node)})"
        held, name = self._held(node)
        return f"({name} if {held}.__class__ is bool else stop())"

    def _binary(self, node: nodes.Binary) -> str:
        if node.operator == "in":
            return self._membership(node)
        if node.operator in ARITHMETIC_NAMES:
            return f"{ARITHMETIC_NAMES[node.operator]}({self.write(node.left)}, {self.write(node.right)})"
        left, right = self._types.of(node.left), self._types.of(node.right)
        if "string" in {
            left,
            right,
        }:  # Python, too, never finds it equal to anything else, and refuses to order the two
            return f"({self.write(node.left)} {node.operator} {self.write(node.right)})"
        if node.operator in ORDER_NAMES:
            return self._order(node)
        negation = "not " if node.operator == "!=" else ""
        if {left, right} & {"null", "bool"}:  # one object each, so identity is equality
            return f"({self.write(node.left)} is {negation}{self.write(node.right)})"
        for constant, other in ((node.right, node.left), (node.left, node.right)):
            if _is_plain_number(constant) and not _looks_like_a_bool(constant):
                return f"({self.write(other)} {node.operator} {self.write(constant)})"
        return f"({negation}equal({self.write(node.left)}, {self.write(node.right)}))"

    def _order(self, node: nodes.Binary) -> str:
        for constant, other in ((node.right, node.left), (node.left, node.right)):
            if not _is_plain_number(constant) or self._types.of(other) not in NUMBERS | {DYN}:
                continue
            if self._types.of(other) in NUMBERS:
                return f"({self.write(node.left)} {node.operator} {self.write(node.right)})"
            if self._iterable:
                break
            held, name = self._held(other)  # a bool is a number to Python; all else it refuses to order
            sides = (self.write(constant), name) if constant is node.left else (name, self.write(constant))
            return f"({sides[0]} {node.operator} {sides[1]} if {held}.__class__ is not bool else stop())"
        return f"{ORDER_NAMES[node.operator]}({self.write(node.left)}, {self.write(node.right)})"

    def _membership(self, node: nodes.Binary) -> str:
        item = self.write(node.left)
        if isinstance(node.right, nodes.ListOf):
            items = node.right.items
            values = [part.value for part in items if isinstance(part, nodes.Literal)]
            if len(values) == len(items) and all(_is_comparable(part) for part in items):
                texts = len(values) > _FEW and all(value.__class__ is str for value in values)
                return f"({item} in {self._constant(frozenset(values) if texts else tuple(values))})"
        return f"in_({item}, {self.write(node.right)})"

    def _call(self, node: nodes.Call) -> str:
        if node.function not in _SEARCHES:
            name = "size" if node.function == "size" else f"to_{node.function}"
            (argument,) = node.arguments
            if node.function in {"timestamp", "duration"} and isinstance(argument, nodes.Literal):
                return self._constant(CONVERSIONS[node.function](argument.value))
            return f"{name}({self.write(argument)})"
        text, part = map(self.write, node.arguments)
        if node.function == "contains" and self._variable:
            return f"contains({text}, {part})"
        return _SEARCHES[node.function].format(text, part)

    def _comprehension(self, node: nodes.Comprehension) -> str:
        self._iterable += 1
        over = f"elements({self.write(node.over)})"
        self._iterable -= 1
        self._names += 1
        name = self._variable = f"each_{self._names}"
        predicate = "" if node.predicate is None else self._test(node.predicate)
        transform = name if node.transform is None else self.write(node.transform)
        self._variable = ""
        loop = f"for {name} in {over}"
        match node.macro:
            case "all":
                return f"all({predicate} {loop})"
            case "exists":
                return f"any({predicate} {loop})"
            case "exists_one":
                return f"(len([None {loop} if {predicate}]) == 1)"
            case _:
                return f"[{transform} {loop}{f' if {predicate}' if predicate else ''}]"


def _is_plain_number(node: Node) -> bool:
    """A constant number that Python compares as CEL does, bools apart."""
    return isinstance(node, nodes.Literal) and _is_plain(node.value)


def _is_plain(value: Any) -> bool:
    return value.__class__ in {int, float, UInt} and abs(value) < _EXACT_BELOW


def _looks_like_a_bool(node: Node) -> bool:
    return isinstance(node, nodes.Literal) and node.value in {0, 1}


def _is_comparable(node: Node) -> bool:
    """A constant that Python's `in` compares as CEL does."""
    if not isinstance(node, nodes.Literal):
        return False
    if kind_of(node.value) in {"string", "null"}:
        return True
    return _is_plain(node.value) and not _looks_like_a_bool(node)
