"""`policies/` and its own tests: they pass, they try everything, and no rule can change without one of them failing.

Every rule is taken away, opened and turned round in turn: each line of Access and Route, each tag of each line of a
View, its `otherwise` and its rows, each classified field. What is asked then is what `mesh policy test` asks: the
loader's checks and the suite. Subscriptions and the delivery defaults of the Tenant grant nothing, so no policy test is
about them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import pytest

from mesh.policy.check import check
from mesh.policy.crosscheck import meaning, references
from mesh.policy.documents import Document, Findings, PolicySet
from mesh.policy.load import load
from mesh.policy.model import Access, Allow, Classification, Deny, PolicyTest, Route, Tenant, View
from mesh.policy.model_masks import MaskLine, With
from mesh.policy.suite import run
from mesh.policy_files import read_policies
from tests.conftest import ROOT

NOW_MS = 1_780_000_000_000  # 2026-05-28: the tests of what ends say their own time
AS_SECRET = {"freetext", "pii.location"}  # every view treats these as it treats `secret`
Changes = Iterator[tuple[str, Any]]  # what was done, and the document after it


@cache
def example() -> tuple[PolicySet, dict[str, bytes]]:
    """The worked example and its fixtures."""
    files = read_policies(ROOT / "policies")
    return load(files.yaml), dict(files.fixtures)


def changed(struct: Any, **fields: Any) -> Any:
    """A copy of a document or a part of it."""
    return msgspec.structs.replace(struct, **fields)


def spec(value: Any, **fields: Any) -> Any:
    """A copy of a document with another spec."""
    return changed(value, spec=changed(value.spec, **fields))


def put(items: tuple[Any, ...], index: int, *new: Any) -> tuple[Any, ...]:
    """*items* with *new* ones in the place of one."""
    return (*items[:index], *new, *items[index + 1 :])


def negated(condition: str) -> str:
    """The opposite condition."""
    return f"!({condition})"


# --- the changes -----------------------------------------------------------------------------------------------------


def of_classification(value: Classification) -> Changes:
    """Each field unclassified, declared public, and declared secret."""
    for path, tags in value.spec.fields.items():
        rest = {name: given for name, given in value.spec.fields.items() if name != path}
        yield f"{path} removed", spec(value, fields=rest)
        others = {"public"} if AS_SECRET & {*tags} else {"public", "secret"}
        for tag in sorted(others - {*tags}):
            yield f"{path} is {tag}", spec(value, fields={**rest, path: (tag,)})


def of_view(value: View) -> Changes:
    """Each tag of each line forgotten, shown and hidden; `otherwise` another; rows gone and turned round."""
    for index, line in enumerate(value.spec.mask):
        for tag in line.tags:
            others = tuple(t for t in line.tags if t != tag)
            kept = (changed(line, tags=others),) if others else ()
            yield f"{tag} forgotten", spec(value, mask=put(value.spec.mask, index, *kept))
            for action in ("drop", "redact", "clear"):
                if action != line.action:
                    one = MaskLine(tags=(tag,), action=action, params=With())
                    yield f"{tag} as {action}", spec(value, mask=put(value.spec.mask, index, *kept, one))
        if line.action == "clear":
            yield "everything clear", spec(value, mask=put(value.spec.mask, index, changed(line, tags=("**",))))
    for action in ("clear", "redact", "drop"):
        if action != value.spec.otherwise:
            yield f"otherwise {action}", spec(value, otherwise=action)
    if value.spec.rows is not None:
        yield "rows removed", spec(value, rows=None)
        yield "rows negated", spec(value, rows=negated(value.spec.rows))


def of_access(value: Access, teams: tuple[str, ...]) -> Changes:
    """Each allow and each deny."""
    for index, allow in enumerate(value.spec.allow):
        for what, new in of_allow(allow, teams):
            yield f"{allow.id} {what}", spec(value, allow=put(value.spec.allow, index, *new))
        no = Deny(id=allow.id, who=allow.who, publish=allow.publish, subscribe=allow.subscribe)
        rest = put(value.spec.allow, index)
        yield f"{allow.id} is a deny", spec(value, allow=rest, deny=(*value.spec.deny, no))
    for index, deny in enumerate(value.spec.deny):
        for what, lines in of_deny(deny, teams):
            yield f"{deny.id} {what}", spec(value, deny=put(value.spec.deny, index, *lines))
        view = None if deny.subscribe is None else "minimal"
        yes = Allow(id=deny.id, who=deny.who, publish=deny.publish, subscribe=deny.subscribe, when=deny.when, view=view)
        without_deny = put(value.spec.deny, index)
        yield f"{deny.id} is an allow", spec(value, deny=without_deny, allow=(*value.spec.allow, yes))


def of_allow(rule: Allow, teams: tuple[str, ...]) -> Iterator[tuple[str, tuple[Allow, ...]]]:
    """A right taken away, whole or in part, and given to more, for more, from more, for longer and in clear."""
    yield "removed", ()
    verb = "publish" if rule.publish is not None else "subscribe"
    patterns = rule.publish or rule.subscribe or ()
    yield from of_patterns(rule, verb, patterns)
    yield "for every team", (changed(rule, who=changed(rule.who, teams=teams, agents=None)),)
    if verb == "publish":
        yield "from everywhere", (changed(rule, sources=("/**",)),)
    if rule.sources is not None:
        yield "from its own sources alone", (changed(rule, sources=None),)
    if rule.expires is not None:
        yield "without an end", (changed(rule, expires=None),)
    if rule.view not in (None, "clear"):
        yield "in clear", (changed(rule, view="clear"),)


def of_deny(rule: Deny, teams: tuple[str, ...]) -> Iterator[tuple[str, tuple[Deny, ...]]]:
    """A refusal lifted, turned round, and laid on more: without its condition, or on every type and every team."""
    yield "removed", ()
    if rule.when is not None:
        yield "always", (changed(rule, when=None),)
        yield "negated", (changed(rule, when=negated(rule.when)),)
    else:
        yield from of_patterns(rule, "publish" if rule.publish else "subscribe", rule.publish or rule.subscribe)
        yield "for every team", (changed(rule, who=changed(rule.who, teams=teams, agents=None)),)


def of_patterns(rule: Any, verb: str, patterns: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """A rule about every type, and about all but one of its types."""
    if patterns != (">",):
        yield f"may {verb} everything", (changed(rule, **{verb: (">",)}),)
    for index, pattern in enumerate(patterns if len(patterns) > 1 else ()):
        yield f"without {pattern}", (changed(rule, **{verb: put(patterns, index)}),)


def of_route(value: Route) -> Changes:
    """Each route gone, for more events, for the others, of the other effect, and to another type."""
    routes = value.spec.routes
    for index, line in enumerate(routes):
        if len(routes) > 1:
            yield f"{line.id} removed", spec(value, routes=put(routes, index))
        new = {
            "for every type of its domain": {"match": changed(line.match, types=(f"{domain(line.match.types[0])}.>",))},
            "from everywhere": {"match": changed(line.match, sources=None)},
            "of the other effect": {"effect": "move" if line.effect == "copy" else "copy"},
            "to another type": {"to": "finance.review.other.v1"},
        }
        if line.when is not None:
            new |= {"always": {"when": None}, "negated": {"when": negated(line.when)}}
        for what, fields in new.items():
            yield f"{line.id} {what}", spec(value, routes=put(routes, index, changed(line, **fields)))
    if len(routes) == 1:
        yield f"{routes[0].id} removed", None


def domain(pattern: str) -> str:
    """The first token of a pattern."""
    return pattern.partition(".")[0]


# --- what the policies' own tests make of them -----------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """The example with one rule changed."""

    name: str
    documents: tuple[Document, ...]


def mutants(kind: str) -> Iterator[Mutant]:
    """Every change to documents of one kind."""
    policies, _ = example()
    (tenant,) = (d.value for d in policies.documents if isinstance(d.value, Tenant))
    teams = tuple(tenant.spec.teams)
    for index, document in enumerate(policies.documents):
        value = document.value
        if value.kind != kind:
            continue
        changes: Changes = iter(())
        if isinstance(value, Classification):
            changes = of_classification(value)
        elif isinstance(value, View):
            changes = of_view(value)
        elif isinstance(value, Access):
            changes = of_access(value, teams)
        elif isinstance(value, Route):
            changes = of_route(value)
        for what, new in changes:
            mine = () if new is None else (Document(new, document.file, document.line, document.lines),)
            yield Mutant(f"{document.file}: {what}", put(policies.documents, index, *mine))


AT_A_TIME = 6  # cases
_noticed: list[str] = []  # names of the parts that failed, the last one first: the next change is often like it


def survives(mutant: Mutant) -> bool:
    """Whether the policies load with the change, and all their tests pass: asked a part at a time, until one fails."""
    findings = Findings()
    for document in mutant.documents:
        if not any(document is checked for checked in example()[0].documents):  # those were, as they were loaded
            check(document, findings)
    references(list(mutant.documents), findings)
    if not findings.errors:
        meaning(list(mutant.documents), findings)
    if findings.errors:
        return False
    rest = tuple(d for d in mutant.documents if not isinstance(d.value, PolicyTest))
    parts = dict(cases_alone(mutant.documents))
    for name in sorted(parts, key=lambda name: _noticed.index(name) if name in _noticed else len(_noticed)):
        if not run(PolicySet((*rest, parts[name])), example()[1], NOW_MS).passed:
            _noticed[:] = [name, *(n for n in _noticed if n != name)]
            return False
    return run(PolicySet(mutant.documents), example()[1], NOW_MS).passed  # the matrix takes longer than the cases


def cases_alone(documents: tuple[Document, ...]) -> Iterator[tuple[str, Document]]:
    """The tests without their invariants, cut into parts of a few cases, each by a name of its own."""
    for d in documents:
        if isinstance(d.value, PolicyTest):
            for start in range(0, len(d.value.spec.cases), AT_A_TIME):
                some = spec(d.value, cases=d.value.spec.cases[start : start + AT_A_TIME], invariants=())
                yield f"{d.file}:{start}", Document(some, d.file, d.line, d.lines)


def test_the_example_passes_its_own_tests_and_tries_everything() -> None:
    """Every case and invariant holds, and coverage is 100 %."""
    result = run(*example(), NOW_MS)
    assert not [str(outcome) for outcome in result.failures]
    assert not [str(item) for item in result.coverage.missing]
    assert len(result.outcomes) > 50


@pytest.mark.parametrize("kind", ["Access", "Classification", "Route", "View"])
def test_no_rule_of_the_example_can_change_unnoticed(kind: str) -> None:
    """With any one rule removed, widened or negated, the set does not load or one of its own tests fails."""
    made = list(mutants(kind))
    assert made
    assert not [mutant.name for mutant in made if survives(mutant)]
