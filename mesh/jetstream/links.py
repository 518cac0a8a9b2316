"""Events that say for each other that they are stored: one ack for all that are written together.

A stream acknowledges each message that has a reply subject. Where publishers have accounts of their own, finding the
way back is much of what the server does for an event: 29 us with it, 17 without (measured). So of events that are
written together only the last has a reply, and each says which message id has to be the stream's last one when it is
stored (`Nats-Expected-Last-Msg-Id`): that of the event before it. The server stores it only then. So the ack of one
says that the one before it is stored, and so on back to the first.

Nothing rests on luck. Whatever is lost or refused on the way, all that is behind it is refused too; the lane hears of
it by the answer to the last one, or by silence, and recovers as from any missed ack (`window.py`). What it sends again
has a reply each, and no link. A `duplicate` says that the event itself is stored, and nothing of the one before it;
where it is stored says whether we did that just now, or somebody published it before.

Another publisher's event in between breaks the chain as well. Then events go unlinked for a while, longer each time:
where several publish into one stream all the time, nearly all go as if there were no links.

Only a server on its own is given links. The leader of a replicated stream notes a message id before it knows whether
the event is the next, and refuses the same id for minutes after (10158, from its source).

Source: nats-server 2.15.1, `processJetStreamMsg`: the check is made when a message is stored, and after that for
duplicates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.jetstream.outgoing import NEVER, linked

if TYPE_CHECKING:
    from mesh.jetstream.outgoing import Outgoing

FEWEST = 4  # events written together that a chain begins with: below, the header costs what the acks do
APART_FIRST_S = 4.0  # how long events go unlinked after a chain broke; it doubles from one to the next
APART_LAST_S = 64.0


class Links:
    """Of one lane.

    Attributes:
        last: The message id of the last linked event that was sent, until it is acknowledged; else empty.
        broken: Chains that did not hold.
    """

    __slots__ = ("_apart_s", "_apart_until", "broken", "last")

    def __init__(self) -> None:
        self.last = ""
        self.broken = 0
        self._apart_s = 0.0
        self._apart_until = -NEVER

    def tie(self, items: list[Outgoing], now: float, place: int) -> None:
        """Link *items*, which have their ids and are about to be written together, where that is worth it.

        While linked events are on their way, all that follow are linked to them: else what is behind a broken link
        could be stored first.

        Args:
            items: New ones of one stream, in the order in which they are sent.
            now: Monotonic seconds.
            place: The last one of the stream that is known; 0 where none is, and then nothing is linked.
        """
        quiet = items[-1].token - items[0].token == len(items) - 1  # `found` looks for them one behind the other
        if self.last or (quiet and place and len(items) >= FEWEST and now >= self._apart_until):
            linked(items, self.last, quiet, place)

    def sent(self, items: list[Outgoing]) -> None:
        """*items* are on the wire, as `tie` left them."""
        if items[-1].after:
            self.last = items[-1].msg_id

    def acked(self, item: Outgoing) -> None:
        """*item* is stored."""
        if item.msg_id == self.last:
            self.last = ""

    def let_go(self) -> None:
        """What is on its way will be sent again, unlinked."""
        self.last = ""

    def broke(self, now: float) -> None:
        """A link did not hold: somebody else's event came between, or one of ours was refused."""
        self.broken += 1
        long_ago = now - self._apart_until > APART_LAST_S
        self._apart_s = APART_FIRST_S if long_ago else min(2 * self._apart_s, APART_LAST_S)
        self._apart_until = now + self._apart_s
