"""Whether the client of a request is still there, while it waits for its answer and while it reads it."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import anyio

from agent.connections import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from aiohttp.web_request import BaseRequest


@contextmanager
def watched(request: BaseRequest, lost: Callable[[], None]) -> Iterator[None]:
    """Call *lost* if the client goes away while the block runs; at once if it has gone."""
    protocol = request.protocol
    if protocol is None or request.transport is None:
        lost()
    elif isinstance(protocol, Connection):
        protocol.on_lost = lost
    try:
        yield
    finally:
        if isinstance(protocol, Connection):
            protocol.on_lost = None


@asynccontextmanager
async def flushed(request: BaseRequest, *, timeout_s: float) -> AsyncIterator[None]:
    """Write in this block: at its end the operating system has all of it.

    Args:
        request: Whose answer it is.
        timeout_s: From the beginning of the block; then the connection is torn.

    Raises:
        ConnectionError: The client is gone, or has not read it in time.
    """
    written = False
    with anyio.move_on_after(timeout_s):
        yield
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        transport.set_write_buffer_limits(high=0)
        await request.writer.drain()
        written = True
    if not written:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(f"the client has not read its answer within {timeout_s:g} s")
