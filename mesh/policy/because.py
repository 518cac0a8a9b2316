"""Why a condition held or not: each part of it with what it came to, in the words of the policy.

Nothing here quotes an event: a part is the policy's text, its result one of the words below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from mesh.policy.cel import nodes
from mesh.policy.cel.interpret import Scope, TooCostly, evaluate
from mesh.policy.cel.nodes import Node
from mesh.policy.cel.parser import parse
from mesh.policy.cel.values import CelError
from mesh.policy.expressions import Condition, ConditionFailed

TRUE, FALSE, NOT_EVALUATED = "true", "false", "not evaluated"
_ROOTS: Final = frozenset({"event", "data", "principal"})
_COMPOUND = (nodes.And, nodes.Or, nodes.Not, nodes.If)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a condition.

    Attributes:
        text: As the policy writes it.
        result: `true`, `false`, `error: <reason>`, or `not evaluated` where an earlier part had settled the matter.
        depth: 0 for the operands of the whole condition, 1 for their parts, and so on.
    """

    text: str
    result: str
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a condition comes to for one event.

    Attributes:
        result: As of a part: `true`, `false` or `error: <reason>`.
        parts: In the order of the text. A condition without `&&`, `||`, `!` or `?` is its own only part.
    """

    result: str
    parts: tuple[Part, ...]

    @property
    def failed(self) -> bool:
        """Whether it is neither true nor false."""
        return self.result not in (TRUE, FALSE)

    @property
    def said(self) -> str:
        """The result as a clause."""
        return f"the condition is {self.result}"


def outcome(condition: Condition, bindings: Mapping[str, object]) -> Outcome:
    """What *condition* comes to, and what each part of it does.

    Args:
        condition: Of a rule, a route or a row filter.
        bindings: The roots' values, as an agent binds them.
    """
    try:
        result = TRUE if condition(bindings) else FALSE
    except ConditionFailed as failed:
        result = f"error: {failed.reason}"
    tree = parse(condition.text, _ROOTS)
    return Outcome(result, tuple(_parts(tree, condition.text, bindings)))


def _parts(tree: Node, text: str, bindings: Mapping[str, object]) -> Iterator[Part]:
    tops = tree.operands if isinstance(tree, nodes.And | nodes.Or) else (tree,)  # of `a ? b : c` all three
    for node, evaluated in _in_turn(tree, tops, bindings, evaluated=True):
        yield from _told(node, text, bindings, 0, evaluated=evaluated)


def _told(node: Node, text: str, bindings: Mapping[str, object], depth: int, *, evaluated: bool) -> Iterator[Part]:
    result = _result(node, bindings) if evaluated else NOT_EVALUATED
    yield Part(" ".join(text[node.start : node.end].split()), result, depth)
    match node:
        case nodes.And() | nodes.Or():
            below: tuple[Node, ...] = node.operands
        case nodes.Not() if isinstance(node.operand, _COMPOUND):
            below = (node.operand,)
        case nodes.If():
            below = (node.condition, node.yes, node.no)
        case _:
            below = ()
    for part, turn in _in_turn(node, below, bindings, evaluated=evaluated):
        yield from _told(part, text, bindings, depth + 1, evaluated=turn)


def _in_turn(
    node: Node, below: Iterable[Node], bindings: Mapping[str, object], *, evaluated: bool
) -> Iterator[tuple[Node, bool]]:
    """The parts of *node*, each with whether it has to be evaluated to settle *node*."""
    if isinstance(node, nodes.If):
        asked = _result(node.condition, bindings) if evaluated else NOT_EVALUATED
        yield node.condition, evaluated
        yield node.yes, asked == TRUE
        yield node.no, asked == FALSE
        return
    settles = {nodes.And: FALSE, nodes.Or: TRUE}.get(type(node))
    for part in below:
        yield part, evaluated
        if evaluated and settles is not None:
            evaluated = _result(part, bindings) != settles


def _result(node: Node, bindings: Mapping[str, object]) -> str:
    try:
        value = evaluate(node, Scope(bindings))
    except CelError as error:
        return f"error: {error.reason}"
    except TooCostly:
        return "error: too-costly"
    if value is True or value is False:
        return TRUE if value else FALSE
    return "error: not-bool"
