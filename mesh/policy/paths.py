"""The paths of a Classification, and the automaton that finds which of them meet at a place in an event.

    data.contact.email         a scalar member                `*`       any one member
    data.items[*].sku          in every item of an array      `[*]`     any one item
    **.iban                    at any depth                   leading   `**.`
    data.address.**            the node and all below it      trailing  `.**`
    data."first name"          quoted where a name has more than [A-Za-z0-9_+-]

A set of paths is followed all at once: a `Place` stands for "these paths are matched so far to here", and one step by a
member name or into an array gives the next. Places are made when first reached and shared, so following costs one dict
lookup a member, however many paths there are.

Source: subset construction, made on demand (Aho, Sethi, Ullman, section 3.6).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from mesh.errors import BadPattern

MAX_PATH_CHARS = 512
MAX_STEPS = 32  # half of the deepest event that is taken

ANY_MEMBER: Final = object()
ANY_ITEM: Final = object()

_NAME_RE = re.compile(r"[A-Za-z0-9_+-]+")
_QUOTED_RE = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Path:
    """One parsed path.

    Attributes:
        text: As written.
        steps: Member names, `ANY_MEMBER` or `ANY_ITEM`.
        deep: Begins with `**.`: at any depth.
        subtree: Ends with `.**`: the node and all below it.
    """

    text: str
    steps: tuple[object, ...]
    deep: bool
    subtree: bool

    @classmethod
    def parse(cls, text: str) -> Path:
        """Read a path.

        Raises:
            BadPattern: It is outside the grammar, or longer than `MAX_PATH_CHARS` or `MAX_STEPS`.
        """
        if len(text) > MAX_PATH_CHARS:
            raise _bad(f"the path has {len(text)} characters, limit {MAX_PATH_CHARS}")
        rest = text.removeprefix("**.")
        deep = rest != text
        body = rest.removesuffix(".**")
        steps = _steps(body)
        if len(steps) > MAX_STEPS:
            raise _bad(f"the path has {len(steps)} steps, limit {MAX_STEPS}")
        return cls(text, steps, deep, body != rest)

    @property
    def root(self) -> str | None:
        """The field of the event it begins at, or None where it may begin at any."""
        first = self.steps[0]
        return first if isinstance(first, str) and not self.deep else None

    def __str__(self) -> str:
        return self.text


def _bad(message: str) -> BadPattern:
    return BadPattern(
        message,
        expected="names joined by dots, `*`, `[*]`, a leading `**.`, a trailing `.**`",
        next='write it like data.contact.email, data.items[*].sku, **.iban or data."first name"',
    )


def _steps(text: str) -> tuple[object, ...]:
    steps: list[object] = []
    at = 0
    while True:
        at, step = _member(text, at)
        steps.append(step)
        while text.startswith("[*]", at):
            steps.append(ANY_ITEM)
            at += 3
        if at == len(text):
            return tuple(steps)
        if text[at] != ".":
            raise _bad(f"the path goes wrong at character {at + 1}")
        at += 1


def _member(text: str, at: int) -> tuple[int, object]:
    if text.startswith("**", at):
        raise _bad("`**` stands only first, as `**.`, or last, as `.**`")
    if text.startswith("*", at):
        return at + 1, ANY_MEMBER
    quoted = _QUOTED_RE.match(text, at)
    if quoted is not None:
        try:
            name = json.loads(quoted[0])
        except ValueError:
            raise _bad(f"the quoted name at character {at + 1} is no JSON string") from None
        return quoted.end(), name
    plain = _NAME_RE.match(text, at)
    if plain is None:
        raise _bad(f"the path goes wrong at character {at + 1}")
    return plain.end(), plain[0]


Position = tuple[int, int]  # (which path, how many of its steps are matched)


def begin(paths: tuple[Path, ...]) -> frozenset[Position]:
    """Before the first step of every path: the event itself."""
    return frozenset((i, 0) for i in range(len(paths)))


def steps_from(
    paths: tuple[Path, ...], places: frozenset[Position]
) -> tuple[dict[str, frozenset[Position]], frozenset[Position], frozenset[Position]]:
    """Where *places* lead: by each member name some path mentions, by any other name, and into an array.

    One pass over *places*, so that a thousand classified members of one object cost a thousand steps, not a million.
    """
    other: set[Position] = set()
    item: set[Position] = set()
    named: dict[str, set[Position]] = {}
    for index, matched in places:
        path = paths[index]
        if matched == 0 and path.deep:
            other.add((index, 0))
            item.add((index, 0))
        if matched == len(path.steps):
            if path.subtree:
                other.add((index, matched))
                item.add((index, matched))
            continue
        wanted = path.steps[matched]
        if wanted is ANY_ITEM:
            item.add((index, matched + 1))
        elif wanted is ANY_MEMBER:
            other.add((index, matched + 1))
        else:
            named.setdefault(str(wanted), set()).add((index, matched + 1))
    return {name: frozenset(reached | other) for name, reached in named.items()}, frozenset(other), frozenset(item)


def ends(paths: tuple[Path, ...], places: frozenset[Position]) -> tuple[list[int], list[int]]:
    """The paths matched whole at *places*: those that name this node, and those that name it and all below."""
    exact: list[int] = []
    subtree: list[int] = []
    for index, matched in sorted(places):
        if matched == len(paths[index].steps):
            (subtree if paths[index].subtree else exact).append(index)
    return exact, subtree
