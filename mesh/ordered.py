"""The feed of an ordered subscription: what `slots` offers, one event of a key at a time, judged as every event is.

What waits here for a handler was offered while the slot's pin was ours; before it is handed out that is asked again.

A replay is pulled the same way, in stream order per key and by one replica for each stream. Between what it brings and
what is live no order is promised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mesh.feed import Feed, Pulled
from mesh.jetstream.durables import is_sideline
from mesh.slot import Slot
from mesh.slots import Slots

if TYPE_CHECKING:
    from mesh.jetstream.connection import Connection
    from mesh.pullers import Source
    from mesh.signing import Received


class OrderedFeed(Feed):
    """See `Feed`.

    Args:
        connection: The team's.
        subscription: As `<team>--<name>`; its replicas find each other by it.
        ack_wait_s: Of the durables.
        rest: As for `Feed`.

    Attributes:
        slots: Those that are ours.
    """

    def __init__(self, connection: Connection, *, durable: str, ack_wait_s: float, **rest: Any) -> None:
        self._durable = durable
        self._ack_wait_s = ack_wait_s
        super().__init__(connection, **rest)

    def _pull(self, connection: Connection, max_in_flight: int) -> Source:
        self.slots = Slots(
            connection,
            self._durable,
            offer=self._judge.take,
            mark=self._mark,
            withdraw=self._withdraw,
            ack_wait_s=self._ack_wait_s,
            max_in_flight=max_in_flight,
        )
        return self.slots

    def pace(self, ack_wait_s: float) -> None:
        """The durables wait so many seconds from now on."""
        if ack_wait_s != self._ack_wait_s:
            self._ack_wait_s = ack_wait_s
            self.slots.pace(ack_wait_s)

    def _follow_sidelines(self) -> None:
        self.slots.follow_beside(self._sidelines.replays)
        self._beside.follow(self._sidelines.redrives)

    def _mark(self, received: Received, slot: Slot) -> Received | None:
        return self._sidelines.replayed(received) if is_sideline(slot.place[1]) else received

    def take(self) -> Pulled | None:
        """See `Feed`; what a slot may not hand out any more goes back."""
        while (pulled := super().take()) is not None:
            if not isinstance(pulled.puller, Slot) or pulled.puller.may_hand_out(pulled.received):
                return pulled
            self.hand_back(pulled)
        return None

    def _withdraw(self, slot: Slot) -> None:
        """Take back what waits for a handler."""
        ready = [pulled for pulled in self._ready if pulled.puller is slot]
        for pulled in ready:
            self._ready.remove(pulled)
            self.hand_back(pulled)
