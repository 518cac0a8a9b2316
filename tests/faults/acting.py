"""What each kind of fault does to a mesh, and how it ends; afterwards everything it took away is there again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from signal import SIGCONT, SIGSTOP
from typing import Any

import anyio

from mesh.errors import MeshError
from mesh.jetstream.connection import Connection
from mesh.jetstream.manage import api, stream_info
from tests.faults.processes import Child
from tests.faults.schedule import Fault
from tests.faults.world import STREAMS, World

Act = Callable[["Acting", Fault], Awaitable[None]]

ATTEMPTS = 100  # of a request to JetStream, which has no leader for seconds after some faults
ATTEMPT_S = 0.3


@dataclass(slots=True)
class Acting:
    """Faults as they happen to one mesh."""

    world: World

    async def act(self, fault: Fault) -> None:
        """Begin it, let it last, end it. Two that want the same thing come one after the other."""
        timeline = self.world.timeline
        timeline.append((round(time.time() * 1000), f"{fault.number} {fault.kind} begins"))
        await ACTS[fault.kind](self, fault)
        timeline.append((round(time.time() * 1000), f"{fault.number} {fault.kind} ends"))

    # --- processes ---------------------------------------------------------------------------------------------------

    def chosen(self, fault: Fault) -> Child:
        """The process that a fault's kind and number mean: `agent_kill` an agent."""
        world = self.world
        group = {"agent": world.agents, "consumer": world.consumers, "control": world.controls, "clock": world.agents}
        children = group[fault.kind.partition("_")[0]]
        return children[fault.target % len(children)]

    async def kill(self, fault: Fault) -> None:
        """SIGKILL, and down for a while."""
        child = self.chosen(fault)
        async with child.lock:
            child.kill()
            await anyio.sleep(fault.for_s)
            child.start()

    async def stop(self, fault: Fault) -> None:
        """SIGSTOP, SIGCONT."""
        child = self.chosen(fault)
        async with child.lock:
            child.signal(SIGSTOP)
            await anyio.sleep(fault.for_s)
            child.signal(SIGCONT)

    async def term(self, fault: Fault) -> None:
        """SIGTERM, and down for a while."""
        child = self.chosen(fault)
        async with child.lock:
            await child.terminate()
            await anyio.sleep(fault.for_s)
            child.start()

    async def clock_start(self, fault: Fault) -> None:
        """An agent starts with a clock that is a minute to an hour off, and then with a right one."""
        child = self.chosen(fault)
        async with child.lock:
            child.kill()
            child.set_clock((60 + 3540 * fault.chance) * (1 if fault.target % 4 < 2 else -1))
            child.start()
            await anyio.sleep(fault.for_s)
            child.kill()
            child.set_clock(0.0)
            child.start()

    async def clock_drift(self, fault: Fault) -> None:
        """The clock of an agent is off by at most 15 s: less than what it refuses to sign with."""
        child = self.chosen(fault)
        async with child.lock:
            child.set_clock(30 * fault.chance - 15)
            await anyio.sleep(fault.for_s)
            child.set_clock(0.0)

    # --- the network -------------------------------------------------------------------------------------------------

    async def network(self, fault: Fault) -> None:
        """Cut, refuse, silence or slow the connections of one process, to all servers or to one."""
        world = self.world
        names = sorted(world.proxies)
        name = names[fault.target % len(names)]
        child = next(child for child in world.children if child.name == name)
        proxies = world.proxies[name]
        if fault.chance < 0.3:
            proxies = [proxies[fault.target % len(proxies)]]
        async with child.lock:
            for proxy in proxies:
                match fault.kind:
                    case "slow":
                        proxy.delay_s = 0.02 + 0.28 * fault.chance
                    case "silent":
                        proxy.silence()
                    case "refused":
                        proxy.refusing = True
                if fault.kind in {"cut", "refused"}:
                    proxy.cut()
            await anyio.sleep(fault.for_s)
            for proxy in proxies:
                proxy.heal()

    # --- servers -----------------------------------------------------------------------------------------------------

    async def server_kill(self, fault: Fault) -> None:
        """SIGKILL of a server, and down for a while."""
        await self._kill([fault.target], fault)

    async def quorum_lost(self, fault: Fault) -> None:
        """SIGKILL of two of three."""
        await self._kill([fault.target, fault.target + 1], fault)

    async def leader_kill(self, fault: Fault) -> None:
        """SIGKILL of the server that leads an event stream."""
        leader = await self._leader(STREAMS[fault.target % len(STREAMS)])
        await self._kill([fault.target if leader is None else leader], fault)

    async def _kill(self, numbers: list[int], fault: Fault) -> None:
        servers = self.world.servers
        async with servers.lock:
            for number in numbers:
                servers[number].kill()
            await anyio.sleep(fault.for_s)
            for number in numbers:
                await servers[number].restart()
            await servers.complete()

    async def server_stop(self, fault: Fault) -> None:
        """SIGSTOP, SIGCONT of a server."""
        servers = self.world.servers
        async with servers.lock:
            servers[fault.target].pause()
            await anyio.sleep(fault.for_s)
            servers[fault.target].resume()

    async def server_term(self, fault: Fault) -> None:
        """SIGTERM of a server, and down for a while."""
        servers = self.world.servers
        async with servers.lock:
            await servers[fault.target].stop()
            await anyio.sleep(fault.for_s)
            await servers[fault.target].restart()
            await servers.complete()

    async def rolling_restart(self, fault: Fault) -> None:
        """Every server by SIGTERM, one after the other, each once the one before is back."""
        servers = self.world.servers
        async with servers.lock:
            for number in range(len(servers)):
                await servers[fault.target + number].restart()
                await servers.complete()

    async def agent_kill_away(self, fault: Fault) -> None:
        """No server; in the middle of that an agent is killed and started again."""
        servers, child = self.world.servers, self.chosen(fault)
        async with servers.lock, child.lock:
            for number in range(len(servers)):
                servers[number].kill()
            await anyio.sleep(fault.for_s * 0.7)
            child.kill()
            child.start()
            await anyio.sleep(fault.for_s * 0.3)
            for number in range(len(servers)):
                await servers[number].restart()
            await servers.complete()

    async def leader_moved(self, fault: Fault) -> None:
        """The leader of an event stream steps down."""
        stream = STREAMS[fault.target % len(STREAMS)]
        async with self._control() as control:
            with suppress(MeshError):  # it has none: another fault is at work
                await api(control, f"STREAM.LEADER.STEPDOWN.{stream}")

    async def stream_full(self, fault: Fault) -> None:
        """An event stream takes nothing more, as if its disk were full: its `max_bytes` is what it holds already.

        A control plane that starts meanwhile gives it its size again, and so ends the fault early.
        """
        stream = STREAMS[fault.target % len(STREAMS)]
        async with self._control() as control:
            info = await self._surely(lambda: stream_info(control, stream))
            if info is None:
                return
            full = {**info["config"], "max_bytes": max(1, info["state"]["bytes"])}
            await self._surely(lambda: api(control, f"STREAM.UPDATE.{stream}", full))
            await anyio.sleep(fault.for_s)
            await self._surely(lambda: api(control, f"STREAM.UPDATE.{stream}", info["config"]))

    async def _leader(self, stream: str) -> int | None:
        with suppress(MeshError):
            async with self._control() as control:
                info = await stream_info(control, stream)
                return self.world.servers.named(info.get("cluster", {}).get("leader", ""))
        return None

    def _control(self) -> _Control:
        return _Control(self.world)

    @staticmethod
    async def _surely(ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any] | None:
        """Ask until it is answered; None where it never is."""
        for _ in range(ATTEMPTS):
            with suppress(MeshError):
                return await ask()
            await anyio.sleep(ATTEMPT_S)
        return None


class _Control:
    """A connection with the control plane's rights, not through any proxy."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._connection: Connection | None = None

    async def __aenter__(self) -> Connection:
        world = self._world
        self._connection = await Connection.open(world.servers.urls, name="control", creds=world.creds, wait=False)
        with anyio.move_on_after(5):
            while not self._connection.connected:
                await anyio.sleep(0.05)
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            await self._connection.close()


ACTS: dict[str, Act] = {
    **dict.fromkeys(("agent_kill", "consumer_kill", "control_kill"), Acting.kill),
    **dict.fromkeys(("agent_stop", "consumer_stop", "control_stop"), Acting.stop),
    **dict.fromkeys(("agent_term", "consumer_term", "control_term"), Acting.term),
    **dict.fromkeys(("cut", "refused", "silent", "slow"), Acting.network),
    "server_kill": Acting.server_kill,
    "server_away": Acting.server_kill,
    "server_stop": Acting.server_stop,
    "server_term": Acting.server_term,
    "agent_kill_away": Acting.agent_kill_away,
    "leader_kill": Acting.leader_kill,
    "leader_moved": Acting.leader_moved,
    "rolling_restart": Acting.rolling_restart,
    "quorum_lost": Acting.quorum_lost,
    "stream_full": Acting.stream_full,
    "clock_start": Acting.clock_start,
    "clock_drift": Acting.clock_drift,
}
