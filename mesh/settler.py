"""How a handled event ends: acked, handed back for later, or stored as a dead letter and then acked.

The order for a dead letter is store, wait for the stream's answer, ack: a crash in between buries it twice under one
message id, which the stream keeps once.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import msgspec

from mesh import deadletters, logs
from mesh.delivery import Ack, DeadLetter, Retry, settle
from mesh.errors import MeshError, StreamUnavailable
from mesh.telemetry import counter

if TYPE_CHECKING:
    from mesh.delivery import DuplicateWindow
    from mesh.errors import VerificationError
    from mesh.feed import Pulled
    from mesh.jetstream.connection import Connection
    from mesh.jetstream.puller import Puller
    from mesh.retry import RetryPolicy
    from mesh.signing import Received

BURY_TIMEOUT_S = 5.0
BURY_RETRY_S = 5.0  # an event whose dead letter could not be stored comes again after this

ACKED = counter("mesh.inbound.acked", unit="{event}", watch="flat while verified rises: handlers hang")
RETRIED = counter("mesh.inbound.retried", unit="{event}", watch="rising: a handler, or what it calls, is failing")
DEAD_LETTERED = counter("mesh.inbound.dead_lettered", unit="{event}", watch="rising: look at the DLQ stream")

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
    ) -> None:
        self._connection = connection
        self._team = team
        self._subscription = subscription
        self._durable = durable
        self._policy = policy
        self._window = window
        self._first_errors: dict[tuple[str, int], str] = {}

    def ack(self, pulled: Pulled) -> None:
        """Handled: remember it, so that it is not handled again, and never have it delivered again."""
        self._window.add(pulled.event.key)
        self._first_errors.pop(_place(pulled.received), None)
        pulled.puller.ack(pulled.received)
        ACKED.add(1)

    def retry(self, pulled: Pulled, delay_s: float) -> None:
        """Hand it back; it is delivered again after *delay_s* seconds."""
        self._window.forget(pulled.event.key)
        pulled.puller.nak(pulled.received, delay_s)
        RETRIED.add(1)

    async def fail(self, pulled: Pulled, error: Exception) -> None:
        """End it as *error* and the subscription's policy say: retry, or a dead letter."""
        attempt = pulled.event.attempt
        outcome = settle(error, attempt=attempt, policy=self._policy, jitter=random.random())  # noqa: S311 - no secret
        log.warning(
            "handler_failed",
            id=pulled.event.id,
            attempt=attempt,
            error_class=type(error).__name__,
            outcome=type(outcome).__name__,
        )
        self._first_errors.setdefault(_place(pulled.received), _text(error))
        match outcome:
            case Ack():
                self.ack(pulled)
            case Retry(delay_s=delay_s):
                self.retry(pulled, delay_s)
            case DeadLetter(reason=reason):
                await self.bury(pulled, reason, error)

    async def bury(self, pulled: Pulled, reason: str, error: BaseException | None = None) -> None:
        """Store it as a dead letter with *reason*, then ack it; where it cannot be stored it is retried."""
        try:
            await self._store(pulled.received, reason, error, verified=True)
        except MeshError as failure:
            log.error("dead_letter_not_stored", code=failure.code, id=pulled.event.id)
            self.retry(pulled, BURY_RETRY_S)
            return
        except BaseException:  # cancelled: whoever gets it next buries it, and the stream keeps one of the two
            self.retry(pulled, 0.0)
            raise
        self._window.add(pulled.event.key)
        self._first_errors.pop(_place(pulled.received), None)
        pulled.puller.ack(pulled.received)
        DEAD_LETTERED.add(1)
        log.warning("event_dead_lettered", id=pulled.event.id, attempt=pulled.event.attempt)

    async def quarantine(self, received: Received, puller: Puller, error: VerificationError) -> None:
        """Record an event that failed verification, without its body, then end its deliveries."""
        try:
            await self._store(received, error.code, error, verified=False)
        except MeshError as failure:
            log.error("quarantine_not_stored", code=failure.code, stream=received.stream, sequence=received.sequence)
            puller.nak(received, BURY_RETRY_S)
            return
        puller.term(received, error.code)

    async def _store(self, received: Received, reason: str, error: BaseException | None, *, verified: bool) -> None:
        text = _text(error) if error is not None else ""
        letter = deadletters.record(
            received,
            team=self._team,
            subscription=self._subscription,
            reason=reason,
            error_class=type(error).__name__ if error is not None else "",
            first_error=self._first_errors.get(_place(received), text),
            last_error=text,
            dead_ms=time.time_ns() // 1_000_000,
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
        if not _stored(reply.data):
            raise StreamUnavailable(
                "the dead letter stream did not take the record", expected="an acknowledgement of DLQ", next="check DLQ"
            )


class _Ack(msgspec.Struct):
    stream: str = ""
    error: msgspec.Raw | None = None


def _stored(data: bytes) -> bool:
    try:
        ack = msgspec.json.decode(data, type=_Ack)
    except msgspec.DecodeError:
        return False
    return ack.error is None and ack.stream == "DLQ"


def _place(received: Received) -> tuple[str, int]:
    return received.stream, received.sequence


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
