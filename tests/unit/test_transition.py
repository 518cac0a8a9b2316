"""From one revision's rights to the next: what a durable keeps while it drains, and a publisher while agents change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.jetstream.transition import (
    filters_of,
    in_slot,
    remaining,
    still_allowed,
    still_read,
    takes_away,
    widened,
)
from mesh.policy.grants import PublishGrant
from mesh.subjects import Pattern

TYPES = ("crm.>", "crm.contact.>", "crm.contact.updated.v1", "crm.*.updated.v1", "crm.deal.>", "hr.>")
FILTERS = [f"ev.local.{view}.*.{text}" for view in ("clear", "masked") for text in TYPES]


@pytest.mark.parametrize(
    ("held", "exact", "then"),
    [
        ([], ["ev.local.a.*.crm.>"], ["ev.local.a.*.crm.>"]),  # a new durable
        (["ev.local.a.*.crm.>"], ["ev.local.a.*.crm.>"], ["ev.local.a.*.crm.>"]),
        (["ev.local.a.*.crm.>"], ["ev.local.b.*.crm.>"], ["ev.local.a.*.crm.>", "ev.local.b.*.crm.>"]),  # another view
        (["ev.local.a.*.crm.>"], ["ev.local.b.*.crm.x.>"], ["ev.local.a.*.crm.x.>", "ev.local.b.*.crm.x.>"]),
        (["ev.local.a.*.crm.>"], ["ev.local.a.*.crm.x.>"], ["ev.local.a.*.crm.x.>"]),  # fewer types: at once
        (["ev.local.a.*.crm.x.>"], ["ev.local.a.*.crm.>"], ["ev.local.a.*.crm.>"]),  # more types
        (["ev.local.a.*.hr.x.v1"], ["ev.local.b.*.crm.>"], ["ev.local.b.*.crm.>"]),  # nothing of the old is still read
        (["ev.local.a.*.crm.*.v1"], ["ev.local.b.*.crm.x.>"], ["ev.local.a.*.crm.x.v1", "ev.local.b.*.crm.x.>"]),
        (["other.>"], ["ev.local.b.*.crm.>"], ["ev.local.b.*.crm.>"]),  # not ours
    ],
)
def test_a_durable_keeps_what_is_still_read_in_any_view(held: list[str], exact: list[str], then: list[str]) -> None:
    """Old views stay for the types of now; what is read in no view any more goes at once."""
    assert remaining(held, exact) == tuple(then)


@pytest.mark.parametrize(
    ("held", "exact", "then"),
    [
        (["ev.local.a.*.crm.>"], ["ev.local.a.*.crm.x.>"], ["ev.local.a.*.crm.x.>"]),
        (["ev.local.a.*.crm.x.>"], ["ev.local.b.*.crm.>"], ["ev.local.a.*.crm.x.>"]),
        (["ev.local.a.s03.crm.>"], ["ev.local.b.s03.crm.x.>"], ["ev.local.a.s03.crm.x.>"]),
        (["ev.local.a.*.crm.>"], ["ev.local.a.*.hr.>"], []),
        (["other.>"], ["ev.local.a.*.crm.>"], []),
    ],
)
def test_what_is_still_read_is_a_part_of_what_was(held: list[str], exact: list[str], then: list[str]) -> None:
    """A replay delivers nothing that it did not before, and of that only the types that are read now."""
    assert still_read(held, exact) == tuple(then)
    assert not takes_away(then, held)


def test_slots_are_told_apart() -> None:
    """A filter of all slots covers that of one, and not the other way round; what is taken over moves to the slot."""
    one, all_ = ["ev.local.a.s03.crm.>"], ["ev.local.a.*.crm.>"]
    assert (takes_away(one, all_), takes_away(all_, one)) == (False, True)
    assert takes_away(one, ["ev.local.a.s04.crm.>"])
    assert in_slot(all_, "s03") == tuple(one)
    assert in_slot([*one, "ev.local.a.s04.crm.>"], "*") == tuple(all_)
    assert remaining(one, ["ev.local.b.s03.crm.>"]) == (*one, "ev.local.b.s03.crm.>")


@given(st.lists(st.sampled_from(FILTERS), max_size=4), st.lists(st.sampled_from(FILTERS), min_size=1, max_size=4))
def test_what_is_needed_is_never_missing(held: list[str], exact: list[str]) -> None:
    """Whatever a durable had, it gets all that the grants of now ask for, and asking again changes nothing."""
    then = remaining(held, exact)
    assert not takes_away(exact, then)
    assert remaining(then, exact) == then
    parsed = [(text.split(".")[2], Pattern.from_text(text.split(".", 4)[4])) for text in then]
    assert not [1 for v, a in parsed for w, b in parsed if v == w and a != b and a.covers(b)]


@given(st.lists(st.sampled_from(FILTERS), max_size=4), st.lists(st.sampled_from(FILTERS), min_size=1, max_size=4))
def test_before_a_change_is_certain_nothing_is_taken_away(held: list[str], exact: list[str]) -> None:
    """All that was held and all that is needed; to narrow it later leads to the same filters as to narrow at once."""
    then = widened(held, exact)
    assert not takes_away(held, then)
    assert not takes_away(exact, then)
    assert not takes_away(then, {*held, *exact} | set(then))
    assert remaining(then, exact) == remaining(held, exact)


@pytest.mark.parametrize(
    ("held", "then", "loses"),
    [
        (["ev.local.a.*.crm.>"], ["ev.local.a.*.crm.>"], False),
        (["ev.local.a.*.crm.x.>"], ["ev.local.a.*.crm.>"], False),
        (["ev.local.a.*.crm.>"], ["ev.local.a.*.crm.x.>"], True),
        (["ev.local.a.*.crm.>"], ["ev.local.b.*.crm.>"], True),
        (["ev.>"], ["ev.local.b.*.crm.>"], True),
        (["redrive.support.contacts"], ["redrive.support.contacts"], False),
        (["redrive.support.contacts"], ["redrive.support.others"], True),
        ([], ["ev.local.b.*.crm.>"], False),
    ],
)
def test_losing_a_subject_is_noticed(held: list[str], then: list[str], loses: bool) -> None:
    """Only a durable that loses something is narrowed first, and thrown back to its ack floor."""
    assert takes_away(held, then) is loses


@pytest.mark.parametrize(
    ("config", "filters"),
    [
        ({"filter_subject": "ev.a"}, ("ev.a",)),
        ({"filter_subjects": ["ev.a", "ev.b"]}, ("ev.a", "ev.b")),
        ({"filter_subject": "", "filter_subjects": []}, ()),
        ({}, ()),
    ],
)
def test_filters_are_read_as_the_server_states_them(config: dict[str, object], filters: tuple[str, ...]) -> None:
    """One, several or none."""
    assert filters_of(config) == filters


def grants(*items: tuple[str, str]) -> list[PublishGrant]:
    """Subjects as (view, pattern)."""
    return [PublishGrant(view, Pattern.parse(text)) for view, text in items]


def test_a_publisher_keeps_views_that_lost_their_readers() -> None:
    """Until it runs the new revision it still makes those copies; a type it may no longer publish goes at once."""
    held = grants(("clear", "crm.>"), ("masked", "crm.contact.>"))
    kept = still_allowed(held, [Pattern.parse("crm.contact.>")], [])
    assert [(g.view, g.pattern.text) for g in kept] == [("clear", "crm.contact.>"), ("masked", "crm.contact.>")]
    assert still_allowed(held, [], []) == ()


def test_a_denied_type_goes_at_once() -> None:
    """A refusal without a condition takes what it covers; where it only meets a subject, agents refuse the rest."""
    held = grants(("clear", "crm.contact.>"), ("clear", "crm.deal.>"))
    kept = still_allowed(held, [Pattern.parse("crm.>")], [Pattern.parse("crm.deal.>"), Pattern.parse("crm.contact.x")])
    assert [g.pattern.text for g in kept] == ["crm.contact.>"]
