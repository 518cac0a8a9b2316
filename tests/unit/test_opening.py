"""From when on a new durable delivers: since its team was granted what it reads, whatever its Subscription says."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from mesh.control.opening import bounded_starts
from mesh.errors import NotFound
from mesh.policy.bundle import Bundle, Past
from mesh.policy.compile import Plans
from mesh.policy.history import since
from tests.unit.policy_world import access, bundle, document

pytestmark = pytest.mark.anyio

DAY_MS = 86_400_000
OLD_SUBSCRIPTION = document("Subscription", "old", {"types": ["crm.deal.>"], "view": "masked"}, team="support")


def subscribed(start: str) -> str:
    """A subscription of team support."""
    return document("Subscription", "all", {"types": ["crm.>"], "view": "masked", "start": start}, team="support")


def granted(**more: Any) -> str:
    """The right to read in the view."""
    line = {"id": "s", "who": {"teams": ["support"]}, "subscribe": ["crm.>"], "view": "masked", **more}
    return access("support", allow=[line])


def revisions(*sets: tuple[str, ...]) -> list[Bundle]:
    """A chain of bundles, each a day after the one before, of the base with these documents."""
    chain: list[Bundle] = []
    for number, extra in enumerate(sets, 1):
        made = bundle(*extra)
        before = chain[-1] if chain else None
        lineage = () if before is None else (*before.lineage, Past(before.revision, before.digest, number * DAY_MS))
        chain.append(
            replace(
                made,
                revision=number,
                lineage=lineage,
                previous="" if before is None else before.digest,
                since=since(before, made.policies, number),
            )
        )
    return chain


@pytest.mark.parametrize(
    ("sets", "start"),
    [
        ([(granted(), subscribed("all"))], "all"),
        ([(), (granted(), subscribed("all"))], "new"),
        ([(), (granted(),), (granted(), subscribed("all"))], "1970-01-04T00:00:00.000Z"),
        ([(), (granted(),), (granted(), OLD_SUBSCRIPTION), (granted(), subscribed("all"))], "1970-01-04T00:00:00.000Z"),
        ([(granted(),), (), (granted(),), (granted(), subscribed("all"))], "1970-01-05T00:00:00.000Z"),
        ([(granted(),), (granted(), subscribed("all"))], "all"),
        ([(), (granted(),), (granted(), subscribed("1970-01-09T00:00:00Z"))], "1970-01-09T00:00:00Z"),
        ([(), (granted(),), (granted(), subscribed("1970-01-02T00:00:00Z"))], "1970-01-04T00:00:00.000Z"),
        ([(), (granted(since="1970-01-02T00:00:00Z"), subscribed("all"))], "1970-01-02T00:00:00.000Z"),
        ([(), (granted(), subscribed("new"))], "new"),
    ],
    ids=[
        "first-revision", "new-grant", "older-grant", "unrelated-change-between", "taken-away-and-given-back",
        "as-long-as-anybody-remembers", "later-start-stays", "earlier-start-moves", "since-opens", "new-stays",
    ],
)  # fmt: skip
async def test_a_durable_begins_no_earlier_than_the_right(sets: list[tuple[str, ...]], start: str) -> None:
    """A new grant opens no history; an older one from its revision on; `since` as far as it says."""
    chain = revisions(*sets)

    async def past(revision: int) -> Bundle:
        return chain[revision - 1]

    grants = Plans(chain[-1]).grants(now_ms=100 * DAY_MS)
    bounded = await bounded_starts(grants, chain[-1], past, existing=())
    assert bounded.subscriptions["support", "all"].start == start


async def test_what_cannot_be_read_opens_nothing() -> None:
    """Where an older bundle is lost, nobody can say that the team had the right: it counts as new."""
    chain = revisions((granted(),), (granted(), subscribed("all")))

    async def past(revision: int) -> Bundle:
        raise NotFound(f"no bundle {revision}")

    grants = Plans(chain[-1]).grants(now_ms=100 * DAY_MS)
    bounded = await bounded_starts(grants, chain[-1], past, existing=())
    assert bounded.subscriptions["support", "all"].start == "new"
    unasked = await bounded_starts(grants, chain[-1], past, existing={"support--all"})
    assert unasked.subscriptions["support", "all"].start == "all"
