"""Conditions of policies: `compile_condition` once when the policy loads, then call the condition for every event.

The language is the CEL subset of `mesh.policy.cel`. A condition is a bounded, pure function of what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mesh.errors import MeshError
from mesh.policy.cel import nodes
from mesh.policy.cel.check import Types
from mesh.policy.cel.cursor import MAX_DEPTH, MAX_NODES
from mesh.policy.cel.generate import generate
from mesh.policy.cel.interpret import Scope, TooCostly, evaluate
from mesh.policy.cel.nodes import Node
from mesh.policy.cel.parser import MAX_CHARACTERS, parse
from mesh.policy.cel.reads import Reads
from mesh.policy.cel.values import CelError

__all__ = ["MAX_CHARACTERS", "MAX_DEPTH", "MAX_NODES", "Condition", "ConditionFailed", "compile_condition"]


class ConditionFailed(MeshError):
    """A condition is neither true nor false for this event: in a deny rule that is a match, in an allow it is none.

    `reason` is one of `no-such-key`, `no-such-overload` (a type that the operator does not take), `overflow`,
    `division-by-zero`, `bad-index`, `bad-conversion`, `unbound-root`, `not-bool`, `too-costly`. It carries no value.
    """

    code: ClassVar[str] = "condition-failed"
    status: ClassVar[int] = 422

    def __init__(self, reason: str) -> None:
        super().__init__(f"the condition failed: {reason}", reason=reason)
        self.reason = reason


class Condition:
    """A compiled condition. Call it with the roots' values; where each call counts, call `evaluate`, which is the same.

    Attributes:
        text: As written.
        evaluate: `(bindings) -> bool`, raising `ConditionFailed`; bindings are never changed.
        fields: The paths it reads, as classifications write them: `data.country`, `data.items[*].sku`, `event.type`.
        unguarded: Those that an event can lack and that no `has()` makes sure of: each can fail the condition.
    """

    __slots__ = ("_tree", "evaluate", "fields", "text", "unguarded")

    def __init__(self, text: str, tree: Node) -> None:
        self.text = text
        self._tree = tree
        reads = Reads(tree)
        self.fields: tuple[str, ...] = reads.fields
        self.unguarded: tuple[str, ...] = reads.unguarded
        self.evaluate = generate(tree, Types(tree), self.exactly)

    def __call__(self, bindings: Mapping[str, object]) -> bool:
        """Whether the condition holds.

        Args:
            bindings: Root name -> value, as decoded from JSON.

        Raises:
            ConditionFailed: CEL says error, the value is no bool, or the event makes it too costly.
        """
        return self.evaluate(bindings)

    def __repr__(self) -> str:
        return f"Condition({self.text!r})"

    def exactly(self, bindings: Mapping[str, object]) -> bool:
        """As calling it, by the interpreter alone."""
        return _exactly(self._tree, bindings)

    def trace(self, bindings: Mapping[str, object]) -> list[tuple[str, bool | str]]:
        """Every part that is true or false on its own, outermost first, with its result or the reason it failed.

        Bodies of macros are left out, for they have one result per element. No value of the event is in it.
        """
        return [(self.text[part.start : part.end], _outcome(part, bindings)) for part in _conditions(self._tree)]


def compile_condition(text: str, *, roots: frozenset[str]) -> Condition:
    """Compile *text*.

    Args:
        text: CEL, at most `MAX_CHARACTERS`.
        roots: `event` and `data`; in publish rules and routes `principal` too.

    Raises:
        ExpressionError: Not CEL, outside the subset, over a bound, or of types that never fit; `column` counts from 1.
    """
    return Condition(text, parse(text, roots))


def _exactly(tree: Node, bindings: Mapping[str, object]) -> bool:
    try:
        result = evaluate(tree, Scope(bindings))
    except CelError as error:
        raise ConditionFailed(error.reason) from None
    except TooCostly:
        raise ConditionFailed("too-costly") from None
    if result is True or result is False:
        return result
    raise ConditionFailed("not-bool")


def _outcome(part: Node, bindings: Mapping[str, object]) -> bool | str:
    try:
        return _exactly(part, bindings)
    except ConditionFailed as failed:
        return failed.reason


def _conditions(node: Node) -> list[Node]:
    """The node and the parts of it that have to be conditions, whole ones before their parts."""
    match node:
        case nodes.And() | nodes.Or():
            parts: tuple[Node, ...] = node.operands
        case nodes.Not():
            parts = (node.operand,)
        case nodes.If():
            parts = (node.condition, node.yes, node.no)
        case _:
            parts = ()
    return [node, *(found for part in parts for found in _conditions(part))]
