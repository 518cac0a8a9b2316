"""Deciding: may this agent publish this event, into which views, and may this team be handed a copy now.

Default deny; a deny beats every allow; a condition that fails in an allow is no match, and one that fails in a deny is
a match; an expired grant is no grant. Every answer names the rule and the reason:

    rule                 the named rule decided
    no-allow-matched     no allow is about this
    source-not-allowed   an allow is about this type, but not from this source (the rule is the first such)
    error-in-deny        the condition of the named deny failed on this event
    row-filter           the view's rows leave this event out
    no-valid-bundle      no bundle, so no answer but no

An allowed event is then routed: `routes()` says which copies of other types are made of it. A condition that fails is
no match for a copy, and a match for a move, which takes the event away from the readers of its own type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from mesh.policy.expressions import Condition, ConditionFailed
from mesh.policy.mask import Masking
from mesh.policy.routes import RouteRule
from mesh.policy.rules import Rule, routable
from mesh.policy.wanted import wanted
from mesh.verbatim import Wanted

Evaluate: TypeAlias = Callable[[Mapping[str, object]], bool]
"""`Condition.evaluate`, which is quicker to call than the condition."""

MAX_TYPES = 4096  # types an agent keeps an answer for; more are worked out again
NO_DATA: Final[Mapping[str, object]] = {}  # what `data` is in a condition where an event has none: `has()` is false
MAX_SOURCES = 1024  # sources it keeps an answer for, for each type

REASONS: Final = (
    "rule", "no-allow-matched", "error-in-deny", "row-filter", "no-valid-bundle", "source-not-allowed",
)  # fmt: skip


class ViewPlan:
    """One view of one type: which events it shows, and how.

    Attributes:
        name: The view.
        masking: Shared by all types that the same classifications cover.
        mask: `Masking.apply`: `(fields, keys)` to the fields to encode, a fresh dict at the top.
        filters: Whether there are events that `rows` leaves out.
        conditions: What it leaves them out by.
    """

    __slots__ = ("_rows", "conditions", "filters", "mask", "masking", "name")

    def __init__(self, name: str, masking: Masking, rows: tuple[Condition, ...]) -> None:
        self.name = name
        self.masking = masking
        self.mask = masking.apply
        self.conditions = rows
        self._rows = tuple(row.evaluate for row in rows)
        self.filters = bool(rows)

    def rows(self, fields: Mapping[str, Any]) -> bool:
        """Whether the view shows this event at all; a filter that fails on it says no."""
        if not self._rows:
            return True
        bindings = {"event": fields, "data": fields.get("data", NO_DATA)}
        try:
            for row in self._rows:
                if not row(bindings):
                    return False
        except ConditionFailed:
            return False
        return True

    def __repr__(self) -> str:
        return f"ViewPlan({self.name!r})"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an event may be published, why, and the views to make copies for."""

    allowed: bool
    rule: str | None
    reason: str
    views: tuple[ViewPlan, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadDecision:
    """Whether a team may be handed a copy now, and why."""

    allowed: bool
    rule: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class LastingView:
    """A view somebody may read, and until when: Unix ms, or None where no grant of it ends."""

    plan: ViewPlan
    until_ms: int | None


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """One route that an event takes.

    Attributes:
        views: Of the type it copies to, that somebody may read now.
        failed: The condition of this move failed on the event, which counts as true.
    """

    route: RouteRule
    views: tuple[ViewPlan, ...]
    failed: bool = False


NO_ALLOW: Final = Decision(allowed=False, rule=None, reason="no-allow-matched")
NO_READ: Final = ReadDecision(allowed=False, rule=None, reason="no-allow-matched")


@dataclass(slots=True)
class _Answer:
    """What is known of one type before the event is seen."""

    refused: Decision | None  # a deny without condition, or no allow
    denies: list[tuple[Rule, Evaluate]]
    allows: list[tuple[Rule, Evaluate | None, Decision]]
    views: tuple[LastingView, ...]
    ending: bool  # some right or view ends: ask the clock
    sources: dict[str, tuple[int, ...]]  # the allows that fit a source, by index
    routes: tuple[tuple[RouteRule, Evaluate | None, tuple[LastingView, ...]], ...]
    reads: Wanted  # of `data`, by the conditions of all but the routes


class PublisherPlans:
    """What one agent may publish, and into which views. One bundle's; swapped whole with it.

    Args:
        team: The agent's; None where the tenant does not know it, and then nothing is allowed.
        allows, denies: Its rules on publishing.
        routes: The tenant's.
        principal: What `principal` is in conditions: `agent`, `team`, `tenant`, `id`.
        views_of: The views of a type that somebody may read.

    Attributes:
        routing: Whether there are routes at all.
    """

    def __init__(
        self,
        team: str | None,
        allows: list[Rule],
        denies: list[Rule],
        *,
        routes: Sequence[RouteRule] = (),
        principal: Mapping[str, str],
        views_of: Callable[[str], tuple[LastingView, ...]],
    ) -> None:
        self._team = team or ""
        self._allows = allows if team is not None else []
        self._denies = denies
        self._routes = tuple(routes)
        self.routing = bool(self._routes)
        self._principal = dict(principal)
        self._views_of = views_of
        self._answers: dict[str, _Answer] = {}

    def decide(self, fields: Mapping[str, Any], *, now_ms: int | None = None) -> Decision:
        """Decide on an accepted event.

        Args:
            fields: Its CloudEvents attributes and data; read, never changed.
            now_ms: Unix milliseconds. Without it, every right that can expire has.
        """
        type_ = fields["type"]
        answer = self._answers.get(type_) or self._prepare(type_)
        if answer.refused is not None:
            return answer.refused
        bindings: dict[str, object] | None = None
        if answer.denies:
            bindings = self._bindings(fields)
            for rule, refuses in answer.denies:
                try:
                    if refuses(bindings):
                        return Decision(allowed=False, rule=rule.id, reason="rule")
                except ConditionFailed:
                    return Decision(allowed=False, rule=rule.id, reason="error-in-deny")
        source = fields["source"]
        fitting = answer.sources.get(source)
        if fitting is None:
            fitting = self._fitting(answer, source)
        for index in fitting:
            rule, when, decision = answer.allows[index]
            if when is not None:
                bindings = bindings or self._bindings(fields)
                try:
                    if not when(bindings):
                        continue
                except ConditionFailed:
                    continue
            if not answer.ending:
                return decision
            if not rule.ended(now_ms):
                return Decision(allowed=True, rule=rule.id, reason="rule", views=_lasting(answer.views, now_ms))
        if fitting:
            return NO_ALLOW
        return Decision(allowed=False, rule=answer.allows[0][0].id, reason="source-not-allowed")

    def reads(self, type_: str) -> Wanted:
        """What of an event's `data` is read to decide on one of *type_*, and to filter the rows of its views.

        It is not all that `routes` may read.
        """
        return (self._answers.get(type_) or self._prepare(type_)).reads

    def routes(self, fields: Mapping[str, Any], *, now_ms: int | None = None) -> tuple[RouteMatch, ...]:
        """The routes that an event takes; it has been allowed, for a refused one takes none.

        Args:
            fields: Its CloudEvents attributes and data; read, never changed.
            now_ms: Unix milliseconds. Without it, every view whose grants can all expire is read by nobody.
        """
        if not self.routing:
            return ()
        type_ = fields["type"]
        answer = self._answers.get(type_) or self._prepare(type_)
        found = []
        for route, when, views in answer.routes:
            if not route.covers_source(fields["source"]):
                continue
            failed = False
            if when is not None:
                try:
                    taken = when(self._bindings(fields))
                except ConditionFailed:
                    taken = failed = route.effect == "move"
                if not taken:
                    continue
            found.append(RouteMatch(route, _lasting(views, now_ms), failed))
        return tuple(found)

    def may_publish(self, type_: str, source: str) -> bool:
        """Whether the rules, their conditions and ends aside, let this agent publish *type_* from *source*.

        It may where a publish line says so, and where a route makes such copies of what a publish line lets it publish
        from that source: the route is the grant for them.
        """
        if self._may_say(type_, source):
            return True
        lines = [rule for rule in self._allows if rule.takes_source(source, self._team)]
        feeding = (r for r in self._routes if r.to == type_ and r.covers_source(source))
        return any(routable(lines, self._denies, route) for route in feeding)

    def _may_say(self, type_: str, source: str) -> bool:
        answer = self._answers.get(type_) or self._prepare(type_)
        if answer.refused is not None:
            return False
        fitting = answer.sources.get(source)
        return bool(self._fitting(answer, source) if fitting is None else fitting)

    def _bindings(self, fields: Mapping[str, Any]) -> dict[str, object]:
        return {"event": fields, "data": fields.get("data", NO_DATA), "principal": self._principal}

    def _prepare(self, type_: str) -> _Answer:
        denies = [rule for rule in self._denies if rule.covers_type(type_)]
        allows = [rule for rule in self._allows if rule.covers_type(type_)]
        flat = next((rule for rule in denies if rule.when is None), None)
        refused = NO_ALLOW if not allows else None
        if flat is not None:
            refused = Decision(allowed=False, rule=flat.id, reason="rule")
        views = self._views_of(type_) if refused is None else ()
        routes = (r for r in self._routes if refused is None and r.covers_type(type_))
        shown = tuple(view.plan for view in views)
        ending = any(v.until_ms is not None for v in views) or any(r.expires_ms is not None for r in allows)
        answer = _Answer(
            refused=refused,
            denies=[(rule, rule.when.evaluate) for rule in denies if rule.when is not None],
            allows=[
                (rule, _evaluate(rule.when), Decision(allowed=True, rule=rule.id, reason="rule", views=shown))
                for rule in allows
            ],
            views=views,
            ending=ending,
            sources={},
            routes=tuple((route, _evaluate(route.when), self._views_of(route.to)) for route in routes),
            reads=wanted(_conditions(denies + allows, shown)) if refused is None else {},
        )
        if len(self._answers) >= MAX_TYPES:
            self._answers.clear()
        self._answers[type_] = answer
        return answer

    def _fitting(self, answer: _Answer, source: str) -> tuple[int, ...]:
        allows = enumerate(answer.allows)
        fitting = tuple(index for index, (rule, _, _) in allows if rule.takes_source(source, self._team))
        if len(answer.sources) >= MAX_SOURCES:
            answer.sources.clear()
        answer.sources[source] = fitting
        return fitting


def _conditions(rules: list[Rule], views: tuple[ViewPlan, ...]) -> Iterator[Condition]:
    yield from (rule.when for rule in rules if rule.when is not None)
    for view in views:
        yield from view.conditions


def _evaluate(when: Condition | None) -> Evaluate | None:
    return None if when is None else when.evaluate


def _lasting(views: tuple[LastingView, ...], now_ms: int | None) -> tuple[ViewPlan, ...]:
    return tuple(v.plan for v in views if v.until_ms is None or (now_ms is not None and now_ms < v.until_ms))
