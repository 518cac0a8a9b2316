"""How many events a puller may ask for: what is delivered and not settled, plus what is asked for, stays in a limit.

The server takes turns between open pulls, so a delivery cannot be told to belong to one of them; only the sum is kept.
The sum can drift: a pull's end may be lost with its connection, a message may never reach us. So it is capped by the
pulls that can still be open, which the clock decides.

Pure: time comes in as monotonic seconds.
"""

from __future__ import annotations

from collections import deque

GRACE_S = 1.0  # after a pull's expiry, for the server's word that it expired


class Credit:
    """The account of one puller.

    Args:
        limit: Events delivered and not settled, or asked for.
        batch: Events one pull may ask for.
        expires_s: When the server forgets a pull.

    Attributes:
        asked: Events asked for and not delivered.
        low: Events delivered and not settled, above which no credit worth a pull is free. While nothing is asked for,
            any may be: see `is_free`.
    """

    def __init__(self, limit: int, *, batch: int, expires_s: float) -> None:
        self._limit = limit
        self._part = max(1, limit // 4)  # ask in quarters: three are on their way or at work while one is settled
        self._batch = max(1, min(batch, limit))
        self._expires_s = expires_s
        self._open: deque[tuple[float, int]] = deque()  # when each pull is over at the latest, and its size
        self._open_total = 0
        self._set(0)

    def _set(self, asked: int) -> None:
        self.asked = asked
        self.low = self._limit - self._part - asked if asked else self._limit

    def is_free(self, unsettled: int, *, all_of_it: bool = False) -> bool:
        """Whether there is credit worth a pull: a quarter, or (*all_of_it*) any rest while nothing is asked for.

        Args:
            unsettled: Events delivered and not settled.
            all_of_it: Set by the clock, so that a small rest has had its time to grow.
        """
        free = self._limit - unsettled - self.asked
        return free >= self._part or (all_of_it and free > 0 and self.asked == 0)

    def next_pull(self, unsettled: int, now: float) -> int:
        """How many to ask for now; they then count as asked for. Only after `is_free`."""
        self._expire(now)
        wanted = min(self._limit - unsettled - self.asked, self._batch)
        self._set(self.asked + wanted)
        self._open.append((now + self._expires_s + GRACE_S, wanted))
        self._open_total += wanted
        return wanted

    def delivered(self, count: int = 1) -> None:
        """So many events came."""
        self._set(max(0, self.asked - count))

    def ended(self, left: int) -> None:
        """A pull is over with *left* events not delivered."""
        self._set(max(0, self.asked - left))

    def lose_pulls(self) -> None:
        """No pull is open any more."""
        self._set(0)
        self._open.clear()
        self._open_total = 0

    def _expire(self, now: float) -> None:
        while self._open and self._open[0][0] <= now:
            self._open_total -= self._open.popleft()[1]
            self._set(min(self.asked, self._open_total))
