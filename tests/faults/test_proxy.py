"""The proxy does to connections what a bad network does, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest

from tests.faults.proxy import Proxy

pytestmark = pytest.mark.anyio

DEADLINE_S = 60
DELAY_S = 0.2


@asynccontextmanager
async def proxied() -> AsyncIterator[Proxy]:
    """A proxy in front of a server that echoes."""

    async def echo(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send(chunk)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, echo)
        proxy = Proxy(listener.extra(anyio.abc.SocketAttribute.local_port))  # noqa: S610 - anyio's, not Django's
        await group.start(proxy.run)
        with anyio.fail_after(DEADLINE_S):
            yield proxy
        group.cancel_scope.cancel()


async def echoed(stream: anyio.abc.SocketStream, data: bytes) -> bytes:
    """What comes back of *data*, as long as it is."""
    await stream.send(data)
    found = b""
    while len(found) < len(data):
        found += await stream.receive()
    return found


async def ended(stream: anyio.abc.SocketStream) -> bool:
    """Whether the other side closes it."""
    try:
        await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return True
    return False


async def test_what_goes_through_is_unchanged() -> None:
    """Every byte, in its order, both ways."""
    data = bytes(range(256)) * 4096
    async with proxied() as proxy, await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
        async with anyio.create_task_group() as group:
            group.start_soon(stream.send, data)
            found = b""
            while len(found) < len(data):
                found += await stream.receive()
        assert found == data


async def test_a_cut_ends_what_is_there_and_nothing_that_comes() -> None:
    """Both ends see their connection end; the next one works."""
    async with proxied() as proxy:
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            assert await echoed(stream, b"a") == b"a"
            proxy.cut()
            assert await ended(stream)
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            assert await echoed(stream, b"b") == b"b"


async def test_refusing_ends_what_comes_until_it_heals() -> None:
    """Connections end before a byte; afterwards they work."""
    async with proxied() as proxy:
        proxy.refusing = True
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            assert await ended(stream)
        proxy.heal()
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
            assert await echoed(stream, b"a") == b"a"


async def test_silence_holds_everything_back_and_loses_nothing() -> None:
    """What was sent meanwhile arrives once it heals, in its order."""
    async with proxied() as proxy, await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
        assert await echoed(stream, b"a") == b"a"
        proxy.silence()
        await stream.send(b"b")
        with anyio.move_on_after(0.1) as waited:
            await stream.receive()
        assert waited.cancelled_caught
        proxy.heal()
        assert await echoed(stream, b"c") in {b"b", b"bc"}


async def test_a_delay_comes_in_both_directions_and_keeps_the_order() -> None:
    """An echo takes twice the delay at least; less delay later overtakes nothing."""
    async with proxied() as proxy, await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
        proxy.delay_s = DELAY_S
        began = anyio.current_time()
        assert await echoed(stream, b"a") == b"a"
        assert anyio.current_time() - began >= 2 * DELAY_S
        await stream.send(b"b")
        proxy.delay_s = 0.0
        await stream.send(b"c")
        found = b""
        while len(found) < 2:
            found += await stream.receive()
        assert found == b"bc"
