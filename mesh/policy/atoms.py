"""The infinitely many types a tenant can have, cut into finitely many kinds that no policy tells apart.

Every pattern that a policy, or a question, holds is a cut. Types that exactly the same patterns take are one atom: any
of them answers for all, so a witness made of tokens that no pattern names is asked, and the answer is exact. The
patterns closed under intersection have a witness of every atom among theirs: where an atom's patterns meet, a type
with new tokens wherever that meeting says `*` or `>` is taken by those patterns and by no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mesh.policy.rules import Tenancy
from mesh.subjects import MAX_TYPE_TOKENS, Pattern, is_version, logical

_LONGEST = MAX_TYPE_TOKENS + 1  # tokens of a versioned type whose sender named no version
_NO_VERSION = "v0"


@dataclass(frozen=True, slots=True)
class Atom:
    """One kind of types.

    Attributes:
        witness: A type of it, logical.
        shown: The pattern where all of the atom's patterns meet, as people write it. Where other atoms lie within, it
            takes their types too.
        patterns: Exactly those that take the atom's types.
    """

    witness: str
    shown: str
    patterns: frozenset[Pattern]

    def within(self, patterns: Iterable[Pattern]) -> bool:
        """Whether one of *patterns*, cuts all of them, takes the atom's types."""
        return not self.patterns.isdisjoint(patterns)


def atoms(tenancies: Iterable[Tenancy], questions: Iterable[Pattern] = ()) -> list[Atom]:
    """The atoms of what somebody may publish, by what they show as.

    Args:
        tenancies: Whose policies cut the types: one, or two that are compared.
        questions: More cuts, where a question names patterns of its own.
    """
    held = list(tenancies)
    cuts = {pattern for tenancy in held for pattern in _cuts(tenancy)} | set(questions)
    published = [pattern for tenancy in held for pattern in tenancy.published()]
    words = {token for pattern in cuts for token in pattern.tokens}
    found: dict[frozenset[Pattern], Atom] = {}
    by_domain = _ByDomain(cuts)
    longest = max((len(pattern.tokens) for pattern in cuts), default=0) + 1
    for pattern in _closed(cuts):
        for witness in _witnesses(pattern, words, longest):
            if not any(p.matches(witness) for p in published):
                continue
            mine = frozenset(p for p in by_domain(witness) if p.matches(witness))
            if mine not in found:
                found[mine] = Atom(witness, _meeting(mine, pattern).written, mine)
    return sorted(found.values(), key=lambda atom: (atom.shown, atom.witness))


def in_words(some: Iterable[Atom], every: Iterable[Atom]) -> tuple[str, ...]:
    """*some* of the atoms *every* as patterns: one within another goes without saying, one left out is excepted."""
    held = {atom.shown: Pattern.parse(atom.shown) for atom in some}
    others = {atom.shown: Pattern.parse(atom.shown) for atom in every if atom.shown not in held}
    told = []
    for shown, pattern in sorted(held.items()):
        if any(name != shown and other.covers(pattern) for name, other in held.items()):
            continue
        apart = [name for name, other in sorted(others.items()) if pattern.covers(other)]
        told.append(f"{shown} (but {', '.join(apart)})" if apart else shown)
    return tuple(told)


def _cuts(tenancy: Tenancy) -> Iterator[Pattern]:
    """Every pattern over types that *tenancy* holds."""
    for rule in (*tenancy.allows, *tenancy.denies):
        yield from rule.patterns
    for classified in tenancy.classified:
        yield from classified.patterns
    for route in tenancy.routes:
        yield from route.patterns
        yield Pattern.parse(route.to)


class _ByDomain:
    """Patterns by their first token: types of one domain meet few of them."""

    def __init__(self, cuts: Iterable[Pattern]) -> None:
        self._of: dict[str | None, list[Pattern]] = {}
        for pattern in sorted(cuts):
            self._of.setdefault(pattern.domain, []).append(pattern)

    def __call__(self, type_: str) -> list[Pattern]:
        domain = type_.partition(".")[0]
        return [*self._of.get(domain, ()), *self._of.get(None, ())]


def _closed(cuts: Iterable[Pattern]) -> set[Pattern]:
    """*cuts* and all their intersections."""
    closed: dict[str | None, set[Pattern]] = {}
    todo = sorted(set(cuts))
    while todo:
        pattern = todo.pop()
        mine = closed.setdefault(pattern.domain, set())
        if pattern in mine:
            continue
        if pattern.domain is None:
            others = [other for held in closed.values() for other in held]
        else:
            others = [*mine, *closed.get(None, ())]
        mine.add(pattern)
        todo.extend(both for other in others if (both := pattern.intersection(other)) not in (None, pattern, other))
    return {pattern for held in closed.values() for pattern in held}


def _meeting(patterns: frozenset[Pattern], start: Pattern) -> Pattern:
    """Where all *patterns*, which share a type, meet."""
    both = start
    for pattern in sorted(patterns):
        both = both.intersection(pattern) or both
    return both


def _witnesses(pattern: Pattern, words: set[str], longest: int) -> Iterator[str]:
    """Types that *pattern* takes, one for each length that some pattern may tell from the next."""
    tokens = pattern.tokens
    lengths = range(len(tokens), min(longest, _LONGEST) + 1) if tokens[-1] == ">" else (len(tokens),)
    new = _unused("x", words)
    version = next(f"v{n}" for n in range(1, len(words) + 2) if f"v{n}" not in words)
    for length in lengths:
        row = [*tokens[:-1], *("*" * (length - len(tokens) + 1))] if tokens[-1] == ">" else list(tokens)
        last = row[-1]
        if last == "*":
            last = _NO_VERSION if length == _LONGEST else version
        head = [new if token == "*" else token for token in row[:-1]]  # noqa: S105 - a pattern's token
        type_ = ".".join((*head, last))
        if is_version(last) and (last != _NO_VERSION or not is_version(head[-1])) and len(head) + 1 <= _LONGEST:
            yield logical(type_)


def _unused(stem: str, words: set[str]) -> str:
    return next(word for n in range(len(words) + 1) if (word := f"{stem}{n or ''}") not in words)
