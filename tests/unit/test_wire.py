"""The bytes of the NATS protocol: what comes in is cut at the right places, and what goes out cannot be misread."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadHeader, BadSubject
from mesh.jetstream.outgoing import Outgoing
from mesh.jetstream.wire import (
    MAX_FRAME_BYTES,
    MAX_LINE_BYTES,
    FrameReader,
    Status,
    WireError,
    ack_frame,
    ack_frames,
    event_frames,
    event_headers,
    headers_sound,
    parse_headers,
    publish_frame,
    status_of,
)

Message = tuple[int, bytes, bytes, bytes | None, bytes]

ID = "A" * 22
AS_WRITTEN = (  # by `event_frames`, all but the last line break
    b"NATS/1.0\r\nContent-Type: application/cloudevents+json\r\nNats-Msg-Id: %b\r\nMesh-Signature: s\r\n" % ID.encode()
)


class Reader:
    """A frame reader and what it delivered."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.lines: list[bytes] = []
        self._reader = FrameReader(lambda *message: self.messages.append(message))

    def feed(self, *chunks: bytes) -> Reader:
        """Feed them in turn."""
        for chunk in chunks:
            self.lines += self._reader.feed(chunk)
        return self


HEADED = b"HMSG a.b 7 r.1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"

FRAMES: list[tuple[bytes, Message]] = [
    (b"MSG a.b 7 2\r\nhi\r\n", (7, b"a.b", b"", None, b"hi")),
    (b"MSG a.b 7 r.1 2\r\nhi\r\n", (7, b"a.b", b"r.1", None, b"hi")),
    (b"MSG a.b 7 0\r\n\r\n", (7, b"a.b", b"", None, b"")),
    (b"MSG a 1 4\r\n\r\n\r\n\r\n", (1, b"a", b"", None, b"\r\n\r\n")),
    (HEADED, (7, b"a.b", b"r.1", b"NATS/1.0\r\n\r\n", b"hi")),
    (b"HMSG a 1 4 4\r\nXXXX\r\n", (1, b"a", b"", b"XXXX", b"")),
    # A server takes these subjects and stores them; a reader that cuts at any whitespace moves the other arguments.
    (b"MSG a\x0b9 7 2\r\nhi\r\n", (7, b"a\x0b9", b"", None, b"hi")),
    (b"MSG a\x0c9 7 r 2\r\nhi\r\n", (7, b"a\x0c9", b"r", None, b"hi")),
    (b"MSG a\x00b 7 2\r\nhi\r\n", (7, b"a\x00b", b"", None, b"hi")),
    (b"MSG a\xff 7 r\xfe 2\r\nhi\r\n", (7, b"a\xff", b"r\xfe", None, b"hi")),
]


@pytest.mark.parametrize(("frame", "message"), FRAMES)
def test_a_frame_is_cut_at_its_single_spaces(frame: bytes, message: Message) -> None:
    """Subject, subscription, reply, headers and payload come out as the server meant them."""
    assert Reader().feed(frame).messages == [message]


@given(order=st.lists(st.sampled_from(range(len(FRAMES))), max_size=8), cuts=st.sets(st.integers(0, 200), max_size=12))
def test_frames_do_not_depend_on_how_the_bytes_arrive(order: list[int], cuts: set[int]) -> None:
    """However a stream of frames is split into reads, the same messages and control lines come out, in order."""
    stream = b"PING\r\n".join(FRAMES[i][0] for i in order)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    reader = Reader().feed(*(stream[a:b] for a, b in itertools.pairwise(edges)))
    assert reader.messages == [FRAMES[i][1] for i in order]
    assert reader.lines == [b"PING"] * max(0, len(order) - 1)


def test_a_large_payload_in_small_reads_is_put_together_once() -> None:
    """A payload of a megabyte that arrives in kilobytes is delivered whole."""
    body = bytes(range(256)) * 4096
    frame = b"MSG a 1 %d\r\n%b\r\n" % (len(body), body)
    reader = Reader().feed(*(frame[i : i + 1024] for i in range(0, len(frame), 1024)))
    assert reader.messages == [(1, b"a", b"", None, body)]


@pytest.mark.parametrize(
    "line",
    [b"PING", b"PONG", b"+OK", b"-ERR 'Stale Connection'", b'INFO {"max_payload":1}', b"-ERR \xff", b"ping", b""],
)
def test_control_lines_are_returned_as_they_are(line: bytes) -> None:
    """What is no message is left to the caller, whole lines only."""
    assert Reader().feed(line[:2], line[2:], b"\r", b"\n").lines == [line]


@pytest.mark.parametrize(
    "frame",
    [
        b"MSG a 1\r\n",
        b"MSG a 1 r 2 3\r\nhi\r\n",
        b"MSG a x 2\r\nhi\r\n",
        b"MSG a -1 2\r\nhi\r\n",
        b"MSG a 1 +2\r\nhi\r\n",
        b"MSG a 1 2_0\r\nhi\r\n",
        b"MSG a 1 2\r\nhi!\r\n",
        b"MSG  a 1 2\r\nhi\r\n",
        b"MSGa 1 2\r\nhi\r\n",
        b"HMSG a 1 2\r\nhi\r\n",
        b"HMSG a 1 9 2\r\nNATS/1.0\r\nhi\r\n",
        b"HELLO\r\n",
        b"MSG a 1 %d\r\n" % (MAX_FRAME_BYTES + 1),
        b"MSG a 1 99999999999999999999\r\n",
        b"x" * MAX_LINE_BYTES,
    ],
)
def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    """Bytes the protocol does not have raise, so that the connection ends instead of guessing."""
    with pytest.raises(WireError):
        Reader().feed(frame)


@pytest.mark.parametrize(
    ("block", "sound"),
    [
        (b"NATS/1.0\r\n\r\n", True),
        (b"NATS/1.0 404\r\n\r\n", True),
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Stream: 0\r\n\r\n", True),
        (b"NATS/1.0\r\na: \xc3\xbc\r\n\r\n", True),
        (b"NATS/1.0", False),
        (b"XXXX", False),
        (b"NATS/1.0\r\na: b\r\n", False),
        (b"NATS/1.0x\r\n\r\n", False),
        (b"NATS/1.0 4\xff4\r\n\r\n", False),
        (b"NATS/1.0 404 \xff\r\n\r\n", False),
        (b"NATS/1.0\r\na: \xff\r\n\r\n", False),
        (b"", False),
    ],
)
def test_a_sound_header_block(block: bytes, *, sound: bool) -> None:
    """First line, end and encoding are what every reader relies on; a block without them is not read."""
    assert headers_sound(block) is sound


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (None, None),
        (b"NATS/1.0\r\n\r\n", None),
        (b"NATS/1.0 503\r\n\r\n", Status(503, "")),
        (b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 10\r\n\r\n", Status(408, "Request Timeout")),
        (b"NATS/1.0\r\nStatus: 404\r\n\r\n", None),
        (b"NATS/1.0 abc\r\n\r\n", None),
        (b"NATS/1.0 40\r\n\r\n", None),
    ],
)
def test_a_status_stands_in_the_first_line_only(block: bytes | None, status: Status | None) -> None:
    """A header that calls itself Status is an application's, and no status."""
    assert status_of(block) == status


@pytest.mark.parametrize(
    ("block", "ids", "signature"),
    [
        (None, (), None),
        (b"NATS/1.0\r\n\r\n", (), None),
        (b"NATS/1.0\r\nNats-Msg-Id: k\r\nMesh-Signature: s\r\n\r\n", ("k",), "s"),
        (b"NATS/1.0\r\nMesh-Signature: s\r\nX: 1\r\nNats-Msg-Id:k\r\n\r\n", ("k",), "s"),
        (b"NATS/1.0\r\nNats-Msg-Id: k\r\nNats-Msg-Id: l\r\n\r\n", ("k", "l"), None),
        (b"NATS/1.0\r\nMesh-Signature: s\r\nMesh-Signature: t\r\n\r\n", (), "s,t"),
        (b"NATS/1.0\r\nMesh-Signature: \r\nMesh-Signature: s\r\n\r\n", (), ",s"),
        (b"NATS/1.0\r\nMesh-Signature: \r\n\r\n", (), ""),
        (b"NATS/1.0\r\nX: Nats-Msg-Id: k\r\n\r\n", (), None),
        (b"NATS/1.0\r\nNats-Msg-Id: k\n\r\n\r\n", ("k\n",), None),
        (b"NATS/1.0\r\nNats-Msg-Id: k \r\n\r\n", ("k ",), None),
        (b"NATS/1.0 404\r\nNats-Msg-Id: k\r\n\r\n", ("k",), None),
        (AS_WRITTEN + b"\r\n", (ID,), "s"),
        (AS_WRITTEN.replace(b"Signature: s", b"Signature:   s") + b"Nats-Pin-Id: p\r\n\r\n", (ID,), "s"),
        (AS_WRITTEN.replace(b"Id: A", b"Id:  ") + b"\r\n", (ID[1:],), "s"),
        (AS_WRITTEN.replace(b"A" * 8, b"\r\nx: AAA", 1) + b"\r\n", ("",), "s"),
        (AS_WRITTEN + b"Nats-Msg-Id: k\r\n\r\n", (ID, "k"), "s"),
        (AS_WRITTEN + b"Mesh-Signature: t\r\n\r\n", (ID,), "s,t"),
        (b"NATS/1.0\r\n" + b"Nats-Msg-Id: k\r\n" * 2000 + b"\r\n", ("k",) * 2000, None),
        (b"NATS/1.0\r\n" + b"Mesh-Signature: s\r\n" * 2000 + b"\r\n", (), ",".join("s" * 2000)),
    ],
)
def test_every_id_and_signature_is_seen(block: bytes | None, ids: tuple[str, ...], signature: str | None) -> None:
    """Doubled headers stay visible: two ids are two, and two signatures make one that cannot be valid."""
    assert event_headers(block) == (ids, signature)


def test_headers_of_a_reply() -> None:
    """Names keep their case, values lose outer spaces, the last of equal names wins, lines without a colon are none."""
    block = b"NATS/1.0 408 Timeout\r\nA: 1 \r\nb:2\r\nA: 3\r\njunk\r\n\r\n"
    assert parse_headers(block) == {"A": "3", "b": "2"}
    assert parse_headers(None) == {}


def _sealed(
    *, msg_id: str = ID, signature: str = "1.sig", traceparent: str | None = None, body: bytes = b'{"a":1}'
) -> Outgoing:
    """An event that is ready to go."""
    return Outgoing(
        subject="ev.a", stream="EV", body=body, source="/a", event_id="1", on_done=lambda _item, _result: None,
        token=1, msg_id=msg_id, signature=signature, traceparent=traceparent,
    )  # fmt: skip


@pytest.mark.parametrize("traceparent", [None, "00-" + "a" * 32 + "-" + "b" * 16 + "-01"])
def test_an_event_frame_reads_back(traceparent: str | None) -> None:
    """The frame of an event is one message with its headers, id, signature and body."""
    frame = event_frames([_sealed(traceparent=traceparent)], "_INBOX.")
    [(_, subject, reply, block, body)] = Reader().feed(_as_delivered(frame)).messages
    assert (subject, reply, body) == (b"ev.a", b"_INBOX.1", b'{"a":1}')
    assert block is not None
    assert headers_sound(block)
    assert event_headers(block) == ((ID,), "1.sig")
    expected = {"Content-Type": "application/cloudevents+json", "Nats-Msg-Id": ID, "Mesh-Signature": "1.sig"}
    assert parse_headers(block) == expected | ({"traceparent": traceparent} if traceparent else {})


def test_events_stand_one_behind_the_other() -> None:
    """Each frame ends where the next one begins, whatever is in between."""
    one, other = _sealed(), _sealed(traceparent="00-1-2-01", body=b"")
    assert event_frames([one, other], "r") == event_frames([one], "r") + event_frames([other], "r")


@pytest.mark.parametrize("bad", ["a\r\nX: 1", "a\nb", "a\rb", "\r\n"])
def test_an_event_frame_takes_no_line_breaks(bad: str) -> None:
    """No header value can end its line and begin another."""
    for msg_id, signature, traceparent in ((bad, "s", None), (ID, bad, None), (ID, "s", bad)):
        with pytest.raises(BadHeader):
            event_frames([_sealed(msg_id=msg_id, signature=signature, traceparent=traceparent)], "r")


@pytest.mark.parametrize(
    ("subject", "reply", "headers", "error"),
    [
        ("", "", None, BadSubject),
        ("a b", "", None, BadSubject),
        ("a\r\nPUB b 0\r\n", "", None, BadSubject),
        ("a\x0bb", "", None, BadSubject),
        ("ä", "", None, BadSubject),
        ("a", "r s", None, BadSubject),
        ("a", "r", {"x y": "1"}, BadHeader),
        ("a", "r", {"": "1"}, BadHeader),
        ("a", "r", {"x": "1\r\ny: 2"}, BadHeader),
        ("a", "r", {"x": "1\n"}, BadHeader),
        ("a", "r", {"x": " 1"}, BadHeader),
    ],
)
def test_a_frame_is_never_built_from_what_would_break_it(
    subject: str, reply: str, headers: dict[str, str] | None, error: type[Exception]
) -> None:
    """Subjects and headers that could start a frame of their own are refused, not repaired."""
    with pytest.raises(error):
        publish_frame(subject, b"x", reply, headers)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (publish_frame("a", b"hi"), b"PUB a 2\r\nhi\r\n"),
        (publish_frame("a", b"hi", "r"), b"PUB a r 2\r\nhi\r\n"),
        (publish_frame("a", b"hi", "r", {"x": "ü"}), b"HPUB a r 19 21\r\nNATS/1.0\r\nx: \xc3\xbc\r\n\r\nhi\r\n"),
        (ack_frame("$JS.ACK.s.d.1", b"+ACK"), b"PUB $JS.ACK.s.d.1 4\r\n+ACK\r\n"),
        (ack_frames(["a.1", "a.2"]), b"PUB a.1 4\r\n+ACK\r\nPUB a.2 4\r\n+ACK\r\n"),
    ],
)
def test_frames_out(frame: bytes, expected: bytes) -> None:
    """Lengths are bytes, headers included in the second of them."""
    assert frame == expected


def _as_delivered(frame: bytes) -> bytes:
    """An HPUB frame as the server passes it on to subscription 1."""
    line, _, rest = frame.partition(b"\r\n")
    _, subject, reply, *sizes = line.split(b" ")
    return b" ".join([b"HMSG", subject, b"1", reply, *sizes]) + b"\r\n" + rest


def test_messages_that_are_read_many_at_once_keep_their_place() -> None:
    """What a run takes is handed on between what stood before and behind it, however the bytes are cut."""
    mine = b"MSG mine 5 1\r\nx\r\n"
    data = b"MSG a 1 1\r\n1\r\n" + mine * 3 + b"PING\r\n" + mine + b"MSG a 1 1\r\n2\r\n"
    for cut in range(len(data)):
        seen: list[bytes] = []

        def run(data: bytes, position: int, seen: list[bytes] = seen) -> int:
            while data.startswith(mine, position):
                position += len(mine)
                seen.append(b"mine")
            return position

        reader = FrameReader(lambda *message, seen=seen: seen.append(message[4].replace(b"x", b"mine")), run)
        lines = reader.feed(data[:cut]) + reader.feed(data[cut:])
        assert (seen, lines) == ([b"1", b"mine", b"mine", b"mine", b"mine", b"2"], [b"PING"]), cut
