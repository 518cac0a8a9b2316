"""Masks of a view that contradict each other: two of equal rank for one tag, or for one field of some event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations_with_replacement

from mesh.policy import paths as walk
from mesh.policy.documents import Document, Findings
from mesh.policy.masktable import Mask, MaskTable, describe
from mesh.policy.rules import Classified, Tenancy

MAX_PLACES = 20_000  # looked at for contradicting masks, of one set of classifications; beyond it agents redact


def check_clashes(document: Document, tenancy: Tenancy, findings: Findings) -> None:
    """Note where the view in *document* gives one tag or field two masks of equal rank: which is meant?"""
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
    for together in _together(tenancy, clashing):
        found = _clash(together, table)
        if found is not None:
            path, masks = found
            message = f"the field `{path}` gets two masks of equal rank: {_named(masks)}"
            fix = "give the field one of the tags, or make one of the masks stricter"
            findings.error(document, ("spec", "mask"), message, fix)
            return


def _named(masks: Iterable[Mask]) -> str:
    return " and ".join(describe(mask) for mask in masks)


def _together(tenancy: Tenancy, clashing: frozenset[str]) -> Iterator[tuple[Classified, ...]]:
    """The sets of classifications that some type has in common and that carry clashing tags."""
    classified = [c for c in tenancy.classified if c.tags]
    for to in tenancy.routed:
        group = tuple(tenancy.classified[index] for index in tenancy.classifying(to))
        if any(not clashing.isdisjoint(c.tags) for c in group):
            yield group
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
