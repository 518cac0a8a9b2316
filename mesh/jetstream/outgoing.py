"""An event on its way into a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from mesh import native
from mesh.errors import MeshError
from mesh.jetstream.acks import PubAck

NEVER = float("inf")


class Together(Protocol):
    """Who hears of many events at once that they are stored."""

    def stored(self, items: Sequence[Outgoing], sequences: Sequence[int]) -> None:
        """What `on_done` would say of each of *items*: its stream has it, new, at the place in *sequences*."""


def unheard(item: Outgoing, _: PubAck | MeshError) -> None:
    """What `on_done` is until somebody listens."""
    raise AssertionError(f"nobody listens to {item!r}")


@native.twin
class Outgoing(msgspec.Struct, eq=False, gc=False):
    """An event on its way into a stream, sealed each time it is sent anew after a while.

    Whoever submits an event sets `on_done`: it is called once, in the event loop, with the stream's ack or with why
    there is none. Events that come from one place can have a `together` for most of their acks. `generation` enters the
    message id: it rises when an ack would no more prove that a copy was stored which consumers accept. `view`, `type`
    and `route` say which copy of an event it is: `route` is the one that made the event.

    The garbage collector does not look at events: thousands are in flight, and whoever they lead to lets go of them
    when they are done.
    """

    subject: str
    stream: str
    body: bytes
    source: str
    event_id: str
    traceparent: str | None = None
    base_id: str = ""  # the msg_id of generation 0
    view: str = ""
    type: str = ""
    route: str = ""
    on_done: Callable[[Outgoing, PubAck | MeshError], None] = unheard
    together: Together | None = None
    origin: Any = None  # what it was made of, for whoever sends it
    generation: int = 0
    msg_id: str = ""
    first_signed_ms: int = 0  # the first signature under this msg_id; 0 before there is one
    kids: tuple[str, ...] = ()  # the keys of all signatures under this msg_id
    signature: str = ""
    signed_ms: int = 0
    token: int = 0  # the end of its ack subject, one per generation
    order: int = 0
    sends: int = 0
    sent_at: float = NEVER
    give_up_at: float = NEVER
    done: bool = False
    place: int = 0  # which of the copies of a request it is

    def __repr__(self) -> str:
        return f"Outgoing({self.event_id!r})"  # without the body


# --- what is done to many at once ------------------------------------------------------------------------------------


@native.twin
def entered(items: list[Outgoing], by_token: dict[int, Outgoing], last: int) -> int:
    """Give new events their message id and their token, those behind *last*, and note them in *by_token*.

    Returns:
        How many, from the first on: up to one that has no `base_id`, or is of a later generation.
    """
    for count, item in enumerate(items):
        if item.generation or not item.base_id:
            return count
        last += 1
        item.token = last
        item.msg_id = item.base_id
        item.signature = ""
        item.sends = 0
        by_token[last] = item
    return len(items)


@native.twin
def boarded(
    items: list[Outgoing], on_done: Callable[[Outgoing, PubAck | MeshError], None], together: dict[str, Together]
) -> None:
    """They are all of one request: who hears of each, for each view who hears of many, and their places in it."""
    for place, item in enumerate(items):
        item.on_done = on_done
        item.together = together[item.view]
        item.place = place


@native.twin
def signed(items: list[Outgoing], signatures: list[str], kid: str, now_ms: int) -> None:
    """Note what one batch was sealed with, and when. Raises ValueError where there is not a signature for each."""
    if len(items) != len(signatures):
        raise ValueError("a signature for each item")
    first = (kid,)  # one for all: most have no other
    for item, signature in zip(items, signatures, strict=True):
        if not item.kids:
            item.kids = first
        elif kid not in item.kids:
            item.kids = (*item.kids, kid)
        item.signature = signature
        item.signed_ms = now_ms
        if not item.first_signed_ms:
            item.first_signed_ms = now_ms


@native.twin
def ordered(items: list[Outgoing], last: int, give_up_at: float) -> None:
    """Give each its place in the order behind *last*, and all the time when they are given up."""
    for order, item in enumerate(items, last + 1):
        item.order = order
        item.give_up_at = give_up_at


@native.twin
def marked_sent(items: list[Outgoing], now: float) -> None:
    """They are on the wire."""
    for item in items:
        item.sent_at = now
        item.sends += 1


@native.twin
def found(tokens: list[int], by_token: dict[int, Outgoing], oldest_ms: int) -> list[Outgoing]:
    """The events of *tokens*, up to one that is not known, or whose first signature is older than *oldest_ms*."""
    items = []
    for token in tokens:
        item = by_token.get(token)
        if item is None or item.first_signed_ms < oldest_ms:
            break
        items.append(item)
    return items


@native.twin
def settled(
    queue: deque[Outgoing], items: list[Outgoing], sequences: list[int], place: int, before: float
) -> tuple[int, int]:
    """Take acknowledged events off *queue*, as long as each comes as it should.

    That is: it is the oldest, was sent once, and the stream has it at *place* or behind.

    Args:
        queue: Events in flight, the oldest first; what is done is taken off with what stands before it.
        items: Those that are acknowledged, in this order.
        sequences: Where the stream has each; there may be more of them.
        place: Of the last one that the stream has.
        before: The order from which on none is taken; infinity where there is no such. Where there is, the last one
            that is not done before it is not taken either.

    Returns:
        How many were taken, and the place of the last one.
    """
    count = 0
    for item, sequence in zip(items, sequences, strict=False):
        if not queue or item is not queue[0] or sequence < place or item.sends != 1 or item.order >= before:
            break
        if before != NEVER and len(queue) > 1 and queue[1].done:
            break
        place = sequence
        item.done = True
        queue.popleft()
        while queue and queue[0].done:
            queue.popleft()
        count += 1
    return count, place


@native.twin
def forgotten(items: list[Outgoing], by_token: dict[int, Outgoing]) -> int:
    """Take *items* out of *by_token*; how many bytes their bodies have."""
    size = 0
    for item in items:
        size += len(item.body)
        del by_token[item.token]
    return size


if native.compiled is not None:
    native.compiled.outgoing_with(unheard)
