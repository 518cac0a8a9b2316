"""The durables of a subscription by name: its own, and those beside it that a replay or a redrive pulls from.

<team>--<subscription>                  in the stream of each domain that it reads
<team>--<subscription>--s00 to --s15    the same where it is ordered, one for each slot
<team>--<subscription>--replay          in the same streams, while a replay runs
<team>--<subscription>--redrive         in `REDRIVE`, while its dead letters come again
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.policy.grants import outermost
from mesh.subjects import SLOTS, Pattern, physical_pattern, slot_name, stream_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mesh.policy.grants import SubscriptionGrant

REDRIVE_STREAM = "REDRIVE"
REPLAY, REDRIVE = "replay", "redrive"  # how the durables of the two end
_SLOTS = tuple(slot_name(slot) for slot in range(SLOTS))


@dataclass(frozen=True, slots=True, order=True)
class Durable:
    """Where a subscription pulls in one stream."""

    stream: str
    name: str
    filters: tuple[str, ...]


def durables(site: str, domains: Iterable[str], grant: SubscriptionGrant) -> tuple[Durable, ...]:
    """The durables of one subscription, in the stream of each domain that a filter reaches.

    One in each, `<team>--<subscription>`; where it is ordered one for each slot, `<team>--<subscription>--s00` to
    `--s15`, which the server lets one replica at a time pull.

    Args:
        site: The site of the streams.
        domains: Every domain that has a stream.
        grant: With its filters; one without a literal first token reaches every domain.
    """
    places = [(f"{grant.durable}--{slot}", slot) for slot in _SLOTS] if grant.ordered else [(grant.durable, "*")]
    return tuple(
        Durable(
            stream_name(site, domain),
            name,
            tuple(physical_pattern(site, grant.view, pattern, slot) for pattern in patterns),
        )
        for domain, patterns in _by_domain(domains, grant.filters)
        for name, slot in places
    )


def replays(site: str, domains: Iterable[str], grant: SubscriptionGrant) -> tuple[Durable, ...]:
    """The durables that a replay of a subscription pulls from, one in each of its streams, whatever the slot.

    They are there while a replay runs (`mesh.control.replay`), with these filters or narrower ones.
    """
    return tuple(
        Durable(
            stream_name(site, domain),
            f"{grant.durable}--{REPLAY}",
            tuple(physical_pattern(site, grant.view, pattern) for pattern in patterns),
        )
        for domain, patterns in _by_domain(domains, grant.filters)
    )


def redrive(grant: SubscriptionGrant) -> Durable:
    """The durable that a redrive of a subscription's dead letters pulls from; there while one runs."""
    return Durable(REDRIVE_STREAM, f"{grant.durable}--{REDRIVE}", (f"redrive.{grant.team}.{grant.name}",))


def subscription_of(durable: str) -> str:
    """`<team>--<subscription>` of a durable that is one or belongs to one: a slot's, a replay's, a redrive's."""
    return "--".join(durable.split("--")[:2])


def is_sideline(durable: str) -> bool:
    """Whether a durable is a replay's or a redrive's."""
    return durable.rpartition("--")[2] in {REPLAY, REDRIVE} and durable != subscription_of(durable)


def slot_in(durable: str) -> str:
    """The slot of a slot's durable, such as `s03`; of any other `*`, all of them."""
    own = durable.removeprefix(f"{subscription_of(durable)}--")
    return own if own in _SLOTS else "*"


def _by_domain(domains: Iterable[str], filters: Iterable[Pattern]) -> Iterator[tuple[str, list[Pattern]]]:
    """The part of *filters* that each domain's stream can hold, where there is one."""
    for domain in sorted(set(domains)):
        whole = Pattern.parse(f"{domain}.>")
        parts = [part for pattern in filters if (part := pattern.intersection(whole)) is not None]
        if parts:
            yield domain, outermost(parts)
