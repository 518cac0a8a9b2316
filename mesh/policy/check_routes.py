"""What the routes of a tenant must hold together: types that exist, and one move at most for each event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import TypeAlias

from mesh.policy.bind import Path as At
from mesh.policy.bind import shown
from mesh.policy.documents import Document, Findings
from mesh.policy.model import Route
from mesh.policy.routes import RouteRule
from mesh.policy.rules import Tenancy
from mesh.subjects import Pattern

_Placed: TypeAlias = tuple[Document, At, RouteRule]


def check_routes(documents: Iterable[Document], tenancy: Tenancy, findings: Findings) -> None:
    """Check the routes of one tenant. Every document is valid, and every reference holds."""
    placed = list(_placed(documents, tenancy))
    for one in placed:
        _types(one, tenancy, findings)
        _readers(one, tenancy, findings)
        _denies(one, tenancy, findings)
    moves = (one for one in placed if one[2].effect == "move")
    for (first, there, mine), (document, at, other) in combinations(moves, 2):
        both = mine.meets(other)
        if both is not None:
            message = (
                f"the moves `{mine.id}` ({first.file}:{first.line_of(*there)}) and `{other.id}` can both take an event"
                f" of `{both.written}`"
            )
            fix = "let one of them match other types or sources, or make it a copy: an event moves to one place"
            findings.error(document, (*at, "match"), message, fix)


def _placed(documents: Iterable[Document], tenancy: Tenancy) -> Iterator[_Placed]:
    rules = iter(tenancy.routes)  # in the order of the documents, as we walk them
    for document in documents:
        if isinstance(document.value, Route):
            for index, _ in enumerate(document.value.spec.routes):
                yield document, ("spec", "routes", index), next(rules)


def _types(placed: _Placed, tenancy: Tenancy, findings: Findings) -> None:
    """Each pattern matches something that is published; what only routes make is not routed again."""
    document, at, route = placed
    lines, all_ = tenancy.published_by_lines(), tenancy.published()
    for index, pattern in enumerate(route.patterns):
        here: At = (*at, "match", "types", index)
        if not any(pattern.intersects(p) for p in all_):
            message = f"`{pattern.written}` can never match: nobody may publish such a type"
            findings.error(document, here, message, "correct the pattern, or allow somebody to publish it")
        elif not any(pattern.intersects(p) for p in lines):
            message = f"`{pattern.written}` is only what routes make, and a copy is never routed again"
            findings.warning(document, here, message, "match the types that are routed into it")


def _readers(placed: _Placed, tenancy: Tenancy, findings: Findings) -> None:
    document, at, route = placed
    readers = (
        rule for team in tenancy.members for rule in tenancy.reading(team) if not tenancy.read_denies_of(team, route.to)
    )
    if not any(rule.covers_type(route.to) for rule in readers):
        message = f"nobody may read `{shown(route.to)}`, so the {route.effect} `{route.id}` makes nothing"
        fix = "grant somebody a view of it" + (": what it matches reaches nobody now" if route.effect == "move" else "")
        findings.warning(document, (*at, "to"), message, fix)


def _denies(placed: _Placed, tenancy: Tenancy, findings: Findings) -> None:
    """A deny to publish what a route makes does not stop the route."""
    document, at, route = placed
    to = Pattern.parse(route.to)
    for deny in tenancy.denies:
        if deny.verb == "publish" and any(pattern.intersects(to) for pattern in deny.patterns):
            message = f"the deny `{deny.id}` names `{shown(route.to)}`, and does not stop the route `{route.id}`"
            fix = "the route is the grant for its copies: deny the types it matches, or change the route"
            findings.warning(document, (*at, "to"), message, fix)
