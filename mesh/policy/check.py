"""What each document must hold by itself: names, patterns, paths, tags, conditions, times.

Every fault is noted with the line it stands on, and the walk goes on: a person mends a file in one go.
`crosscheck.py` asks what documents must hold together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mesh.errors import ExpressionError
from mesh.policy.bind import Path as At
from mesh.policy.bind import shown
from mesh.policy.check_cases import check_policy_test
from mesh.policy.check_delivery import check_delivery, check_retry
from mesh.policy.check_fields import attempt, check_fields
from mesh.policy.check_masks import check_mask
from mesh.policy.documents import Document, Findings
from mesh.policy.expressions import compile_condition
from mesh.policy.model import (
    Access,
    Allow,
    Classification,
    Deny,
    Route,
    Subscription,
    Tenant,
    Trust,
    View,
)
from mesh.policy.routes import ROOTS_ROUTE
from mesh.policy.rules import ROOTS_PUBLISH, ROOTS_ROWS
from mesh.policy.texts import SPIFFE_RE, instant_ms, is_rule_id, seconds
from mesh.retry import MAX_DELAY_S
from mesh.staleness import FRESH_S
from mesh.subjects import Glob, Pattern, check_name, check_type, versioned

RESERVED_SUBSCRIPTIONS = frozenset({"tail", "replay"})  # their durables are ours


def check(document: Document, findings: Findings) -> None:
    """Check one document by itself."""
    _Checker(document, findings).check()


class _Checker:
    def __init__(self, document: Document, findings: Findings) -> None:
        self._document = document
        self._findings = findings

    def check(self) -> None:
        value = self._document.value
        metadata: Any = value.metadata
        for key in ("name", "tenant", "team"):
            text = getattr(metadata, key, None)
            if text is not None:
                self._name(text, ("metadata", key), reserved=isinstance(value, Subscription) and key == "name")
        if isinstance(value, Tenant):
            self._tenant(value)
        elif isinstance(value, Classification):
            self._patterns(value.spec.types, ("spec", "types"))
            check_fields(value, self._error)
        elif isinstance(value, View):
            self._view(value)
        elif isinstance(value, Access):
            self._access(value)
        elif isinstance(value, Route):
            self._routes(value)
        elif isinstance(value, Subscription):
            self._subscription(value)
        else:
            check_policy_test(value, self._error)

    def _error(self, at: At, message: str, fix: str) -> None:
        self._findings.error(self._document, at, message, fix)

    def _try(self, read: Callable[[str], object], text: str, at: At) -> Any:
        return attempt(read, text, at, self._error)

    def _name(self, text: str, at: At, *, reserved: bool = False) -> None:
        self._try(check_name, text, at)
        if reserved and text in RESERVED_SUBSCRIPTIONS:
            self._error(at, f"the subscription name `{text}` is taken by the mesh", "choose another name")

    def _patterns(self, texts: Iterable[str], at: At, *, literal_domain: bool = False) -> None:
        seen: set[str] = set()
        for index, text in enumerate(texts):
            pattern = self._try(Pattern.parse, text, (*at, index))
            if pattern is None:
                continue
            if literal_domain and pattern.domain is None:
                fix = "begin the pattern with the domain, such as `crm.>`: each domain has a stream of its own"
                self._error((*at, index), f"`{shown(text)}` publishes in every domain", fix)
            if pattern.text in seen:
                self._error((*at, index), f"`{shown(text)}` stands twice in this list", "remove one")
            seen.add(pattern.text)

    # --- Tenant ------------------------------------------------------------------------------------------------------

    def _tenant(self, value: Tenant) -> None:
        spec = value.spec
        owner: dict[str, str] = {}
        for team, members in spec.teams.items():
            at: At = ("spec", "teams", team)
            self._name(team, at)
            for index, agent in enumerate(members.agents):
                here = (*at, "agents", index)
                self._agent(agent, here, value.metadata.name)
                if agent in owner:
                    fix = "an agent runs for one team: remove it from the other, or run a second agent"
                    self._error(here, f"agent `{shown(agent)}` is in team `{shown(owner[agent])}` already", fix)
                owner.setdefault(agent, team)
        ids: dict[str, str] = {}
        for agent, spiffe_id in spec.identities.items():
            at = ("spec", "identities", agent)
            if agent not in owner:
                self._error(at, f"`{shown(agent)}` is an agent of no team", "add it to a team, or remove this line")
            if len(spiffe_id) > 2048 or SPIFFE_RE.fullmatch(spiffe_id) is None:  # noqa: PLR2004 - SPIFFE-ID, section 2.3
                self._error(at, "not a SPIFFE id", "write spiffe://<trust domain>/<path>")
            if spiffe_id in ids:
                self._error(at, f"agent `{shown(ids[spiffe_id])}` has this identity already", "give each its own")
            ids[spiffe_id] = agent
        check_retry(spec.delivery.retry, ("spec", "delivery", "retry"), self._error)
        self._trust(spec.trust)

    def _trust(self, trust: Trust) -> None:
        if trust.grace is None:
            return
        at: At = ("spec", "trust", "grace")
        grace: float | None = self._try(seconds, trust.grace, at)
        if trust.staleness == "strict":
            self._error(at, "`strict` has no grace: delivery pauses at once", "remove `grace`, or `staleness: strict`")
        elif grace is not None and not FRESH_S <= grace <= MAX_DELAY_S:
            fix = "use 1m to 24h; to pause at once write `staleness: strict`"
            self._error(at, f"`{shown(trust.grace)}` is no grace: trust is stale after a minute", fix)

    def _agent(self, text: str, at: At, tenant: str) -> None:
        owner, slash, name = text.rpartition("/")
        if slash and owner == tenant:
            self._error(at, f"`{shown(text)}` names an agent of this tenant by the tenant", f"write `{shown(name)}`")
        for part in (owner, name) if slash else (name,):
            self._name(part, at)

    # --- View --------------------------------------------------------------------------------------------------------

    def _view(self, value: View) -> None:
        spec = value.spec
        if spec.rows is not None:
            self._condition(spec.rows, ("spec", "rows"), ROOTS_ROWS)
        if spec.like is not None:
            self._name(spec.like, ("spec", "like"))
            if spec.mask:
                fix = "remove `mask`, or remove `like` and write all masks"
                self._error(("spec", "mask"), "a view with `like` takes its masks from there", fix)
        elif spec.otherwise is None:
            fix = "add `otherwise: redact`: unclassified fields and tags that no line names need a mask"
            self._error(("spec",), "the view has no `otherwise`", fix)
        for index, line in enumerate(spec.mask):
            at: At = ("spec", "mask", index)
            for number, tag in enumerate(line.tags):
                self._try(Glob.tag, tag, (*at, "tags", number))
            check_mask(line, at, self._error)

    def _condition(self, text: str, at: At, roots: frozenset[str]) -> None:
        try:
            compile_condition(text, roots=roots)
        except ExpressionError as error:
            self._error(
                at, f"the condition does not hold up: {error}", error.next or "see the CEL subset in the manual"
            )

    # --- Access ------------------------------------------------------------------------------------------------------

    def _access(self, value: Access) -> None:
        spec = value.spec
        if not spec.allow and not spec.deny:
            self._error(
                ("spec",), "an Access document without a rule", "add one to `allow` or `deny`, or remove the file"
            )
        for index, allow in enumerate(spec.allow):
            self._allow(allow, ("spec", "allow", index))
        for index, deny in enumerate(spec.deny):
            self._rule(deny, ("spec", "deny", index))

    def _rule(self, rule: Allow | Deny, at: At) -> None:
        self._id(rule.id, at)
        if rule.who.teams is None and rule.who.agents is None:
            self._error((*at, "who"), "`who` names nobody", "add `teams: [...]` or `agents: [...]`")
        if (rule.publish is None) == (rule.subscribe is None):
            self._error(at, "a rule has exactly one of `publish` and `subscribe`", "split it into two rules")
        for verb in ("publish", "subscribe"):
            texts = getattr(rule, verb)
            if texts is not None:
                domain = verb == "publish" and isinstance(rule, Allow)
                self._patterns(texts, (*at, verb), literal_domain=domain)
        if rule.when is not None:
            if rule.subscribe is not None:
                fix = "readers are filtered by rows: give the team a View with `rows:` instead"
                self._error((*at, "when"), "`when` has no place on a subscribe rule", fix)
            else:
                self._condition(rule.when, (*at, "when"), ROOTS_PUBLISH)

    def _id(self, text: str, at: At) -> None:
        if not is_rule_id(text):
            fix = "use lower-case words joined by single hyphens"
            self._error((*at, "id"), f"`{shown(text)}` is not a rule id", fix)

    def _allow(self, rule: Allow, at: At) -> None:
        self._rule(rule, at)
        if rule.publish is not None and rule.view is not None:
            self._error((*at, "view"), "a publish rule has no view: every reader's view is made", "remove `view`")
        if rule.subscribe is not None and rule.view is None:
            self._error(at, "a subscribe rule names the view its team reads", "add `view: <name>`")
        if rule.sources is not None and rule.publish is None:
            self._error((*at, "sources"), "`sources` belongs to a publish rule", "remove it")
        for index, text in enumerate(rule.sources or ()):
            self._try(Glob.source, text, (*at, "sources", index))
        if rule.view is not None:
            self._name(rule.view, (*at, "view"))
        if rule.expires is not None:
            self._try(instant_ms, rule.expires, (*at, "expires"))
            if rule.reason is None:
                self._error((*at, "expires"), "a grant that expires says why", "add `reason:`, such as the incident")
        if rule.since is not None:
            self._since(rule, at)

    def _since(self, rule: Allow, at: At) -> None:
        if rule.subscribe is None:
            fix = "remove it; publishing has no history"
            self._error((*at, "since"), "`since` opens stored events to readers: it belongs to a subscribe rule", fix)
        opened = self._try(instant_ms, rule.since or "", (*at, "since"))
        try:
            ended = None if rule.expires is None else instant_ms(rule.expires)
        except ValueError:
            return  # noted already
        if opened is not None and ended is not None and opened >= ended:
            self._error((*at, "since"), "the grant expires before it opens anything", "use a time before `expires`")

    # --- Route -------------------------------------------------------------------------------------------------------

    def _routes(self, value: Route) -> None:
        for index, line in enumerate(value.spec.routes):
            at: At = ("spec", "routes", index)
            self._id(line.id, at)
            self._patterns(line.match.types, (*at, "match", "types"))
            for number, text in enumerate(line.match.sources or ()):
                self._try(Glob.source, text, (*at, "match", "sources", number))
            if line.when is not None:
                self._condition(line.when, (*at, "when"), ROOTS_ROUTE)
            type_ = self._try(check_type, line.to, (*at, "to"))
            if type_ is not None and versioned(type_) != type_:
                fix = f"write the version that is made, such as `{shown(type_)}.v1`"
                self._error((*at, "to"), f"`{shown(type_)}` has no version", fix)

    # --- Subscription ------------------------------------------------------------------------------------------------

    def _subscription(self, value: Subscription) -> None:
        spec = value.spec
        self._patterns(spec.types, ("spec", "types"))
        if spec.view is not None:
            self._name(spec.view, ("spec", "view"))
        if spec.start not in ("new", "all"):
            try:
                instant_ms(spec.start)
            except ValueError:
                fix = "use `new`, `all`, or a time such as 2026-12-01T00:00:00Z"
                self._error(("spec", "start"), f"`{shown(spec.start)}` is no start", fix)
        check_delivery(spec, self._error)
