"""Explaining: the answer is the one agents enforce, reasons have their places, no value stands beside the event."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import AmbiguousView, Denied
from mesh.event import Draft
from mesh.journey import outbound, partition_token
from mesh.policy.because import Outcome, outcome
from mesh.policy.compile import Plans
from mesh.policy.documents import PolicySet
from mesh.policy.explain import TRIAL_SOURCE_KEY, Explanation, explain_publish, explain_read, no_bundle
from mesh.policy.expressions import compile_condition
from mesh.policy.load import load
from mesh.policy.trial import TRIAL_KEYS, plans_of
from tests.conftest import ROOT
from tests.unit.policy_world import BASE, NO_DATA, access, document, event

TABLE = json.loads((ROOT / "tests/tables/policy_decisions.json").read_text())
NO_ACCESS = {name: text for name, text in BASE.items() if name != "access.yaml"}
TYPE = "crm.contact.updated.v1"


def world(*extra: str, base: dict[str, str] | None = None) -> tuple[PolicySet, Plans]:
    """The base (or *base*) with *extra* documents, loaded and compiled."""
    files = dict(BASE if base is None else base) | {f"extra{i}.yaml": text for i, text in enumerate(extra)}
    policies = load(files)
    return policies, plans_of(policies)["acme"]


def reading(
    made: tuple[PolicySet, Plans], team: str, fields: dict[str, Any], view: str | None = None, now_ms: int = 0
) -> Explanation:
    """What a team reads, explained."""
    return explain_read(*made, team, fields["type"], fields, view=view, now_ms=now_ms)


def publishing(
    made: tuple[PolicySet, Plans], fields: dict[str, Any], agent: str = "crm-adapter", now_ms: int = 0
) -> Explanation:
    """What an agent publishes, explained."""
    return explain_publish(*made, agent, fields, now_ms=now_ms)


def rules(answer: Explanation) -> list[tuple[str, str, bool]]:
    """(effect, rule, matched) of each rule that could have decided."""
    return [(trace.effect, trace.rule, trace.matched) for trace in answer.rules]


def because(answer: Explanation, rule: str) -> str:
    """Why *rule* matched or not."""
    return next(trace.because for trace in answer.rules if trace.rule == rule)


# --- the answer is that of the plans ---------------------------------------------------------------------------------


def told(reason: str, rule: str | None) -> tuple[str | None, str]:
    """How `explain` tells a decision: a source that no allow is for is an allow that does not match."""
    return (None, "no-allow-matched") if reason == "source-not-allowed" else (rule, reason)


@pytest.mark.parametrize("row", TABLE["rows"], ids=[row["name"] for row in TABLE["rows"]])
def test_a_publish_is_explained_as_it_is_decided(row: dict[str, Any]) -> None:
    """Each row of the table of decisions gets, explained, the decision that agents make."""
    made = world(access(allow=TABLE["allow"], deny=TABLE["deny"]), base=NO_ACCESS)
    fields = event(row.get("data", NO_DATA), type=row["type"], source=row.get("source", "/crm"))
    agent, now_ms = row.get("agent", "crm-adapter"), row.get("now_ms", 0)
    answer = explain_publish(*made, agent, fields, now_ms=now_ms)
    allowed, rule, reason = row["decision"]
    assert (answer.allowed, (answer.rule, answer.reason)) == (allowed, told(reason, rule))
    matched = [trace for trace in answer.rules if trace.matched]
    if answer.rule is not None:
        assert answer.rule in [trace.rule for trace in matched]
    else:
        assert not [trace for trace in matched if trace.effect in {"allow", "deny"}]


_scalar = st.sampled_from([None, True, 0, 7, 101, "x", "x-test"])
_data = st.one_of(st.just(NO_DATA), _scalar, st.dictionaries(st.sampled_from(["account", "amount", "vip"]), _scalar))
_types = st.sampled_from(["crm.contact.updated.v1", "crm.contact.removed.v3", "crm.deal.won.v1", "crm.order.a", "hr.a"])
_sources = st.sampled_from(["/crm", "/crm/eu", "/crmx", "/salesforce/a", "/hub/1/eu", "/crm/../x", "urn:x"])


@given(_data, _types, _sources, st.sampled_from(["crm-adapter", "lake", "desk"]))
def test_any_publish_is_explained_as_it_is_decided(data: Any, type_: str, source: str, agent: str) -> None:
    """For random events the explained decision, and the copies beside it, are exactly those of an agent."""
    policies, plans = DECISIONS
    fields = event(data, type=type_, source=source, partitionkey="k-1")
    decision = plans.publisher(agent).decide(fields, now_ms=5)
    answer = explain_publish(policies, plans, agent, fields, now_ms=5)
    assert (answer.allowed, (answer.rule, answer.reason)) == (
        decision.allowed,
        told(decision.reason, decision.rule),
    )
    first = next((t for t in answer.rules if t.effect == "deny" and t.matched), None)
    assert (first is not None) == (decision.reason in {"rule", "error-in-deny"} and not decision.allowed)
    try:
        made = outbound(
            Draft(dict(fields)), plans.publisher(agent), TRIAL_KEYS, site=plans.bundle.site, tenant="acme",
            revision=0, dedupe_key=TRIAL_SOURCE_KEY, now_ms=5,
        )  # fmt: skip
    except Denied:
        assert answer.copies == ()
    else:
        assert [copy.event for copy in answer.copies or ()] == [json.loads(copy.body) for copy in made.copies]


@given(_data, _types, st.sampled_from(["crm", "analytics", "support"]), st.sampled_from([None, "clear", "rows"]))
def test_any_read_is_explained_as_it_is_decided(data: Any, type_: str, team: str, view: str | None) -> None:
    """For random events, teams and views the explained decision is the reader's right and then the view's rows."""
    policies, plans = READS
    fields = event(data, type=type_)
    try:
        answer = explain_read(policies, plans, team, type_, fields, view=view, now_ms=0)
    except AmbiguousView:
        assert view is None
        return
    views = [view] if view is not None else [v.plan.name for v in plans.views(type_)]
    decisions = {name: plans.reader(team, type_, name, now_ms=0) for name in views}
    read = next(((name, d) for name, d in decisions.items() if d.allowed), None)
    if read is None:
        refusal = plans.reader(team, type_, view or "", now_ms=0)
        assert (answer.allowed, answer.rule, answer.reason) == (False, refusal.rule, refusal.reason)
        assert (answer.view, answer.event) == (None, None)
        return
    name, decision = read
    shown = plans.view(name, type_).rows(fields)
    assert (answer.allowed, answer.view) == (shown, name)
    assert (answer.rule, answer.reason) == ((decision.rule, "rule") if shown else (None, "row-filter"))
    assert (answer.event is not None) == shown


DECISIONS = world(
    access(allow=TABLE["allow"], deny=TABLE["deny"]),
    access("readers", allow=[{"id": "r", "who": {"teams": ["analytics"]}, "subscribe": ["crm.>"], "view": "masked"}]),
    base=NO_ACCESS,
)
READS = world(
    document("View", "rows", {"otherwise": "redact", "rows": "data.amount > 5"}),
    access(
        allow=[
            {"id": "crm-publishes-hr", "who": {"teams": ["crm"]}, "publish": ["hr.>"]},
            {"id": "analytics-rows", "who": {"teams": ["analytics"]}, "subscribe": ["crm.order.>"], "view": "rows"},
            {"id": "support-rows", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "rows"},
        ],
        deny=[{"id": "no-removed", "who": {"teams": ["support"]}, "subscribe": ["crm.contact.removed"]}],
    ),
)


# --- the contract of `--json` ----------------------------------------------------------------------------------------


def test_a_read_has_exactly_these_keys() -> None:
    """For a reader: decision, rule, reason, view, event, revision, enforced, trace; rules and paths in the trace."""
    answer = reading(world(), "analytics", event({"name": "Anna", "country": "DE"})).as_dict()
    assert list(answer) == ["decision", "rule", "reason", "view", "event", "revision", "enforced", "trace"]
    assert (answer["decision"], answer["rule"], answer["reason"]) == ("allow", "analytics-reads", "rule")
    assert (answer["view"], answer["revision"], answer["enforced"]) == ("masked", 0, "nats")
    assert answer["event"]["data"] == {"country": "DE"}
    assert answer["trace"][0] == {
        "rule": "analytics-reads", "file": "access.yaml", "line": 8, "effect": "allow", "matched": True,
        "because": "team analytics may read this type in the view masked",
    }  # fmt: skip
    paths = {entry["path"]: entry for entry in answer["trace"][1:]}
    assert paths["data.name"] == {"path": "data.name", "tags": ["pii.name"], "masks": ["drop"], "chosen": "drop"}
    assert set(paths) == {"data.name", "data.country"}


def test_a_publish_has_copies_and_no_view() -> None:
    """For a publisher view and event are null, and each copy says view, type, route and event."""
    answer = publishing(world(), event({"name": "Anna"})).as_dict()
    assert list(answer) == ["decision", "rule", "reason", "view", "event", "copies", "revision", "enforced", "trace"]
    assert (answer["rule"], answer["view"], answer["event"]) == ("crm-publishes", None, None)
    assert [list(copy) for copy in answer["copies"]] == [["view", "type", "route", "event"]] * 2
    assert [(c["view"], c["type"], c["route"]) for c in answer["copies"]] == [
        ("clear", TYPE, None),
        ("masked", TYPE, None),
    ]
    assert answer["copies"][1]["event"]["data"] == {}
    (path,) = (entry for entry in answer["trace"] if "path" in entry)
    assert path == {
        "path": "data.name", "tags": ["pii.name"], "masks": ["clear", "drop"], "chosen": "clear: clear; masked: drop",
    }  # fmt: skip


def test_paths_that_meet_have_an_entry_each() -> None:
    """Tags of all paths that meet add up, and a script finds every path by its own text, quoted names included."""
    fields = {"**.name": ["pii.floor"], 'data."a + b"': ["public"], "data.name": ["pii.name"]}
    more = document("Classification", "floor", {"types": ["crm.>"], "fields": fields})
    answer = reading(world(more), "analytics", event({"name": "Anna", "a + b": 1})).as_dict()
    paths = {entry["path"]: entry for entry in answer["trace"] if "path" in entry}
    assert set(paths) == {"data.name", "**.name", 'data."a + b"'}
    assert paths["data.name"]["chosen"] == paths["**.name"]["chosen"] == "drop"
    assert set(paths["**.name"]["tags"]) == {"pii.name", "pii.floor"}


def test_no_policies_deny_everything() -> None:
    """Without a bundle the answer is no, with its own reason and the same keys."""
    read, publish = no_bundle(publishing=False).as_dict(), no_bundle(publishing=True).as_dict()
    assert (read["decision"], read["reason"], read["rule"], read["trace"]) == ("deny", "no-valid-bundle", None, [])
    assert publish["copies"] == []
    assert "copies" not in read


@given(st.dictionaries(st.sampled_from(["name", "email", "country", "account", "x"]), st.just("SECRETVALUE")))
def test_no_value_stands_outside_the_event(data: dict[str, str]) -> None:
    """Whatever the event holds, nothing of it is in the rules or the paths: neither values nor names of its own."""
    deny = {"id": "d", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "data.account.endsWith('-test')"}
    made = world(access(deny=[deny]), document("View", "rows", {"otherwise": "clear", "rows": "data.x == 'y'"}))
    fields = event({**data, "OWNNAME": {"OWNNAME": 1}}, subject="SECRETVALUE", source="/crm/SECRETVALUE")
    for answer in (reading(made, "analytics", fields), publishing(made, fields)):
        text = json.dumps(answer.as_dict()["trace"])
        assert "SECRETVALUE" not in text
        assert "OWNNAME" not in text


def test_the_event_is_only_read() -> None:
    """Explaining changes nothing in what it was given."""
    fields = event({"name": "Anna", "list": [{"a": 1}]}, partitionkey="p")
    before = copy.deepcopy(fields)
    reading(world(), "analytics", fields)
    publishing(world(), fields)
    assert fields == before


# --- reading ---------------------------------------------------------------------------------------------------------


def test_several_views_ask_for_one() -> None:
    """Grants in different views: an error that names every grant, unless the caller names the view."""

    def grant(id: str, expires: str) -> dict[str, Any]:
        who = {"teams": ["analytics"]}
        return {"id": id, "who": who, "subscribe": ["crm.>"], "view": "clear", "expires": expires, "reason": "INC"}

    made = world(access(allow=[grant("old", "1970-01-01T00:00:00Z"), grant("inc-1", "2100-01-01T00:00:00Z")]))
    with pytest.raises(AmbiguousView) as caught:
        reading(made, "analytics", event())
    assert caught.value.details["grants"] == ["analytics-reads", "inc-1"]
    assert "inc-1 (--view clear)" in caught.value.message
    assert reading(made, "analytics", event(), view="clear").rule == "inc-1"
    answer = reading(made, "analytics", event(), view="masked")
    assert rules(answer) == [
        ("allow", "analytics-reads", True),
        ("allow", "old", False),
        ("allow", "inc-1", False),
    ]
    assert because(answer, "inc-1") == "it gives the view clear, and masked was asked for"


def test_several_grants_in_one_view_are_no_question() -> None:
    """Two grants that give the same view need no `--view`: the first decides."""
    again = {"id": "again", "who": {"teams": ["analytics"]}, "subscribe": ["crm.contact.>"], "view": "masked"}
    answer = reading(world(access(allow=[again])), "analytics", event())
    assert (answer.view, {rule for _, rule, matched in rules(answer) if matched}) == (
        "masked",
        {"analytics-reads", "again"},
    )


def test_a_deny_needs_no_view() -> None:
    """A deny decides before any view is asked for, and says who enforces it."""
    deny = access(deny=[{"id": "no", "who": {"teams": ["analytics"]}, "subscribe": ["crm.contact.>"]}])
    answer = reading(world(deny), "analytics", event())
    assert (answer.allowed, answer.rule, answer.reason, answer.view, answer.event) == (False, "no", "rule", None, None)
    assert rules(answer) == [("deny", "no", True), ("allow", "analytics-reads", True)]


def test_a_view_without_a_grant_is_a_no() -> None:
    """A view that the team has no grant for is not read, whatever other views it has."""
    answer = reading(world(), "analytics", event(), view="clear")
    assert (answer.allowed, answer.reason, answer.view) == (False, "no-allow-matched", None)


def test_a_row_filter_is_named_with_its_place_and_parts() -> None:
    """An event that the view does not show is denied, and the trace says which part of the filter is false."""
    view = document("View", "eu", {"otherwise": "redact", "rows": "has(data.country) && data.country in ['DE', 'FR']"})
    grant = {"id": "support-reads", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "eu"}
    made = world(view, access(allow=[grant]))
    answer = reading(made, "support", event({"country": "US"}))
    assert (answer.allowed, answer.reason, answer.rule, answer.view) == (False, "row-filter", None, "eu")
    assert (answer.event, answer.enforced) == (None, "agent only")
    (trace,) = answer.rules
    assert "whose row filter (extra0.yaml:" in trace.because
    assert [(part.text, part.result) for part in trace.parts] == [
        ("has(data.country)", "true"),
        ("data.country in ['DE', 'FR']", "false"),
    ]
    missing = reading(made, "support", event({})).rules[0]
    assert [part.result for part in missing.parts] == ["false", "not evaluated"]
    assert reading(made, "support", event({"country": "DE"})).allowed


def test_a_grant_that_ended_says_when() -> None:
    """An expired grant is no grant; the trace names the time it ended at."""
    grant = {"id": "inc", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "masked", "reason": "INC"}
    made = world(access(allow=[grant | {"expires": "1970-01-01T00:00:10Z"}]))
    assert reading(made, "support", event(), now_ms=9_999).allowed
    ended = reading(made, "support", event(), now_ms=10_000)
    assert (ended.allowed, ended.reason) == (False, "no-allow-matched")
    assert because(ended, "inc") == "it ended at 1970-01-01T00:00:10Z"


def test_a_grant_for_some_agents_of_a_team_says_so() -> None:
    """A team reads as a whole: a line that names one of its agents could have decided, and did not."""
    line = {"id": "one", "who": {"agents": ["desk", "lake"]}, "subscribe": ["crm.>"], "view": "masked"}
    answer = reading(world(access(allow=[line])), "support", event())
    assert rules(answer) == [("allow", "one", False)]
    assert "a team reads as a whole" in because(answer, "one")


def test_the_partition_key_is_a_token() -> None:
    """A view shows a token in place of the partition key, in a read and in a copy alike."""
    fields = event({}, partitionkey="contact-4711")
    token = partition_token(TRIAL_SOURCE_KEY, "contact-4711")
    read = reading(world(), "analytics", fields).event
    copies = publishing(world(), fields).copies
    assert read is not None
    assert copies is not None
    assert {read["partitionkey"], *(c.event["partitionkey"] for c in copies)} == {token}


# --- who enforces it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("publish", "deny", "enforced"),
    [
        (["crm.contact.updated.v1", "crm.contact.created.v1"], ["crm.contact.updated"], "nats"),  # taken out by NATS
        (["crm.contact.>"], ["crm.contact.updated"], "agent only"),  # nothing to take it out of
        (["crm.contact.>"], ["crm.>"], "nats"),  # nothing is left
    ],
)
def test_a_deny_inside_an_allow_says_who_enforces_it(publish: list[str], deny: list[str], enforced: str) -> None:
    """NATS enforces a deny where the publish lines name exact types, or where it covers all; else agents alone do."""
    allow = [
        {"id": "p", "who": {"teams": ["crm"]}, "publish": publish},
        {"id": "s", "who": {"teams": ["analytics"]}, "subscribe": ["crm.contact.>"], "view": "masked"},
    ]
    denies = [{"id": "d", "who": {"teams": ["analytics"]}, "subscribe": deny}]
    made = world(access(allow=allow, deny=denies), base=NO_ACCESS)
    answer = reading(made, "analytics", event())
    assert (answer.allowed, answer.rule, answer.enforced) == (False, "d", enforced)


@pytest.mark.parametrize(
    ("line", "attributes", "decision"),
    [
        ({}, {}, ("rule", "nats")),
        ({"when": "data.a == 1"}, {}, ("rule", "agent only")),
        ({"when": "data.a == 2"}, {}, ("no-allow-matched", "agent only")),
        ({"sources": ["/hub/*"]}, {"source": "/hub/1"}, ("rule", "agent only")),
        ({"sources": ["/hub/*"]}, {}, ("rule", "nats")),
        ({}, {"source": "/hub/1"}, ("no-allow-matched", "agent only")),
        ({}, {"type": "hr.a.v1"}, ("no-allow-matched", "nats")),
    ],
)
def test_what_hangs_on_the_event_is_the_agents_to_enforce(
    line: dict[str, Any], attributes: dict[str, Any], decision: tuple[str, str]
) -> None:
    """`when` and `sources` are no question for NATS; a type that no line names is refused by it."""
    allow = [
        {"id": "p", "who": {"teams": ["crm"]}, "publish": ["crm.>"]} | line,
        {"id": "s", "who": {"teams": ["analytics"]}, "subscribe": ["crm.>"], "view": "masked"},
    ]
    answer = publishing(world(access(allow=allow), base=NO_ACCESS), event({"a": 1}, **attributes))
    assert (answer.reason, answer.enforced) == decision


# --- conditions ------------------------------------------------------------------------------------------------------


def asked(text: str, data: Any) -> Outcome:
    """What a condition comes to."""
    return outcome(compile_condition(text, roots=frozenset({"event", "data"})), {"event": {}, "data": data})


@pytest.mark.parametrize(
    ("text", "data", "result", "parts"),
    [
        ("data.a > 1", {"a": 2}, "true", [("data.a > 1", "true", 0)]),
        ("data.a > 1", {}, "error: no-such-key", [("data.a > 1", "error: no-such-key", 0)]),
        (
            "data.a > 1 && data.b",
            {"a": 0, "b": True},
            "false",
            [("data.a > 1", "false", 0), ("data.b", "not evaluated", 0)],
        ),
        (
            "data.a > 1 || data.b",
            {"a": 2, "b": True},
            "true",
            [("data.a > 1", "true", 0), ("data.b", "not evaluated", 0)],
        ),
        (
            "data.a > 1 && !data.b",
            {"b": True},
            "false",
            [("data.a > 1", "error: no-such-key", 0), ("!data.b", "false", 0)],
        ),
        (
            "data.c && (data.a || data.b)",
            {"a": False, "b": True, "c": True},
            "true",
            [
                ("data.c", "true", 0),
                ("data.a || data.b", "true", 0),
                ("data.a", "false", 1),
                ("data.b", "true", 1),
            ],
        ),
        (
            "data.c && (data.a || data.b)",
            {"c": False},
            "false",
            [
                ("data.c", "false", 0),
                ("data.a || data.b", "not evaluated", 0),
                ("data.a", "not evaluated", 1),
                ("data.b", "not evaluated", 1),
            ],
        ),
        (
            "data.a ? data.b : data.c",
            {"a": False, "c": True},
            "true",
            [("data.a", "false", 0), ("data.b", "not evaluated", 0), ("data.c", "true", 0)],
        ),
        ("data.a", {"a": 1}, "error: not-bool", [("data.a", "error: not-bool", 0)]),
    ],
)
def test_each_part_of_a_condition_says_what_it_came_to(
    text: str, data: Any, result: str, parts: list[tuple[str, str, int]]
) -> None:
    """Parts are true, false, an error, or not evaluated once an earlier part has settled it."""
    found = asked(text, data)
    assert found.result == result
    assert [(part.text, part.result, part.depth) for part in found.parts] == parts


def test_a_deny_that_fails_says_that_this_is_a_match() -> None:
    """An error in a deny matches, in an allow it does not; both say so."""

    def rule(id: str) -> dict[str, Any]:
        return {"id": id, "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "data.a > 1"}

    made = world(access(allow=[rule("maybe")], deny=[rule("never")]))
    answer = publishing(made, event({}))
    assert (answer.allowed, answer.rule, answer.reason) == (False, "never", "error-in-deny")
    assert because(answer, "never").endswith(
        "error: no-such-key, and a deny that fails is a match: `data.a > 1` error: no-such-key"
    )
    assert because(answer, "maybe").startswith(
        "the condition is error: no-such-key, and an allow that fails is no match"
    )
    assert rules(answer) == [("deny", "never", True), ("allow", "crm-publishes", True), ("allow", "maybe", False)]


# --- routes ----------------------------------------------------------------------------------------------------------


def routed(*lines: dict[str, Any]) -> tuple[PolicySet, Plans]:
    """The base with routes, and a reader of what they make."""
    grant = {"id": "support-reviews", "who": {"teams": ["support"]}, "subscribe": ["audit.>"], "view": "masked"}
    return world(document("Route", "routes", {"routes": list(lines)}), access(allow=[grant]))


def route(id: str = "large", **more: Any) -> dict[str, Any]:
    """A copy of every contact."""
    return {"id": id, "match": {"types": ["crm.contact.>"]}, "effect": "copy", "to": "audit.contact.v1"} | more


def test_a_copy_route_makes_a_copy_of_its_own() -> None:
    """The copies of a route stand beside the others, with their type and the route's id."""
    made = routed(route(when="data.amount > 10"))
    answer = publishing(made, event({"amount": 11, "name": "Anna"}))
    assert answer.copies is not None
    (copied,) = (copy for copy in answer.copies if copy.route is not None)
    assert (copied.view, copied.type, copied.route) == ("masked", "audit.contact.v1", "large")
    assert copied.event["causationid"] == "e-1"
    assert "name" not in copied.event["data"]  # its classification follows it
    assert rules(answer)[-1] == ("copy", "large", True)
    small = publishing(made, event({"amount": 1}))
    assert rules(small)[-1] == ("copy", "large", False)
    assert [copy.route for copy in small.copies or ()] == [None, None]


def test_a_move_takes_the_event_from_its_readers() -> None:
    """A moved event is a deny for readers of its own type, by the move; one that is not moved is theirs."""
    made = routed(route("away", effect="move", when="data.secret"))
    moved = reading(made, "analytics", event({"secret": True}))
    assert (moved.allowed, moved.rule, moved.reason, moved.event) == (False, "away", "rule", None)
    unsure = reading(made, "analytics", event({}))
    assert (unsure.allowed, unsure.rule, unsure.reason) == (False, "away", "error-in-deny")
    assert reading(made, "analytics", event({"secret": False})).allowed
    published = publishing(made, event({"secret": True}))
    assert [(copy.view, copy.route) for copy in published.copies or ()] == [("masked", "away")]


def test_a_move_is_asked_for_the_agent_that_may_publish_the_event() -> None:
    """A move that asks for the `principal` gets the publisher; an event that nobody may publish is not routed."""
    for when, moved in (("principal.agent == 'crm-adapter'", True), ("principal.team == 'analytics'", False)):
        made = routed(route("away", effect="move", when=when))
        assert reading(made, "analytics", event({})).allowed is not moved, when
    made = routed(route("away", effect="move"))
    answer = reading(made, "analytics", event({}, source="/nobody"))
    assert answer.allowed
    assert because(answer, "away") == "no agent may publish this event, so nothing is made of it"


def test_what_a_route_copies_is_explained_to_the_readers_of_the_copy() -> None:
    """Asked for under the type of the copies, an event is what its route makes of it, or nothing."""
    made = routed(route(when="data.amount > 10"))
    fields = event({"amount": 11, "name": "Anna"}, partitionkey="k")
    read = explain_read(*made, "support", "audit.contact.v1", fields, now_ms=0)
    assert (read.allowed, read.rule, read.view) == (True, "support-reviews", "masked")
    assert rules(read) == [("allow", "support-reviews", True), ("copy", "large", True)]
    copies = [copy.event for copy in publishing(made, fields).copies or () if copy.route == "large"]
    assert read.event == copies[0]
    small = explain_read(*made, "support", "audit.contact.v1", event({"amount": 1}), now_ms=0)
    assert (small.allowed, small.rule, small.reason) == (False, None, "no-allow-matched")
    assert rules(small) == [("allow", "support-reviews", True), ("copy", "large", False)]
    itself = explain_read(*made, "support", "audit.contact.v1", event({"amount": 1}, type="audit.contact.v1"), now_ms=0)
    assert itself.allowed


def test_the_row_filter_of_a_copy_is_asked_about_the_copy() -> None:
    """What a route makes has its own type, and the rows of its readers' view are explained with that."""
    view = document("View", "reviews", {"otherwise": "clear", "rows": "event.type.startsWith('audit.')"})
    grant = {"id": "support-reviews", "who": {"teams": ["support"]}, "subscribe": ["audit.>"], "view": "reviews"}
    limited = grant | {"expires": "2100-01-01T00:00:00Z", "reason": "INC"}
    made = world(document("Route", "routes", {"routes": [route()]}), view, access(allow=[limited]))
    read = explain_read(*made, "support", "audit.contact.v1", event({}), now_ms=0)
    assert read.allowed
    assert [part.result for part in read.rules[0].parts] == ["true"]


def test_an_event_of_another_type_is_moved_as_one_of_the_type_asked_about() -> None:
    """An event that counts as of another type meets the moves of that type."""
    made = routed(route("away", effect="move"))
    answer = explain_read(*made, "analytics", TYPE, event({}, type="crm.deal.won.v1"), now_ms=0)
    assert (answer.allowed, answer.rule) == (False, "away")
    assert ("move", "away", True) in rules(answer)
