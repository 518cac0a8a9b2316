"""An event on its way into a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

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


class Outgoing(msgspec.Struct, eq=False, gc=False):
    """An event on its way into a stream, sealed each time it is sent anew after a while.

    `on_done` is called once, in the event loop, with the stream's ack or with why there is none; events that come from
    one place can have a `together` for most of their acks. `generation` enters the message id: it rises when an ack
    would no more prove that a copy was stored which consumers accept.

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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.event_id!r})"  # without the body
