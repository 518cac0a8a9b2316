"""How a handled event ends: acked, handed back for later, or stored as a dead letter and then acked.

The order for a dead letter is store, wait for the stream's answer, ack: a crash in between buries it twice under one
message id, which the stream keeps once.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import anyio

from mesh import deadletters, logs
from mesh.deadletters import Cause, History
from mesh.delivery import ATTEMPTS_EXHAUSTED, REJECTED, Ack, DeadLetter, Retry, place, settle, worn_out
from mesh.errors import MeshError, StreamUnavailable
from mesh.redriven import Redriven
from mesh.telemetry import counter

if TYPE_CHECKING:
    from mesh.delivery import DuplicateWindow, Outcome, Waits
    from mesh.errors import VerificationError
    from mesh.feed import Pulled
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.puller import Puller
    from mesh.retry import RetryPolicy
    from mesh.signing import Received

BURY_TIMEOUT_S = 5.0
BURY_RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # between two tries to store a dead letter; the last one repeats
MAX_HISTORIES = 10_000  # events whose failures are remembered; beyond that the oldest begin anew
DELIVERIES_EXHAUSTED = "deliveries-exhausted"

ACKED = counter("mesh.inbound.acked", unit="{event}", watch="flat while verified rises: handlers hang")
_acked = ACKED.at()
RETRIED = counter("mesh.inbound.retried", unit="{event}", watch="rising: a handler, or what it calls, is failing")
DEAD_LETTERED = counter(
    "mesh.inbound.dead_lettered",
    unit="{event}",
    watch="by reason, team, subscription; rising: `mesh dlq list` says more",
)
_HTTP = re.compile("http-([1-5])[0-9]{2}").fullmatch
_KNOWN = (ATTEMPTS_EXHAUSTED, DELIVERIES_EXHAUSTED)

log = logs.get("settler")


class Settler:
    """Settles the events of one subscription."""

    def __init__(
        self,
        connection: Connection,
        *,
        team: str,
        subscription: str,
        durable: str,
        policy: RetryPolicy,
        window: DuplicateWindow,
        waits: Waits,
    ) -> None:
        self._connection = connection
        self._team = team
        self._subscription = subscription
        self._durable = durable
        self._policy = policy
        self._window = window
        self._waits = waits
        self._histories: OrderedDict[_Run, History] = OrderedDict()
        for reason in (*_KNOWN, REJECTED):  # there before the first: a rate of a series that was not there is none
            DEAD_LETTERED.at(team=team, subscription=subscription, reason=reason)

    @property
    def policy(self) -> RetryPolicy:
        """By which events are settled now."""
        return self._policy

    def follow(self, policy: RetryPolicy) -> None:
        """From now on settle as *policy* says; attempts that were made count on."""
        self._policy = policy

    def ack(self, pulled: Pulled) -> None:
        """Handled: remember it, so that it is not handled again, and never have it delivered again."""
        received = pulled.received
        self._window.add(pulled.key)
        if self._histories or self._waits.until:
            self._forget(received)
        pulled.puller.ack(received)
        _acked.value += 1

    def retry(self, pulled: Pulled, delay_s: float) -> None:
        """Hand it back; it is delivered again after *delay_s* seconds."""
        self._window.forget(pulled.key)
        pulled.puller.nak(pulled.received, delay_s)
        RETRIED.add(1)

    async def fail(self, pulled: Pulled, error: Exception) -> Outcome:
        """End it as *error* and the subscription's policy say: retry, or a dead letter. Returns which."""
        outcome = self.judge(pulled, error)
        match outcome:
            case Ack():
                self.ack(pulled)
            case Retry(delay_s=delay_s):
                self.retry(pulled, delay_s)
            case DeadLetter(reason=reason):
                await self.bury(pulled, reason, error)
        return outcome

    def judge(self, pulled: Pulled, error: Exception) -> Outcome:
        """What *error* and the subscription's policy make of it. The attempt is counted, and nothing is settled.

        An attempt is a time that a handler of this process had it. The server counts deliveries, and those include
        what was prefetched and handed back.
        """
        history = self._history(pulled.received)
        history.add(_now_ms(), type(error).__name__, _text(error))
        attempt = history.attempts
        outcome = settle(error, attempt=attempt, policy=self._policy, jitter=random.random())  # noqa: S311 - no secret
        log.warning(
            "handler_failed",
            id=pulled.event.id,
            attempt=attempt,
            error_class=type(error).__name__,
            outcome=type(outcome).__name__,
        )
        return outcome

    def worn_out(self, pulled: Pulled) -> bool:
        """Whether it was delivered so often that its handling must be what ends the processes that try.

        Deliveries after which it had to wait for a bundle or a certificate do not count: see `Waits`.
        """
        received = pulled.received
        if not worn_out(received.deliveries, self._policy):  # nearly every event: not even with all that counts
            return False
        return worn_out(self._waits.since(place(received), received.deliveries), self._policy)

    async def bury(self, pulled: Pulled, reason: str, error: BaseException | None = None) -> None:
        """Store it as a dead letter with *reason*, then ack it.

        Returns once it is stored: it stays in hand however long that takes, and is not handled again meanwhile.
        """
        try:
            await self._store_surely(pulled.received, pulled.puller, reason, error, verified=True)
        except BaseException:  # cancelled: whoever gets it next buries it, and the stream keeps one of the two
            self.retry(pulled, 0.0)
            raise
        self._window.add(pulled.key)
        self._forget(pulled.received)
        pulled.puller.ack(pulled.received)
        self._count(reason)
        log.warning("event_dead_lettered", id=pulled.event.id, attempt=pulled.event.attempt)

    async def put_back(self, received: Received, puller: Puller, code: str) -> None:
        """Store a redriven event that nobody is handed as another letter, with *code* as its reason; then ack it."""
        await self._store_surely(received, puller, code, None, verified=True)
        self._forget(received)
        puller.ack(received)
        self._count(code)
        log.warning("redriven_event_put_back", code=code, stream=received.stream, sequence=received.sequence)

    def _count(self, reason: str) -> None:
        """A handler's own reason may be any text: a metric shows that there was one."""
        if (answer := _HTTP(reason)) is not None:
            reason = f"http-{answer[1]}xx"
        elif reason not in _KNOWN:
            reason = REJECTED
        DEAD_LETTERED.add(1, team=self._team, subscription=self._subscription, reason=reason)

    async def quarantine(self, received: Received, puller: Puller, error: VerificationError) -> None:
        """Record an event that failed verification, then end its deliveries.

        Without its body; one that was redriven keeps what its letter held: it is verified before it is sent again.
        """
        was_letter = isinstance(received, Redriven)
        letter = await self._store_surely(received, puller, error.code, error, verified=was_letter)
        self._forget(received)
        puller.term(received, deadletters.term_reason(error.code, letter))

    async def _store_surely(
        self, received: Received, puller: Puller, reason: str, error: BaseException | None, *, verified: bool
    ) -> int:
        """Store the letter, however long that takes; returns its number in `DLQ`."""
        for number in itertools.count():
            try:
                return await self._store(received, reason, error, verified=verified)
            except MeshError as failure:
                log.error(
                    "dead_letter_not_stored", code=failure.code, stream=received.stream, sequence=received.sequence
                )
            puller.progress(received)
            await anyio.sleep(BURY_RETRY_S[min(number, len(BURY_RETRY_S) - 1)])
        raise AssertionError("unreachable")

    def _history(self, received: Received) -> History:
        history = self._histories.get(_run(received))
        if history is None:
            history = self._histories[_run(received)] = _begin(received)
            if len(self._histories) > MAX_HISTORIES:
                self._histories.popitem(last=False)
        return history

    def _forget(self, received: Received) -> None:
        self._histories.pop(_run(received), None)
        self._waits.forget(place(received))

    async def _store(self, received: Received, reason: str, error: BaseException | None, *, verified: bool) -> int:
        cause = Cause(reason) if error is None else Cause(reason, type(error).__name__, _text(error))
        letter = deadletters.record(
            received,
            cause,
            self._histories.get(_run(received)) or _begin(received),
            owner=(self._team, self._subscription),
            dead_ms=_now_ms(),
            verified=verified,
        )
        reply = await self._connection.request(
            deadletters.subject(self._team, self._subscription),
            letter.encode(),
            headers={
                "Nats-Msg-Id": deadletters.message_id(self._durable, received),
                "Content-Type": "application/json",
            },
            timeout_s=BURY_TIMEOUT_S,
        )
        if not (number := deadletters.stored_as(reply.data)):
            raise StreamUnavailable(
                "the dead letter stream did not take the record", expected="an acknowledgement of DLQ", next="check DLQ"
            )
        return number


_Run = tuple[str, int, str]  # stream, sequence, and the run that brought the event again


def _run(received: Received) -> _Run:
    return received.stream, received.sequence, received.redrive or received.replay


def _begin(received: Received) -> History:
    """The history of an event that this process sees for the first time."""
    return History(received.former, received.letter) if isinstance(received, Redriven) else History()


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[: deadletters.MAX_ERROR_CHARS]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
