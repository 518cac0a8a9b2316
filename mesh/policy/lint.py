"""What deserves a look in a set of policies that loads: nothing here is wrong, and each of it has surprised somebody.

unguarded reads     a deny or a move reads a field without `has()`: an event without it counts as a match
dead patterns       a deny of what nobody may publish (found by the loader)
ended grants        a grant whose time is over
unread views        no grant names the view, and no other view is like it
inactive            a subscription that is delivered nothing, with the reason
unmasked tags       no line of any view names the tag: every view treats its fields as unclassified
guess               a team reads the tokens of a domain and publishes into it: it can test guesses
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mesh.errors import PolicyError
from mesh.policy.compile import Plans
from mesh.policy.documents import Document, PolicySet, finding
from mesh.policy.expressions import Condition
from mesh.policy.model import Access, Classification, Route, Subscription, View
from mesh.policy.rules import Rule
from mesh.policy.sentences import listed
from mesh.subjects import Glob, Pattern


def warnings(policies: PolicySet, plans: Mapping[str, Plans], *, now_ms: int) -> list[PolicyError]:
    """All of it, each with file, line and what to do, in the order of files and lines.

    Args:
        policies: Loaded, so checked.
        plans: Of each tenant, made from them.
        now_ms: Unix milliseconds, for grants that end.
    """
    found = list(policies.warnings)
    for tenant, made in plans.items():
        found.extend(_Linter(policies.of(tenant), made, now_ms).warnings())
    return sorted(found, key=lambda warning: (warning.details["file"], warning.details["line"]))


class _Linter:
    def __init__(self, documents: tuple[Document, ...], plans: Plans, now_ms: int) -> None:
        self._documents = documents
        self._tenancy = plans.tenancy
        self._grants = plans.grants(now_ms=now_ms)
        self._now_ms = now_ms

    def warnings(self) -> Iterator[PolicyError]:
        guesses = self._guesses()
        for document in self._documents:
            value = document.value
            if isinstance(value, Access):
                yield from self._access(document, value, guesses)
            elif isinstance(value, Route):
                yield from self._routes(document, value)
            elif isinstance(value, View):
                yield from self._view(document, value)
            elif isinstance(value, Subscription):
                yield from self._subscription(document, value)
        yield from self._tags()

    # --- rules -------------------------------------------------------------------------------------------------------

    def _access(self, document: Document, value: Access, guesses: Mapping[str, str]) -> Iterator[PolicyError]:
        denies = {rule.id: rule for rule in self._tenancy.denies}
        allows = {rule.id: rule for rule in self._tenancy.allows}
        for index, line in enumerate(value.spec.allow):
            at = document.line_of("spec", "allow", index)
            if allows[line.id].ended(self._now_ms):
                message = f"the grant `{line.id}` ended at {line.expires}"
                yield finding(document.file, at, message, "remove it, or give it a later `expires`")
            if line.id in guesses:
                fix = "give the tokens a domain of their own in this view, or another mask"
                yield finding(document.file, at, guesses[line.id], fix)
        for index, deny in enumerate(value.spec.deny):
            at = document.line_of("spec", "deny", index, "when")
            yield from _unguarded(document, at, f"the deny `{deny.id}`", denies[deny.id].when, "refused")

    def _routes(self, document: Document, value: Route) -> Iterator[PolicyError]:
        routes = {route.id: route for route in self._tenancy.routes}
        for index, line in enumerate(value.spec.routes):
            if line.effect == "move":
                at = document.line_of("spec", "routes", index, "when")
                yield from _unguarded(document, at, f"the move `{line.id}`", routes[line.id].when, "moved")

    # --- views, tags and subscriptions -------------------------------------------------------------------------------

    def _view(self, document: Document, value: View) -> Iterator[PolicyError]:
        name = value.metadata.name
        granted = {rule.view for rule in self._tenancy.allows if rule.verb == "subscribe"}
        like = {view.spec.like for view in self._tenancy.views.values()}
        if name not in granted | like:
            yield finding(document.file, document.line, f"no grant names the view `{name}`", "grant it, or remove it")

    def _subscription(self, document: Document, value: Subscription) -> Iterator[PolicyError]:
        team, name = value.metadata.team, value.metadata.name
        grant = self._grants.subscriptions[team, name]
        if not grant.active:
            message = f"the subscription `{name}` of team `{team}` is inactive: {grant.reason}"
            fix = "ask the owner of the views for a grant, or change `types` or `view`"
            yield finding(document.file, document.line, message, fix)

    def _tags(self) -> Iterator[PolicyError]:
        """Each tag once, at the first path that carries it."""
        lines = [line for view in self._tenancy.views.values() for line in view.spec.mask]
        named = [Glob.tag(text) for line in lines for text in line.tags]
        seen: set[str] = set()
        for document in self._documents:
            value = document.value
            if not isinstance(value, Classification):
                continue
            for path, tags in value.spec.fields.items():
                for tag in tags:
                    if named and tag not in seen and not any(glob.matches(tag) for glob in named):
                        message = f"no view has a mask for the tag `{tag}`: its fields are as good as unclassified"
                        fix = "name the tag in a view, or use one that is named"
                        yield finding(document.file, document.line_of("spec", "fields", path), message, fix)
                    seen.add(tag)

    # --- guess -------------------------------------------------------------------------------------------------------

    def _guesses(self) -> dict[str, str]:
        """By the id of the grant that shows tokens: who could test guesses of them."""
        found: dict[str, str] = {}
        for team, members in self._tenancy.members.items():
            written = {d for agent in members for d in self._grants.agents[agent].domains}
            for rule in self._tenancy.reading(team):
                if rule.ended(self._now_ms):
                    continue
                both = sorted(written & self._domains(rule))
                if both:
                    found[rule.id] = (
                        f"guess: team `{team}` reads tokens of the domain {listed(both)} in the view `{rule.view}` and"
                        " publishes into it, so it can test guesses"
                    )
        return found

    def _domains(self, rule: Rule) -> frozenset[str]:
        """The pseudonym domains whose tokens a grant shows."""
        return frozenset(domain for pattern in rule.patterns for domain in self._domains_of(rule.view, pattern))

    def _domains_of(self, view: str, pattern: Pattern) -> frozenset[str]:
        classified = (self._tenancy.classified[index] for index in self._tenancy.classifying_any(pattern))
        return self._tenancy.tables[view].domains({tag for one in classified for tag in one.tags})


def _unguarded(document: Document, line: int, rule: str, when: Condition | None, so: str) -> Iterator[PolicyError]:
    """Reads that an event can lack. An error in a deny or a move is a match."""
    if when is None or not when.unguarded:
        return
    paths = listed(f"`{path}`" for path in when.unguarded)
    message = f"{rule} reads {paths} without `has()`: an event without it is {so}"
    guard = f"has({when.unguarded[0]}) && ..." if "[" not in when.unguarded[0] else "has(...) && ..."
    yield finding(document.file, line, message, f"write `{guard}`, or keep it where that is meant")
