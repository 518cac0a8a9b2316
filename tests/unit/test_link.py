"""What a link does with frames when the kernel has closed its connection before anybody heard of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlparse

import pytest
import uvloop
from nats.aio.transport import TcpTransport

from mesh.jetstream.link import WRITE_BYTES, Link
from mesh.jetstream.listeners import Listeners


async def _closed_under_us() -> TcpTransport:
    """A transport whose connection is gone."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = TcpTransport()  # type: ignore[no-untyped-call]  # nats-py's
    await transport.connect(urlparse(f"nats://127.0.0.1:{port}"), 1024, 5)
    writer = transport._io_writer
    assert writer is not None
    writer.transport.abort()
    with suppress(ConnectionError):
        while True:
            await writer.drain()
            await asyncio.sleep(0)
    server.close()
    return transport


def test_writing_to_a_connection_that_is_gone_raises_nothing() -> None:
    """The transport of uvloop raises then, in whoever writes; the link's end is told by its reading, to everybody."""

    async def run() -> None:
        link = Link(Listeners(lambda _frame: None), lambda _link: None)
        link._transport = await _closed_under_us()
        with pytest.raises(RuntimeError):
            link._transport.write(b"x")
        link.send(bytes(WRITE_BYTES))
        link.ping().cancel()
        assert "closed" in link.reason

    uvloop.run(run())
