"""What the doors have in common: one request in, one response out, and every error a problem document."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from agent import answers, metrics, requests
from agent.listener import Listener
from mesh import logs
from mesh.errors import Draining
from mesh.tracing import TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.web_request import BaseRequest
    from aiohttp.web_response import StreamResponse

    from agent.settings import AgentSettings


class Door(ABC):
    """A listener and what answers on it. A subclass sets `name` and answers in `route`."""

    name = "door"

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self.listener: Listener | None = None
        self.in_progress = 0

    @property
    def own_names(self) -> frozenset[str]:
        """What `Host` may say when the request is for this listener by its loopback name."""
        return frozenset() if self.listener is None else self.listener.own_names

    async def open(self, *, host: str, port: int, path: str = "") -> None:
        """Bind and listen.

        Raises:
            OSError: The address is taken or not ours.
        """
        bound = Listener(self.name, self, self._settings, host=host, port=port, path=path)
        await bound.start()
        self.listener = bound

    async def close(self, timeout_s: float) -> None:
        """Stop listening; requests in progress get *timeout_s* seconds."""
        if self.listener is not None:
            await self.listener.close(timeout_s)

    @property
    def url(self) -> str:
        """Where it listens."""
        return "" if self.listener is None else self.listener.url

    def part(self, request: BaseRequest) -> str:
        """What metrics and logs call the part of this door that answers *request*."""
        del request
        return self.name

    @abstractmethod
    async def route(self, request: BaseRequest) -> StreamResponse:
        """Answer one request.

        Raises:
            MeshError: Its problem document is the answer.
        """

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer one request, whatever happens; only a lost connection raises."""
        started, name = time.perf_counter(), self.part(request)
        self.in_progress += 1
        try:
            requests.check_version(request)
            response: StreamResponse = await self.route(request)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a problem document, whoever raised it
            with logs.of_trace(request.headers.get(TRACEPARENT)):
                response = self._refused(error, name, unread=not request.content.is_eof())
        finally:
            self.in_progress -= 1
        metrics.request(name, response.status, time.perf_counter() - started)
        return response

    async def repeat(self, again: Callable[[bytes], Awaitable[bytes]], body: bytes) -> tuple[bytes, bool]:
        """Answer one request whose head is that of an earlier one, whatever happens; only a lost connection raises.

        Args:
            again: What the answer to the earlier one left to do.
            body: All of it.

        Returns:
            The whole response, and whether the connection can have one more.
        """
        started = time.perf_counter()
        self.in_progress += 1
        try:
            written, status, keep_alive = answers.accepted(await again(body)), answers.ACCEPTED, True
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            response = self._refused(error, self.name, unread=False)
            status, keep_alive = response.status, response.keep_alive is not False
            written = answers.whole(response, close=not keep_alive)
        finally:
            self.in_progress -= 1
        metrics.request(self.name, status, time.perf_counter() - started)
        return written, keep_alive

    def _refused(self, error: Exception, name: str, *, unread: bool) -> answers.Answer:
        response = answers.refusal(error, retry_after_s=self._settings.retry_after_s, door=name)
        if isinstance(error, Draining) or unread:
            response.force_close()
        return response
