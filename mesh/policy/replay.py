"""Recorded events under two sets of policies: whom a changed condition would give more of them, and whom fewer.

Only copies are recorded, so each event is asked of the clearest copy there is. A condition that reads a field which
that copy hides cannot be asked, and the event counts as `undecided` for the team. So does one that was refused, of
which no copy was made: the audit trail knows no more than its type and source. An event that no view showed left no
trace; only shadow sees it, at its source.

Counts only: nothing here repeats what an event says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.policy.compile import Plans
from mesh.policy.decide import NO_DATA
from mesh.policy.expressions import Condition, ConditionFailed
from mesh.policy.judge import Judge
from mesh.policy.paths import Path
from mesh.policy.routes import RouteRule, routed
from mesh.policy.rules import Rule
from mesh.policy.wider import normal_of
from mesh.subjects import versioned

Answer = bool | None  # None: it hangs on what the copy hides


@dataclass(frozen=True, slots=True)
class Recorded:
    """The clearest stored copy of one event.

    Attributes:
        fields: As stored; of a refused event what the audit trail says: `id`, `source`, `type`.
        view: Of the copy; empty where none was made.
        agent: Who published it; None where the tenant does not know the signer.
        then: The policies it was made under; None for the old ones of the comparison.
    """

    fields: Mapping[str, Any]
    view: str
    agent: str | None
    then: Plans | None = None


@dataclass(slots=True)
class Tally:
    """Events that one team would be handed and was not, the other way round, and those nobody can say of."""

    gained: int = 0
    lost: int = 0
    undecided: int = 0


@dataclass(slots=True)
class Replayed:
    """What came of it: how many events were asked, and a tally of each team for which something changes."""

    events: int = 0
    teams: dict[str, Tally] = field(default_factory=dict)


def replay(old: Plans, new: Plans, events: Iterable[Recorded], *, now_ms: int) -> Replayed:
    """Ask both sets of policies about each event.

    Args:
        old: In force.
        new: To come.
        events: Each event once. A route's copies are left aside: they follow from their originals.
        now_ms: Unix milliseconds, for rights that end.
    """
    sides = (_Side(old, now_ms), _Side(new, now_ms))
    targets = {versioned(route.to) for side in sides for route in side.tenancy.routes}
    teams = sorted({team for side in sides for team in side.tenancy.members})
    result = Replayed()
    for event in events:
        type_ = str(event.fields["type"])
        if versioned(type_) in targets and not any(side.says(event.agent, type_) for side in sides):
            continue
        result.events += 1
        asked = _Asked(event, event.then or old)
        said = _published(sides, asked)
        for to in (type_, *_targets(sides, asked)):
            for team in teams:
                if sides[0].terms(asked, to, team) != sides[1].terms(asked, to, team):
                    was, now = (_all((said[i], sides[i].reaches(asked, to, team))) for i in (0, 1))
                    _count(result.teams, team, was, now)
    return result


def _published(sides: tuple[_Side, _Side], asked: _Asked) -> tuple[Answer, Answer]:
    """Whether the event is published under each side; what its copy hides, its being stored or refused says."""
    was = sides[0].published(asked)
    if was is None:
        was = asked.stored
    same = sides[0].saying(asked) == sides[1].saying(asked)
    return was, was if same else sides[1].published(asked)


def _targets(sides: tuple[_Side, _Side], asked: _Asked) -> dict[str, None]:
    """The types that routes of either side may copy the event to."""
    return {route.to: None for side in sides for route in side.routes(asked)}


def _count(teams: dict[str, Tally], team: str, was: Answer, now: Answer) -> None:
    if was is now and was is not None:
        return
    tally = teams.setdefault(team, Tally())
    if was is None or now is None:
        tally.undecided += 1
    elif now:
        tally.gained += 1
    else:
        tally.lost += 1


class _Asked:
    """One event, and which conditions its copy can answer."""

    def __init__(self, event: Recorded, then: Plans) -> None:
        self.fields = event.fields
        self.type = str(event.fields["type"])
        self.source = str(event.fields["source"])
        self.agent = event.agent or ""
        self.stored = bool(event.view)
        known = event.view in then.tenancy.views
        self._judge = Judge(*then.sides(event.view, self.type)) if known else None

    def answers(self, condition: Condition) -> bool:
        """Whether the copy shows in clear every field that *condition* reads."""
        paths = (text.removeprefix("event.") for text in condition.fields if not text.startswith("principal"))
        return self._judge is not None and all(self._judge.wholly_clear(Path.parse(text)) for text in paths)


class _Side:
    """One set of policies."""

    def __init__(self, plans: Plans, now_ms: int) -> None:
        self.plans = plans
        self.tenancy = plans.tenancy
        self._now_ms = now_ms

    def says(self, agent: str | None, type_: str) -> bool:
        """Whether a publish line, not only a route, lets *agent* say *type_*."""
        return any(rule.covers_type(type_) for rule in self.tenancy.publishing(agent or ""))

    def routes(self, asked: _Asked) -> list[RouteRule]:
        """The routes that the event may take."""
        return [r for r in self.tenancy.routes if r.covers_type(asked.type) and r.covers_source(asked.source)]

    def terms(self, asked: _Asked, to: str, team: str) -> object:
        """Everything that decides; where both sides have the same, so is the answer."""
        routes = frozenset(
            (r.to, r.effect, normal_of(r.when)) for r in self.routes(asked) if self._matters(r, asked, to)
        )
        rows = frozenset(frozenset(map(normal_of, self.tenancy.rows[view])) for view in self._views(team, to))
        return self.saying(asked), routes, rows

    def saying(self, asked: _Asked) -> object:
        """Everything that decides whether the event may be published."""
        rules = (*self._allows(asked), *self._denies(asked))
        return frozenset((rule.id, normal_of(rule.when), rule.sources, rule.ended(self._now_ms)) for rule in rules)

    def reaches(self, asked: _Asked, to: str, team: str) -> Answer:
        """Whether *team* would be handed the event, once published, as one of the type *to*."""
        return _all((self._arrives(asked, to), self._shown(asked, to, team)))

    def _allows(self, asked: _Asked) -> list[Rule]:
        return [rule for rule in self.tenancy.publishing(asked.agent) if rule.covers_type(asked.type)]

    def _denies(self, asked: _Asked) -> list[Rule]:
        return [rule for rule in self.tenancy.publish_denies(asked.agent) if rule.covers_type(asked.type)]

    def published(self, asked: _Asked) -> Answer:
        """Whether its agent may publish the event."""
        conditions = [rule.when for rule in (*self._allows(asked), *self._denies(asked)) if rule.when is not None]
        if all(map(asked.answers, conditions)):
            return self.plans.publisher(asked.agent).decide(asked.fields, now_ms=self._now_ms).allowed
        return None if self.plans.publisher(asked.agent).may_publish(asked.type, asked.source) else False

    @staticmethod
    def _matters(route: RouteRule, asked: _Asked, to: str) -> bool:
        """Whether *route* has a say in what arrives under *to*: it copies there, or takes the original away."""
        mine = versioned(asked.type) == versioned(to)
        return route.effect == "move" if mine else versioned(route.to) == versioned(to)

    def _arrives(self, asked: _Asked, to: str) -> Answer:
        taken = [self._taken(route, asked) for route in self.routes(asked) if self._matters(route, asked, to)]
        if versioned(asked.type) == versioned(to):
            return _not(_any(taken))
        return _any(taken)

    def _taken(self, route: RouteRule, asked: _Asked) -> Answer:
        if route.when is None:
            return True
        if not asked.answers(route.when):
            return None
        agent, team = asked.agent, self.tenancy.team_of.get(asked.agent, "")
        principal = {"agent": agent, "team": team, "tenant": self.tenancy.name, "id": self.plans.spiffe_id(agent)}
        data = asked.fields.get("data", NO_DATA)
        try:
            return route.when({"event": asked.fields, "data": data, "principal": principal})
        except ConditionFailed:
            return route.effect == "move"

    def _views(self, team: str, type_: str) -> Iterator[str]:
        for lasting in self.plans.views(type_):
            if self.plans.reader(team, type_, lasting.plan.name, now_ms=self._now_ms).allowed:
                yield lasting.plan.name

    def _shown(self, asked: _Asked, to: str, team: str) -> Answer:
        routes = [route for route in self.routes(asked) if versioned(route.to) == versioned(to)]
        fields = routed(asked.fields, routes[0]) if routes and to != asked.type else asked.fields
        answers: list[Answer] = []
        for view in self._views(team, to):
            readable = all(map(asked.answers, self.tenancy.rows[view]))
            answers.append(self.plans.view(view, to).rows(fields) if readable else None)
        return _any(answers)


def _any(answers: list[Answer]) -> Answer:
    return True if True in answers else None if None in answers else False


def _all(answers: tuple[Answer, ...]) -> Answer:
    return False if False in answers else None if None in answers else True


def _not(answer: Answer) -> Answer:
    return None if answer is None else not answer
