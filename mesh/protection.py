"""What keeps a subscription and what it calls from harming each other: a rate, a breaker, a cap on dead letters.

Each event that is handed out has a `Pass`: the leave to begin now. It comes back with how the handler answered, and
with what became of the event. While nothing may begin, events stay in hand, with their redelivery clocks started again
and again: a pause loses nothing and uses up no attempt.

    handler returned        the handler works                    the event is handled
    it raised Reject        the handler works: it said no        one more dead letter
    it raised else          one more failure in a row            tried again, or a dead letter after the last attempt

`rates.py`, `breaker.py` and `poison.py` are the numbers behind it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import anyio

from mesh import logs
from mesh.breaker import Breaker, State
from mesh.delivery import Ack, DeadLetter, Reject, Retry
from mesh.poison import Flow, PoisonCap
from mesh.rates import Bucket
from mesh.telemetry import counter, gauge

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.delivery import Outcome
    from mesh.policy.grants import SubscriptionGrant

BREAKER = gauge(
    "mesh.breaker.state",
    unit="1",
    watch="0 closed, 1 half open, 2 open: the handler keeps failing, look at what it calls",
)
POISONED = gauge(
    "mesh.subscription.poisoned",
    unit="1",
    watch="1: too many events became dead letters and it pauses; look at them with `mesh dlq list`, repair the handler",
)
PAUSES = counter("mesh.subscription.pauses", unit="{pause}", watch="rising: handlers fail or bury events; see `reason`")

_LEVELS = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}

log = logs.get("protection")


class Pass(NamedTuple):
    """The leave to handle one event: the eras of breaker and cap that it began in."""

    breaker: int
    poison: int


class Protection:
    """Protects one subscription in this process.

    Args:
        grant: Its `rate`, `breaker` and `poison`.
        clock: Seconds, monotonic.

    Attributes:
        calm: Whether there is nothing to wait for: every event may begin at once, with `current` as its pass.
        current: The pass of now, while calm.
    """

    def __init__(self, grant: SubscriptionGrant, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._names = {"team": grant.team, "subscription": grant.name}
        self._clock = clock
        self._grant = grant
        self._breaker = Breaker(grant.breaker)
        self._poison = PoisonCap(grant.poison)
        self._bucket = None if grant.rate is None else Bucket(grant.rate, clock())
        self._turned = anyio.Event()
        self._shown = State.CLOSED
        self._poisoned = False
        self.close()
        self._look()

    @property
    def state(self) -> str:
        """`running`; `open` or `half-open`, the breaker's; `paused` or `probing`, because of dead letters."""
        if self._poison.flow in {Flow.PAUSED, Flow.PROBING}:
            return str(self._poison.flow.value)
        return "running" if self._breaker.state is State.CLOSED else self._breaker.state.value

    def follow(self, grant: SubscriptionGrant) -> None:
        """From now on as *grant* says."""
        now_s = self._clock()
        if grant.rate is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = Bucket(grant.rate, now_s)
        else:
            self._bucket.change(grant.rate, now_s)
        self._breaker.change(grant.breaker)
        self._poison.change(grant.poison)
        self._grant = grant
        self._look()

    def close(self) -> None:
        """Nobody runs it here any more: its metrics show nothing bad."""
        BREAKER.set(0, **self._names)
        POISONED.set(0, **self._names)

    async def ready(self) -> None:
        """Wait until an event may begin. Any number may wait; what `admit` says then counts."""
        while (wait_s := self._wait_s()) != 0.0:
            turned = self._turned
            with anyio.move_on_after(wait_s):
                await turned.wait()

    def at_once(self) -> Pass | None:
        """The pass of now while calm: what `admit` would give, without looking at the clock."""
        return self.current if self.calm else None

    def admit(self) -> Pass | None:
        """The leave for one event, if it may begin now; hand it back to `answered` and `settled`, or to `dropped`."""
        now_s = self._clock()
        if self._breaker.wait_s(now_s) != 0.0 or self._poison.wait_s(now_s) != 0.0:
            return None
        if self._bucket is not None and self._bucket.take(now_s):
            return None
        breaker, poison = self._breaker.begin(now_s), self._poison.begin(now_s)
        self._notice()
        return None if breaker is None or poison is None else Pass(breaker, poison)

    def answered(self, leave: Pass, error: Exception | None = None) -> None:
        """Its handler ended: with *error*, or well. `Reject` is an answer: the handler works, and refuses the event."""
        if error is None or isinstance(error, Reject):
            self._breaker.succeeded(leave.breaker)
        else:
            self._breaker.failed(leave.breaker, self._clock())
        self._notice()

    def settled(self, leave: Pass, outcome: Outcome) -> None:
        """What became of it."""
        match outcome:
            case Ack():
                self._poison.succeeded(leave.poison)
            case Retry():
                self._poison.failed(leave.poison, self._clock())
            case DeadLetter():
                self._poison.buried(leave.poison, self._clock())
        self._notice()

    def handled(self, leave: Pass) -> None:
        """Its handler ended well, and it is acked: `answered` and `settled` in one."""
        if self.calm and leave is self.current and self._poison.clean and not self._breaker.failures:
            return  # nearly always: one more of them changes nothing
        breaker, poison = leave
        self._breaker.succeeded(breaker)
        self._poison.succeeded(poison)
        if not self.calm:  # else no success turns anything
            self._notice()

    def dropped(self, leave: Pass) -> None:
        """It was handed back unhandled: that says nothing about its handler."""
        self._breaker.dropped(leave.breaker)
        self._poison.dropped(leave.poison)
        if self._bucket is not None:
            self._bucket.give_back()
        self._look()

    def worn_out(self, leave: Pass) -> None:
        """It was buried and not handed out, for none of its handlings ever ended: that says nothing about a handler.

        One more dead letter all the same: what ends a process at every event must not bury them all.
        """
        self._breaker.dropped(leave.breaker)
        self._poison.buried(leave.poison, self._clock())
        if self._bucket is not None:
            self._bucket.give_back()
        self._look()

    def _wait_s(self) -> float | None:
        """Seconds until an event may begin; None until something ends."""
        now_s = self._clock()
        waits = (self._breaker.wait_s(now_s), self._poison.wait_s(now_s))
        if None in waits:
            return None
        rate = 0.0 if self._bucket is None else self._bucket.wait_s(now_s)
        return max(rate, *(wait for wait in waits if wait is not None))

    def _notice(self) -> None:
        """Look, if breaker or cap have turned."""
        if self.current.breaker != self._breaker.era or self.current.poison != self._poison.era:
            self._look()

    def _look(self) -> None:
        """Work out what is so now, tell who waits, and say aloud what has changed."""
        closed, flow = self._breaker.state is State.CLOSED, self._poison.flow
        self.calm = closed and self._bucket is None and flow is Flow.FLOWING
        self.current = Pass(self._breaker.era, self._poison.era)
        turned, self._turned = self._turned, anyio.Event()
        turned.set()
        if self._breaker.state is not self._shown:
            self._say_breaker()
        if self._poisoned != (flow in {Flow.PAUSED, Flow.PROBING}):
            self._say_poison()

    def _say_breaker(self) -> None:
        state = self._shown = self._breaker.state
        BREAKER.set(_LEVELS[state], **self._names)
        if state is State.OPEN:
            PAUSES.add(1, reason="breaker", **self._names)
            log.error("breaker_opened", wait_s=self._breaker.wait_s(self._clock()), **self._names)
        elif state is State.CLOSED:
            log.info("breaker_closed", **self._names)

    def _say_poison(self) -> None:
        self._poisoned = not self._poisoned
        POISONED.set(int(self._poisoned), **self._names)
        if self._poisoned:
            PAUSES.add(1, reason="dead-letters", **self._names)
            log.error(
                "subscription_paused",
                dead_letter_share=round(self._poison.share, 3),
                cap=self._grant.poison.share,
                next="look at its dead letters and repair the handler; it tries one event at a time meanwhile",
                **self._names,
            )
        else:
            log.info("subscription_resumed", **self._names)
