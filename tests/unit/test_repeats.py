"""A head that was read before: it stands for the same request, or for none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from hypothesis import example, given
from hypothesis import strategies as st

from agent.repeats import Boundary, Head

HEAD = (
    b"POST /v1/events HTTP/1.1\r\nHost: localhost:8480\r\nAuthorization: Bearer t\r\nContent-Length: %s\r\n"
    b"Content-Type: application/cloudevents+json\r\n\r\n"
)


def parsed(data: bytes) -> list[tuple[Any, bytes]]:
    """What aiohttp reads in *data*: requests, each with the fields it read and its body."""
    loop = asyncio.new_event_loop()
    try:
        parser = HttpRequestParser(BaseProtocol(loop), loop, 2**16)
        try:
            messages, _, _ = parser.feed_data(data)
        except HttpProcessingError:
            return []
        return [
            ((m.method, m.path, m.version, [pair for pair in m.raw_headers if pair[0].lower() != b"content-length"]), p)
            for m, payload in messages
            if payload.is_eof()
            for p in [payload.read_nowait()]
        ]
    finally:
        loop.close()


def known(head: bytes = HEAD % b"2") -> Head:
    """The head of a request that was accepted."""
    found = Head.of(head)
    assert found is not None
    return found


@pytest.mark.parametrize("body", [b"", b"{}", b"x" * 1000])
def test_the_same_head_gives_the_body(body: bytes) -> None:
    """Whatever the length, as long as it is the body's."""
    assert known().body(HEAD % str(len(body)).encode() + body) == body


@pytest.mark.parametrize(
    "data",
    [
        HEAD % b"3" + b"{}",
        HEAD % b"1" + b"{}",
        HEAD % b"2" + b"{}" + HEAD % b"2" + b"{}",
        HEAD % b"+2" + b"{}",
        HEAD % b" 2" + b"{}",
        HEAD % b"2 " + b"{}",
        HEAD % b"0x2" + b"{}",
        HEAD % b"" + b"{}",
        HEAD % b"2, 2" + b"{}",
        HEAD % b"\xb2" + b"{}",
        HEAD % b"000000002" + b"{}",
        HEAD % b"2\r\nContent-Length: 2" + b"{}",
        HEAD % b"2\r\nTransfer-Encoding: chunked" + b"{}",
        (HEAD % b"2").replace(b"Bearer t", b"Bearer u") + b"{}",
        (HEAD % b"2").replace(b"Bearer t", b"Bearer tt") + b"{}",
        (HEAD % b"2").replace(b"POST", b"post") + b"{}",
        (HEAD % b"2").replace(b"+json", b"-batch+json") + b"{}",
        (HEAD % b"2").removesuffix(b"\r\n"),
        (HEAD % b"2")[:40],
        b"",
    ],
)
def test_what_is_not_one_whole_request_with_it_gives_nothing(data: bytes) -> None:
    """Another length than the body's, another way to write it, one more byte anywhere, or half of it."""
    assert known().body(data) is None


@pytest.mark.parametrize(
    ("field", "kept"),
    [
        (b"Connection: keep-alive", True),
        (b"X-Anything: at all", True),
        (b"Connection: close", False),
        (b"Connection: upgrade", False),
        (b"Transfer-Encoding: chunked", False),
        (b"Expect: 100-continue", False),
        (b"Upgrade: h2c", False),
        (b"Content-Length: 2", False),
        (b" folded", False),
    ],
)
def test_a_head_is_kept_where_length_is_all_that_counts(field: bytes, kept: bool) -> None:
    """With anything else that says where the message or the connection ends, each request is read."""
    head = (HEAD % b"2").removesuffix(b"\r\n") + field + b"\r\n\r\n"
    assert (Head.of(head) is not None) is kept
    assert Head.of(head.replace(b"HTTP/1.1", b"HTTP/1.0")) is None


_PIECES = st.sampled_from(
    [b"POST", b" ", b"\r\n", b"\r", b"\n", b"\t", b":", b"0", b"2", b"9", b"{}", b"Content-Length: 2",
     b"Transfer-Encoding: chunked", b"\x00", b"\xff", HEAD % b"2", b""]
)  # fmt: skip


@given(at=st.integers(0, len(HEAD) + 4), cut=st.integers(0, 6), put=_PIECES, digits=st.integers(0, 12))
@example(at=0, cut=0, put=b"", digits=2)
def test_what_it_takes_aiohttp_reads_the_same(at: int, cut: int, put: bytes, digits: int) -> None:
    """Of a request with bytes cut out and others put in, either nothing is taken, or just what the parser reads."""
    first = HEAD % b"2" + b"{}"
    whole = HEAD % str(digits).encode() + b"{}".ljust(digits)[:digits]
    data = whole[:at] + put + whole[at + cut :]
    body = known().body(data)
    if body is not None:
        ((expected, _),) = parsed(first)
        assert parsed(data) == [(expected, body)]


def test_the_place_is_kept_while_it_is_certain() -> None:
    """Whole requests, and bodies in parts, end at a boundary."""
    place = Boundary()
    head, seen = HEAD % b"4", [place.here]
    assert place.request(head + b"1234", 4) == head
    seen.append(place.here)
    assert place.request(head + b"1", 4) == head
    seen.append(place.here)
    for size in (2, 1):
        place.body(size)
        seen.append(place.here)
    assert seen == [True, True, False, False, True]


@pytest.mark.parametrize("lose", ["half-a-head", "more-than-the-body", "no-length", "two-at-once", "crlf-before"])
def test_a_place_that_was_lost_is_never_found_again(lose: str) -> None:
    """After bytes that began something else no later bytes are taken for a request."""
    place, head = Boundary(), HEAD % b"4"
    match lose:
        case "half-a-head":
            place.body(10)
        case "more-than-the-body":
            place.request(head + b"1", 4)
            place.body(5)
        case "no-length":
            assert place.request(head, None) is None
        case "two-at-once":
            place.request(head + b"1234" + head, 4)
        case _:
            place.request(b"\r\n\r\n" + head + b"1234", 4)
    assert not place.here
    assert place.request(head + b"1234", 4) is None
    assert not place.here
