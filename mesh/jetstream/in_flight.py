"""The events of a publisher that are not done: what they take up, who waits for their room, and how each ends."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from operator import attrgetter

from mesh.errors import MeshError
from mesh.jetstream.acks import PubAck
from mesh.jetstream.former import Former
from mesh.jetstream.listeners import guarded
from mesh.jetstream.outgoing import Outgoing, Together, forgotten
from mesh.jetstream.room import Room
from mesh.jetstream.sealing import Sealer

_together: Callable[[Outgoing], Together | None] = attrgetter("together")

TakeOver = Callable[[str, list[Outgoing]], None]
"""`take_over(stream, events)`: the stream does not acknowledge; these were in flight, in this order, until now."""


class InFlight:
    """Of one publisher.

    Args:
        sealer: Knows them by the tokens of their ack subjects.
        former: Learns how they end.
        window: How many there may be.
        window_bytes: Bytes of their bodies that there may be.

    Attributes:
        body_bytes: Of all of them.
        take_over: Who gets what a stream does not acknowledge; None where such events are given up.
    """

    def __init__(self, sealer: Sealer, former: Former, *, window: int, window_bytes: int) -> None:
        self.body_bytes = 0
        self.take_over: TakeOver | None = None
        self._sealer = sealer
        self._by_token = sealer.by_token
        self._former = former
        self._window = window
        self._window_bytes = window_bytes
        self._waiting = Room(self._fits)

    @property
    def room(self) -> int:
        """How many more there may be now."""
        return 0 if self.body_bytes >= self._window_bytes else self._window - len(self._by_token)

    async def wait_for_room(self, n: int) -> None:
        """Return once `room` is at least *n* (or nothing is in flight); those who wait are served in their order."""
        await self._waiting.wait(n)

    def _fits(self, n: int) -> bool:
        return self.room >= n or not self._by_token

    def finish(self, item: Outgoing, result: PubAck | MeshError) -> None:
        """*item* ends with *result*."""
        self._sealer.forget(item)
        item.done = True
        if isinstance(result, MeshError):
            self._former.given_up(item)
        self.body_bytes -= len(item.body)
        guarded(item.on_done, item, result)
        self._waiting.admit()

    def finish_stored(self, items: list[Outgoing], sequences: list[int]) -> None:
        """Each of *items* ends: its stream has it, new, at the place in *sequences*, which may be longer."""
        self.body_bytes -= forgotten(items, self._by_token)
        self._former.stored_all(items)
        at = 0
        for together, part in groupby(items, _together):
            some = list(part)
            places = sequences[at : at + len(some)]
            at += len(some)
            if together is not None:
                guarded(together.stored, some, places)
                continue
            for item, sequence in zip(some, places, strict=True):
                guarded(item.on_done, item, PubAck(item.stream, sequence))
        self._waiting.admit()

    def finish_all(self, error: MeshError) -> None:
        """Each of them ends with *error*, whether its stream has it or not."""
        for item in list(self._by_token.values()):
            self.finish(item, error)

    def hand_over(self, stream: str, items: list[Outgoing]) -> None:
        """*items* of *stream* are with whoever takes over from now on; an ack of one means nothing here any more."""
        for item in items:
            self._sealer.forget(item)
            self.body_bytes -= len(item.body)
        if self.take_over is not None:
            self.take_over(stream, items)
        self._waiting.admit()
