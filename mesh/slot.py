"""One durable whose events are handled in order per key, by one replica at a time: a puller that keeps an order.

The server's pin says who may pull. Whoever has it hands out events in the order of `ordering.Order`, and keeps every
event that is not handled yet alive with progress signals, so that none comes again behind a later one of its key.

*Taking over.* What the last holder did not settle comes again, each once its ack_wait has passed or at once where it
was handed back; which keys it is of, nobody can say before. The number that the server gives each delivery tells from
when on all of it can come. It is N for our first one, under a pin that excludes everybody else:

    N = 1                     nobody was ever delivered anything                                           at once
    N = L + 1, L our last     the pin lapsed and came back, with nobody between                            as before
    N = L + 1, L another's    who said that all up to L is settled or handed back: see `hand_back`         at once
    anything else             somebody may have died with events in hand         after twice ack_wait, and `SLACK_S`

Where a number is missing under one pin, what was sent to a link that ended comes again after one ack_wait: nobody else
had it, nor signals for it.
From then on the server delivers what comes again before anything that was never delivered. So the first delivery that
is none again, or a beat that says that nothing waits, tells that everything is here, and events are handed out.

The wait is long enough: whoever loses the pin knows it by its own clock before the server does (`PinnedPuller.holds`),
and from then on signals progress for nothing. Its last signals were sent before our pin. They can still arrive late,
through a server of a cluster that hung: whatever is not back by then, after one ack_wait, has one ack_wait more.
Where a server forgot the pin (it was restarted, or lost its lead), a holder may believe in it as long as a pin lasts:
no wait is shorter than that, so it hands nothing out beside us.

*Losing it.* Without a pin nothing more is handed out; handlers that run go on, and what they did is acked all the same.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import msgspec

from mesh import logs
from mesh.jetstream.pinned import RENEW_S, PinnedPuller
from mesh.jetstream.topology import PIN_TIMEOUT_S
from mesh.members import Left
from mesh.ordering import Order
from mesh.telemetry import counter

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.jetstream.connection import Connection
    from mesh.signing import Received

SLACK_S = 1.0  # the server looks for what to deliver again up to 0.1 s late, and a new leader after 0.5 to 1.5 s
STALLED_S = 30.0  # of being neither settled in nor without work, before it is said
MAX_OUTSTANDING = 10_000  # half of what the server lets be unsettled: a key that is stuck for long stops its slot here
PROGRESS_SHARE = 0.4  # of ack_wait between two progress signals

TAKEN_OVER = counter("mesh.ordered.taken_over", unit="{slot}", watch="rising steadily: replicas lose their pins")
LATE = counter("mesh.ordered.late", unit="{event}", watch="above 0: an event came behind a later one of its key")

log = logs.get("slot")


class Slot(PinnedPuller):
    """One slot while it is ours, or wanted by us.

    Args:
        connection: The team's.
        place: Stream and durable.
        offer: Takes each event whose turn it is.
        mark: Makes of an event as it came what is offered; None where it is to be acked unseen.
        ack_wait_s: Of the durable.
        max_in_flight: Events delivered to us and not settled, those laid aside not counted.
        left: How its last holder left it, as far as is known when it is asked.

    Attributes:
        place: As given.
        leaving: It is being given up: nothing more is handed out.
    """

    def __init__(
        self,
        connection: Connection,
        place: tuple[str, str],
        *,
        offer: Callable[[Received, Slot], None],
        mark: Callable[[Received, Slot], Received | None],
        ack_wait_s: float,
        max_in_flight: int,
        left: Callable[[], Left | None],
    ) -> None:
        handed = left()
        super().__init__(
            connection,
            stream=place[0],
            durable=place[1],
            on_event=self._arrived,
            on_gap=self._taken,
            max_in_flight=max_in_flight,
            pin=handed.pin if handed is not None and handed.pin.isalnum() else "",
        )
        self._offer = offer
        self._mark = mark
        self._ack_wait_s = ack_wait_s
        self._room = max_in_flight // 2
        self._left = left
        self._order = Order(self._room)
        self._open_at = math.inf  # from when on everything that may come again can come
        self._complete = False  # it has come
        self._last = 0  # number of the last delivery to us
        self._first_at = (
            -math.inf
        )  # when the last event came that had never been delivered: so none waited to come again
        self._taken_by = ""  # the pin under which what we have came
        self._renew_at = self._progress_at = 0.0
        self._late = 0
        self._fine_at = time.monotonic()
        self.place = place
        self.leaving = False

    @property
    def idle(self) -> bool:
        """Whether none of its events is with a handler, or on its way to one."""
        return self._order.handed == 0

    @property
    def settled_in(self) -> bool:
        """Whether the pin is ours, and everything that could come before what is here has come."""
        return self._complete and self.holds

    def may_hand_out(self, received: Received) -> bool:
        """Whether this delivery, taken out of its line before, may go to a handler now."""
        return not self.leaving and self.settled_in and self._order.in_hand(received)

    @property
    def _taking_over_s(self) -> float:
        """How long what somebody else had in hand may take to come again."""
        return max(2 * self._ack_wait_s, PIN_TIMEOUT_S) + SLACK_S

    def pace(self, ack_wait_s: float) -> None:
        """The durable waits so many seconds from now on: signal at once, and where we wait, wait that long."""
        self._ack_wait_s = ack_wait_s
        self._progress_at = 0.0
        now = time.monotonic()
        if now < self._open_at < math.inf:
            self._open_at = now + self._taking_over_s

    # --- in ----------------------------------------------------------------------------------------------------------

    def _taken(self, number: int) -> None:
        """From delivery *number* on we are pinned, maybe not for the first time."""
        ours = self.pin and self.pin == self._taken_by
        if self._last and number == self._last + 1:
            self._taken_by = self.pin
        elif ours:
            self._wait(self._ack_wait_s + SLACK_S, since=self._open_at)
            self._last = number - 1
            log.info("deliveries_missing", stream=self.place[0], durable=self.place[1])
        else:
            self._take_over(number)

    def _take_over(self, number: int) -> None:
        left = self._left()
        clean = number == 1 or (left is not None and number == left.delivered + 1)
        wait_s = 0.0 if clean else self._taking_over_s
        self._begin_anew()
        self._wait(wait_s)
        log.info("slot_taken", stream=self.place[0], durable=self.place[1], wait_s=wait_s)
        if not self.pin:
            log.error("durable_not_pinned", stream=self.place[0], durable=self.place[1])

    def _wait(self, wait_s: float, since: float = 0.0) -> None:
        """Hand out nothing for so long, nor before *since*."""
        self._open_at, self._complete = max(since, time.monotonic() + wait_s), False

    def _begin_anew(self) -> None:
        """Somebody else may have handled and settled what we knew of."""
        self._taken_by = self.pin
        for entry in self._order.outstanding():
            if entry.received is None or not self._order.in_hand(entry.received):
                self.forget(entry.reply)
        self._order = Order(self._room)
        TAKEN_OVER.add(1)

    def _arrived(self, delivered: Received) -> None:
        self._last = self.delivered
        if delivered.deliveries == 1 and self.holds:
            self._first_at = time.monotonic()
        received = self._mark(delivered, self)
        if received is None:
            super().ack(delivered)
            return
        if not self._order.arrived(received):  # it is here: signals were late
            super().nak(received, self._ack_wait_s)
        elif self._complete:
            self._flow()
            for entry in self._order.overflow(received, time.monotonic()):
                self.lay_aside(entry.reply)
        elif received.deliveries == 1 and time.monotonic() >= self._open_at:
            self._complete = True
            self._flow()
        else:
            self._make_room()

    def _make_room(self) -> None:
        """While nothing is handed out, only numbers are kept of most: what comes again must not wait for room."""
        for entry in self._order.lay_all_aside(self._room):
            self.lay_aside(entry.reply)

    def _tick_in(self, now: float) -> None:
        """What there is to do until the slot is open."""
        self.resting = self.leaving or now < self._open_at  # the first pull made us the holder; the rest can wait
        if now >= self._open_at:
            self._make_room()
            self._pull(all_of_it=True)
            self._complete = self.empty_at >= self._open_at

    def _flow(self) -> None:
        """Hand out what may be, and ask back what was laid aside and comes next."""
        if self.leaving or not self.settled_in:
            return
        for received in self._order.take(time.monotonic()):
            self._offer(received, self)
        for entry in self._order.recall(time.monotonic()):
            self.recall(entry.reply)

    def tick(self, now: float) -> None:
        """To be called about ten times a second: renewals, signals, tries that are due, and room."""
        if now >= self._renew_at:
            self._renew_at = now + RENEW_S
            self.renew()
        if not self.pin:  # what waits here must not take the room of what the next pin brings
            for entry in self._order.lay_all_aside():
                self.lay_aside(entry.reply)
            self.resting = self.leaving
        elif self._complete:
            self.resting = self.leaving or (len(self._order) >= MAX_OUTSTANDING and not self._order.away)
        else:
            self._tick_in(now)
        self._look_whether_stalled(now)
        if not self.holds:
            return
        if now >= self._progress_at:
            self._progress_at = now + self._ack_wait_s * PROGRESS_SHARE
            for entry in self._order.outstanding():
                if not entry.recalled:  # else it must come again where its way back got lost
                    self.signal(entry.reply)
        for entry in self._order.surplus(now):
            self.lay_aside(entry.reply)
        self._drop_settled()
        if self._order.late > self._late:
            LATE.add(self._order.late - self._late)
        self._late = self._order.late
        self._flow()

    def _drop_settled(self) -> None:
        """Wait no longer for bodies that the server has not: a handler of whoever had the pin before acked them late.

        What was asked back comes again as late as what somebody else had in hand. So once that is over, the next
        delivery that is none again, or a beat that says that nothing waits, tells that the rest is settled.
        """
        known_at = max(self._first_at, self.empty_at)
        if self._complete and known_at >= self._open_at:
            gone = self._order.drop_asked_before(known_at - self._taking_over_s)
            if gone:
                log.info("settled_elsewhere", stream=self.place[0], durable=self.place[1], count=gone)

    def _look_whether_stalled(self, now: float) -> None:
        """Say where events are here and cannot be handed out for long; whoever reads it looks at the server."""
        if self.settled_in or not len(self._order):
            self._fine_at = now
        elif now - self._fine_at > STALLED_S:
            self._fine_at = now
            facts = {"pinned": bool(self.pin), "holds": self.holds, "complete": self._complete, "status": self.status}
            log.warning(
                "slot_stalled",
                durable=self.place[1],
                stream=self.place[0],
                outstanding=len(self._order),
                asked=self._credit.asked,
                **facts,
            )

    # --- settling, as every puller -----------------------------------------------------------------------------------

    def ack(self, received: Received) -> None:
        """The event is done, and the next of its key may go."""
        super().ack(received)
        self._settled(received)

    def term(self, received: Received, reason: str) -> None:
        """Never deliver it again; the next of its key may go."""
        super().term(received, reason)
        self._settled(received)

    def nak(self, received: Received, delay_s: float = 0.0) -> None:
        """Not handled: it is handed out again here, after *delay_s*, and its key waits for it meanwhile."""
        if self._order.in_hand(received):
            again = msgspec.structs.replace(received, deliveries=received.deliveries + 1)
            self._order.again(again, time.monotonic() + delay_s)
        else:  # from before the pin went to somebody else
            self.forget(received.reply)

    def progress(self, received: Received) -> None:
        """It is being worked on. One from before a take-over has to come again, before the next of its key does."""
        if self.holds and self._order.in_hand(received):
            super().progress(received)

    def _settled(self, received: Received) -> None:
        self._order.settled(received.sequence)
        self._flow()

    # --- leaving -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Hand out and pull nothing more; what came is settled as ever, until `hand_back`."""
        self.leaving = True
        await super().stop()

    async def hand_back(self) -> Left | None:
        """After `stop`, give up whatever is not settled, in stream order; how we leave it, None where that is not sure.

        It is sure while the pin is ours, our own waiting was over and no handler has anything: then all that was ever
        delivered is settled, or comes again before what was not delivered yet.
        """
        if not self._last:
            return self._left()
        if not self.holds:
            return None
        sure = self.settled_in and self.idle
        for entry in self._order.outstanding():
            self.recall(entry.reply)
        if sure and await self.confirm() and self.holds:
            return Left(self.pin, self._last)
        return None
