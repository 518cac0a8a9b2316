"""The dead letter: what a team's consumer could not handle, whole, with why. Pure: the edge publishes it.

Record on `dlq.<team>.<subscription>`, JSON: where the event came from (stream, sequence, subject, stream time), its
message id and `Mesh-Signature` as delivered, `reason`, `attempts`, the first and the last error, and the event in the
view the team reads. An event that failed verification is recorded without its body: nobody vouches for it.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from mesh.signing import Received

MAX_REASON_CHARS = 200  # a label in lists
MAX_ERROR_CHARS = 500  # a handler's error text; more of it helps nobody and may be an event


class DeadLetterRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One dead letter, as stored."""

    team: str
    subscription: str
    reason: str
    error_class: str = ""
    attempts: int
    stream: str
    sequence: int
    subject: str
    stream_ms: int
    dead_ms: int
    msg_id: str = ""
    signature: str = ""
    first_error: str = ""
    last_error: str = ""
    event: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def key(self) -> tuple[str, str] | None:
        """(source, id) of the event; None where the record carries none."""
        event = msgspec.json.decode(self.event)
        return (event["source"], event["id"]) if isinstance(event, dict) else None

    def encode(self) -> bytes:
        """JSON."""
        return msgspec.json.encode(self)


def subject(team: str, subscription: str) -> str:
    """Where a subscription's dead letters go."""
    return f"dlq.{team}.{subscription}"


def message_id(durable: str, received: Received) -> str:
    """The same event buried twice by one durable is one dead letter."""
    digest = sha256(f"{durable}\n{received.stream}\n{received.sequence}".encode()).digest()
    return urlsafe_b64encode(digest[:16])[:-2].decode()


def one_line(text: str, limit: int) -> str:
    """*text* as one line of at most *limit* characters, control characters as spaces."""
    shown = text[: 4 * limit]  # bounded first: the text may be anything
    return " ".join("".join(c if c.isprintable() else " " for c in shown).split())[:limit]


def record(
    received: Received,
    *,
    team: str,
    subscription: str,
    reason: str,
    error_class: str,
    first_error: str,
    last_error: str,
    attempts: int,
    dead_ms: int,
    verified: bool,
) -> DeadLetterRecord:
    """The record for one event; without its body unless it was *verified*."""
    return DeadLetterRecord(
        team=team,
        subscription=subscription,
        reason=one_line(reason, MAX_REASON_CHARS),
        error_class=one_line(error_class, MAX_REASON_CHARS),
        attempts=attempts,
        stream=received.stream,
        sequence=received.sequence,
        subject=received.subject,
        stream_ms=received.stream_ms,
        dead_ms=dead_ms,
        msg_id=received.msg_ids[0] if received.msg_ids else "",
        signature=received.signature or "",
        first_error=first_error[:MAX_ERROR_CHARS],
        last_error=last_error[:MAX_ERROR_CHARS],
        event=msgspec.Raw(received.body if verified else b"null"),
    )
