"""A team's durable subscription: with a handler, or as an async iterator.

At least once: an event is acked when its handling succeeded, retried with the subscription's backoff when it raised,
and dead-lettered when the handler raised `Reject` or the attempts are used up. Run more replicas to share the work.

It pulls from the streams that the bundle in force has it read: one more where policies add a domain while it runs.

While no newer trust statement reaches it, a revoked key could still be believed. Then events come with `stale_trust`,
for as long as the tenant's policies allow, or not at all until a newer one does (`spec.trust` of the Tenant).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

import anyio

from mesh import logs
from mesh.errors import Closed, NoBundle, NotFound
from mesh.feed import Feed, Pulled
from mesh.handlers import caller
from mesh.handling import Delivery, handling
from mesh.ordered import OrderedFeed
from mesh.progress import Progress
from mesh.protection import Protection
from mesh.pullers import places_of
from mesh.settler import DELIVERIES_EXHAUSTED, Settler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from anyio.abc import TaskGroup

    from mesh.context import SubscriptionAddress
    from mesh.handlers import Handler
    from mesh.inbound import Admitted
    from mesh.jetstream.connection import Connection
    from mesh.policy.compile import Plans
    from mesh.policy.grants import SubscriptionGrant
    from mesh.protection import Pass
    from mesh.trust_watch import TrustWatch
    from mesh.watch import BundleWatch

DEFAULT_CONCURRENCY = 16  # handlers at once; most wait for a database or an API
FIRST_BUNDLE_S = 10.0

__all__ = ["Delivery", "Subscription", "handling"]

log = logs.get("subscription")


class Subscription:
    """One durable subscription of our team; use it as `async with mesh.subscription(name) as subscription:`."""

    def __init__(
        self,
        connection: Connection,
        *,
        team: str,
        name: str,
        address: SubscriptionAddress,
        bundle: BundleWatch,
        trust: TrustWatch,
        max_in_flight: int | None = None,
        on_unmask: Callable[[Admitted], None] = lambda _: None,
    ) -> None:
        self.team = team
        self.name = name
        self.address = address
        self._connection = connection
        self._bundle = bundle
        self._trust = trust
        self._max_in_flight = max_in_flight
        self._on_unmask = on_unmask
        self._open: set[Delivery] = set()
        self._feed: Feed | None = None
        self._ordered = False
        self._settler: Settler | None = None
        self._protection: Protection | None = None
        self._progress = Progress(self._in_hand)
        self._turn = anyio.Lock()
        self._group: TaskGroup | None = None

    @property
    def settler(self) -> Settler:
        """Settles our events; there once the subscription runs."""
        if self._settler is None:
            raise self._not_running()
        return self._settler

    @property
    def protection(self) -> Protection:
        """Says when the next event may be handled; there once the subscription runs."""
        if self._protection is None:
            raise self._not_running()
        return self._protection

    @property
    def state(self) -> str:
        """`running`; `open` or `half-open`, the breaker's; `paused` or `probing`, because of dead letters."""
        return self.protection.state

    @property
    def feed(self) -> Feed:
        """Where our events come from; there once the subscription runs."""
        if self._feed is None:
            raise self._not_running()
        return self._feed

    async def __aenter__(self) -> Self:
        plans = self._bundle.plans
        if plans is None:
            raise NoBundle(
                "no valid policy bundle has arrived", expected="one from the control plane", next="wait for it"
            )
        spec = plans.subscription(self.team, self.name, now_ms=_now_ms())
        self._feed = self._new_feed(spec, plans.bundle.site)
        self._protection = Protection(spec)
        self._settler = Settler(
            self._connection,
            team=self.team,
            subscription=self.name,
            durable=self.address.durable,
            policy=spec.retry,
            window=self._feed.window,
            waits=self._feed.waits,
        )
        self._feed.reject_by(self._settler.quarantine, self._settler.put_back)
        self._feed.on_unmask = self._on_unmask
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._feed.run)
        self._group.start_soon(self._follow, plans)
        self._progress.pace(spec.ack_wait_s)
        self._group.start_soon(self._progress.run)
        return self

    def _new_feed(self, spec: SubscriptionGrant, site: str) -> Feed:
        streams = self.address.streams or (self.address.stream,)
        options: dict[str, Any] = {
            "team": self.team,
            "subscription": self.name,
            "durables": places_of(spec, site) or [(stream, self.address.durable) for stream in streams],
            "bundle": self._bundle,
            "trust": self._trust,
            "max_in_flight": self._max_in_flight or spec.max_in_flight,
        }
        self._ordered = spec.ordered
        if spec.ordered:
            return OrderedFeed(self._connection, durable=spec.durable, ack_wait_s=spec.ack_wait_s, **options)
        return Feed(self._connection, **options)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Pull nothing more, hand back what is not settled, send the acks that are due."""
        group, self._group = self._group, None
        if group is None:
            return None
        with anyio.CancelScope(shield=True):
            await self.feed.stop()
            for delivery in tuple(self._open):
                delivery.hand_back()
            await self.feed.flush()
        self.protection.close()
        group.cancel_scope.cancel()
        if isinstance(error, Exception):  # the caller's own: a task group would wrap it
            await group.__aexit__(None, None, None)
            return None
        return await group.__aexit__(kind, error, trace)

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        """Deliveries, one by one."""
        while True:
            yield await self.next()

    async def next(self) -> Delivery:
        """The next delivery; waits for one. What nobody ever lived to settle is buried instead of handed out.

        While the subscription is paused, or its rate is used up, events wait in the feed, in their order.
        """
        if (delivery := self._at_hand()) is not None:
            return delivery
        protection = self.protection
        while protection.calm:
            if (delivery := await self._take(protection.at_once)) is not None:
                return delivery
        while True:
            async with self._turn:  # one at a time: whoever waited longest gets the next event
                await protection.ready()
                if (delivery := await self._take(protection.admit)) is not None:
                    return delivery

    def _at_hand(self) -> Delivery | None:
        """The next delivery, if one is there and nothing is to be waited for: nearly all of them, where many come."""
        protection, feed, settler = self._protection, self._feed, self._settler
        if protection is None or feed is None or settler is None or not protection.calm:
            return None
        pulled = feed.take()
        if pulled is None:
            return None
        if pulled.received.deliveries > 1 and settler.worn_out(pulled):
            feed.put_back(pulled)
            return None
        delivery = Delivery(pulled, self, protection.current)
        self._open.add(delivery)
        return delivery

    async def _take(self, admit: Callable[[], Pass | None]) -> Delivery | None:
        """The next event, if *admit* gives leave for it and it is not worn out."""
        pulled = self.feed.take() or await self._next()
        leave = admit()
        if leave is None:
            self.feed.put_back(pulled)
            return None
        if not self.settler.worn_out(pulled):
            return self._deliver(pulled, leave)
        try:
            await self.settler.bury(pulled, DELIVERIES_EXHAUSTED)
        except BaseException:
            self.protection.dropped(leave)
            raise
        self.protection.worn_out(leave)
        return None

    async def _next(self) -> Pulled:
        while True:
            feed = self.feed
            try:
                return await feed.next()
            except Closed:
                if self._feed is feed:
                    raise

    def _deliver(self, pulled: Pulled, leave: Pass) -> Delivery:
        delivery = Delivery(pulled, self, leave)
        self._open.add(delivery)
        return delivery

    async def run(self, handler: Handler, *, concurrency: int = DEFAULT_CONCURRENCY) -> None:
        """Call *handler* with each event, *concurrency* at a time, until cancelled.

        Args:
            handler: Async, or a plain function, which runs in a thread; asks by annotation for the event, its data, or
                both. Several of them by type: `mesh.Handlers`.
            concurrency: Handlers at once.

        Raises:
            ConfigError: The handler has parameters that nobody can fill.
        """
        call = caller(handler)

        async def work() -> None:
            while True:
                async with await self.next() as event:
                    await call(event)

        async with anyio.create_task_group() as group:
            for _ in range(concurrency):
                group.start_soon(work)

    def acked(self, delivery: Delivery, pulled: Pulled, leave: Pass) -> None:
        """Called by a delivery that is handled."""
        self._open.discard(delivery)
        settler, protection = self._settler, self._protection
        if settler is not None and protection is not None:  # it was handed out, so they are there
            settler.ack(pulled)
            protection.handled(leave)

    def close_delivery(self, delivery: Delivery) -> None:
        """Called by a delivery once it is being settled."""
        self._open.discard(delivery)

    async def _follow(self, plans: Plans) -> None:
        """Pull from what each bundle after *plans* has us pull from."""
        while True:
            adopted, current = self._bundle.adopted, self._bundle.plans
            if current is not None and current is not plans:
                plans = current
                await self._adopt(plans)
            await adopted.wait()

    async def _adopt(self, plans: Plans) -> None:
        revision, site = plans.bundle.revision, plans.bundle.site
        try:
            grant = plans.subscription(self.team, self.name, now_ms=_now_ms())
        except NotFound:
            log.warning("subscription_gone", team=self.team, subscription=self.name, revision=revision)
            self.feed.follow(())
            return
        self.protection.follow(grant)
        self.settler.follow(grant.retry)
        self._progress.pace(grant.ack_wait_s)
        if isinstance(self.feed, OrderedFeed):
            self.feed.pace(grant.ack_wait_s)
        if not grant.active:
            log.warning(
                "subscription_inactive", team=self.team, subscription=self.name, revision=revision, reason=grant.reason
            )
        if grant.active and grant.ordered != self._ordered:
            await self._begin_anew(grant, site)
        else:
            self.feed.follow(places_of(grant, site))

    async def _begin_anew(self, grant: SubscriptionGrant, site: str) -> None:
        """It is ordered now, or no longer: what is not handed out yet goes back, and comes by the other durables."""
        before = self.feed
        self._feed = feed = self._new_feed(grant, site)
        feed.take_over(before)
        await before.stop()  # whoever waits for its next event goes on with ours
        await before.flush()
        before.end()
        if self._group is not None:
            self._group.start_soon(feed.run)
        log.info("ordering_changed", team=self.team, subscription=self.name, ordered=grant.ordered)

    def _in_hand(self) -> None:
        """Keep events that are in hand here from being delivered to somebody else."""
        if self._connection.connected:
            self.feed.progress()
            for delivery in tuple(self._open):
                delivery.progress()

    def _not_running(self) -> Closed:
        return Closed(
            f"subscription {self.name} is not running", expected="`async with`", next="use it inside `async with`"
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
