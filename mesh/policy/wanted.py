"""What of an event's data conditions look at, so that the rest need not be read for them.

A condition says which paths it reads (`Condition.fields`): each whose value it uses, and each that it asks for by
`has()`. Such a path is followed as long as it is plain names; where it picks among items or members, or has a name that
is quoted, the whole of what it has come to is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mesh.policy.expressions import Condition
from mesh.verbatim import Wanted

_NAME = r"[A-Za-z0-9_+-]+"
_ELSEWHERE = re.compile(rf"principal\b|event\.(?!data(?![A-Za-z0-9_+-])){_NAME}")  # attributes are read in any case
_DATA = re.compile(rf"(?:event\.)?data((?:\.{_NAME})*)")


def wanted(conditions: Iterable[Condition]) -> Wanted:
    """What all of *conditions* together read of `data`: an empty dict is nothing, None is the whole."""
    found: dict[str, Wanted] = {}
    for path in {path for condition in conditions for path in condition.fields}:
        if _ELSEWHERE.match(path):
            continue
        followed = _DATA.match(path)
        names = followed[1].split(".")[1:] if followed else []
        if not names:
            return None
        _add(found, names)
    return found


def _add(found: dict[str, Wanted], names: list[str]) -> None:
    """Note that the member which *names* lead to is wanted, whatever it is."""
    for name in names[:-1]:
        below = found.setdefault(name, {})
        if below is None:
            return
        found = below
    found[names[-1]] = None
