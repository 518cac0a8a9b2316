"""One HTTP connection: aiohttp's protocol with the limits it leaves out, and every error of it as a problem document.

What is added to aiohttp: a deadline for the headers of every request, not only for idle connections; a bound on
connections; no decompression; problem documents instead of text and HTML; no access log, no version in `Server`.

What is taken away is work: requests of a connection are answered one after the other by its own task, not each in a
new one, and a request whose head we know (`repeats`) reaches its door without a request object.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import StreamWriter
from aiohttp.web_protocol import ERROR, RequestHandler

from agent import problems
from agent.answers import Answer, refusal, whole
from agent.repeats import Boundary, Head
from mesh.errors import BadHeader, MeshError, Overloaded, RequestTimeout, TooManyHeaders

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.streams import StreamReader
    from aiohttp.web_request import BaseRequest
    from aiohttp.web_response import StreamResponse

    from agent.listener import Listener

LINGER_S = 1.0  # how long a refused body is still read, so that the answer is not lost in a reset


class Connection(RequestHandler):
    """One connection. It takes the place of aiohttp's own loop over requests, and keeps its state as that does."""

    __slots__ = ("_again", "_begun", "_boundary", "_head", "_header_timer", "_listener", "_repeated", "on_lost")

    def __init__(self, listener: Listener, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._listener = listener
        self._header_timer: asyncio.TimerHandle | None = None
        self._boundary = Boundary()
        self._begun: tuple[RawRequestMessage, bytes] | None = None  # the last request, and its head
        self._head: Head | None = None  # of a request that was answered, and how one more with it is
        self._again: Callable[[bytes], Awaitable[bytes]] | None = None
        self._repeated: bytes | None = None  # the body of one more
        self.on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        if self._listener.full:
            self._turn_away(transport)
            return
        self._listener.connections.add(self)
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End; a request in progress goes on without its client."""
        self._listener.connections.discard(self)
        self._stop_timer()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    # --- what comes in ---

    def data_received(self, data: bytes) -> None:
        """Take in bytes: one more request with the head we know, or whatever aiohttp makes of them."""
        head, waiter = self._head, self._waiter
        if head is not None and waiter is not None and self._boundary.here and not waiter.done():
            body = head.body(data)
            if body is not None:  # nothing is in progress and nothing is half read: this is the next request
                self._repeated = body
                waiter.set_result(None)
                return
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._stop_timer()
        elif self._header_timer is None and self._idle:
            self._start_timer()  # a later request of this connection has begun and is not whole
        self._follow(data, self._request_count - before)

    def _follow(self, data: bytes, begun: int) -> None:
        """Keep the place in the stream of bytes, and the head of the request that began, where both are certain."""
        if begun == 0:
            if data:  # aiohttp hands nothing to its parser to have it go on
                self._boundary.body(len(data))
            return
        self._begun = None
        message = self._messages[-1][0] if len(self._messages) == begun == 1 else None
        if not isinstance(message, RawRequestMessage):
            self._boundary.lost()
            return
        length = message.headers.get("Content-Length", "")
        head = self._boundary.request(data, int(length) if length.isdecimal() and not message.chunked else None)
        if head is not None:
            self._begun = message, head

    @property
    def _idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    # --- what goes out ---

    async def start(self) -> None:
        """Answer one request after the other until the connection ends. aiohttp runs this as the connection's task."""
        while not self._force_close:
            if not self._messages and self._repeated is None:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            try:
                goes_on = await self._next()
            except asyncio.CancelledError:
                self.force_close()
                raise
            except ConnectionError:
                break
            except Exception as error:  # noqa: BLE001 - as aiohttp does: what fails here ends its connection alone
                self.log_exception("Unhandled exception", exc_info=error)
                self.force_close()
                break
            if not goes_on or self._close or self._force_close:
                break
            self._keep()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _next(self) -> bool:
        """Answer the next request; whether the connection can have one more."""
        if self._repeated is not None and self._again is not None:
            body, self._repeated = self._repeated, None
            return await self._repeat(self._again, body)
        message, payload = self._messages.popleft()
        begun = self._begun
        head = begun[1] if begun is not None and begun[0] is message else None
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return await self._answer(message, payload, head)

    async def _answer(self, message: Any, payload: StreamReader, head: bytes | None) -> bool:
        manager, factory = self._manager, self._request_factory
        if manager is None or factory is None:
            return False  # lost
        manager.requests_count += 1
        handler = manager.request_handler
        if not isinstance(message, RawRequestMessage):
            handler, message = self._make_error_handler(message), ERROR
        writer = StreamWriter(self, self._loop)
        task = cast("asyncio.Task[None]", self._task_handler or asyncio.current_task())
        request = factory(message, payload, self, writer, task)
        response, reset = await self._handle_request(request, None, handler)
        if reset:
            return False
        if not payload.is_eof():
            await self._linger(payload)
        keep_alive = bool(response.keep_alive)
        if keep_alive and head is not None and isinstance(response, Answer) and response.again is not None:
            self._head, self._again = Head.of(head), response.again
        return keep_alive

    async def _linger(self, payload: StreamReader) -> None:
        """Read on for a moment what a refused request goes on to send; then close."""
        if not self._force_close:
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while not payload.is_eof():
                        await payload.readany()
        if not payload.is_eof():
            self.close()

    async def _repeat(self, again: Callable[[bytes], Awaitable[bytes]], body: bytes) -> bool:
        """Answer a request whose head we know."""
        self._request_in_progress = True
        try:
            written, keep_alive = await self._listener.repeat(again, body)
            transport = self.transport
            if transport is None or transport.is_closing():
                return False
            transport.write(written)
            if self._paused:
                await self._drain_helper()
            return keep_alive
        finally:
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)

    def _keep(self) -> None:
        """Close the connection once it has been idle for too long."""
        close_at = self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_at, self._process_keepalive)

    # --- what is refused before there is a request ---

    def _start_timer(self) -> None:
        self._header_timer = self._loop.call_later(self._listener.settings.header_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if self._force_close or self._close or self.transport is None or self._messages or self._request_in_progress:
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
        """Write a whole response: there is no request to answer."""
        stream = cast("asyncio.Transport", transport)  # what aiohttp serves on; uvloop's own class is no subclass of it
        stream.write(whole(self._refusal(error), close=True))

    def _refusal(self, error: BaseException) -> Answer:
        listener = self._listener
        return refusal(error, retry_after_s=listener.settings.retry_after_s, door=listener.name)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        """Answer what aiohttp could not parse, or a handler did not catch, and close."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionError("nobody is there to read a whole answer")  # aiohttp closes, and says nothing
        error: BaseException | None = _parse_error(exc, message) if status < problems.INTERNAL_STATUS else exc
        response = self._refusal(error or RuntimeError("no response"))
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
