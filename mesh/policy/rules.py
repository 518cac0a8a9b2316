"""Documents made ready to decide with: who is who in a tenant, and its rights and refusals with parsed patterns.

Shared by the load checks, the decisions and the grants, so that none of them reads a rule in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mesh.policy.expressions import Condition, compile_condition
from mesh.policy.masktable import MaskTable
from mesh.policy.model import Access, Allow, AnyDocument, Classification, Deny, Route, Subscription, Tenant, View, Who
from mesh.policy.paths import Path
from mesh.policy.routes import RouteRule
from mesh.policy.sources import is_below, is_plain
from mesh.policy.texts import instant_ms
from mesh.subjects import Glob, Pattern, versioned

ROOTS_PUBLISH = frozenset({"event", "data", "principal"})
ROOTS_ROWS = frozenset({"event", "data"})

Verb = Literal["publish", "subscribe"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One allow or deny line.

    Attributes:
        teams, agents: Whom it is about; None where the line does not say.
        patterns: The types.
        sources: Beyond the team's own, on an allow to publish.
        when: The condition, on a publish line.
        view: On an allow to subscribe.
        expires_ms: From then on the line is no grant; None where it does not end.
        since_ms: Stored events from then on may be read by it; None where it opens no history.
    """

    id: str
    verb: Verb
    teams: frozenset[str] | None
    agents: frozenset[str] | None
    patterns: tuple[Pattern, ...]
    sources: tuple[Glob, ...] = ()
    when: Condition | None = None
    view: str = ""
    expires_ms: int | None = None
    since_ms: int | None = None

    def covers_type(self, type_: str) -> bool:
        """Whether the line is about the logical type *type_*."""
        return any(pattern.matches(type_) for pattern in self.patterns)

    def about_agent(self, agent: str, team: str) -> bool:
        """Whether the line is about *agent* of *team*."""
        return (self.teams is None or team in self.teams) and (self.agents is None or agent in self.agents)

    def grants_team(self, team: str, members: frozenset[str]) -> bool:
        """Whether an allow reaches the whole *team*: where it names agents, each of the team's must be among them."""
        named = self.agents is None or (bool(members) and members <= self.agents)
        return named and (self.teams is None or team in self.teams)

    def denies_team(self, team: str, members: frozenset[str]) -> bool:
        """Whether a deny reaches *team*: where it names agents, one of the team's is enough."""
        named = self.agents is None or not members.isdisjoint(self.agents)
        return named and (self.teams is None or team in self.teams)

    def takes_source(self, source: str, team: str) -> bool:
        """Whether the line, an allow to publish, is for events from *source*: the *team*'s own, or one that it adds."""
        if is_below(f"/{team}", source):
            return True
        return is_plain(source) and any(glob.matches(source) for glob in self.sources)

    def ended(self, now_ms: int | None) -> bool:
        """Whether the line has expired; without a clock, whatever can expire has."""
        return self.expires_ms is not None and (now_ms is None or now_ms >= self.expires_ms)


def spiffe_id(trust_domain: str, tenant: str, agent: str) -> str:
    """The SPIFFE id of an agent of *tenant*; `other/agent` is the agent of the tenant `other`."""
    owner, _, name = agent.rpartition("/")
    return f"spiffe://{trust_domain}/ns/{owner or tenant}/sa/{name}"


@dataclass(frozen=True, slots=True)
class Classified:
    """One Classification: the types it is about, and the tags of each path."""

    name: str
    patterns: tuple[Pattern, ...]
    fields: tuple[tuple[Path, tuple[str, ...]], ...]

    @property
    def tags(self) -> frozenset[str]:
        """Every tag it gives."""
        return frozenset(tag for _, tags in self.fields for tag in tags)


class Tenancy:
    """Everything of one tenant, parsed.

    Args:
        documents: That tenant's, valid each on its own. Exactly one is the Tenant; a PolicyTest is left aside.

    Attributes:
        routes: In the order of the documents.
        routed: By the type that routes copy into: the types, as patterns, that somebody may publish and they match.

    Raises:
        MeshError, ValueError, LookupError: They were not checked: a pattern, path, condition or time in them does not
            parse, or a view is missing.
    """

    def __init__(self, documents: Iterable[AnyDocument]) -> None:
        held = list(documents)
        (self.tenant,) = (d for d in held if isinstance(d, Tenant))
        self.name = self.tenant.metadata.name
        teams = self.tenant.spec.teams
        self.members: dict[str, frozenset[str]] = {name: frozenset(team.agents) for name, team in teams.items()}
        self.team_of: dict[str, str] = {agent: name for name, team in teams.items() for agent in team.agents}
        self.views: dict[str, View] = {d.metadata.name: d for d in held if isinstance(d, View)}
        self.tables: dict[str, MaskTable] = {name: self._table(name) for name in self.views}
        self.rows: dict[str, tuple[Condition, ...]] = {name: self._rows(name) for name in self.views}
        self.classified = [_classified(d) for d in held if isinstance(d, Classification)]
        self.subscriptions = [d for d in held if isinstance(d, Subscription)]
        access = [d.spec for d in held if isinstance(d, Access)]
        self.allows = [_rule(line) for spec in access for line in spec.allow]
        self.denies = [_rule(line) for spec in access for line in spec.deny]
        self._publish_denies = [r for r in self.denies if r.verb == "publish"]
        self._read_denies = [r for r in self.denies if r.verb == "subscribe"]
        self._publishing: dict[str, list[Rule]] = {}
        self._reading: dict[str, list[Rule]] = {}
        for rule in self.allows:
            self._place(rule)
        self.routes = [RouteRule.parse(line) for d in held if isinstance(d, Route) for line in d.spec.routes]
        self.routed = self._routed()

    def _place(self, rule: Rule) -> None:
        """Note an allow under those it reaches: each question is then as long as its answer."""
        if rule.verb == "subscribe":
            self.views[rule.view]
        for team in self._teams_of(rule):
            members = self.members[team]
            if rule.verb == "publish":
                for agent in members if rule.agents is None else members & rule.agents:
                    self._publishing.setdefault(agent, []).append(rule)
            elif rule.grants_team(team, members):
                self._reading.setdefault(team, []).append(rule)

    def _teams_of(self, rule: Rule) -> Iterable[str]:
        """The teams that *rule* names, or has an agent of."""
        if rule.teams is not None:
            return rule.teams & self.members.keys()
        agents = self.team_of.keys() if rule.agents is None else rule.agents & self.team_of.keys()
        return {self.team_of[agent] for agent in agents}

    def base(self, view: str) -> View:
        """The document that holds the masks of *view*: its own, or the one it is `like`."""
        document = self.views[view]
        return self.views[document.spec.like] if document.spec.like else document

    def _table(self, view: str) -> MaskTable:
        spec = self.base(view).spec
        return MaskTable(spec.mask, spec.otherwise or "redact")

    def _rows(self, view: str) -> tuple[Condition, ...]:
        texts = dict.fromkeys((self.base(view).spec.rows, self.views[view].spec.rows))
        return tuple(compile_condition(text, roots=ROOTS_ROWS) for text in texts if text is not None)

    def _routed(self) -> dict[str, tuple[Pattern, ...]]:
        found: dict[str, dict[Pattern, None]] = {}
        lines = self.published_by_lines() if self.routes else []
        for route in self.routes:
            types = found.setdefault(route.to, {})
            for pattern in route.patterns:
                meets = (pattern.intersection(published) for published in lines)
                types.update({both: None for both in meets if both is not None})
        return {to: tuple(types) for to, types in found.items()}

    def publishing(self, agent: str) -> list[Rule]:
        """The allows to publish of *agent*, in the order of the documents."""
        return self._publishing.get(agent, [])

    def publish_denies(self, agent: str) -> list[Rule]:
        """The denies to publish of *agent*."""
        team = self.team_of.get(agent, "")
        return [r for r in self._publish_denies if r.about_agent(agent, team)]

    def reading(self, team: str) -> list[Rule]:
        """The allows to subscribe of *team*, expired ones included."""
        return self._reading.get(team, [])

    def read_denies(self, team: str) -> list[Rule]:
        """The denies to subscribe of *team*, as they are written; see `read_denies_of` for those that follow routes."""
        members = self.members.get(team, frozenset())
        return [r for r in self._read_denies if r.denies_team(team, members)]

    def read_denies_of(self, team: str, type_: str) -> list[Rule]:
        """The denies that keep *team* from *type_*: those that name it, or a type that is routed into it."""
        inward = self.routed.get(versioned(type_), ())
        return [r for r in self.read_denies(team) if r.covers_type(type_) or _meet(r.patterns, inward)]

    def denied(self, team: str) -> list[Pattern]:
        """What the denies keep *team* from, types that others are routed into included."""
        denies = self.read_denies(team)
        named = [pattern for rule in denies for pattern in rule.patterns]
        return [*named, *(Pattern.parse(to) for to, inward in self.routed.items() if _meet(named, inward))]

    def classifying(self, type_: str) -> tuple[int, ...]:
        """Which of `classified` hold for *type_*: those that name it, or a type that is routed into it."""
        inward = self.routed.get(versioned(type_), ())
        return tuple(
            index
            for index, document in enumerate(self.classified)
            if any(pattern.matches(type_) for pattern in document.patterns) or _meet(document.patterns, inward)
        )

    def classifying_any(self, pattern: Pattern) -> tuple[int, ...]:
        """Which of `classified` hold for some type of *pattern*."""
        inward = [p for to, types in self.routed.items() if pattern.matches(to) for p in types]
        return tuple(i for i, d in enumerate(self.classified) if _meet(d.patterns, (pattern, *inward)))

    def published_by_lines(self) -> list[Pattern]:
        """Every pattern that a publish line names, without repeats."""
        patterns = (p for rule in self.allows if rule.verb == "publish" for p in rule.patterns)
        return sorted(dict.fromkeys(patterns))

    def published(self) -> list[Pattern]:
        """Every pattern somebody may publish, by a line or by a route that some event can take, without repeats."""
        by_route = (Pattern.parse(to) for to, inward in self.routed.items() if inward)
        return sorted({*self.published_by_lines(), *by_route})


def routable(allows: Iterable[Rule], denies: Sequence[Rule], route: RouteRule) -> bool:
    """Whether one of *allows* lets its agent publish an event that *route* is about.

    Args:
        allows: To publish, of one agent.
        denies: That agent's; what one without a condition covers is not published.
        route: Its sources are not asked.
    """
    flat = [pattern for deny in denies if deny.when is None for pattern in deny.patterns]
    meets = (mine.intersection(theirs) for rule in allows for mine in rule.patterns for theirs in route.patterns)
    return any(both is not None and not any(deny.covers(both) for deny in flat) for both in meets)


def _meet(some: Iterable[Pattern], others: Sequence[Pattern]) -> bool:
    return bool(others) and any(one.intersects(other) for one in some for other in others)


def _classified(document: Classification) -> Classified:
    spec = document.spec
    patterns = tuple(Pattern.parse(text) for text in spec.types)
    return Classified(document.metadata.name, patterns, tuple((Path.parse(p), tags) for p, tags in spec.fields.items()))


def _rule(line: Allow | Deny) -> Rule:
    patterns = tuple(Pattern.parse(text) for text in line.publish or line.subscribe or ())
    teams, agents = _who(line.who)
    when = None if line.when is None else compile_condition(line.when, roots=ROOTS_PUBLISH)
    verb: Verb = "publish" if line.publish is not None else "subscribe"
    if isinstance(line, Deny):
        return Rule(line.id, verb, teams, agents, patterns, when=when)
    return Rule(
        line.id,
        verb,
        teams,
        agents,
        patterns,
        sources=tuple(Glob.source(text) for text in line.sources or ()),
        when=when,
        view=line.view or "",
        expires_ms=None if line.expires is None else instant_ms(line.expires),
        since_ms=None if line.since is None else instant_ms(line.since),
    )


def _who(who: Who) -> tuple[frozenset[str] | None, frozenset[str] | None]:
    teams = None if who.teams is None else frozenset(who.teams)
    agents = None if who.agents is None else frozenset(who.agents)
    return teams, agents
