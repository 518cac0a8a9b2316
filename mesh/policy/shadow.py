"""A candidate bundle beside the one in force: what would become of each event, and only where that differs.

Both bundles make their final decision about the same event at the same time, and the two are compared. So what a
candidate denies by a rule that the bundle in force does not have shows as much as what it no longer allows.

    would_deny, would_allow          to publish it; `active` and `candidate` name the deciding rule or the reason
    view_added, view_removed         a copy in this view (of this type, where a route made it), by grants or by rows
    mask_changed                     in this view, at places of this path: the masks
    route_changed                    this route takes it, or makes something else of it
    team_gains, team_loses           this team would begin, or cease, to receive it
    team_view                        this team would receive it in other views

Counts, names and the policies' paths; an event's id and type, so that one can be looked at, and never another value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal
from zlib import crc32

import msgspec

from mesh.policy.compile import Plans
from mesh.policy.decide import Decision, PublisherPlans, ViewPlan
from mesh.policy.masktable import describe
from mesh.policy.model import Tenant
from mesh.policy.routes import routed
from mesh.policy.shadow_masks import MaskComparison

MAX_FOUND: Final = 200  # disagreements told apart; what comes after them counts as `other`
MAX_ANSWERS = 2048  # in each cache by type and view; full means emptied
READERS_MS = 1000  # grants that end are asked about this often
_ALL_SAMPLES = 0x1_0000_0000

Kind = Literal[
    "would_deny", "would_allow", "view_added", "view_removed", "mask_changed", "route_changed", "team_gains",
    "team_loses", "team_view",
]  # fmt: skip


class Disagreement(msgspec.Struct, frozen=True, omit_defaults=True, order=True):
    """One way in which the candidate differs, for events of one type.

    Attributes:
        kind: See above.
        type: Of the event; of the copy, where a route made it.
        about: The view, the route or the team.
        path: The policy's, for `mask_changed`.
        active, candidate: What each says.
    """

    kind: Kind
    type: str
    about: str = ""
    path: str = ""
    active: str = ""
    candidate: str = ""


class Counted(msgspec.Struct, frozen=True):
    """A disagreement, how many events showed it, and the id of the last of them."""

    found: Disagreement
    count: int
    event: str


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What a shadow has seen.

    Attributes:
        compared: Events.
        disagreed: Of those, on how many the two disagree at all.
        other: Events with a disagreement that found no room among `MAX_FOUND`.
    """

    compared: int = 0
    disagreed: int = 0
    other: int = 0
    found: tuple[Counted, ...] = ()


class Shadow:
    """Compares two bundles on the events of one agent.

    Args:
        active: The bundle in force.
        candidate: The other.
        agent: Whose events.
        sample: Part of the events that are compared, 0 to 1; by their ids, so the same ones everywhere.

    Attributes:
        compared: Events so far.
    """

    def __init__(self, active: Plans, candidate: Plans, agent: str, *, sample: float = 1.0) -> None:
        self._active = _Side(active, agent)
        self._candidate = _Side(candidate, agent)
        self._below = round(sample * _ALL_SAMPLES)
        self._masks: dict[tuple[str, str], MaskComparison] = {}
        self._found: dict[Disagreement, tuple[int, str]] = {}
        self._disagreed = self._other = 0
        self.compared = 0

    def chosen(self, event_id: str) -> bool:
        """Whether the event is one of the sample."""
        return crc32(event_id.encode()) < self._below

    def compare(self, fields: Mapping[str, Any], *, now_ms: int) -> set[Disagreement]:
        """Compare one event and count; returns what was found.

        Args:
            fields: As accepted; read, never changed.
            now_ms: Unix milliseconds.
        """
        found = self._compare(fields, now_ms)
        self.compared += 1
        self._disagreed += bool(found)
        overflow = False
        for one in found:
            count, _ = self._found.get(one, (0, ""))
            if count or len(self._found) < MAX_FOUND:
                self._found[one] = (count + 1, fields["id"])
            else:
                overflow = True
        self._other += overflow
        return found

    def tally(self) -> Tally:
        """What was found so far, the most frequent first."""
        counted = (Counted(one, count, event) for one, (count, event) in self._found.items())
        return Tally(
            compared=self.compared,
            disagreed=self._disagreed,
            other=self._other,
            found=tuple(sorted(counted, key=lambda c: (-c.count, c.found))),
        )

    def _compare(self, fields: Mapping[str, Any], now_ms: int) -> set[Disagreement]:
        type_ = fields["type"]
        one, other = self._active.outcome(fields, now_ms), self._candidate.outcome(fields, now_ms)
        found: set[Disagreement] = set()
        if one.allowed != other.allowed:
            kind: Kind = "would_deny" if one.allowed else "would_allow"
            found.add(Disagreement(kind, type_, active=one.because, candidate=other.because))
        else:
            found |= self._copies(fields, one, other)
        for name in one.routes.keys() | other.routes.keys():
            before, after = one.routes.get(name, "none"), other.routes.get(name, "none")
            if before != after and one.allowed == other.allowed:
                found.add(Disagreement("route_changed", type_, about=name, active=before, candidate=after))
        return found | self._teams(type_, one, other, now_ms)

    def _copies(self, fields: Mapping[str, Any], one: _Outcome, other: _Outcome) -> set[Disagreement]:
        found: set[Disagreement] = set()
        for place in one.copies.keys() | other.copies.keys():
            type_, view = place
            if place not in other.copies:
                found.add(Disagreement("view_removed", type_, about=view))
            elif place not in one.copies:
                found.add(Disagreement("view_added", type_, about=view))
            else:
                for change in self._comparison(type_, view).changes(fields):
                    masks = describe(change.active), describe(change.candidate)
                    found.add(Disagreement("mask_changed", type_, view, change.path, *masks))
        return found

    def _comparison(self, type_: str, view: str) -> MaskComparison:
        comparison = self._masks.get((type_, view))
        if comparison is None:
            sides = (side.plans.sides(view, type_) for side in (self._active, self._candidate))
            comparison = MaskComparison(*((tuple(pairs), table) for pairs, table in sides))
            if len(self._masks) >= MAX_ANSWERS:
                self._masks.clear()
            self._masks[type_, view] = comparison
        return comparison

    def _teams(self, type_: str, one: _Outcome, other: _Outcome, now_ms: int) -> set[Disagreement]:
        if one.copies.keys() == other.copies.keys() == set():
            return set()
        before = self._active.teams(one.copies, now_ms)
        after = self._candidate.teams(other.copies, now_ms)
        found: set[Disagreement] = set()
        for team in before.keys() | after.keys():
            had, has = before.get(team, frozenset()), after.get(team, frozenset())
            if had != has:
                kind: Kind = "team_view" if had and has else "team_loses" if had else "team_gains"
                found.add(Disagreement(kind, type_, team, active=_listed(had), candidate=_listed(has)))
        return found


class _Outcome(msgspec.Struct, frozen=True):
    """What one side makes of an event: the copies by type and view, the routes taken and what they do."""

    allowed: bool
    because: str
    copies: dict[tuple[str, str], ViewPlan]
    routes: dict[str, str]


class _Side:
    """One of the two bundles."""

    def __init__(self, plans: Plans, agent: str) -> None:
        self.plans = plans
        self._publisher: PublisherPlans = plans.publisher(agent)
        tenants = (d for d in plans.bundle.policies if isinstance(d, Tenant))
        self._teams = [team for tenant in tenants for team in tenant.spec.teams]
        self._readers: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {}

    def outcome(self, fields: Mapping[str, Any], now_ms: int) -> _Outcome:
        """The final decision about an event."""
        decision = self._publisher.decide(fields, now_ms=now_ms)
        if not decision.allowed:
            return _Outcome(allowed=False, because=_because(decision), copies={}, routes={})
        copies: dict[tuple[str, str], ViewPlan] = {}
        routes: dict[str, str] = {}
        moved = False
        for match in self._publisher.routes(fields, now_ms=now_ms):
            route = match.route
            routes[route.id] = f"{route.effect} to {route.to}"
            moved = moved or route.effect == "move"
            copies |= _shown(route.to, match.views, routed(fields, route))
        if not moved:
            copies |= _shown(fields["type"], decision.views, fields)
        return _Outcome(allowed=True, because=_because(decision), copies=copies, routes=routes)

    def teams(self, copies: Iterable[tuple[str, str]], now_ms: int) -> dict[str, frozenset[str]]:
        """For each team that may read one of *copies*, in which views of which types."""
        found: dict[str, set[str]] = {}
        several = len({type_ for type_, _ in copies}) > 1
        for type_, view in copies:
            for team in self._reading(type_, view, now_ms):
                found.setdefault(team, set()).add(f"{view} of {type_}" if several else view)
        return {team: frozenset(views) for team, views in found.items()}

    def _reading(self, type_: str, view: str, now_ms: int) -> tuple[str, ...]:
        moment, teams = self._readers.get((type_, view), (-1, ()))
        if moment != now_ms // READERS_MS:
            teams = tuple(t for t in self._teams if self.plans.reader(t, type_, view, now_ms=now_ms).allowed)
            if len(self._readers) >= MAX_ANSWERS:
                self._readers.clear()
            self._readers[type_, view] = now_ms // READERS_MS, teams
        return teams


def _shown(type_: str, views: Iterable[ViewPlan], fields: Mapping[str, Any]) -> dict[tuple[str, str], ViewPlan]:
    return {(type_, view.name): view for view in views if view.rows(fields)}


def _because(decision: Decision) -> str:
    """The rule that decided, or why none did."""
    if decision.reason == "rule":
        return decision.rule or decision.reason
    return f"{decision.reason} ({decision.rule})" if decision.rule else decision.reason


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
