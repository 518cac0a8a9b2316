"""Every push target of one agent: each waits for its subscription, runs, and drains.

A target whose subscription the policies do not have (yet), or that is inactive, waits for the bundle that brings it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agent.push.pusher import Pusher
from agent.push.sender import Sender
from agent.tasks import Tasks
from mesh import logs
from mesh.errors import Draining, NoBundle, NotFound

if TYPE_CHECKING:
    from pathlib import Path

    from agent.consuming import Consuming
    from agent.settings import AgentSettings

log = logs.get("push")


class Targets:
    """The targets of one agent.

    Args:
        settings: The agent's; its `push` says which.
        base: The directory of `agent.toml`; relative paths start there.
        consuming: Where the events come from.

    Raises:
        ConfigError: A file of a target is missing or malformed.
    """

    def __init__(self, settings: AgentSettings, base: Path, consuming: Consuming) -> None:
        self._consuming = consuming
        self._tasks = Tasks()
        self._stop = asyncio.Event()
        self._ended: dict[str, asyncio.Event] = {}
        self._senders = {t.name: Sender(t, base, check_s=settings.file_check_s) for t in settings.push}
        self._pushers = {t.name: Pusher(t, self._senders[t.name]) for t in settings.push}
        self._running: set[str] = set()

    @property
    def failed(self) -> asyncio.Event:
        """Set once a target has died; only a restart of the process helps."""
        return self._tasks.failed

    @property
    def names(self) -> frozenset[str]:
        """The subscriptions that are pushed."""
        return frozenset(self._pushers)

    def state(self) -> dict[str, Any]:
        """Facts for people who look at a probe: each target by its subscription."""
        breakers = self._consuming.subscriptions()
        found = {}
        for name, pusher in self._pushers.items():
            state = pusher.state()
            if name not in self._running:
                state["state"] = "no-subscription"
            elif state["state"] == "running":
                state["state"] = breakers.get(name, "running")
            found[name] = state
        return found

    async def start(self) -> None:
        """Begin to push, as soon as there is something to push. Returns at once.

        Raises:
            ConfigError: A file to connect with is missing or malformed.
        """
        await self._consuming.start()
        for name in self._pushers:
            self._ended[name] = asyncio.Event()
            self._tasks.spawn(f"push-{name}", self._run(name))

    async def drain(self, timeout_s: float) -> bool:
        """Take no more, let requests end, hand back the rest; True where all ended in time."""
        self._stop.set()
        for pusher in self._pushers.values():
            pusher.stop()
        try:
            async with asyncio.timeout(timeout_s):
                for ended in self._ended.values():
                    await ended.wait()
        except TimeoutError:
            log.warning("push_not_drained", targets=self.pushing)
            return False
        return True

    @property
    def pushing(self) -> list[str]:
        """The subscriptions that are pushed and have not ended."""
        return sorted(name for name, ended in self._ended.items() if not ended.is_set())

    async def close(self) -> None:
        """End at once; what is in hand is handed back."""
        self._stop.set()
        await self._tasks.cancel()
        for sender in self._senders.values():
            await sender.close()

    async def _run(self, name: str) -> None:
        try:
            while not self._stop.is_set():
                try:
                    subscription = await self._consuming.subscription(name)
                except (NotFound, NoBundle) as error:
                    log.warning("push_waits", subscription=name, code=error.code)
                    await self._news()
                    continue
                except Draining:
                    return
                self._running.add(name)
                await self._pushers[name].run(subscription)
        finally:
            self._running.discard(name)
            self._ended[name].set()

    async def _news(self) -> None:
        """Wait for another bundle, or the end."""
        adopted = self._consuming.adopted()
        works = [asyncio.ensure_future(adopted), asyncio.ensure_future(self._stop.wait())]
        try:
            await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for work in works:
                work.cancel()
