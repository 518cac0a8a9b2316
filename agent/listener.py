"""One HTTP listener: aiohttp's protocol with the limits it leaves out, and every error of it as a problem document.

What is added to aiohttp: a deadline for the headers of every request, not only for idle connections; a bound on
connections; no decompression; problem documents instead of text and HTML; no access log, no version in `Server`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, cast

import anyio
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from agent import metrics, problems
from mesh import logs
from mesh.errors import BadHeader, MeshError, Overloaded, RequestTimeout, TooManyHeaders

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from agent.settings import AgentSettings

SOCKET_MODE = 0o660  # the adapter shares the group, and nobody else is in the pod
BACKLOG = 128  # connections the kernel holds before we accept them
LINGER_S = 1.0  # how long a refused body is still read, so that the answer is not lost in a reset
SERVER = "mesh-agent"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

log = logs.get("agent")


def new_instance() -> str:
    """A name for one occurrence of a problem."""
    return token_hex(8)


def answer(status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> web.Response:
    """A response of ours."""
    fields = {"Content-Type": content_type, "Server": SERVER, **(headers or {})}
    return web.Response(status=status, body=body, headers=fields)


def refusal(error: BaseException, *, retry_after_s: int, door: str) -> web.Response:
    """The problem document of *error* as a response, logged and counted."""
    instance = new_instance()
    document = problems.document(error, instance=instance)
    metrics.refused(door, document["code"])
    if isinstance(error, MeshError):
        log.info("request_refused", door=door, code=error.code, status=error.status, instance=instance)
    else:
        log.exception("request_failed", error, door=door, instance=instance)  # noqa: LOG004, PLE1205 - ours
    fields = problems.headers(error, retry_after_s=retry_after_s)
    return answer(document["status"], problems.encode(document), problems.CONTENT_TYPE, fields)


@contextmanager
def watched(request: web.BaseRequest, lost: Callable[[], None]) -> Iterator[None]:
    """Call *lost* if the client goes away while the block runs; at once if it has gone."""
    protocol = request.protocol
    if protocol is None or request.transport is None:
        lost()
    elif isinstance(protocol, _Protocol):
        protocol.on_lost = lost
    try:
        yield
    finally:
        if isinstance(protocol, _Protocol):
            protocol.on_lost = None


@asynccontextmanager
async def flushed(request: web.BaseRequest, *, timeout_s: float) -> AsyncIterator[None]:
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


class _Protocol(RequestHandler):
    """One connection."""

    __slots__ = ("_header_timer", "_listener", "on_lost")

    def __init__(self, listener: Listener, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._listener = listener
        self._header_timer: asyncio.TimerHandle | None = None
        self.on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._listener.full:
            self._turn_away(transport)
            return
        self._listener.connections.add(self)
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._listener.connections.discard(self)
        self._stop_timer()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._stop_timer()
        elif self._header_timer is None and self._idle:
            self._start_timer()  # a later request of this connection has begun and is not whole

    @property
    def _idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _start_timer(self) -> None:
        self._header_timer = self._loop.call_later(self._listener.settings.header_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if self._force_close or self._close or self.transport is None or self._messages or self._current_request:
            return
        limit = self._listener.settings.header_timeout_s
        self._say(
            self.transport,
            RequestTimeout(
                f"no whole request header within {limit:g} s",
                expected=f"request line and headers within {limit:g} s",
                next="send the header at once",
            ),
        )
        self.force_close()

    def _turn_away(self, transport: asyncio.BaseTransport) -> None:
        limit = self._listener.settings.max_connections
        self._force_close = True
        self._manager = None
        self._say(
            transport,
            Overloaded(
                f"{limit} connections are open, which is the limit",
                expected=f"at most {limit} connections",
                next="reuse connections",
            ),
        )
        transport.close()

    def _say(self, transport: asyncio.BaseTransport, error: MeshError) -> None:
        """Write a whole response by hand: there is no request to answer."""
        response = refusal(error, retry_after_s=self._listener.settings.retry_after_s, door=self._listener.name)
        body = response.body if isinstance(response.body, bytes) else b""
        fields = {**response.headers, "Content-Length": str(len(body)), "Connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        stream = cast("asyncio.Transport", transport)  # what aiohttp serves on; uvloop's own class is no subclass of it
        stream.write(f"HTTP/1.1 {response.status} {response.reason}\r\n{head}\r\n".encode() + body)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse, or a handler did not catch, and close."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionError("nobody is there to read a whole answer")  # aiohttp closes, and says nothing
        error: BaseException | None = _parse_error(exc, message) if status < problems.INTERNAL_STATUS else exc
        response = refusal(
            error or RuntimeError("no response"),
            retry_after_s=self._listener.settings.retry_after_s,
            door=self._listener.name,
        )
        response.force_close()
        return response


def _parse_error(exc: BaseException | None, message: str | None) -> MeshError:
    """Our error for a request that is not well-formed HTTP; the parser's own text can quote the request."""
    if isinstance(exc, LineTooLong) or (message or "").startswith("Too many headers"):
        return TooManyHeaders(
            "the request line or the header fields are over the limit", next="send fewer or shorter header fields"
        )
    return BadHeader(
        "the request is not well-formed HTTP/1.1",
        expected="RFC 9112: one Host, no CR, LF or NUL in a field, one way to delimit the body",
        next="use an HTTP library and let it write the headers",
    )


class _Server(web.Server):
    """A factory of our protocol."""

    def __init__(self, listener: Listener, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(handler)
        self._listener = listener

    def __call__(self) -> RequestHandler:
        settings = self._listener.settings
        return _Protocol(
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
        handler: Answers a request; what it raises becomes a problem document.
        settings: Limits.
        host: An IP address.
        port: 0 takes any free one.
        path: A Unix socket instead.
    """

    def __init__(
        self,
        name: str,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        settings: AgentSettings,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        path: str = "",
    ) -> None:
        self.name = name
        self.settings = settings
        self.connections: set[_Protocol] = set()
        self._handler = handler
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

    @property
    def own_names(self) -> frozenset[str]:
        """What a request for this listener says in `Host`; a Unix socket has no port to name."""
        if self._path:
            return frozenset({"localhost"})
        return frozenset(f"{name}:{self.port}" for name in LOOPBACK_NAMES)

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
        else:
            host, port = self._address
            self._server = await loop.create_server(self._http, host, port, backlog=BACKLOG)
            self.port = self._server.sockets[0].getsockname()[1]
            self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        log.info("listening", door=self.name, url=self.url)

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
