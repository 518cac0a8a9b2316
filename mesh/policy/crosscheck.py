"""What the documents of one tenant must hold together: names that exist, ids that are unique, masks that agree.

First the references; only where those hold, what needs the rules parsed: rights that reach nobody or nothing, views in
clear for those who do not own the data, masks that contradict each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mesh.errors import BadPattern
from mesh.policy.bind import Path as At
from mesh.policy.bind import closest, shown
from mesh.policy.check_cases import named_in
from mesh.policy.check_clashes import check_clashes
from mesh.policy.check_routes import check_routes
from mesh.policy.documents import Document, Findings
from mesh.policy.model import Access, Allow, Classification, Deny, PolicyTest, Route, Subscription, Tenant, View
from mesh.policy.rules import Rule, Tenancy
from mesh.subjects import Glob, Pattern

_DECLARED_BY = {"team": "Tenant", "agent": "Tenant", "view": "View", "tag": "Classification"}


def references(documents: Iterable[Document], findings: Findings) -> None:
    """Check that what one document names, another one (or itself) declares. All are of one tenant."""
    held = list(documents)
    _References(held, findings).check()


class _References:
    def __init__(self, documents: list[Document], findings: Findings) -> None:
        self._documents = documents
        self._findings = findings
        values = [d.value for d in documents]
        tenants = [v for v in values if isinstance(v, Tenant)]
        self._teams = {name: team for v in tenants for name, team in v.spec.teams.items()}
        self._agents = {agent for team in self._teams.values() for agent in team.agents}
        self._views = {v.metadata.name: v for v in values if isinstance(v, View)}
        self._tags = {
            tag for v in values if isinstance(v, Classification) for tags in v.spec.fields.values() for tag in tags
        }
        self._rules: dict[str, tuple[Document, At]] = {}

    def check(self) -> None:
        self._unique()
        if not self._teams:
            return  # no Tenant document: noted where the set is put together
        for document in self._documents:
            value = document.value
            if isinstance(value, View):
                self._view(document, value)
            elif isinstance(value, Access):
                for index, allow in enumerate(value.spec.allow):
                    self._rule(document, allow, ("spec", "allow", index))
                for index, deny in enumerate(value.spec.deny):
                    self._rule(document, deny, ("spec", "deny", index))
            elif isinstance(value, Route):
                for index, line in enumerate(value.spec.routes):
                    self._id(document, line.id, ("spec", "routes", index))
            elif isinstance(value, PolicyTest):
                self._named(document, value)
            elif isinstance(value, Subscription):
                self._known(document, value.metadata.team, self._teams, "team", ("metadata", "team"))
                if value.spec.view is not None:
                    self._known(document, value.spec.view, self._views, "view", ("spec", "view"))

    def _unique(self) -> None:
        seen: dict[tuple[str, ...], Document] = {}
        for document in self._documents:
            value = document.value
            team = value.metadata.team if isinstance(value, Subscription) else ""
            key = (value.kind, team, value.metadata.name)
            first = seen.setdefault(key, document)
            if first is not document:
                name = f"{value.kind} `{shown(value.metadata.name)}`"
                message = f"{name} is declared already, at {first.file}:{first.line}"
                self._findings.error(document, ("metadata", "name"), message, "rename one, or put them together")

    def _known(self, document: Document, name: str, known: Collection[str], noun: str, at: At) -> bool:
        if name in known:
            return True
        if _DECLARED_BY[noun] in self._findings.missing:
            return False
        names = sorted(known)
        fix = closest(name, names, f"known: {', '.join(names[:12]) or 'none'}")
        self._findings.error(document, at, f"unknown {noun} `{shown(name)}`", fix)
        return False

    def _view(self, document: Document, value: View) -> None:
        spec = value.spec
        if spec.like is not None and self._known(document, spec.like, self._views, "view", ("spec", "like")):
            base = self._views[spec.like]
            if base.spec.like is not None:
                fix = f"use `like: {base.spec.like}`, and its rows too where they are wanted"
                self._findings.error(document, ("spec", "like"), f"`{spec.like}` is itself `like` another view", fix)
            elif spec.otherwise not in (None, base.spec.otherwise):
                fix = f"remove `otherwise`: it comes from `{spec.like}`"
                self._findings.error(document, ("spec", "otherwise"), f"`{spec.like}` says otherwise", fix)
        for index, line in enumerate(spec.mask):
            at: At = ("spec", "mask", index)
            for number, text in enumerate(line.tags):
                self._tag(document, text, (*at, "tags", number))
            for number, team in enumerate(line.params.readers or ()):
                self._known(document, team, self._teams, "team", (*at, "with", "for", number))

    def _named(self, document: Document, value: PolicyTest) -> None:
        known = {"team": self._teams, "agent": self._agents, "view": self._views}
        for noun, name, at in named_in(value):
            if noun == "tag":
                self._tag(document, name, at)
            else:
                self._known(document, name, known[noun], noun, at)

    def _tag(self, document: Document, text: str, at: At) -> None:
        if not self._tag_known(text):
            names = sorted(self._tags)
            fix = closest(text, names, f"no Classification carries it; known: {', '.join(names[:12]) or 'none'}")
            self._findings.error(document, at, f"unknown tag `{shown(text)}`", fix)

    def _tag_known(self, text: str) -> bool:
        if _DECLARED_BY["tag"] in self._findings.missing:
            return True
        try:
            glob = Glob.tag(text)
        except BadPattern:
            return True  # noted where the document was checked by itself
        return any(glob.matches(tag) for tag in self._tags)

    def _id(self, document: Document, text: str, at: At) -> None:
        first, there = self._rules.setdefault(text, (document, at))
        if (first, there) != (document, at):
            message = f"the rule id `{shown(text)}` is taken, at {first.file}:{first.line_of(*there)}"
            self._findings.error(document, (*at, "id"), message, "ids are unique in a tenant: rename one")

    def _rule(self, document: Document, rule: Allow | Deny, at: At) -> None:
        self._id(document, rule.id, at)
        for index, team in enumerate(rule.who.teams or ()):
            self._known(document, team, self._teams, "team", (*at, "who", "teams", index))
        for index, agent in enumerate(rule.who.agents or ()):
            self._known(document, agent, self._agents, "agent", (*at, "who", "agents", index))
        if isinstance(rule, Allow) and rule.view is not None:
            self._known(document, rule.view, self._views, "view", (*at, "view"))


# --- what needs the rules parsed -------------------------------------------------------------------------------------


def meaning(documents: Iterable[Document], findings: Findings) -> None:
    """Check what the rules of one tenant come to. Every document is valid, and every reference holds."""
    held = list(documents)
    tenancy = Tenancy(d.value for d in held)
    published = tenancy.published()
    allows, denies = iter(tenancy.allows), iter(tenancy.denies)  # in the order of the documents, as we walk them
    for document in held:
        value = document.value
        if isinstance(value, Access):
            for index, _ in enumerate(value.spec.allow):
                _Meaning(document, findings, tenancy, published).allow(next(allows), ("spec", "allow", index))
            for index, _ in enumerate(value.spec.deny):
                _Meaning(document, findings, tenancy, published).deny(next(denies), ("spec", "deny", index))
        elif isinstance(value, Classification):
            for index, pattern in enumerate(map(Pattern.parse, value.spec.types)):
                if not any(pattern.intersects(p) for p in published):
                    fix = "correct the pattern, or allow somebody to publish it"
                    message = f"`{shown(pattern.written)}` can never match: nobody may publish such a type"
                    findings.error(document, ("spec", "types", index), message, fix)
    check_routes(held, tenancy, findings)
    for document in held:
        if isinstance(document.value, View) and document.value.spec.mask:
            check_clashes(document, tenancy, findings)


class _Meaning:
    def __init__(self, document: Document, findings: Findings, tenancy: Tenancy, published: list[Pattern]) -> None:
        self._document = document
        self._findings = findings
        self._tenancy = tenancy
        self._published = published

    def allow(self, rule: Rule, at: At) -> None:
        if not self._reaches(rule):
            fix = "keys of `who` must all hold: name agents of the named teams; a team reads as a whole"
            self._findings.error(self._document, (*at, "who"), f"the rule `{rule.id}` reaches nobody", fix)
        if rule.verb == "publish":
            return
        for index, pattern in enumerate(rule.patterns):
            if not any(pattern.intersects(p) for p in self._published):
                message = f"`{pattern.written}` can never match: nobody may publish such a type"
                fix = "correct the pattern, or allow somebody to publish it"
                self._findings.error(self._document, (*at, "subscribe", index), message, fix)
        if self._tenancy.tables[rule.view].otherwise[0] == "clear" and rule.expires_ms is None:
            self._owners_only(rule, at)

    def deny(self, rule: Rule, at: At) -> None:
        if not self._reaches(rule):
            fix = "keys of `who` must all hold: name agents of the named teams"
            self._findings.warning(self._document, (*at, "who"), f"the deny `{rule.id}` reaches nobody", fix)
        for index, pattern in enumerate(rule.patterns):
            if not any(pattern.intersects(p) for p in self._published):
                message = f"`{pattern.written}` denies what nobody may publish"
                self._findings.warning(
                    self._document, (*at, rule.verb, index), message, "correct it, or leave it as a guard"
                )

    def _reaches(self, rule: Rule) -> bool:
        tenancy = self._tenancy
        if rule.verb == "publish":
            return any(rule.about_agent(agent, team) for agent, team in tenancy.team_of.items())
        return any(rule.grants_team(team, members) for team, members in tenancy.members.items())

    def _owners_only(self, rule: Rule, at: At) -> None:
        """`otherwise: clear` shows what nobody has classified: only to a team that may publish it, or for a while.

        How long a while is nobody can say here, without a clock; it ends, and its `reason` says what it is for.
        """
        tenancy = self._tenancy
        for team, members in tenancy.members.items():
            if not rule.grants_team(team, members):
                continue
            for index, pattern in enumerate(rule.patterns):
                foreign = foreign_part(tenancy, team, pattern)
                if foreign is not None:
                    routed = "" if foreign == pattern else ", which is routed into it,"
                    message = (
                        f"the view `{rule.view}` is `otherwise: clear`, and team `{team}` may not publish"
                        f" `{foreign.written}`{routed} at any time, whatever is in it: it would see every unclassified"
                        " field"
                    )
                    fix = "grant a view that redacts or drops, or add `expires` and `reason` for a time"
                    self._findings.error(self._document, (*at, "subscribe", index), message, fix)


def foreign_part(tenancy: Tenancy, team: str, pattern: Pattern) -> Pattern | None:
    """What keeps *team* from owning *pattern*: the types it may not publish; None where it owns all of it.

    A team owns what one of its agents may publish, always. A type that routes make is owned by the team that owns all
    that is routed into it, and by nobody else, whoever may publish it beside the routes.
    """
    agents = tenancy.members[team]
    inward = [p for to, types in tenancy.routed.items() if pattern.matches(to) for p in types]
    made_by_routes = bool(inward) and pattern.exact in tenancy.routed
    wanted = inward if made_by_routes else [pattern, *inward]
    return next((p for p in wanted if not any(_owns(tenancy, agent, p) for agent in agents)), None)


def _owns(tenancy: Tenancy, agent: str, pattern: Pattern) -> bool:
    """Whether *agent* may publish all of *pattern*, always: no line that ends or asks a condition, and no deny."""
    lasting = (r for r in tenancy.publishing(agent) if r.expires_ms is None and r.when is None)
    denied = (p for r in tenancy.publish_denies(agent) if r.when is None for p in r.patterns)
    return any(p.covers(pattern) for r in lasting for p in r.patterns) and not any(
        p.intersects(pattern) for p in denied
    )
