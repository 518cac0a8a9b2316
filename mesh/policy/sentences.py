"""Policies read back in English: one sentence for each rule, with the line it stands on.

Whoever wrote a rule sees here what it came to, in words that are not the file's own: an empty list, a key in the wrong
place or two list items where one was meant cannot hide behind their own syntax.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.policy.compile import Plans
from mesh.policy.documents import Document, PolicySet
from mesh.policy.enforced import Enforcement
from mesh.policy.generalize import V4_BITS, V6_BITS
from mesh.policy.model import (
    Access,
    Allow,
    Classification,
    Deny,
    PolicyTest,
    Route,
    RouteLine,
    Subscription,
    Tenant,
    View,
    Who,
)
from mesh.policy.model_masks import MaskLine, With
from mesh.policy.pacing import unusual

AGENT_ONLY: Final = "agent only"


@dataclass(frozen=True, slots=True)
class Sentence:
    """One rule in words.

    Attributes:
        file, line: Where it stands.
        tenant: Whose it is.
        kind: `allow`, `deny`, `copy`, `move`, `mask`, `rows`, `otherwise`, `classification`, `subscription`, `tenant`
            or `test`.
        name: The rule's id; of other sentences, the document's name.
        says: The sentence.
        enforced: Of an allow or deny `nats` or `agent only`; else empty.
    """

    file: str
    line: int
    tenant: str
    kind: str
    name: str
    says: str
    enforced: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "file": self.file,
            "line": self.line,
            "tenant": self.tenant,
            "kind": self.kind,
            "name": self.name,
            "says": self.says,
            "enforced": self.enforced or None,
        }


def sentences(policies: PolicySet, plans: Mapping[str, Plans], *, now_ms: int) -> list[Sentence]:
    """Every rule of *policies* as a sentence, in the order of files and lines.

    Args:
        policies: Loaded, so checked.
        plans: Of each tenant, made from them.
        now_ms: Unix milliseconds, for grants that end.
    """
    readers = {tenant: _Reader(made, now_ms) for tenant, made in plans.items()}
    found = [sentence for document in policies.documents for sentence in readers[document.value.tenant].read(document)]
    return sorted(found, key=lambda sentence: (sentence.file, sentence.line))


class _Reader:
    def __init__(self, plans: Plans, now_ms: int) -> None:
        self._tenant = plans.bundle.tenant
        self._grants = plans.grants(now_ms=now_ms)
        self._enforcement = Enforcement(plans, now_ms=now_ms)

    def read(self, document: Document) -> Iterator[Sentence]:
        value = document.value
        match value:
            case Access():
                for index, allow in enumerate(value.spec.allow):
                    yield self._rule(document, ("spec", "allow", index), "allow", allow.id, allow_says(allow))
                for index, deny in enumerate(value.spec.deny):
                    yield self._rule(document, ("spec", "deny", index), "deny", deny.id, deny_says(deny))
            case Route():
                for index, route in enumerate(value.spec.routes):
                    line = document.line_of("spec", "routes", index)
                    says = route_says(route)
                    yield Sentence(document.file, line, self._tenant, route.effect, route.id, says)
            case View():
                yield from self._view(document, value)
            case Subscription():
                yield self._said(document, ("spec",), "subscription", self._subscription(value))
            case Classification():
                yield self._said(document, ("spec",), "classification", _classification_says(value))
            case Tenant():
                yield self._said(document, ("spec",), "tenant", _tenant_says(value))
            case PolicyTest():
                yield self._said(document, ("spec",), "test", _test_says(value))

    def _said(self, document: Document, at: tuple[str | int, ...], kind: str, says: str) -> Sentence:
        name = document.value.metadata.name
        return Sentence(document.file, document.line_of(*at), self._tenant, kind, name, says)

    def _rule(self, document: Document, at: tuple[str | int, ...], kind: str, id: str, says: str) -> Sentence:
        enforced = self._enforcement.of(id)
        if enforced == AGENT_ONLY:
            says = f"{says.removesuffix('.')} (agent only: NATS cannot tell)."
        return Sentence(document.file, document.line_of(*at), self._tenant, kind, id, says, enforced)

    def _view(self, document: Document, view: View) -> Iterator[Sentence]:
        spec, name = view.spec, view.metadata.name
        if spec.rows is not None:
            says = f"The view {name} shows only events where `{_on_one_line(spec.rows)}`."
            yield self._said(document, ("spec", "rows"), "rows", says)
        for index, line in enumerate(spec.mask):
            says = f"In the view {name}, what is tagged {_either(line.tags)} {mask_says(line)}."
            yield self._said(document, ("spec", "mask", index), "mask", says)
        if spec.like is not None:
            says = f"The view {name} masks as {spec.like} does, and shows only what that one's rows let through too."
            yield self._said(document, ("spec", "like"), "otherwise", says)
        elif spec.otherwise is not None:
            rest = "everything else" if spec.mask else "everything"
            does = {"clear": "shows as it is", "redact": "is redacted", "drop": "is left out"}[spec.otherwise]
            yield self._said(document, ("spec", "otherwise"), "otherwise", f"In the view {name}, {rest} {does}.")

    def _subscription(self, value: Subscription) -> str:
        team, name = value.metadata.team, value.metadata.name
        grant = self._grants.subscriptions[team, name]
        if not grant.active:
            return f"The subscription {name} of team {team} is inactive: {grant.reason}."
        start = {"new": "from new events on", "all": "from the first stored event on"}
        filters = listed(pattern.written for pattern in grant.filters)
        paces = "".join(f", {words}" for words in unusual(grant))
        says = (
            f"The subscription {name} of team {team} is active: it reads {filters} in the view {grant.view}"
            f" {start.get(grant.start, f'from {grant.start} on')}, tries an event {_times(grant.retry.attempts)}"
            f" and has {grant.max_in_flight} in hand at most{paces}"
        )
        return says + (" (agent only: a deny inside it that NATS cannot tell)." if grant.agent_only else ".")


# --- one rule at a time ----------------------------------------------------------------------------------------------


def allow_says(rule: Allow) -> str:
    """An allow as a sentence."""
    if rule.publish is not None:
        says = f"{_who(rule.who)} may publish {listed(rule.publish)} from the team's own source or below"
        if rule.sources:
            says += f", or from {listed(rule.sources, 'or')}"
    else:
        says = f"{_who(rule.who)} may read {listed(rule.subscribe or ())} in the view {rule.view}"
        if rule.since is not None:
            says += f", with what is stored since {rule.since}"
    if rule.when is not None:
        says += f", when `{_on_one_line(rule.when)}`"
    if rule.expires is not None:
        says += f", until {rule.expires}"
    return says + _reason(rule.reason)


def deny_says(rule: Deny) -> str:
    """A deny as a sentence."""
    verb, types = ("publish", rule.publish) if rule.publish is not None else ("read", rule.subscribe)
    says = f"{_who(rule.who)} may never {verb} {listed(types or ())}"
    if rule.when is not None:
        says += f" when `{_on_one_line(rule.when)}`, nor when that cannot be told"
    return says + _reason(rule.reason)


def route_says(route: RouteLine) -> str:
    """A route as a sentence."""
    says = f"Every event of {listed(route.match.types, 'or')}"
    if route.match.sources:
        says += f" from {listed(route.match.sources, 'or')}"
    move = route.effect == "move"
    if route.when is not None:
        unsure = " or where that cannot be told" if move else ""
        says += f", when `{_on_one_line(route.when)}`{unsure},"
    if move:
        says += f" is moved to {route.to}: readers of its own type are not shown it"
    else:
        says += f" is copied to {route.to}"
    return says + _reason(route.reason)


def mask_says(line: MaskLine) -> str:
    """What becomes of what a mask line names: the end of a sentence."""
    with_ = line.params
    match line.action:
        case "clear":
            return "shows as it is"
        case "redact":
            return "is redacted"
        case "drop":
            return "is left out"
        case "pseudonym":
            return f"becomes a token of the domain {with_.domain} ({with_.bits} bits, {with_.algorithm})"
        case "encrypt":
            return f"is encrypted for {listed(with_.readers or ())} ({with_.mode})"
        case "truncate-ip":
            v4 = V4_BITS if with_.v4 is None else with_.v4
            v6 = V6_BITS if with_.v6 is None else with_.v6
            return f"keeps the first {v4} bits of an IPv4 and {v6} bits of an IPv6 address"
        case "generalize":
            return f"is generalized to {_generalized(with_)}"
        case _:
            return f"shows in part ({_part(with_)})"


def _part(with_: With) -> str:
    if with_.style is not None:
        return with_.style
    kept = [f"the {end} {count}" for end, count in (("first", with_.first), ("last", with_.last)) if count]
    return " and ".join(kept) or "nothing of it"


def _generalized(with_: With) -> str:
    if with_.date is not None:
        return f"the {with_.date}"
    if with_.number is not None:
        return f"a range between {listed(f'{edge:g}' for edge in with_.number)}"
    return f"a place of {with_.geo} decimals"


def _tenant_says(value: Tenant) -> str:
    teams = [
        f"{name} (" + (f"{listed(team.agents)})" if team.agents else "no agents)")
        for name, team in value.spec.teams.items()
    ]
    return f"The tenant {value.metadata.name} has the teams {listed(teams)}."


def _classification_says(value: Classification) -> str:
    fields = value.spec.fields
    tags = {tag for named in fields.values() for tag in named}
    types = listed(value.spec.types)
    return f"{_counted(len(fields), 'path')} of {types} {_carry(len(fields))} {_counted(len(tags), 'tag')}."


def _test_says(value: PolicyTest) -> str:
    cases, invariants = len(value.spec.cases), len(value.spec.invariants)
    return f"The test {value.metadata.name} has {_counted(cases, 'case')} and {_counted(invariants, 'invariant')}."


# --- words -----------------------------------------------------------------------------------------------------------


def _who(who: Who) -> str:
    teams = "" if who.teams is None else f"{'team' if len(who.teams) == 1 else 'teams'} {listed(who.teams)}"
    if who.agents is None:
        return teams[:1].upper() + teams[1:]
    agents = f"{'Agent' if len(who.agents) == 1 else 'Agents'} {listed(who.agents)}"
    return f"{agents} of {teams}" if teams else agents


def listed(items: Iterable[str], joint: str = "and") -> str:
    """*items* as English lists them: `a`, `a and b`, `a, b and c`."""
    *most, last = list(items) or ["nothing"]
    return f"{', '.join(most)} {joint} {last}" if most else last


def _either(tags: Iterable[str]) -> str:
    return listed(tags, "or")


def _reason(reason: str | None) -> str:
    return "." if reason is None else f" ({' '.join(reason.split())})."


def _on_one_line(condition: str) -> str:
    return " ".join(condition.split())


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _carry(count: int) -> str:
    return "carries" if count == 1 else "carry"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
