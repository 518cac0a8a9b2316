"""The library without `async`: the same mesh for scripts, notebooks, and applications that run in threads.

```python
with mesh.connect_sync(team="support", agent="desk") as m:
    m.publish("support.ticket.opened.v1", {"contact": "c-17"}, source="/support")
    for delivery in m.subscription("contacts"):
        with delivery as event:                     # acks on a clean end, settles an exception as policy says
            print(event.type)
```
One event loop runs in a thread of its own, however many threads use the mesh; errors are those of the async library.
What ends a `with` block from outside, such as Ctrl-C, is no verdict: the event in hand is delivered again.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal

from mesh.client import Mesh, connect
from mesh.errors import Closed
from mesh.handling import handling
from mesh.subscription import DEFAULT_CONCURRENCY

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from concurrent.futures import Future
    from contextvars import Token
    from types import TracebackType

    from anyio.from_thread import BlockingPortal

    from mesh.client import Receipt, Typed
    from mesh.context import Context
    from mesh.handlers import Handler
    from mesh.handling import Delivery
    from mesh.inbound import Admitted
    from mesh.subscription import Subscription

T = TypeVar("T")
LOOK_S = 1.0  # between two looks of a thread that waits at whether it was interrupted


class SyncDelivery:
    """One event in hand: settle it once, or use it as `with delivery as event:`. See `mesh.Delivery`."""

    def __init__(self, delivery: Delivery, owner: SyncMesh) -> None:
        self._delivery = delivery
        self._owner = owner
        self._token: Token[Admitted | None] | None = None

    @property
    def event(self) -> Admitted:
        """The event, in the view the team reads."""
        return self._delivery.event

    def ack(self) -> None:
        """Handled: never deliver it again."""
        self._owner.portal.call(self._delivery.ack)

    def retry(self, delay_s: float = 0.0) -> None:
        """Not now: deliver it again after *delay_s* seconds."""
        self._owner.portal.call(self._delivery.retry, delay_s)

    def reject(self, reason: str) -> None:
        """Never again: store it as a dead letter with *reason*, then ack it."""
        self._owner.portal.call(self._delivery.reject, reason)

    def __enter__(self) -> Admitted:
        self._token = handling.set(self.event)
        return self.event

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._token is not None:
            handling.reset(self._token)
        if error is None:
            self.ack()
        elif isinstance(error, Exception):
            self._owner.portal.call(self._delivery.fail, error)
        else:
            self._owner.portal.call(self._delivery.hand_back)
        return isinstance(error, Exception)


class SyncSubscription:
    """A durable subscription of our team: iterate over it, or `run` a handler. Several threads may share one.

    It opens when it is first used, and closes with the last of its `with` blocks, loops and runs. Where `next` was
    called outside them it stays open until `close`, or until its mesh closes. What is not settled by then is delivered
    again.
    """

    def __init__(self, subscription: Subscription, owner: SyncMesh, idle_s: float | None) -> None:
        self._subscription = subscription
        self._owner = owner
        self._idle_s = idle_s
        self._stack: ExitStack | None = None
        self._lock = RLock()  # one thread opens or closes; a loop that is collected meanwhile leaves in that thread
        self._users = 0  # blocks, loops and runs
        self._kept = False  # somebody has called `next`, and may call it again

    @property
    def state(self) -> str:
        """As `mesh.Subscription.state`."""
        return self._subscription.state

    def __enter__(self) -> Self:
        with self._lock:
            self._open()
            self._users += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._kept = False  # by whoever called `next` in the block
            self._leave()

    def close(self) -> None:
        """Hand back what is not settled, and pull nothing more, whoever uses it. Again: nothing."""
        with self._lock:
            self._kept = False
            stack, self._stack = self._stack, None
            if stack is not None:
                self._owner.opened.remove(self)
                stack.close()

    def _open(self) -> None:
        if self._stack is None:
            opened = self._owner.portal.wrap_async_context_manager(self._subscription)
            opened.__enter__()
            self._stack = ExitStack()
            self._stack.callback(opened.__exit__, None, None, None)
            self._owner.opened.append(self)

    def _leave(self) -> None:
        """Whoever is the last to leave closes it."""
        with self._lock:
            self._users -= 1
            if not self._users and not self._kept:
                self.close()

    def __iter__(self) -> Iterator[SyncDelivery]:
        """Deliveries, one by one: for ever, or until nothing came for `idle_s` seconds."""
        self.__enter__()
        try:
            while (delivery := self._take(self._idle_s)) is not None:
                yield delivery
        finally:
            self._leave()

    def next(self, timeout_s: float | None = None) -> SyncDelivery | None:
        """The next delivery; None where none came within *timeout_s* seconds."""
        with self._lock:
            self._kept = True
            self._open()
        return self._take(timeout_s)

    def _take(self, timeout_s: float | None) -> SyncDelivery | None:
        delivery = self._owner.wait(partial(self._next, timeout_s), undo=_hand_back)
        return None if delivery is None else SyncDelivery(delivery, self._owner)

    async def _next(self, timeout_s: float | None) -> Delivery | None:
        with anyio.move_on_after(timeout_s):
            return await self._subscription.next()
        return None

    def run(self, handler: Handler, *, concurrency: int = DEFAULT_CONCURRENCY) -> None:
        """Call *handler* with each event until Ctrl-C, as `mesh.Subscription.run`: a plain one runs in a thread."""
        self.__enter__()
        try:
            self._owner.wait(partial(self._subscription.run, handler, concurrency=concurrency))
        finally:
            self._leave()


class SyncMesh:
    """A connection to the mesh as one team, one agent, or both. Made by `connect_sync()`; use it as `with`.

    Attributes:
        opened: Subscriptions that are open.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.opened: list[SyncSubscription] = []
        self._mesh = mesh
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    @property
    def portal(self) -> BlockingPortal:
        """To the event loop that the mesh runs on."""
        if self._portal is None:
            raise Closed("the mesh is not connected", expected="`with connect_sync(...)`", next="connect first")
        return self._portal

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal("asyncio"))
            opened = self._portal.wrap_async_context_manager(self._mesh)
            opened.__enter__()
            stack.callback(opened.__exit__, None, None, None)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for subscription in tuple(self.opened):
                subscription.close()
        finally:
            self._stack.close()
            self._portal = None

    def publish(
        self,
        type: str | Typed,
        data: object = None,
        *,
        source: str,
        id: str | None = None,
        subject: str | None = None,
        time: str | None = None,
        partitionkey: str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> Receipt:
        """As `mesh.Mesh.publish`: returns once every copy is durable. While handling an event, that is its cause."""
        said: dict[str, Any] = {"source": source, "id": id, "subject": subject, "time": time}
        said |= {"partitionkey": partitionkey, "extensions": extensions}
        what = (type, data) if isinstance(type, str) else (type,)
        publish: Callable[..., Awaitable[Receipt]] = self._mesh.publish
        return self.wait(partial(_while_handling, handling.get(), partial(publish, *what, **said)))

    def subscription(
        self, name: str, *, max_in_flight: int | None = None, idle_s: float | None = None
    ) -> SyncSubscription:
        """Our team's subscription *name*; *idle_s* ends its loop once nothing came for so many seconds.

        Raises:
            ConfigError: We have no team, or it has no such subscription.
        """
        return SyncSubscription(self._mesh.subscription(name, max_in_flight=max_in_flight), self, idle_s)

    def reveal(self, event: Admitted) -> dict[str, Any]:
        """As `mesh.Mesh.reveal`."""
        return self._mesh.reveal(event)

    def wait(self, work: Callable[[], Awaitable[T]], *, undo: Callable[[T], object] = lambda _: None) -> T:
        """Run *work* on the mesh's loop and wait for it, so that whoever interrupts the waiting ends the work as well.

        Args:
            work: What to do.
            undo: On that loop, with a result that came too late for anybody to take it.
        """
        lock, done, gone = Lock(), list[T](), False

        async def hand_over() -> T:
            result = await work()
            with lock:
                done.append(result)
                if gone:
                    undo(result)
            return result

        future = self.portal.start_task_soon(hand_over)
        try:
            return _result(future)
        except BaseException:
            with lock:
                gone, late = True, tuple(done)
            future.cancel()
            for result in late:
                self.portal.call(undo, result)
            raise


def _result(future: Future[T]) -> T:
    """As `future.result()`, but that Ctrl-C ends it also where the system gave the signal to another thread.

    It may, to a process that was stopped: nothing then wakes the main thread, which raises `KeyboardInterrupt`.
    """
    while True:
        try:
            return future.result(LOOK_S)
        except TimeoutError:
            if future.done():
                return future.result()


def _hand_back(delivery: Delivery | None) -> None:
    if delivery is not None:
        delivery.hand_back()


async def _while_handling(event: Admitted | None, work: Callable[[], Awaitable[T]]) -> T:
    """*work*, as part of handling *event*: what is handled is known to a thread, and the loop is another."""
    token = handling.set(event)
    try:
        return await work()
    finally:
        handling.reset(token)


def connect_sync(
    context: Context | str | os.PathLike[str] | None = None,
    *,
    tenant: str | None = None,
    team: str | None = None,
    agent: str | None = None,
) -> SyncMesh:
    """As `mesh.connect`, for code that is not async.

    Raises:
        ConfigError: There is no such mesh, or nobody of that name in it.
    """
    return SyncMesh(connect(context, tenant=tenant, team=team, agent=agent))
