"""What `mesh dlq redrive` sends: a dead letter on its way back to the subscription that buried it. Pure.

The control plane writes it to `redrive.<team>.<subscription>`, in stream `REDRIVE`. The subscription pulls it by a
second durable, `<team>--<subscription>--redrive`, and `unwrap` makes of it the delivery that it once was: origin
subject, message id, signature, body and stream time. So it passes V1 to V9 as on its first day, or fails them.
"""

from __future__ import annotations

import msgspec

from mesh.deadletters import NO_BODY, DeadLetterRecord, read
from mesh.errors import BadEnvelope
from mesh.signing import Received


class Redriven(Received, frozen=True, gc=False):
    """A redriven event as `Received`: `reply` and `deliveries` are of the durable on `REDRIVE`, the rest of its origin.

    Attributes:
        letter: The number in `DLQ` of the letter that it was.
        former: That letter, without the event.
    """

    letter: int = 0
    former: DeadLetterRecord | None = None


class _Wrapped(msgspec.Struct, frozen=True):
    """As stored."""

    run: str
    letter: int
    record: msgspec.Raw


def subject(team: str, subscription: str) -> str:
    """Where a subscription's redriven letters go."""
    return f"redrive.{team}.{subscription}"


def wrap(run: str, letter: int, record: bytes) -> bytes:
    """A message for `REDRIVE`.

    Args:
        run: Of `mesh dlq redrive`.
        letter: The letter's number in `DLQ`.
        record: The letter, as stored.
    """
    return msgspec.json.encode(_Wrapped(run, letter, msgspec.Raw(record)))


def unwrap(received: Received) -> Redriven:
    """The delivery that was once given up.

    Args:
        received: As pulled from `REDRIVE`.

    Returns:
        It as it came from its own stream, with `redrive` naming the run; nothing in it is believed yet.

    Raises:
        BadEnvelope: It is no redriven letter, or one without its event.
    """
    try:
        wrapped = msgspec.json.decode(received.body, type=_Wrapped)
        letter = read(bytes(wrapped.record))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise _malformed(received, "no redriven letter") from error
    if not wrapped.run or not letter.has_event:
        raise _malformed(received, "a redriven letter without its run or its event")
    return Redriven(
        subject=letter.subject,
        body=bytes(letter.event),
        msg_ids=(letter.msg_id,) if letter.msg_id else (),
        signature=letter.signature or None,
        stream=letter.stream,
        sequence=letter.sequence,
        stream_ms=letter.stream_ms,
        deliveries=received.deliveries,
        reply=received.reply,
        redrive=wrapped.run,
        letter=wrapped.letter,
        former=msgspec.structs.replace(letter, event=NO_BODY),
    )


def _malformed(received: Received, what: str) -> BadEnvelope:
    return BadEnvelope(f"not an event of the mesh: {what}", stream=received.stream, sequence=received.sequence)
