"""What a bundle remembers of those before it: its lineage, and since when each team's reading has been the same.

A copy is handed over in the view its reader had when it was made (`policyrevision`), tightened by what holds now. So a
reader asks: has anything that decides what I read changed since then? `since` answers that with one comparison of
numbers for almost every event; `lineage` names the older bundles that are needed for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from mesh.policy.bundle import Bundle, Past
from mesh.policy.model import (
    Access,
    Allow,
    AnyDocument,
    Classification,
    Deny,
    Route,
    RouteLine,
    Subscription,
    Tenant,
    View,
)
from mesh.policy.rules import Rule, Tenancy
from mesh.subjects import Pattern, versioned

KEPT_MS: Final = 8 * 86_400 * 1000  # the streams keep events for 7 days; one more for what waits in spools
MAX_LINEAGE: Final = 1000  # 90 bytes each: a tenth of the largest bundle

_encode = msgspec.json.Encoder(order="sorted").encode


def lineage(current: Bundle, at_ms: int, now_ms: int) -> tuple[Past, ...]:
    """The lineage of the bundle that comes after *current*.

    Args:
        current: The one in force so far.
        at_ms: The server's clock when *current* was stored.
        now_ms: Unix milliseconds. A revision that ended more than `KEPT_MS` ago is left out, but never *current*.
    """
    pasts = (*current.lineage, Past(current.revision, current.digest, at_ms))
    ended = (*(past.at_ms for past in pasts[1:]), now_ms)  # each ends where the next begins
    first = next(place for place, end in enumerate(ended) if end >= now_ms - KEPT_MS)
    return pasts[max(first, len(pasts) - MAX_LINEAGE) :]


def since(old: Bundle | None, policies: Iterable[AnyDocument], revision: int) -> dict[str, int]:
    """For each team the revision since which everything that decides what it reads has been the same.

    Args:
        old: The bundle in force so far; None before the first.
        policies: The documents of the new one.
        revision: The number of the new one.

    Raises:
        MeshError, ValueError, LookupError: The documents were not checked.
    """
    new_facts = reading_facts(policies)
    old_facts = reading_facts(old.policies) if old is not None else {}
    return {
        team: old.since_of(team) if old is not None and old_facts.get(team) == facts else revision
        for team, facts in new_facts.items()
    }


def reading_facts(policies: Iterable[AnyDocument]) -> dict[str, bytes]:
    """By team, everything that decides what it reads, as bytes: equal bytes, equal reading.

    That is its entry in the Tenant document, the lines that let it subscribe or refuse it, the views they name, what
    classifies the types they reach, the routes into those types, and its Subscriptions.
    """
    documents = list(policies)
    facts = _Facts(documents)
    return {team: facts.of(team) for team in facts.tenancy.members}


class _Facts:
    """Looks up what concerns one team among one tenant's documents."""

    def __init__(self, documents: list[AnyDocument]) -> None:
        self.tenancy = Tenancy(documents)
        self._tenant = next(d for d in documents if isinstance(d, Tenant))
        self._views: Mapping[str, View] = {d.metadata.name: d for d in documents if isinstance(d, View)}
        self._classifications = [d for d in documents if isinstance(d, Classification)]
        self._routes = [line for d in documents if isinstance(d, Route) for line in d.spec.routes]
        self._subscriptions = [d for d in documents if isinstance(d, Subscription)]
        self._lines: dict[str, Allow | Deny] = {}
        for document in documents:
            if isinstance(document, Access):
                self._lines |= {line.id: line for line in document.spec.allow}
                self._lines |= {line.id: line for line in document.spec.deny}

    def of(self, team: str) -> bytes:
        """The facts about one team."""
        allows = self.tenancy.reading(team)
        rules: list[Rule] = [*allows, *self.tenancy.read_denies(team)]
        reached = [pattern for rule in allows for pattern in rule.patterns]
        routes = [line for line in self._routes if any(pattern.matches(line.to) for pattern in reached)]
        reached += [Pattern.parse(text) for line in routes for text in line.match.types]
        return _encode(
            [
                self._tenant.spec.teams[team],
                sorted(_encode(self._rule(rule)) for rule in rules),
                sorted(_encode(view) for view in self._views_of(allows)),
                sorted(_encode(d.spec) for d in self._classifications if _meets(d.spec.types, reached)),
                sorted(_encode([_without_reason(line), self._inward(line)]) for line in routes),
                sorted(_encode([d.metadata.name, d.spec]) for d in self._subscriptions if d.metadata.team == team),
            ]
        )

    def _inward(self, line: RouteLine) -> list[str]:
        """The types that can come in by a route: their denies and classifications follow them."""
        return sorted(pattern.text for pattern in self.tenancy.routed.get(versioned(line.to), ()))

    def _rule(self, rule: Rule) -> Any:
        return _without_reason(self._lines[rule.id])

    def _views_of(self, allows: list[Rule]) -> list[list[Any]]:
        """Each view with the one it is `like`, by name."""
        found = []
        for name in sorted({rule.view for rule in allows}):
            base = self.tenancy.base(name)
            found.append([name, self._views[name].spec, base.metadata.name, base.spec])
        return found


def _without_reason(line: Allow | Deny | RouteLine) -> Any:
    return msgspec.structs.replace(line, reason=None)


def _meets(types: Iterable[str], reached: list[Pattern]) -> bool:
    patterns = [Pattern.parse(text) for text in types]
    return any(mine.intersects(other) for mine in patterns for other in reached)
