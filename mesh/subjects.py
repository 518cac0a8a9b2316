"""The subject grammar: types, patterns over types, globs over tags and sources, and where an event rests in NATS.

    logical type        crm.contact.updated.v1        what a sender writes: 2 to 8 tokens of [a-z0-9_-]{1,64}
    versioned type      crm.contact.updated.v1        always ends in a version token; `v0` where the sender named none
    physical subject    ev.<site>.<view>.<slot>.<versioned type>

A pattern is matched against versioned types, so `crm.contact` means all its versions and `crm.contact.v1` only that
one. Patterns follow NATS: `*` is one token, `>` one or more and only last. Each literal `>` or `*` therefore means to
NATS exactly what it means here, and a pattern's `text` can be used as a filter as it stands.
Globs, over tags and sources, are in `mesh.globs`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh.errors import BadName, BadPattern, BadSubject, BadType
from mesh.globs import Glob

__all__ = [
    "MAX_NAME_CHARS",
    "MAX_TYPE_TOKENS",
    "NAME_RE",
    "SLOTS",
    "TYPE_RE",
    "Glob",
    "Pattern",
    "Physical",
    "check_name",
    "check_type",
    "is_version",
    "logical",
    "parse_physical",
    "physical",
    "physical_pattern",
    "slot_name",
    "slot_of",
    "stream_name",
    "versioned",
]

MAX_TYPE_TOKENS = 8  # a type of 8 tokens rests under 13 tokens; NATS itself stays quick up to about 16
MAX_NAME_CHARS = 40  # three names and a slot make a durable's name, which the server limits to 255 characters
SLOTS = 16  # 4 bits of a keyed hash

NAME_RE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")  # no `--`: it joins names in durables
TYPE_RE = re.compile(r"[a-z0-9_-]{1,64}(?:\.[a-z0-9_-]{1,64}){1,7}(?<!\.v0)")
_TOKEN_RE = re.compile(r"[a-z0-9_-]{1,64}")
_VERSION_RE = re.compile(r"v[0-9]{1,9}")
_PHYSICAL_RE = re.compile(r"ev\.([a-z0-9-]{1,40})\.([a-z0-9-]{1,40})\.s(0[0-9]|1[0-5])\.([a-z0-9_.-]+)")
_NO_VERSION = "v0"
_SHOWN_CHARS = 80  # how much of a wrong name an error repeats


def _shown(text: object) -> str:
    return repr(text[:_SHOWN_CHARS]) if isinstance(text, str) else type(text).__name__


def check_name(text: str) -> str:
    """Return *text* if it can name a team, an agent, a subscription, a view, a site or a tenant.

    Raises:
        BadName: Not `[a-z0-9]+(-[a-z0-9]+)*` of at most `MAX_NAME_CHARS` characters.
    """
    if not isinstance(text, str) or len(text) > MAX_NAME_CHARS or NAME_RE.fullmatch(text) is None:
        raise BadName(
            "a name is outside the grammar",
            expected=f"[a-z0-9]+(-[a-z0-9]+)*, at most {MAX_NAME_CHARS} characters",
            got=_shown(text),
            next="use lower-case letters, digits and single hyphens",
        )
    return text


# --- types -----------------------------------------------------------------------------------------------------------


def check_type(text: str) -> str:
    """Return *text* if it is a logical type.

    Raises:
        BadType: Not 2 to 8 tokens of `[a-z0-9_-]{1,64}`, or the last token is the reserved `v0`.
    """
    if not isinstance(text, str) or TYPE_RE.fullmatch(text) is None:
        raise BadType(
            "the event type is outside the grammar",
            expected=f"2 to {MAX_TYPE_TOKENS} tokens of [a-z0-9_-]{{1,64}} joined by dots; not `{_NO_VERSION}` last",
            got=_shown(text),
            next="name it like crm.contact.updated.v1: domain, thing, what happened, contract version",
        )
    return text


def is_version(token: str) -> bool:
    """Whether *token* is a contract version: `v` and 1 to 9 digits."""
    return _VERSION_RE.fullmatch(token) is not None


def versioned(type_: str) -> str:
    """The logical *type_* with a version: its own, else `v0`."""
    return type_ if is_version(type_[type_.rfind(".") + 1 :]) else f"{type_}.{_NO_VERSION}"


def logical(versioned_type: str) -> str:
    """The inverse of `versioned`: the type as its sender writes it."""
    return versioned_type.removesuffix(f".{_NO_VERSION}")


# --- patterns over types ---------------------------------------------------------------------------------------------

_MIN_LENGTH = 2  # `crm.v1` is the shortest versioned type
_MAX_LENGTH = MAX_TYPE_TOKENS + 1  # eight tokens of the sender's and our `v0`


@dataclass(frozen=True, slots=True, order=True)
class Pattern:
    """A set of types. Equal, ordered and hashed by `text`.

    Attributes:
        text: Normalised: matched against versioned types, and usable in NATS. Not for `parse`, see `from_text`.
        tokens: Of `text`.
        written: What `parse` took. For an intersection, what `parse` would take where there is such a text.
    """

    text: str
    tokens: tuple[str, ...] = field(compare=False)
    written: str = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a pattern as people write it: `crm.contact` (every version), `crm.*.created.v1`, `crm.>`.

        Raises:
            BadPattern: A token outside the grammar, `>` not last, or nothing a type could ever match.
        """
        tokens = tuple(text.split(".")) if isinstance(text, str) else ("",)
        _check_tokens(text, tokens)
        if tokens[-1] != ">" and not is_version(tokens[-1]):
            tokens = (*tokens, "*")
        return cls._possible(tokens, text)

    @classmethod
    def from_text(cls, text: str) -> Pattern:
        """Read a normalised `text` back. Raises BadPattern."""
        tokens = tuple(text.split("."))
        _check_tokens(text, tokens)
        return cls._possible(tokens, _written(tokens))

    @classmethod
    def _possible(cls, tokens: tuple[str, ...], written: str) -> Pattern:
        if not any(_possible_at(tokens, length) for length in range(_MIN_LENGTH, _MAX_LENGTH + 1)):
            raise BadPattern(
                "no event type can match this pattern",
                expected=f"room for a type of 2 to {MAX_TYPE_TOKENS} tokens",
                got=_shown(written),
                next="drop tokens, or end it with `.>`",
            )
        return cls(".".join(tokens), tokens, written)

    def matches(self, type_: str) -> bool:
        """Whether this pattern takes the logical type *type_*."""
        mine, theirs = self.tokens, versioned(type_).split(".")
        if mine[-1] == ">":
            if len(theirs) < len(mine):
                return False
            mine = mine[:-1]
        elif len(theirs) != len(mine):
            return False
        return all(token in ("*", other) for token, other in zip(mine, theirs, strict=False))

    def covers(self, other: Pattern) -> bool:
        """Whether this pattern takes every type that *other* takes."""
        return all(
            _covers_at(self.tokens, other.tokens, length)
            for length in range(_MIN_LENGTH, _MAX_LENGTH + 1)
            if _possible_at(other.tokens, length)
        )

    def intersects(self, other: Pattern) -> bool:
        """Whether some type is taken by both."""
        return self.intersection(other) is not None

    def intersection(self, other: Pattern) -> Pattern | None:
        """The pattern of exactly the types both take, or None where there are none."""
        for mine, theirs in zip(self.tokens, other.tokens, strict=False):  # nearly all pairs part at a literal
            if mine == ">" or theirs == ">":
                break
            if mine not in (theirs, "*") and theirs != "*":
                return None
        tokens = _merge(self.tokens, other.tokens)
        if tokens is None:
            return None
        if not any(_possible_at(tokens, length) for length in range(_MIN_LENGTH, _MAX_LENGTH + 1)):
            return None
        return Pattern(".".join(tokens), tokens, _written(tokens))

    @property
    def exact(self) -> str | None:
        """The one versioned type this pattern takes, or None where it takes more."""
        head, last = self.tokens[:-1], self.tokens[-1]
        if "*" in head:
            return None
        if len(self.tokens) == _MAX_LENGTH and last in ("*", ">"):
            return ".".join((*head, _NO_VERSION))  # nine tokens: only our own `v0` fits last
        return None if last in ("*", ">") else self.text

    @property
    def domain(self) -> str | None:
        """The first token where it is literal: it names the stream. None for `*` and `>`."""
        return None if self.tokens[0] in ("*", ">") else self.tokens[0]

    def __str__(self) -> str:
        """As written."""
        return self.written


def _check_tokens(text: str, tokens: tuple[str, ...]) -> None:
    if ">" in tokens[:-1]:
        fault = "`>` is not the last token of the pattern"
    elif len(tokens) > _MAX_LENGTH:
        fault = f"the pattern has {len(tokens)} tokens"
    elif all(token in ("*", ">") or _TOKEN_RE.fullmatch(token) for token in tokens):
        return
    else:
        fault = "a token of the pattern is outside the grammar"
    raise BadPattern(
        fault,
        expected=f"up to {MAX_TYPE_TOKENS} tokens of [a-z0-9_-]{{1,64}} or `*`, and `>` only last",
        got=_shown(text),
        next="write it like crm.contact.>, crm.*.created or crm.contact.updated.v1",
    )


def _written(tokens: tuple[str, ...]) -> str:
    """What `parse` would take to give *tokens*; *tokens* themselves where it could not."""
    head = tokens[:-1]
    short = tokens[-1] == "*" and len(head) > 0 and not is_version(head[-1])
    return ".".join(head if short else tokens)


def _at(tokens: tuple[str, ...], length: int) -> tuple[str, ...] | None:
    """*tokens* as a row of exactly *length* literals and `*`, or None where they cannot be that long."""
    if tokens[-1] != ">":
        return tokens if len(tokens) == length else None
    return (*tokens[:-1], *("*" * (length - len(tokens) + 1))) if length >= len(tokens) else None


def _possible_at(tokens: tuple[str, ...], length: int) -> bool:
    """Whether some versioned type of *length* tokens is taken by *tokens*."""
    row = _at(tokens, length)
    if row is None:
        return False
    before, last = row[-2], row[-1]
    if last != "*" and not is_version(last):
        return False
    may_be_v0 = length > _MIN_LENGTH and (before == "*" or not is_version(before))  # `crm.v1` has its version already
    if last == _NO_VERSION:
        return may_be_v0
    return length < _MAX_LENGTH or (last == "*" and may_be_v0)  # nine tokens: eight of the sender's and our `v0`


def _covers_at(mine: tuple[str, ...], theirs: tuple[str, ...], length: int) -> bool:
    """Whether *mine* takes each type of *length* tokens that *theirs* takes."""
    wide, narrow = _at(mine, length), _at(theirs, length)
    if wide is None or narrow is None:
        return wide is not None
    if length == _MAX_LENGTH:
        narrow = (*narrow[:-1], _NO_VERSION)
    return all(a in ("*", b) for a, b in zip(wide, narrow, strict=True))


def _merge(mine: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...] | None:
    """Position by position the narrower token, or None where two literals or two lengths disagree."""
    if len(mine) < len(theirs):
        mine, theirs = theirs, mine
    if theirs[-1] == ">":
        tail = mine[-1:] if len(mine) > len(theirs) or mine[-1] != ">" else (">",)
        theirs = (*theirs[:-1], *("*" * (len(mine) - len(theirs))), *(("*",) if tail != (">",) else (">",)))
    elif len(mine) != len(theirs):
        return None
    elif mine[-1] == ">":
        mine = (*mine[:-1], "*")
    merged = []
    for a, b in zip(mine, theirs, strict=True):
        if a not in ("*", b) and b != "*":
            return None
        merged.append(b if a == "*" else a)
    return tuple(merged)


# --- where an event rests --------------------------------------------------------------------------------------------


class Physical(NamedTuple):
    """The parts of a physical subject; `type` is logical."""

    site: str
    view: str
    slot: int
    type: str


def physical(site: str, view: str, slot: int, type_: str) -> str:
    """The subject of one copy: `ev.local.clear.s03.crm.contact.updated.v1`. Takes checked parts."""
    return f"ev.{site}.{view}.s{slot:02d}.{versioned(type_)}"


def parse_physical(subject: str) -> Physical:
    """Read a physical subject, strictly: `physical(*parse_physical(s)) == s`.

    Raises:
        BadSubject: Anything that `physical` would not have made.
    """
    match = _PHYSICAL_RE.fullmatch(subject)
    if match is not None:
        site, view, slot, rest = match.groups()
        type_ = rest.removesuffix(f".{_NO_VERSION}")
        named = NAME_RE.fullmatch(site) and NAME_RE.fullmatch(view)
        if named and TYPE_RE.fullmatch(type_) and versioned(type_) == rest:
            return Physical(site, view, int(slot), type_)
    raise BadSubject(
        "the subject is not one that an event rests under",
        expected="ev.<site>.<view>.s00 to s15.<type with version>",
        got=_shown(subject),
    )


def physical_pattern(site: str, view: str, pattern: Pattern, slot: str = "*") -> str:
    """The NATS subject, for grants and filters, of all slots of *pattern* in one view; of one where *slot* names it."""
    return f"ev.{site}.{view}.{slot}.{pattern.text}"


def slot_name(slot: int) -> str:
    """How subjects and durables name a slot: `s03`."""
    return f"s{slot:02d}"


def stream_name(site: str, domain: str) -> str:
    """The stream of one site and domain; a site has no `_`, so no two pairs share a name."""
    return f"EV_{site}_{domain}"


def slot_of(digest: bytes) -> int:
    """The slot, 0 to 15: the high 4 bits of a keyed hash."""
    return digest[0] >> 4
