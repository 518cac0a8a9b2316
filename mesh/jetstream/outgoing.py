"""An event on its way into a stream."""

from __future__ import annotations

from collections.abc import Callable

from mesh.errors import MeshError
from mesh.jetstream.acks import PubAck

NEVER = float("inf")


class Outgoing:
    """An event on its way into a stream, sealed each time it is sent anew after a while.

    `on_done` is called once, in the event loop, with the stream's ack or with why there is none. `generation` enters
    the message id: it rises when an ack would no more prove that a copy was stored which consumers accept.
    """

    __slots__ = (
        "base_id",
        "body",
        "done",
        "event_id",
        "first_signed_ms",
        "generation",
        "give_up_at",
        "kids",
        "msg_id",
        "on_done",
        "order",
        "sends",
        "sent_at",
        "signature",
        "signed_ms",
        "source",
        "stream",
        "subject",
        "token",
        "traceparent",
    )

    def __init__(
        self,
        *,
        subject: str,
        stream: str,
        body: bytes,
        source: str,
        event_id: str,
        on_done: Callable[[Outgoing, PubAck | MeshError], None],
        traceparent: str | None = None,
    ) -> None:
        self.subject = subject
        self.stream = stream
        self.body = body
        self.source = source
        self.event_id = event_id
        self.on_done = on_done
        self.traceparent = traceparent
        self.generation = 0
        self.base_id = ""  # the msg_id of generation 0
        self.msg_id = ""
        self.first_signed_ms = 0  # the first signature under this msg_id; 0 before there is one
        self.kids: tuple[str, ...] = ()  # the keys of all signatures under this msg_id
        self.signature = ""
        self.signed_ms = 0
        self.token = ""  # of its ack subject, one per generation
        self.order = 0
        self.sends = 0
        self.sent_at = NEVER
        self.give_up_at = NEVER
        self.done = False
