"""A small TCP proxy on loopback that cuts, refuses, silences and delays what goes through it.

One stands between a process and one nats-server, so that a fault of the network hits that process alone.
"""

from __future__ import annotations

import math
import socket
import struct
from contextlib import suppress

import anyio
import anyio.abc

CHUNKS = 256  # of at most 64 KiB, on their way in one direction; a slower receiver slows the sender
_ENDS = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)  # how a connection ends


class Proxy:
    """Forwards every connection to one port of loopback.

    Attributes:
        port: Where it listens, from the moment that `run` has started.
        delay_s: Seconds that each byte takes longer, in each direction.
        refusing: Connections that come are closed at once; those that are there stay.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._scopes: set[anyio.CancelScope] = set()
        self._flowing = anyio.Event()
        self._flowing.set()
        self.port = 0
        self.delay_s = 0.0
        self.refusing = False

    @property
    def url(self) -> str:
        """For a NATS client."""
        return f"nats://127.0.0.1:{self.port}"

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Forward until cancelled."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - anyio's, not Django's
        task_status.started()
        async with listener:
            await listener.serve(self._forward)

    def cut(self) -> None:
        """Close every connection."""
        for scope in tuple(self._scopes):
            scope.cancel()

    def silence(self) -> None:
        """Forward nothing and close nothing, as a network that drops packets does. `heal` ends it."""
        if self._flowing.is_set():
            self._flowing = anyio.Event()

    def heal(self) -> None:
        """Undo everything: what was held back goes on its way."""
        self._flowing.set()
        self.delay_s = 0.0
        self.refusing = False

    async def _forward(self, client: anyio.abc.SocketStream) -> None:
        async with client:
            if self.refusing:
                return _reset(client)
            await self._flowing.wait()
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    server = await anyio.connect_tcp("127.0.0.1", self._target_port)
                except OSError:
                    return _reset(client)  # nobody is there: as near to a refused connection as a proxy comes
                else:
                    async with server:
                        await self._both(client, server)
                finally:
                    self._scopes.discard(scope)
        return None

    async def _both(self, client: anyio.abc.SocketStream, server: anyio.abc.SocketStream) -> None:
        """Until either side ends the connection."""
        async with anyio.create_task_group() as group:

            async def pump(source: anyio.abc.SocketStream, target: anyio.abc.SocketStream) -> None:
                await self._pump(source, target)
                group.cancel_scope.cancel()

            group.start_soon(pump, client, server)
            group.start_soon(pump, server, client)

    async def _pump(self, source: anyio.abc.SocketStream, target: anyio.abc.SocketStream) -> None:
        """One direction, in order, each chunk not before its time."""
        send, receive = anyio.create_memory_object_stream[tuple[float, bytes]](CHUNKS)

        async def read() -> None:
            async with send:
                with suppress(*_ENDS):
                    while True:
                        chunk = await source.receive()
                        await send.send((anyio.current_time() + self.delay_s if self.delay_s else -math.inf, chunk))

        async with anyio.create_task_group() as group, receive:
            group.start_soon(read)
            with suppress(*_ENDS):
                async for due, chunk in receive:
                    if due > anyio.current_time():
                        await anyio.sleep_until(due)
                    await self._flowing.wait()
                    await target.send(chunk)
            group.cancel_scope.cancel()


def _reset(stream: anyio.abc.SocketStream) -> None:
    """Have the end of *stream* be a reset."""
    own = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - anyio's, not Django's
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
