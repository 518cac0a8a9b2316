"""Routes: which events take them, what the new event is, and what follows it: classification, denies, grants."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.globs import Glob
from mesh.policy.compile import Plans
from mesh.policy.load import load
from mesh.policy.routes import RouteRule, routed, routed_id
from mesh.policy.sources import sources_meet
from mesh.subjects import TYPE_RE, Pattern
from tests.unit.policy_world import BASE, NO_DATA, Keys, access, document, event, plans

TO = "fraud.review.order.v1"
CRM = "spiffe://mesh.test/ns/acme/sa/crm-adapter"
READER = {"id": "support-reads", "who": {"teams": ["support"]}, "subscribe": ["fraud.>"], "view": "masked"}


def route(id_: str = "review", /, **line: Any) -> dict[str, Any]:
    """One route line; `types` and `sources` are its match."""
    match = {key: line.pop(key) for key in ("types", "sources") if key in line}
    return {"id": id_, "match": {"types": ["crm.order.>"]} | match, "effect": "copy", "to": TO} | line


def routes(*lines: dict[str, Any]) -> str:
    """A Route document."""
    return document("Route", "routes", {"routes": list(lines)})


def world(*lines: dict[str, Any], more: tuple[str, ...] = (), base: dict[str, str] = BASE) -> Plans:
    """The base with routes, and with the team support reading what they make."""
    return plans(routes(*lines), access("readers", allow=[READER]), *more, base=base)


# The base where nobody owns what crm publishes, so that a deny may take some of it away.
UNOWNED = BASE | {
    "access.yaml": BASE["access.yaml"].replace(
        'subscribe: ["crm.>"], view: clear', 'subscribe: ["crm.>"], view: masked'
    )
}


def taken(made: Plans, data: Any = NO_DATA, *, agent: str = "crm-adapter", **attributes: Any) -> list[str]:
    """The ids of the routes that one order takes."""
    fields = event(data, **({"type": "crm.order.placed.v2"} | attributes))
    return [match.route.id for match in made.publisher(agent).routes(fields, now_ms=0)]


def warnings(*extra: str) -> list[str]:
    """What the loader warns of, of the base with *extra* documents."""
    return [str(w) for w in load(BASE | {f"extra{i}.yaml": text for i, text in enumerate(extra)}).warnings]


# --- which events take a route ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "attributes", "takes"),
    [
        ({}, {}, True),
        ({}, {"type": "crm.contact.updated.v1"}, False),
        ({"types": ["crm.order"]}, {"type": "crm.order"}, True),
        ({"sources": ["/crm/eu/*"]}, {"source": "/crm/eu/1"}, True),
        ({"sources": ["/crm/eu/*"]}, {"source": "/crm/us/1"}, False),
        ({"sources": ["/crm/us/*", "/crm/eu/**"]}, {"source": "/crm/eu/1/2"}, True),
        ({"when": "data.amount >= 10"}, {"data": {"amount": 10}}, True),
        ({"when": "data.amount >= 10"}, {"data": {"amount": 9}}, False),
        ({"when": "event.source == '/crm' && principal.team == 'crm'"}, {}, True),
        ({"when": "principal.agent == 'lake'"}, {}, False),
        ({"when": "data.amount >= 10"}, {"data": {"amount": "10"}}, False),
        ({"when": "data.amount >= 10"}, {}, False),
        ({"when": "data.amount >= 10", "effect": "move"}, {"data": {"amount": "10"}}, True),
        ({"when": "data.amount >= 10", "effect": "move"}, {}, True),
        ({"when": "data.amount >= 10", "effect": "move"}, {"data": {"amount": 9}}, False),
    ],
)
def test_an_event_takes_a_route_by_type_source_and_condition(
    line: dict[str, Any], attributes: dict[str, Any], *, takes: bool
) -> None:
    """All three must hold; a condition that fails is no match for a copy, and a match for a move."""
    made = world(route(**line))
    for _ in range(2):
        assert taken(made, attributes.get("data", NO_DATA), **{k: v for k, v in attributes.items() if k != "data"}) == (
            ["review"] if takes else []
        )


def test_a_move_whose_condition_failed_says_so() -> None:
    """Whoever explains it can tell a move that was asked for from one made to be safe."""
    publisher = world(route(when="data.amount >= 10", effect="move")).publisher("crm-adapter")
    matches = [
        publisher.routes(event({"amount": amount}, type="crm.order.placed.v2"), now_ms=0) for amount in (10, "10")
    ]
    assert [match.failed for (match,) in matches] == [False, True]


def test_every_route_that_matches_is_taken() -> None:
    """Several copies of one event, and a move beside them, are all made."""
    made = world(route("a"), route("b", to="fraud.audit.v1"), route("c", effect="move", to="fraud.hold.v1"))
    assert taken(made) == ["a", "b", "c"]


def test_what_is_refused_takes_no_route() -> None:
    """A route is for events that may be published: not for a type that a deny keeps out, nor for another's agent."""
    deny = access(deny=[{"id": "d", "who": {"teams": ["crm"]}, "publish": ["crm.order.>"]}])
    assert taken(world(route(), more=(deny,), base=UNOWNED)) == []
    assert taken(world(route()), agent="lake") == []


def test_a_copy_is_not_routed_again() -> None:
    """A route that matches what another makes, or even what it makes itself, is no loop."""
    lines = (route(types=["crm.>"], to="crm.order.copied.v1"), route("again", types=["crm.order.copied.v1"]))
    assert taken(world(*lines)) == ["review"]


def test_a_route_copies_to_the_views_that_somebody_reads() -> None:
    """Each view of the new type with a reader now, and no other; a grant that ends counts until then."""
    ends = {"expires": "1970-01-01T00:00:10Z", "reason": "x"}
    short = access("short", allow=[READER | {"id": "s", "view": "short"} | ends])
    made = world(route(), more=(short, document("View", "short", {"otherwise": "drop"})))
    fields = event(type="crm.order.placed.v2")
    names = [
        [view.name for match in made.publisher("crm-adapter").routes(fields, now_ms=now) for view in match.views]
        for now in (9_999, 10_000, None)
    ]
    assert names == [["masked", "short"], ["masked"], ["masked"]]


def test_without_routes_there_is_nothing_to_ask() -> None:
    """A publisher knows that its tenant has no routes, and pays nothing for them."""
    assert not plans().publisher("crm-adapter").routing
    assert plans().publisher("crm-adapter").routes(event(), now_ms=0) == ()
    assert world(route()).publisher("crm-adapter").routing


# --- the new event ---------------------------------------------------------------------------------------------------


def rule(effect: str = "copy") -> RouteRule:
    """The parsed route of these tests."""
    (found,) = world(route(effect=effect)).tenancy.routes
    return found


def test_the_new_event_names_the_original_as_its_cause() -> None:
    """Type and id are its own, the cause is the original, and everything else is as it was."""
    fields = event(
        {"amount": 1}, correlationid="c-1", causationid="older", partitionkey="k", type="crm.order.placed.v2"
    )
    new = routed(fields, rule())
    assert (new["type"], new["id"], new["causationid"]) == (TO, routed_id("/crm", "e-1", "review"), "e-1")
    assert {k: v for k, v in new.items() if k not in {"type", "id", "causationid"}} == {
        k: v for k, v in fields.items() if k not in {"type", "id", "causationid"}
    }
    assert fields["id"] == "e-1"
    assert routed(event(), rule())["correlationid"] == "e-1"


def test_the_id_is_a_hash_of_source_id_and_route() -> None:
    """`b64u(BLAKE2b-128(source, id, route id))`: equal for the same event, another for another source, id or route."""
    digest = blake2b(b"/crm\ne-1\nreview", digest_size=16).digest()
    assert routed_id("/crm", "e-1", "review") == urlsafe_b64encode(digest).decode().rstrip("=")
    assert len({routed_id(s, i, r) for s in ("/a", "/b") for i in ("1", "2") for r in ("x", "y")}) == 8


# --- classification follows ------------------------------------------------------------------------------------------


def shown(made: Plans, data: dict[str, Any]) -> Any:
    """The data of an order, copied to the fraud type, in the masked view."""
    fields = routed(event(data, type="crm.order.placed.v2"), rule())
    return made.view("masked", TO).mask(fields, Keys())["data"]


def test_classification_follows_the_event() -> None:
    """A type that others are routed into takes on their classification beside its own; no other type does."""
    own = document("Classification", "fraud", {"types": ["fraud.>"], "fields": {"data.score": ["public"]}})
    made = world(route(), more=(own,))
    data = {"name": "Ada", "email": "ada@example.com", "country": "DE", "score": 7, "other": 1}
    assert shown(made, data) == {"email": "[REDACTED]", "country": "DE", "score": 7, "other": None}
    assert [made.tenancy.classified[i].name for i in made.tenancy.classifying(TO)] == ["crm", "fraud"]
    assert [made.tenancy.classified[i].name for i in made.tenancy.classifying("fraud.other.v1")] == ["fraud"]
    pairs, table = made.sides("masked", TO)
    assert [path.text for path, _ in pairs] == ["data.name", "data.email", "data.country", "data.score"]
    assert table is made.tenancy.tables["masked"]


def test_only_what_is_matched_is_taken_on() -> None:
    """The classification of types that a route does not match stays where it is."""
    more = (
        document("Classification", "contacts", {"types": ["crm.contact.>"], "fields": {"data.x": ["public"]}}),
        access("hr", allow=[{"id": "hr", "who": {"teams": ["support"]}, "publish": ["hr.pay.v1"]}]),
        document("Classification", "hr", {"types": ["hr.>"], "fields": {"data.y": ["public"]}}),
    )
    made = world(route(types=["crm.order.>", "*.pay.v1"]), more=more)
    assert [made.tenancy.classified[i].name for i in made.tenancy.classifying(TO)] == ["crm", "hr"]
    made = world(route(types=["crm.order.>"]), more=more)
    assert [made.tenancy.classified[i].name for i in made.tenancy.classifying(TO)] == ["crm"]


def test_a_classification_of_what_routes_make_can_match() -> None:
    """A pattern that only copies match is no dead pattern; it is one where the route's own types are not published."""
    own = document("Classification", "fraud", {"types": [TO], "fields": {"data.score": ["public"]}})
    assert warnings(routes(route()), access("readers", allow=[READER]), own) == []


# --- denies follow ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("denied", "readable"),
    [("crm.order.>", False), ("crm.order.placed.v2", False), (TO, False), ("crm.contact.>", True), ("hr.>", True)],
)
def test_a_deny_to_read_follows_the_event(denied: str, *, readable: bool) -> None:
    """Who may not read a type may not read what it is routed into, at the agent and at NATS."""
    subscription = document("Subscription", "s", {"types": ["fraud.>"]}, team="support")
    deny = access(deny=[{"id": "d", "who": {"teams": ["support"]}, "subscribe": [denied]}])
    made = world(route(), more=(deny, subscription))
    decision = made.reader("support", TO, "masked", now_ms=0)
    assert (decision.allowed, decision.rule) == ((True, "support-reads") if readable else (False, "d"))
    assert bool(made.grant("support", TO, "masked", 0)) is readable
    assert bool(made.views(TO)) is readable
    assert made.subscription("support", "s").active is readable
    assert bool(made.grants().teams["support"]) is readable
    assert [d.id for d in made.tenancy.read_denies_of("support", TO)] == ([] if readable else ["d"])


def test_a_deny_follows_one_step() -> None:
    """What is routed is not routed again, so a deny does not reach the type after the next."""
    lines = (route(to="fraud.a.v1"), route("two", types=["fraud.a.v1", "crm.deal.>"], to="fraud.b.v1"))
    made = world(
        *lines, more=(access(deny=[{"id": "d", "who": {"teams": ["support"]}, "subscribe": ["crm.order.>"]}]),)
    )
    assert not made.reader("support", "fraud.a.v1", "masked", now_ms=0).allowed
    assert made.reader("support", "fraud.b.v1", "masked", now_ms=0).allowed


def test_a_deny_that_follows_is_taken_out_of_filters() -> None:
    """Where the other types of the domain are published by exact lines, NATS itself leaves the routed one out."""
    rules = access(
        allow=[{"id": "p", "who": {"teams": ["support"]}, "publish": ["fraud.case.v1"]}],
        deny=[{"id": "d", "who": {"teams": ["support"]}, "subscribe": ["crm.>"]}],
    )
    subscription = document("Subscription", "s", {"types": ["fraud.>"]}, team="support")
    found = world(route(), more=(rules, subscription)).subscription("support", "s")
    assert ([p.text for p in found.filters], found.agent_only) == (["fraud.case.v1"], False)


# --- rights and grants -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "type_", "source", "line", "allowed"),
    [
        (CRM, TO, "/crm/eu", {}, True),
        (CRM, TO, "/billing", {}, False),
        (CRM, TO, "/crm/eu", {"when": "false"}, True),  # a condition is not asked
        (CRM, TO, "/crm/eu", {"sources": ["/crm/us"]}, False),
        (CRM, TO, "/crm/us", {"sources": ["/crm/us"]}, True),
        (CRM, "fraud.other.v1", "/crm/eu", {}, False),
        (CRM, TO, "/crm/eu", {"types": ["hr.pay.v1", "crm.order.>"]}, True),
        ("spiffe://mesh.test/ns/acme/sa/lake", TO, "/analytics", {}, False),
        ("spiffe://mesh.test/ns/acme/sa/desk", TO, "/support", {}, False),
    ],
)
def test_a_route_is_the_publisher_s_grant(
    identity: str, type_: str, source: str, line: dict[str, Any], *, allowed: bool
) -> None:
    """V5: whoever may publish what a route matches may publish its copies, from the same source; nobody else may."""
    hr = access("hr", allow=[{"id": "hr", "who": {"agents": ["lake"]}, "publish": ["hr.pay.v1"], "when": "false"}])
    made = world(route(**line), more=(hr,))
    assert [made.may_publish(identity, type_, source) for _ in range(2)] == [allowed, allowed]


def test_the_sources_of_a_publish_line_hold_for_its_copies() -> None:
    """A source that a line adds for some types is none for the copies of others."""
    lines = access(
        allow=[
            {"id": "p", "who": {"agents": ["desk"]}, "publish": ["desk.order.v1"], "sources": ["/shop/**"]},
            {"id": "q", "who": {"agents": ["desk"]}, "publish": ["desk.note.v1"], "sources": ["/mail/**"]},
        ]
    )
    made = world(route(types=["desk.order.v1"]), more=(lines,))
    desk = "spiffe://mesh.test/ns/acme/sa/desk"
    assert made.may_publish(desk, TO, "/shop/1")
    assert not made.may_publish(desk, TO, "/mail/1")


def test_a_deny_of_what_is_routed_leaves_no_right_to_the_copies() -> None:
    """Who may publish no event that a route matches may not publish its copies; a conditional deny is not asked."""
    flat = access(deny=[{"id": "d", "who": {"teams": ["crm"]}, "publish": ["crm.order.>"]}])
    part = access(deny=[{"id": "d", "who": {"teams": ["crm"]}, "publish": ["crm.order.x.v1"]}])
    asked = access(deny=[{"id": "d", "who": {"teams": ["crm"]}, "publish": ["crm.order.>"], "when": "true"}])
    for deny, allowed in ((flat, False), (part, True), (asked, True)):
        made = world(route(), more=(deny,), base=UNOWNED)
        assert made.may_publish(CRM, TO, "/crm") is allowed
        granted = {grant.pattern.text for grant in made.grants().agents["crm-adapter"].publish}
        assert (TO in granted) is allowed


def test_nobody_may_publish_a_copy_s_type_as_its_own() -> None:
    """The route grants copies, not events of that type."""
    decision = world(route()).publisher("crm-adapter").decide(event(type=TO), now_ms=0)
    assert (decision.allowed, decision.reason) == (False, "no-allow-matched")


def test_a_publisher_is_granted_the_copies_of_its_events() -> None:
    """In each view that somebody reads; an agent whose events no route matches gets nothing."""
    made = world(
        route(), more=(access("p", allow=[{"id": "p", "who": {"agents": ["desk"]}, "publish": ["desk.x.v1"]}]),)
    )
    grants = made.grants()
    assert [(g.view, g.pattern.text, g.agent_only) for g in grants.agents["crm-adapter"].publish] == [
        ("clear", "crm.>", False),
        ("masked", "crm.>", False),
        ("masked", TO, False),
    ]
    assert [p.text for p in grants.agents["crm-adapter"].types] == ["crm.>"]
    assert grants.agents["desk"].publish == ()
    assert grants.streams == {"crm": "EV_local_crm", "desk": "EV_local_desk", "fraud": "EV_local_fraud"}


def test_a_grant_inside_another_is_not_given_twice() -> None:
    """Two imports of one subject would overlap: what a publish line covers is not granted again by a route."""
    made = plans(routes(route(to="crm.copied.order.v1")))
    assert [(g.view, g.pattern.text) for g in made.grants().agents["crm-adapter"].publish] == [
        ("clear", "crm.>"),
        ("masked", "crm.>"),
    ]


def test_a_route_of_what_has_ended_grants_nothing() -> None:
    """A publish line that has expired publishes no copies either."""
    line = {"id": "p", "who": {"agents": ["desk"]}, "publish": ["desk.x.v1"], "reason": "x"}
    more = access(allow=[line | {"expires": "1970-01-01T00:00:10Z"}])
    made = world(route(types=["desk.x.v1"]), more=(more,))
    granted = [len(made.grants(now_ms=now).agents["desk"].publish) for now in (9_999, 10_000)]
    assert granted == [1, 0]


def test_a_publisher_holds_the_keys_that_its_copies_are_masked_with() -> None:
    """Pseudonym domains and ciphers of the new type, by the classification that followed."""
    mask = [
        {"tags": ["pii.name"], "as": "pseudonym", "with": {"domain": "names"}},
        {"tags": ["pii.contact.email"], "as": "encrypt", "with": {"mode": "random", "for": ["support", "crm"]}},
        {"tags": ["public"], "as": "encrypt", "with": {"mode": "deterministic", "for": ["support"]}},
    ]
    view = document("View", "keyed", {"mask": mask, "otherwise": "redact"})
    readers = access("readers", allow=[READER | {"view": "keyed"}])
    writes = access("p", allow=[{"id": "p", "who": {"agents": ["desk"]}, "publish": ["fraud.>"]}])
    made = plans(routes(route()), view, readers, writes).grants()
    for agent in ("crm-adapter", "desk"):  # desk publishes `fraud.>`, so the routed type too
        assert made.agents[agent].domains == ("names",)
        assert made.agents[agent].ciphers == ("crm+support.random", "support.deterministic")
    assert made.agents["lake"].ciphers == ()
    assert made.team_ciphers == {
        "analytics": (),
        "crm": ("crm+support.random",),
        "support": ("crm+support.random", "support.deterministic"),
    }


def test_the_owner_of_what_is_routed_owns_the_copies() -> None:
    """`otherwise: clear` for a routed type goes to who may publish all that is routed into it, without a line of it."""
    reads = {"id": "r", "who": {"teams": ["crm"]}, "subscribe": [TO], "view": "clear"}
    assert warnings(routes(route()), access(allow=[reads])) == []


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_route_nobody_reads_is_a_warning() -> None:
    """It loads, for no owner may block another, and says that it makes nothing."""
    (warning,) = warnings(routes(route(effect="move")))
    assert "nobody may read `fraud.review.order.v1`, so the move `review` makes nothing" in warning
    deny = access(allow=[READER], deny=[{"id": "d", "who": {"teams": ["support"]}, "subscribe": ["crm.order.>"]}])
    (warning,) = warnings(routes(route()), deny)
    assert "nobody may read" in warning


def test_a_deny_to_publish_what_a_route_makes_is_a_warning() -> None:
    """The deny does not stop the copies, and whoever wrote it should know."""
    deny = access(allow=[READER], deny=[{"id": "d", "who": {"teams": ["crm"]}, "publish": ["fraud.>"]}])
    said = warnings(routes(route()), deny)
    assert [text for text in said if "the deny `d` names" in text and "does not stop the route `review`" in text]


def test_a_route_of_copies_alone_is_a_warning() -> None:
    """A pattern that only matches what other routes make never fires."""
    said = warnings(routes(route(), route("two", types=[TO], to="fraud.b.v1")), access(allow=[READER]))
    assert [text for text in said if "a copy is never routed again" in text]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"types": ["crm.a.>"]}, {"types": ["crm.b.>"]}),
        ({"sources": ["/crm/eu/**"]}, {"sources": ["/crm/us/**"]}),
        ({"effect": "copy"}, {}),
    ],
)
def test_moves_that_never_meet_load(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Of other types, of other sources, or a copy beside a move."""
    lines = [route("a", **({"effect": "move"} | first)), route("b", **({"effect": "move"} | second))]
    assert warnings(routes(*lines), access(allow=[READER])) == []


SEGMENTS = st.lists(st.sampled_from(["a", "b", "", "*", "**"]), min_size=1, max_size=4)
TEXTS = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=5)


@given(SEGMENTS, SEGMENTS, TEXTS)
def test_globs_that_share_a_source_meet(one: list[str], two: list[str], text: list[str]) -> None:
    """Whatever source two globs both take, they are said to meet, and each meets itself."""
    first, second = (Glob("/".join(segments), "/", tuple(segments)) for segments in (one, two))
    source = "/".join(text)
    if first.matches(source) and second.matches(source):
        assert sources_meet(first, second)
    assert sources_meet(first, first)
    assert sources_meet(first, second) == sources_meet(second, first)


@pytest.mark.parametrize(
    ("one", "two", "meet"),
    [
        ("/a", "/b", False), ("/a/*", "/a", False), ("/a/**", "/a", False), ("/a/**", "/*/b", True),
        ("/**/x", "/a/**", True), ("/**/x", "/**/y", False), ("/a/*", "/a/", False), ("/a/**", "/a/", True),
        ("**", "/a", True), ("/a/*/c", "/a/b/*", True), ("/a/**/c", "/a/c", False),
    ],
)  # fmt: skip
def test_globs_meet_or_not(one: str, two: str, *, meet: bool) -> None:
    """Told apart where no source is in both."""
    assert sources_meet(Glob.source(one), Glob.source(two)) is meet


TYPES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map(lambda t: ".".join(["x", *t, "v1"]))
PATTERNS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=0, max_size=2).map(lambda t: ".".join(["x", *t, ">"]))


@given(
    st.lists(PATTERNS, min_size=1, max_size=2, unique=True),
    st.lists(PATTERNS, min_size=1, max_size=2, unique=True),
    st.lists(PATTERNS, max_size=2, unique=True),
    TYPES,
)
def test_what_a_route_makes_is_what_its_grants_let_through(
    published: list[str], matched: list[str], denied: list[str], type_: str
) -> None:
    """Each copy that an event is given may be published by NATS and passes V5, whatever lines and denies there are."""
    assert TYPE_RE.fullmatch(type_)
    rules = access(
        allow=[{"id": "p", "who": {"teams": ["crm"]}, "publish": published}, READER],
        deny=[{"id": "d", "who": {"teams": ["crm"]}, "publish": denied}] if denied else [],
    )
    files = {name: text for name, text in BASE.items() if name not in {"access.yaml", "crm.yaml"}}
    files["crm.yaml"] = BASE["crm.yaml"].replace('["crm.>"]', '[">"]')
    if any(not any(Pattern.parse(m).intersects(Pattern.parse(p)) for p in published) for m in matched):
        return
    made = plans(routes(route(types=matched)), rules, base=files)
    publisher = made.publisher("crm-adapter")
    fields = event(type=type_)
    copies = publisher.routes(fields, now_ms=0)
    assert bool(copies) == (
        publisher.decide(fields, now_ms=0).allowed and any(Pattern.parse(m).matches(type_) for m in matched)
    )
    if copies:
        assert made.may_publish(CRM, TO, "/crm")
        granted = made.grants(now_ms=0).agents["crm-adapter"].publish
        assert {(g.view, g.pattern.text) for g in granted} >= {("masked", TO)}
