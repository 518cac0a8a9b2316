"""The rules that could have decided about one event: each with its place, whether it matched, and why.

Each rule is asked on its own, also those that an earlier one made idle: a person who mends one wants to know what comes
next. Nothing here quotes the event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.policy.because import FALSE, TRUE, Outcome, Part, outcome
from mesh.policy.compile import Plans
from mesh.policy.decide import NO_DATA
from mesh.policy.documents import PolicySet
from mesh.policy.model import Access, Route, View
from mesh.policy.routes import RouteRule
from mesh.policy.rules import Rule
from mesh.policy.sources import is_below, is_plain
from mesh.policy.trial import publisher_of
from mesh.subjects import versioned


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """One rule that could have decided.

    Attributes:
        rule: Its id.
        file, line: Where it stands.
        effect: `allow`, `deny`, `copy` or `move`.
        matched: Whether it is about this event.
        why: In words; the policy's, never the event's.
        parts: Of its condition, or of the row filter of the view it grants.
    """

    rule: str
    file: str
    line: int
    effect: str
    matched: bool
    why: str
    parts: tuple[Part, ...] = ()

    @property
    def because(self) -> str:
        """Why, with what each part of the condition came to."""
        told = ", ".join(f"`{part.text}` {part.result}" for part in self.parts if part.depth == 0)
        return f"{self.why}: {told}" if told else self.why

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "rule": self.rule,
            "file": self.file,
            "line": self.line,
            "effect": self.effect,
            "matched": self.matched,
            "because": self.because,
        }


class RuleBook:
    """The rules of one tenant with their places.

    Args:
        policies: The loaded documents.
        plans: Of the tenant.
    """

    def __init__(self, policies: PolicySet, plans: Plans) -> None:
        self._plans = plans
        self._tenancy = tenancy = plans.tenancy
        self._places: dict[str, tuple[str, int]] = {}
        self._filters: dict[str, str] = {}
        self._written: dict[str, str] = {}  # the time at which a rule ends, as the document has it
        for document in policies.of(tenancy.name):
            value = document.value
            if isinstance(value, Access):
                for index, allow in enumerate(value.spec.allow):
                    self._places[allow.id] = document.file, document.line_of("spec", "allow", index)
                    self._written[allow.id] = allow.expires or ""
                for index, deny in enumerate(value.spec.deny):
                    self._places[deny.id] = document.file, document.line_of("spec", "deny", index)
            elif isinstance(value, Route):
                for index, route in enumerate(value.spec.routes):
                    self._places[route.id] = document.file, document.line_of("spec", "routes", index)
            elif isinstance(value, View) and value.spec.rows is not None:
                self._filters[value.metadata.name] = f"{document.file}:{document.line_of('spec', 'rows')}"

    def _trace(self, id: str, effect: str, because: str, asked: Outcome | None = None, *, matched: bool) -> RuleTrace:
        file, line = self._places.get(id, ("", 0))
        parts = () if asked is None else asked.parts
        return RuleTrace(id, file, line, effect, matched, because, parts)

    # --- reading -----------------------------------------------------------------------------------------------------

    def reading(
        self, team: str, type_: str, fields: Mapping[str, Any], *, view: str | None, now_ms: int
    ) -> tuple[RuleTrace, ...]:
        """The rules about *team* reading *type_*: denies and allows."""
        tenancy = self._tenancy
        members = tenancy.members.get(team, frozenset())
        found = []
        for rule in tenancy.read_denies_of(team, type_):
            because = f"team {team} may not read this type"
            if not rule.covers_type(type_):
                because = f"team {team} may not read a type that a route sends here"
            found.append(self._trace(rule.id, "deny", because, matched=True))
        named = (r for r in tenancy.allows if r.verb == "subscribe" and _names(r, team, members))
        allows = (rule for rule in named if rule.covers_type(type_))
        found.extend(self._read_allow(rule, team, fields, view=view, now_ms=now_ms) for rule in allows)
        return tuple(found)

    def _read_allow(
        self, rule: Rule, team: str, fields: Mapping[str, Any], *, view: str | None, now_ms: int
    ) -> RuleTrace:
        if not rule.grants_team(team, self._tenancy.members[team]):
            because = f"it does not name all agents of team {team}, and a team reads as a whole"
            return self._trace(rule.id, "allow", because, matched=False)
        if rule.ended(now_ms):
            return self._trace(rule.id, "allow", f"it ended at {self._written[rule.id]}", matched=False)
        if view not in (None, rule.view):
            because = f"it gives the view {rule.view}, and {view} was asked for"
            return self._trace(rule.id, "allow", because, matched=False)
        until = f" until {self._written[rule.id]}" if rule.expires_ms is not None else ""
        because = f"team {team} may read this type in the view {rule.view}{until}"
        bindings = {"event": fields, "data": fields.get("data", NO_DATA)}
        asked = None
        for condition in self._tenancy.rows[rule.view]:
            asked = outcome(condition, bindings)
            if asked.result != TRUE:
                break
        if asked is None:
            return self._trace(rule.id, "allow", because, matched=True)
        because = f"{because}, whose row filter ({self._filter_place(rule.view)}) is {asked.result}"
        return self._trace(rule.id, "allow", because, asked, matched=True)

    def _filter_place(self, view: str) -> str:
        like = self._tenancy.views[view].spec.like
        return " and ".join(self._filters[name] for name in (view, like) if name in self._filters)

    def routing(self, type_: str, fields: Mapping[str, Any], *, now_ms: int) -> tuple[RuleTrace, ...]:
        """The routes that decide whether an event reaches the readers of *type_*: copies to it, moves away from it."""
        given, wanted = versioned(fields["type"]), versioned(type_)
        inward = [route for route in self._tenancy.routes if versioned(route.to) == wanted] if given != wanted else []
        event = fields if inward else {**fields, "type": type_}
        routes = inward or [route for route in self._tenancy.routes if route.effect == "move"]
        about = [route for route in routes if route.covers_type(event["type"])]
        agent = publisher_of(self._plans, event, now_ms=now_ms) if about else None
        if agent is None:
            why = "no agent may publish this event, so nothing is made of it"
            return tuple(self._trace(route.id, route.effect, why, matched=False) for route in about)
        return tuple(self._route(route, agent, event) for route in about)

    # --- publishing --------------------------------------------------------------------------------------------------

    def publishing(self, agent: str, fields: Mapping[str, Any], *, allowed: bool, now_ms: int) -> tuple[RuleTrace, ...]:
        """The rules about *agent* publishing this event: denies, allows, and where it is allowed the routes."""
        tenancy, type_ = self._tenancy, fields["type"]
        denies = (rule for rule in tenancy.publish_denies(agent) if rule.covers_type(type_))
        allows = (rule for rule in tenancy.publishing(agent) if rule.covers_type(type_))
        routes = (route for route in tenancy.routes if allowed and route.covers_type(type_))
        return (
            *(self._publish_deny(rule, agent, fields) for rule in denies),
            *(self._publish_allow(rule, agent, fields, now_ms=now_ms) for rule in allows),
            *(self._route(route, agent, fields) for route in routes),
        )

    def _bindings(self, agent: str, fields: Mapping[str, Any]) -> dict[str, object]:
        tenancy = self._tenancy
        principal = {
            "agent": agent,
            "team": tenancy.team_of[agent],
            "tenant": tenancy.name,
            "id": self._plans.spiffe_id(agent),
        }
        return {"event": fields, "data": fields.get("data", NO_DATA), "principal": principal}

    def _publish_deny(self, rule: Rule, agent: str, fields: Mapping[str, Any]) -> RuleTrace:
        if rule.when is None:
            return self._trace(rule.id, "deny", f"agent {agent} may not publish this type", matched=True)
        asked = outcome(rule.when, self._bindings(agent, fields))
        because = f"{asked.said}, and a deny that fails is a match" if asked.failed else asked.said
        return self._trace(rule.id, "deny", because, asked, matched=asked.result != FALSE)

    def _publish_allow(self, rule: Rule, agent: str, fields: Mapping[str, Any], *, now_ms: int) -> RuleTrace:
        team = self._tenancy.team_of[agent]
        if not _fits(rule, team, fields["source"]):
            lines = ", ".join(glob.text for glob in rule.sources)
            because = f"the source is not /{team}, nor below it" + (f", nor one of {lines}" if lines else "")
            return self._trace(rule.id, "allow", because, matched=False)
        if rule.ended(now_ms):
            return self._trace(rule.id, "allow", f"it ended at {self._written[rule.id]}", matched=False)
        if rule.when is None:
            because = f"agent {agent} may publish this type from this source"
            return self._trace(rule.id, "allow", because, matched=True)
        asked = outcome(rule.when, self._bindings(agent, fields))
        because = f"{asked.said}, and an allow that fails is no match" if asked.failed else asked.said
        return self._trace(rule.id, "allow", because, asked, matched=asked.result == TRUE)

    def _route(self, route: RouteRule, agent: str, fields: Mapping[str, Any]) -> RuleTrace:
        if not route.covers_source(fields["source"]):
            return self._trace(route.id, route.effect, "the source is none of the route's", matched=False)
        goes = f"it goes to {route.to}" + (", and not to the readers of its own type" if route.effect == "move" else "")
        if route.when is None:
            return self._trace(route.id, route.effect, goes, matched=True)
        asked = outcome(route.when, self._bindings(agent, fields))
        moved = asked.failed and route.effect == "move"
        matched = asked.result == TRUE or moved
        because = f"{asked.said}; {goes}" if matched else asked.said
        if asked.failed:
            because += ", as a move that fails is a match" if moved else ", and a copy that fails is no match"
        return self._trace(route.id, route.effect, because, asked, matched=matched)

    def hangs_on_the_event(self, id: str, agent: str, fields: Mapping[str, Any]) -> bool:
        """Whether the allow *id* matched by its condition or its `sources`, which NATS does not ask."""
        rule = next(rule for rule in self._tenancy.publishing(agent) if rule.id == id)
        own = is_below(f"/{self._tenancy.team_of[agent]}", fields["source"])
        return rule.when is not None or not own


def _names(rule: Rule, team: str, members: frozenset[str]) -> bool:
    """Whether an allow is about *team* or one of its agents."""
    if rule.teams is not None and team not in rule.teams:
        return False
    return rule.agents is None or not members.isdisjoint(rule.agents)


def _fits(rule: Rule, team: str, source: str) -> bool:
    """Whether the allow is for events from *source*, as `decide.py` asks it."""
    if is_below(f"/{team}", source):
        return True
    return is_plain(source) and any(glob.matches(source) for glob in rule.sources)
