"""Deliveries read many at once: what comes out is what one by one comes out, and all else is left to the reader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.jetstream import wire
from mesh.jetstream.acks import AckSubject
from mesh.jetstream.deliveries import DeliveryRun
from mesh.jetstream.listeners import Listeners
from mesh.jetstream.outgoing import Outgoing
from mesh.jetstream.wire import FrameReader
from mesh.signing import Received

STREAM = "EV_local_crm"
OWN = AckSubject(STREAM, "billing--all")
SID = 7
ID = "8rD5aCYwu9Iqm-0E7dW5tg"
SIGNATURE = "1.kid.1795372771620.salt.0.1..sig"
BLOCK = (
    f"NATS/1.0\r\nContent-Type: application/cloudevents+json\r\nNats-Msg-Id: {ID}\r\nMesh-Signature: {SIGNATURE}\r\n"
)
TRACE = "traceparent: 00-a-b-01\r\n"
AFTER = "Nats-Expected-Last-Msg-Id: lZDMf7n5Vv-tKHIIMbC_0A\r\n"
NS = 1_795_372_771_631_000_000


def reply(sequence: int, durable: str = "billing--all") -> str:
    """The ack subject of a delivery."""
    return f"$JS.ACK.{STREAM}.{durable}.1.{sequence}.{sequence}.{NS}.0"


def frame(
    sequence: int = 1, *, body: bytes = b"{}", block: str = BLOCK, back: str | None = None, sid: int = SID
) -> bytes:
    """A delivery as the server writes it."""
    head = f"{block}\r\n".encode()
    line = f"HMSG ev.local.clear.s00.crm.x.v1 {sid} {back or reply(sequence)} {len(head)} {len(head) + len(body)}\r\n"
    return line.encode() + head + body + b"\r\n"


class Reading:
    """All that a connection reads, with the events of our durable taken many at once, or one by one."""

    def __init__(self, *, at_once: bool) -> None:
        self.events: list[Received] = []
        self.others: list[tuple[int, bytes]] = []
        self._run = DeliveryRun(OWN, STREAM, SID)
        self.reader = FrameReader(self._deliver, self._read) if at_once else FrameReader(self._deliver)

    def _read(self, data: bytes, position: int) -> int:
        end, events = self._run.read(data, position)
        self.events += events
        return end

    def _deliver(self, sid: int, subject: bytes, back: bytes, headers: bytes | None, data: bytes) -> None:
        said = OWN.parse(back.decode())
        if sid != SID or said is None:
            self.others.append((sid, data))
            return
        ids, signature = wire.event_headers(headers)
        place = said.sequence, said.stream_ms, said.deliveries
        self.events.append(Received(subject.decode(), data, ids, signature, STREAM, *place, back.decode()))


def test_what_is_read_is_the_same_however_it_is_cut() -> None:
    """Order, contents and the messages in between, for bytes that end anywhere."""
    bodies = (b"{}", b"", b'{"a":"\r\n\r\n"}', b"HMSG x 7 y 1 1\r\n")
    data = b"".join(frame(n, body=body) for n, body in enumerate(bodies, 1))
    data += b"MSG a 1 1\r\nx\r\n" + frame(5, block=BLOCK + TRACE) + b"PING\r\n" + frame(6)
    one_by_one = Reading(at_once=False)
    lines = one_by_one.reader.feed(data)
    assert [event.sequence for event in one_by_one.events] == [1, 2, 3, 4, 5, 6]
    for cut in range(len(data)):
        at_once = Reading(at_once=True)
        assert at_once.reader.feed(data[:cut]) + at_once.reader.feed(data[cut:]) == lines
        assert (at_once.events, at_once.others) == (one_by_one.events, one_by_one.others), cut


def test_events_as_we_write_them_are_taken_whole() -> None:
    """Else nothing would be gained."""
    more = ["", "", TRACE]
    data = b"".join(frame(n, block=BLOCK + lines) for n, lines in enumerate(more, 1))
    end, events = DeliveryRun(OWN, STREAM, SID).read(data, 0)
    assert (end, [event.sequence for event in events]) == (len(data), [1, 2, 3])
    assert {(event.msg_ids, event.signature) for event in events} == {((ID,), SIGNATURE)}


@pytest.mark.parametrize("trace", [None, "00-a-b-01"])
def test_what_we_publish_is_taken(trace: str | None) -> None:
    """The header block as `event_frames` writes it, with each of its lines and without."""
    event = Outgoing("ev.x", STREAM, b"{}", "/s", "e", trace, msg_id=ID, signature=SIGNATURE)
    line, _, rest = wire.event_frames([event], "_INBOX.x.").partition(b"\r\n")
    lengths = b" ".join(line.split(b" ")[-2:])
    delivered = b"HMSG ev.x %d %b %b\r\n" % (SID, reply(1).encode(), lengths) + rest
    end, events = DeliveryRun(OWN, STREAM, SID).read(delivered, 0)
    assert (end, events[0].msg_ids, events[0].signature) == (len(delivered), (ID,), SIGNATURE)


def test_ack_subjects_of_newer_servers_are_read_too() -> None:
    """They name domain and account."""
    data = b"".join(frame(n, back=reply(n).replace("ACK", "ACK.hub.znJdjy7f")) for n in (1, 2))
    end, events = DeliveryRun(OWN, STREAM, SID).read(data, 0)
    assert (end, [event.sequence for event in events]) == (len(data), [1, 2])


PIECES = [
    "Nats-Msg-Id: ",
    "Mesh-Signature: ",
    "Nats-Expected-Last-Msg-Id: ",
    "traceparent: ",
    "\r\n",
    "\r",
    "\n",
    " ",
    ID,
    "1.x",
    "A",
    "\0",
]
LINES = st.lists(st.sampled_from(PIECES) | st.sampled_from(["\u00e9", TRACE, AFTER]), max_size=5).map("".join)


@given(st.sampled_from([ID, ID, ID[:21], f" {ID[:21]}", f"{ID[:20]}\r\n", f"{ID[:21]}\n"]), LINES, LINES, LINES)
def test_headers_are_read_as_one_by_one(msg_id: str, behind_id: str, signature: str, lines: str) -> None:
    """Whatever a publisher writes: what is taken says what `event_headers` says, and the reader delivers it."""
    block = BLOCK.replace(ID, msg_id + behind_id).replace(SIGNATURE, f"1.{signature}") + lines
    whole = f"{block}\r\n".encode()
    end, events = DeliveryRun(OWN, STREAM, SID).read(frame(block=block), 0)
    if end:
        assert wire.headers_sound(whole)
        assert (events[0].msg_ids, events[0].signature) == wire.event_headers(whole)
        one_by_one = Reading(at_once=False)
        assert (one_by_one.reader.feed(frame(block=block)), one_by_one.events) == ([], events)


def test_frames_that_no_server_sends_are_left() -> None:
    """The reader refuses a line and a frame of such a length, so nobody else may take it."""
    run = DeliveryRun(OWN, STREAM, SID)
    sound = frame()
    chars = wire.MAX_LINE_BYTES - sound.index(b"\r\n") - 2
    for more, taken in ((chars, True), (chars + 1, False)):
        long = sound.replace(b"ev.", b"ev." + b"x" * more, 1)
        assert run.read(long, 0)[0] == (len(long) if taken else 0)
    block = len(f"{BLOCK}\r\n")
    for size in (wire.MAX_FRAME_BYTES, wire.MAX_FRAME_BYTES + 1):
        large = sound.replace(b" %d\r\n" % (block + 2), b" %d\r\n" % size, 1).replace(b"{}\r\n", bytes(size - block))
        assert run.read(large + b"\r\n", 0)[0] == (len(large) + 2 if size == wire.MAX_FRAME_BYTES else 0)


@pytest.mark.parametrize(
    "left",
    [
        frame(sid=8),
        frame(sid=77),
        frame(back=reply(1, "other--all")),
        frame(back="_INBOX.x"),
        frame(back=f"{reply(1)} 1"),
        frame(block=BLOCK + "Nats-Msg-Id: second\r\n"),
        frame(block=BLOCK + "Mesh-Signature: 1.second\r\n"),
        frame(block=BLOCK + "traceparent: a\r\nMesh-Signature: 1.second\r\n"),
        frame(block=BLOCK.replace(ID, "short")),
        frame(block=BLOCK.replace(ID, f" {ID}")),
        frame(block=BLOCK.replace("1.kid", " 1.kid")),
        frame(block=BLOCK.replace("1.kid", "1.k\u00efd")),
        frame(block=BLOCK.replace("json", "xml")),
        frame(block=BLOCK.replace("NATS/1.0", "NATS/1.1")),
        frame(block="NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\n"),
        frame(block="NATS/1.0\r\n"),
        frame().replace(b" %d " % len(f"{BLOCK}\r\n"), b" +%d " % len(f"{BLOCK}\r\n")),
        frame().replace(b" %d " % len(f"{BLOCK}\r\n"), b" \xb2 "),
        frame().replace(b" %d " % len(f"{BLOCK}\r\n"), b" %s " % (b"9" * 5000)),
        frame(block=BLOCK.replace(ID, f"abc\r\nX-Header: {ID[:9]}")),
        frame(block=BLOCK + "traceparent: a\r\nX: y\r\n"),
        frame(block=BLOCK + "tracestate: a\r\n"),
        frame(block=BLOCK + "traceparent: a\0\r\n"),
        frame(block=BLOCK + AFTER),
        frame(block=BLOCK + TRACE + TRACE),
        frame(block=BLOCK.replace("Mesh", f"{AFTER}Mesh")),
        frame().replace(b" %d " % len(f"{BLOCK}\r\n"), b" 1 "),
        frame()[:-1],
        frame()[:-2] + b"xx",
        frame()[:40],
        b"MSG ev.local.clear.s00.crm.x.v1 7 2\r\n{}\r\n",
        b"HMSG",
        b"",
    ],
)
def test_anything_else_is_left_to_the_reader(left: bytes) -> None:
    """It alone says what a frame is and what is wrong with one; what stood before it is taken."""
    run = DeliveryRun(OWN, STREAM, SID)
    assert run.read(left, 0) == (0, [])
    end, events = run.read(frame(1) + left, 0)
    assert (end, len(events)) == (len(frame(1)), 1)


def test_where_reading_many_breaks_each_is_read_by_itself() -> None:
    """A defect of ours, found by whatever comes: the connection, which is everybody's, goes on."""

    def broken(_data: bytes, _position: int) -> int:
        raise RuntimeError

    heard: list[bytes] = []
    listeners = Listeners(lambda _: None)
    listener = listeners.add("_INBOX.x.*", lambda *message: heard.append(message[3]), None, lambda _sid: broken)
    reader = FrameReader(listeners.deliver, listeners.run)
    assert reader.feed(frame(1, body=b"1", sid=listener.sid) + b"PING\r\n" + frame(2, sid=listener.sid)) == [b"PING"]
    assert heard == [b"1", b"{}"]
