"""Events of one durable that stand one behind another in what was read from a connection, read in one go.

A durable's events come in bursts: a hundred and more in one read, nearly all just as our publishers write them. Cut,
checked and handed on one by one, through a callback each, that was a fifth of what a consumer does for an event.

Only what `wire.event_frames` writes is taken here, whole. Anything else, whatever it is, is left to `FrameReader`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mesh import native
from mesh.jetstream.wire import EVENT_SIGNATURE, EVENT_START, EVENT_TRACE, MAX_FRAME_BYTES, MAX_LINE_BYTES
from mesh.signing import Received

if TYPE_CHECKING:
    from mesh.jetstream.acks import AckSubject

_CRLF = b"\r\n"
_BLOCK = re.compile(
    rb"%b([!-~]{22})%b(1\.[!-~]*)\r\n(?:%b[ -~]*\r\n)?\r\n"
    % tuple(re.escape(part.encode()) for part in (EVENT_START, EVENT_SIGNATURE, EVENT_TRACE))
)


@native.twin
class DeliveryRun:
    """Reads deliveries of one durable.

    Args:
        own: Knows the ack subjects of the durable.
        stream: Of the durable.
        sid: Of the subscription that its events come by.
    """

    __slots__ = ("_line", "_own", "_stream")

    def __init__(self, own: AckSubject, stream: str, sid: int) -> None:
        self._own = own
        self._stream = stream
        self._line = re.compile(rb"HMSG ([!-~]+) %d ([!-~]+) ([0-9]{1,10}) ([0-9]{1,10})\r\n" % sid)

    def read(self, data: bytes, position: int) -> tuple[int, list[Received]]:
        """The events that stand whole at *position*, in order, and where the last of them ends."""
        events: list[Received] = []
        parse, stream, match = self._own.parse, self._stream, self._line.match
        while (line := match(data, position, position + MAX_LINE_BYTES)) is not None:
            subject, back, header_digits, digits = line.groups()
            start = line.end()
            body, stop = start + int(header_digits), start + int(digits)
            if not body <= stop <= start + MAX_FRAME_BYTES or data[stop : stop + 2] != _CRLF:
                break
            reply = back.decode()
            if (headers := _BLOCK.fullmatch(data, start, body)) is None or (said := parse(reply)) is None:
                break
            msg_id, signature = headers.groups()
            events.append(
                Received(
                    subject.decode(), data[body:stop], (msg_id.decode(),), signature.decode(), stream,
                    said.sequence, said.stream_ms, said.deliveries, reply,
                )
            )  # fmt: skip
            position = stop + 2
        return position, events


if native.compiled is not None:
    native.compiled.deliveries_with(Received)
