"""Policies on trial: asked about an event that is nobody's, outside any mesh, with keys that protect nothing.

What `mesh policy test` and `mesh policy explain` share, so that one event gets one answer from both. Every answer is
that of `Plans`: what agents enforce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from mesh.errors import AmbiguousView, BadFixture, InputError
from mesh.event import decode, draft_from_fields
from mesh.policy.bundle import compile_bundles
from mesh.policy.compile import Plans
from mesh.policy.decide import RouteMatch
from mesh.policy.documents import PolicySet
from mesh.policy.model import PolicyTest
from mesh.policy.routes import routed
from mesh.subjects import versioned

TRIAL_REVISION: Final = 0  # written into what a trial shows: no bundle has it
SITE, TRUST_DOMAIN = "local", "mesh.test"
_KEY_BYTES, _CIPHER_BYTES = 32, 64


class TrialKeys:
    """A key for every pseudonym domain and every cipher, the same everywhere: tokens of a trial prove nothing."""

    def domain(self, name: str) -> bytes:
        """The 32-byte key of the pseudonym domain *name*."""
        return blake2b(name.encode(), digest_size=_KEY_BYTES, person=b"trial-domain").digest()

    def cipher(self, name: str) -> bytes:
        """The 64-byte key of the cipher *name*."""
        return blake2b(name.encode(), digest_size=_CIPHER_BYTES, person=b"trial-cipher").digest()


TRIAL_KEYS: Final = TrialKeys()


def plans_of(policies: PolicySet, *, site: str = SITE, trust_domain: str = TRUST_DOMAIN) -> dict[str, Plans]:
    """The plans of each tenant, of a bundle that is never handed out.

    Raises:
        BadBundle: A tenant's policies are too large for one.
    """
    held = PolicySet(tuple(d for d in policies.documents if not isinstance(d.value, PolicyTest)))
    bundles = compile_bundles(held, revision=1, site=site, trust_domain=trust_domain, created_ms=0)
    return {tenant: Plans(bundle) for tenant, bundle in bundles.items()}


def accepted(event: bytes | Mapping[str, Any], *, type_: str | None = None, now_ms: int) -> dict[str, Any]:
    """The fields of *event* as the agent's door takes it.

    Args:
        event: One CloudEvent, as JSON or as fields.
        type_: Fills in the event's type where it has none.
        now_ms: Unix milliseconds; its time where it has none.

    Raises:
        BadFixture: It is no event that an agent takes; the message says why.
    """
    try:
        fields = decode(event) if isinstance(event, bytes) else event
        if type_ is not None and "type" not in fields:
            fields = {**fields, "type": type_}
        return draft_from_fields(fields, now_ms=now_ms).fields
    except InputError as error:
        raise BadFixture(
            f"an agent would not take this event: {error.message}",
            expected=error.expected,
            got=error.got,
            next=error.next or "correct the event",
        ) from error


@dataclass(frozen=True, slots=True)
class Answer:
    """What the policies make of one event.

    Attributes:
        allowed: Whether the team is handed the event, or the agent may publish it.
        rule: The id of the rule that decided, or None.
        reason: One of `decide.REASONS`.
        view: The view a reader was asked in; empty where there was none, and for a publisher.
        event: What a reader is handed; None where it is handed nothing, and for a publisher.
        original: The event before masking. Of a route's copy: the copy.
        copies: View -> what that view shows, of a publisher's event that no move takes away.
    """

    allowed: bool
    rule: str | None
    reason: str
    view: str = ""
    event: dict[str, Any] | None = None
    original: Mapping[str, Any] = field(default_factory=dict)
    copies: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def ask_reader(
    plans: Plans, team: str, type_: str, fields: Mapping[str, Any], *, view: str | None = None, now_ms: int
) -> Answer:
    """What *team* is handed of *fields* where it subscribes to *type_*.

    Args:
        plans: Of the tenant.
        team: The reader.
        type_: Logical.
        fields: An accepted event of that type.
        view: Which of its views the team reads; needed where its grants give several.
        now_ms: Unix milliseconds, for grants that end.

    Raises:
        AmbiguousView: Several views, and *view* does not say which.
    """
    name = view if view is not None else _view_of(plans, team, type_, now_ms=now_ms)
    read = plans.reader(team, type_, name, now_ms=now_ms)
    if not read.allowed:
        return Answer(allowed=False, rule=read.rule, reason=read.reason, view=name, original=fields)
    plan = plans.view(name, type_)
    if not plan.rows(fields):
        return Answer(allowed=False, rule=None, reason="row-filter", view=name, original=fields)
    event = shown(plans, name, type_, fields)
    return Answer(allowed=True, rule=read.rule, reason=read.reason, view=name, event=event, original=fields)


def _view_of(plans: Plans, team: str, type_: str, *, now_ms: int) -> str:
    """The one view in which *team* reads *type_*; empty where it reads none."""
    read: dict[str, str | None] = {}
    for lasting in plans.views(type_):
        decision = plans.reader(team, type_, lasting.plan.name, now_ms=now_ms)
        if decision.allowed:
            read[lasting.plan.name] = decision.rule
    if len(read) > 1:
        views = ", ".join(read)
        raise AmbiguousView(
            f"the grants of team `{team}` give {len(read)} views of {type_}: {views}",
            expected="which of them is meant",
            got="no view",
            next=f"name one of {views}",
            grants=list(read.values()),
        )
    return next(iter(read), "")


def shown(plans: Plans, view: str, type_: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """*fields* as *view* shows them, with the mesh's own attributes and without the key of the partition."""
    event: dict[str, Any] = plans.view(view, type_).mask(dict(fields), TRIAL_KEYS)
    event.pop("partitionkey", None)  # a token under a key of the source's, which a trial has not
    return event | {"tenant": plans.bundle.tenant, "view": view, "policyrevision": TRIAL_REVISION}


def ask_delivery(
    plans: Plans, team: str, type_: str, fields: Mapping[str, Any], *, view: str | None = None, now_ms: int
) -> Answer:
    """What *team* is handed under *type_* once the event *fields* has been published: as `ask_reader`, routes included.

    An event of another type is asked for as the copy that a route makes of it, where some route leads to *type_*; where
    none does, it stands for an event of that type. An event that a move takes away reaches no reader of its own type.

    Raises:
        AmbiguousView: As `ask_reader`.
    """
    given = versioned(str(fields["type"]))
    wanted = versioned(type_)
    if given != wanted and wanted in {versioned(route.to) for route in plans.tenancy.routes}:
        made = (match.route for match in routes_of(plans, fields, now_ms=now_ms))
        route = next((route for route in made if versioned(route.to) == wanted), None)
        if route is None:
            return Answer(allowed=False, rule=None, reason="no-allow-matched", original=fields)
        return ask_reader(plans, team, type_, routed(fields, route), view=view, now_ms=now_ms)
    event = dict(fields) | {"type": type_}
    answer = ask_reader(plans, team, type_, event, view=view, now_ms=now_ms)
    moves = (match for match in routes_of(plans, event, now_ms=now_ms) if match.route.effect == "move")
    moved = next(moves, None) if answer.allowed else None
    if moved is None:
        return answer
    reason = "error-in-deny" if moved.failed else "rule"
    return Answer(allowed=False, rule=moved.route.id, reason=reason, view=answer.view, original=event)


def publisher_of(plans: Plans, fields: Mapping[str, Any], *, now_ms: int) -> str | None:
    """The first agent, by name, that may publish *fields*; None where no agent may."""
    agents = sorted(plans.tenancy.team_of)
    return next((a for a in agents if plans.publisher(a).decide(fields, now_ms=now_ms).allowed), None)


def routes_of(plans: Plans, fields: Mapping[str, Any], *, now_ms: int) -> tuple[RouteMatch, ...]:
    """The routes that *fields* take when `publisher_of` publishes them; none where no agent may."""
    if not plans.tenancy.routes:
        return ()
    agent = publisher_of(plans, fields, now_ms=now_ms)
    return () if agent is None else plans.publisher(agent).routes(fields, now_ms=now_ms)


def ask_publisher(plans: Plans, agent: str, fields: Mapping[str, Any], *, now_ms: int) -> Answer:
    """What becomes of *fields* when *agent* publishes them."""
    type_ = str(fields["type"])
    decision = plans.publisher(agent).decide(fields, now_ms=now_ms)
    routes = plans.publisher(agent).routes(fields, now_ms=now_ms) if decision.allowed else ()
    kept = not any(match.route.effect == "move" for match in routes)
    views = [plan for plan in decision.views if plan.rows(fields)] if kept else []
    copies = {plan.name: shown(plans, plan.name, type_, fields) for plan in views}
    return Answer(allowed=decision.allowed, rule=decision.rule, reason=decision.reason, original=fields, copies=copies)
