"""When a target may be asked: a target that says "later", or that cannot be reached, is left alone for that long.

    free        every request may begin
    paused      none may, for as long as the target asked, or for 1, 2, 4, ... seconds where it did not say or asked for
                less than the first of these
    probing     one may, the first after a pause: any answer but "later" frees the target, "later" pauses it again

Nothing here is about an event: what is held back stays in hand, uses up no attempt, and becomes no dead letter. A
subscription's breaker (`mesh/breaker.py`) is for the answers that are about events. Time is handed in.
"""

from __future__ import annotations

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0  # an application that is back is noticed within half a minute


class Pause:
    """One target's.

    Attributes:
        reason: Of the pause; empty while the target is free.
        unreachable: Whether it pauses for want of a connection.
    """

    __slots__ = ("_era", "_factor", "_probing", "_until_s", "reason", "unreachable")

    def __init__(self) -> None:
        self._era = 0
        self._factor = 1
        self._until_s = 0.0
        self._probing = False
        self.reason = ""
        self.unreachable = False

    def wait_s(self, now_s: float) -> float | None:
        """Seconds until a request may begin, 0.0 for now; None while a probe is under way, whose end will tell."""
        if not self.reason:
            return 0.0
        return None if self._probing else max(0.0, self._until_s - now_s)

    def begin(self) -> int:
        """Begin a request, where `wait_s` says now: the era to hand back at its end."""
        if self.reason:
            self._probing = True
        return self._era

    def later(self, era: int, now_s: float, reason: str, delay_s: float | None, *, unreachable: bool = False) -> None:
        """A request of *era* was answered "later", after *delay_s* where the target said so.

        Of several that were under way, the longest wait counts; only the first makes the next pause longer.
        """
        if era == self._era:
            self._era += 1
            self._probing = False
            if delay_s is None or delay_s < FIRST_PAUSE_S:  # 0 and a past date too: else we would ask without end
                delay_s = min(FIRST_PAUSE_S * self._factor, MAX_PAUSE_S)
                self._factor = min(2 * self._factor, int(MAX_PAUSE_S / FIRST_PAUSE_S))
            self._until_s = now_s + delay_s
            self.reason, self.unreachable = reason, unreachable
        elif delay_s is not None and self.reason:
            self._until_s = max(self._until_s, now_s + delay_s)

    def answered(self, era: int) -> bool:
        """A request of *era* had any other answer; returns whether that ended a pause."""
        if era != self._era:
            return False
        self._factor = 1
        if not self.reason:
            return False
        self._era += 1
        self._probing = False
        self.reason, self.unreachable = "", False
        return True

    def dropped(self, era: int) -> None:
        """A request of *era* was given up before its end: it says nothing. A probe may begin again at once."""
        if era == self._era:
            self._probing = False
