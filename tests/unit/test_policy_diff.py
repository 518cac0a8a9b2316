"""What a change of the policies means: widened, narrowed or changed, for whom, and what recorded events say of it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mesh.policy.compile import Plans
from mesh.policy.diff import Change, Delivery, compare
from mesh.policy.expressions import compile_condition
from mesh.policy.masktable import Mask
from mesh.policy.model_masks import With
from mesh.policy.replay import Recorded, Tally, replay
from mesh.policy.wider import Saying, Sight, conjuncts, disjuncts, kind_of, normal, shows_no_more
from tests.unit.policy_world import BASE, access, document, event, plans

MORE = ("", " && has(data.b)", " || has(data.b)")
NOW_MS = 1_790_000_000_000
LATER, LATEST = "2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z"
CLEAR: Mask = ("clear", With())
DROP: Mask = ("drop", With())
REDACT: Mask = ("redact", With())
EMAIL: Mask = ("partial", With(style="email"))
ENDS: Mask = ("partial", With(first=1, last=1))
TOKEN: Mask = ("pseudonym", With(domain="a"))
OTHER_TOKEN: Mask = ("pseudonym", With(domain="b"))
FIXED: Mask = ("encrypt", With(mode="deterministic", readers=("crm",)))
FIXED_FOR_TWO: Mask = ("encrypt", With(mode="deterministic", readers=("crm", "support")))
RANDOM: Mask = ("encrypt", With(mode="random", readers=("crm",)))


def view(mask: list[dict[str, Any]] | None = None, **spec: Any) -> str:
    """The base's masked view, written anew."""
    mine = {"mask": mask or [{"tags": ["public"], "as": "clear"}, {"tags": ["pii.name"], "as": "drop"}]}
    return document("View", "masked", mine | {"otherwise": "redact"} | spec)


def owned(text: str) -> str:
    """Documents with the owner that they have in the base."""
    return text.replace("  tenant: acme\n", "  owner: security\n  tenant: acme\n")


def with_view(text: str, *extra: str) -> Plans:
    """The base with another masked view."""
    clear = document("View", "clear", {"otherwise": "clear"})
    return plans(*extra, base=BASE | {"views.yaml": owned(clear + "---\n" + text)})


def with_access(*extra: str, **rules: list[dict[str, Any]]) -> Plans:
    """The base with other rules."""
    return plans(*extra, base=BASE | {"access.yaml": owned(access("base", **rules))})


def told(changes: tuple[Change, ...]) -> set[tuple[str, str, str, str, str, str]]:
    """What each change says."""
    return {(c.kind, c.what, c.who, c.path, c.before, c.after) for c in changes}


def lines(**more: Any) -> list[dict[str, Any]]:
    """The base's allows; *more* changes the one of analytics."""
    reads: list[dict[str, Any]] = yaml.safe_load(BASE["access.yaml"])["spec"]["allow"]
    return [*reads[:2], reads[2] | more]


@pytest.mark.parametrize(
    ("one", "two", "within", "back"),
    [
        (CLEAR, CLEAR, True, True),
        (DROP, REDACT, True, False),
        (REDACT, EMAIL, True, False),
        (EMAIL, CLEAR, True, False),
        (EMAIL, ENDS, False, False),
        (TOKEN, EMAIL, False, False),
        (TOKEN, OTHER_TOKEN, False, False),
        (RANDOM, FIXED, True, False),
        (FIXED, FIXED_FOR_TWO, True, True),
        (FIXED, TOKEN, False, False),
        (DROP, CLEAR, True, False),
    ],
)
def test_masks_are_ordered_only_where_one_tells_less(one: Mask, two: Mask, *, within: bool, back: bool) -> None:
    """A mask shows no more than another where nothing can be read off it that the other hides."""
    assert shows_no_more(one, one[0], two, two[0]) is within
    assert shows_no_more(two, two[0], one, one[0]) is back


def _sight(mask: Mask = CLEAR, rows: tuple[str, ...] = (), until: int | None = None, since: int | None = None) -> Sight:
    return Sight(mask, mask[0], frozenset(rows), until, since)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ([_sight()], [_sight()], None),
        ([_sight()], [_sight(rows=("a",))], "narrowed"),
        ([_sight(rows=("a",))], [_sight()], "widened"),
        ([_sight(rows=("a",))], [_sight(rows=("b",))], "changed"),
        ([_sight(until=5)], [_sight(until=6)], "widened"),
        ([_sight(until=5)], [_sight()], "widened"),
        ([_sight()], [_sight(until=5)], "narrowed"),
        ([_sight()], [_sight(since=5)], "widened"),
        ([_sight(since=5)], [_sight(since=4)], "widened"),
        ([_sight(since=4)], [_sight(since=5)], "narrowed"),
        # each alone is no wider: together they show in clear what only a part of the events did
        ([_sight(rows=("a",)), _sight(DROP)], [_sight()], "widened"),
        ([_sight(EMAIL)], [_sight(EMAIL), _sight(DROP, rows=("a",))], None),
        ([_sight(EMAIL)], [_sight(TOKEN)], "changed"),
    ],
)
def test_ways_to_see_a_field_are_compared_together(old: list[Sight], new: list[Sight], kind: str | None) -> None:
    """Masks, rows and times of one view hang together; several views give what each of them gives."""
    assert kind_of(old, new, Sight.within) == kind


def test_conditions_are_compared_in_normal_form() -> None:
    """Spaces, brackets and quotes that mean nothing are no change; another constant is."""
    assert normal("data.a == 'x' && (data.b)") == normal('data.a  ==  "x" && data.b')
    assert normal("data.a == 1") != normal("data.a == 2")
    assert normal("data.a == 1") != normal("data.a == 1.0")


def test_one_more_condition_is_narrower() -> None:
    """`a && b` is less than `a`, for a right and for rows; a deny of `a || b` leaves less than one of `a`."""
    one, both, either = (compile_condition(f"has(data.a){more}", roots=frozenset({"data"})) for more in MORE)
    assert conjuncts(both) > conjuncts(one)
    assert conjuncts(either) != conjuncts(one)
    assert disjuncts(either) > disjuncts(one)
    nothing: frozenset[str] = frozenset()
    under, free = Saying(nothing, conjuncts(one), None, nothing), Saying(nothing, nothing, None, nothing)
    assert kind_of([free], [under], Saying.within) == "narrowed"
    assert kind_of([under], [Saying(nothing, conjuncts(both), None, nothing)], Saying.within) == "narrowed"
    refused = Saying(nothing, nothing, None, disjuncts(one))
    assert kind_of([refused], [Saying(nothing, nothing, None, disjuncts(either))], Saying.within) == "narrowed"
    assert kind_of([refused], [free], Saying.within) == "widened"


def test_the_same_policies_do_not_differ() -> None:
    """Documents in another order, and conditions written otherwise, are no change."""
    one = with_view(view(rows="data.country == 'DE'"))
    two = with_view(view(rows='( data.country=="DE" )'))
    diff = compare(one, two, NOW_MS)
    assert (diff.changes, diff.conditions, diff.widens) == ((), (), False)


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (
            with_view(view([{"tags": ["public", "pii.name"], "as": "clear"}])),
            {("widened", "field", "analytics", "data.name", "drop", "clear")},
        ),
        (
            with_view(view([{"tags": ["public", "pii.name"], "as": "drop"}])),
            {("narrowed", "field", "analytics", "data.country", "clear", "drop")},
        ),
        (
            with_view(view(otherwise="drop")),
            {
                ("narrowed", "field", "analytics", "data.email", "redact", "drop"),
                ("narrowed", "field", "analytics", "unclassified", "redact", "drop"),
            },
        ),
        (
            with_view(view(rows="data.country == 'DE'")),
            {("narrowed", "rows", "analytics", "", "every event", "data.country == 'DE'")},
        ),
        (
            with_access(allow=lines(expires=LATER, reason="x")),
            {("narrowed", "grant", "analytics", "", "for good", "until 2027-01-01T00:00:00.000Z")},
        ),
        (
            with_access(allow=lines(since="2026-01-01T00:00:00Z")),
            {("widened", "grant", "analytics", "", "for good", "for good, events since 2026-01-01T00:00:00.000Z")},
        ),
        (
            with_access(allow=lines(who={"teams": ["support"]})),
            {
                ("widened", "read", "support", "", "none", "view masked"),
                ("narrowed", "read", "analytics", "", "view masked", "none"),
            },
        ),
        (
            with_access(allow=lines(), deny=[{"id": "d", "who": {"teams": ["analytics"]}, "subscribe": ["crm.hr.>"]}]),
            {("narrowed", "read", "analytics", "", "view masked", "none")},
        ),
        (
            with_access(allow=[lines()[0] | {"sources": ["/salesforce/**"]}, *lines()[1:]]),
            {
                (
                    "widened", "publish", "crm-adapter", "",
                    "crm-publishes from /crm", "crm-publishes from /crm, /salesforce/**",
                )
            },
        ),
        (
            with_access(allow=[lines()[0] | {"publish": ["crm.>", "ops.note"]}, *lines()[1:]]),
            {("widened", "publish", "crm-adapter", "", "none", "crm-publishes from /crm")},
        ),
        (
            plans(document("Classification", "more", {"types": ["crm.>"], "fields": {"data.zip": ["public"]}})),
            {("widened", "field", "analytics", "data.zip", "redact", "clear")},
        ),
    ],
)  # fmt: skip
def test_a_change_is_told_as_what_it_gives(new: Plans, expected: set[tuple[str, str, str, str, str, str]]) -> None:
    """Each edit of the policies is exactly the change that its readers and publishers would notice."""
    old = plans()
    diff = compare(old, new, NOW_MS)
    assert told(diff.changes) == expected
    assert diff.widens is any(kind != "narrowed" for kind, *_ in expected)
    back = {"widened": "narrowed", "narrowed": "widened"}
    assert {(c.kind, c.what, c.who, c.path, c.after, c.before) for c in compare(new, old, NOW_MS).changes} == {
        (back[kind], *rest) for kind, *rest in expected
    }


def test_a_type_that_nobody_could_publish_is_new_to_its_readers() -> None:
    """A grant wider than what is published gives more as soon as somebody publishes more."""
    wide = lines(subscribe=[">"])
    more = [wide[0] | {"publish": ["crm.>", "ops.note"]}, *wide[1:]]
    reads = [c for c in compare(with_access(allow=wide), with_access(allow=more), NOW_MS).changes if c.reads]
    assert [(c.kind, c.what, c.who, c.told) for c in reads] == [("widened", "read", "analytics", ("ops.note",))]


def test_a_deny_narrows_its_types_alone() -> None:
    """The change names the types that the deny takes out, and leaves the others of the grant alone."""
    deny = {"id": "d", "who": {"teams": ["analytics"]}, "subscribe": ["crm.hr.>"]}
    (change,) = compare(plans(), plans(access(deny=[deny])), NOW_MS).changes
    assert change.told == ("crm.hr.>",)


def test_routes_are_changes_of_their_own() -> None:
    """A copy that is added is wider; a move takes away and gives, so it is changed; both name their owner."""
    copy = {"id": "r", "match": {"types": ["crm.deal.won"]}, "effect": "copy", "to": "crm.deal.copied.v1"}
    routed = plans(document("Route", "r", {"routes": [copy]}))
    moved = plans(document("Route", "r", {"routes": [copy | {"effect": "move"}]}))
    assert told(compare(plans(), routed, NOW_MS).changes) == {
        ("widened", "route", "r", "", "none", "copy to crm.deal.copied.v1")
    }
    assert [c.kind for c in compare(routed, plans(), NOW_MS).changes] == ["narrowed"]
    assert {c.kind for c in compare(routed, moved, NOW_MS).changes} == {"changed"}
    assert compare(moved, plans(), NOW_MS).widens


def test_a_path_that_goes_opens_what_it_closed() -> None:
    """A scalar path hides what an object there holds; without it other paths show that, and the diff says so."""
    floor = document("Classification", "floor", {"types": [">"], "fields": {"**.country": ["public"]}})
    closing = document("Classification", "c", {"types": ["crm.>"], "fields": {"data.partner": ["pii.contact.email"]}})
    old, new = plans(floor, closing), plans(floor)
    assert told(compare(old, new, NOW_MS).changes) == {
        ("widened", "field", "analytics", "**.country + data.partner", "redact", "clear")
    }
    assert compare(new, old, NOW_MS).widens is False


def test_a_mask_that_changes_is_told_of_places_that_another_path_closes_elsewhere() -> None:
    """With the same paths before and after, a changed mask line widens, or narrows, whatever place it shows at."""
    fields = {"data.*.*": ["public"], "**.contact.email": ["pii.email"]}
    crm = owned(document("Classification", "crm", {"types": ["crm.>"], "fields": fields}))
    clear = document("View", "clear", {"otherwise": "clear"})

    def made(action: str) -> Plans:
        masked = view([{"tags": ["public"], "as": "clear"}, {"tags": ["pii.email"], "as": action}])
        return plans(base=BASE | {"crm.yaml": crm, "views.yaml": owned(clear + "---\n" + masked)})

    path = "**.contact.email + data.*.*"
    widened, narrowed = (compare(made(was), made(now), NOW_MS) for was, now in (("drop", "clear"), ("clear", "drop")))
    for one in (path, "**.contact.email"):  # the latter in items of an array
        assert ("widened", "field", "analytics", one, "drop", "clear") in told(widened.changes)
    assert widened.widens
    assert ("narrowed", "field", "analytics", path, "clear", "drop") in told(narrowed.changes)
    assert not narrowed.widens
    assert narrowed.narrowed_teams == {"analytics"}


def test_a_path_that_comes_closes_without_noise() -> None:
    """A scalar path that is added hides what other paths dropped or masked below it: nobody gets more by that."""
    floor = document("Classification", "floor", {"types": [">"], "fields": {"**.name": ["pii.name"]}})
    closing = document("Classification", "c", {"types": ["crm.>"], "fields": {"data.partner": ["pii.contact.email"]}})
    assert compare(plans(floor), plans(floor, closing), NOW_MS).changes == ()


def test_who_loses_what_a_path_closes_counts_as_narrowed() -> None:
    """What shows no longer because a container is now classified is not told, but its reader sees less."""
    floor = document("Classification", "floor", {"types": [">"], "fields": {"**.country": ["public"]}})
    closing = document("Classification", "c", {"types": ["crm.>"], "fields": {"data.partner": ["pii.contact.email"]}})
    found = compare(plans(floor), plans(floor, closing), NOW_MS)
    assert found.changes == ()
    assert found.narrowed_teams == {"analytics"}


def test_workloads_and_owners_are_changes_too() -> None:
    """Another identity, an agent that moves or comes, and another owner of a document are told."""
    tenant = BASE["tenant.yaml"]
    edits = {
        "support: {agents: [desk, phone]}": "support: {agents: [desk, phone, chat]}",
        "spec:": "spec:\n  identities: {lake: 'spiffe://other/ns/a/sa/lake'}",
        "owner: security": "owner: support",
    }
    found = [
        told(compare(plans(), plans(base=BASE | {"tenant.yaml": tenant.replace(was, now)}), NOW_MS).changes)
        for was, now in edits.items()
    ]
    assert found == [
        {("widened", "agent", "chat", "", "none", "team support")},
        {("changed", "agent", "lake", "", "team analytics", "team analytics as spiffe://other/ns/a/sa/lake")},
        {("changed", "owner", "Tenant acme", "", "security", "support")},
    ]


def test_how_a_subscription_is_delivered_is_told_and_gives_nobody_more() -> None:
    """What both sets have is compared, in words; order, rate and retries widen nothing and ask nobody."""

    def subscribed(**spec: Any) -> Plans:
        return plans(document("Subscription", "all", {"types": ["crm.>"], **spec}, team="analytics"))

    paced = subscribed(order_by="partitionkey", rate="30/min", retry={"ack_wait": "1s"}, poison={"share": 1})
    found = compare(subscribed(), paced, NOW_MS)
    assert (found.changes, found.widens, found.narrowed_teams) == ((), False, frozenset())
    assert found.delivery == (
        Delivery(
            "analytics/all",
            "ack within 30 s, in any order, at any rate, paused once over 50% of the last 100 events are dead letters",
            "ack within 1 s, each partition key in order, 30 a minute at most, never paused for dead letters",
        ),
    )
    assert compare(paced, paced, NOW_MS).delivery == ()
    assert compare(plans(), paced, NOW_MS).delivery == ()  # it is new: its document says so


STRICT = "{staleness: strict}"


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        (STRICT, "{}", ("widened", "strict: 1 min", "grace: 60 min")),
        ("{}", "{grace: 24h}", ("widened", "grace: 60 min", "grace: 1440 min")),
        ("{grace: 2h}", "{grace: 1h}", ("narrowed", "grace: 120 min", "grace: 60 min")),
        ("{}", STRICT, ("narrowed", "grace: 60 min", "strict: 1 min")),
        ("{}", "{staleness: grace, grace: 60m}", None),
    ],
)
def test_how_long_old_trust_is_relied_on_is_a_change(was: str, now: str, expected: tuple[str, str, str] | None) -> None:
    """Longer is wider, whichever key says it; the Tenant's owner must agree, and nobody reads anything else."""

    def short(text: str) -> str:
        return text.replace("delivery pauses once trust statements are ", "").removesuffix(" old")

    old, new = (plans(base=BASE | {"tenant.yaml": BASE["tenant.yaml"] + f"  trust: {text}\n"}) for text in (was, now))
    found = compare(old, new, NOW_MS)
    told_now = [(c.kind, c.what, c.who, short(c.before), short(c.after), c.owners) for c in found.changes]
    if expected is None:
        assert told_now == []
    else:
        kind, before, after = expected
        assert told_now == [(kind, "trust", "acme", before, after, ("security",))]
        assert found.widens == (kind == "widened")
    assert found.narrowed_teams == frozenset()


def test_an_agent_that_moves_reads_as_another_team() -> None:
    """Nobody's rights are other rights, and yet a workload reads what it did not."""
    tenant = BASE["tenant.yaml"]
    moved = tenant.replace("agents: [lake]", "agents: [lake, phone]").replace("[desk, phone]", "[desk]")
    changes = compare(plans(), plans(base=BASE | {"tenant.yaml": moved}), NOW_MS).changes
    assert told(changes) == {("changed", "agent", "phone", "", "team support", "team analytics")}


def test_owners_of_everything_a_wider_field_rests_on_must_agree() -> None:
    """Who classified the field, who owns the view and who granted it are named; for a narrower one nobody is asked."""
    base = {name: text.replace("owner: security", f"owner: {name[:4]}") for name, text in BASE.items()}
    wider = base | {
        "views.yaml": base["views.yaml"].replace("{tags: [pii.name], as: drop}", "{tags: [pii.name], as: clear}")
    }
    diff = compare(plans(base=base), plans(base=wider), NOW_MS)
    assert diff.owners == ("acce", "crm", "view")
    assert compare(plans(base=wider), plans(base=base), NOW_MS).owners == ()


def test_changed_conditions_are_named() -> None:
    """Rules, routes and rows whose condition is another one, or new, or gone, are named for a replay."""
    deny = {"id": "d", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "has(data.x)"}
    old = with_view(view(rows="data.country == 'DE'"), access(deny=[deny]))
    new = with_view(view(rows="data.country == 'FR'"), access(deny=[deny | {"when": "has(data.y)"}]))
    assert compare(old, new, NOW_MS).conditions == ("d", "rows of masked")
    assert compare(old, plans(), NOW_MS).conditions == ("d", "rows of masked")


# --- replay ----------------------------------------------------------------------------------------------------------


def recorded(data: dict[str, Any], view: str = "clear", **attributes: Any) -> Recorded:
    """A stored copy by the CRM's agent."""
    return Recorded(event(data, **attributes), view, "crm-adapter")


def tallies(old: Plans, new: Plans, *events: Recorded) -> dict[str, tuple[int, int, int]]:
    """Gained, lost and undecided by team."""
    teams = replay(old, new, events, now_ms=NOW_MS).teams
    return {team: (tally.gained, tally.lost, tally.undecided) for team, tally in teams.items()}


def test_changed_rows_are_counted_by_team() -> None:
    """Of recorded events those that a reader would get and did not, and the other way round, are counted."""
    old, new = with_view(view(rows="data.country == 'DE'")), with_view(view(rows="data.amount > 10"))
    events = [
        recorded({"country": "DE", "amount": 11}),
        recorded({"country": "FR", "amount": 11}),
        recorded({"country": "DE", "amount": 1}),
        recorded({"country": "DE"}),  # the new filter fails on it
    ]
    assert tallies(old, new, *events) == {"analytics": (1, 2, 0)}
    assert replay(old, old, events, now_ms=NOW_MS).teams == {}
    assert replay(old, new, events, now_ms=NOW_MS).events == 4


def test_what_a_copy_hides_is_undecided() -> None:
    """A condition over a field that the clearest copy masks cannot be asked, and says so; others still are."""
    old, new = with_view(view()), with_view(view(rows="data.email == 'x'"))
    assert tallies(old, new, recorded({"email": "[REDACTED]"}, "masked")) == {"analytics": (0, 0, 1)}
    shown = with_view(view(rows="data.country == 'DE'"))
    assert tallies(old, shown, recorded({"country": "FR"}, "masked")) == {"analytics": (0, 1, 0)}
    assert tallies(old, shown, recorded({"country": "FR"}, "no-such-view")) == {"analytics": (0, 0, 1)}


def test_a_changed_when_is_counted_for_every_reader() -> None:
    """A deny on publishing takes the event from all its readers; one that fails takes it too."""
    deny = {"id": "d", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "data.country == 'FR'"}
    old, new = plans(), plans(access(deny=[deny]))
    events = [recorded({"country": "FR"}), recorded({"country": "DE"}), recorded({})]
    assert tallies(old, new, *events) == {"analytics": (0, 2, 0), "crm": (0, 2, 0)}
    hidden = recorded({"country": "DE"}, "masked")
    assert tallies(old, plans(access(deny=[deny | {"when": "data.name == 'x'"}])), hidden) == {
        "analytics": (0, 0, 1), "crm": (0, 0, 1),
    }  # fmt: skip


def test_a_refused_event_left_no_copy() -> None:
    """Of a refused event only type and source are known: what hangs on more is undecided, a lifted deny is a gain."""
    deny = {"id": "d", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "data.country == 'FR'"}
    refused = Recorded({"id": "e", "source": "/crm", "type": "crm.contact.updated.v1"}, "", "crm-adapter")
    other = plans(access(deny=[deny | {"when": "data.country == 'DE'"}]))
    assert tallies(plans(access(deny=[deny])), other, refused) == {"analytics": (0, 0, 1), "crm": (0, 0, 1)}
    deny_too = access(deny=[deny])
    unchanged = (with_view(view(), deny_too), with_view(view(rows="data.country == 'DE'"), deny_too))
    assert tallies(*unchanged, refused) == {}  # it was refused, and still would be
    flat = {name: value for name, value in deny.items() if name != "when"}
    reads = [lines()[0], lines()[2]]
    assert tallies(with_access(allow=reads, deny=[flat]), with_access(allow=reads), refused) == {"analytics": (1, 0, 0)}


def test_routes_are_replayed_from_their_originals() -> None:
    """A copy gives its readers an event, a move takes it from others; stored copies of routes are not asked again."""
    move = {
        "id": "m",
        "match": {"types": ["crm.contact.>"]},
        "when": "data.vip",
        "effect": "move",
        "to": "vip.contact.v1",
    }
    grant = access(allow=[{"id": "s", "who": {"teams": ["support"]}, "subscribe": ["vip.>"], "view": "masked"}])
    both = lines()[0] | {"publish": ["crm.>", "vip.other"]}
    old = with_access(grant, allow=[both, *lines()[1:]])
    new = with_access(grant, document("Route", "r", {"routes": [move]}), allow=[both, *lines()[1:]])
    events = [recorded({"vip": True}), recorded({"vip": False}), recorded({"vip": 1}, type="vip.contact.v1")]
    assert replay(old, new, events, now_ms=NOW_MS).events == 2
    assert tallies(old, new, *events) == {"support": (1, 0, 0), "analytics": (0, 1, 0), "crm": (0, 1, 0)}


def test_a_copy_takes_nothing_away() -> None:
    """A route that copies gives its readers an event, and leaves the original to everybody else."""
    copy = {"id": "c", "match": {"types": ["crm.contact.>"]}, "effect": "copy", "to": "vip.contact.v1"}
    grant = access(allow=[{"id": "s", "who": {"teams": ["support"]}, "subscribe": ["vip.>"], "view": "masked"}])
    both = [lines()[0] | {"publish": ["crm.>", "vip.other"]}, *lines()[1:]]
    old = with_access(grant, allow=both)
    new = with_access(grant, document("Route", "r", {"routes": [copy]}), allow=both)
    assert tallies(old, new, recorded({"country": "DE"})) == {"support": (1, 0, 0)}


def test_an_unknown_signer_says_nothing() -> None:
    """Of an agent that neither set knows, nothing would be published, and so nothing differs."""
    deny = {"id": "d", "who": {"teams": ["crm"]}, "publish": ["crm.>"], "when": "data.country == 'FR'"}
    stranger = Recorded(event({"country": "FR"}), "clear", None)
    assert replay(plans(), plans(access(deny=[deny])), [stranger], now_ms=NOW_MS).teams == {}
    assert Tally() == Tally(0, 0, 0)
