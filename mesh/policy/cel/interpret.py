"""The exact interpreter: slow, plain, and the meaning of every condition. The generated code falls back to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from mesh.policy.cel import nodes
from mesh.policy.cel.conversions import CONVERSIONS
from mesh.policy.cel.nodes import Node
from mesh.policy.cel.operators import ARITHMETIC, add, compare, contained, equals, has, index, negate, select, size
from mesh.policy.cel.values import CelError, kind_of, no_overload

COST_LIMIT = 100_000  # nodes evaluated plus elements compared in one evaluation; about 50 ms at the very worst
CHARACTERS_PER_UNIT = 4096  # string searches and concatenations cost one unit more for each


class TooCostly(Exception):
    """The evaluation passed `COST_LIMIT`. No `CelError`, for && and || must not absorb it."""


class Scope:
    """One evaluation: the roots' values, the comprehension's variable, and what is left to spend."""

    __slots__ = ("bindings", "left", "variable")

    def __init__(self, bindings: Mapping[str, object]) -> None:
        self.bindings = bindings
        self.variable: object = None
        self.left = COST_LIMIT

    def charge(self, units: int) -> None:
        """Spend *units*; raises `TooCostly` when there are none left."""
        self.left -= units
        if self.left < 0:
            raise TooCostly


def evaluate(node: Node, scope: Scope) -> object:
    """The value of *node*.

    Raises:
        CelError: CEL says that this is an error.
        TooCostly: The event makes the condition cost more than `COST_LIMIT`.
    """
    scope.left -= 1
    if scope.left < 0:
        raise TooCostly
    return _RULES[node.__class__](node, scope)


def _literal(node: nodes.Literal, _scope: Scope) -> object:
    return node.value


def _root(node: nodes.Root, scope: Scope) -> object:
    try:
        return scope.bindings[node.name]
    except KeyError:
        raise CelError("unbound-root") from None


def _variable(_node: nodes.Variable, scope: Scope) -> object:
    return scope.variable


def _select(node: nodes.Select, scope: Scope) -> object:
    return select(evaluate(node.operand, scope), node.field)


def _has(node: nodes.Has, scope: Scope) -> object:
    return has(evaluate(node.operand, scope), node.field)


def _index(node: nodes.Index, scope: Scope) -> object:
    return index(evaluate(node.operand, scope), evaluate(node.index, scope))


def _boolean(value: object) -> bool:
    if value is True or value is False:
        return value
    raise no_overload()


def _not(node: nodes.Not, scope: Scope) -> object:
    return not _boolean(evaluate(node.operand, scope))


def _negative(node: nodes.Negative, scope: Scope) -> object:
    return negate(evaluate(node.operand, scope))


def _settle(results: Iterable[Callable[[], object]], *, decides: bool) -> bool:
    """`&&` (decided by false) and `||` (by true): one deciding operand absorbs the errors of all others."""
    failure: CelError | None = None
    for result in results:
        try:
            if _boolean(result()) is decides:
                return decides
        except CelError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return not decides


def _and(node: nodes.And, scope: Scope) -> object:
    return _settle((partial(evaluate, part, scope) for part in node.operands), decides=False)


def _or(node: nodes.Or, scope: Scope) -> object:
    return _settle((partial(evaluate, part, scope) for part in node.operands), decides=True)


def _if(node: nodes.If, scope: Scope) -> object:
    return evaluate(node.yes if _boolean(evaluate(node.condition, scope)) else node.no, scope)


def _binary(node: nodes.Binary, scope: Scope) -> object:
    left: Any = evaluate(node.left, scope)
    right: Any = evaluate(node.right, scope)
    match node.operator:
        case "==":
            return equals(left, right, scope.charge)
        case "!=":
            return not equals(left, right, scope.charge)
        case "in":
            return contained(left, right, scope.charge)
        case "+":
            scope.charge(_length_cost(left) + _length_cost(right))
            return add(left, right)
        case "-" | "*" | "/" | "%":
            return ARITHMETIC[node.operator](left, right)
        case _:
            return compare(node.operator, left, right)


def _length_cost(value: Any) -> int:
    """What copying or searching *value* costs."""
    if value.__class__ is str:
        return len(value) // CHARACTERS_PER_UNIT
    return len(value) if value.__class__ is list else 0


def _call(node: nodes.Call, scope: Scope) -> object:
    values: list[Any] = [evaluate(argument, scope) for argument in node.arguments]
    if node.function in CONVERSIONS:
        return CONVERSIONS[node.function](values[0])
    if node.function == "size":
        return size(values[0])
    text, part = values
    if text.__class__ is not str or part.__class__ is not str:
        raise no_overload()
    match node.function:
        case "startsWith":
            return text.startswith(part)
        case "endsWith":
            return text.endswith(part)
        case _:
            scope.charge(_length_cost(text))
            return part in text


def _list(node: nodes.ListOf, scope: Scope) -> object:
    return [evaluate(item, scope) for item in node.items]


def _map(node: nodes.MapOf, scope: Scope) -> object:
    return dict(zip(node.keys, [evaluate(value, scope) for value in node.values], strict=True))


def _comprehension(node: nodes.Comprehension, scope: Scope) -> object:
    over: Any = evaluate(node.over, scope)
    if kind_of(over) not in {"list", "map"}:
        raise no_overload()
    if node.macro == "map":
        return _mapped(node, scope, over)
    assert node.predicate is not None  # noqa: S101 - the parser gives every other macro one
    results = _each(node.predicate, scope, over)
    if node.macro in {"all", "exists"}:
        return _settle(results, decides=node.macro == "exists")
    if node.macro == "exists_one":
        return sum(_boolean(result()) for result in results) == 1
    return [scope.variable for result in results if _boolean(result())]


def _each(part: Node, scope: Scope, over: Iterable[object]) -> Iterable[Callable[[], object]]:
    for scope.variable in over:  # the elements of a list, the keys of a map
        yield partial(evaluate, part, scope)


def _mapped(node: nodes.Comprehension, scope: Scope, over: Iterable[object]) -> list[object]:
    assert node.transform is not None  # noqa: S101 - the parser gives `map` one
    found = []
    for scope.variable in over:
        if node.predicate is None or _boolean(evaluate(node.predicate, scope)):
            found.append(evaluate(node.transform, scope))
    return found


_RULES: dict[type, Callable[[Any, Scope], object]] = {
    nodes.Literal: _literal,
    nodes.Root: _root,
    nodes.Variable: _variable,
    nodes.Select: _select,
    nodes.Has: _has,
    nodes.Index: _index,
    nodes.Not: _not,
    nodes.Negative: _negative,
    nodes.And: _and,
    nodes.Or: _or,
    nodes.If: _if,
    nodes.Binary: _binary,
    nodes.Call: _call,
    nodes.ListOf: _list,
    nodes.MapOf: _map,
    nodes.Comprehension: _comprehension,
}
