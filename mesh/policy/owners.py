"""Who owns what a decision rests on: the `owner` of each document, who must agree before somebody gets more."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.policy.compile import Plans
from mesh.policy.model import Access, AnyDocument, Classification, Metadata, Route
from mesh.policy.paths import Path
from mesh.subjects import Pattern


def owners_of_view(plans: Plans, view: str) -> frozenset[str]:
    """Who owns *view*, and the view it is `like`."""
    tenancy = plans.tenancy
    return _named(tenancy.views[view], tenancy.base(view)) if view in tenancy.views else frozenset()


def owners_of_rule(plans: Plans, rule: str | None) -> frozenset[str]:
    """Who owns the document that holds the rule or route with the id *rule*."""
    return _named(*(document for document in plans.bundle.policies if rule is not None and rule in _ids(document)))


def owners_of_field(plans: Plans, type_: str, path: Path | None) -> frozenset[str]:
    """Who classifies *path* for *type_*; where nobody does, or for None, who classifies anything of the type."""
    held = [document for document in plans.bundle.policies if isinstance(document, Classification)]
    mine = [d for d in held if any(Pattern.parse(text).matches(type_) for text in d.spec.types)]
    naming = [d for d in mine if path is not None and path.text in d.spec.fields]
    return _named(*(naming or mine))


def _ids(document: AnyDocument) -> Iterator[str]:
    if isinstance(document, Access):
        yield from (allow.id for allow in document.spec.allow)
        yield from (deny.id for deny in document.spec.deny)
    elif isinstance(document, Route):
        for route in document.spec.routes:
            yield route.id


def _named(*documents: AnyDocument) -> frozenset[str]:
    metadata = (document.metadata for document in documents)
    return frozenset(m.owner for m in metadata if isinstance(m, Metadata) and m.owner)
