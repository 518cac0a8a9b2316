"""What a bundle remembers: since when each team's reading is the same, and the revisions before it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mesh.policy.bundle import Bundle, Past
from mesh.policy.history import KEPT_MS, MAX_LINEAGE, lineage, since
from tests.unit.policy_world import BASE, access, bundle, document

DAY_MS = 86_400_000


def replaced(file: str, old: str, new: str) -> dict[str, str]:
    """The base with one text changed."""
    assert old in BASE[file], (file, old)
    return BASE | {file: BASE[file].replace(old, new)}


def after(changed: Bundle, before: Bundle | None = None) -> dict[str, int]:
    """`since` of revision 2 with the policies of *changed*, after revision 1 with those of the base or *before*."""
    first = before or bundle()
    first = msgspec.structs.replace(first, since=since(None, first.policies, 1))
    return since(first, changed.policies, 2)


def teams_changed(changed: Bundle, before: Bundle | None = None) -> set[str]:
    """The teams for which revision 2 begins something new."""
    return {team for team, revision in after(changed, before).items() if revision == 2}


def test_the_first_revision_begins_everything() -> None:
    """Without a bundle before it, nobody's reading is older."""
    found = since(None, bundle().policies, 7)
    assert set(found.values()) == {7}


def test_nothing_changes_nothing() -> None:
    """The same policies again keep every number."""
    assert set(after(bundle()).values()) == {1}


def test_a_right_to_publish_or_a_reason_changes_nobodys_reading() -> None:
    """What is about publishers, or only about people, costs readers nothing."""
    more = access(allow=[{"id": "p", "who": {"teams": ["support"]}, "publish": ["desk.>"]}])
    assert teams_changed(bundle(more)) == set()
    rule = {"id": "g", "who": {"teams": ["support"]}, "subscribe": ["crm.order.>"], "view": "masked"}
    with_reason = bundle(access(allow=[rule | {"reason": "one"}]))
    assert teams_changed(bundle(access(allow=[rule | {"reason": "another"}])), with_reason) == set()


@pytest.mark.parametrize(
    "rules",
    [
        {"allow": [{"id": "g", "who": {"teams": ["support"]}, "subscribe": ["crm.order.>"], "view": "masked"}]},
        {"deny": [{"id": "d", "who": {"teams": ["support"]}, "subscribe": ["crm.order.>"]}]},
    ],
)
def test_a_rule_about_a_team_changes_that_team_alone(rules: dict[str, Any]) -> None:
    """A new grant and a new refusal are about whom they name."""
    assert teams_changed(bundle(access(**rules))) == {"support"}


def test_a_subscription_changes_its_team() -> None:
    """A team that reads through another durable reads from another place."""
    made = document("Subscription", "s", {"types": ["crm.>"]}, team="analytics")
    assert teams_changed(bundle(made)) == {"analytics"}


def test_a_classification_changes_those_who_read_its_types() -> None:
    """What a field is decides what a view shows of it; types that nobody is granted concern nobody."""
    publishes = access(allow=[{"id": "p", "who": {"teams": ["crm"]}, "publish": ["ledger.>"]}])

    def teams(types: str) -> set[str]:
        more = document("Classification", "more", {"types": [types], "fields": {"data.extra": ["public"]}})
        return teams_changed(bundle(publishes, more), bundle(publishes))

    assert teams("crm.order.>") == {"crm", "analytics"}
    assert teams("ledger.>") == set()


def test_a_route_changes_those_who_read_where_it_leads() -> None:
    """What flows into a type decides what its readers get."""
    grant = {"id": "g", "who": {"teams": ["support"]}, "subscribe": ["review.>"], "view": "masked"}
    route = {"id": "r", "match": {"types": ["crm.>"]}, "effect": "copy", "to": "review.case.v1"}
    first = bundle(access(allow=[grant]), document("Route", "r", {"routes": [route]}))
    route["effect"] = "move"
    second = bundle(access(allow=[grant]), document("Route", "r", {"routes": [route]}))
    assert teams_changed(second, first) == {"support"}


def test_a_change_that_goes_on_keeps_its_number() -> None:
    """A third revision that changes nothing for a team still names the second."""
    deny = access(deny=[{"id": "d", "who": {"teams": ["support"]}, "subscribe": ["crm.order.>"]}])
    second = bundle(deny)
    second = msgspec.structs.replace(second, revision=2, since=after(second))
    assert since(second, second.policies, 3) == second.since
    assert second.since_of("support") == 2
    assert second.since_of("crm") == 1
    assert second.since_of("nobody") == 2


def current(revision: int, pasts: list[Past]) -> Bundle:
    """A bundle in force with this lineage."""
    return msgspec.structs.replace(
        bundle(), revision=revision, lineage=tuple(pasts), previous=pasts[-1].digest if pasts else ""
    )


def test_the_lineage_grows_by_the_bundle_in_force() -> None:
    """Number, digest and the server's time of the one that ends."""
    first = current(1, [])
    assert lineage(first, 5_000, 6_000) == (Past(1, first.digest, 5_000),)


def test_the_lineage_ends_where_no_event_is_left() -> None:
    """A revision that ended more than the streams' age and a day ago goes; what it may still name stays."""
    now = 100 * DAY_MS
    ended = now - KEPT_MS - 1
    pasts = [Past(1, "a" * 64, ended - DAY_MS), Past(2, "b" * 64, ended), Past(3, "c" * 64, ended + 2)]
    kept = lineage(current(4, pasts), now - DAY_MS, now)
    assert [past.revision for past in kept] == [2, 3, 4]


def test_the_one_in_force_is_always_named() -> None:
    """However long ago it was applied: its successor has to follow it."""
    old = current(2, [Past(1, "a" * 64, 1)])
    assert [past.revision for past in lineage(old, 2, 1000 * DAY_MS)] == [2]


def test_the_lineage_is_bounded() -> None:
    """A thousand applies in a week leave the last thousand, without a gap."""
    pasts = [Past(n, "a" * 64, n) for n in range(1, MAX_LINEAGE + 1)]
    kept = lineage(current(MAX_LINEAGE + 1, pasts), MAX_LINEAGE + 1, MAX_LINEAGE + 2)
    assert [kept[0].revision, kept[-1].revision, len(kept)] == [2, MAX_LINEAGE + 1, MAX_LINEAGE]
