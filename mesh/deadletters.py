"""The dead letter: what a team's consumer could not handle, whole, with why. Pure: the edge publishes it.

Record on `dlq.<team>.<subscription>`, JSON: where the event came from (stream, sequence, subject, stream time), its
message id and `Mesh-Signature` as delivered, the reason, each attempt with its error, and the event in the view the
team reads, byte for byte, so that it verifies again. An event that failed verification is recorded without its body:
nobody vouches for it. One that was redriven keeps what its letter held: it is verified before it is sent again.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections import deque
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

if TYPE_CHECKING:
    from mesh.signing import Received

STREAM = "DLQ"
MAX_REASON_CHARS = 200  # a label in lists
MAX_ERROR_CHARS = 500  # a handler's error text; more of it helps nobody and may be an event
MAX_HISTORY = 20  # attempts told of: more than any policy has in a day
MAX_TOLD_CHARS = 200  # of each attempt's error: 10,000 events that fail take 40 MB at most
MAX_HEADER_CHARS = 1024  # of message id and signature: true ones are shorter; a forger's may be as long as a message
MAX_TRACE_CHARS = 256  # of traceparent and correlation: W3C wants 55, an id has at most as many
_TERM = "dlq:"

NO_BODY = msgspec.Raw(b"null")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # what a letter says may be anything, and is encoded again


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One try that failed: when (Unix milliseconds, the consumer's clock), of which class the error was, what it said.

    `error` is empty where it is what the attempt before said.
    """

    at_ms: Count
    error_class: str = ""
    error: str = ""


class DeadLetterRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One dead letter, as stored.

    Attributes:
        team, subscription: Whose.
        reason: Stable and short: `attempts-exhausted`, what `Reject` said, or the code of a failed verification.
        error_class: Of the last error.
        attempts: Times that a handler had it, as far as is known; at least as many as `history` tells of.
        stream, sequence, subject, stream_ms: Where the event lies, or lay, and since when.
        dead_ms: When it was given up, Unix milliseconds.
        msg_id, signature: As delivered, as far as `MAX_HEADER_CHARS`.
        first_error, last_error: What its handling said, class included.
        first_ms, last_ms: When the first and the last attempt failed, Unix milliseconds; 0 where nobody knows.
        history: The last attempts, oldest first.
        traceparent, correlation: Of the event.
        replay: The run of `mesh replay` that brought it; empty for others.
        redrive: The run of `mesh dlq redrive` that brought it; empty for others.
        redriven: How often it had been redriven before it became this letter.
        former: The number in `DLQ` of the letter that was redriven; 0 for a first one.
        event: As delivered; null where nobody vouches for it.
    """

    team: str
    subscription: str
    reason: str
    error_class: str = ""
    attempts: Count
    stream: str
    sequence: Count
    subject: str
    stream_ms: Count
    dead_ms: Count
    msg_id: str = ""
    signature: str = ""
    first_error: str = ""
    last_error: str = ""
    first_ms: Count = 0
    last_ms: Count = 0
    history: tuple[Attempt, ...] = ()
    traceparent: str = ""
    correlation: str = ""
    replay: str = ""
    redrive: str = ""
    redriven: Count = 0
    former: Count = 0
    event: msgspec.Raw = NO_BODY

    @property
    def fields(self) -> dict[str, Any] | None:
        """The event's attributes and data; None where the record carries none."""
        event = msgspec.json.decode(self.event)
        return event if isinstance(event, dict) else None

    @property
    def key(self) -> tuple[str, str] | None:
        """(source, id) of the event; None where the record carries none."""
        event = self.fields
        return None if event is None else (event["source"], event["id"])

    @property
    def has_event(self) -> bool:
        """Whether the event is in it: else there is nothing to redrive."""
        return bytes(self.event) != bytes(NO_BODY)

    def encode(self) -> bytes:
        """JSON."""
        return msgspec.json.encode(self)


def read(data: bytes) -> DeadLetterRecord:
    """The record of one stored message, of this version or an older one.

    Raises:
        ValueError: It is none.
    """
    try:
        return msgspec.json.decode(data, type=DeadLetterRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no dead letter: {type(error).__name__}") from None


def subject(team: str, subscription: str) -> str:
    """Where a subscription's dead letters go."""
    return f"dlq.{team}.{subscription}"


def message_id(durable: str, received: Received) -> str:
    """The same event buried twice by one durable is one dead letter; brought again by a run it may become another.

    Args:
        durable: `<team>--<subscription>`, without what follows for a slot or a run.
        received: As delivered.
    """
    place = f"{durable}\n{received.stream}\n{received.sequence}"
    run = received.redrive or received.replay
    digest = sha256((f"{place}\n{run}" if run else place).encode()).digest()
    return urlsafe_b64encode(digest[:16])[:-2].decode()


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    error: msgspec.Raw | None = None


def stored_as(ack: bytes) -> int:
    """The number that `DLQ` gave a letter, by its acknowledgement; 0 where it did not take it."""
    try:
        said = msgspec.json.decode(ack, type=_Ack)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 0
    return said.seq if said.error is None and said.stream == STREAM else 0


def term_reason(code: str, letter: int) -> str:
    """What a delivery is terminated with once its letter is stored: whoever reads the server's advisory finds it.

    Args:
        code: Why.
        letter: The letter's number in `DLQ`.
    """
    return f"{code} {_TERM}{letter}"


def letter_of(reason: str) -> int:
    """The inverse: the number of the letter that was stored before a delivery was terminated; 0 where none was."""
    _, found, number = reason.rpartition(f" {_TERM}")
    return int(number) if found and number.isascii() and number.isdigit() and len(number) < 20 else 0  # noqa: PLR2004 - 64 bit


def one_line(text: str, limit: int) -> str:
    """*text* as one line of at most *limit* characters, control characters as spaces."""
    shown = text[: 4 * limit]  # bounded first: the text may be anything
    return " ".join("".join(c if c.isprintable() else " " for c in shown).split())[:limit]


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an event is given up: `reason` as in the record, and the last error's class and text where there was one."""

    reason: str
    error_class: str = ""
    error: str = ""


class History:
    """What became of one event so far: the attempts that failed, of which the last are told.

    Args:
        former: The letter that was redriven, where it came so: what began there goes on here.
        letter: That letter's number in `DLQ`.
    """

    __slots__ = ("_first", "_last", "_said", "attempts", "former", "letter")

    def __init__(self, former: DeadLetterRecord | None = None, letter: int = 0) -> None:
        self.former = former
        self.letter = letter
        self.attempts = 0
        self._first = (0, "") if former is None else (former.first_ms, former.first_error)
        self._last = deque(() if former is None else former.history, maxlen=MAX_HISTORY)
        self._said = ""

    def add(self, at_ms: int, error_class: str, error: str) -> None:
        """One more attempt failed, at *at_ms* (Unix milliseconds)."""
        self.attempts += 1
        if self._first == (0, ""):
            self._first = at_ms, error[:MAX_ERROR_CHARS]
        said = error[:MAX_TOLD_CHARS]
        self._last.append(Attempt(at_ms, one_line(error_class, MAX_REASON_CHARS), "" if said == self._said else said))
        self._said = said

    @property
    def first(self) -> tuple[int, str]:
        """When the first attempt of all failed, and what it said; 0 and nothing before it."""
        return self._first

    @property
    def redriven(self) -> int:
        """How often it was redriven."""
        return 0 if self.former is None else self.former.redriven + 1

    @property
    def last_ms(self) -> int:
        """When the last attempt failed; 0 before the first."""
        return self._last[-1].at_ms if self.attempts else 0

    @property
    def told(self) -> tuple[Attempt, ...]:
        """The last attempts, oldest first."""
        return tuple(self._last)


def record(
    received: Received, cause: Cause, history: History, *, owner: tuple[str, str], dead_ms: int, verified: bool
) -> DeadLetterRecord:
    """The record for one event.

    Args:
        received: As delivered.
        cause: Why it is given up.
        history: Of the event, since it was delivered or redriven.
        owner: Team and subscription.
        dead_ms: Unix milliseconds of now.
        verified: Or kept by a letter before: without that its body is left out.
    """
    first_ms, first_error = history.first
    fields = _fields(received.body) if verified else {}
    return DeadLetterRecord(
        team=owner[0],
        subscription=owner[1],
        reason=one_line(cause.reason, MAX_REASON_CHARS),
        error_class=one_line(cause.error_class, MAX_REASON_CHARS),
        attempts=history.attempts or received.deliveries,
        stream=received.stream,
        sequence=received.sequence,
        subject=received.subject,
        stream_ms=received.stream_ms,
        dead_ms=dead_ms,
        msg_id=received.msg_ids[0][:MAX_HEADER_CHARS] if received.msg_ids else "",
        signature=(received.signature or "")[:MAX_HEADER_CHARS],
        first_error=first_error or cause.error[:MAX_ERROR_CHARS],
        last_error=cause.error[:MAX_ERROR_CHARS],
        first_ms=first_ms,
        last_ms=history.last_ms,
        history=history.told,
        traceparent=_text(fields.get("traceparent")),
        correlation=_text(fields.get("correlationid")),
        replay=received.replay,
        redrive=received.redrive,
        redriven=history.redriven,
        former=history.letter,
        event=msgspec.Raw(received.body) if verified else NO_BODY,
    )


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # a letter's event that does not verify
        return {}
    return fields if isinstance(fields, dict) else {}


def _text(value: object) -> str:
    return value[:MAX_TRACE_CHARS] if isinstance(value, str) else ""
