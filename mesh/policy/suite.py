"""The policies' own tests: every case and invariant of the PolicyTest documents, asked of the compiled policies.

    cases         a fixture, who reads or publishes it, and what must come of it: the decision, its rule, reason and
                  view, and what stands at single paths (`expectations.py`)
    invariants    what must hold of the whole matrix, whatever the event (`invariants.py`)
    coverage      which rules, row filters and masks the cases have tried (`coverage.py`)

A `subscribe` case asks what the team is handed once the event has been published, so a fixture of another type stands
for what a route makes of it (`trial.ask_delivery`). A `publish` case asks whether the agent may; with `expect.view` it
also asks for the copy in that view, and `fields` are that copy's.

Everything is asked of `Plans`, which agents run, and every failure is told, not only the first. Fixtures are made up,
so what a test expected and got may show their values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mesh.errors import BadFixture, MeshError, PolicyTestsFailed
from mesh.policy.compile import Plans
from mesh.policy.coverage import Asked, Cover, Coverage
from mesh.policy.documents import Document, PolicySet
from mesh.policy.expectations import Mismatch, compare
from mesh.policy.invariants import broken, named, types_named
from mesh.policy.matrix import Matrix
from mesh.policy.model import PolicyTest
from mesh.policy.model_cases import Case, Expect, Invariant
from mesh.policy.places import changed
from mesh.policy.texts import instant_ms
from mesh.policy.trial import Answer, accepted, ask_delivery, ask_publisher, plans_of

FIXTURES = "fixtures/"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case or invariant, and what it came to.

    Attributes:
        kind: Which of the two.
        document: The name of its PolicyTest.
        name: Of the case; made up from what it asks where it has none.
        file, line: Where it stands.
        mismatches: What is not as expected; empty where it holds.
    """

    kind: Literal["case", "invariant"]
    tenant: str
    document: str
    name: str
    file: str
    line: int
    mismatches: tuple[Mismatch, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return not self.mismatches

    def __str__(self) -> str:
        told = "; ".join(f"{m.path}: expected {m.expected}, got {m.got}" for m in self.mismatches)
        return f"{self.file}:{self.line}: {self.name}" + (f": {told}" if told else "")


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """Every case and invariant, in the order of files and lines, and what the cases have tried."""

    outcomes: tuple[Outcome, ...]
    coverage: Coverage

    @property
    def passed(self) -> bool:
        """Whether all hold. A set without a test passes: nothing was asked."""
        return not self.failures

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """Those that do not hold."""
        return tuple(outcome for outcome in self.outcomes if not outcome.passed)

    def require(self) -> None:
        """Raise where one does not hold.

        Raises:
            PolicyTestsFailed: `failures` names each with file and line.
        """
        failures = self.failures
        if failures:
            told = "\n".join(f"  {outcome}" for outcome in failures)
            raise PolicyTestsFailed(
                f"{len(failures)} of {len(self.outcomes)} policy tests fail:\n{told}",
                expected="every case and invariant to hold",
                got=f"{len(failures)} that do not",
                next="run `mesh policy test`, and put the policies or the tests right; nothing was changed",
                failures=[f"{outcome.file}:{outcome.line}: {outcome.name}" for outcome in failures],
            )


def run(policies: PolicySet, fixtures: Mapping[str, bytes], now_ms: int) -> SuiteResult:
    """Run every PolicyTest of every tenant.

    Args:
        policies: Loaded, so checked.
        fixtures: One CloudEvent each, as JSON, by file name from the policies' directory.
        now_ms: Unix milliseconds: when rights that end are asked for, where a case does not say.

    Raises:
        BadBundle: A tenant's policies are too large to be handed out.
    """
    outcomes: list[Outcome] = []
    coverage: list[Coverage] = []
    for tenant, plans in plans_of(policies).items():
        documents = [d for d in policies.of(tenant) if isinstance(d.value, PolicyTest)]
        cover = Cover(plans, policies.of(tenant), now_ms=now_ms)
        runner = _Runner(plans, fixtures, cover, now_ms=now_ms)
        runner.prepare(documents)
        for document in sorted(documents, key=lambda d: (d.file, d.line)):
            outcomes.extend(runner.outcomes(document))
        coverage.append(cover.result())
    return SuiteResult(tuple(outcomes), Coverage(tuple(item for part in coverage for item in part.items)))


class _Runner:
    """Runs the tests of one tenant."""

    def __init__(self, plans: Plans, fixtures: Mapping[str, bytes], cover: Cover, *, now_ms: int) -> None:
        self._plans = plans
        self._fixtures = fixtures
        self._cover = cover
        self._now_ms = now_ms
        self._cuts: tuple[str, ...] = ()
        self._matrices: dict[tuple[str, ...], Matrix] = {}

    def prepare(self, documents: Iterable[Document]) -> None:
        """Look at what all of the tests will ask."""
        values = [d.value for d in documents if isinstance(d.value, PolicyTest)]
        named_types = (text for value in values for i in value.spec.invariants for text in types_named(i))
        self._cuts = tuple(dict.fromkeys(named_types))

    def outcomes(self, document: Document) -> Iterator[Outcome]:
        """Those of one PolicyTest."""
        value = document.value
        if not isinstance(value, PolicyTest):
            return
        place = (value.tenant, value.metadata.name)
        for index, case in enumerate(value.spec.cases):
            line = document.line_of("spec", "cases", index)
            try:
                found = self._case(case)
            except MeshError as error:
                found = [_fault(error)]
            yield Outcome("case", *place, _name(case), document.file, line, tuple(found))
        for index, invariant in enumerate(value.spec.invariants):
            line = document.line_of("spec", "invariants", index)
            found = broken(invariant, self._matrix_for(invariant))
            yield Outcome("invariant", *place, named(invariant), document.file, line, tuple(found))

    def _matrix_for(self, invariant: Invariant) -> Matrix:
        """The matrix, cut along the types that *invariant* and its like name: one matrix answers all of them."""
        cuts = self._cuts if types_named(invariant) else ()
        matrix = self._matrices.get(cuts)
        if matrix is None:
            matrix = self._matrices[cuts] = Matrix.of(self._plans, self._now_ms, cuts=cuts)
        return matrix

    def _case(self, case: Case) -> list[Mismatch]:
        now_ms = self._now_ms if case.now is None else instant_ms(case.now)
        type_ = case.subscribe or case.publish or ""
        fields = self._event(case, type_, now_ms)
        if case.subscribe is not None:
            team = case.principal.team or ""
            answer = ask_delivery(self._plans, team, type_, fields, view=case.view, now_ms=now_ms)
            asked = Asked.reading(team, type_, fields, answer, now_ms)
        else:
            agent = case.principal.agent or ""
            answer = ask_publisher(self._plans, agent, dict(fields) | {"type": type_}, now_ms=now_ms)
            asked = Asked.publishing(agent, type_, answer, case.expect.view or "", now_ms)
        found = _decision(case.expect, answer)
        if not found:
            found = self._fields(case.expect, answer, asked)
        self._cover.note(asked)
        return found

    def _event(self, case: Case, type_: str, now_ms: int) -> dict[str, Any]:
        """The event of a case, changed as it says, as an agent takes it."""
        data: bytes | dict[str, str]
        if case.event is None:
            team = self._plans.tenancy.team_of.get(case.principal.agent or "", "policy-test")
            data = {"specversion": "1.0", "id": "policy-test", "source": f"/{team}"}
        else:
            found = self._fixtures.get(case.event, self._fixtures.get(FIXTURES + case.event))
            if found is None:
                names = ", ".join(sorted(self._fixtures)[:12])
                raise BadFixture(
                    f"no fixture `{case.event}`",
                    expected=f"one of {names}" if names else "a .json file beside the policies",
                    got=case.event,
                    next="name it from the policies' directory, or from `fixtures/`",
                )
            data = found
        fields = accepted(data, type_=type_, now_ms=now_ms)
        if case.set or case.unset:
            fields = accepted(changed(fields, case.set, case.unset), type_=type_, now_ms=now_ms)
        return fields

    @staticmethod
    def _fields(expect: Expect, answer: Answer, asked: Asked) -> list[Mismatch]:
        """What stands at the paths of *expect* in what the reader is handed, or in the copy of *expect*'s view."""
        if not expect.fields:
            return []
        event = answer.event if answer.event is not None else answer.copies.get(expect.view or "")
        if event is None:
            got = "the event is denied" if not answer.allowed else "no view is named"
            return [Mismatch("expect.fields", "an event to look into", got)]
        found: list[Mismatch] = []
        for path, wanted in expect.fields.items():
            mismatches, places = compare(path, wanted, answer.original, event)
            found.extend(mismatches)
            if not mismatches:
                asked.checked.extend(places)
        return found


def _decision(expect: Expect, answer: Answer) -> list[Mismatch]:
    got = "allow" if answer.allowed else "deny"
    why = answer.reason + (f" ({answer.rule})" if answer.rule else "")
    if got != expect.decision:
        return [Mismatch("decision", expect.decision, f"{got}: {why}")]
    found = []
    if expect.rule is not None and expect.rule != answer.rule:
        found.append(Mismatch("rule", expect.rule, answer.rule or f"none: {answer.reason}"))
    if expect.reason is not None and expect.reason not in _reasons(answer):
        found.append(Mismatch("reason", expect.reason, why))
    if expect.view is not None:
        views = [answer.view] if answer.event is not None else sorted(answer.copies)
        if expect.view not in views:
            found.append(Mismatch("view", expect.view, ", ".join(filter(None, views)) or "none"))
    return found


def _reasons(answer: Answer) -> tuple[str, ...]:
    """The words for why: a source that no allow takes is, to `explain`, no allow that matches."""
    return (answer.reason, "no-allow-matched") if answer.reason == "source-not-allowed" else (answer.reason,)


def _fault(error: MeshError) -> Mismatch:
    told = f"{error.code}: {error.message}" + (f" ({error.got})" if error.got else "")
    return Mismatch("event", error.expected or "an event that the case can be asked of", told)


def _name(case: Case) -> str:
    if case.name is not None:
        return case.name
    who = f"team {case.principal.team}" if case.principal.team else f"agent {case.principal.agent}"
    verb = "subscribes to" if case.subscribe else "publishes"
    return f"{who} {verb} {case.subscribe or case.publish}: {case.expect.decision}"
