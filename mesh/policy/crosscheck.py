"""What the documents of one tenant must hold together: names that exist, ids that are unique, masks that agree.

First the references; only where those hold, what needs the rules parsed: rights that reach nobody or nothing, views in
clear for those who do not own the data, masks that contradict each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import combinations_with_replacement

from mesh.errors import BadPattern
from mesh.policy import paths as walk
from mesh.policy.bind import Path as At
from mesh.policy.bind import closest, shown
from mesh.policy.documents import Document, Findings
from mesh.policy.masktable import Mask, MaskTable
from mesh.policy.model import Access, Allow, Classification, Deny, Subscription, Tenant, View
from mesh.policy.rules import Classified, Rule, Tenancy
from mesh.subjects import Glob, Pattern

_DECLARED_BY = {"team": "Tenant", "agent": "Tenant", "view": "View", "tag": "Classification"}
MAX_PLACES = 20_000  # looked at for contradicting masks, of one set of classifications; beyond it agents redact


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
        self._rules: dict[str, tuple[Document, int]] = {}

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
            for number, text in enumerate(line.tags):
                if not self._tag_known(text):
                    names = sorted(self._tags)
                    fix = closest(
                        text, names, f"no Classification carries it; known: {', '.join(names[:12]) or 'none'}"
                    )
                    at = ("spec", "mask", index, "tags", number)
                    self._findings.error(document, at, f"unknown tag `{shown(text)}`", fix)

    def _tag_known(self, text: str) -> bool:
        if _DECLARED_BY["tag"] in self._findings.missing:
            return True
        try:
            glob = Glob.tag(text)
        except BadPattern:
            return True  # noted where the document was checked by itself
        return any(glob.matches(tag) for tag in self._tags)

    def _rule(self, document: Document, rule: Allow | Deny, at: At) -> None:
        first = self._rules.setdefault(rule.id, (document, document.line_of(*at)))
        if first != (document, document.line_of(*at)):
            message = f"the rule id `{shown(rule.id)}` is taken, at {first[0].file}:{first[1]}"
            self._findings.error(document, (*at, "id"), message, "ids are unique in a tenant: rename one")
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
            for index, text in enumerate(value.spec.types):
                if not any(Pattern.parse(text).intersects(p) for p in published):
                    fix = "correct the pattern, or allow somebody to publish it"
                    message = f"`{shown(text)}` can never match: nobody may publish such a type"
                    findings.error(document, ("spec", "types", index), message, fix)
    for document in held:
        if isinstance(document.value, View) and document.value.spec.mask:
            _contradictions(document, tenancy, findings)


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
                if not any(_owns(tenancy, agent, pattern) for agent in members):
                    message = (
                        f"the view `{rule.view}` is `otherwise: clear`, and team `{team}` may not publish"
                        f" `{pattern.written}` at any time, whatever is in it: it would see every unclassified field"
                    )
                    fix = "grant a view that redacts or drops, or add `expires` and `reason` for a time"
                    self._findings.error(self._document, (*at, "subscribe", index), message, fix)


def _owns(tenancy: Tenancy, agent: str, pattern: Pattern) -> bool:
    """Whether *agent* may publish all of *pattern*, always: no line that ends or asks a condition, and no deny."""
    lasting = (r for r in tenancy.publishing(agent) if r.expires_ms is None and r.when is None)
    denied = (p for r in tenancy.publish_denies(agent) if r.when is None for p in r.patterns)
    return any(p.covers(pattern) for r in lasting for p in r.patterns) and not any(
        p.intersects(pattern) for p in denied
    )


# --- masks that contradict each other --------------------------------------------------------------------------------


def _contradictions(document: Document, tenancy: Tenancy, findings: Findings) -> None:
    """Two different masks of equal rank for one field: nobody could say which is meant."""
    table = tenancy.tables[document.value.metadata.name]
    tags = {tag for classified in tenancy.classified for tag in classified.tags}
    for tag in sorted(tags):
        chosen = table.choose([tag], [])
        if len(chosen) > 1:
            message = f"the tag `{tag}` gets two masks of equal rank: {_named(chosen)}"
            findings.error(document, ("spec", "mask"), message, "let one line name it, or make one stricter")
            return
    clashing = frozenset(
        tag
        for tag in tags
        for other in tags
        if tag < other and len(table.choose([tag, other], [])) > 1
        for tag in (tag, other)
    )
    if not clashing:
        return
    for together in _together([c for c in tenancy.classified if c.tags], clashing):
        found = _clash(together, table)
        if found is not None:
            path, masks = found
            message = f"the field `{path}` gets two masks of equal rank: {_named(masks)}"
            fix = "give the field one of the tags, or make one of the masks stricter"
            findings.error(document, ("spec", "mask"), message, fix)
            return


def _named(masks: Iterable[Mask]) -> str:
    def one(mask: Mask) -> str:
        action, p = mask
        return f"{action} ({p.style or p.domain or f'first {p.first or 0}, last {p.last or 0}'})"

    return " and ".join(one(mask) for mask in masks)


def _together(classified: list[Classified], clashing: frozenset[str]) -> Iterator[tuple[Classified, ...]]:
    """The sets of classifications that some type has in common and that carry clashing tags."""
    seen: set[tuple[str, ...]] = set()
    carrying = [c for c in classified if not clashing.isdisjoint(c.tags)]
    for one, two in combinations_with_replacement(carrying, 2):
        for p in one.patterns:
            for q in two.patterns:
                both = p.intersection(q)
                if both is None:
                    continue
                group = tuple(c for c in classified if any(r.covers(both) for r in c.patterns))
                names = tuple(c.name for c in group)
                if names not in seen:
                    seen.add(names)
                    yield group


def _clash(group: tuple[Classified, ...], table: MaskTable) -> tuple[str, tuple[Mask, ...]] | None:
    """The first place in any event of *group*'s types where the strictest mask is not one."""
    fields = [field for classified in group for field in classified.fields]
    paths = tuple(path for path, _ in fields)
    start = walk.begin(paths)
    seen, todo = {start}, [start]
    while todo and len(seen) < MAX_PLACES:
        places = todo.pop()
        exact, subtree = walk.ends(paths, places)
        chosen = table.choose([t for i in exact for t in fields[i][1]], [t for i in subtree for t in fields[i][1]])
        if len(chosen) > 1:
            return " + ".join(paths[i].text for i in (*exact, *subtree)), chosen
        names, other, item = walk.steps_from(paths, places)
        for reached in (*names.values(), other, item):
            if reached not in seen:
                seen.add(reached)
                todo.append(reached)
    return None
