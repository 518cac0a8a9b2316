"""What the cases of the policy tests have tried: each rule and row filter both ways, each tag in each view.

    a rule with a condition       once true and once false, for an event and a principal that it is about
    a rule without one            once matching, and once just missing: the right principal and another type, or the
                                  right type and another principal
    rows of a view                once true and once false, for a team that reads the view
    a tag, or `unclassified`      once looked at by `expect.fields` in each view that shows fields which carry it

A view that shows everything has one entry for all tags. Coverage says what was tried, not that the answer was right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from mesh.policy.compile import Plans
from mesh.policy.decide import NO_DATA
from mesh.policy.documents import Document
from mesh.policy.expressions import Condition, ConditionFailed
from mesh.policy.model import Access, Route, View
from mesh.policy.places import Place, steps_of
from mesh.policy.routes import RouteRule
from mesh.policy.rules import Rule
from mesh.policy.sources import is_below
from mesh.policy.trial import Answer, publisher_of
from mesh.subjects import Glob, Pattern

UNCLASSIFIED = "unclassified"
_EVERYTHING = Pattern.parse(">")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to try, where it stands in the policies, and whether a case has."""

    what: str
    file: str
    line: int
    covered: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Everything to try."""

    items: tuple[Item, ...]

    @property
    def percent(self) -> float:
        """How much of it was tried; 100.0 where there is nothing to try."""
        covered = sum(item.covered for item in self.items)
        return 100.0 * covered / len(self.items) if self.items else 100.0

    @property
    def missing(self) -> tuple[Item, ...]:
        """What no case has tried, in the order of files and lines."""
        return tuple(sorted((i for i in self.items if not i.covered), key=lambda i: (i.file, i.line, i.what)))


@dataclass(slots=True)
class Asked:
    """What one case has asked.

    Attributes:
        team: The reader; empty for a publisher.
        agent: The publisher; empty for a reader.
        type: Of the event asked for.
        published: The event before any route, that rules on publishing are asked about.
        fields: The event before masking.
        view: It was shown in; empty where nothing was.
        now_ms: Unix milliseconds.
        checked: The places whose values were looked at and found as expected.
    """

    team: str
    agent: str
    type: str
    published: Mapping[str, Any]
    fields: Mapping[str, Any]
    view: str
    now_ms: int
    checked: list[Place] = field(default_factory=list)

    @classmethod
    def reading(cls, team: str, type_: str, event: Mapping[str, Any], answer: Answer, now_ms: int) -> Self:
        """Of a `subscribe` case."""
        return cls(team, "", type_, event, answer.original, answer.view, now_ms)

    @classmethod
    def publishing(cls, agent: str, type_: str, answer: Answer, view: str, now_ms: int) -> Self:
        """Of a `publish` case, whose `fields` are looked up in *view*."""
        return cls("", agent, type_, answer.original, answer.original, view, now_ms)


class Cover:
    """Notes what the cases of one tenant ask.

    Args:
        plans: Of the tenant.
        documents: The tenant's; they know their lines.
        now_ms: Unix milliseconds: what is granted then has to be tried.
    """

    def __init__(self, plans: Plans, documents: Sequence[Document], *, now_ms: int) -> None:
        self._plans = plans
        self._tenancy = plans.tenancy
        self._now_ms = now_ms
        self._lines = lines_of(documents)
        self._views = {d.value.metadata.name: d for d in documents if isinstance(d.value, View)}
        self._seen: set[tuple[str, str, object]] = set()

    def note(self, asked: Asked) -> None:
        """Take down what a case has asked."""
        if asked.agent:
            self._publishing(asked)
        else:
            self._reading(asked)
        self._routes(asked)
        self._cells(asked)

    def result(self) -> Coverage:
        """Everything there is to try, and what was."""
        return Coverage((*self._rule_items(), *self._row_items(), *self._cell_items()))

    # --- what a case has tried ---------------------------------------------------------------------------------------

    def _publishing(self, asked: Asked) -> None:
        agent, source = asked.agent, str(asked.published["source"])
        team = self._tenancy.team_of.get(agent, "")
        for rule in (*self._tenancy.allows, *self._tenancy.denies):
            if rule.verb == "publish":
                fits = [rule.about_agent(agent, team), rule.covers_type(asked.type)]
                if rule in self._tenancy.allows:
                    fits.append(fits_source(rule, f"/{team}", source))
                self._rule("rule", rule, fits, asked.published, self._principal(agent), ended=rule.ended(asked.now_ms))

    def _principal(self, agent: str) -> dict[str, str]:
        team = self._tenancy.team_of.get(agent, "")
        return {"agent": agent, "team": team, "tenant": self._tenancy.name, "id": self._plans.spiffe_id(agent)}

    def _reading(self, asked: Asked) -> None:
        members = self._tenancy.members.get(asked.team, frozenset())
        for rule in self._tenancy.allows:
            if rule.verb == "subscribe":
                fits = [rule.grants_team(asked.team, members), rule.covers_type(asked.type)]
                self._rule("rule", rule, fits, {}, {}, ended=rule.ended(asked.now_ms))
        for rule in self._tenancy.denies:
            if rule.verb == "subscribe":
                fits = [rule.denies_team(asked.team, members), rule.covers_type(asked.type)]
                self._rule("rule", rule, fits, {}, {})
        if asked.view:
            read = self._plans.reader(asked.team, asked.type, asked.view, now_ms=asked.now_ms)
            if read.allowed:
                shows = self._plans.view(asked.view, asked.type).rows(asked.fields)
                self._seen.add(("rows", asked.view, shows))

    def _routes(self, asked: Asked) -> None:
        fields = asked.published
        agent = publisher_of(self._plans, fields, now_ms=asked.now_ms)
        if agent is not None:
            for route in self._tenancy.routes:
                fits = [route.covers_source(str(fields["source"])), route.covers_type(str(fields["type"]))]
                self._rule("route", route, fits, fields, self._principal(agent))

    def _rule(
        self,
        kind: str,
        rule: Rule | RouteRule,
        fits: list[bool],
        fields: Mapping[str, Any],
        principal: Mapping[str, str],
        *,
        ended: bool = False,
    ) -> None:
        """Note whether *rule* held or not; *fits* says of each of its selectors whether it takes what was asked."""
        if all(fits):
            if rule.when is None:
                self._seen.add((kind, rule.id, not ended))
            else:
                self._seen.add((kind, rule.id, _holds(rule.when, fields, principal) and not ended))
        elif fits.count(False) == 1 and rule.when is None:
            self._seen.add((kind, rule.id, False))

    def _cells(self, asked: Asked) -> None:
        if not asked.view or not asked.checked:
            return
        masking = self._plans.view(asked.view, asked.type).masking
        for place in asked.checked:
            tags = masking.at(steps_of(place)).tags
            for tag in tags or (UNCLASSIFIED,):
                self._seen.add(("cell", asked.view, tag))

    # --- what there is to try ----------------------------------------------------------------------------------------

    def _rule_items(self) -> Iterator[Item]:
        for rule in (*self._tenancy.allows, *self._tenancy.denies):
            yield from self._both("rule", f"the rule {rule.id}", rule)
        for route in self._tenancy.routes:
            yield from self._both("route", f"the route {route.id}", route)

    def _both(self, kind: str, what: str, rule: Rule | RouteRule) -> Iterator[Item]:
        file, line = self._lines[rule.id]
        told = ("matches", "does not match") if rule.when is None else ("is true", "is false")
        for outcome, words in zip((True, False), told, strict=True):
            if outcome or rule.when is not None or not self._is_about_all(rule):
                yield Item(f"{what} {words}", file, line, (kind, rule.id, outcome) in self._seen)

    def _is_about_all(self, rule: Rule | RouteRule) -> bool:
        """Whether nothing can miss *rule*: every type, from everybody."""
        if _EVERYTHING not in rule.patterns:
            return False
        if isinstance(rule, RouteRule):
            return not rule.sources
        return rule.agents is None and rule.teams is not None and rule.teams >= self._tenancy.members.keys()

    def _row_items(self) -> Iterator[Item]:
        for view in sorted(self._read()):
            if self._tenancy.rows[view]:
                document = self._views[view]
                line = document.line_of("spec", "rows")
                for outcome, words in ((True, "show an event"), (False, "leave one out")):
                    what = f"the rows of the view {view} {words}"
                    yield Item(what, document.file, line, ("rows", view, outcome) in self._seen)

    def _cell_items(self) -> Iterator[Item]:
        for view, patterns in sorted(self._read().items()):
            document, table = self._views[view], self._tenancy.tables[view]
            seen = {tag for kind, name, tag in self._seen if (kind, name) == ("cell", view)}
            if table.all_clear:
                line = document.line_of("spec", "otherwise")
                yield Item(f"the view {view} shows a field", document.file, line, bool(seen))
                continue
            tags = {
                tag
                for pattern in patterns
                for index in self._tenancy.classifying_any(pattern)
                for tag in self._tenancy.classified[index].tags
            }
            for tag in (*sorted(tags), UNCLASSIFIED):
                line = self._mask_line(view, tag)
                what = f"the view {view} shows a field that is {tag}"
                yield Item(what, document.file, line, tag in seen)

    def _mask_line(self, view: str, tag: str) -> int:
        """The line of the first mask line that names *tag*, else of `otherwise`, in the document of *view*."""
        document = self._views[view]
        base = self._tenancy.base(view)
        if tag != UNCLASSIFIED and document.value is base:
            for index, line in enumerate(base.spec.mask):
                if any(Glob.tag(text).matches(tag) for text in line.tags):
                    return document.line_of("spec", "mask", index)
        return document.line_of("spec", "otherwise")

    def _read(self) -> dict[str, list[Pattern]]:
        """The views that some team reads now, and of which types."""
        read: dict[str, list[Pattern]] = {}
        for rule in self._tenancy.allows:
            if rule.verb == "subscribe" and not rule.ended(self._now_ms):
                read.setdefault(rule.view, []).extend(rule.patterns)
        return read


def lines_of(documents: Sequence[Document]) -> dict[str, tuple[str, int]]:
    """File and line of each rule and route of one tenant, by its id."""
    return dict(_lines(documents))


def _lines(documents: Sequence[Document]) -> Iterator[tuple[str, tuple[str, int]]]:
    for document in documents:
        value = document.value
        if isinstance(value, Access):
            for index, allow in enumerate(value.spec.allow):
                yield allow.id, (document.file, document.line_of("spec", "allow", index))
            for index, deny in enumerate(value.spec.deny):
                yield deny.id, (document.file, document.line_of("spec", "deny", index))
        elif isinstance(value, Route):
            for index, route in enumerate(value.spec.routes):
                yield route.id, (document.file, document.line_of("spec", "routes", index))


def fits_source(rule: Rule, own: str, source: str) -> bool:
    """Whether an allow to publish takes *source*: the team's *own* or below, or what the line adds."""
    return is_below(own, source) or any(glob.matches(source) for glob in rule.sources)


def _holds(when: Condition, fields: Mapping[str, Any], principal: Mapping[str, str]) -> bool | None:
    """Whether *when* holds; None where it fails."""
    try:
        return when({"event": fields, "data": fields.get("data", NO_DATA), "principal": principal})
    except ConditionFailed:
        return None
