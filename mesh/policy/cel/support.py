"""What generated code calls, and how much it may do before the interpreter, which counts costs, has to decide."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from mesh.policy.cel import nodes
from mesh.policy.cel.conversions import CONVERSIONS
from mesh.policy.cel.interpret import CHARACTERS_PER_UNIT, COST_LIMIT
from mesh.policy.cel.nodes import Node
from mesh.policy.cel.operators import ARITHMETIC, add, compare, contained, equals, index, negate, size

ARITHMETIC_NAMES = {operator: f"arithmetic_{at}" for at, operator in enumerate(ARITHMETIC)}
ORDER_NAMES = {operator: f"order_{at}" for at, operator in enumerate(("<", "<=", ">", ">="))}
_SHORT = 32  # elements: longer lists in `in` and `+` are left to the interpreter
_LONG_TEXT = 256  # units: a search through 1 MiB, more than an event can hold


class Undecided(Exception):
    """The fast form does not know: a question for the interpreter, not a fault."""


def helpers(tree: Node) -> dict[str, object]:
    """The names that the code generated for *tree* may use."""
    limit = _iteration_limit(tree)

    def elements(over: Any) -> object:
        if isinstance(over, (list, dict)) and len(over) <= limit:
            return over
        raise Undecided

    return {
        "all": all,
        "any": any,
        "len": len,
        "bool": bool,
        "missing": object(),
        "stop": _stop,
        "as_bool": _as_bool,
        "equal": _equal,
        "in_": _in,
        "contains": _contains,
        "index": index,
        "negate": negate,
        "size": size,
        "elements": elements,
        **{name: partial(compare, operator) for operator, name in ORDER_NAMES.items()},
        **{name: ARITHMETIC[operator] for operator, name in ARITHMETIC_NAMES.items()},
        ARITHMETIC_NAMES["+"]: _add,
        **{f"to_{name}": convert for name, convert in CONVERSIONS.items()},
    }


def _free(_units: int) -> None:
    """Nothing to charge: the caller has bounded it."""


def _stop() -> NoReturn:
    raise Undecided


def _as_bool(value: Any) -> bool:
    if value.__class__ is bool:
        return bool(value)
    raise Undecided


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, (list, dict)) and isinstance(right, (list, dict)):
        raise Undecided
    return equals(left, right, _free)


def _in(item: Any, container: Any) -> bool:
    if isinstance(item, (list, dict)) or (isinstance(container, list) and len(container) > _SHORT):
        raise Undecided
    if item.__class__ is str and isinstance(container, (list, dict)):
        return item in container  # a string equals nothing but strings
    return contained(item, container, _free)


def _contains(text: str, part: str) -> bool:
    if len(text) > CHARACTERS_PER_UNIT:
        raise Undecided
    return text.find(part) >= 0


def _add(left: Any, right: Any) -> object:
    if isinstance(left, (list, str)):
        limit = _SHORT if isinstance(left, list) else CHARACTERS_PER_UNIT
        if len(left) + len(right) > limit:
            raise Undecided
    return add(left, right)


# --- costs -----------------------------------------------------------------------------------------------------------


def _iteration_limit(tree: Node) -> int:
    """How many elements a comprehension may visit so that the interpreter, too, would stay within `COST_LIMIT`."""
    comprehensions = [node for node in nodes.walk(tree) if isinstance(node, nodes.Comprehension)]
    bodies = [part for node in comprehensions for part in (node.predicate, node.transform) if part is not None]
    each = sum(_weight(body, text=1) for body in bodies)
    return (COST_LIMIT - _weight(tree, text=_LONG_TEXT)) // (each + 1)


def _weight(tree: Node, *, text: int) -> int:
    """The most that the interpreter charges for *tree* where the fast form has an answer, each body counted once."""
    weight = 0
    for node in nodes.walk(tree):
        weight += 1
        match node:
            case nodes.Binary(operator="in", right=nodes.ListOf(items=items)):
                weight += len(items)
            case nodes.Binary(operator="in" | "+"):
                weight += _SHORT
            case nodes.Call(function="contains"):
                weight += text
    return weight
