"""Two events and one ack: how the ack of an event says of the one before it that it is stored, too.

A stream acknowledges each message that has a reply subject. Where publishers have accounts of their own, finding the
way back is much of what the server does for an event: 29 us with it, 17 without (measured). So of two events that are
written together the first has no reply. Each says which message id has to be the stream's last one when it is stored
(`Nats-Expected-Last-Msg-Id`), that of the event before it, and which place that one has to have
(`Nats-Expected-Last-Sequence`). The server looks at both under the lock under which it stores. So the ack of the second,
which is new at its place, says that the first stands at the place before it.

Nothing rests on luck. Whatever is lost, refused, or published by somebody else in between, all that is behind it is not
in its place and is refused; the lane hears of it by the answer to every second one, or by silence, and recovers as from
any missed ack (`window.py`). What it sends again has a reply each, and no link. The answer `duplicate` says that the
event itself is stored, and nothing of the one before it: the server looks for duplicates before it looks at ids.

Why both: the id alone lets a row of events go on behind a duplicate of its last one; the place alone is as well taken by
somebody else's event. And why two, not ten: of what stands before the event that the second one names, nothing is known,
because another process may have published that same event.

Who publishes into a stream alone gains a fifth. Where somebody else's event comes in between, events go unlinked for a
while, longer each time: where several publish into one stream all the time, nearly all go as if there were no links.
Only a server on its own is given links. The leader of a replicated stream notes a message id before it knows whether the
event is in its place, and refuses the same id for minutes after (10158, from its source).

Source: nats-server 2.15.1, `processJetStreamMsgWithBatch`: first the place, then duplicates, then the id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.jetstream.outgoing import NEVER, linked

if TYPE_CHECKING:
    from mesh.jetstream.outgoing import Outgoing

FEWEST = 4  # events written together that links begin with: below, the headers cost what the acks do
FRESH_S = 0.1  # they begin soon after an ack, which says where the stream is
APART_FIRST_S = 4.0  # how long events go unlinked after a link did not hold; it doubles from one to the next
APART_LAST_S = 64.0


class Links:
    """Of one lane.

    Attributes:
        broken: How often a link did not hold.
    """

    __slots__ = ("_apart_s", "_apart_until", "_last", "_newest", "broken")

    def __init__(self) -> None:
        self.broken = 0
        self._newest = ""  # the message id of the last event that was sent
        self._last: Outgoing | None = None  # the last linked one, until it is acknowledged; not its id: there may be two
        self._apart_s = 0.0
        self._apart_until = -NEVER

    def tie(self, items: list[Outgoing], now: float, place: int, acked_at: float) -> None:
        """Link *items*, which have their ids and are about to be written together, where that is worth it.

        While linked events are on their way, all that follow are linked to them: else what is behind one that is refused
        could be stored first.

        Args:
            items: New ones of one stream, in the order in which they are sent.
            now: Monotonic seconds.
            place: Where the event sent before them is or will be; 0 where that is not known, and nothing is linked.
            acked_at: When the last ack came, which that was told by.
        """
        if not (place and self._newest):
            return
        quiet = items[-1].token - items[0].token == len(items) - 1  # `found` looks for the one with the token before
        begins = quiet and len(items) >= FEWEST and now - acked_at <= FRESH_S and now >= self._apart_until
        if self._last or begins:
            linked(items, self._newest, place, quiet)

    def sent(self, item: Outgoing) -> None:
        """*item* is the last one on the wire, as `tie` left it."""
        self._newest = item.msg_id
        if item.after:
            self._last = item

    def acked(self, item: Outgoing) -> None:
        """*item* is stored."""
        if item is self._last:
            self._last = None

    def let_go(self) -> None:
        """What is on its way will be sent again, unlinked."""
        self._last = None

    def broke(self, now: float) -> None:
        """A link did not hold: somebody else's event came between, or one of ours was refused."""
        self.broken += 1
        long_ago = now - self._apart_until > APART_LAST_S
        self._apart_s = APART_FIRST_S if long_ago else min(2 * self._apart_s, APART_LAST_S)
        self._apart_until = now + self._apart_s
