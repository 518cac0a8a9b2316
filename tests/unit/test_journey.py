from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from mesh import journey
from mesh.errors import Denied
from mesh.event import draft_from_fields
from mesh.journey import MAX_ADDRESSES, Departures, Outbound, outbound, partition_token, slot
from mesh.policy import compile as compiling
from mesh.policy.routes import routed_id
from mesh.statements import message_id
from mesh.subjects import parse_physical, physical
from tests.unit.policy_world import Keys, access, document, plans

DEDUPE = bytes(range(32))
NOW_MS = 1_795_300_000_000
FIELDS: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/crm/eu",
    "type": "crm.contact.updated.v1",
    "data": {"name": "Ada Lindqvist", "email": "ada@example.com", "country": "DE"},
}


def out(**more: Any) -> Outbound:
    """`outbound` of the base event, with more attributes."""
    draft = draft_from_fields({**FIELDS, **more}, now_ms=NOW_MS)
    return outbound(
        draft,
        plans().publisher("crm-adapter"),
        Keys(),
        site="local",
        tenant="acme",
        revision=7,
        dedupe_key=DEDUPE,
        now_ms=NOW_MS,
    )


def test_there_is_one_copy_for_each_view_that_somebody_reads() -> None:
    """Each copy carries its view, tenant and revision, and only what its view shows."""
    copies = {copy.view: copy for copy in out().copies}
    assert set(copies) == {"clear", "masked"}
    masked, clear = (msgspec.json.decode(copies[view].body) for view in ("masked", "clear"))
    assert clear["data"] == FIELDS["data"]
    assert masked["data"] == {"email": "[REDACTED]", "country": "DE"}
    for view, body in (("masked", masked), ("clear", clear)):
        assert (body["view"], body["tenant"], body["policyrevision"]) == (view, "acme", 7)
        assert copies[view].stream == "EV_local_crm"
        assert parse_physical(copies[view].subject).view == view


def test_the_accepted_event_is_not_changed() -> None:
    """A retry decides on what was accepted, not on what the first try made of it."""
    draft = draft_from_fields({**FIELDS, "partitionkey": "k"}, now_ms=NOW_MS)
    before = msgspec.json.encode(draft.fields)
    arguments: dict[str, Any] = {"site": "local", "tenant": "acme", "revision": 7, "dedupe_key": DEDUPE}
    outbound(draft, plans().publisher("crm-adapter"), Keys(), **arguments)
    assert msgspec.json.encode(draft.fields) == before


def test_a_partition_key_shows_in_no_view_and_keeps_its_events_together() -> None:
    """It is a token, equal for equal keys, and equal keys share a slot."""
    first, second = out(partitionkey="iban-DE89", id="a"), out(partitionkey="iban-DE89", id="b")
    bodies = [copy.body for made in (first, second) for copy in made.copies]
    assert all(b"iban-DE89" not in body for body in bodies)
    assert len({msgspec.json.decode(body)["partitionkey"] for body in bodies}) == 1
    assert len({parse_physical(copy.subject).slot for made in (first, second) for copy in made.copies}) == 1


def test_tokens_and_slots_depend_on_the_key() -> None:
    """Nobody without the source's key can guess a partition key from its token."""
    other = bytes(32)
    assert partition_token(DEDUPE, "k") == partition_token(DEDUPE, "k") != partition_token(other, "k")
    assert {slot(DEDUPE, str(number)) for number in range(400)} == set(range(16))


def test_a_refusal_names_reason_and_next_step_and_no_value() -> None:
    """The adapter's developer learns what to ask for."""
    with pytest.raises(Denied) as caught:
        out(type="hr.salary.raised.v1")
    said = caught.value.as_dict()
    assert (said["code"], said["reason"]) == ("denied", "no-allow-matched")
    assert said["next"]
    assert "Ada" not in repr(said)
    with pytest.raises(Denied) as caught:
        out(source="/hr/eu")
    assert caught.value.details["reason"] == "source-not-allowed"


def departures(*documents: str) -> Departures:
    """The way out of the base publisher's events under the base and *documents*."""
    publisher = plans(*documents).publisher("crm-adapter")
    return Departures(publisher, Keys(), site="local", tenant="acme", revision=7, dedupe_key=DEDUPE)


def granted_until(ends_ms: int) -> tuple[str, str]:
    """A view `whole`, and a grant of it that ends then."""
    until = datetime.fromtimestamp(ends_ms / 1000, UTC).isoformat()
    reads = {"id": "ending", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "whole"}
    line = reads | {"expires": until, "reason": "incident 7"}
    return document("View", "whole", {"otherwise": "clear"}), access("ending", allow=[line])


def fields_of(**more: Any) -> dict[str, Any]:
    """The accepted base event, with more attributes."""
    return draft_from_fields({**FIELDS, **more}, now_ms=NOW_MS).fields


def test_a_copy_says_what_it_is() -> None:
    """Each field stands in its place."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    clear, masked = out(traceparent=trace).copies
    for copy in (clear, masked):
        place = parse_physical(copy.subject)
        assert (place.view, place.type, place.slot) == (copy.view, FIELDS["type"], slot(DEDUPE, "e-1"))
        assert (copy.source, copy.event_id, copy.type, copy.route) == ("/crm/eu", "e-1", FIELDS["type"], "")
        assert (copy.stream, copy.traceparent) == ("EV_local_crm", trace)
        assert copy.base_id == message_id(DEDUPE, "/crm/eu", "e-1", copy.subject)
    assert (clear.view, masked.view) == ("clear", "masked")
    assert out().copies[0].traceparent is None


def test_copies_end_with_the_last_grant_of_their_view() -> None:
    """One `Departures` throughout: a view gets copies as long as somebody may read it then, and no moment longer."""
    ends_ms = NOW_MS + 60_000
    way, fields = departures(*granted_until(ends_ms)), fields_of()

    def views(now_ms: int | None) -> list[str]:
        return sorted(copy.view for copy in way.of(fields, now_ms).copies)

    lasting, all_ = ["clear", "masked"], ["clear", "masked", "whole"]
    assert [views(ends_ms - 1), views(ends_ms), views(ends_ms + 1)] == [all_, lasting, lasting]
    assert [views(ends_ms - 1), views(None)] == [all_, lasting]
    assert {parse_physical(copy.subject).view for copy in way.of(fields, ends_ms - 1).copies} == set(all_)


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.fixture
def worked_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Types whose addresses were worked out, once for each view."""
    found: list[str] = []

    def noted(site: str, view: str, place: int, type_: str) -> str:
        if not place:
            found.append(type_)
        return physical(site, view, place, type_)

    monkeypatch.setattr(journey, "physical", noted)
    return found


def test_an_address_is_worked_out_once(worked_out: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a type that is published and made by a route, with plans of one view that were made at two times."""
    monkeypatch.setattr(compiling, "MAX_ANSWERS", 1)  # plans of views are not kept for long
    line = {"id": "tee", "match": {"types": ["crm.deal.>"]}, "effect": "copy", "to": FIELDS["type"]}
    way = departures(document("Route", "routes", {"routes": [line]}))
    both = [fields_of(), fields_of(type="crm.deal.won.v1")]
    for number in range(100):
        assert len(way.of(both[number % 2], NOW_MS).copies) == (4 if number % 2 else 2)
    assert sorted(worked_out) == 2 * [FIELDS["type"]] + 2 * ["crm.deal.won.v1"]


def test_views_that_come_and_go_cost_no_address(worked_out: list[str]) -> None:
    """A grant that is in force at some moments only changes the views, and no address."""
    way, fields = departures(*granted_until(NOW_MS)), fields_of()
    for number in range(100):
        assert len(way.of(fields, NOW_MS - number % 2).copies) == 2 + number % 2
    assert len(worked_out) == 3


def test_remembered_addresses_are_bounded() -> None:
    """Of any number of types in any number of views no more than so many; what comes out is the same."""
    way = departures()
    for number in range(MAX_ADDRESSES):
        fields = fields_of(type=f"crm.t{number}.v1")
        assert [parse_physical(copy.subject).type for copy in way.of(fields, NOW_MS).copies] == 2 * [fields["type"]]
        held = {id(stop.address) for _, stops in way._ways.values() for stop in stops}
        assert held <= {id(address) for address in way._addresses.values()}
        assert len(way._addresses) <= MAX_ADDRESSES
    assert len(way._addresses) > MAX_ADDRESSES // 2


def test_types_that_nobody_reads_are_not_remembered() -> None:
    """They have no address, so no bound on addresses would bound them."""
    publishes = {"id": "more", "who": {"teams": ["crm"]}, "publish": ["unread.>"]}
    way = departures(access("unread", allow=[publishes]))
    assert way.of(fields_of(type="unread.thing.v1"), NOW_MS).copies == []
    assert way._ways == {}


# --- routes ----------------------------------------------------------------------------------------------------------

TO = "fraud.review.contact.v1"
READS = access("fraud", allow=[{"id": "f", "who": {"teams": ["support"]}, "subscribe": ["fraud.>"], "view": "masked"}])


def routed_out(*lines: dict[str, Any], more: tuple[str, ...] = (), **attributes: Any) -> Outbound:
    """`outbound` of the base event under these route lines."""
    made = [{"match": {"types": ["crm.contact.>"]}, "effect": "copy", "to": TO} | line for line in lines]
    routes = document("Route", "routes", {"routes": made})
    draft = draft_from_fields({**FIELDS, **attributes}, now_ms=NOW_MS)
    publisher = plans(routes, READS, *more).publisher("crm-adapter")
    arguments: dict[str, Any] = {"site": "local", "tenant": "acme", "revision": 7, "dedupe_key": DEDUPE}
    return outbound(draft, publisher, Keys(), now_ms=NOW_MS, **arguments)


def test_a_copy_route_makes_a_new_event_beside_the_original() -> None:
    """It has its own type, id, stream and subject, names its cause, and is masked by the classification it took on."""
    found = routed_out({"id": "review"}, correlationid="c-1")
    assert found.event_id == "e-1"
    assert [(copy.view, copy.route) for copy in found.copies] == [("clear", ""), ("masked", ""), ("masked", "review")]
    copy = found.copies[-1]
    body = msgspec.json.decode(copy.body)
    assert (copy.type, copy.event_id, copy.stream) == (TO, routed_id("/crm/eu", "e-1", "review"), "EV_local_fraud")
    assert parse_physical(copy.subject).type == TO
    assert {name: body[name] for name in ("type", "id", "causationid", "correlationid", "source")} == {
        "type": TO, "id": copy.event_id, "causationid": "e-1", "correlationid": "c-1", "source": "/crm/eu",
    }  # fmt: skip
    assert (body["tenant"], body["view"], body["policyrevision"]) == ("acme", "masked", 7)
    assert body["data"] == {"email": "[REDACTED]", "country": "DE"}
    assert msgspec.json.decode(found.copies[0].body)["time"] == body["time"]


def test_a_moved_event_has_no_copy_of_its_own() -> None:
    """Of an event that a route moves only the new event goes out; other routes still make their copies."""
    found = routed_out({"id": "hold", "effect": "move"}, {"id": "audit", "to": "fraud.audit.v1"})
    assert [(copy.type, copy.route) for copy in found.copies] == [(TO, "hold"), ("fraud.audit.v1", "audit")]
    assert found.decision.allowed


def test_a_move_that_nobody_reads_leaves_nothing() -> None:
    """The event is allowed and goes nowhere: it is not handed to the readers it was taken from."""
    other = {"id": "deals", "match": {"types": ["crm.deal.>"]}}
    assert routed_out({"id": "hold", "effect": "move", "to": "held.contact.v1"}, other).copies == []


def test_a_move_is_taken_where_its_condition_fails() -> None:
    """An event that may be one to take away is taken away; a copy is not made of it."""
    lines = (
        {"id": "hold", "effect": "move", "when": "data.vip"},
        {"id": "tee", "to": "fraud.tee.v1", "when": "data.vip"},
    )
    assert [copy.route for copy in routed_out(*lines).copies] == ["hold"]


def test_the_same_event_again_gives_the_same_copies() -> None:
    """So the stream stores each once, and a reader sees each once."""
    one, two = (routed_out({"id": "review"}) for _ in range(2))
    assert [(c.event_id, c.subject, c.body) for c in one.copies] == [
        (c.event_id, c.subject, c.body) for c in two.copies
    ]


def test_copies_of_one_partition_key_stay_together() -> None:
    """A routed event has the token and slot of the original's key."""
    found = routed_out({"id": "review"}, partitionkey="iban-DE89")
    bodies = [msgspec.json.decode(copy.body) for copy in found.copies]
    assert len({body["partitionkey"] for body in bodies}) == 1
    assert len({parse_physical(copy.subject).slot for copy in found.copies}) == 1
    assert all(b"iban" not in copy.body for copy in found.copies)


def test_rows_of_the_new_type_s_view_are_asked_of_the_new_event() -> None:
    """A view's filter sees the copy as its readers would: with the new type."""
    view = document("View", "fraud-only", {"otherwise": "redact", "rows": "event.type.startsWith('fraud.')"})
    reads = {"id": "x", "who": {"teams": ["analytics"]}, "subscribe": ["fraud.>", "crm.>"], "view": "fraud-only"}
    found = routed_out({"id": "review"}, more=(view, access("x", allow=[reads])))
    assert [copy.route for copy in found.copies if copy.view == "fraud-only"] == ["review"]


def test_a_refused_event_is_not_routed() -> None:
    """A route grants nothing to who may not publish the event itself."""
    with pytest.raises(Denied):
        routed_out({"id": "review"}, source="/hr/eu")
