"""Events of one durable that stand one behind another in what was read from a connection, read in one go.

A durable's events come in bursts: a hundred and more in one read, nearly all just as our publishers write them. Cut,
checked and handed on one by one, through a callback each, that was a fifth of what a consumer does for an event.

Only what `wire.event_frames` writes is taken here, whole. Anything else, whatever it is, is left to `FrameReader`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.jetstream.wire import EVENT_SIGNATURE, EVENT_START, EVENT_TRACE, MAX_LINE_BYTES
from mesh.signing import Received

if TYPE_CHECKING:
    from mesh.jetstream.acks import AckSubject

_START = b"HMSG "
_TOKENS = 6
_CRLF = b"\r\n"
_ID_AT = len(EVENT_START)
_ID_END = _ID_AT + 22
_VERSION_AT = _ID_END + len(EVENT_SIGNATURE)
_SIGNATURE = f"{EVENT_SIGNATURE}1."  # with its version, so that no space stands before it
_DIGITS = 10  # of a length; one with more is no frame


class DeliveryRun:
    """Reads deliveries of one durable.

    Args:
        own: Knows the ack subjects of the durable.
        stream: Of the durable.
        sid: Of the subscription that its events come by.
    """

    __slots__ = ("_own", "_sid", "_stream")

    def __init__(self, own: AckSubject, stream: str, sid: int) -> None:
        self._own = own
        self._stream = stream
        self._sid = str(sid)

    def read(self, data: bytes, position: int) -> tuple[int, list[Received]]:
        """The events that stand whole at *position*, in order, and where the last of them ends."""
        events: list[Received] = []
        parse, sid, stream, find = self._own.parse, self._sid, self._stream, data.find
        while data.startswith(_START, position):
            end = find(_CRLF, position, position + MAX_LINE_BYTES)
            line = data[position:end].decode("latin-1") if end > 0 else ""
            tokens = line.split(" ")
            if len(tokens) != _TOKENS or tokens[2] != sid or not line.isascii():
                break
            _, subject, _, reply, header_digits, digits = tokens
            if not (header_digits.isdigit() and digits.isdigit()) or max(len(header_digits), len(digits)) > _DIGITS:
                break
            start = end + 2
            body, stop = start + int(header_digits), start + int(digits)
            if stop < body or data[stop : stop + 2] != _CRLF or (found := _headers(data[start:body])) is None:
                break
            if (said := parse(reply)) is None:
                break
            msg_id, signature = found
            events.append(
                Received(
                    subject, data[body:stop], (msg_id,), signature, stream,
                    said.sequence, said.stream_ms, said.deliveries, reply,
                )
            )  # fmt: skip
            position = stop + 2
        return position, events


def _headers(block: bytes) -> tuple[str, str] | None:
    """Message id and signature of a header block such as `event_frames` writes; None for any other."""
    head = block.decode("latin-1")
    if not (head.startswith(EVENT_START) and head.startswith(_SIGNATURE, _ID_END) and head.endswith("\r\n\r\n")):
        return None
    msg_id, signature = head[_ID_AT:_ID_END], head[_VERSION_AT:-4]
    if "\r" in signature:
        signature, _, trace = signature.partition("\r\n")
        if not trace.startswith(EVENT_TRACE) or "\r" in trace:
            return None
    if not head.isascii() or "\r" in msg_id or msg_id.startswith(" "):
        return None
    return msg_id, signature
