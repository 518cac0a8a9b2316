"""HTTP/1.1 as a lean client speaks it: connections that have one request at a time, and the pool that they are in.

The pool does what those of real clients do. It opens a connection when a request finds none free, up to a limit, and
takes the one used last. A connection can end at any moment, and then there are three cases:

    nothing was under way               it is forgotten
    408 came instead of the answer      the door gave it up before it had the request (RFC 9110, 15.5.9), which goes out
                                        again on another connection
    it was closed without an answer     the same: an event has an id, so its second POST stores nothing (RFC 9110, 9.2.2
                                        allows a repetition to a client that knows so much)

Repetitions are counted. A request that was given up `TRIES` times is lost, and says so.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from benchmarks.validity import InvalidRun

TRIES = 3  # of a request, each on another connection
_GIVEN_UP = b"HTTP/1.1 408 "
_LENGTH = b"content-length: "


@dataclass(slots=True, eq=False)
class Exchange:
    """A request, and the moment it was meant to begin (`time.perf_counter`)."""

    request: bytes
    intended_s: float
    tries: int = 0


class Connection(asyncio.Protocol):
    """One keep-alive connection. `exchange` is what is under way, None while it is free."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._buffer = b""
        self._end = 0
        self.exchange: Exchange | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send at once what is written."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's own class is no subclass of it
        with suppress(OSError):  # one of a Unix socket has no such option
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, exchange: Exchange) -> None:
        """Begin *exchange*."""
        self.exchange = exchange
        self.transport.write(exchange.request)

    def data_received(self, data: bytes) -> None:
        """Hand a whole answer to the pool."""
        buffer = self._buffer = self._buffer + data
        if not self._end:
            head = buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            start = buffer.lower().index(_LENGTH) + len(_LENGTH)
            self._end = head + 4 + int(buffer[start : buffer.index(b"\r", start)])
        if len(buffer) >= self._end:
            self._buffer, self._end = b"", 0
            self._pool.heard(self, buffer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Have the pool repeat what was under way."""
        self._pool.ended(self, f"the connection was closed: {exc or 'by the door'}")


class Pool:
    """Connections to one door, for the length of an `async with`.

    Args:
        url: `http://` and address, or `unix:` and the path of a socket.
        limit: How many there are at most; a request that finds none waits for one.
        answered: Called with each request and its whole answer.
        failed: Called once nothing more can come of a request, with the reason.
    """

    def __init__(
        self,
        url: str,
        *,
        limit: int,
        answered: Callable[[Exchange, bytes], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._url = url
        self._limit = limit
        self._answered, self._failed = answered, failed
        self._all: set[Connection] = set()
        self._free: list[Connection] = []
        self._waiting: deque[Exchange] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self.repeated = 0

    @property
    def free(self) -> int:
        """Connections on which nothing is under way."""
        return len(self._free)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._limit = 0
        for task in self._opening:
            task.cancel()
        for connection in self._all:
            connection.exchange = None
            connection.transport.close()

    async def fill(self) -> None:
        """Open all of them now, for requests that follow at once: one that stays unused is given up by the door."""
        for _ in range(self._limit):
            await self._open()

    def send(self, exchange: Exchange) -> None:
        """Begin *exchange* on the free connection that was used last; without one it waits, and one more is opened."""
        if self._free:
            self._free.pop().send(exchange)
            return
        self._waiting.append(exchange)
        self._grow()

    def heard(self, connection: Connection, answer: bytes) -> None:
        """A whole answer came on *connection*."""
        exchange = connection.exchange
        if answer.startswith(_GIVEN_UP):
            self.ended(connection, "the door answered 408")
        elif exchange is None:
            self._failed(InvalidRun(f"an answer to no request: {answer[:200].decode(errors='replace')}"))
        else:
            connection.exchange = None
            self._release(connection)
            self._answered(exchange, answer)

    def ended(self, connection: Connection, why: str) -> None:
        """*connection* is of no more use; what was under way on it is repeated on another."""
        exchange, connection.exchange = connection.exchange, None
        self._all.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if exchange is None or not self._limit:
            return
        exchange.tries += 1
        if exchange.tries == TRIES:
            self._failed(InvalidRun(f"lost: a request was given up {TRIES} times, at last since {why}"))
            return
        self.repeated += 1
        self.send(exchange)

    def _release(self, connection: Connection) -> None:
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._free.append(connection)

    def _grow(self) -> None:
        if len(self._all) + len(self._opening) < self._limit:
            task = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        path = self._url.removeprefix("unix:")
        try:
            if path != self._url:
                _, connection = await loop.create_unix_connection(lambda: Connection(self), path)
            else:
                host, _, port = self._url.removeprefix("http://").rpartition(":")
                _, connection = await loop.create_connection(lambda: Connection(self), host, int(port))
        except OSError as error:
            self._failed(InvalidRun(f"the door takes no connection: {error}"))
            return
        self._all.add(connection)
        self._release(connection)
