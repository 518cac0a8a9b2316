"""The syntax tree of a condition: what the parser makes and everything else reads. Macros are nodes, not expansions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class _Node:
    """`start` and `end` are offsets into the condition's text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Literal(_Node):
    """A constant: bool, int, `UInt`, float, str or None."""

    value: object


@dataclass(frozen=True, slots=True)
class Root(_Node):
    """A variable that the caller binds: `event`, `data`, `principal`."""

    name: str


@dataclass(frozen=True, slots=True)
class Variable(_Node):
    """The variable of the comprehension around it."""

    name: str


@dataclass(frozen=True, slots=True)
class Select(_Node):
    """`operand.field`."""

    operand: Node
    field: str


@dataclass(frozen=True, slots=True)
class Has(_Node):
    """`has(operand.field)`."""

    operand: Node
    field: str


@dataclass(frozen=True, slots=True)
class Index(_Node):
    """`operand[index]`."""

    operand: Node
    index: Node


@dataclass(frozen=True, slots=True)
class Not(_Node):
    """`!operand`."""

    operand: Node


@dataclass(frozen=True, slots=True)
class Negative(_Node):
    """`-operand`, of anything but a literal number."""

    operand: Node


@dataclass(frozen=True, slots=True)
class And(_Node):
    """`a && b && ...`, two operands or more."""

    operands: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or(_Node):
    """`a || b || ...`, two operands or more."""

    operands: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class If(_Node):
    """`condition ? yes : no`."""

    condition: Node
    yes: Node
    no: Node


@dataclass(frozen=True, slots=True)
class Binary(_Node):
    """`left operator right` for == != < <= > >= in + - * / %."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Call(_Node):
    """A function; for a method the target is the first argument."""

    function: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class ListOf(_Node):
    """`[a, b]`."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class MapOf(_Node):
    """`{'a': b}`; keys are distinct strings."""

    keys: tuple[str, ...]
    values: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Comprehension(_Node):
    """`over.macro(variable, predicate)`; `map` has a transform and may lack the predicate."""

    macro: str
    over: Node
    variable: str
    predicate: Node | None
    transform: Node | None


Node: TypeAlias = (
    Literal
    | Root
    | Variable
    | Select
    | Has
    | Index
    | Not
    | Negative
    | And
    | Or
    | If
    | Binary
    | Call
    | ListOf
    | MapOf
    | Comprehension
)


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly below, in the order they are written."""
    match node:
        case Select() | Has() | Not() | Negative():
            return (node.operand,)
        case Index():
            return (node.operand, node.index)
        case And() | Or():
            return node.operands
        case If():
            return (node.condition, node.yes, node.no)
        case Binary():
            return (node.left, node.right)
        case Call():
            return node.arguments
        case ListOf():
            return node.items
        case MapOf():
            return node.values
        case Comprehension():
            return (node.over, *(part for part in (node.predicate, node.transform) if part is not None))
        case _:
            return ()


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it, each before its children."""
    yield node
    for child in children(node):
        yield from walk(child)
