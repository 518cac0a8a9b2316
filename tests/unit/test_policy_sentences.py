"""Reading policies back: one sentence a rule, at its line; and what deserves a look."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.policy.lint import warnings
from mesh.policy.load import load
from mesh.policy.sentences import Sentence, listed, sentences
from mesh.policy.trial import plans_of
from mesh.policy_files import read_directory
from tests.conftest import ROOT
from tests.unit.policy_world import BASE, access, document

LATER = "2100-01-01T00:00:00Z"


def read_back(*extra: str, base: dict[str, str] | None = None, now_ms: int = 0) -> list[Sentence]:
    """The sentences of the base (or *base*) with *extra* documents."""
    policies = load(dict(BASE if base is None else base) | {f"extra{i}.yaml": text for i, text in enumerate(extra)})
    return sentences(policies, plans_of(policies), now_ms=now_ms)


def said(text: str, name: str) -> list[str]:
    """The sentences of one document about *name*."""
    return [s.says for s in read_back(text) if s.file == "extra0.yaml" and s.name == name]


def looks(*extra: str, now_ms: int = 0) -> list[tuple[str, str, str]]:
    """(file, message without its place, what to do) of each warning about the base with *extra* documents."""
    policies = load(BASE | {f"extra{i}.yaml": text for i, text in enumerate(extra)})
    found = warnings(policies, plans_of(policies), now_ms=now_ms)
    return [(w.details["file"], w.message.split(": ", 1)[1], w.next) for w in found]


# --- rules -----------------------------------------------------------------------------------------------------------

CRM = {"teams": ["crm"]}


@pytest.mark.parametrize(
    ("effect", "line", "says"),
    [
        (
            "allow",
            {"who": CRM, "publish": ["crm.>", "hr.a"], "sources": ["/hub/*", "/x/**"]},
            "Team crm may publish crm.> and hr.a from the team's own source or below, or from /hub/* or /x/**.",
        ),
        (
            "allow",
            {"who": CRM, "publish": ["crm.>"], "when": "data.a ==\n  1"},
            (
                "Team crm may publish crm.> from the team's own source or below, when `data.a == 1`"
                " (agent only: NATS cannot tell)."
            ),
        ),
        (
            "allow",
            {
                "who": {"teams": ["support"], "agents": ["desk", "phone"]},
                "subscribe": ["crm.>"],
                "view": "masked",
                "since": "2026-01-01T00:00:00Z",
                "expires": LATER,
                "reason": "INC-1\nfor a while",
            },
            (
                "Agents desk and phone of team support may read crm.> in the view masked, with what is stored since"
                f" 2026-01-01T00:00:00Z, until {LATER} (INC-1 for a while)."
            ),
        ),
        (
            "deny",
            {"who": {"teams": ["analytics", "support"]}, "subscribe": ["crm.contact.>"]},
            "Teams analytics and support may never read crm.contact.> (agent only: NATS cannot tell).",
        ),
        ("deny", {"who": {"teams": ["support"]}, "subscribe": ["crm.>"]}, "Team support may never read crm.>."),
        (
            "deny",
            {"who": {"agents": ["crm-adapter"]}, "publish": ["crm.>"], "when": "data.x"},
            (
                "Agent crm-adapter may never publish crm.> when `data.x`, nor when that cannot be told"
                " (agent only: NATS cannot tell)."
            ),
        ),
    ],
)
def test_a_rule_is_one_sentence(effect: str, line: dict[str, Any], says: str) -> None:
    """Who, what, where from, when, until when and why, and whether NATS can enforce it."""
    assert said(document("Access", "more", {effect: [{"id": "r", **line}]}), "r") == [says]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"effect": "copy"}, "Every event of crm.order.> is copied to audit.order.v1."),
        (
            {"effect": "move", "when": "data.a > 1", "reason": "four eyes"},
            (
                "Every event of crm.order.>, when `data.a > 1` or where that cannot be told, is moved to"
                " audit.order.v1: readers of its own type are not shown it (four eyes)."
            ),
        ),
    ],
)
def test_a_route_is_one_sentence(line: dict[str, Any], says: str) -> None:
    """Which events, under which condition, go where, and what a move takes away."""
    route = {"id": "r", "match": {"types": ["crm.order.>"]}, "to": "audit.order.v1", **line}
    assert said(document("Route", "d", {"routes": [route]}), "r") == [says]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"as": "clear"}, "shows as it is"),
        ({"as": "redact"}, "is redacted"),
        ({"as": "drop"}, "is left out"),
        ({"as": "partial", "with": {"style": "email"}}, "shows in part (email)"),
        ({"as": "partial", "with": {"first": 2, "last": 3}}, "shows in part (the first 2 and the last 3)"),
        ({"as": "pseudonym", "with": {"domain": "d"}}, "becomes a token of the domain d (128 bits, blake2b)"),
        (
            {"as": "encrypt", "with": {"mode": "random", "for": ["crm", "support"]}},
            "is encrypted for crm and support (random)",
        ),
        ({"as": "generalize", "with": {"date": "year"}}, "is generalized to the year"),
        ({"as": "generalize", "with": {"number": [10, 100.5]}}, "is generalized to a range between 10 and 100.5"),
        ({"as": "generalize", "with": {"geo": 1}}, "is generalized to a place of 1 decimals"),
        (
            {"as": "truncate-ip", "with": {"v4": 16}},
            "keeps the first 16 bits of an IPv4 and 48 bits of an IPv6 address",
        ),
        ({"as": "truncate-ip"}, "keeps the first 24 bits of an IPv4 and 48 bits of an IPv6 address"),
    ],
)
def test_a_mask_line_is_one_sentence(line: dict[str, Any], says: str) -> None:
    """What becomes of the values with these tags, for every action of the menu."""
    view = {"mask": [{"tags": ["pii.name", "pii.contact.*"], **line}], "otherwise": "drop"}
    assert said(document("View", "v", view), "v") == [
        f"In the view v, what is tagged pii.name or pii.contact.* {says}.",
        "In the view v, everything else is left out.",
    ]


def test_a_view_says_its_rows_and_whom_it_is_like() -> None:
    """Rows are a sentence, and a view like another names it."""
    view = document("View", "eu", {"like": "masked", "rows": "data.country == 'DE'"})
    assert sorted(said(view, "eu")) == [
        "The view eu masks as masked does, and shows only what that one's rows let through too.",
        "The view eu shows only events where `data.country == 'DE'`.",
    ]


def test_other_documents_are_one_sentence_each() -> None:
    """Tenants, classifications and tests are read back too, with counts."""
    test = document("PolicyTest", "t", {"invariants": [{"never": {"see": ["pii.**"]}}]})
    found = {s.kind: s.says for s in read_back(test)}
    assert (
        found["tenant"]
        == "The tenant acme has the teams crm (crm-adapter), analytics (lake) and support (desk and phone)."
    )
    assert found["classification"] == "3 paths of crm.> carry 3 tags."
    assert found["test"] == "The test t has 0 cases and 1 invariant."


def test_a_subscription_says_whether_it_is_active() -> None:
    """Active with its filters, view and delivery; inactive with the reason."""
    active = document("Subscription", "all", {"types": ["crm.deal.*.v1"], "start": "all"}, team="analytics")
    assert said(active, "all") == [
        (
            "The subscription all of team analytics is active: it reads crm.deal.*.v1 in the view masked from the first"
            " stored event on, tries an event 8 times and has 1000 in hand at most."
        ),
    ]
    spec: dict[str, Any] = {"types": ["crm.deal.*.v1"], "order_by": "partitionkey", "rate": "90/min"}
    pauses = {"breaker": {"failures": 3, "open": "1m"}, "poison": {"share": 0.1}}
    (paced,) = said(document("Subscription", "paced", spec | pauses, team="analytics"), "paced")
    assert paced.endswith(
        " and has 1000 in hand at most, each partition key in order, 1.5 a second at most, left alone for 60 s after"
        " 3 failures in a row, paused once over 10% of the last 100 events are dead letters."
    )
    never = {"client": "nats", "retry": {"attempts": 1}}
    (plain,) = said(document("Subscription", "plain", {"types": ["crm.>"], **never}, team="analytics"), "plain")
    assert plain.endswith("tries an event once and has 1000 in hand at most, pulled by a plain NATS client.")
    idle = document("Subscription", "idle", {"types": ["crm.>"]}, team="support")
    assert said(idle, "idle") == [
        "The subscription idle of team support is inactive: team `support` has no lasting grant for `crm.>`."
    ]


def test_sentences_stand_in_the_order_of_the_files() -> None:
    """Each sentence has the line of its rule, in the order a reader meets them; and a machine gets the same."""
    routes = [
        {"id": f"r{n}", "match": {"types": ["crm.>"]}, "effect": "copy", "to": f"audit.a{n}.v1"} for n in range(2)
    ]
    extra = document("Route", "routes", {"routes": routes})
    found = read_back(extra)
    for sentence in (s for s in found if s.kind == "copy"):
        lines = extra.splitlines()[sentence.line - 1 :]
        assert next(line for line in lines if "id: r" in line).endswith(sentence.name)
    assert [(s.file, s.line) for s in found] == sorted((s.file, s.line) for s in found)
    text = BASE["access.yaml"].splitlines()
    for sentence in found:
        if sentence.file == "access.yaml":
            assert f"id: {sentence.name}," in text[sentence.line - 1]
    assert list(found[0].as_dict()) == ["file", "line", "tenant", "kind", "name", "says", "enforced"]


def test_every_rule_of_the_worked_example_is_read_back() -> None:
    """No rule, mask line or subscription of the example is passed over."""
    policies = load(read_directory(ROOT / "policies"))
    found = sentences(policies, plans_of(policies), now_ms=0)
    for document_ in policies.documents:
        spec: Any = document_.value.spec
        for attribute in ("allow", "deny", "routes"):
            for line in getattr(spec, attribute, ()):
                assert [s for s in found if s.name == line.id], line.id
        count = sum(s.file == document_.file for s in found)
        assert count >= max(1, len(getattr(spec, "mask", ())))
    assert all(s.says.endswith(".") and "  " not in s.says for s in found)


@pytest.mark.parametrize(("items", "text"), [((), "nothing"), ("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")])
def test_lists_are_english(items: str, text: str) -> None:
    """One, two and many."""
    assert listed(items) == text


# --- what deserves a look --------------------------------------------------------------------------------------------

UNNAMED = "no view has a mask for the tag `pii.contact.email`: its fields are as good as unclassified"


def test_the_base_has_one_thing_to_look_at() -> None:
    """A tag that no view names is told once, at the line of the first path that carries it."""
    assert looks() == [("crm.yaml", UNNAMED, "name the tag in a view, or use one that is named")]
    again = document("Classification", "again", {"types": ["crm.>"], "fields": {"data.mail": ["pii.contact.email"]}})
    assert len(looks(again)) == 1
    view = document("View", "more", {"mask": [{"tags": ["pii.**"], "as": "drop"}], "otherwise": "drop"})
    assert UNNAMED not in [message for _, message, _ in looks(view)]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            access(deny=[{"id": "d", "who": CRM, "publish": ["crm.>"], "when": "data.a.b == 1 || data.c"}]),
            "the deny `d` reads `data.a.b` and `data.c` without `has()`: an event without it is refused",
        ),
        (
            document(
                "Route",
                "r",
                {
                    "routes": [
                        {
                            "id": "m",
                            "match": {"types": ["crm.>"]},
                            "when": "data.a == 1",
                            "effect": "move",
                            "to": "audit.a.v1",
                        }
                    ]
                },
            ),
            "the move `m` reads `data.a` without `has()`: an event without it is moved",
        ),
        (access(deny=[{"id": "d", "who": CRM, "publish": ["hr.>"]}]), "`hr.>` denies what nobody may publish"),
        (document("View", "unread", {"otherwise": "drop"}), "no grant names the view `unread`"),
        (
            document("Subscription", "idle", {"types": ["crm.>"]}, team="support"),
            "the subscription `idle` of team `support` is inactive: team `support` has no lasting grant for `crm.>`",
        ),
        (
            access(
                allow=[
                    {
                        "id": "inc",
                        "who": {"teams": ["support"]},
                        "subscribe": ["crm.>"],
                        "view": "masked",
                        "expires": "1970-01-01T00:00:00Z",
                        "reason": "x",
                    }
                ]
            ),
            "the grant `inc` ended at 1970-01-01T00:00:00Z",
        ),
    ],
)
def test_what_deserves_a_look_is_told_with_file_and_fix(extra: str, message: str) -> None:
    """Each surprise is a warning at its file, and says what to do."""
    found = {text: (file, fix) for file, text, fix in looks(extra)}
    assert found[message][0] == "extra0.yaml"
    assert found[message][1]
    assert message not in [text for _, text, _ in looks()]


def test_guarded_reads_and_allows_are_no_surprise() -> None:
    """A deny that asks `has()` first, and an allow or a copy that does not, need no look."""
    deny = {"id": "d", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "has(data.a) && data.a == 1"}
    allow = {"id": "a", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "data.a == 1"}
    copy = {"id": "c", "match": {"types": ["crm.>"]}, "when": "data.a == 1", "effect": "copy", "to": "audit.a.v1"}
    extra = (access(allow=[allow], deny=[deny]), document("Route", "r", {"routes": [copy]}))
    assert not [message for _, message, _ in looks(*extra) if "has()" in message]


def test_a_team_that_can_test_guesses_is_told() -> None:
    """Reading the tokens of a domain while publishing into it: a warning at the grant that shows them."""
    view = document(
        "View",
        "tokens",
        {"mask": [{"tags": ["pii.**"], "as": "pseudonym", "with": {"domain": "people"}}], "otherwise": "drop"},
    )
    grant = {"id": "crm-tokens", "who": CRM, "subscribe": ["crm.>"], "view": "tokens"}
    (found,) = looks(view, access(allow=[grant]))
    assert found[0] == "extra1.yaml"
    assert found[1].startswith("guess: team `crm` reads tokens of the domain people in the view `tokens`")
    others = {"id": "analytics-tokens", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "tokens"}
    assert looks(view, access(allow=[others])) == []
