"""Events, classifications and views at random, and a plain reading of them that the masking is held against.

Every scalar of an event carries a token of its own, so that it, or a good part of it, can be found again anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from hypothesis import strategies as st

from mesh.policy.model_masks import STRICTNESS
from mesh.policy.paths import ANY_ITEM, ANY_MEMBER, Path

Place = tuple[object, ...]
Fields = dict[str, list[str]]
Lines = list[dict[str, Any]]

NAMES = ["a", "b", "c", "iban"]
TAGS = ["t0", "t1", "t2", "public"]
ACTIONS: Lines = [
    {"as": "drop"},
    {"as": "redact"},
    {"as": "generalize", "with": {"date": "month"}},
    {"as": "generalize", "with": {"number": [10, 1000]}},
    {"as": "generalize", "with": {"geo": 1}},
    {"as": "truncate-ip"},
    {"as": "partial", "with": {"first": 1, "last": 1}},
    {"as": "partial", "with": {"style": "email"}},
    {"as": "pseudonym", "with": {"domain": "d"}},
    {"as": "encrypt", "with": {"mode": "deterministic", "for": ["billing"]}},
    {"as": "encrypt", "with": {"mode": "random", "for": ["support", "billing"]}},
    {"as": "clear"},
]
TOKEN_CHARS = 12
PART_CHARS = 8  # no mask but clear leaves so much of a token together


def token(number: int) -> str:
    """Twelve digits that no other number has, none of them `0`."""
    return "".join(str(byte % 9 + 1) for byte in blake2b(b"%d" % number, digest_size=TOKEN_CHARS).digest())


def _scalar(kind: int, number: int) -> Any:
    t = token(number)
    groups = ":".join(t[i : i + 4] for i in range(0, TOKEN_CHARS, 4))
    return [
        f"<value {t} of this event>",
        f"{t}@mail.example.com",
        f"2031-07-14T12:34:56.{t}Z",
        int(t),
        float(f"52.{t}"),
        f"52.{t},13.1",
        f"2001:db8:1:0:0:{groups}",
    ][kind]


def _numbered(shape: Any) -> Any:
    """*shape* with a scalar of its own in the place of each kind."""
    counter = iter(range(len(_TOKENS)))

    def fill(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: fill(item) for name, item in part.items()}
        return [fill(item) for item in part] if isinstance(part, list) else _scalar(part, next(counter))

    return fill(shape)


_TOKENS = [token(number) for number in range(64)]
_SHAPES = st.recursive(
    st.integers(0, 6),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(NAMES), part, max_size=4),
    max_leaves=12,
)
DATAS = _SHAPES.map(_numbered)  # of every kind that an action can read, and in shapes that it cannot
PATHS = st.builds(
    lambda deep, steps, subtree: ("**." if deep else "data.") + ".".join(steps).replace(".[*]", "[*]") + subtree,
    st.booleans(),
    st.lists(st.sampled_from([*NAMES, "*", "[*]"]), min_size=1, max_size=3).filter(lambda s: s[0] != "[*]"),
    st.sampled_from(["", "", ".**"]),
)
CLASSES = st.dictionaries(PATHS, st.lists(st.sampled_from(TAGS), min_size=1, max_size=2), max_size=5)


def masks_of(actions: Lines) -> st.SearchStrategy[Lines]:
    """Mask lines with these actions, at most one for each tag."""
    line = st.builds(lambda tag, action: {"tags": [tag], **action}, st.sampled_from(TAGS), st.sampled_from(actions))
    return st.lists(line, max_size=4, unique_by=lambda made: made["tags"][0])


MASKS = masks_of(ACTIONS)
OTHERWISE = st.sampled_from(["clear", "redact", "drop"])


def leaves(value: Any, at: Place = ("data",)) -> Iterator[tuple[Place, Any]]:
    """Every scalar that is not null and the steps to it; items by number."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, (*at, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*at, index))
    elif value is not None:
        yield at, value


def token_of(value: Any) -> str:
    """The token in a scalar of `DATAS`."""
    digits = "".join(c for c in str(value) if c.isdigit() and c != "0")
    return next(t for t in _TOKENS if t in digits or t[:11] in digits)  # a float may lack the last digit


def shows(value: Any, text: str) -> bool:
    """Whether *text*, an encoded event, has more of a scalar's token than any mask but clear leaves."""
    t = token_of(value)
    plain = text.replace(":", "")  # an address is written in groups
    return any(t[i : i + PART_CHARS] in plain for i in range(TOKEN_CHARS - PART_CHARS + 1))


# --- a plain reading -------------------------------------------------------------------------------------------------


def meets(path: Path, at: Place) -> bool:
    """Whether *path* names the node *at*, or with a trailing `.**` one above it: a matcher beside the automaton."""

    def rest(steps: tuple[object, ...], here: Place) -> bool:
        if not steps:
            return not here or path.subtree
        if not here:
            return False
        step, first = steps[0], here[0]
        fits = isinstance(first, int) if step is ANY_ITEM else isinstance(first, str) and step in (ANY_MEMBER, first)
        return fits and rest(steps[1:], here[1:])

    starts = range(len(at)) if path.deep else (0,)
    return any(rest(path.steps, at[start:]) for start in starts)


def tags_at(fields: Fields, at: Place) -> set[str]:
    """The tags of every path that names the node."""
    return {tag for text, tags in fields.items() if meets(Path.parse(text), at) for tag in tags}


def actions_at(tags: set[str], mask: Lines, otherwise: str) -> set[str]:
    """The actions that a value with *tags* is under."""
    actions = {line["tags"][0]: line["as"] for line in mask}
    return {actions.get(tag, otherwise) for tag in tags} or {otherwise}


def strictest(actions: set[str]) -> int:
    """The rank of the strictest."""
    return max(STRICTNESS[action] for action in actions)
