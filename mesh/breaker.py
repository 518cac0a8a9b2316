"""A circuit breaker: who keeps failing is left alone for a while, then tried with one call. Time is handed in.

    closed      everything passes; `policy.failures` failures in a row open it
    open        nothing passes, for `policy.open_s`
    half open   one call passes, the probe: its success closes the breaker, its failure opens it again, for twice as
                long, up to ten times `policy.open_s`

A call belongs to the state that it began in. What began while the breaker was closed and ends after it has opened
changes nothing any more: neither do twenty late failures lengthen the wait, nor does one late success end it.

Of a subscription's handler as of an HTTP target: whatever is called and may fail.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.limits import BreakerPolicy

MAX_OPEN_FACTOR = 10  # an open breaker waits at most so many times `open_s`


class State(Enum):
    """What a breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """One target's breaker, closed at first.

    Attributes:
        state: Half open only while a probe is under way, or somebody asked whether one may begin.
        era: Rises with each change of state. A call remembers the era it began in, and hands it back at its end.
        failures: In a row, since the last success or turn.
    """

    __slots__ = ("_factor", "_policy", "_probing", "_until_s", "era", "failures", "state")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self.failures = 0
        self._factor = 1
        self._until_s = 0.0
        self._probing = False
        self.state = State.CLOSED
        self.era = 0

    def wait_s(self, now_s: float) -> float | None:
        """Seconds until a call may begin, 0.0 for now; None while a probe is under way, whose end will tell."""
        if self.state is State.OPEN:
            if now_s < self._until_s:
                return self._until_s - now_s
            self._turn(State.HALF_OPEN)
        return None if self._probing else 0.0

    def begin(self, now_s: float) -> int | None:
        """Begin a call, if one may begin now: the era to hand back at its end, or None."""
        if self.state is State.CLOSED:
            return self.era
        if self.wait_s(now_s) != 0.0:
            return None
        self._probing = True
        return self.era

    def succeeded(self, era: int) -> None:
        """A call that began in *era* succeeded."""
        if era != self.era:
            return
        self.failures = 0
        if self._probing:
            self._factor = 1
            self._turn(State.CLOSED)

    def failed(self, era: int, now_s: float) -> None:
        """A call that began in *era* failed."""
        if era != self.era:
            return
        self.failures += 1
        if self._probing:
            self._factor = min(2 * self._factor, MAX_OPEN_FACTOR)
            self._open(now_s)
        elif 0 < self._policy.failures <= self.failures:
            self._open(now_s)

    def dropped(self, era: int) -> None:
        """A call that began in *era* was given up before it ended: it says nothing. A probe may begin again at once."""
        if era == self.era:
            self._probing = False

    def change(self, policy: BreakerPolicy) -> None:
        """Another policy, for what comes. One that never opens closes an open breaker."""
        self._policy = policy
        if policy.failures == 0 and self.state is not State.CLOSED:
            self._factor = 1
            self._turn(State.CLOSED)

    def _open(self, now_s: float) -> None:
        self._until_s = now_s + self._policy.open_s * self._factor
        self._turn(State.OPEN)

    def _turn(self, state: State) -> None:
        self.state = state
        self.era += 1
        self.failures = 0
        self._probing = False
