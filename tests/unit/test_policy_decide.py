"""Deciding: default deny, deny beats allow, errors fail closed; and the grants that NATS enforces say the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import NotFound
from mesh.jetstream.topology import durables
from mesh.limits import BreakerPolicy, PoisonPolicy, RateLimit
from mesh.policy.bundle import compile_bundles
from mesh.policy.compile import Plans, ReadGrantNow
from mesh.policy.decide import MAX_SOURCES, MAX_TYPES
from mesh.policy.grants import SubscriptionGrant, outermost
from mesh.policy.load import load
from mesh.policy.rules import spiffe_id
from mesh.policy_files import read_directory
from mesh.retry import RetryPolicy
from mesh.subjects import Pattern
from tests.conftest import ROOT
from tests.unit.policy_world import BASE, NO_DATA, Keys, access, document, event, plans

TABLE = json.loads((ROOT / "tests/tables/policy_decisions.json").read_text())
NO_ACCESS = {name: text for name, text in BASE.items() if name != "access.yaml"}
CRM = "spiffe://mesh.test/ns/acme/sa/crm-adapter"


def table_plans() -> Plans:
    """The plans of the table's rules."""
    rules = access(allow=TABLE["allow"], deny=TABLE["deny"])
    return plans(rules, base=NO_ACCESS)


def row_event(row: dict[str, Any]) -> dict[str, Any]:
    """The event of one row of the table."""
    return event(row.get("data", NO_DATA), type=row["type"], source=row.get("source", "/crm"))


@pytest.mark.parametrize("row", TABLE["rows"], ids=[row["name"] for row in TABLE["rows"]])
def test_a_publish_is_decided_as_its_row_says(row: dict[str, Any]) -> None:
    """Agent, type, source, data and time give exactly this decision, with its rule and reason."""
    decision = (
        table_plans().publisher(row.get("agent", "crm-adapter")).decide(row_event(row), now_ms=row.get("now_ms", 0))
    )
    assert [decision.allowed, decision.rule, decision.reason] == row["decision"]


def test_a_decision_is_the_same_the_second_time() -> None:
    """What is kept between events changes no answer."""
    publisher = table_plans().publisher("crm-adapter")
    rows = [r for r in TABLE["rows"] if "agent" not in r]
    for _ in range(2):
        for row in rows:
            decision = publisher.decide(row_event(row), now_ms=row.get("now_ms", 0))
            assert [decision.allowed, decision.rule, decision.reason] == row["decision"], row["name"]


def test_principal_is_the_publishing_agent() -> None:
    """A publish condition can ask who publishes."""
    expected = {"agent": "crm-adapter", "team": "crm", "tenant": "acme", "id": CRM}
    when = " && ".join(f"principal.{name} == '{value}'" for name, value in expected.items())
    rule = {"id": "r", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": when}
    assert plans(access(allow=[rule]), base=NO_ACCESS).publisher("crm-adapter").decide(event()).rule == "r"


def test_deciding_changes_nothing_in_the_event() -> None:
    """The fields are only read."""
    fields = event({"account": "x-test", "amount": 7})
    before = json.dumps(fields)
    table_plans().publisher("crm-adapter").decide(fields)
    assert json.dumps(fields) == before


def test_what_is_kept_by_type_and_source_is_bounded() -> None:
    """Endless new types and sources do not grow the agent."""
    publisher = plans().publisher("crm-adapter")
    for n in range(MAX_TYPES + 10):
        publisher.decide(event(type=f"crm.t{n}"))
    assert len(publisher._answers) <= MAX_TYPES
    for n in range(MAX_SOURCES + 10):
        publisher.decide(event(source=f"/crm/{n}"))
    assert all(len(answer.sources) <= MAX_SOURCES for answer in publisher._answers.values())


# --- which copies are made -------------------------------------------------------------------------------------------


def views(made: Plans, now_ms: int | None = 0, **attributes: Any) -> list[str]:
    """The views that copies of one event are made for."""
    return [view.name for view in made.publisher("crm-adapter").decide(event(**attributes), now_ms=now_ms).views]


def test_copies_are_made_for_every_view_that_somebody_may_read() -> None:
    """The views of all readers' grants for the type, each once, and no other view."""
    more = access(allow=[{"id": "s", "who": {"teams": ["support"]}, "subscribe": ["crm.contact.>"], "view": "masked"}])
    unread = document("View", "unread", {"otherwise": "drop"})
    assert views(plans(more, unread)) == ["clear", "masked"]


def test_an_event_without_a_reader_is_allowed() -> None:
    """Readers' rights never break a publisher: it is allowed, with no copies."""
    rule = {"id": "p", "who": {"teams": ["crm"]}, "publish": ["crm.>"]}
    decision = plans(access(allow=[rule]), base=NO_ACCESS).publisher("crm-adapter").decide(event())
    assert (decision.allowed, decision.views) == (True, ())


def test_no_copy_for_a_view_whose_readers_are_all_denied() -> None:
    """A deny takes a team out of the readers."""
    deny = access(deny=[{"id": "d", "who": {"teams": ["analytics"]}, "subscribe": ["crm.contact.>"]}])
    assert views(plans(deny)) == ["clear"]
    assert views(plans(deny), type="crm.deal.won.v1") == ["clear", "masked"]


def test_no_copy_for_a_view_whose_grants_have_ended() -> None:
    """A grant that ends counts until then, and not without a clock."""
    unread = document("View", "short", {"otherwise": "drop"})
    rule = {"id": "i", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "short"}
    made = plans(unread, access(allow=[rule | {"expires": "1970-01-01T00:00:10Z", "reason": "INC-1"}]))
    assert views(made, 9_999) == ["clear", "masked", "short"]
    assert views(made, 10_000) == ["clear", "masked"]
    assert views(made, None) == ["clear", "masked"]


def test_the_grant_that_lasts_longest_keeps_a_view_alive() -> None:
    """Of several grants of one view the last to end counts, and one without an end outlasts all."""
    view = document("View", "short", {"otherwise": "drop"})
    grants = [
        {
            "id": f"i{n}",
            "who": {"teams": [team]},
            "subscribe": ["crm.>"],
            "view": "short",
            "reason": "x",
            "expires": ends,
        }
        for n, (team, ends) in enumerate(
            [
                ("crm", "1970-01-01T00:00:20Z"),
                ("analytics", "1970-01-01T00:00:30Z"),
                ("support", "1970-01-01T00:00:10Z"),
            ]
        )
    ]
    made = plans(view, access(allow=grants))
    assert "short" in views(made, 29_999)
    assert "short" not in views(made, 30_000)
    lasting = {"id": "l", "who": {"teams": ["crm"]}, "subscribe": ["crm.>"], "view": "short"}
    assert "short" in views(plans(view, access(allow=[lasting, *grants])), None)


@pytest.mark.parametrize(
    ("country", "amount", "shown"),
    [("DE", 5, True), ("US", 5, False), ("DE", 0, False), (None, 5, False), (7, 5, False), ("DE", "5", False)],
)
def test_rows_of_a_view_and_of_the_one_it_is_like_must_both_hold(
    country: object, amount: object, *, shown: bool
) -> None:
    """A regional view shows what its base shows and its own rows let through; a filter that fails shows nothing."""
    base = document("View", "base", {"otherwise": "redact", "rows": "data.amount > 1"})
    region = document("View", "region", {"like": "base", "rows": "data.country in ['DE', 'FR']"})
    view = plans(base, region).view("region", "crm.contact.updated.v1")
    assert view.rows(event({"country": country, "amount": amount})) is shown


def test_a_view_like_another_masks_like_it() -> None:
    """`like` takes the other view's masks and `otherwise`."""
    made = plans(document("View", "region", {"like": "masked", "rows": "true"}))
    fields = event({"name": "Anna", "country": "DE", "x": 1})
    both = [made.view(name, fields["type"]).mask(fields, Keys()) for name in ("masked", "region")]
    assert both[0]["data"] == {"country": "DE", "x": None}
    assert both[0] == both[1]


def test_rows_without_data_hide_the_event() -> None:
    """An event that lacks what the filter reads does not show; a filter over attributes alone still can."""
    made = plans(
        document("View", "a", {"otherwise": "drop", "rows": "data.x == 1"}),
        document("View", "b", {"otherwise": "drop", "rows": "event.type.startsWith('crm.')"}),
    )
    fields = event()
    assert [made.view(name, fields["type"]).rows(fields) for name in ("a", "b")] == [False, True]


# --- V5 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "type_", "source", "allowed"),
    [
        (CRM, "crm.contact.updated.v1", "/crm", True),
        (CRM, "crm.order.placed.v1", "/crm", True),  # a condition is not asked
        (CRM, "crm.trial.a.v1", "/crm", True),  # nor whether it has ended: a backlog stays valid
        (CRM, "crm.contact.removed.v1", "/crm", False),
        (CRM, "crm.contact.updated.v1", "/billing", False),
        (CRM, "hr.a.v1", "/crm", False),
        ("spiffe://mesh.test/ns/acme/sa/lake", "crm.contact.updated.v1", "/crm", False),
        ("spiffe://other/ns/acme/sa/crm-adapter", "crm.contact.updated.v1", "/crm", False),
        ("spiffe://mesh.test/ns/fund/sa/crm-adapter", "crm.contact.updated.v1", "/crm", False),
        ("crm-adapter", "crm.contact.updated.v1", "/crm", False),
    ],
)
def test_an_identity_may_publish_what_the_rules_grant(identity: str, type_: str, source: str, *, allowed: bool) -> None:
    """V5 goes by SPIFFE id, type and source; the first answer and the kept one agree."""
    made = table_plans()
    assert [made.may_publish(identity, type_, source) for _ in range(2)] == [allowed, allowed]


def test_an_identity_of_its_own_replaces_the_derived_one() -> None:
    """`identities` names an agent's SPIFFE id, and the derived id then means nobody."""
    tenant = BASE["tenant.yaml"] + '  identities: {crm-adapter: "spiffe://corp/crm"}\n'
    made = plans(base=BASE | {"tenant.yaml": tenant})
    assert made.may_publish("spiffe://corp/crm", "crm.a.v1", "/crm")
    assert not made.may_publish(CRM, "crm.a.v1", "/crm")
    assert made.grants().agents["crm-adapter"].spiffe_id == "spiffe://corp/crm"


def test_an_agent_of_another_tenant_is_that_tenants() -> None:
    """`fund/feed-in` is the agent `feed-in` of tenant `fund`, in a team of ours."""
    assert spiffe_id("t", "acme", "fund/feed-in") == "spiffe://t/ns/fund/sa/feed-in"
    tenant = BASE["tenant.yaml"] + "    fund: {agents: [fund/feed-in]}\n"
    rule = access(allow=[{"id": "f", "who": {"agents": ["fund/feed-in"]}, "publish": ["fund.>"]}])
    made = plans(rule, base=BASE | {"tenant.yaml": tenant})
    assert made.may_publish("spiffe://mesh.test/ns/fund/sa/feed-in", "fund.rate.v1", "/fund")
    assert made.publisher("fund/feed-in").decide(event(type="fund.rate.v1", source="/fund/x")).rule == "f"
    assert "fund/feed-in" in made.grants().agents


# --- readers ---------------------------------------------------------------------------------------------------------


def read(
    made: Plans, team: str, view: str = "masked", *, type_: str = "crm.contact.updated.v1", now_ms: int = 0
) -> Any:
    """A read decision as a list; asked twice, as the second answer is a kept one."""
    first, second = (made.reader(team, type_, view, now_ms=now_ms) for _ in range(2))
    assert first == second
    return [first.allowed, first.rule, first.reason]


def test_a_team_reads_in_the_view_it_was_granted() -> None:
    """A grant is for one view; without one there is nothing to read."""
    made = plans()
    assert read(made, "analytics") == [True, "analytics-reads", "rule"]
    assert read(made, "analytics", "clear") == [False, None, "no-allow-matched"]
    assert read(made, "support") == [False, None, "no-allow-matched"]
    assert read(made, "nobody") == [False, None, "no-allow-matched"]
    assert read(made, "analytics", type_="hr.a.v1") == [False, None, "no-allow-matched"]


def test_a_deny_beats_a_reader_s_grant() -> None:
    """A deny covers every view of the types it names."""
    made = plans(access(deny=[{"id": "d", "who": {"teams": ["analytics"]}, "subscribe": ["crm.contact.>"]}]))
    assert read(made, "analytics") == [False, "d", "rule"]
    assert read(made, "analytics", type_="crm.deal.won.v1") == [True, "analytics-reads", "rule"]


def test_a_reader_s_grant_ends_by_the_clock() -> None:
    """Up to the millisecond it is a grant, from then on it is none."""
    rule = {"id": "i", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "clear"}
    made = plans(access(allow=[rule | {"expires": "1970-01-01T00:00:10Z", "reason": "INC-1"}]))
    assert read(made, "support", "clear", now_ms=9_999) == [True, "i", "rule"]
    assert read(made, "support", "clear", now_ms=10_000) == [False, None, "no-allow-matched"]


@pytest.mark.parametrize(
    ("who", "effect", "reached"),
    [
        ({"agents": ["desk", "phone"]}, "allow", True),
        ({"teams": ["support"], "agents": ["desk", "phone"]}, "allow", True),
        ({"teams": ["support", "analytics"]}, "allow", True),
        ({"agents": ["desk"]}, "deny", True),
        ({"teams": ["crm"], "agents": ["desk"]}, "deny", False),
        ({"teams": ["crm", "support"], "agents": ["desk", "lake"]}, "deny", True),
    ],
)
def test_who_reads_as_keys_and_items_or(who: dict[str, list[str]], effect: str, *, reached: bool) -> None:
    """An allow reaches a team with all its agents named, a deny reaches one with any of them named."""
    grant = {"id": "g", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "masked"}
    if effect == "allow":
        made = plans(access(allow=[{"id": "x", "who": who, "subscribe": ["crm.>"], "view": "masked"}]))
        assert read(made, "support")[0] is reached
    else:
        made = plans(access(allow=[grant], deny=[{"id": "x", "who": who, "subscribe": ["crm.>"]}]))
        assert read(made, "support")[0] is not reached


# --- grants ----------------------------------------------------------------------------------------------------------


def texts(patterns: Any) -> list[str]:
    """The texts of patterns."""
    return [p.text for p in patterns]


def subscription(
    spec: dict[str, Any], *extra: str, now_ms: int | None = None, team: str = "analytics"
) -> SubscriptionGrant:
    """The grant of one subscription over the base."""
    return plans(document("Subscription", "s", spec, team=team), *extra).subscription(team, "s", now_ms=now_ms)


def streams(found: SubscriptionGrant) -> list[str]:
    """The streams it has a durable in, of a mesh with three domains."""
    return [durable.stream for durable in durables("local", ("crm", "desk", "hr"), found)]


def test_an_agent_is_granted_its_types_in_the_views_somebody_reads() -> None:
    """Per view the types both may: the publisher publish and a reader read."""
    more = access(
        allow=[
            {"id": "s", "who": {"teams": ["support"]}, "subscribe": ["crm.contact.>"], "view": "masked"},
            {"id": "p", "who": {"teams": ["support"]}, "publish": ["desk.note.v1"]},
            {"id": "d", "who": {"teams": ["analytics"]}, "subscribe": ["*.note.v1"], "view": "masked"},
        ]
    )
    grants = plans(more).grants()
    crm, desk = grants.agents["crm-adapter"], grants.agents["desk"]
    assert [(g.view, g.pattern.text) for g in crm.publish] == [("clear", "crm.>"), ("masked", "crm.>")]
    assert [(g.view, g.pattern.text) for g in desk.publish] == [("masked", "desk.note.v1")]
    assert grants.agents["lake"].publish == ()
    assert dict(grants.streams) == {"crm": "EV_local_crm", "desk": "EV_local_desk"}
    assert grants.domains == ("crm", "desk")


def test_an_agent_holds_the_keys_of_the_domains_it_masks_with() -> None:
    """A pseudonym domain is needed where a view that somebody reads masks a tag of a type the agent publishes."""
    mask = [
        {"tags": ["pii.name"], "as": "pseudonym", "with": {"domain": "names"}},
        {"tags": ["other"], "as": "pseudonym", "with": {"domain": "others"}},
    ]
    made = plans(
        document("View", "p", {"mask": mask, "otherwise": "redact"}),
        document("Classification", "k", {"types": ["hr.>"], "fields": {"data.x": ["other"]}}),
        access(
            allow=[
                {"id": "hr", "who": {"teams": ["support"]}, "publish": ["hr.>"]},
                {"id": "r", "who": {"teams": ["analytics"]}, "subscribe": [">"], "view": "p"},
            ]
        ),
    )
    agents = made.grants().agents
    assert {name: agent.domains for name, agent in agents.items() if agent.domains} == {
        "crm-adapter": ("names",),
        "desk": ("others",),
        "phone": ("others",),
    }


def test_a_publish_deny_over_exact_types_leaves_no_grant() -> None:
    """What a deny covers is not granted; a deny of part of a wildcard is left to the agent and says so."""
    made = plans(
        access(
            allow=[
                {"id": "hr", "who": {"teams": ["support"]}, "publish": ["hr.a.v1", "hr.b.v1", "org.>"]},
                {"id": "r", "who": {"teams": ["analytics"]}, "subscribe": ["hr.>", "org.>"], "view": "masked"},
            ],
            deny=[{"id": "d", "who": {"agents": ["desk"]}, "publish": ["*.a.>"]}],
        )
    )
    agents = made.grants().agents
    assert [(g.pattern.text, g.agent_only) for g in agents["desk"].publish] == [("hr.b.v1", False), ("org.>", True)]
    assert texts(g.pattern for g in agents["phone"].publish) == ["hr.a.v1", "hr.b.v1", "org.>"]


def test_a_subscription_is_filtered_to_its_grants() -> None:
    """Filters are what was asked for and granted, domain by domain; the view follows from the grants."""
    found = subscription({"types": [">"]})
    assert (found.view, texts(found.filters), found.active, streams(found)) == (
        "masked",
        ["crm.>"],
        True,
        ["EV_local_crm"],
    )
    assert texts(subscription({"types": ["crm.contact.>", "crm.contact.*.v1"]}).filters) == ["crm.contact.>"]
    assert texts(subscription({"types": ["*.deal.won"]}).filters) == ["crm.deal.won.*"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"types": ["hr.>"]}, "no lasting grant for `hr.>`"),
        ({"types": ["crm.>", "hr.>"]}, "beyond the team's grants in the view `masked`, or never published: `hr.>`"),
        ({"types": ["crm.>"], "view": "clear"}, "no grant for the view `clear`"),
    ],
)
def test_a_subscription_beyond_its_grants_is_inactive(spec: dict[str, Any], reason: str) -> None:
    """It gets nothing, and says why."""
    found = subscription(spec)
    assert (found.active, found.filters, streams(found)) == (False, (), [])
    assert reason in found.reason


def test_only_an_active_subscription_gets_durables() -> None:
    """Of two subscriptions, the one beyond its team's grants is not among those that get durables."""
    within = document("Subscription", "within", {"types": ["crm.>"]}, team="analytics")
    beyond = document("Subscription", "beyond", {"types": ["hr.>"]}, team="analytics")
    grants = plans(within, beyond).grants()
    assert len(grants.subscriptions) == 2
    assert [grant.durable for grant in grants.active] == ["analytics--within"]


def test_a_subscription_to_a_domain_without_a_stream_is_inactive() -> None:
    """Whoever may read everything still gets nothing of a domain in which nobody publishes: it has no stream."""
    rule = access(allow=[{"id": "r", "who": {"teams": ["support"]}, "subscribe": [">"], "view": "masked"}])
    found = subscription({"types": ["hr.>"]}, rule, team="support")
    assert (found.active, found.filters) == (False, ())
    assert "never published: `hr.>`" in found.reason


def test_two_views_make_the_choice_the_subscriber_s() -> None:
    """With two lasting grants for its types a subscription names its view; a grant that ends does not count."""
    second = document("View", "second", {"otherwise": "drop"})
    rule = {"id": "r2", "who": {"teams": ["analytics"]}, "subscribe": ["crm.contact.>"], "view": "second"}
    ends = {"expires": "1970-01-01T00:00:10Z", "reason": "INC-1"}
    lasting, ending = access(allow=[rule]), access(allow=[rule | ends])
    assert "`spec.view`" in subscription({"types": ["crm.>"]}, second, lasting).reason
    assert subscription({"types": ["crm.deal.>"]}, second, lasting).view == "masked"
    chosen = subscription({"types": ["crm.>"], "view": "second"}, second, lasting)
    assert (chosen.active, texts(chosen.filters)) == (True, ["crm.contact.>"])
    assert subscription({"types": ["crm.>"]}, second, ending, now_ms=0).view == "masked"
    assert subscription({"types": ["crm.>"], "view": "second"}, second, ending, now_ms=9_999).active
    assert not subscription({"types": ["crm.>"], "view": "second"}, second, ending, now_ms=10_000).active
    assert not subscription({"types": ["crm.>"], "view": "second"}, second, ending).active


def test_a_deny_narrows_filters_where_publishers_name_exact_types() -> None:
    """NATS enforces a deny by filters of exact types, where the publish lines give them; else agents alone do."""
    deny = [{"id": "d", "who": {"teams": ["analytics"]}, "subscribe": ["hr.pay.>", "crm.secret.>"]}]
    rules = access(
        allow=[
            {"id": "hr", "who": {"teams": ["support"]}, "publish": ["hr.pay.v1", "hr.leave.v1", "hr.paid.v2"]},
            {"id": "r", "who": {"teams": ["analytics"]}, "subscribe": ["hr.>"], "view": "masked"},
        ],
        deny=deny,
    )
    exact = subscription({"types": ["hr.>"]}, rules)
    assert (texts(exact.filters), exact.agent_only) == (["hr.leave.v1", "hr.paid.v2"], False)
    wide = subscription({"types": ["crm.>"]}, rules)
    assert (texts(wide.filters), wide.agent_only) == (["crm.>"], True)
    beside = subscription({"types": ["crm.contact.>"]}, rules)
    assert (texts(beside.filters), beside.agent_only) == (["crm.contact.>"], False)
    inside = subscription({"types": ["crm.secret.>"]}, rules)
    assert (inside.active, inside.reason) == (False, "a deny covers all of it")


def test_a_deny_that_agents_alone_enforce_undoes_no_other() -> None:
    """Beside a deny that NATS cannot enforce, one that it can still narrows the filters, and each part says which."""
    rules = access(
        allow=[
            {"id": "hr", "who": {"teams": ["support"]}, "publish": ["hr.salary.v1", "hr.open.v1", "hr.note.>"]},
            {"id": "r", "who": {"teams": ["analytics"]}, "subscribe": ["hr.>"], "view": "masked"},
        ],
        deny=[
            {"id": "d1", "who": {"teams": ["analytics"]}, "subscribe": ["hr.salary.v1"]},
            {"id": "d2", "who": {"teams": ["analytics"]}, "subscribe": ["hr.note.secret.v1"]},
        ],
    )
    found = subscription({"types": ["hr.>"]}, rules)
    assert (texts(found.filters), found.agent_only) == (["hr.note.>", "hr.open.v1"], True)
    reads = {g.pattern.text: g.agent_only for g in plans(rules).grants().teams["analytics"] if g.rule == "r"}
    assert reads == {"hr.note.>": True, "hr.open.v1": False}


def test_delivery_settings_come_from_the_subscription_then_the_tenant() -> None:
    """Each setting by itself: the subscription's own, else the tenant's, else the default."""
    tenant = BASE["tenant.yaml"] + "  delivery: {retry: {attempts: 5, backoff: [500ms, 2m]}, max_in_flight: 7}\n"
    text = document(
        "Subscription", "s", {"types": ["crm.>"], "retry": {"ack_wait": "1h", "attempts": 2}}, team="analytics"
    )
    found = plans(text, base=BASE | {"tenant.yaml": tenant}).subscription("analytics", "s")
    assert found.retry == RetryPolicy(attempts=2, backoff_s=(0.5, 120.0), ack_wait_s=3600.0)
    assert (found.max_in_flight, found.start) == (7, "new")
    assert subscription({"types": ["crm.>"]}).retry == RetryPolicy()


def test_what_paces_a_subscription_is_compiled_from_its_texts() -> None:
    """Order, client, rate, breaker and poison: as written, and each unsaid part as usual."""
    usual = subscription({"types": ["crm.>"]})
    assert (usual.ordered, usual.client, usual.rate) == (False, "mesh", None)
    assert (usual.breaker, usual.poison) == (BreakerPolicy(), PoisonPolicy())
    spec: dict[str, Any] = {"types": ["crm.>"], "order_by": "partitionkey", "rate": "90/min"}
    found = subscription({**spec, "breaker": {"open": "500ms"}, "poison": {"share": 0.25}})
    assert (found.ordered, found.rate) == (True, RateLimit(per_s=1.5, burst=2))
    assert (found.breaker, found.poison) == (BreakerPolicy(open_s=0.5), PoisonPolicy(share=0.25))
    other = subscription(
        {"types": ["crm.>"], "rate": "1/min", "breaker": {"failures": 0}, "poison": {"of": 10, "share": 1}}
    )
    assert other.rate == RateLimit(per_s=1 / 60, burst=1)
    assert (other.breaker, other.poison) == (BreakerPolicy(failures=0), PoisonPolicy(share=1.0, of=10))
    assert subscription({"types": ["crm.>"], "client": "nats"}).client == "nats"


def test_a_subscription_nobody_declared_is_not_found() -> None:
    """The error names those that there are."""
    made = plans(document("Subscription", "lake", {"types": ["crm.>"]}, team="analytics"))
    with pytest.raises(NotFound) as caught:
        made.subscription("analytics", "lace")
    assert caught.value.expected == "lake"


TOKENS = st.sampled_from(["a", "b", "*"])
PATTERNS = st.builds(
    lambda tokens, tail: Pattern.parse(".".join(["x", *tokens, *tail])),
    st.lists(TOKENS, min_size=1, max_size=2),
    st.sampled_from([[], [">"], ["v1"]]),
)
TYPES = st.builds(
    lambda tokens, version: ".".join(["x", *tokens, *version]),
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3),
    st.sampled_from([[], ["v1"], ["v2"]]),
)


@given(st.lists(PATTERNS, max_size=5), TYPES)
def test_outermost_patterns_take_the_same_types(patterns: list[Pattern], type_: str) -> None:
    """Leaving out what another pattern covers changes no match, and none of those left covers another."""
    kept = outermost(patterns)
    assert any(p.matches(type_) for p in kept) == any(p.matches(type_) for p in patterns)
    assert not any(a.covers(b) for a in kept for b in kept if a is not b)


@given(
    st.lists(PATTERNS, min_size=1, max_size=3),
    st.lists(PATTERNS, min_size=1, max_size=3),
    st.lists(PATTERNS, max_size=2),
    TYPES,
)
def test_what_nats_lets_through_is_what_the_reader_decision_says(
    published: list[Pattern], granted: list[Pattern], denied: list[Pattern], type_: str
) -> None:
    """Of what is published the filters take exactly what the reader may have; `agent_only` filters may take more."""
    rules = {
        "allow": [
            {"id": "p", "who": {"teams": ["crm"]}, "publish": sorted({p.written for p in published})},
            {
                "id": "r",
                "who": {"teams": ["analytics"]},
                "subscribe": sorted({p.written for p in granted}),
                "view": "masked",
            },
        ],
        "deny": [{"id": "d", "who": {"teams": ["analytics"]}, "subscribe": sorted({p.written for p in denied})}]
        if denied
        else [],
    }
    classes = {"crm.yaml": BASE["crm.yaml"].replace('["crm.>"]', '[">"]')}
    files = NO_ACCESS | classes | {"a.yaml": document("Access", "a", rules)}
    if not any(g.intersects(p) for g in granted for p in published):
        return
    if any(not any(g.intersects(p) for p in published) for g in granted):
        return
    text = document("Subscription", "s", {"types": ["x.>"]}, team="analytics")
    made = plans(text, base=files)
    grant = made.subscription("analytics", "s")
    if not any(p.matches(type_) for p in published):
        return
    taken = any(f.matches(type_) for f in grant.filters)
    allowed = made.reader("analytics", type_, "masked", now_ms=0).allowed
    assert taken or not allowed
    assert allowed or not taken or grant.agent_only
    views_made = [v.plan.name for v in made.views(type_)]
    assert ("masked" in views_made) == allowed
    if allowed:
        agent = made.grants().agents["crm-adapter"]
        assert any(g.view == "masked" and g.pattern.matches(type_) for g in agent.publish)


@given(
    st.lists(PATTERNS, min_size=1, max_size=4),
    st.lists(PATTERNS, min_size=1, max_size=3),
    st.lists(PATTERNS, max_size=2),
    PATTERNS,
)
def test_one_more_deny_widens_nothing(
    published: list[Pattern], granted: list[Pattern], denied: list[Pattern], more: Pattern
) -> None:
    """Whatever NATS lets through with one more deny it lets through without it: filters, reads and publish grants."""
    if any(not any(g.intersects(p) for p in published) for g in granted):
        return
    allow = [
        {"id": "p", "who": {"teams": ["crm"]}, "publish": sorted({p.written for p in published})},
        {
            "id": "r",
            "who": {"teams": ["analytics"]},
            "subscribe": sorted({p.written for p in granted}),
            "view": "masked",
        },
    ]
    denies = [
        {"id": f"d{n}", "who": {"teams": ["analytics"]}, "subscribe": [p.written]}
        for n, p in enumerate([*denied, more])
    ]
    classes = {"crm.yaml": BASE["crm.yaml"].replace('["crm.>"]', '[">"]')}
    text = document("Subscription", "s", {"types": ["x.>"]}, team="analytics")
    before, after = (
        plans(text, base=NO_ACCESS | classes | {"a.yaml": access(allow=allow, deny=lines)}).grants(now_ms=0)
        for lines in (denies[:-1], denies)
    )
    for with_more, without in (
        (after.subscriptions["analytics", "s"].filters, before.subscriptions["analytics", "s"].filters),
        ([g.pattern for g in after.teams["analytics"]], [g.pattern for g in before.teams["analytics"]]),
        (
            [g.pattern for g in after.agents["crm-adapter"].publish],
            [g.pattern for g in before.agents["crm-adapter"].publish],
        ),
    ):
        assert all(any(wide.covers(narrow) for wide in without) for narrow in with_more)


# --- grants at one time ----------------------------------------------------------------------------------------------

SUPPORT = {"who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "masked"}
ENDS = {"expires": "1970-01-01T00:00:10Z", "reason": "INC-1"}


def at(second: int) -> str:
    """A time in the first minute there was."""
    return f"1970-01-01T00:00:{second:02}Z"


def test_a_grant_says_its_rule_its_end_and_since_when() -> None:
    """Of one grant, exactly what the line says; where `reader` says no there is none."""
    made = plans(access(allow=[SUPPORT | ENDS | {"id": "i", "since": at(3)}]))
    assert made.grant("support", "crm.a.v1", "masked", 9_999) == ReadGrantNow("i", 3_000, 10_000)
    assert made.grant("support", "crm.a.v1", "masked", 10_000) is None
    assert made.grant("support", "crm.a.v1", "clear", 0) is None
    assert made.grant("analytics", "crm.a.v1", "masked", 0) == ReadGrantNow("analytics-reads", None, None)
    assert made.grant("nobody", "crm.a.v1", "masked", 0) is None


def test_several_grants_last_as_long_and_reach_as_far_as_the_widest() -> None:
    """The first names the rule; the last to end and the earliest history count, of those that hold now."""
    lines = [
        SUPPORT | ENDS | {"id": "a", "since": at(2)},
        SUPPORT | {"id": "b", "expires": at(20), "reason": "x", "since": at(5)},
    ]
    made = plans(access(allow=lines))
    assert made.grant("support", "crm.a.v1", "masked", 9_999) == ReadGrantNow("a", 2_000, 20_000)
    assert made.grant("support", "crm.a.v1", "masked", 10_000) == ReadGrantNow("b", 5_000, 20_000)
    lasting = plans(access(allow=[*lines, SUPPORT | {"id": "c"}]))
    assert lasting.grant("support", "crm.a.v1", "masked", 0) == ReadGrantNow("a", 2_000, None)


def test_a_read_grant_carries_since() -> None:
    """The control plane sees which grants open history."""
    made = plans(access(allow=[SUPPORT | {"id": "i", "since": at(3)}])).grants(now_ms=0)
    assert [(g.rule, g.since_ms) for g in made.teams["support"]] == [("i", 3_000)]
    assert [g.since_ms for g in made.teams["analytics"]] == [None]


@pytest.mark.parametrize(
    ("start", "since", "expected"),
    [
        ("all", [3], "1970-01-01T00:00:03.000Z"),
        ("all", [None], "all"),
        ("all", [5, 3], "1970-01-01T00:00:03.000Z"),
        ("all", [3, None], "all"),
        ("new", [3], "new"),
        (at(1), [3], "1970-01-01T00:00:03.000Z"),
        (at(4), [3], at(4)),
    ],
)
def test_a_durable_starts_no_earlier_than_its_grants_open_history(
    start: str, since: list[int | None], expected: str
) -> None:
    """Where all grants behind a subscription say `since`, nothing before the earliest of them is ever delivered."""
    lines = [
        SUPPORT | {"id": f"g{n}", "subscribe": [f"crm.t{n}.>"]} | ({} if s is None else {"since": at(s)})
        for n, s in enumerate(since)
    ]
    other = SUPPORT | {"id": "other", "subscribe": ["crm.other.>"]}  # a grant that the subscription does not use
    spec = {"types": [f"crm.t{n}.>" for n in range(len(since))], "start": start}
    assert subscription(spec, access(allow=[*lines, other]), team="support").start == expected


def test_the_view_of_a_subscription() -> None:
    """The one it reads, where it is active; None where it is not, or nobody declared it."""
    made = plans(
        document("Subscription", "s", {"types": ["crm.>"]}, team="analytics"),
        document("Subscription", "glass", {"types": ["crm.>"], "view": "clear"}, team="support"),
        access(allow=[SUPPORT | ENDS | {"id": "i", "view": "clear"}]),
    )
    assert made.subscription_view("analytics", "s") == "masked"
    assert made.subscription_view("analytics", "none") is None
    assert made.subscription_view("support", "glass") is None
    assert made.subscription_view("support", "glass", now_ms=9_999) == "clear"
    assert made.subscription_view("support", "glass", now_ms=10_000) is None


def test_grants_change_only_when_a_right_ends() -> None:
    """Asked at any other time they are the same object: two hundred agents that ask pay for one."""
    made = plans(access(allow=[SUPPORT | ENDS | {"id": "i", "view": "clear"}]))
    without = made.grants()
    assert made.grants(now_ms=1) is made.grants(now_ms=9_999)
    assert made.grants(now_ms=10_000) is made.grants(now_ms=99_999)
    assert made.grants(now_ms=9_999) != made.grants(now_ms=10_000) == without
    assert made.grants() is without


def test_what_a_view_shows_comes_from_paths_and_masks() -> None:
    """`sides` gives the classified paths of a type and the view's masks; an unknown view is a KeyError."""
    made = plans(document("View", "region", {"like": "masked", "rows": "true"}))
    pairs, table = made.sides("region", "crm.a.v1")
    assert [(path.text, tags) for path, tags in pairs] == [
        ("data.name", ("pii.name",)), ("data.email", ("pii.contact.email",)), ("data.country", ("public",)),
    ]  # fmt: skip
    assert table.otherwise[0] == "redact"
    assert made.sides("clear", "hr.a.v1")[0] == ()
    with pytest.raises(KeyError):
        made.sides("nope", "crm.a.v1")


# --- the worked example ----------------------------------------------------------------------------------------------

FIXTURES = sorted((ROOT / "policies" / "fixtures").glob("*.json"))
ADAPTERS = {"crm": "crm-adapter", "billing": "billing-adapter", "github": "github-adapter"}


def example() -> Plans:
    """The plans of `policies/`."""
    made = compile_bundles(
        load(read_directory(ROOT / "policies")), revision=1, site="local", trust_domain="mesh.local", created_ms=0
    )
    return Plans(made["acme"])


@pytest.mark.parametrize("path", FIXTURES, ids=[path.stem for path in FIXTURES])
def test_a_fixture_of_the_worked_example_is_published_and_masked(path: Any) -> None:
    """Each fixture may be published, and no personal value of it is in any view but the owners' and the support's."""
    fields = json.loads(path.read_text())
    decision = example().publisher(ADAPTERS[fields["type"].split(".")[0]]).decide(fields)
    assert decision.allowed
    shown = {view.name: json.dumps(view.mask(fields, Keys())) for view in decision.views if view.rows(fields)}
    assert json.loads(shown.pop("clear")) == fields
    assert shown
    personal = ["@example", "Hauptstr", "1984-", "husband", "octocat", "Mona", "hello-world", "34520", "3704", "41111"]
    names = ["Anna", "Louis", "Petra"]
    for view, text in shown.items():
        assert not [p for p in personal + ([] if view == "service" else names) if p in text], view


def test_every_subscription_of_the_worked_example_is_active() -> None:
    """At least four teams have something delivered, none through a deny that NATS cannot enforce."""
    grants = example().grants()
    assert all(s.active and not s.agent_only for s in grants.subscriptions.values())
    assert {team for team, _ in grants.subscriptions} >= {"support", "analytics", "billing", "security"}
    lake = grants.subscriptions["analytics", "lake"]
    assert texts(lake.filters) == ["billing.invoice.issued.v1", "crm.>"]
