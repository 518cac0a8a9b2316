"""What becomes of an event that no handler gets: delivered again later, settled, or a dead letter.

Nothing of that is lost without a word: what cannot be settled is handed back, and a task of ours that dies ends the
feed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from mesh import logs
from mesh.delivery import Waits, place
from mesh.errors import BadSignature, KeyRevoked, MeshError, UnknownKey, VerificationError
from mesh.telemetry import counter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from anyio.abc import TaskGroup

    from mesh.jetstream.puller import Puller
    from mesh.signing import Received

FAILED_RETRY_S = 1.0  # what was to end it failed, or nobody was there to do it

REJECTED = counter(
    "mesh.inbound.rejected",
    unit="{event}",
    watch="with code=unknown-key: agents run an old bundle; stale-trust: no trust statements arrive; else: an attack",
)
for _error in (BadSignature, UnknownKey, KeyRevoked):
    REJECTED.at(code=_error.code)  # there before the first: a rate of a series that was not there is none

log = logs.get("feed")

_Why = TypeVar("_Why")


class Unhandled:
    """Ends for one feed what it hands nobody, and does its work beside.

    Attributes:
        waits: Which deliveries no handler saw.
        on_rejected: Called with what failed verification.
        on_unhandled: Called with a redriven event that nobody is handed, and the code that says why.
    """

    def __init__(self) -> None:
        self._tasks: TaskGroup | None = None
        self._early: list[Callable[[], Coroutine[Any, Any, None]]] = []  # asked for before `start`
        self.waits = Waits()
        self.on_rejected: Callable[[Received, Puller, VerificationError], Awaitable[None]] = _hand_back
        self.on_unhandled: Callable[[Received, Puller, str], Awaitable[None]] = _hand_back

    def start(self, tasks: TaskGroup) -> None:
        """Work in *tasks*; what was asked for before begins now."""
        self._tasks = tasks
        early, self._early = self._early, []
        for work in early:
            tasks.start_soon(work)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do *work*, at the earliest once we were started; what it raises ends the feed: a line would stand still."""
        if self._tasks is None:
            self._early.append(work)
        else:
            self._tasks.start_soon(work)

    def later(self, received: Received, puller: Puller, delay_s: float) -> None:
        """Have it delivered again: something is lacking to judge it. No handler saw it, and `waits` remembers that."""
        self.waits.add(place(received), received.deliveries)
        puller.nak(received, delay_s)

    def done(self, received: Received, puller: Puller) -> None:
        """It is settled without a handler."""
        self.waits.forget(place(received))
        puller.ack(received)

    def pass_over(self, received: Received, puller: Puller, code: str) -> None:
        """Nobody is handed it. It is settled; one that was redriven is a letter again first, or it would be lost."""
        if received.redrive:
            self._settle(self.on_unhandled, received, puller, code)
        else:
            self.done(received, puller)

    def reject(self, received: Received, puller: Puller, error: VerificationError) -> None:
        """It failed verification."""
        REJECTED.add(1, code=error.code)
        log.error(
            "event_rejected", code=error.code, step=error.step, stream=received.stream, sequence=received.sequence
        )
        self._settle(self.on_rejected, received, puller, error)

    def _settle(
        self, by: Callable[[Received, Puller, _Why], Awaitable[None]], received: Received, puller: Puller, why: _Why
    ) -> None:
        """Have *by* end it; where that fails it is handed back."""

        async def guarded() -> None:
            try:
                await by(received, puller, why)
            except MeshError as error:
                log.warning("feed_work_failed", code=error.code, error=str(error))
                await _hand_back(received, puller, why)

        self.spawn(guarded)


async def _hand_back(received: Received, puller: Puller, _why: object) -> None:
    puller.nak(received, FAILED_RETRY_S)
