"""An open loop of events, in a process of its own: `python -m benchmarks.open_loop --data DIR [--door]`.

Events begin at moments that are fixed before, whatever became of those before them, and an event's latency counts from
its moment: what a slow answer delays is delayed in the figures too ("coordinated omission"). The moment is in the id,
`<phase>.<ns>-<number>`, so that the reader counts from it as well.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import anyio
import msgspec

from agent import Agent
from benchmarks.meshes import event
from benchmarks.steady import percentiles
from benchmarks.workers import jobs, say
from mesh.context import Context
from mesh.errors import MeshError
from mesh.event import draft_from_structured

START_AHEAD_S = 0.05  # from the order to the first moment

Publish = Callable[[Sequence[bytes]], Awaitable[None]]


class Job(msgspec.Struct, kw_only=True, frozen=True):
    """What to send.

    Args:
        phase: What the events are called by; no dot in it.
        first: The number of the first event.
        per_s: Events a second.
        seconds: How long.
        size: Events that share a moment and a call.
    """

    phase: str
    first: int
    per_s: float
    seconds: float
    size: int = 1


class Outcome(msgspec.Struct, kw_only=True):
    """What came of a job. `ms` is from an event's moment until it was durable."""

    sent: int
    failed: dict[str, int]
    ms: dict[str, float]


class _Loop:
    """One job under way."""

    def __init__(self, job: Job, publish: Publish) -> None:
        self._job = job
        self._publish = publish
        self._tasks: set[asyncio.Task[None]] = set()
        self._ms: list[float] = []
        self._failed: Counter[str] = Counter()

    async def run(self) -> Outcome:
        job = self._job
        calls = int(job.per_s * job.seconds / job.size)
        step_ns = job.size / job.per_s * 1e9
        began_ns = time.time_ns() + int(START_AHEAD_S * 1e9)
        sent = 0
        while sent < calls:
            moment_ns = began_ns + int(sent * step_ns)
            if (wait_s := (moment_ns - time.time_ns()) / 1e9) > 0:
                await asyncio.sleep(wait_s)
            task = asyncio.create_task(self._send(moment_ns, job.first + sent * job.size))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            sent += 1
            if sent % 64 == 0:
                await asyncio.sleep(0)  # far behind, the answers still have to be read
        await asyncio.gather(*self._tasks)
        return Outcome(sent=sent * job.size, failed=dict(self._failed), ms=percentiles(self._ms))

    async def _send(self, moment_ns: int, number: int) -> None:
        size = self._job.size
        run = f"{self._job.phase}.{moment_ns}"
        try:
            await self._publish([event(n, run) for n in range(number, number + size)])
        except (MeshError, aiohttp.ClientError) as error:
            self._failed[str(getattr(error, "code", type(error).__name__))] += size
        else:
            self._ms.append((time.time_ns() - moment_ns) / 1e6)


@asynccontextmanager
async def embedded(data: Path) -> AsyncIterator[Publish]:
    """The agent in this process."""
    beside = Agent.from_file(data / "agents" / "shop" / "agent.toml")  # which has its own spool
    settings = replace(beside.settings, spool_file="open.db", spool_key_file="open.key")
    async with Agent(settings, beside.base) as agent:

        async def publish(bodies: Sequence[bytes]) -> None:
            now_ms = time.time_ns() // 1_000_000
            await agent.publish_drafts([draft_from_structured(body, now_ms=now_ms) for body in bodies])

        yield publish


@asynccontextmanager
async def door(data: Path) -> AsyncIterator[Publish]:
    """The agent's own process, over HTTP in batches."""
    address = Context.load(data, team="reader", agent="shop").agent_address()
    token = Path(address.token_file).read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/cloudevents-batch+json"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=64)) as session:

        async def publish(bodies: Sequence[bytes]) -> None:
            async with session.post(f"{address.url}/v1/events", data=b"[" + b",".join(bodies) + b"]") as answer:
                answer.raise_for_status()
                await answer.read()

        yield publish


async def main() -> None:
    """Do the jobs that come, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the mesh's data directory")
    parser.add_argument("--door", action="store_true", help="over HTTP, to the agent's own process")
    arguments = parser.parse_args()
    async with (door if arguments.door else embedded)(arguments.data) as publish:
        say({"ready": True})
        async for line in jobs():
            say(await _Loop(msgspec.json.decode(line, type=Job), publish).run())


if __name__ == "__main__":
    anyio.run(main, backend_options={"use_uvloop": True})
