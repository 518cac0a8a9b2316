"""What a PolicyTest must hold by itself, and the names in it that other documents declare."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.policy.bind import Path as At
from mesh.policy.bind import shown
from mesh.policy.check_fields import attempt
from mesh.policy.check_masks import Note
from mesh.policy.model import PolicyTest
from mesh.policy.model_cases import Case, Never, Only
from mesh.policy.paths import Path
from mesh.policy.texts import instant_ms, is_rule_id
from mesh.subjects import Glob, Pattern, check_type


def check_policy_test(value: PolicyTest, note: Note) -> None:
    """Note what is wrong with *value*."""
    spec = value.spec
    if not spec.cases and not spec.invariants:
        note(("spec",), "a PolicyTest that tests nothing", "add one to `cases` or `invariants`, or remove the file")
    for index, case in enumerate(spec.cases):
        _case(case, ("spec", "cases", index), note)
    for index, invariant in enumerate(spec.invariants):
        at: At = ("spec", "invariants", index)
        if (invariant.never is None) == (invariant.only is None):
            note(at, "an invariant has exactly one of `never` and `only`", "split it into two")
        if invariant.never is not None:
            _never(invariant.never, (*at, "never"), note)
        if invariant.only is not None:
            _only(invariant.only, (*at, "only"), note)


def named_in(value: PolicyTest) -> Iterator[tuple[str, str, At]]:
    """The names in *value* that others declare: (`team`, `agent`, `view` or `tag`, the name, where it stands)."""
    for index, case in enumerate(value.spec.cases):
        at: At = ("spec", "cases", index)
        for noun in ("team", "agent"):
            name = getattr(case.principal, noun)
            if name is not None:
                yield noun, name, (*at, "as", noun)
        if case.view is not None:
            yield "view", case.view, (*at, "view")
        if case.expect.view is not None:
            yield "view", case.expect.view, (*at, "expect", "view")
    for index, invariant in enumerate(value.spec.invariants):
        at = ("spec", "invariants", index)
        never, only = invariant.never, invariant.only
        if never is not None:
            for key in ("see", "guess"):
                yield from (("tag", text, (*at, "never", key, n)) for n, text in enumerate(getattr(never, key) or ()))
            yield from (("team", t, (*at, "never", "except", n)) for n, t in enumerate(never.exceptions or ()))
        if only is not None:
            yield from (("team", text, (*at, "only", "teams", n)) for n, text in enumerate(only.teams))


def _case(case: Case, at: At, note: Note) -> None:
    who = case.principal
    if (who.team is None) == (who.agent is None):
        note((*at, "as"), "a case is about exactly one of `team` and `agent`", "split it into two cases")
    if (case.subscribe is None) == (case.publish is None):
        note(at, "a case has exactly one of `subscribe` and `publish`", "split it into two cases")
    elif case.subscribe is not None and who.agent is not None:
        note((*at, "as"), "agents do not subscribe: a team reads as a whole", "write `as: {team: <name>}`")
    elif case.publish is not None and who.team is not None:
        note((*at, "as"), "teams do not publish: each agent has rights of its own", "write `as: {agent: <name>}`")
    for verb in ("subscribe", "publish"):
        if getattr(case, verb) is not None:
            attempt(check_type, getattr(case, verb), (*at, verb), note)
    if case.publish is not None and case.view is not None:
        note((*at, "view"), "a publisher has no view: every reader's view is made", "remove `view`")
    if case.now is not None:
        attempt(instant_ms, case.now, (*at, "now"), note)
    _paths(case, at, note)
    _expect(case, (*at, "expect"), note)


def _paths(case: Case, at: At, note: Note) -> None:
    for text in case.set:
        path = attempt(Path.parse, text, (*at, "set", text), note)
        if path is not None and (path.deep or path.subtree):
            note((*at, "set", text), f"`{shown(text)}` names no one place", "write the path out, without `**`")
    for index, text in enumerate(case.unset):
        attempt(Path.parse, text, (*at, "unset", index), note)
    for text in case.expect.fields:
        attempt(Path.parse, text, (*at, "expect", "fields", text), note)


def _expect(case: Case, at: At, note: Note) -> None:
    expect = case.expect
    if expect.rule is not None and not is_rule_id(expect.rule):
        note((*at, "rule"), f"`{shown(expect.rule)}` is not a rule id", "use lower-case words joined by single hyphens")
    if expect.fields and expect.decision == "deny":
        note((*at, "fields"), "what is denied shows no field", "expect `allow`, or remove `fields`")


def _never(never: Never, at: At, note: Note) -> None:
    if never.see is None and never.guess is None:
        note(at, "`never` says nothing", "add `see: [<tags>]` or `guess: [<tags>]`")
    for key in ("see", "guess"):
        for index, text in enumerate(getattr(never, key) or ()):
            attempt(Glob.tag, text, (*at, key, index), note)


def _only(only: Only, at: At, note: Note) -> None:
    if (only.subscribe is None) == (only.publish is None):
        note(at, "`only` has exactly one of `subscribe` and `publish`", "split it into two invariants")
    for verb in ("subscribe", "publish"):
        for index, text in enumerate(getattr(only, verb) or ()):
            attempt(Pattern.parse, text, (*at, verb, index), note)
