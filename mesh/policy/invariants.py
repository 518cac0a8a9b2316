"""What must hold of the whole matrix, whatever an event says: the sentences that auditors ask for.

never: {see: [pci.**], as: [clear], except: [billing]}      no other team sees such a field under such an action
never: {guess: [pii.**]}                                    no team can test guesses of such a field's tokens
only: {teams: [hr], subscribe: [hr.>]}                      no other team may read, or publish, any of these types
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mesh.policy.expectations import Mismatch
from mesh.policy.matrix import Matrix
from mesh.policy.model_cases import Invariant, Never, Only
from mesh.subjects import Glob, Pattern


def types_named(invariant: Invariant) -> tuple[str, ...]:
    """The patterns of types in *invariant*: the matrix it is asked of has to be cut along them."""
    only = invariant.only
    return () if only is None else (*(only.subscribe or ()), *(only.publish or ()))


def named(invariant: Invariant) -> str:
    """*invariant* as a sentence."""
    never, only = invariant.never, invariant.only
    if never is not None:
        who = f"no team but {_listed(never.exceptions)}" if never.exceptions else "no team"
        parts = []
        if never.see is not None:
            parts.append(f"sees {_listed(never.see)} as {' or '.join(never.actions)}")
        if never.guess is not None:
            parts.append(f"can guess {_listed(never.guess)}")
        return f"{who} {' or '.join(parts)}"
    if only is None:
        return "nothing"
    verb = "subscribes to" if only.subscribe is not None else "publishes"
    return f"only {_listed(only.teams)} {verb} {_listed(only.subscribe or only.publish or ())}"


def broken(invariant: Invariant, matrix: Matrix) -> list[Mismatch]:
    """Where *invariant* does not hold: each field, or right, once.

    Args:
        invariant: Checked when it was loaded.
        matrix: Of the tenant, cut along `types_named`.
    """
    never, only = invariant.never, invariant.only
    if never is not None:
        return [*_seen(never, matrix), *_guessed(never, matrix)]
    return [] if only is None else _others(only, matrix)


def _seen(never: Never, matrix: Matrix) -> list[Mismatch]:
    if never.see is None:
        return []
    about = _about(never.see)
    apart = frozenset(never.exceptions or ())
    expected = f"never {' or '.join(never.actions)}"
    found = {}
    for cell in matrix.cells:
        reading = cell.reading
        if cell.action in never.actions and reading.team not in apart and about(cell.tags):
            place = f"{reading.team} reads {cell.path} of {reading.atom.shown}"
            found[place, reading.view] = Mismatch(
                place, expected, f"{cell.words} in the view {reading.view} (rule {reading.rule})"
            )
    return list(found.values())


def _guessed(never: Never, matrix: Matrix) -> list[Mismatch]:
    if never.guess is None:
        return []
    about = _about(never.guess)
    apart = frozenset(never.exceptions or ())
    return [
        Mismatch(
            f"{guess.team} guesses {_listed(tag for tag in guess.tags if about((tag,)))}",
            "no tokens of what the team can publish",
            f"it reads tokens of the domain {guess.domain} (rule {guess.rule}), and may publish into it",
        )
        for guess in matrix.guesses
        if guess.team not in apart and about(guess.tags)
    ]


def _others(only: Only, matrix: Matrix) -> list[Mismatch]:
    apart = frozenset(only.teams)
    expected = f"only {_listed(only.teams)}"
    found = {}
    if only.subscribe is not None:
        within = _within(only.subscribe)
        for reading in matrix.readings:
            if reading.view and reading.team not in apart and within(reading.atom.witness):
                place = f"{reading.team} subscribes to {reading.atom.shown}"
                got = f"it may, in the view {reading.view} (rule {reading.rule})"
                found[place, reading.view] = Mismatch(place, expected, got)
    if only.publish is not None:
        within = _within(only.publish)
        for right in matrix.publishing:
            if right.team not in apart and within(right.atom.witness):
                place = f"{right.team} publishes {right.atom.shown}"
                found[place, right.agent] = Mismatch(place, expected, f"its agent {right.agent} may")
    return list(found.values())


def _about(texts: Iterable[str]) -> Callable[[Iterable[str]], bool]:
    globs = [Glob.tag(text) for text in texts]
    return lambda tags: any(glob.matches(tag) for glob in globs for tag in tags)


def _within(texts: Iterable[str]) -> Callable[[str], bool]:
    patterns = [Pattern.parse(text) for text in texts]
    return lambda type_: any(pattern.matches(type_) for pattern in patterns)


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts)
