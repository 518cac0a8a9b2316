"""Streams and consumers as data, and the plan from actual to desired, without a server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mesh.jetstream.changes import Actual, plan
from mesh.jetstream.durables import Durable, is_sideline, redrive, replays, subscription_of
from mesh.jetstream.topology import (
    ConsumerSpec,
    StreamSpec,
    Topology,
    desired,
    durables,
)
from mesh.policy.grants import SubscriptionGrant, outermost
from mesh.retry import RetryPolicy
from mesh.subjects import Pattern

MINUTE_NS = 60 * 10**9


def patterns(*texts: str) -> tuple[Pattern, ...]:
    """Parsed."""
    return tuple(Pattern.parse(text) for text in texts)


def grant(*texts: str, **more: Any) -> SubscriptionGrant:
    """Support's subscription `contacts`, in clear."""
    return SubscriptionGrant("support", "contacts", "clear", patterns(*texts), **more)


def config_of(topology: Topology, name: str) -> dict[str, Any]:
    """The configuration of one stream."""
    return next(s for s in topology.streams if s.name == name).config()


def as_actual(topology: Topology) -> Actual:
    """A server that has exactly *topology*, and leaves out what is false, as servers do."""

    def told(config: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config.items() if value}

    return Actual(
        {s.name: told(s.config()) for s in topology.streams},
        {(c.stream, c.name): {**told(c.config()), **c.start_config()} for c in topology.consumers},
    )


# --- what grants ask for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (["crm.contact.>", "crm.contact.updated.v1"], ["crm.contact.>"]),
        (["crm.contact.updated.v1", "crm.>", "crm.contact.>"], ["crm.>"]),
        (["crm.a", "crm.a"], ["crm.a.*"]),
        (["crm.*.created.v1", "crm.contact.>"], ["crm.*.created.v1", "crm.contact.>"]),
        (["b.x", "a.x"], ["a.x.*", "b.x.*"]),
        (["crm.1st.v1", "crm.-.v1", "crm.>"], ["crm.>"]),
        ([], []),
    ],
)
def test_contained_filters_are_dropped(given: list[str], left: list[str]) -> None:
    """A filter inside another goes; overlapping and separate ones stay."""
    assert [p.text for p in outermost(patterns(*given))] == left
    assert [p.text for p in outermost(patterns(*given[::-1]))] == left


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["crm.contact.>"], {"EV_local_crm": ("ev.local.clear.*.crm.contact.>",)}),
        (
            ["*.contact.created.v1"],
            {
                "EV_local_crm": ("ev.local.clear.*.crm.contact.created.v1",),
                "EV_local_hr": ("ev.local.clear.*.hr.contact.created.v1",),
            },
        ),
        (["hr.>", "hr.person.>"], {"EV_local_hr": ("ev.local.clear.*.hr.>",)}),
        ([">"], {"EV_local_crm": ("ev.local.clear.*.crm.>",), "EV_local_hr": ("ev.local.clear.*.hr.>",)}),
        (["shop.>"], {}),
    ],
)
def test_a_subscription_has_one_durable_a_domain(filters: list[str], found: dict[str, tuple[str, ...]]) -> None:
    """Each domain's durable gets the part of the filters that its stream can hold."""
    result = durables("local", ("hr", "crm", "crm"), grant(*filters))
    assert {d.stream: d.filters for d in result} == found
    assert {d.name for d in result} <= {"support--contacts"}


def test_the_event_stream_is_as_the_layout_says() -> None:
    """Seven days, three minutes of duplicates, full means refused, and nothing a publisher's header could abuse."""
    config = config_of(desired("local", ["crm"], []), "EV_local_crm")
    assert config["subjects"] == ["ev.local.*.*.crm.>"]
    assert (config["retention"], config["storage"], config["discard"]) == ("limits", "file", "new")
    assert config["max_age"] == 7 * 24 * 60 * MINUTE_NS
    assert config["duplicate_window"] == 3 * MINUTE_NS
    assert config["max_bytes"] > 0
    assert config["max_msg_size"] >= 256 * 1024 + 4096
    for flag in ("allow_rollup_hdrs", "allow_msg_schedules", "allow_msg_ttl", "deny_delete", "deny_purge"):
        assert config[flag] is False


def test_the_fixed_streams() -> None:
    """Dead letters, what is redriven, audit, advisories, reports and the three buckets are always there."""
    topology = desired("local", [], [])
    assert [s.name for s in topology.streams] == [
        "DLQ",
        "REDRIVE",
        "AUDIT",
        "ADVISORY",
        "REPORTS",
        "KV_mesh_policy",
        "KV_mesh_trust",
        "KV_mesh_agents",
    ]
    assert config_of(topology, "AUDIT")["deny_delete"] is config_of(topology, "AUDIT")["deny_purge"] is True
    assert [config_of(topology, f"KV_mesh_{b}")["max_msgs_per_subject"] for b in ("policy", "trust")] == [1, 1]
    assert config_of(topology, "KV_mesh_policy")["allow_direct"] is True
    assert config_of(topology, "REPORTS")["max_msgs_per_subject"] == 1


def test_a_consumers_numbers_come_from_its_grant() -> None:
    """Explicit acks; attempts, waits and windows in the server's units; one filter or several, never both fields."""
    retry = RetryPolicy(attempts=4, ack_wait_s=1.5)
    (one,) = desired("local", ["crm"], [grant("crm.>", retry=retry, max_in_flight=5000)]).consumers
    config = one.config()
    assert config["ack_policy"] == "explicit"
    assert config["ack_wait"] == 1_500_000_000
    assert config["max_deliver"] == -1
    assert config["max_ack_pending"] == 100_000
    assert (config["filter_subject"], config["filter_subjects"]) == ("ev.local.clear.*.crm.>", None)
    (two,) = desired("local", ["crm"], [grant("crm.a", "crm.b", max_in_flight=1)]).consumers
    assert two.config()["filter_subject"] is None
    assert two.config()["filter_subjects"] == ["ev.local.clear.*.crm.a.*", "ev.local.clear.*.crm.b.*"]
    assert two.config()["max_ack_pending"] == 20_000


def test_an_ordered_subscription_has_a_pinned_durable_for_each_slot() -> None:
    """Each takes its own slot of what the subscription reads, is pulled by one client, and waits 3 s for an ack."""
    retry = RetryPolicy(ack_wait_s=30.0)
    ordered = desired("local", ["crm", "hr"], [grant("crm.a", "crm.b", ordered=True, retry=retry)]).consumers
    assert [c.name for c in ordered] == [f"support--contacts--s{slot:02d}" for slot in range(16)]
    config = ordered[3].config()
    assert config["filter_subjects"] == ["ev.local.clear.s03.crm.a.*", "ev.local.clear.s03.crm.b.*"]
    assert (config["priority_groups"], config["priority_policy"]) == (["ordered"], "pinned_client")
    assert (config["ack_wait"], config["priority_timeout"]) == (3_000_000_000, 3_000_000_000)
    quick = desired("local", ["crm"], [grant("crm.a", ordered=True, retry=RetryPolicy(ack_wait_s=2.0))]).consumers
    assert quick[0].config()["ack_wait"] == 2_000_000_000


def test_the_server_counts_attempts_for_a_plain_client_alone() -> None:
    """Nobody else would; for our library it never drops an event."""
    retry = RetryPolicy(attempts=4)
    plain, ours = (
        desired("local", ["crm"], [grant("crm.>", retry=retry, client=client)]).consumers[0].config()
        for client in ("nats", "mesh")
    )
    assert (plain["max_deliver"], ours["max_deliver"]) == (4, -1)
    assert {key for key in plain if plain[key] != ours[key]} == {"max_deliver"}


@pytest.mark.parametrize("ordered", [False, True])
def test_replays_and_redrives_have_durables_beside_the_subscriptions_own(ordered: bool) -> None:
    """One for each stream and whatever the slot; a redrive has one in the stream of its own."""
    both = grant("crm.a", "hr.>", ordered=ordered)
    assert replays("local", ["crm", "hr", "shop"], both) == (
        Durable("EV_local_crm", "support--contacts--replay", ("ev.local.clear.*.crm.a.*",)),
        Durable("EV_local_hr", "support--contacts--replay", ("ev.local.clear.*.hr.>",)),
    )
    assert redrive(both) == Durable("REDRIVE", "support--contacts--redrive", ("redrive.support.contacts",))


@pytest.mark.parametrize(
    ("durable", "of", "sideline"),
    [
        ("support--contacts", "support--contacts", False),
        ("support--contacts--s03", "support--contacts", False),
        ("support--contacts--replay", "support--contacts", True),
        ("support--contacts--redrive", "support--contacts", True),
        ("support--redrive", "support--redrive", False),
        ("audit", "audit", False),
    ],
)
def test_a_durables_name_says_whose_it_is(durable: str, of: str, sideline: bool) -> None:
    """The subscription, and whether it pulls what comes again."""
    assert (subscription_of(durable), is_sideline(durable)) == (of, sideline)


@pytest.mark.parametrize(
    ("start", "config"),
    [
        ("new", {"deliver_policy": "new"}),
        ("all", {"deliver_policy": "all"}),
        (
            "2026-12-01T00:00:00Z",
            {"deliver_policy": "by_start_time", "opt_start_time": "2026-12-01T00:00:00Z"},
        ),
    ],
)
def test_where_a_durable_starts(start: str, config: dict[str, str]) -> None:
    """`new`, `all`, or from a time."""
    spec = ConsumerSpec("EV_local_crm", "support--contacts", ("ev.>",), 30, 8, 10, start)
    assert spec.start_config() == config


# --- the plan --------------------------------------------------------------------------------------------------------

WANTED = desired("local", ["crm", "hr"], [grant("crm.contact.>")])


def test_nothing_to_do() -> None:
    """A server that has what is desired gets no change."""
    assert plan(WANTED, as_actual(WANTED)) == []


def test_from_nothing() -> None:
    """Everything is created, streams before the consumers on them."""
    changes = plan(WANTED, Actual({}, {}))
    assert {c.action for c in changes} == {"create"}
    assert [bool(c.consumer) for c in changes] == [False] * len(WANTED.streams) + [True]
    assert changes[-1].config["deliver_policy"] == "new"
    assert None not in changes[-1].config.values()


def test_another_start_changes_no_durable() -> None:
    """Where a durable began is history: the server could not change it."""
    later = desired("local", ["crm", "hr"], [grant("crm.contact.>", start="all")])
    assert plan(later, as_actual(WANTED)) == []


def test_a_change_says_from_what_to_what() -> None:
    """The text names the field with both values, and the update keeps fields we do not state."""
    actual = as_actual(WANTED)
    key = ("EV_local_crm", "support--contacts")
    actual.consumers[key].update(ack_wait=1, unknown_field={"kept": True})
    (change,) = plan(WANTED, actual)
    assert change.text == "update consumer support--contacts on EV_local_crm: ack_wait 1 -> 30000000000"
    assert change.config["unknown_field"] == {"kept": True}
    assert change.config["deliver_policy"] == "new"
    assert not change.refused


def test_from_one_filter_to_two() -> None:
    """The single field disappears when the list appears: the server takes only one of them."""
    both = desired("local", ["crm", "hr"], [grant("crm.contact.>", "crm.order.>")])
    (change,) = plan(both, as_actual(WANTED))
    assert "filter_subject" not in change.config
    assert len(change.config["filter_subjects"]) == 2


@pytest.mark.parametrize(
    ("field", "was", "now", "refused"),
    [
        ("max_age_s", 100.0, 50.0, True),
        ("max_age_s", 0.0, 50.0, True),
        ("max_age_s", 50.0, 100.0, False),
        ("max_age_s", 50.0, 0.0, False),
        ("max_per_subject", -1, 5, True),
        ("max_per_subject", 5, -1, False),
        ("max_bytes", 1000, 500, False),
        ("max_message_bytes", 1000, 500, False),
    ],
)
def test_a_limit_that_deletes_needs_force(field: str, was: float, now: float, refused: bool) -> None:
    """A limit under which stored messages go is held back; force makes it; every other change just happens."""

    def having(value: Any) -> Topology:
        numbers: dict[str, Any] = {field: value}
        return Topology("local", (replace(StreamSpec("S", ("s.>",), 1000), **numbers),), ())

    before, after = having(was), having(now)
    (change,) = plan(after, as_actual(before))
    assert (change.action, change.refused) == ("update", refused)
    assert ("not done without force" in change.text) is refused
    (forced,) = plan(after, as_actual(before), force=True)
    assert not forced.refused


def test_fewer_bytes_where_the_oldest_give_way_need_force() -> None:
    """On `discard: old` a smaller max_bytes deletes."""
    spec = StreamSpec("S", ("s.>",), 1000, full="old")
    after = Topology("local", (replace(spec, max_bytes=500),), ())
    (change,) = plan(after, as_actual(Topology("local", (spec,), ())))
    assert change.refused


def test_what_no_grant_asks_for_any_more_needs_force() -> None:
    """A durable and an event stream without a grant are listed; without force they stay."""
    actual = as_actual(WANTED)
    changes = plan(desired("local", ["hr"], []), actual)
    assert [(c.action, c.stream, c.consumer, c.refused) for c in changes] == [
        ("delete", "EV_local_crm", "support--contacts", True),
        ("delete", "EV_local_crm", "", True),
    ]
    assert "not done without force" in changes[0].text
    assert [c.refused for c in plan(desired("local", ["hr"], []), actual, force=True)] == [False, False]


def test_streams_of_others_are_not_ours() -> None:
    """Another site's events, foreign streams and consumers without `--` are left alone, forced or not."""
    actual = as_actual(WANTED)
    streams = {**actual.streams, "EV_north_crm": {}, "OTHER": {}, "EV_localx_crm": {}}
    consumers = {
        **actual.consumers,
        ("OTHER", "a--b"): {},
        ("EV_local_crm", "mirror"): {},
        ("EV_north_crm", "a--b"): {},
    }
    assert plan(WANTED, Actual(streams, consumers), force=True) == []
