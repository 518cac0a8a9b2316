"""Which of two rights gives less: the partial orders that `diff` rests on.

What cannot be ordered counts as more: an e-mail address that was a token and is now `a***@***.com` shows something that
it did not, whatever the strictness of the two masks says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Literal, TypeAlias, TypeVar

from mesh.policy.cel import nodes
from mesh.policy.cel.parser import parse
from mesh.policy.expressions import Condition
from mesh.policy.masktable import Mask

Kind: TypeAlias = Literal["widened", "narrowed", "changed"]
T = TypeVar("T")

_ROOTS = frozenset({"event", "data", "principal"})
_PLACES = frozenset({"start", "end"})  # where a node stands in the text


@dataclass(frozen=True, slots=True)
class Sight:
    """How one value is seen through one view.

    Attributes:
        mask: Chosen for it.
        action: Of the mask; `clear` where the reader can open what is encrypted.
        rows: The row filters, each in normal form; all must hold.
        until_ms: When the grant ends, or None.
        since_ms: From when on it opens stored events, or None where it opens none.
    """

    mask: Mask
    action: str
    rows: frozenset[str]
    until_ms: int | None
    since_ms: int | None

    def within(self, other: Sight) -> bool:
        """Whether this shows no more than *other*, of no more events, for no longer."""
        return (
            shows_no_more(self.mask, self.action, other.mask, other.action)
            and self.rows >= other.rows
            and ends_no_later(self.until_ms, other.until_ms)
            and (self.since_ms is None or (other.since_ms is not None and self.since_ms >= other.since_ms))
        )


@dataclass(frozen=True, slots=True)
class Saying:
    """One way in which an agent may publish a type.

    Attributes:
        sources: Beyond its own.
        when: The conditions, in normal form, that must all hold.
        until_ms: When the right ends, or None.
        denies: The conditions, in normal form, under which a deny refuses the event.
    """

    sources: frozenset[str]
    when: frozenset[str]
    until_ms: int | None
    denies: frozenset[str]

    def within(self, other: Saying) -> bool:
        """Whether this lets the agent publish no more than *other*."""
        return (
            self.sources <= other.sources
            and self.when >= other.when
            and ends_no_later(self.until_ms, other.until_ms)
            and self.denies >= other.denies
        )


def shows_no_more(mask: Mask, action: str, other: Mask, other_action: str) -> bool:
    """Whether a value under *mask* tells its reader no more than under *other*; actions as in `Sight`."""
    if action == "drop" or other_action == "clear":
        return True
    if action == other_action == "encrypt":  # to whoever cannot open it; equal values show in the deterministic mode
        return mask[1].mode == other[1].mode or mask[1].mode == "random"
    if (mask, action) == (other, other_action):
        return True
    return action == "redact" and other_action != "drop"


def ends_no_later(one: int | None, two: int | None) -> bool:
    """Whether a right that ends at *one* ends no later than one that ends at *two*; None never ends."""
    return two is None or (one is not None and one <= two)


def kind_of(old: Collection[T], new: Collection[T], within: Callable[[T, T], bool]) -> Kind | None:
    """What became of a set of rights, each of which gives what it gives: None where nothing did.

    Args:
        old: The rights before.
        new: The rights after.
        within: Whether the first gives no more than the second.
    """
    gained = [one for one in new if not any(within(one, other) for other in old)]
    lost = [one for one in old if not any(within(one, other) for other in new)]
    if not gained:
        return "narrowed" if lost else None
    return "widened" if all(any(within(one, other) for other in new) for one in old) else "changed"


def normal(text: str) -> str:
    """A checked condition in normal form: spaces, brackets and quotes that mean nothing make no difference."""
    return _tree(_parsed(text))


def conjuncts(condition: Condition | None) -> frozenset[str]:
    """The conditions that all have to hold, in normal form; a failure of any of them is no less a no than of all."""
    return frozenset() if condition is None else frozenset(_parts(_parsed(condition.text), nodes.And))


def disjuncts(condition: Condition | None) -> frozenset[str]:
    """The conditions of which one is enough for a deny, in normal form; one that fails is enough too."""
    return frozenset() if condition is None else frozenset(_parts(_parsed(condition.text), nodes.Or))


@lru_cache(4096)
def _parsed(text: str) -> nodes.Node:
    return parse(text, _ROOTS)


def _parts(node: nodes.Node, joined: type[nodes.And | nodes.Or]) -> Iterator[str]:
    if isinstance(node, joined):
        for operand in node.operands:
            yield from _parts(operand, joined)
    else:
        yield _tree(node)


def normal_of(condition: Condition | None) -> str:
    """The same of a compiled one; empty where there is none."""
    return "" if condition is None else normal(condition.text)


def _tree(node: object) -> str:
    if is_dataclass(node):
        parts = (_tree(getattr(node, f.name)) for f in fields(node) if f.name not in _PLACES)
        return f"{type(node).__name__}({', '.join(parts)})"
    if isinstance(node, tuple):
        return f"[{', '.join(_tree(part) for part in node)}]"
    return f"{type(node).__name__}:{node!r}"
