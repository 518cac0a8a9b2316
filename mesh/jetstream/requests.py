"""Requests over the connection's own inbox: one subscription for all answers, a deadline for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mesh.errors import MeshError, Unavailable
from mesh.jetstream import wire

NO_RESPONDERS = 503  # ADR-22


class Reply(NamedTuple):
    """The answer to a request; `status` where the server itself answered (404, 408, ...)."""

    status: int | None
    headers: dict[str, str]
    data: bytes


class Requests:
    """The requests in flight, by the token at the end of their reply subject."""

    def __init__(self, prefix: str, send: Callable[[str, bytes, str, Mapping[str, str] | None], None]) -> None:
        self._prefix = prefix
        self._send = send
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._last = 0

    async def ask(self, subject: str, payload: bytes, headers: Mapping[str, str] | None, timeout_s: float) -> Reply:
        """Send and wait; see `Connection.request`."""
        self._last += 1
        token = str(self._last)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        try:
            self._send(subject, payload, self._prefix + token, headers)
            async with asyncio.timeout(timeout_s):
                reply = await future
        except TimeoutError:
            raise Unavailable(f"no answer within {timeout_s} s", subject=subject, reason="timeout") from None
        finally:
            del self._waiting[token]
        if reply.status == NO_RESPONDERS:
            raise Unavailable(
                "nobody answers this subject",
                next="it is not served, or our account does not import it",
                subject=subject,
                reason="no-responders",
            )
        return reply

    def on_reply(self, subject: str, _reply: str, headers: bytes | None, data: bytes) -> None:
        """The listener of our inbox. A status with a payload is no status of the server."""
        future = self._waiting.get(subject[len(self._prefix) :])
        if future is not None and not future.done():
            status = None if data else wire.status_of(headers)
            future.set_result(Reply(status and status.code, wire.parse_headers(headers), data))

    def fail(self, error: MeshError) -> None:
        """Every request in flight ends with *error*."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
