"""The process: what starts in which order, and what SIGTERM does.

Start order: core, health, control, intake, webhooks, push. A pod that ends says so first, through the control door,
while its application still runs and publishes: then push and pull take no more events. SIGTERM begins the drain. Push
and pull let what is out be settled while the core finishes what it holds, and the listeners stay open to the end of it:
a new request gets 503 `draining` and `Retry-After` instead of a refused connection, `/livez` stays 200 and `/readyz`
says why not. Requests in progress end, the publisher's window empties, then all closes. A second signal ends it at
once.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.control import Control, StopPull
from agent.core import Agent
from agent.health import Health
from agent.intake import Intake
from agent.keys import MIN_TOKEN_CHARS, Secrets
from agent.process import EXIT_FAILED
from agent.webhooks.door import Webhooks
from mesh import logs
from mesh.errors import ConfigError
from mesh.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.consuming import Consuming
    from agent.door import Door
    from agent.pull.door import Pull
    from agent.push.targets import Targets
    from agent.settings import AgentSettings

EXIT_DRAINED = 0
EXIT_NOW = 130  # a second signal: 128 + SIGINT, as shells count
CLOSE_S = 1.0  # for a listener's connections, once nothing is in progress
SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logs.get("agent")


class Sidecar:
    """The agent with its doors.

    Args:
        settings: As loaded.
        base: The directory of `agent.toml`; relative file names start there.

    Raises:
        ConfigError: A file of ours is missing or malformed.
    """

    def __init__(self, settings: AgentSettings, base: Path) -> None:
        self._settings = settings
        self.agent = Agent(settings, base)
        token = Secrets([base / settings.token_file], min_bytes=MIN_TOKEN_CHARS, check_s=settings.file_check_s)
        self.consuming = _consuming(settings, base)
        self.push = _push(settings, base, self.consuming)
        self.health = Health(self.agent, self._beside, self._opened)
        self.pull = _pull(settings, self.consuming, self.push)
        self.stop_pull = StopPull(settings.stop_pull_s, self.consuming, self.push, self.pull)
        self.control = Control(settings, self.stop_pull)
        self.intake = Intake(self.agent, token, self.pull)
        self.webhooks = Webhooks(self.agent, base)
        self._ports = base / settings.ports_file if settings.ports_file else None
        self._started: list[tuple[str, Door]] = []
        self._stop = asyncio.Event()
        self._now = asyncio.Event()

    async def start(self) -> None:
        """Start everything, in order.

        Raises:
            ConfigError: A listener cannot bind, or a file to read with is missing.
        """
        s = self._settings
        self._forget_ports()
        await self.agent.start()
        order: list[tuple[str, Door, Callable[[], Awaitable[None]]]] = [
            ("health", self.health, lambda: self.health.open(host=s.health_host, port=s.health_port)),
            ("intake", self.intake, lambda: self.intake.open(host=s.http_host, port=s.http_port, path=s.http_socket)),
            ("webhooks", self.webhooks, lambda: self.webhooks.open(host=s.webhooks_host, port=s.webhooks_port)),
        ]
        if s.control_socket:
            order.insert(
                1, ("control", self.control, lambda: self.control.open(host="", port=0, path=s.control_socket))
            )
        for name, door, bind in order:
            try:
                await bind()
            except OSError as error:
                await self.close()
                raise ConfigError(
                    f"the {name} door cannot listen: {error.strerror or error.__class__.__name__}",
                    expected="a free address of this machine",
                    next=f"change the {name} settings; port 0 takes any free port",
                ) from error
            self._started.append((name, door))
        if self.push is not None:
            try:
                await self.push.start()
            except ConfigError:
                await self.close()
                raise

    async def run(self) -> int:
        """Start, serve until a signal or a failure, drain; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.stop)
        await self.start()
        announce = asyncio.create_task(self._announce(), name="announce")
        try:
            await _first(self._stop.wait(), *(failed.wait() for failed in self._failed()))
            return await self._finish()
        finally:
            announce.cancel()
            await self.close()

    def stop(self) -> None:
        """Begin the drain; a second call ends it."""
        if self._stop.is_set():
            self._now.set()
        self._stop.set()

    async def _finish(self) -> int:
        if any(failed.is_set() for failed in self._failed()):
            return EXIT_FAILED
        log.info("draining", limit_s=self._settings.drain_s)
        started = time.monotonic()
        drain = asyncio.create_task(self.drain(), name="drain")
        await _first(asyncio.shield(drain), self._now.wait())
        if not drain.done():
            drain.cancel()
            log.warning("drain_aborted", code="second-signal")
            return EXIT_NOW
        log.info("drained", complete=drain.result(), seconds=round(time.monotonic() - started, 3))
        return EXIT_DRAINED if drain.result() else EXIT_FAILED

    async def drain(self) -> bool:
        """Take nothing new and finish what is in progress; True where all of it is durable."""
        deadline = time.monotonic() + self._settings.drain_s
        drained = all(
            await asyncio.gather(self.agent.drain(self._settings.drain_s), self._drain_push(), self._drain_pull())
        )
        while any(door.in_progress for _, door in self._started):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return drained

    async def _drain_push(self) -> bool:
        return self.push is None or await self.push.drain(self._settings.drain_s)

    async def _drain_pull(self) -> bool:
        if self.pull is not None:
            await self.pull.drain(self._settings.drain_s)
        return True  # what is handed back is not lost

    async def close(self) -> None:
        """Close the doors in reverse order, then what reads, then the core."""
        for _, door in reversed(self._started):
            await door.close(CLOSE_S)
        self._started.clear()
        if self.push is not None:
            await self.push.close()
        if self.pull is not None:
            await self.pull.close()
        if self.consuming is not None:
            await self.consuming.close(CLOSE_S)
        await self.agent.close()
        self._forget_ports()

    def _opened(self) -> bool:
        """Whether every door that others knock at is open."""
        return self._started[-1:] == [("webhooks", self.webhooks)]

    def _failed(self) -> list[asyncio.Event]:
        """What says that a part of us has died."""
        return [
            self.agent.failed,
            *(part.failed for part in (self.consuming, self.push, self.pull) if part is not None),
        ]

    def _beside(self) -> dict[str, object]:
        """What a probe says beside the agent's own state."""
        said: dict[str, object] = {"pulling": not self.stop_pull.began}
        if self.consuming is not None and self.consuming.started:
            said["consuming"] = self.consuming.state()
        if self.push is not None:
            said["push"] = self.push.state()
        if self.pull is not None:
            said["pull"] = self.pull.state()
        return said

    # --- ports.json ---

    async def _announce(self) -> None:
        """Write `ports.json` once events are accepted, so that a supervisor reads it when it may rely on it.

        Where it cannot be written (a read-only mount, say) the log says so once, and the agent serves all the same.
        """
        while self.agent.not_ready():  # noqa: ASYNC110 - polled once, at the start
            await asyncio.sleep(0.01)
        ports = {
            "url": self.intake.url,
            "webhooks_url": self.webhooks.url,
            "health_url": self.health.url,
            "pid": os.getpid(),
        }
        if self._ports is not None:
            try:
                replace_file(self._ports, msgspec.json.encode(ports))
            except OSError as error:
                self._no_ports(error)
        gc.collect()
        gc.freeze()  # what is here now stays; walking through it again and again took 13 us of each event (measured)
        log.info("ready", url=self.intake.url, webhooks_url=self.webhooks.url, health_url=self.health.url)

    def _forget_ports(self) -> None:
        if self._ports is not None:
            try:
                self._ports.unlink(missing_ok=True)
            except OSError as error:
                self._no_ports(error)

    def _no_ports(self, error: OSError) -> None:
        """Say once that there is no ports file, and try no more."""
        file, self._ports = self._ports, None
        log.warning("ports_file_not_written", file=str(file), error=error.strerror or error.__class__.__name__)


def _consuming(settings: AgentSettings, base: Path) -> Consuming | None:
    if not settings.team_creds_file:
        return None
    from agent.consuming import Consuming  # an agent that reads nothing loads none of it

    return Consuming(settings, base)


def _push(settings: AgentSettings, base: Path, consuming: Consuming | None) -> Targets | None:
    if consuming is None or not settings.push:
        return None
    from agent.push.targets import Targets  # nor of HTTP as a client

    return Targets(settings, base, consuming)


def _pull(settings: AgentSettings, consuming: Consuming | None, push: Targets | None) -> Pull | None:
    if consuming is None:
        return None
    from agent.pull.door import Pull

    return Pull(settings, consuming, frozenset() if push is None else push.names)


async def _first(*works: Awaitable[object]) -> None:
    """Wait for the first of *works* and cancel the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
