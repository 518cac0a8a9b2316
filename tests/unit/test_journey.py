from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mesh.errors import Denied
from mesh.event import draft_from_fields
from mesh.journey import Admitted, Outbound, Withheld, inbound, outbound, partition_token, slot
from mesh.signing import Received, Verified
from mesh.subjects import parse_physical
from tests.unit.policy_world import Keys, plans

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


def verified(view: str, type_: str = "crm.contact.updated.v1") -> Verified:
    """A copy that has passed V1 to V9."""
    subject = f"ev.local.{view}.s00.{type_}"
    received = Received(
        subject=subject, body=b"{}", msg_ids=("m",), signature="s", stream="EV_local_crm", sequence=9,
        stream_ms=NOW_MS, deliveries=2, reply="r",
    )  # fmt: skip
    fields = {**FIELDS, "type": type_, "view": view}
    return Verified(received, fields, parse_physical(subject), "spiffe://mesh.local/ns/acme/sa/crm-adapter", "kid")


def test_a_team_is_handed_its_view() -> None:
    """What a handler gets says where it came from and which rule let it through."""
    admitted = inbound(verified("masked"), plans(), "analytics", now_ms=NOW_MS)
    assert isinstance(admitted, Admitted)
    assert (admitted.key, admitted.view, admitted.attempt, admitted.rule) == (
        ("/crm/eu", "e-1"), "masked", 2, "analytics-reads",
    )  # fmt: skip
    assert (admitted.sequence, admitted.stream, admitted.correlationid) == (9, "EV_local_crm", "e-1")


@pytest.mark.parametrize(
    ("team", "view", "type_"),
    [
        ("analytics", "clear", "crm.contact.updated.v1"),
        ("support", "masked", "crm.contact.updated.v1"),
        ("analytics", "masked", "hr.salary.raised.v1"),
        ("nobody", "masked", "crm.contact.updated.v1"),
    ],
)
def test_a_copy_the_team_may_not_see_now_is_withheld(team: str, view: str, type_: str) -> None:
    """However it got into the durable: another view, another team's, another type."""
    assert inbound(verified(view, type_), plans(), team, now_ms=NOW_MS) == Withheld("no-allow-matched", None)
