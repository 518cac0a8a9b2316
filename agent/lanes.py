"""Natural batching: a batch is whatever queued while the last one was in flight. Pure; the edge hands in the timer.

There is one lane a view, because copies of different views never share a signature. A copy that finds its lane idle
goes at once; one that finds acknowledgements outstanding waits for them, for a full batch, or for `hold_s`, whichever
comes first. So at low load nothing waits, and under load one signature covers many events.

Source: RFC 896 (Nagle) does the same with segments; the cap on the wait is ours, for a stream without a leader.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from mesh.errors import MeshError, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.jetstream.outgoing import Outgoing


class Window(Protocol):
    """The publisher, as a lane sees it."""

    @property
    def room(self) -> int:
        """Copies it would take now."""

    def submit(self, batch: list[Outgoing]) -> None:
        """Take one batch of one view, to be sealed with one signature.

        Raises:
            Overloaded: It has no room for it now.
        """


class Timer(Protocol):
    """A pending call."""

    def cancel(self) -> None:
        """Do not call."""


class Lane:
    """The queue of one view.

    Args:
        window: Where batches go.
        call_later: Seconds and a callback; the event loop's.
        batch: Copies in a full batch.
        hold_s: Seconds that a batch which is not full waits for outstanding acknowledgements.

    Attributes:
        in_flight: Copies that were submitted. Whoever hears that one is acknowledged or given up takes it off.
    """

    __slots__ = ("_batch", "_call_later", "_hold_s", "_queue", "_timer", "_window", "in_flight")

    def __init__(
        self, window: Window, call_later: Callable[[float, Callable[[], None]], Timer], *, batch: int, hold_s: float
    ) -> None:
        self._window = window
        self._call_later = call_later
        self._batch = batch
        self._hold_s = hold_s
        self._queue: deque[Outgoing] = deque()
        self._timer: Timer | None = None
        self.in_flight = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, copies: Iterable[Outgoing]) -> None:
        """Queue *copies*; `pump` sends."""
        self._queue.extend(copies)

    def close(self, error: MeshError) -> None:
        """Give up what is queued, with *error*, and put nothing off any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue, self._queue = self._queue, deque()
        self.in_flight += len(queue)
        for outgoing in queue:
            outgoing.on_done(outgoing, error)

    def pump(self, *, overdue: bool = False) -> None:
        """Send what may go now, and see to it that the rest goes in time."""
        queue = self._queue
        while queue and (overdue or not self.in_flight or len(queue) >= self._batch):
            if not self._send(min(len(queue), self._batch)):
                break
        if queue and self._timer is None:
            self._timer = self._call_later(self._hold_s, self._expire)
        elif not queue and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        self.pump(overdue=True)

    def _send(self, size: int) -> bool:
        """Submit the oldest *size* copies; False where the window has no room for even one."""
        size = min(size, self._window.room)
        if size <= 0:
            return False
        batch = [self._queue.popleft() for _ in range(size)]
        self.in_flight += size
        try:
            self._window.submit(batch)
        except Overloaded:
            self.in_flight -= size
            self._queue.extendleft(reversed(batch))
            return False
        except MeshError as error:  # the certificate ended, or another reason that is not the copies'
            for outgoing in batch:
                outgoing.on_done(outgoing, error)
        return True
