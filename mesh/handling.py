"""One event in a handler's hands, and how it leaves them."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

import msgspec

from mesh import logs, spans
from mesh.delivery import Ack, DeadLetter, Reject, Retry, RetryLater
from mesh.tracing import TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.context import Context

    from mesh.delivery import Outcome
    from mesh.feed import Pulled
    from mesh.inbound import Admitted
    from mesh.protection import Pass
    from mesh.subscription import Subscription

_VERBS: Final = {Ack: "ack", Retry: "nak", DeadLetter: "dead_letter"}  # of the spans

handling: ContextVar[Admitted | None] = ContextVar("mesh_handling", default=None)


def _trace() -> str | None:
    """For the log: the trace of the event that is handled."""
    event = handling.get()
    return None if event is None else event.fields.get(TRACEPARENT)


logs.look_for_trace(_trace)


class Delivery(msgspec.Struct, eq=False):
    """One event in a handler's hands.

    Settle it once, by `ack`, `retry` or `reject`; or use it as `async with delivery as event:`, which acks on a clean
    end and settles an exception by the subscription's policy.
    """

    _pulled: Pulled
    _owner: Subscription
    _leave: Pass
    _settled: bool = False
    _token: Token[Admitted | None] | None = None
    _below: Context | None = None

    @property
    def event(self) -> Admitted:
        """The event, in the view the team reads."""
        return self._pulled.event

    @property
    def place(self) -> tuple[str, str]:
        """The team, and the durable that the subscription is known by."""
        return self._owner.team, self._owner.address.durable

    @property
    def size(self) -> int:
        """Bytes of the event as it is stored."""
        return len(self._pulled.received.body)

    def ack(self) -> None:
        """Handled: never deliver it again."""
        if not self._settled:
            self._settled = True
            self._owner.acked(self, self._pulled, self._leave)
            if spans.tracer is not None:
                spans.tracer.settled("ack", self.event, self.place, self._below)

    def retry(self, delay_s: float = 0.0) -> None:
        """Not now: deliver it again after *delay_s* seconds."""
        if self._first():
            self._owner.settler.retry(self._pulled, delay_s)
            self._owner.protection.answered(self._leave, RetryLater(delay_s))
            self._owner.protection.settled(self._leave, Retry(delay_s))
            self._handed_back()

    async def reject(self, reason: str) -> None:
        """Never again: store it as a dead letter with *reason*, then ack it."""
        if self._first():
            await self._settle(Reject(reason), self._bury(reason))

    async def fail(self, error: Exception) -> None:
        """Settle it by what its handling raised."""
        if self._first():
            await self._settle(error, self._owner.settler.fail(self._pulled, error))

    def hand_back(self) -> None:
        """Not handled after all: deliver it again at once. What leaving the subscription does with unsettled events."""
        if self._first():
            self._owner.feed.hand_back(self._pulled)
            self._owner.protection.dropped(self._leave)
            self._handed_back()

    def progress(self) -> None:
        """Still working: start the redelivery clock again."""
        if not self._settled:
            self._pulled.puller.progress(self._pulled.received)

    def settle_below(self, span: Context | None) -> None:
        """Have the span of its settlement below that one; None: below whatever is current then."""
        self._below = span

    async def _bury(self, reason: str) -> Outcome:
        await self._owner.settler.bury(self._pulled, reason)
        return DeadLetter(reason, "")

    async def _settle(self, error: Exception, settling: Awaitable[Outcome]) -> None:
        protection, began_ns = self._owner.protection, time.time_ns()
        protection.answered(self._leave, error)
        try:
            outcome = await settling
        except BaseException as failure:
            protection.dropped(self._leave)
            if spans.tracer is not None:
                spans.tracer.settled("nak", self.event, self.place, self._below, began_ns, failure)
            raise
        protection.settled(self._leave, outcome)
        if spans.tracer is not None:
            spans.tracer.settled(_VERBS[type(outcome)], self.event, self.place, self._below, began_ns)

    def _handed_back(self) -> None:
        if spans.tracer is not None:
            spans.tracer.settled("nak", self.event, self.place, self._below)

    def _first(self) -> bool:
        if self._settled:
            return False
        self._settled = True
        self._owner.close_delivery(self)
        return True

    async def __aenter__(self) -> Admitted:
        self._token = handling.set(self.event)
        if spans.tracer is not None:
            self._below = spans.tracer.enter(id(self), self.event, *self.place)
        return self.event

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Cancellation is not a verdict: the event is handed back, and delivered again."""
        if spans.tracer is not None:
            spans.tracer.leave(id(self), error)
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
