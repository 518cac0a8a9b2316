"""One target: it takes events of its subscription, posts them, and settles each by the answer.

    Taken       ack
    Refused     a dead letter, with the status as its reason
    Failed      an attempt: again after the subscription's backoff, a dead letter after the last
    Later       the target pauses and the event stays in hand; whoever waited longest is the first to ask again

A batch that is not taken is handed back whole, and comes again one by one, so that each event gets an answer of its
own. An event that is told "later" again and again while others are taken is to blame itself: that is an attempt. So
that others can be taken, one that was told so a few times is put aside for another.

Order per key is the subscription's (`order_by: partitionkey`): it hands out the next event of a key once this one is
settled, and an event that is held here is not.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio

from agent.push import requests
from agent.push.pause import Pause
from agent.push.settings import BATCH, BINARY
from agent.push.signature import message_id
from agent.push.verdict import Failed, Later, Refused, Taken
from mesh import logs, spans
from mesh.delivery import RetryLater
from mesh.errors import PushFailed
from mesh.telemetry import gauge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.push.requests import Request
    from agent.push.sender import Sender
    from agent.push.settings import PushTarget
    from agent.push.verdict import Verdict
    from mesh.inbound import Admitted
    from mesh.span_ends import Pushed
    from mesh.subscription import Delivery, Subscription

MAX_BATCH_BYTES = 1024 * 1024  # of events as stored; one more closes the batch
MAX_LATER = 10  # times that an event is told "later" while the target takes others, until that is an attempt
PATIENCE = 3  # times that one is told so while no other is taken, until another is tried in its place

PAUSED = gauge("mesh.agent.push.paused", "1", "1: the target said later, or cannot be reached; /readyz says which")
IN_FLIGHT = gauge("mesh.agent.push.in_flight", "{request}", "at the target's concurrency, it is what limits")

log = logs.get("push")


class _Parcel:
    """The events of one request; how often they were told "later", and what the target had answered when put aside."""

    __slots__ = ("answers", "deliveries", "taken", "told", "told_since")

    def __init__(self, deliveries: list[Delivery], taken: int) -> None:
        self.deliveries = deliveries
        self.taken = taken
        self.answers = self.told = self.told_since = 0

    def later(self, taken: int) -> None:
        """Told so, after the target has taken so many."""
        if taken == self.taken:
            self.told_since += 1
        else:
            self.told, self.told_since, self.taken = self.told + 1, 0, taken


class Pusher:
    """Pushes one subscription.

    Args:
        target: Where to, and how many at once.
        sender: Posts there.
    """

    def __init__(self, target: PushTarget, sender: Sender) -> None:
        self._target = target
        self._sender = sender
        self._pause = Pause()
        self._turned = anyio.Event()
        self._queue = anyio.Lock(fast_acquire=True)  # first come, first served
        self._aside: deque[_Parcel] = deque()
        self._idle: set[anyio.CancelScope] = set()
        self._stopping = False
        self._in_flight = 0
        self._taken = 0
        self._answers = 0  # other than "later"
        self._trouble = ""

    def state(self) -> dict[str, Any]:
        """Facts for people who look: where to, whether it pauses and why, and what went wrong last."""
        pause = self._pause
        said = "unreachable" if pause.unreachable else "told-to-wait"
        return {
            "target": self._target.place,
            "state": "draining" if self._stopping else said if pause.reason else "running",
            "because": pause.reason or self._trouble,
            "in_flight": self._in_flight,
        }

    async def run(self, subscription: Subscription) -> None:
        """Push until `stop`; returns once nothing is in hand."""
        try:
            async with anyio.create_task_group() as group:
                for _ in range(self._target.concurrency):
                    group.start_soon(self._work, subscription)
        finally:
            for parcel in self._aside:
                _hand_back(parcel)
            self._aside.clear()

    def stop(self) -> None:
        """Take no more; requests that run may end, and what waits for its turn is handed back."""
        self._stopping = True
        for scope in tuple(self._idle):
            scope.cancel()
        self._turn()

    async def _work(self, subscription: Subscription) -> None:
        while not self._stopping:
            parcel = await self._choose(subscription)
            while parcel.deliveries:
                try:
                    done = await self._push(parcel)
                except BaseException:
                    _hand_back(parcel)
                    raise
                if done:
                    break
                parcel = await self._swap(subscription, parcel)

    async def _swap(self, subscription: Subscription, parcel: _Parcel) -> _Parcel:
        """Another parcel instead, where there is one at once; *parcel* waits aside for its answer."""
        if len(self._aside) >= self._target.concurrency or not (others := await self._next(subscription, at_once=True)):
            return parcel
        parcel.answers = self._answers
        self._aside.append(parcel)
        return _Parcel(others, self._taken)

    # --- taking ------------------------------------------------------------------------------------------------------

    async def _choose(self, subscription: Subscription) -> _Parcel:
        """What waits aside, if the target answered others since or none comes at once; else the next, if any.

        Nothing is waited for while something is aside: nobody else might come back to it.
        """
        if self._aside and self._aside[0].answers != self._answers:
            return self._aside.popleft()
        taken = await self._next(subscription, at_once=bool(self._aside))
        if not taken and self._aside:
            return self._aside.popleft()
        if taken and self._target.mode == BATCH:
            await self._more(subscription, taken)
        return _Parcel(taken, self._taken)

    async def _next(self, subscription: Subscription, *, at_once: bool = False) -> list[Delivery]:
        """The next delivery; none where we stop, or where there is none *at_once*."""
        found: list[Delivery] = []
        with anyio.CancelScope() as scope:
            if at_once:
                scope.cancel()  # nothing is waited for
            self._idle.add(scope)
            try:
                found.append(await subscription.next())
            finally:
                self._idle.discard(scope)
        return found

    async def _more(self, subscription: Subscription, taken: list[Delivery]) -> None:
        """What else is there at once goes with it. An event that came before goes alone: so a bad one is found."""
        size = taken[0].size
        while taken[-1].event.attempt == 1 and len(taken) < self._target.batch_events and size < MAX_BATCH_BYTES:
            if not (more := await self._next(subscription, at_once=True)):
                return
            if more[0].event.attempt > 1:
                more[0].hand_back()
                return
            taken += more
            size += taken[-1].size

    # --- pushing -----------------------------------------------------------------------------------------------------

    async def _push(self, parcel: _Parcel) -> bool:
        """Ask until there is an answer for the events; False where another parcel should be tried meanwhile."""
        while (era := await self._begin()) is not None:
            verdict = await self._ask(parcel.deliveries, era)
            if not isinstance(verdict, Later):
                await self._settle(parcel.deliveries, verdict)
                break
            parcel.later(self._taken)
            if parcel.told >= MAX_LATER:
                error = RetryLater(verdict.delay_s or 1.0, f"the target answered {verdict.reason}")
                for delivery in parcel.deliveries:
                    await delivery.fail(error)
                break
            if parcel.told_since >= PATIENCE:
                parcel.told_since = 0
                return False
        _hand_back(parcel)  # what is not settled
        return True

    async def _ask(self, deliveries: list[Delivery], era: int) -> Verdict:
        """One request: what it says of the events, and what of the target."""
        pause = self._pause
        try:
            with self._counted():
                verdict = await (self._send(deliveries) if spans.tracer is None else self._traced(deliveries))
        except BaseException:
            pause.dropped(era)
            self._turn()
            raise
        if isinstance(verdict, Later):
            free = not pause.reason
            pause.later(era, time.monotonic(), verdict.reason, verdict.delay_s, unreachable=verdict.unreachable)
            if free and pause.reason:
                log.warning("push_paused", subscription=self._target.name, reason=verdict.reason)
            self._turn()
        elif pause.answered(era):
            log.info("push_resumed", subscription=self._target.name)
            self._turn()
        return verdict

    async def _send(self, deliveries: list[Delivery], span: Pushed | None = None) -> Verdict:
        events = [delivery.event for delivery in deliveries]
        request = self._request(events)
        if span is not None:
            request = request._replace(headers=span.headers(request.headers))
        return await self._sender.send(request, message_id(*events[0].key))

    async def _traced(self, deliveries: list[Delivery]) -> Verdict:
        """The same, with a span around it where the events are sampled: then the request carries its context."""
        if spans.tracer is None:
            return await self._send(deliveries)
        events = [delivery.event for delivery in deliveries]
        with spans.tracer.push(events, *deliveries[0].place) as span:
            for delivery in deliveries:
                delivery.settle_below(None if span is None else span.below)
            verdict = await self._send(deliveries, span)
            if span is not None and not isinstance(verdict, Taken):
                span.failed(verdict.reason)
        return verdict

    async def _settle(self, deliveries: list[Delivery], verdict: Verdict) -> None:
        self._answers += 1
        self._trouble = "" if isinstance(verdict, Taken) else verdict.reason
        if not isinstance(verdict, Taken) and len(deliveries) > 1:
            return  # handed back, to come again one by one
        for delivery in deliveries:
            match verdict:
                case Taken():
                    self._taken += 1
                    delivery.ack()
                case Refused(reason=reason):
                    await delivery.reject(reason)
                case Failed(reason=reason):
                    await delivery.fail(_failed(reason))

    def _request(self, events: list[Admitted]) -> Request:
        name = self._target.name
        if self._target.mode == BATCH:
            request = requests.batch([event.fields for event in events])
            request.headers.append(("Mesh-Subscription", name))
            return request
        made = requests.binary if self._target.mode == BINARY else requests.structured
        request = made(events[0].fields)
        request.headers.extend(requests.beside(events[0], name))
        return request

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        self._show()
        try:
            yield
        finally:
            self._in_flight -= 1
            self._show()

    # --- pausing -----------------------------------------------------------------------------------------------------

    async def _begin(self) -> int | None:
        """Wait until the target may be asked, and begin: the pause's era; None where we stop first."""
        async with self._queue:
            while not self._stopping and (wait_s := self._pause.wait_s(time.monotonic())) != 0.0:
                turned = self._turned
                with anyio.move_on_after(wait_s):
                    await turned.wait()
            return None if self._stopping else self._pause.begin()

    def _turn(self) -> None:
        turned, self._turned = self._turned, anyio.Event()
        turned.set()
        self._show()

    def _show(self) -> None:
        PAUSED.set(int(bool(self._pause.reason)), subscription=self._target.name)
        IN_FLIGHT.set(self._in_flight, subscription=self._target.name)


def _hand_back(parcel: _Parcel) -> None:
    """What is not settled comes again."""
    for delivery in parcel.deliveries:
        delivery.hand_back()


def _failed(reason: str) -> PushFailed:
    return PushFailed(
        f"the push target did not take the event: {reason}",
        expected="a 2xx answer in time",
        got=reason,
        next="look at the application; the event comes again",
    )
