"""The parts of `diff` that are not about views: what agents may publish, where routes lead, how long trust lasts.

And how subscriptions are delivered, which gives nobody more or less.
"""

from __future__ import annotations

from collections.abc import Iterator

from mesh.policy.atoms import Atom
from mesh.policy.changes import Change, Delivery, listed
from mesh.policy.compile import Plans
from mesh.policy.matrix import NONE
from mesh.policy.model import Subscription
from mesh.policy.owners import owners_of_rule
from mesh.policy.pacing import changed
from mesh.policy.routes import RouteRule
from mesh.policy.rules import Rule
from mesh.policy.texts import instant_text
from mesh.policy.wider import Kind, Saying, conjuncts, disjuncts, kind_of, normal_of
from mesh.staleness import Staleness


def publishing_changes(old: Plans, new: Plans, kinds: list[Atom], now_ms: int) -> Iterator[Change]:
    """What each agent may publish that it might not, and the other way round."""
    for agent in sorted({*old.tenancy.team_of, *new.tenancy.team_of}):
        for atom in kinds:
            was, now = _sayings(old, agent, atom, now_ms), _sayings(new, agent, atom, now_ms)
            kind = kind_of(was, now, Saying.within)
            if kind is not None:
                ids = {rule.id for rules in (*was.values(), *now.values()) for rule in rules}
                owners = {owner for rule in ids for plans in (old, new) for owner in owners_of_rule(plans, rule)}
                words = (_said(was), _said(now))
                yield Change(kind, "publish", agent, (atom.shown,), "", *words, tuple(sorted(owners)))


def _sayings(plans: Plans, agent: str, atom: Atom, now_ms: int) -> dict[Saying, tuple[Rule, ...]]:
    """The ways in which *agent* may publish *atom*, each with its allow and the denies that may refuse an event."""
    tenancy = plans.tenancy
    denies = tuple(rule for rule in tenancy.publish_denies(agent) if atom.within(rule.patterns))
    if any(rule.when is None for rule in denies):
        return {}
    refusing = frozenset(part for rule in denies for part in disjuncts(rule.when))
    own = {f"/{tenancy.team_of[agent]}"} if agent in tenancy.team_of else set()
    found = {}
    for rule in tenancy.publishing(agent):
        if atom.within(rule.patterns) and not rule.ended(now_ms):
            sources = frozenset(own | {glob.text for glob in rule.sources})
            found[Saying(sources, conjuncts(rule.when), rule.expires_ms, refusing)] = (rule, *denies)
    return found


def _said(sayings: dict[Saying, tuple[Rule, ...]]) -> str:
    def one(saying: Saying, rules: tuple[Rule, ...]) -> str:
        allow, *denies = rules
        words = [f"{allow.id} from {', '.join(sorted(saying.sources))}"]
        if allow.when is not None:
            words.append(f"when {allow.when.text}")
        if saying.until_ms is not None:
            words.append(f"until {instant_text(saying.until_ms)}")
        words.extend(f"unless {deny.id}: {deny.when.text}" for deny in denies if deny.when is not None)
        return ", ".join(words)

    return listed(one(saying, rules) for saying, rules in sayings.items()) or NONE


# --- routes, conditions ----------------------------------------------------------------------------------------------


def route_changes(old: Plans, new: Plans) -> Iterator[Change]:
    """Routes that came, went, or lead elsewhere. What a move takes away from its readers is no less to others."""
    was, now = ({route.id: route for route in plans.tenancy.routes} for plans in (old, new))
    for name in sorted({*was, *now}):
        before, after = was.get(name), now.get(name)
        if before is not None and after is not None and _same_route(before, after):
            continue
        types = tuple(p.written for route in (before, after) if route is not None for p in route.patterns)
        moves = "move" in {route.effect for route in (before, after) if route is not None}
        kind: Kind = "changed" if moves or (before and after) else "widened" if after else "narrowed"
        owners = {*owners_of_rule(old, name), *owners_of_rule(new, name)}
        told = (_told(before), _told(after))
        yield Change(kind, "route", name, tuple(dict.fromkeys(types)), "", *told, tuple(sorted(owners)))


def _same_route(one: RouteRule, two: RouteRule) -> bool:
    def parts(route: RouteRule) -> tuple[object, ...]:
        return set(route.patterns), set(route.sources), normal_of(route.when), route.effect, route.to

    return parts(one) == parts(two)


def _told(route: RouteRule | None) -> str:
    if route is None:
        return NONE
    sources = f" from {', '.join(glob.text for glob in route.sources)}" if route.sources else ""
    when = f" when {route.when.text}" if route.when is not None else ""
    return f"{route.effect} to {route.to}{sources}{when}"


def agent_changes(old: Plans, new: Plans) -> Iterator[Change]:
    """Workloads that act for a team and did not, or act as another agent: they read and publish all that it may."""
    for agent in sorted({*old.tenancy.team_of, *new.tenancy.team_of}):
        was, now = _workload(old, agent), _workload(new, agent)
        if was != now:
            kind: Kind = "widened" if was == NONE else "narrowed" if now == NONE else "changed"
            yield Change(kind, "agent", agent, (), "", was, now, _owners_of_tenant(old, new))


def _workload(plans: Plans, agent: str) -> str:
    """The team of *agent*, and its identity where it has one of its own."""
    tenancy = plans.tenancy
    if agent not in tenancy.team_of:
        return NONE
    identity = tenancy.tenant.spec.identities.get(agent)
    return f"team {tenancy.team_of[agent]}" + (f" as {identity}" if identity else "")


def trust_changes(old: Plans, new: Plans) -> Iterator[Change]:
    """How long consumers rely on a trust statement that nobody renews: longer is more, to whoever has a stolen key."""
    was, now = old.staleness, new.staleness
    if was.limit_s != now.limit_s:
        kind: Kind = "widened" if was.limit_s < now.limit_s else "narrowed"
        words = (_patience(was), _patience(now))
        yield Change(kind, "trust", new.bundle.tenant, (), "", *words, _owners_of_tenant(old, new))


def _patience(staleness: Staleness) -> str:
    minutes = staleness.limit_s / 60
    mode = "strict" if staleness.strict else "grace"
    return f"{mode}: delivery pauses once trust statements are {minutes:g} min old"


def _owners_of_tenant(old: Plans, new: Plans) -> tuple[str, ...]:
    return tuple(sorted({plans.tenancy.tenant.metadata.owner for plans in (old, new)} - {""}))


def owner_changes(old: Plans, new: Plans) -> Iterator[Change]:
    """Documents that somebody else owns now: the next widening would ask another one."""
    was, now = _owned(old), _owned(new)
    for name in sorted(was.keys() & now.keys()):
        if was[name] != now[name]:
            words = (was[name] or NONE, now[name] or NONE)
            yield Change("changed", "owner", name, (), "", *words, tuple(sorted({was[name], now[name]} - {""})))


def _owned(plans: Plans) -> dict[str, str]:
    documents = (document for document in plans.bundle.policies if not isinstance(document, Subscription))
    return {f"{d.kind} {d.metadata.name}": getattr(d.metadata, "owner", "") for d in documents}


def delivery_changes(old: Plans, new: Plans, now_ms: int) -> Iterator[Delivery]:
    """Subscriptions that both have, and that are delivered otherwise."""
    was, now = (plans.grants(now_ms=now_ms).subscriptions for plans in (old, new))
    for key in sorted(was.keys() & now.keys()):
        before, after = changed(was[key], now[key])
        if before or after:
            yield Delivery("/".join(key), before, after)


def changed_conditions(old: Plans, new: Plans) -> Iterator[str]:
    """Rules, routes and views whose condition is another one, or came, or went."""
    was, now = _texts(old), _texts(new)
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            yield name


def _texts(plans: Plans) -> dict[str, frozenset[str]]:
    tenancy = plans.tenancy
    rules: list[Rule | RouteRule] = [*tenancy.allows, *tenancy.denies, *tenancy.routes]
    found = {rule.id: frozenset({normal_of(rule.when)}) for rule in rules if rule.when is not None}
    for view, rows in tenancy.rows.items():
        if rows:
            found[f"rows of {view}"] = frozenset(normal_of(row) for row in rows)
    return found
