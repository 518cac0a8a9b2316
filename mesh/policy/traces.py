"""Why an event looks as it does in a view, for people.

The policy's paths, tags and masks; never a value, or a name that only the event has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.policy import paths as walk
from mesh.policy.judge import AS_THEY_ARE, Judge, Judged
from mesh.policy.masktable import describe
from mesh.policy.paths import Position

UNCLASSIFIED: Final = "unclassified"
_CONTAINERS = frozenset({dict, list})


@dataclass(frozen=True, slots=True)
class PathTrace:
    """What the policies make of some place of an event.

    Attributes:
        path: The texts of the classification paths that meet there, or `unclassified`.
        tags: Theirs.
        masks: What the view has for each tag, in the words of a policy.
        chosen: The strictest of them; for a container that is shown as one value, what it becomes.
    """

    path: str
    tags: tuple[str, ...]
    masks: tuple[str, ...]
    chosen: str


def trace(judge: Judge, fields: Mapping[str, Any]) -> list[PathTrace]:
    """One entry for each different answer that the places of an event get, in their order; attributes aside."""
    return list(dict.fromkeys(_Walk(judge).entries(fields)))


class _Walk:
    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._steps: dict[
            frozenset[Position], tuple[dict[str, frozenset[Position]], frozenset[Position], frozenset[Position]]
        ] = {}
        self._judged: dict[frozenset[Position], Judged] = {}

    def entries(self, fields: Mapping[str, Any]) -> Iterator[PathTrace]:
        names, other, _ = self._from(self._judge.begin())
        for name, value in fields.items():
            if name not in AS_THEY_ARE:
                yield from self._value(value, names.get("data" if name == "data_base64" else name, other))

    def _value(self, value: Any, places: frozenset[Position]) -> Iterator[PathTrace]:
        judged = self._judged.get(places)
        if judged is None:
            judged = self._judged[places] = self._judge.judge(places)
        if type(value) not in _CONTAINERS:
            yield _entry(judged, judged.chosen)
        elif judged.container is not None:
            yield _entry(judged, judged.container)
        elif not value or not places:
            yield _entry(judged, judged.chosen)
        elif type(value) is dict:
            names, other, _ = self._from(places)
            for name, item in value.items():
                yield from self._value(item, names.get(name, other))
        else:
            _, _, below = self._from(places)
            for item in value:
                yield from self._value(item, below)

    def _from(
        self, places: frozenset[Position]
    ) -> tuple[dict[str, frozenset[Position]], frozenset[Position], frozenset[Position]]:
        steps = self._steps.get(places)
        if steps is None:
            steps = self._steps[places] = walk.steps_from(self._judge.paths, places)
        return steps


def _entry(judged: Judged, chosen: tuple[str, Any]) -> PathTrace:
    path = " + ".join(judged.paths) or UNCLASSIFIED
    return PathTrace(path, judged.tags, tuple(describe(mask) for mask in judged.masks), describe(chosen))
