"""Events of one durable that stand one behind another in what was read from a connection, read in one go.

A durable's events come in bursts: a hundred and more in one read, nearly all just as our publishers write them. Cut,
checked and handed on one by one, through a callback each, that was a fifth of what a consumer does for an event.

Only what `wire.event_frame` writes is taken here, whole. Anything else, whatever it is, is left to `FrameReader`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.jetstream.wire import EVENT_ID, EVENT_LINES, EVENT_SIGNATURE, EVENT_TRACE
from mesh.signing import Received
from mesh.statements import MAX_HEADER_BYTES

if TYPE_CHECKING:
    from mesh.jetstream.acks import AckSubject

_START = b"HMSG "
_END = b"\r\n\r\n"
_MAX_HEAD_BYTES = MAX_HEADER_BYTES + 2048  # line and headers: subject and reply have at most some 300 bytes each
_TOKENS = 6
_LINES = 5  # the message's own, two that are always the same, id and signature; a trace may follow
_ID_AT, _SIGNATURE_AT = len(EVENT_ID), len(EVENT_SIGNATURE) - 2  # the signature begins with its version, `1.`
_ID_LINE_CHARS = _ID_AT + 22


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
            end = find(_END, position, position + _MAX_HEAD_BYTES)
            head = data[position:end].decode("latin-1") if end > 0 else ""
            lines = head.split("\r\n")
            if len(lines) != _LINES and (len(lines) != _LINES + 1 or not lines[_LINES].startswith(EVENT_TRACE)):
                break
            if lines[1:3] != EVENT_LINES or not head.isascii():
                break
            line, id_line, signature_line = lines[0], lines[3], lines[4]
            if len(id_line) != _ID_LINE_CHARS or not id_line.startswith(EVENT_ID):
                break
            tokens = line.split(" ")
            if len(tokens) != _TOKENS or tokens[2] != sid or not signature_line.startswith(EVENT_SIGNATURE):
                break
            _, subject, _, reply, header_digits, digits = tokens
            start = position + len(line) + 2
            body = end + 4
            if header_digits != str(body - start) or not digits.isdigit():
                break
            stop = start + int(digits)
            if stop < body or data[stop : stop + 2] != b"\r\n" or (said := parse(reply)) is None:
                break
            events.append(
                Received(
                    subject, data[body:stop], (id_line[_ID_AT:],), signature_line[_SIGNATURE_AT:], stream,
                    said.sequence, said.stream_ms, said.deliveries, reply,
                )
            )  # fmt: skip
            position = stop + 2
        return position, events
