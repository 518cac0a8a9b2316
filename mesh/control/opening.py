"""Where a new durable begins: not before its team was granted what it delivers.

The library withholds what a team could not read when it was stored. A plain NATS client pulls the same durable and
asks nobody: so the durable itself begins no earlier than the revision since which the team has been granted what its
filters reach, in the view it reads. A grant that says `since` opens more, and says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mesh.errors import BadBundle, NotFound
from mesh.policy.compile import Plans
from mesh.policy.texts import instant_ms, instant_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from mesh.policy.bundle import Bundle
    from mesh.policy.grants import Grants, ReadGrant, SubscriptionGrant


async def bounded_starts(
    grants: Grants, candidate: Bundle, past: Callable[[int], Awaitable[Bundle]], *, existing: Container[str]
) -> Grants:
    """*grants*, whose subscriptions start no earlier than their teams' rights.

    Args:
        grants: Of *candidate*.
        candidate: The next bundle, with its lineage.
        past: Reads the bundle of an older revision; BadBundle or NotFound where it cannot be had.
        existing: Subscriptions whose durables are there, as `<team>--<subscription>`: where they began is past.
    """
    bounded = {
        key: replace(grant, start=await _start(grant, grants, candidate, past))
        for key, grant in grants.subscriptions.items()
        if grant.active and grant.start != "new" and grant.durable not in existing
    }
    return replace(grants, subscriptions={**grants.subscriptions, **bounded})


async def opened_ms(
    grant: SubscriptionGrant,
    grants: Grants,
    bundle: Bundle,
    past: Callable[[int], Awaitable[Bundle]],
    *,
    began_ms: int,
) -> int:
    """Since when stored copies of what a subscription reads are open to its team, to a plain NATS client as well.

    Args:
        grant: The subscription; active.
        grants: Of *bundle*.
        bundle: In force.
        past: See `bounded_starts`.
        began_ms: Since when *bundle* is in force, by the server's clock.

    Returns:
        Unix milliseconds; 0 for as long as anybody remembers.
    """
    since = [read.since_ms for read in _reads(grant, grants)]
    opened = [at_ms for at_ms in since if at_ms is not None]
    if len(opened) == len(since):
        return min(opened, default=began_ms)
    granted_ms = await _granted_ms(grant, bundle, past)
    return began_ms if granted_ms is None else granted_ms


def _reads(grant: SubscriptionGrant, grants: Grants) -> list[ReadGrant]:
    """The grants behind a subscription's filters."""
    return [
        read
        for read in grants.teams[grant.team]
        if read.view == grant.view and any(read.pattern.intersects(pattern) for pattern in grant.filters)
    ]


async def _start(
    grant: SubscriptionGrant, grants: Grants, candidate: Bundle, past: Callable[[int], Awaitable[Bundle]]
) -> str:
    if all(read.since_ms is not None for read in _reads(grant, grants)):
        return grant.start
    from_ms = await _granted_ms(grant, candidate, past)
    if from_ms is None:
        return "new"
    late = not from_ms or (grant.start != "all" and instant_ms(grant.start) >= from_ms)
    return grant.start if late else instant_text(from_ms)


async def _granted_ms(
    grant: SubscriptionGrant, candidate: Bundle, past: Callable[[int], Awaitable[Bundle]]
) -> int | None:
    """Since when the team has been granted what the filters reach: 0 for as long as anybody remembers.

    None where it is since *candidate*.
    """
    stamps = {known.revision: known.at_ms for known in candidate.lineage}
    granted = candidate.since_of(grant.team)  # since then nothing about what the team reads has changed
    while granted - 1 in stamps:
        try:
            before = await past(granted - 1)
        except (BadBundle, NotFound):
            break
        if not _granted(before, grant, at_ms=stamps[granted - 1]):
            break
        granted = before.since_of(grant.team)
    else:
        return 0
    return stamps.get(granted)


def _granted(bundle: Bundle, grant: SubscriptionGrant, *, at_ms: int) -> bool:
    reads = Plans(bundle).grants(now_ms=at_ms).teams.get(grant.team, ())
    mine = [read.pattern for read in reads if read.view == grant.view]
    return all(any(pattern.covers(wanted) for pattern in mine) for wanted in grant.filters)
