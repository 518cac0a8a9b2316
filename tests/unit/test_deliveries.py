"""Deliveries read many at once: what comes out is what one by one comes out, and all else is left to the reader."""

from __future__ import annotations

import pytest

from mesh.jetstream import wire
from mesh.jetstream.acks import AckSubject
from mesh.jetstream.deliveries import DeliveryRun
from mesh.jetstream.listeners import Listeners
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
    data += b"MSG a 1 1\r\nx\r\n" + frame(5, block=BLOCK + "traceparent: 00-a-b-01\r\n") + b"PING\r\n" + frame(6)
    one_by_one = Reading(at_once=False)
    lines = one_by_one.reader.feed(data)
    assert [event.sequence for event in one_by_one.events] == [1, 2, 3, 4, 5, 6]
    for cut in range(len(data)):
        at_once = Reading(at_once=True)
        assert at_once.reader.feed(data[:cut]) + at_once.reader.feed(data[cut:]) == lines
        assert (at_once.events, at_once.others) == (one_by_one.events, one_by_one.others), cut


def test_events_as_we_write_them_are_taken_whole() -> None:
    """Else nothing would be gained."""
    data = b"".join(frame(n) for n in range(1, 4)) + frame(4, block=BLOCK + "traceparent: 00-a-b-01\r\n")
    end, events = DeliveryRun(OWN, STREAM, SID).read(data, 0)
    assert (end, [event.sequence for event in events]) == (len(data), [1, 2, 3, 4])


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
