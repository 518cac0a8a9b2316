"""Events as server-sent events: for tailing, and for consumers that would rather not ask again and again.

    id: <lease>
    data: <the CloudEvent as JSON, on one line>

Each is leased as it is written, `max` of them at once: the next one comes when one was settled. With `ack=auto` an
event is acked once the operating system has its last byte; what is then on its way to a client that dies is lost to
that client. A client that reads slowly slows the stream and nothing else; one that reads nothing for half a lease is
left, and what it was not sent is handed back. A line that begins with a colon is a comment: they keep the connection
from looking idle, and the last one says why the stream ends.

Source: HTML Living Standard, 9.2 Server-sent events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
from aiohttp.web_response import StreamResponse

from agent import answers, presence
from mesh import logs
from mesh.errors import MeshError
from mesh.event import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.web import BaseRequest

    from agent.pull.asking import Fetch
    from agent.pull.door import Pull
    from agent.pull.handing import Handing
    from agent.pull.leases import Lease
    from mesh.subscription import Delivery, Subscription

SSE: Final = "text/event-stream"
KEEP_ALIVE_S = 15.0  # what the standard recommends: below any proxy's idle limit
AT_ONCE = 64  # events of one write
_FIRST = b": each id is a lease\nretry: 2000\n\n"
_ALIVE = b": still here\n\n"
_DRAINING = b": draining\n\n"

log = logs.get("pull")


def wanted(request: BaseRequest) -> bool:
    """Whether *request* asks for server-sent events."""
    kinds = [kind.partition(";")[0].strip().lower() for kind in request.headers.get("Accept", "").split(",")]
    return SSE in kinds


class Stream:
    """One client's stream.

    Args:
        pull: The door.
        handing: Of the subscription.
        subscription: Gives the events.
        asked: Its `most` bounds what the client has unsettled; `lease_s` is set.
    """

    def __init__(self, pull: Pull, handing: Handing, subscription: Subscription, asked: Fetch) -> None:
        self._pull = pull
        self._handing = handing
        self._subscription = subscription
        self._most = asked.most
        self._lease_s = asked.lease_s or 0.0
        self._auto_ack = asked.auto_ack
        self._sent: set[str] = set()
        self._lost = False
        self._scope = anyio.CancelScope()

    async def answer(self, request: BaseRequest) -> StreamResponse:
        """Stream until the client goes or the agent drains.

        Raises:
            ConnectionError: The client went, or has read nothing for too long.
        """
        fields = {"Content-Type": SSE, "Cache-Control": "no-store", "Server": answers.SERVER}
        response = StreamResponse(headers=fields)
        response.force_close()
        await response.prepare(request)
        try:
            with presence.watched(request, self._leave):
                await self._write(request, response, _FIRST)
                await self._run(request, response)
                last = _DRAINING
        except MeshError as error:  # it has begun, so no problem document any more
            log.info("stream_ended", subscription=self._handing.name, code=error.code)
            last = f": {error.code}\n\n".encode()
        except ConnectionError:
            raise
        except Exception as error:
            log.exception("stream_failed", error)  # noqa: PLE1205, TRY401 - ours takes the error
            raise ConnectionError("the stream failed") from error
        await self._write(request, response, last)
        await response.write_eof()
        return response

    async def _run(self, request: BaseRequest, response: StreamResponse) -> None:
        while not self._pull.draining:
            leases: list[Lease[Delivery]] = []
            with self._pull.waiting(KEEP_ALIVE_S) as self._scope:
                if self._lost:
                    raise ConnectionResetError("the client went")
                room = await self._room()
                leases = await self._handing.take(self._subscription, room, self._lease_s)
            if leases:
                await self._send(request, response, leases)
            elif not self._pull.draining:
                await self._write(request, response, _ALIVE)

    async def _room(self) -> int:
        """Wait until the client has fewer than it may have; how many more it may."""
        while True:
            if len(self._sent) + AT_ONCE > self._most:
                self._sent = {token for token in self._sent if token in self._handing.leases}
            if room := min(AT_ONCE, self._most - len(self._sent)):
                return room
            await self._handing.changed()

    async def _send(self, request: BaseRequest, response: StreamResponse, leases: Sequence[Lease[Delivery]]) -> None:
        """Write them; what cannot be written is handed back at once."""
        tokens = [lease.token for lease in leases]
        try:
            await self._write(request, response, b"".join(map(_shown, leases)))
        except BaseException:
            self._handing.hand_back(tokens)
            raise
        if self._auto_ack:
            for token in tokens:
                self._handing.ack(token)
        else:
            self._sent.update(tokens)

    async def _write(self, request: BaseRequest, response: StreamResponse, data: bytes) -> None:
        """Return once the operating system has all of it."""
        async with presence.flushed(request, timeout_s=self._lease_s / 2):
            await response.write(data)

    def _leave(self) -> None:
        self._lost = True
        self._scope.cancel()


def _shown(lease: Lease[Delivery]) -> bytes:
    return b"id: " + lease.token.encode() + b"\ndata: " + encode(lease.held.event.fields) + b"\n\n"
