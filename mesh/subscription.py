"""A team's durable subscription: with a handler, or as an async iterator.

At least once: an event is acked when its handling succeeded, retried with the subscription's backoff when it raised,
and dead-lettered when the handler raised `Reject` or the attempts are used up. Run more replicas to share the work.

It pulls from the streams that the bundle in force has it read: one more where policies add a domain while it runs.

While no newer trust statement reaches it, a revoked key could still be believed. Then events come with `stale_trust`,
for as long as the tenant's policies allow, or not at all until a newer one does (`spec.trust` of the Tenant).
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

import anyio

from mesh import logs
from mesh.errors import Closed, NoBundle, NotFound
from mesh.feed import Feed, Pulled
from mesh.pullers import Place, places_of
from mesh.settler import DELIVERIES_EXHAUSTED, Settler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextvars import Token
    from types import TracebackType

    from anyio.abc import TaskGroup

    from mesh.context import SubscriptionAddress
    from mesh.inbound import Admitted
    from mesh.jetstream.connection import Connection
    from mesh.policy.compile import Plans
    from mesh.trust_watch import TrustWatch
    from mesh.watch import BundleWatch

PROGRESS_SHARE = 0.4  # of ack_wait between two "in progress" signals: one may be lost before the event comes again
DEFAULT_CONCURRENCY = 16  # handlers at once; most wait for a database or an API
FIRST_BUNDLE_S = 10.0

log = logs.get("subscription")

handling: ContextVar[Admitted | None] = ContextVar("mesh_handling", default=None)


class Delivery:
    """One event in a handler's hands.

    Settle it once, by `ack`, `retry` or `reject`; or use it as `async with delivery as event:`, which acks on a clean
    end and settles an exception by the subscription's policy.
    """

    __slots__ = ("_owner", "_pulled", "_settled", "_token")

    def __init__(self, pulled: Pulled, owner: Subscription) -> None:
        self._pulled = pulled
        self._owner = owner
        self._settled = False
        self._token: Token[Admitted | None] | None = None

    @property
    def event(self) -> Admitted:
        """The event, in the view the team reads."""
        return self._pulled.event

    def ack(self) -> None:
        """Handled: never deliver it again."""
        if self._first():
            self._owner.settler.ack(self._pulled)

    def retry(self, delay_s: float = 0.0) -> None:
        """Not now: deliver it again after *delay_s* seconds."""
        if self._first():
            self._owner.settler.retry(self._pulled, delay_s)

    async def reject(self, reason: str) -> None:
        """Never again: store it as a dead letter with *reason*, then ack it."""
        if self._first():
            await self._owner.settler.bury(self._pulled, reason)

    async def fail(self, error: Exception) -> None:
        """Settle it by what its handling raised."""
        if self._first():
            await self._owner.settler.fail(self._pulled, error)

    def hand_back(self) -> None:
        """Not handled after all: deliver it again at once. What leaving the subscription does with unsettled events."""
        if self._first():
            self._owner.feed.hand_back(self._pulled)

    def progress(self) -> None:
        """Still working: start the redelivery clock again."""
        if not self._settled:
            self._pulled.puller.progress(self._pulled.received)

    def _first(self) -> bool:
        if self._settled:
            return False
        self._settled = True
        self._owner.close_delivery(self)
        return True

    async def __aenter__(self) -> Admitted:
        self._token = handling.set(self.event)
        return self.event

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Cancellation is not a verdict: the event is handed back, and delivered again."""
        if self._token is not None:
            handling.reset(self._token)
        if error is None:
            self.ack()
            return False
        if isinstance(error, Exception):
            await self.fail(error)
            return True
        self.hand_back()
        return False


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
        self._settler: Settler | None = None
        self._group: TaskGroup | None = None

    @property
    def settler(self) -> Settler:
        """Settles our events; there once the subscription runs."""
        if self._settler is None:
            raise self._not_running()
        return self._settler

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
        retry = spec.retry
        streams = self.address.streams or (self.address.stream,)
        self._feed = Feed(
            self._connection,
            team=self.team,
            subscription=self.name,
            durables=places_of(spec, plans.bundle.site) or [(stream, self.address.durable) for stream in streams],
            bundle=self._bundle,
            trust=self._trust,
            max_in_flight=self._max_in_flight or spec.max_in_flight,
        )
        self._settler = Settler(
            self._connection,
            team=self.team,
            subscription=self.name,
            durable=self.address.durable,
            policy=retry,
            window=self._feed.window,
            waits=self._feed.waits,
        )
        self._feed.on_rejected = self._settler.quarantine
        self._feed.on_unmask = self._on_unmask
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._feed.run)
        self._group.start_soon(self._follow, plans)
        self._group.start_soon(self._signal_progress, retry.ack_wait_s * PROGRESS_SHARE)
        return self

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
        """The next delivery; waits for one. What nobody ever lived to settle is buried instead of handed out."""
        feed, settler = self.feed, self.settler
        pulled = feed.take() or await feed.next()
        while settler.worn_out(pulled):
            await settler.bury(pulled, DELIVERIES_EXHAUSTED)
            pulled = await feed.next()
        delivery = Delivery(pulled, self)
        self._open.add(delivery)
        return delivery

    async def run(
        self, handler: Callable[[Admitted], Awaitable[object]], *, concurrency: int = DEFAULT_CONCURRENCY
    ) -> None:
        """Call *handler* with each event, *concurrency* at a time, until cancelled."""

        async def work() -> None:
            while True:
                async with await self.next() as event:
                    await handler(event)

        async with anyio.create_task_group() as group:
            for _ in range(concurrency):
                group.start_soon(work)

    def close_delivery(self, delivery: Delivery) -> None:
        """Called by a delivery once it is being settled."""
        self._open.discard(delivery)

    async def _follow(self, plans: Plans) -> None:
        """Pull from what each bundle after *plans* has us pull from."""
        while True:
            adopted, current = self._bundle.adopted, self._bundle.plans
            if current is not None and current is not plans:
                plans = current
                self.feed.follow(self._places(plans))
            await adopted.wait()

    def _places(self, plans: Plans) -> tuple[Place, ...]:
        revision = plans.bundle.revision
        try:
            grant = plans.subscription(self.team, self.name, now_ms=_now_ms())
        except NotFound:
            log.warning("subscription_gone", team=self.team, subscription=self.name, revision=revision)
            return ()
        if not grant.active:
            log.warning(
                "subscription_inactive", team=self.team, subscription=self.name, revision=revision, reason=grant.reason
            )
        return places_of(grant, plans.bundle.site)

    async def _signal_progress(self, interval_s: float) -> None:
        """Keep events that are in hand here from being delivered to somebody else."""
        while True:
            await anyio.sleep(interval_s)
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
