"""The door of whoever runs the pod: `POST /v1/stop-pull`, on a Unix socket in a directory of the agent's own.

A pod ends in two steps. First, while the application still runs, nothing more is taken for it; then, when it has ended,
SIGTERM has the agent finish what it holds. This door is for the first step, and has no token: who reaches the socket is
in the agent's own container. Over HTTP it would be a switch that anybody in the network can reach.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from agent import answers, requests
from agent.door import Door
from mesh import logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.web_request import BaseRequest
    from aiohttp.web_response import Response

    from agent.consuming import Consuming
    from agent.pull.door import Pull
    from agent.push.targets import Targets
    from agent.settings import AgentSettings

STOP_PULL = "/v1/stop-pull"
JSON = "application/json"

log = logs.get("agent")


class Stopped(msgspec.Struct, frozen=True):
    """What is left in hand.

    Attributes:
        settled: Nothing is.
        pushing: Subscriptions with a request to the application under way.
        leased: Subscriptions with an open lease.
    """

    settled: bool
    pushing: list[str]
    leased: list[str]


class StopPull:
    """Takes no more events for the application. Publishing goes on. Any number of calls are one.

    Args:
        limit_s: For what was handed to the application to be settled.
        consuming: The team's reader; None where the agent reads nothing.
        push: Its push targets, if any.
        pull: The pull door, if any.
    """

    def __init__(self, limit_s: float, consuming: Consuming | None, push: Targets | None, pull: Pull | None) -> None:
        self._limit_s = limit_s
        self._consuming = consuming
        self._push = push
        self._pull = pull
        self._running: asyncio.Task[Stopped] | None = None

    @property
    def began(self) -> bool:
        """Whether somebody has called."""
        return self._running is not None

    async def __call__(self) -> Stopped:
        """Returns once everything is settled, or the limit is over; what is not then goes on."""
        if self._running is None or self._running.done():
            log.info("stop_pull", limit_s=self._limit_s)
            self._running = asyncio.create_task(self._run(), name="stop-pull")
        return await asyncio.shield(self._running)  # a caller that goes away stops nothing

    async def _run(self) -> Stopped:
        if self._pull is not None:
            self._pull.stop()
        (pushing, ended), (leased, free) = await asyncio.gather(self._end_pushes(), self._end_leases())
        if self._consuming is not None:
            for name in ended + free:
                await self._consuming.release(name)  # what was pulled ahead goes to whoever else pulls
        stopped = Stopped(not pushing and not leased, pushing, leased)
        log.info("pull_stopped", settled=stopped.settled, pushing=",".join(pushing), leased=",".join(leased))
        return stopped

    async def _end_pushes(self) -> tuple[list[str], list[str]]:
        """Targets with requests under way at the end, and those without."""
        if self._push is None:
            return [], []
        await self._push.drain(self._limit_s)
        pushing = self._push.pushing
        return pushing, sorted(self._push.names - set(pushing))

    async def _end_leases(self) -> tuple[list[str], list[str]]:
        """The same for what is leased."""
        if self._pull is None:
            return [], []
        leased = await self._pull.settled(self._limit_s)
        return leased, sorted(set(self._pull.state()) - set(leased))


class Control(Door):
    """The door.

    Args:
        settings: Of the agent.
        stop_pull: Takes no more events.
    """

    name = "control"

    def __init__(self, settings: AgentSettings, stop_pull: Callable[[], Awaitable[Stopped]]) -> None:
        super().__init__(settings)
        self._stop_pull = stop_pull

    async def route(self, request: BaseRequest) -> Response:
        """Answer one request.

        Raises:
            MeshError: Its problem document is the answer.
        """
        requests.check_origin(request, self.own_names)
        if request.rel_url.raw_path != STOP_PULL:
            raise requests.no_such_path(STOP_PULL)
        requests.check_method(request, "POST")
        return answers.answer(200, msgspec.json.encode(await self._stop_pull()), JSON)
