"""What a link writes, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from mesh.jetstream import wire
from mesh.jetstream.link import WRITE_ACKS, Link
from mesh.jetstream.listeners import Listeners

pytestmark = pytest.mark.anyio


class Wire:
    """Where a link writes to; it takes everything."""

    _io_writer = None

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        """See nats-py's transports."""
        self.written.append(data)


@pytest.fixture
def line() -> Wire:
    """What was written."""
    return Wire()


@pytest.fixture
def link(line: Wire) -> Link:
    """One that is connected to it."""
    link = Link(Listeners(lambda _: None), lambda _: None)
    link._transport = line
    return link


async def turn() -> None:
    """Let what was asked for in this turn of the loop happen."""
    await asyncio.sleep(0)


async def test_acks_keep_their_place_among_other_frames(link: Link, line: Wire) -> None:
    """All of a turn is one write, in the order of the calls: whoever waits for a PONG knows that acks are there."""
    link.ack("a.1")
    link.ack("a.2")
    link.send(b"PUB x 0\r\n\r\n")
    link.ack("a.3")
    await turn()
    acks = [wire.ack_frame(reply, b"+ACK") for reply in ("a.1", "a.2", "a.3")]
    assert line.written == [acks[0] + acks[1] + b"PUB x 0\r\n\r\n" + acks[2]]


async def test_a_ping_goes_behind_the_acks(link: Link, line: Wire) -> None:
    """Else its answer would say nothing of them."""
    link.ack("a.1")
    link.ping()
    assert line.written == [wire.ack_frame("a.1", b"+ACK"), b"PING\r\n"]
    await turn()
    assert len(line.written) == 2


async def test_many_acks_do_not_wait_for_the_end_of_a_turn(link: Link, line: Wire) -> None:
    """The server works on the first of them meanwhile; none is written twice."""
    replies = [f"a.{n}" for n in range(WRITE_ACKS + 1)]
    for reply in replies:
        link.ack(reply)
    assert len(line.written) == 1
    await turn()
    assert b"".join(line.written) == b"".join(wire.ack_frame(reply, b"+ACK") for reply in replies)


async def test_acks_of_a_link_that_ended_are_gone(link: Link, line: Wire) -> None:
    """They were for its server; a delivery that is not acked comes again."""
    link.ack("a.1")
    link._drop()
    await turn()
    assert line.written == []
