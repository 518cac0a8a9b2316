"""A subscription that becomes ordered, or is no longer: durables of one kind take over from those of the other.

Those that come begin behind what those that were have settled (`position`), and take over what old views still drain
from them. So nothing is skipped; what was settled out of order beyond that comes once more, and consumers know it by
source and id. Those that were are paused before, and go once all that follow are there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mesh.jetstream.durables import REPLAY, is_sideline, slot_in, subscription_of
from mesh.jetstream.transition import filters_of, in_slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mesh.jetstream.topology import Config, ConsumerSpec

    Consumers = Mapping[tuple[str, str], Config]  # by stream and name, as the server has them


def position(info: Mapping[str, Any]) -> int:
    """The sequence up to which a durable has settled everything, from what the server says of it.

    A floor stands still at what the server itself gave up (`max_deliver`): where nothing is open, all that was
    delivered is settled.
    """
    return int((info["ack_floor"] if info["num_ack_pending"] else info["delivered"])["stream_seq"])


def settled(info: Mapping[str, Any], last: int) -> bool:
    """Whether a durable has settled everything up to *last*, as far as that matches."""
    return position(info) >= last or not info["num_pending"] + info["num_ack_pending"]


def predecessors(spec: ConsumerSpec, consumers: Consumers) -> list[str]:
    """The durables in its stream that *spec* takes over from; none where it is there itself."""
    if (spec.stream, spec.name) in consumers:
        return []
    return [name for stream, name in consumers if stream == spec.stream and _of_other_kind(spec.name, name)]


def held(spec: ConsumerSpec, consumers: Consumers) -> tuple[str, ...]:
    """The filters that *spec* has, or takes over."""
    config = consumers.get((spec.stream, spec.name))
    if config is not None:
        return filters_of(config)
    taken = (text for name in predecessors(spec, consumers) for text in filters_of(consumers[spec.stream, name]))
    return in_slot(taken, slot_in(spec.name))


def succeeded(wanted: Iterable[ConsumerSpec], consumers: Consumers) -> list[tuple[str, str]]:
    """The durables, by stream and name, whose successors are all there; with them a replay that was made beside them.

    Args:
        wanted: What has to be.
        consumers: What is.
    """
    specs = list(wanted)
    lacking = {(s.stream, subscription_of(s.name)) for s in specs if (s.stream, s.name) not in consumers}
    found: set[tuple[str, str]] = set()
    for stream, name in consumers:
        kin = [s.name for s in specs if s.stream == stream and _of_other_kind(s.name, name)]
        if kin and (stream, subscription_of(name)) not in lacking:
            found.add((stream, name))
            replay = (stream, f"{subscription_of(name)}--{REPLAY}")
            if replay in consumers:
                found.add(replay)
    return sorted(found)


def _of_other_kind(one: str, other: str) -> bool:
    """Whether one of two durables of a subscription is a slot's, and the other is not."""
    if is_sideline(one) or is_sideline(other) or subscription_of(one) != subscription_of(other):
        return False
    return (slot_in(one) == "*") != (slot_in(other) == "*")
