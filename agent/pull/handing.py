"""Hands out the events of one subscription under leases, and settles them.

While a lease runs its event is in hand, and the subscription tells the server so again and again. A lease that runs
out is a failed attempt, settled by the subscription's policy: again after its backoff, or a dead letter at last.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import contextmanager
from secrets import token_urlsafe
from typing import TYPE_CHECKING

import anyio

from agent.pull.asking import Result
from agent.pull.leases import Leases
from mesh import logs, spans
from mesh.delivery import Reject, RetryLater
from mesh.errors import ConsumerFailed, LeaseExpired, LeaseGone, MeshError, StreamUnavailable
from mesh.telemetry import counter, gauge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping

    from agent.pull.asking import Settle
    from agent.pull.leases import Lease
    from agent.tasks import Tasks
    from mesh.subscription import Delivery, Subscription

TOKEN_BYTES = 18  # 144 bits
MAX_ANSWER_BYTES = 4 * 1024 * 1024  # of events as stored; one more closes the answer

OPEN = gauge("mesh.agent.pull.leases", "{lease}", "at max_in_flight and staying there: consumers fetch and do not ack")
EXPIRED = counter(
    "mesh.agent.pull.expired", "{lease}", "rising: consumers die, or need a longer lease_s; each is a failed attempt"
)

log = logs.get("pull")


class Handing:
    """One subscription, as it is pulled.

    Args:
        name: The subscription's.
        limit: Leases open at once; the subscription's max_in_flight bounds them too.
        settle_s: How long a retry or reject may take until it is answered; it goes on after that.
        idle_s: So long after the last fetch, with no lease open, the subscription is left.
        leave: Leaves it: what was pulled ahead goes to whoever else pulls.
        tasks: Run what outlasts a request.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: int,
        settle_s: float,
        idle_s: float,
        leave: Callable[[], Awaitable[None]],
        tasks: Tasks,
    ) -> None:
        self.name = name
        self.leases: Leases[Delivery] = Leases(limit)
        self._settle_s = settle_s
        self._idle_s = idle_s
        self._leave = leave
        self._fetching = 0
        self._idle_at: float | None = None  # when to leave; None while somebody fetches, and once it was left
        self._tasks = tasks
        self._turn = anyio.Lock(fast_acquire=True)  # who waits longest is handed the next
        self._turned = anyio.Event()
        self._unread = OPEN.read(lambda: len(self.leases), subscription=name)
        tasks.spawn(f"leases-{name}", self._keep())

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Somebody fetches, in this block: the subscription stays open."""
        self._fetching += 1
        self._idle_at = None
        try:
            yield
        finally:
            self._fetching -= 1
            if not self._fetching:
                self._idle_at = time.monotonic() + self._idle_s
                self._turn_all()

    # --- handing out -------------------------------------------------------------------------------------------------

    async def take(
        self, subscription: Subscription, most: int, lease_s: float, trace: Mapping[str, str] | None = None
    ) -> list[Lease[Delivery]]:
        """Wait for an event; it, and what is there at once beside it, up to *most*, leased. Cancelled: none is.

        *trace* is that of the request, as attributes, for the span of what it got.
        """
        began_ns = time.time_ns()
        async with self._turn:
            while not self.leases.room:
                await self.changed()
            taken = [self._grant(await subscription.next(), lease_s)]
            size = taken[0].held.size
            while len(taken) < most and self.leases.room and size < MAX_ANSWER_BYTES:
                count = len(taken)
                with anyio.CancelScope(shield=True) as scope:  # who cancels us from outside gets what we have
                    scope.cancel()  # nothing is waited for
                    taken.append(self._grant(await subscription.next(), lease_s))
                if len(taken) == count:
                    break
                size += taken[-1].held.size
        self._turn_all()
        if spans.tracer is not None:
            events, place = [lease.held.event for lease in taken], taken[0].held.place
            below = spans.tracer.fetched(events, *place, trace or {}, began_ns)
            for lease in taken:
                lease.held.settle_below(below)
        return taken

    async def changed(self) -> None:
        """Wait until a lease was granted, extended or ended."""
        await self._turned.wait()

    def hand_back(self, tokens: Iterable[str]) -> None:
        """Nobody was told of these: have their events delivered again, at once."""
        for token in tokens:
            delivery = self.leases.end(token, now_s=time.monotonic())
            if delivery is not None:
                delivery.hand_back()
        self._turn_all()

    def close(self) -> None:
        """Give every lease up."""
        for delivery in self.leases.clear():
            delivery.hand_back()
        self._turn_all()
        self._unread()

    def _grant(self, delivery: Delivery, lease_s: float) -> Lease[Delivery]:
        return self.leases.grant(delivery, token_urlsafe(TOKEN_BYTES), lease_s=lease_s, now_s=time.monotonic())

    # --- settling ----------------------------------------------------------------------------------------------------

    async def settle(self, verb: str, asked: Settle) -> list[Result]:
        """Do as asked, lease by lease; the results in the order of the request.

        Raises:
            LeaseGone: None of them is open.
        """
        match verb:
            case "extend":
                results = [self._extend(token, asked.lease_s) for token in asked.leases]
            case "ack":
                results = [self._ack(token) for token in asked.leases]
            case _:
                results = await self._end(verb, asked)
        self._turn_all()
        if all(result.code == LeaseGone.code for result in results):
            raise LeaseGone(
                "none of these leases is open here",
                expected="leases of this subscription, settled once, in time",
                got=f"{len(results)} that are gone, or never were",
                next="leave them: their events come again, or were settled before",
            )
        return results

    def ack(self, token: str) -> bool:
        """Handled: written to the server, which is not asked to confirm it. False where the lease is gone."""
        delivery = self.leases.end(token, now_s=time.monotonic())
        if delivery is None:
            return False
        delivery.ack()
        return True

    def _ack(self, token: str) -> Result:
        return Result(token, ok=True) if self.ack(token) else _gone(token)

    def _extend(self, token: str, lease_s: float | None) -> Result:
        granted_s = self.leases.extend(token, lease_s=lease_s, now_s=time.monotonic())
        return _gone(token) if granted_s is None else Result(token, ok=True, expires_s=granted_s)

    async def _end(self, verb: str, asked: Settle) -> list[Result]:
        """Fail them, or bury them; what takes too long goes on, and its result says so."""
        began: dict[str, asyncio.Event] = {}
        for token in dict.fromkeys(asked.leases):
            delivery = self.leases.end(token, now_s=time.monotonic())
            if delivery is not None:
                error = Reject(asked.reason) if verb == "reject" else _retried(asked)
                began[token] = self._begin(f"{verb}-{self.name}", delivery.fail(error))
        try:
            async with asyncio.timeout(self._settle_s):
                for done in began.values():
                    await done.wait()
        except TimeoutError:
            log.warning("settling_takes_long", subscription=self.name, verb=verb)
        results = []
        for token in asked.leases:
            done_ = began.pop(token, None)
            if done_ is None:
                results.append(_gone(token))
            else:
                ok = done_.is_set()
                results.append(Result(token, ok=ok, code=None if ok else StreamUnavailable.code))
        return results

    def _begin(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Event:
        """Run *work* to its end, whoever waits for it."""
        done = asyncio.Event()

        async def run() -> None:
            try:
                await work
            except MeshError as error:
                log.error("not_settled", subscription=self.name, code=error.code)
                return
            done.set()

        self._tasks.spawn(name, run())
        return done

    async def _keep(self) -> None:
        """End what runs out, and leave the subscription once nobody fetches from it any more."""
        while True:
            turned, now_s = self._turned, time.monotonic()
            wakes = [at_s for at_s in (self.leases.next_s(), self._idle_at) if at_s is not None]
            with anyio.move_on_after(max(0.0, min(wakes, default=math.inf) - now_s)):
                await turned.wait()
            expired = self.leases.expired(now_s=time.monotonic())
            for delivery in expired:
                EXPIRED.add(1, subscription=self.name)
                self._begin(f"expired-{self.name}", delivery.fail(_expired()))
            if expired:
                self._turn_all()
            if self._idle_at is not None and self._idle_at <= time.monotonic():
                self._idle_at = None if not len(self.leases) else time.monotonic() + self._idle_s
                if self._idle_at is None:
                    await self._leave()

    def _turn_all(self) -> None:
        turned, self._turned = self._turned, anyio.Event()
        turned.set()


def _gone(token: str) -> Result:
    return Result(token, ok=False, code=LeaseGone.code)


def _retried(asked: Settle) -> Exception:
    if asked.delay_s is not None:
        return RetryLater(asked.delay_s, asked.reason)
    return ConsumerFailed(asked.reason or "the consumer asked for another attempt")


def _expired() -> LeaseExpired:
    return LeaseExpired(
        "the lease ran out before anything was said of the event",
        expected="ack, retry, reject or extend in time",
        got="nothing",
        next="look whether the consumer ends at this event, or needs a longer lease_s",
    )
