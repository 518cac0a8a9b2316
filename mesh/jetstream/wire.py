"""The bytes between us and a NATS server: frames out, frames in, and what JetStream writes into them.

Rules of this file:
- No I/O and no nats-py. What comes in is untrusted: a publisher chooses subject, reply, headers and body.
- A frame is cut at single spaces and CRLF, as the server writes it, and at nothing else. nats-py cuts at any ASCII
  whitespace, so a subject with a vertical tab (which a server accepts and stores) moves its other arguments by one.
- What goes out cannot carry a CR or LF that we did not put there.

Source: NATS client protocol; ADR-4 (headers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from mesh import native
from mesh.errors import BadHeader, BadSubject

if TYPE_CHECKING:
    from mesh.jetstream.outgoing import Outgoing

MAX_LINE_BYTES = 64 * 1024  # a control line; INFO of a large cluster takes a few KiB, anything longer is no NATS server
MAX_FRAME_BYTES = 64 * 1024 * 1024  # the server's own ceiling for max_payload

_CRLF = b"\r\n"
_HM = b"HM"  # how message lines begin
_H = _HM[0]
_VERSION = b"NATS/1.0"
_STARTS = (b"NATS/1.0\r\n", b"NATS/1.0 ")
_SUBJECT = re.compile(r"[!-~]+")  # one subject on the wire: printable ASCII, no space
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 token
_ID_LINE = b"\r\nNats-Msg-Id:"
_SIGNATURE_LINE = b"\r\nMesh-Signature:"
EVENT_START = "NATS/1.0\r\nContent-Type: application/cloudevents+json\r\nNats-Msg-Id: "  # of our events' headers,
EVENT_SIGNATURE = "\r\nMesh-Signature: "  # which go on so
EVENT_TRACE = "traceparent: "  # and end with this line, where there is a trace
_EVENT_START = EVENT_START.encode()
_SIGNATURE_START = EVENT_SIGNATURE.encode()
_ID_AT = len(_EVENT_START)
_ID_END = _ID_AT + 22
_SIGNATURE_AT = _ID_END + len(_SIGNATURE_START)
_BETWEEN_ACKS = " 4\r\n+ACK\r\nPUB "


class WireError(ValueError):
    """The server sent what is no NATS frame. The connection cannot go on; a new one can."""


# --- in: frames ------------------------------------------------------------------------------------------------------

Deliver = Callable[[int, bytes, bytes, "bytes | None", bytes], None]
"""`deliver(sid, subject, reply, headers, data)`; `headers` is the raw block, None for a MSG. It must not raise."""


Run = Callable[[bytes, int], int]
"""`run(data, position)`: take the whole messages that stand at *position*, if they are of a kind that many are read of
at once, and say where they end; *position* itself for all others. It must not raise."""


class FrameReader:
    """Cuts a byte stream into frames: messages go to `deliver` at once, the rare control lines are returned.

    Args:
        deliver: Gets each message.
        run: Gets the first look at messages.
    """

    def __init__(self, deliver: Deliver, run: Run = lambda _data, position: position) -> None:
        self._deliver = deliver
        self._run = run
        self._chunks: list[bytes] = []
        self._held = 0  # bytes in _chunks
        self._need = 0  # bytes the frame at the front needs at least; below it there is nothing to look at

    def feed(self, data: bytes) -> list[bytes]:
        """Take *data*, hand on every message it completes, and return the control lines without their CRLF.

        Raises:
            WireError: What came is no frame. The reader is then useless.
        """
        if self._chunks:
            self._chunks.append(data)
            self._held += len(data)
            if self._held < self._need:
                return []
            data = b"".join(self._chunks)
            self._chunks = []
        lines: list[bytes] = []
        position = self._cut(data, lines)
        if position < len(data):
            self._chunks = [data[position:]]
            self._held = len(data) - position
        return lines

    def _cut(self, data: bytes, lines: list[bytes]) -> int:
        position, size, run, deliver = 0, len(data), self._run, self._deliver
        while position < size:
            first = data[position]
            if first in _HM and (behind := run(data, position)) > position:
                position = behind
                continue
            end = data.find(_CRLF, position, position + MAX_LINE_BYTES)
            if end < 0:
                if size - position >= MAX_LINE_BYTES:
                    raise WireError(f"a line of more than {MAX_LINE_BYTES} bytes")
                self._need = size - position + 1
                break
            if first not in _HM:
                lines.append(data[position:end])
                position = end + 2
                continue
            subject, sid, reply, header_size, frame_size = _message(data[position:end].split(b" "))
            start = end + 2
            stop = start + frame_size
            if size < stop + 2:
                self._need = stop + 2 - position
                break
            if data[stop : stop + 2] != _CRLF:
                raise WireError("a message that does not end where it says")
            body = start + header_size
            deliver(sid, subject, reply, data[start:body] if first == _H else None, data[body:stop])
            position = stop + 2
        return position


def _message(line: list[bytes]) -> tuple[bytes, int, bytes, int, int]:
    """What a message line says: subject, subscription, reply (empty for none), bytes of headers, and of the whole."""
    match line:
        case [b"HMSG", subject, sid, reply, header_digits, digits]:
            header_size = _size(header_digits)
        case [b"HMSG", subject, sid, header_digits, digits]:
            reply, header_size = b"", _size(header_digits)
        case [b"MSG", subject, sid, reply, digits]:
            header_size = 0
        case [b"MSG", subject, sid, digits]:
            reply, header_size = b"", 0
        case _:
            raise WireError("a malformed message line")
    size = _size(digits)
    if header_size > size:
        raise WireError("a message whose headers are longer than the whole")
    return subject, _size(sid), reply, header_size, size


@lru_cache(4096)  # a subscription id is in every line, and events of a kind differ little in size
def _size(text: bytes) -> int:
    if not text.isdigit() or len(text) > 10 or (number := int(text)) > MAX_FRAME_BYTES:  # noqa: PLR2004 - digits
        raise WireError("a number that is none, or too large")
    return number


def headers_sound(block: bytes) -> bool:
    """Whether a header block has the shape every reader may rely on: its first line, its end, and valid UTF-8.

    A server passes on and stores blocks that have none of it; nats-py 2.16 stops reading at the first one.
    """
    if not block.startswith(_STARTS) or not block.endswith(b"\r\n\r\n"):
        return False
    if block.isascii():
        return True
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- in: headers and statuses ----------------------------------------------------------------------------------------


class Status(NamedTuple):
    """A status line of the server, `NATS/1.0 <code> <text>`."""

    code: int
    text: str


def status_of(block: bytes | None) -> Status | None:
    """The inline status of a sound header block; an application's header named `Status` is none."""
    if block is None or block[8:9] != b" " or not block[9:12].isdigit():
        return None
    line = block[9 : block.index(_CRLF)]
    return Status(int(line[:3]), line[3:].decode().strip())


def parse_headers(block: bytes | None) -> dict[str, str]:
    """The headers of a sound block, the last of equal names; the status line is left out."""
    if block is None:
        return {}
    pairs = (line.partition(":") for line in block.decode().split("\r\n")[1:])
    return {name: value.strip() for name, colon, value in pairs if colon}


def event_headers(block: bytes | None) -> tuple[tuple[str, ...], str | None]:
    """Every `Nats-Msg-Id` and the `Mesh-Signature` of a sound header block.

    Signatures given twice come joined by a comma, which is outside the grammar of one, so that V1 refuses them.
    """
    if block is None:
        return (), None
    if block.startswith(_EVENT_START) and block.find(_CRLF, _ID_AT) == _ID_END:  # as `event_frames` does: each once
        end = block.find(_CRLF, _SIGNATURE_AT)
        lone = block.find(_ID_LINE, _ID_END) < 0 and block.find(_SIGNATURE_LINE, end) < 0
        if lone and block.startswith(_SIGNATURE_START, _ID_END):
            signature = block[_SIGNATURE_AT:end].lstrip(b" ").decode()
            return (block[_ID_AT:_ID_END].lstrip(b" ").decode(),), signature
    signatures = _values(block, _SIGNATURE_LINE)
    if len(signatures) == 1:
        return _values(block, _ID_LINE), signatures[0]
    return _values(block, _ID_LINE), ",".join(signatures) if signatures else None


def _values(block: bytes, line: bytes) -> tuple[str, ...]:
    values = []
    at = block.find(line)
    while at >= 0:
        start = at + len(line)
        end = block.find(_CRLF, start)
        values.append(block[start:end].lstrip(b" ").decode())  # as the server reads it for its duplicate check
        at = block.find(line, end)
    return tuple(values)


# --- out -------------------------------------------------------------------------------------------------------------


def checked_subject(subject: str) -> bytes:
    """*subject* as bytes for a frame.

    Raises:
        BadSubject: It is empty, or has a space or anything else than printable ASCII in it.
    """
    if not _SUBJECT.fullmatch(subject):
        raise BadSubject("not a NATS subject", expected="printable ASCII without spaces", got=f"{len(subject)} chars")
    return subject.encode()


def event_frames(events: list[Outgoing], inbox: str) -> bytes:
    """Events as HPUB frames, one behind the other. All subjects, and *inbox* with a token, are `checked_subject`s.

    Raises:
        BadHeader: A CR or LF in one of the header values.
    """
    joined = frames(events, inbox)
    if joined is None:
        raise BadHeader("a header value with a line break in it")
    return joined


@native.twin
def frames(events: list[Outgoing], inbox: str) -> bytes | None:
    """What `event_frames` returns, for a list; None where a header value has a line break in it."""
    values = "".join([event.msg_id + event.signature + (event.traceparent or "") for event in events])
    if "\n" in values or "\r" in values:
        return None
    parts: list[bytes] = []
    for event in events:
        body, trace = event.body, event.traceparent
        trace = "" if trace is None else f"{EVENT_TRACE}{trace}\r\n"
        block = f"{EVENT_START}{event.msg_id}{EVENT_SIGNATURE}{event.signature}\r\n{trace}\r\n"
        size = len(block) if block.isascii() else len(block.encode())
        head = f"HPUB {event.subject} {inbox}{event.token} {size} {size + len(body)}\r\n{block}"
        parts += (head.encode(), body, _CRLF)
    return b"".join(parts)


def publish_frame(subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    """Any message as a PUB or HPUB frame.

    Raises:
        BadSubject: Subject or reply could not stand in a frame.
        BadHeader: A header name that is no token, or a value with a line break.
    """
    target = checked_subject(subject) + (b" " + checked_subject(reply) if reply else b"")
    if not headers:
        return b"PUB %b %d\r\n%b\r\n" % (target, len(data), data)
    block = b"%b\r\n%b\r\n" % (_VERSION, b"".join(_header_lines(headers.items())))
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (target, len(block), len(block) + len(data), block, data)


def _header_lines(headers: Iterable[tuple[str, str]]) -> Iterable[bytes]:
    for name, value in headers:
        if not _NAME.fullmatch(name) or "\r" in value or "\n" in value or value != value.strip():
            raise BadHeader("not a NATS header", expected="a token, and a value without line breaks or outer spaces")
        yield b"%b: %b\r\n" % (name.encode(), value.encode())


def ack_frames(replies: Iterable[str]) -> bytes:
    """`ack_frame` of each with `+ACK`; there is at least one."""
    return f"PUB {_BETWEEN_ACKS.join(replies)} 4\r\n+ACK\r\n".encode()


def ack_frame(reply: str, verb: bytes) -> bytes:
    """The answer to a delivery; *reply* was parsed by `AckSubject`, so it has no space in it."""
    return b"PUB %b %d\r\n%b\r\n" % (reply.encode(), len(verb), verb)
