"""One decision taken apart: what the policies say of one event, the rules that could have decided, and every mask.

The answer is that of `Plans`, which agents enforce; the reasons beside it come from the same documents, with file and
line. `source-not-allowed` is told as `no-allow-matched`, and the trace says of each allow why it did not match.

Outside a mesh every key is a test key (`trial.py`), so tokens and ciphertexts here are nobody's. Values of the event
stand in `event` and in the copies, nowhere else.

Source: design section 4, Deciding, Silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.errors import AmbiguousView, BadPattern
from mesh.event import Draft
from mesh.journey import outbound, partition_token
from mesh.jsontext import decode
from mesh.policy.compile import Plans
from mesh.policy.documents import PolicySet
from mesh.policy.enforced import Enforced
from mesh.policy.explain_rules import RuleBook, RuleTrace
from mesh.policy.paths import Path
from mesh.policy.trial import TRIAL_KEYS, TRIAL_REVISION, Answer, ask_delivery

TRIAL_SOURCE_KEY: Final = b"mesh-policy-trial-source-key-32b"  # what partition keys and slots are hashed with here


@dataclass(frozen=True, slots=True)
class ShownCopy:
    """One copy that publishing the event makes; `route` is the rule that made it, or None for the event itself."""

    view: str
    type: str
    route: str | None
    event: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {"view": self.view, "type": self.type, "route": self.route, "event": self.event}


@dataclass(frozen=True, slots=True)
class PathMasks:
    """What became of the values at one place of the policies' paths.

    Attributes:
        path: A classified path that meets there, or `unclassified`; where several meet, each has its entry.
        tags: What all paths that meet there carry.
        masks: What the view's lines say of each tag; of a published event, what each view chose.
        chosen: The strictest; of a published event, with the view it was chosen for.
    """

    path: str
    tags: tuple[str, ...]
    masks: tuple[str, ...]
    chosen: str

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {"path": self.path, "tags": list(self.tags), "masks": list(self.masks), "chosen": self.chosen}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the policies make of one event, and why.

    Attributes:
        allowed: Whether the team is handed it, or the agent may publish it.
        rule: The id of the rule that decided, or None where none did.
        reason: `rule`, `no-allow-matched`, `error-in-deny`, `row-filter` or `no-valid-bundle`.
        view: The view a reader is asked in; None where there is none, and for a publisher.
        event: What a reader is handed; None where it is handed nothing, and for a publisher.
        copies: What publishing makes; None for a reader.
        enforced: `nats` where NATS alone comes to this answer, `agent only` where it hangs on what agents alone ask.
        rules: Every rule that could have decided: denies, allows, routes.
        paths: Every place in the event, by the policies' paths.
        revision: Of the bundle; 0 outside a mesh.
    """

    allowed: bool
    rule: str | None
    reason: str
    view: str | None = None
    event: dict[str, Any] | None = None
    copies: tuple[ShownCopy, ...] | None = None
    enforced: Enforced = "nats"
    rules: tuple[RuleTrace, ...] = ()
    paths: tuple[PathMasks, ...] = ()
    revision: int = TRIAL_REVISION

    def as_dict(self) -> dict[str, Any]:
        """For machines: the keys that scripts rely on."""
        answer: dict[str, Any] = {
            "decision": "allow" if self.allowed else "deny",
            "rule": self.rule,
            "reason": self.reason,
            "view": self.view,
            "event": self.event,
        }
        if self.copies is not None:
            answer["copies"] = [copy.as_dict() for copy in self.copies]
        answer["revision"] = self.revision
        answer["enforced"] = self.enforced
        answer["trace"] = [*(rule.as_dict() for rule in self.rules), *(path.as_dict() for path in self.paths)]
        return answer


def no_bundle(*, publishing: bool) -> Explanation:
    """The answer where there are no policies: no bundle means no."""
    return Explanation(allowed=False, rule=None, reason="no-valid-bundle", copies=() if publishing else None)


# --- reading ---------------------------------------------------------------------------------------------------------


def explain_read(
    policies: PolicySet,
    plans: Plans,
    team: str,
    type_: str,
    fields: Mapping[str, Any],
    *,
    view: str | None = None,
    now_ms: int,
) -> Explanation:
    """What *team* is handed of an event, and why.

    Args:
        policies: The loaded documents; they know their lines.
        plans: Of the tenant, made from them.
        team: The reader.
        type_: Logical.
        fields: An accepted event, as its source has it; never changed. One of another type is asked for as the copy
            that a route makes of it, where some route leads to *type_*; else it counts as of that type.
        view: Which of the team's views; needed where its grants give several.
        now_ms: Unix milliseconds, for grants that end.

    Raises:
        AmbiguousView: Several views, and *view* does not say which; `grants` names the rules.
    """
    book = RuleBook(policies, plans)
    try:
        answer = ask_delivery(plans, team, type_, fields, view=view, now_ms=now_ms)
    except AmbiguousView:
        raise _ambiguous(plans, team, type_, now_ms=now_ms) from None
    asked = answer.original  # the event itself, or the copy that a route makes of it
    shown_in = answer.view if answer.allowed or answer.reason == "row-filter" else None
    rules = book.reading(team, type_, asked, view=view, now_ms=now_ms)
    return Explanation(
        allowed=answer.allowed,
        rule=answer.rule,
        reason=answer.reason,
        view=shown_in,
        event=_with_partition(answer.event, asked),
        enforced=_read_enforced(plans, answer, team, type_, view, now_ms=now_ms),
        rules=(*rules, *book.routing(type_, fields, now_ms=now_ms)),
        paths=() if shown_in is None else tuple(_paths(plans, shown_in, type_, asked)),
    )


def _ambiguous(plans: Plans, team: str, type_: str, *, now_ms: int) -> AmbiguousView:
    """The error that names every grant to choose from."""
    grants = [r for r in plans.tenancy.reading(team) if r.covers_type(type_) and not r.ended(now_ms)]
    choices = ", ".join(f"{rule.id} (--view {rule.view})" for rule in grants)
    return AmbiguousView(
        f"{len(grants)} grants let team {team} read {type_}, in different views: {choices}",
        expected=f"--view {' or '.join(sorted({rule.view for rule in grants}))}",
        got="no --view",
        next="name the view that is meant",
        grants=[rule.id for rule in grants],
    )


def _with_partition(event: dict[str, Any] | None, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """*event* with the pseudonym that every view has in place of the partition key."""
    if event is None or "partitionkey" not in fields:
        return event
    return event | {"partitionkey": partition_token(TRIAL_SOURCE_KEY, fields["partitionkey"])}


def _read_enforced(plans: Plans, answer: Answer, team: str, type_: str, view: str | None, *, now_ms: int) -> Enforced:
    if answer.allowed:
        return "nats"
    grants = plans.grants(now_ms=now_ms).teams.get(team, ())  # a row filter says no where NATS says yes
    granted = any(g.pattern.matches(type_) and view in (None, g.view) for g in grants)
    return "agent only" if granted else "nats"


def _paths(plans: Plans, view: str, type_: str, fields: Mapping[str, Any]) -> Iterator[PathMasks]:
    for place in plans.view(view, type_).masking.trace(fields):
        for path in _each(place.path):
            yield PathMasks(path, place.tags, place.masks, place.chosen)


def _each(paths: str) -> Iterator[str]:
    """The paths that meet at one place, joined by ` + `; a quoted name may hold that too."""
    path = ""
    for piece in paths.split(" + "):
        path = f"{path} + {piece}" if path else piece
        try:
            Path.parse(path)
        except BadPattern:
            continue
        yield path
        path = ""


# --- publishing ------------------------------------------------------------------------------------------------------


def explain_publish(
    policies: PolicySet, plans: Plans, agent: str, fields: Mapping[str, Any], *, now_ms: int
) -> Explanation:
    """What becomes of an event that *agent* publishes, and why.

    Args:
        policies: The loaded documents; they know their lines.
        plans: Of the tenant, made from them.
        agent: The publisher.
        fields: An accepted event; never changed.
        now_ms: Unix milliseconds, for rights that end.
    """
    book = RuleBook(policies, plans)
    decision = plans.publisher(agent).decide(fields, now_ms=now_ms)
    rules = book.publishing(agent, fields, allowed=decision.allowed, now_ms=now_ms)
    copies = _copies(plans, agent, fields, now_ms=now_ms) if decision.allowed else ()
    unmatched = decision.reason == "source-not-allowed"
    return Explanation(
        allowed=decision.allowed,
        rule=None if unmatched else decision.rule,
        reason="no-allow-matched" if unmatched else decision.reason,
        copies=copies,
        enforced=_publish_enforced(book, plans, agent, fields, decision.rule, allowed=decision.allowed, now_ms=now_ms),
        rules=rules,
        paths=tuple(_paths_of_copies(plans, copies, fields)),
    )


def _copies(plans: Plans, agent: str, fields: Mapping[str, Any], *, now_ms: int) -> tuple[ShownCopy, ...]:
    """The copies that an agent would make, by the code it makes them with."""
    made = outbound(
        Draft(dict(fields)),
        plans.publisher(agent),
        TRIAL_KEYS,
        site=plans.bundle.site,
        tenant=plans.bundle.tenant,
        revision=TRIAL_REVISION,
        dedupe_key=TRIAL_SOURCE_KEY,
        now_ms=now_ms,
    )
    return tuple(ShownCopy(c.view, c.type, c.route or None, decode(c.body)) for c in made.copies)


def _publish_enforced(
    book: RuleBook, plans: Plans, agent: str, fields: Mapping[str, Any], rule: str | None, *, allowed: bool, now_ms: int
) -> Enforced:
    if allowed:
        return "agent only" if rule is not None and book.hangs_on_the_event(rule, agent, fields) else "nats"
    grants = plans.grants(now_ms=now_ms).agents.get(agent)
    granted = grants is not None and any(g.pattern.matches(fields["type"]) for g in grants.publish)
    return "agent only" if granted else "nats"


def _paths_of_copies(plans: Plans, copies: tuple[ShownCopy, ...], fields: Mapping[str, Any]) -> Iterator[PathMasks]:
    """Each place once, with what every copy's view makes of it."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}
    for copy in copies:
        where = copy.view if copy.route is None else f"{copy.view} of {copy.type}"
        for place in _paths(plans, copy.view, copy.type, fields):
            found.setdefault((place.path, place.tags), {})[where] = place.chosen
    for (path, tags), chosen in found.items():
        masks = tuple(dict.fromkeys(chosen.values()))
        yield PathMasks(path, tags, masks, "; ".join(f"{where}: {mask}" for where, mask in chosen.items()))
