"""A cap on dead letters: where too many of the last settled events were buried, nothing more is, for a while.

One poison event is buried and forgotten. When most are, something else is wrong (a schema changed, a handler was
deployed broken), and burying the whole stream helps nobody: the subscription pauses, and tries one event at a time.

    flowing     everything passes; pauses when more than `share` of the last `of` were buried
    paused      nothing passes, until it is time for one event, the probe
    probing     the probe is under way: handled well, everything passes again, on trial; else paused, for twice as long
    on trial    passes, but one more buried pauses it again at once; over when the share has fallen to the cap

So a storm costs `share` x `of` dead letters, and then one for each probe that is buried.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.limits import PoisonPolicy

FIRST_PAUSE_S = 5.0
MAX_PAUSE_S = 300.0  # a handler that was repaired is noticed within five minutes


class Flow(Enum):
    """What a cap lets through."""

    FLOWING = "flowing"
    ON_TRIAL = "on-trial"
    PAUSED = "paused"
    PROBING = "probing"


class PoisonCap:
    """The cap of one subscription.

    Args:
        policy: Its share, and of how many.
        first_pause_s: Seconds of the first pause; each that follows while it is on trial is twice as long.

    Attributes:
        flow: Where it stands.
        clean: Whether all that are looked at were handled: one more such changes nothing while events flow.
        era: Rises whenever everything may pass, or nothing may any more. An event remembers the era it began in.
    """

    __slots__ = ("_buried", "_first_pause_s", "_last", "_pause_s", "_policy", "_until_s", "clean", "era", "flow")

    def __init__(self, policy: PoisonPolicy, *, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self._policy = policy
        self._last: deque[bool] = deque()
        self._buried = 0
        self.clean = False
        self._first_pause_s = first_pause_s
        self._pause_s = first_pause_s
        self._until_s = 0.0
        self.flow = Flow.FLOWING
        self.era = 0

    @property
    def share(self) -> float:
        """Of the last `of` settled events, how many were buried: 0 to 1."""
        return self._buried / len(self._last) if self._last else 0.0

    def wait_s(self, now_s: float) -> float | None:
        """Seconds until an event may pass, 0.0 for now; None while a probe is under way, whose end will tell."""
        if self.flow is Flow.PROBING:
            return None
        return max(0.0, self._until_s - now_s) if self.flow is Flow.PAUSED else 0.0

    def begin(self, now_s: float) -> int | None:
        """Let an event pass, if one may now: the era to hand back when it is settled, or None."""
        if self.wait_s(now_s) != 0.0:
            return None
        if self.flow is Flow.PAUSED:
            self.flow = Flow.PROBING
            self.era += 1
        return self.era

    def succeeded(self, era: int) -> None:
        """An event was handled."""
        if not self.clean:  # else it pushes out one like itself
            self._settled(buried=False)
        if self.flow is Flow.FLOWING or era != self.era:
            return
        if self.flow is Flow.PROBING:
            self._turn(Flow.ON_TRIAL)
        if self.flow is Flow.ON_TRIAL and not self._over():
            self._pause_s = self._first_pause_s
            self._turn(Flow.FLOWING)

    def failed(self, era: int, now_s: float) -> None:
        """An event is to be tried again: no verdict. A probe that ends so proves nothing, and the pause goes on."""
        if self.flow is Flow.PROBING and era == self.era:
            self._pause(now_s)

    def buried(self, era: int, now_s: float) -> None:
        """An event became a dead letter."""
        self._settled(buried=True)
        if era == self.era and self.flow is not Flow.PAUSED and (self.flow is not Flow.FLOWING or self._over()):
            self._pause(now_s)

    def dropped(self, era: int) -> None:
        """An event was given up before it was settled: it says nothing. A probe may begin again at once."""
        if self.flow is Flow.PROBING and era == self.era:
            self._turn(Flow.PAUSED)

    def change(self, policy: PoisonPolicy) -> None:
        """Another cap, for what comes. One that never pauses ends a pause."""
        self._policy = policy
        while len(self._last) > policy.of:
            self._buried -= self._last.popleft()
        self._count()
        if self.flow is not Flow.FLOWING and policy.share >= 1:
            self._pause_s = self._first_pause_s
            self._turn(Flow.FLOWING)

    def _settled(self, *, buried: bool) -> None:
        last = self._last
        last.append(buried)
        self._buried += buried
        if len(last) > self._policy.of:
            self._buried -= last.popleft()
        self._count()

    def _count(self) -> None:
        self.clean = not self._buried and len(self._last) >= self._policy.of

    def _over(self) -> bool:
        return len(self._last) >= self._policy.of and self._buried > self._policy.share * self._policy.of

    def _pause(self, now_s: float) -> None:
        self._until_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        self._turn(Flow.PAUSED)

    def _turn(self, flow: Flow) -> None:
        self.flow = flow
        self.era += 1
