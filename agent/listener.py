"""One HTTP listener: a bound address, and the connections on it."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aiohttp.web_server import Server

from agent.connections import LINGER_S, Connection
from mesh import logs
from mesh.ports import lasting_ports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.web_request import BaseRequest
    from aiohttp.web_response import StreamResponse

    from agent.settings import AgentSettings

SOCKET_MODE = 0o660  # the adapter shares the group, and nobody else is in the pod
BACKLOG = 128  # connections the kernel holds before we accept them
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

log = logs.get("agent")


class Handler(Protocol):
    """Who answers."""

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer a request."""

    async def repeat(self, again: Callable[[bytes], Awaitable[bytes]], body: bytes) -> tuple[bytes, bool]:
        """Answer one whose head is that of an earlier one: the whole response, and whether there can be one more."""


class _Server(Server):
    """A factory of our protocol."""

    def __init__(self, listener: Listener, handler: Handler) -> None:
        super().__init__(handler.handle)
        self._listener = listener

    def __call__(self) -> Connection:
        settings = self._listener.settings
        return Connection(
            self._listener,
            self,
            loop=self._loop,
            keepalive_timeout=settings.keepalive_s,
            access_log=None,
            max_line_size=settings.max_header_bytes,
            max_field_size=settings.max_header_bytes,
            max_headers=settings.max_headers,
            lingering_time=LINGER_S,
            auto_decompress=False,
        )


class Listener:
    """A bound address and the connections on it.

    Args:
        name: For logs and metrics.
        handler: Answers requests; what it raises becomes a problem document.
        settings: Limits.
        host: An IP address.
        port: 0 takes a free one that it can have again after a restart.
        path: A Unix socket instead.
    """

    def __init__(
        self,
        name: str,
        handler: Handler,
        settings: AgentSettings,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        path: str = "",
    ) -> None:
        self.name = name
        self.settings = settings
        self.connections: set[Connection] = set()
        self._handler = handler
        self.repeat = handler.repeat
        self.own_names: frozenset[str] = frozenset()  # what a request for this listener says in `Host`
        self._address = (host, port)
        self._path = path
        self._server: asyncio.Server | None = None
        self._http: _Server | None = None
        self.url = ""
        self.port = port

    @property
    def full(self) -> bool:
        """Whether one more connection would be too many."""
        return len(self.connections) >= self.settings.max_connections

    async def start(self) -> None:
        """Bind and listen.

        Raises:
            OSError: The address is taken or not ours.
        """
        loop = asyncio.get_running_loop()
        self._http = _Server(self, self._handler)
        if self._path:
            remove_stale_socket(self._path)
            self._server = await loop.create_unix_server(self._http, sock=bind_unix(self._path), backlog=BACKLOG)
            self.url = f"unix:{self._path}"
            self.own_names = frozenset({"localhost"})  # a Unix socket has no port to name
        else:
            host, port = self._address
            self._server = await self._bind(host, port)
            self.port = self._server.sockets[0].getsockname()[1]
            self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
            self.own_names = frozenset(f"{name}:{self.port}" for name in LOOPBACK_NAMES)
        log.info("listening", door=self.name, url=self.url)

    async def _bind(self, host: str, port: int) -> asyncio.Server:
        create = partial(asyncio.get_running_loop().create_server, self._http, host, backlog=BACKLOG)
        for lasting in () if port else lasting_ports(host):
            with suppress(OSError):  # somebody was told of it, too
                return await create(lasting)
        return await create(port)

    async def close(self, timeout_s: float) -> None:
        """Stop listening, let requests in progress end, close the connections."""
        if self._server is not None:
            self._server.close()
        if self._http is not None:
            self._http.pre_shutdown()
            await self._http.shutdown(timeout_s)
        if self._path:
            remove_stale_socket(self._path)


def bind_unix(path: str) -> socket.socket:
    """A Unix socket bound at *path* that is `SOCKET_MODE` from its first moment: a chmod would come after a caller.

    Raises:
        OSError: The path is taken, or not ours to write.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~SOCKET_MODE)  # of the whole process, for one system call, before anything else runs
    try:
        bound.bind(path)
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(before)
    return bound


def remove_stale_socket(path: str) -> None:
    """Remove a socket that an earlier process left; anything else at *path* stays."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(mode):
        Path(path).unlink()
