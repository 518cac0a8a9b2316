"""Deliveries that nobody has settled yet, by their ack subject. Each can be settled once.

One whose turn comes much later can be laid aside: it stays unsettled, and no longer counts as in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from mesh.errors import Disconnected
from mesh.jetstream import wire
from mesh.jetstream.connection import Connection


class Unsettled:
    """The deliveries of one puller, and the settlements that wait for a connection.

    An ack subject outlives connections: what is settled while there is none counts all the same once it is sent. Thrown
    away instead, it would cost a redelivery.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.replies: set[str] = set()  # ack subjects of deliveries, as `AckSubject` read them
        self._aside: set[str] = set()  # of those laid aside
        self._held: list[bytes] = []  # at most as many as were in flight
        self._forget: Callable[[], None] | None = None

    def settle(self, reply: str, verb: bytes) -> bool:
        """Send *verb*, now or after the next connect; False where the delivery is settled already."""
        if not self._known(reply):
            return False
        frame = wire.ack_frame(reply, verb)
        try:
            self._connection.write(frame)
        except Disconnected:
            self._hold(frame)
        return True

    def ack(self, reply: str) -> bool:
        """`settle` with `+ACK`, as nearly all are."""
        if reply in self.replies:
            self.replies.remove(reply)
        elif not self._known(reply):
            return False
        try:
            self._connection.ack(reply)
        except Disconnected:
            self._hold(wire.ack_frame(reply, b"+ACK"))
        return True

    def _known(self, reply: str) -> bool:
        """Whether it is not settled yet; from now on it is."""
        for replies in (self.replies, self._aside):
            if reply in replies:
                replies.remove(reply)
                return True
        return False

    def progress(self, reply: str) -> None:
        """Tell the server that it is being worked on; without a connection that can wait for the next time."""
        if reply in self.replies or reply in self._aside:
            with suppress(Disconnected):
                self._connection.write(wire.ack_frame(reply, b"+WPI"))

    def lay_aside(self, reply: str) -> None:
        """It is unsettled as before, and not in flight."""
        if reply in self.replies:
            self.replies.remove(reply)
            self._aside.add(reply)

    def forget(self, reply: str) -> None:
        """It is no longer ours: whoever has it next settles it."""
        self.replies.discard(reply)
        self._aside.discard(reply)

    def _hold(self, frames: bytes) -> None:
        self._held.append(frames)
        if self._forget is None:
            self._forget = self._connection.on_connect(self._send_held)

    def _send_held(self) -> None:
        if self._forget is not None:
            self._forget()
            self._forget = None
        held, self._held = b"".join(self._held), []
        try:
            self._connection.write(held)
        except Disconnected:
            self._hold(held)
