"""What does an agent take beside its application: time until it is ready, memory at rest and under full load?

At rest it has been probed and scraped, as a pod's agent is within its first minute. The full load is more batches at
once than it takes events at once, from all of its connections until memory has no more reason to grow. The figures
name what its pod asks for and is held to; the musts are below, with room for what a benchmark does not do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio

from benchmarks.doors import Beside, beside, check_stored, end, free_port, memory_mb, ports_of
from benchmarks.http_load import Job, generator
from benchmarks.runner import Figure, Key, Spread

NAME = "agent_start"
KEYS = {
    "agent_rss_mb.idle": Key(
        "MB", must=70, aim=45, better="less", what="agent at rest, probed and scraped: RSS (pod: 96Mi)"
    ),
    "agent_rss_mb.load": Key(
        "MB", must=150, aim=90, better="less", what="agent at full load in batches: peak (pod: 256Mi)"
    ),
    "start_s": Key("s", better="less", what="agent: from its start to /readyz 200"),
}
EVENTS, PART = 200_000, 20_000  # a part is one job of the generator, which makes all its requests beforehand
CONNECTIONS, BATCH = 48, 100  # 4,800 events: the agent's room is 4,096
REST_S = 2.0
START_S = 60.0


async def run(quick: bool) -> Mapping[str, Figure]:
    """Start agents one after the other and let each rest; put one under load."""
    events, rounds = (PART, 1) if quick else (EVENTS, 3)
    idle, starts = [], []
    async with beside() as mesh:
        for number in range(rounds):
            async with _started(mesh, f"start-{number}") as (pid, health, took_s):
                starts.append(took_s)
                assert await _get(health, "/metrics") == 200
                await anyio.sleep(REST_S)
                idle.append(memory_mb(pid))
        peak = await _loaded(mesh, events)
    return {"agent_rss_mb.idle": Spread.of(idle), "agent_rss_mb.load": peak, "start_s": Spread.of(starts)}


async def _loaded(mesh: Beside, events: int) -> float:
    """The most memory it had while it took *events*, all of which are stored."""
    runs = {uuid4().hex[:8]: PART for _ in range(events // PART)}
    async with generator() as load:
        for name in runs:
            await load.run(
                Job(
                    how="closed",
                    run=name,
                    events=PART,
                    url=mesh.ports.url,
                    secret=mesh.token,
                    connections=CONNECTIONS,
                    size=BATCH,
                )
            )
            assert await _get(int(mesh.ports.health_url.rpartition(":")[2]), "/metrics") == 200
    peak = memory_mb(mesh.ports.pid, peak=True)
    await check_stored(mesh, runs)
    return peak


@asynccontextmanager
async def _started(mesh: Beside, name: str) -> AsyncIterator[tuple[int, int, float]]:
    """One more agent: its process, the port of its probes, and seconds until it was ready."""
    health = free_port()
    began = time.perf_counter()
    process = await mesh.spawn(name, HEALTH_PORT=str(health))
    try:
        with anyio.fail_after(START_S):
            while await _get(health, "/readyz") != 200:
                await anyio.sleep(0.002)
        took_s = time.perf_counter() - began
        await ports_of(mesh.directory / f"{name}.json", process.pid)
        yield process.pid, health, took_s
    finally:
        await end(process)


async def _get(port: int, path: str) -> int:
    """The status of a probe; 0 where nobody listens."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return 0
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        return int(answer.split(b" ", 2)[1])
    finally:
        writer.close()
