"""Deliveries that nobody has settled yet, by their ack subject. Each can be settled once."""

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
        self._replies: set[str] = set()
        self._held: list[bytes] = []  # at most as many as were in flight
        self._forget: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._replies)

    def add(self, reply: str) -> None:
        """A delivery arrived; *reply* was read by `AckSubject`."""
        self._replies.add(reply)

    def settle(self, reply: str, verb: bytes) -> bool:
        """Send *verb*, now or after the next connect; False where the delivery is settled already."""
        if reply not in self._replies:
            return False
        self._replies.remove(reply)
        self._send(wire.ack_frame(reply, verb))
        return True

    def progress(self, reply: str) -> None:
        """Tell the server that it is being worked on; without a connection that can wait for the next time."""
        if reply in self._replies:
            with suppress(Disconnected):
                self._connection.write(wire.ack_frame(reply, b"+WPI"))

    def _send(self, frame: bytes) -> None:
        try:
            self._connection.write(frame)
        except Disconnected:
            self._held.append(frame)
            if self._forget is None:
                self._forget = self._connection.on_connect(self._send_held)

    def _send_held(self) -> None:
        if self._forget is not None:
            self._forget()
            self._forget = None
        held, self._held = self._held, []
        self._send(b"".join(held))
