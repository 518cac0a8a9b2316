"""A model of a stream, and of the lines to it: what a publisher sends is read and answered as by nats-server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from mesh.errors import Disconnected
from mesh.jetstream.acks import WRONG_STREAM, ack_prefix
from mesh.jetstream.listeners import Listeners
from mesh.jetstream.wire import parse_headers

STREAM, SUBJECT = "EV_local_crm", "ev.local.clear.s00.crm.contact.v1"
AFTER, BEHIND = "Nats-Expected-Last-Msg-Id", "Nats-Expected-Last-Sequence"
WRONG_PLACE, WRONG_ID = 10071, 10070
TOO_LARGE, FULL = 10054, 10077
LARGE = b"x" * 100
REMEMBERS_S = 120.0  # how long a stream knows a message id


class Frame(NamedTuple):
    """What a publisher sent. `behind` is -1 where it names no place."""

    msg_id: str
    after: str
    behind: int
    reply: str
    body: bytes
    witness: bool

    @property
    def linked(self) -> bool:
        """Whether what comes behind it is not stored without it."""
        return bool(self.after) or not self.reply


def frames_of(data: bytes) -> list[Frame]:
    """What a server reads."""
    found = []
    while data:
        line, _, rest = data.partition(b"\r\n")
        words = line.decode().split()
        assert words[0] == "HPUB"
        cut, end = int(words[-2]), int(words[-1])
        headers = parse_headers(rest[:cut])
        frame = Frame(
            msg_id=headers.get("Nats-Msg-Id", ""),
            after=headers.get(AFTER, ""),
            behind=int(headers.get(BEHIND, "-1")),
            reply=words[2] if len(words) == 5 else "",
            body=rest[cut:end],
            witness="Nats-Expected-Stream" in headers,
        )
        found.append(frame)
        data = rest[end + 2 :]
    return found


class Stream:
    """Does with a frame what nats-server 2.15.1 does, in its order (`processJetStreamMsgWithBatch`).

    The size, the stream's name, the last sequence, duplicates, the last id; and only who would be stored hears that the
    stream is full.

    Args:
        now: Seconds, where it forgets message ids in time; None where it knows all for ever.
    """

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        self.ids: list[str] = []
        self.full_for = 0  # so many more are not stored
        self._now = now
        self._known: dict[str, tuple[int, float]] = {}

    def store(self, msg_id: str) -> None:
        """At the end."""
        self.ids.append(msg_id)
        self._known[msg_id] = len(self.ids), self._now() if self._now else 0.0

    def knows(self, msg_id: str) -> int:
        """Where it is, as far as the stream remembers; else 0."""
        place, at = self._known.get(msg_id, (0, 0.0))
        return place if self._now is None or self._now() - at <= REMEMBERS_S else 0

    def answer(self, frame: Frame) -> bytes:
        """Store it or not; what it says to that."""
        if frame.body == LARGE:
            return _error(TOO_LARGE)
        if frame.witness:
            return _error(WRONG_STREAM)
        if frame.behind not in (-1, len(self.ids)):
            return _error(WRONG_PLACE)
        if known := self.knows(frame.msg_id):
            return ack_prefix(STREAM) + b'%d,"duplicate": true}' % known
        if frame.after and (not self.ids or self.ids[-1] != frame.after):
            return _error(WRONG_ID)
        if self.full_for:
            self.full_for -= 1
            return _error(FULL)
        self.store(frame.msg_id)
        return ack_prefix(STREAM) + b"%d}" % len(self.ids)


def _error(code: int) -> bytes:
    return b'{"error":{"code":400,"err_code":%d,"description":"no"},"stream":"%b","seq":0}' % (code, STREAM.encode())


class Line:
    """As much of a `Connection` as a publisher sees of it.

    Attributes:
        wire: What was written and not read.
        quiet: How many frames without a reply were written.
    """

    max_payload = 1_048_576
    alone = True

    def __init__(self, name: str) -> None:
        self.connected = True
        self.wire: deque[Frame] = deque()
        self.quiet = 0
        self.listeners = Listeners(lambda _: None)
        self._name = name

    def new_inbox(self) -> str:
        """The only one."""
        return f"_INBOX.{self._name}"

    def listen(self, subject: str, callback: Any, *, run_of: Any) -> Any:
        """As a connection does."""
        return self.listeners.add(subject, callback, None, run_of)

    def on_connect(self, _callback: Callable[[], None]) -> Callable[[], None]:
        """The bench calls the publisher itself."""
        return lambda: None

    on_disconnect = on_connect

    def write(self, frames: bytes) -> None:
        """Onto the wire."""
        if not self.connected:
            raise Disconnected("cut")
        written = frames_of(frames)
        self.quiet += sum(not frame.reply for frame in written)
        self.wire += written

    def hear(self, answers: list[tuple[str, bytes]]) -> None:
        """These arrive together."""
        data, ends = b"", []
        for reply, body in answers:
            if body:
                data += b"MSG %b 1 %d\r\n%b\r\n" % (reply.encode(), len(body), body)
            else:
                data += b"HMSG %b 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n" % reply.encode()
            ends.append(len(data))
        start = position = 0
        for (reply, body), end in zip(answers, ends, strict=True):
            if position <= start:
                position = self.listeners.run(data, start)
            if position <= start:
                self.listeners.deliver(1, reply.encode(), b"", None if body else b"NATS/1.0 503\r\n\r\n", body)
            start = end
