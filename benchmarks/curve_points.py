"""One point of a curve: ours and nats-py publishing and consuming in turns, in a mesh in which one thing is more.

Each event is published and then consumed, in rounds that begin with the other side each time. Ours and theirs have
types of their own in one stream; theirs sends the masked copies of ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from uuid import uuid4

import anyio
import msgspec
from nats.aio.client import Client

from agent import Agent
from benchmarks import loads
from benchmarks.bench_end_to_end import BARE
from benchmarks.bench_publish import masked_body
from benchmarks.curve_sets import agent_names
from benchmarks.meshes import STREAM, Bench, event, make_room, mesh
from benchmarks.policy_sets import TYPE, VIEW
from benchmarks.runner import Spread, ratio
from benchmarks.validity import require_durable
from mesh.client import Mesh, connect
from mesh.jetstream.manage import stream_info

COUNT, ROUNDS = 5_000, 3
QUICK_COUNT = 200
OURS = {"ours": TYPE, "bare": BARE}
ROOM_BYTES = 4 << 30
CHUNK_BYTES = 512 * 1024  # of one call, where events are large
VOLUME_BYTES = 48 << 20  # of one contestant's round, where events are large
STARTING = 4  # agents at once

Point = dict[str, Spread]
Rates = dict[str, list[float]]


@dataclass(slots=True)
class Setting:
    """What publishes and consumes at one point."""

    bench: Bench
    team: Mesh
    agents: Sequence[Agent]
    clients: Sequence[Client]
    reader: Client
    body: bytes
    views: Sequence[str] = (VIEW,)
    size: int = 0  # bytes of padding in each event
    rates: Rates = field(default_factory=dict)

    async def round(self, count: int, *, ours_first: bool) -> None:
        """Each side publishes *count* events and consumes them."""
        for side in (self.ours, self.bare) if ours_first else (self.bare, self.ours):
            await side(count)

    async def ours(self, count: int) -> None:
        """Agents and a subscription."""
        run_id = uuid4().hex
        bodies = [padded(number, run_id, self.size) for number in range(count)]
        share = -(-count // len(self.agents))  # so that every agent has some
        chunk = max(1, min(loads.CHUNK, CHUNK_BYTES // len(bodies[0]), share))
        copies = len(self.views)
        await self._note("publish", lambda: loads.publish(self.agents, bodies, copies=copies, chunk=chunk), count)
        await self._note("consume", lambda: loads.consume(self.team, "ours", count), count)

    async def bare(self, count: int) -> None:
        """nats-py, bare."""
        subjects = [f"ev.local.{view}.s00.{BARE}" for view in self.views]
        durable = self.bench.context.team_address().subscriptions["bare"].durable
        sending = partial(loads.publish_async, self.clients, subjects, self.body, count)
        await self._note("publish_bare", sending, count)
        await self._note("consume_bare", lambda: loads.fetch(self.reader, durable, count), count)

    def point(self) -> Point:
        """Rates, and the ratio of ours to theirs."""
        made = {name: Spread.of(values) for name, values in self.rates.items()}
        for what in ("publish", "consume"):
            made[f"{what}_ratio"] = ratio(self.rates[what], self.rates[f"{what}_bare"])
        return made

    async def _note(self, what: str, measure: loads.Measured, count: int) -> None:
        """Its rate, and what it took of our processor."""
        rate = await loads.costing(self.rates, f"{what}_cpu_us", measure, count)()
        self.rates.setdefault(what, []).append(rate)


def padded(number: int, run: str, size: int) -> bytes:
    """An event; with *size*, one whose data has about so many bytes, and what masks and condition need."""
    body = event(number, run)
    if not size:
        return body
    fields = msgspec.json.decode(body)
    fields["data"]["items"] = []
    fields["data"]["note"] = "x"
    missing = size - len(msgspec.json.encode(fields["data"]))
    fields["data"]["status"] = "p" * max(1, missing)
    return msgspec.json.encode(fields)


async def measure(setting: Setting, *, quick: bool, count: int = COUNT) -> Point:
    """The rounds of one point. What came out has to be stored on disk."""
    rounds, each = (1, QUICK_COUNT) if quick else (ROUNDS, count)
    await setting.round(min(each, 500), ours_first=True)  # warm
    setting.rates.clear()
    for number in range(rounds):
        await setting.round(each, ours_first=number % 2 == 0)
    async with setting.bench.control() as control:
        require_durable((await stream_info(control, STREAM))["config"])
    return setting.point()


@asynccontextmanager
async def at(
    *more: str,
    policies: Mapping[str, str] | None = None,
    agents: int = 1,
    views: Sequence[str] = (VIEW,),
    size: int = 0,
) -> AsyncIterator[Setting]:
    """A mesh with *more* subscriptions, other *policies*, many *agents*, *views* or large events in it."""
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(
            mesh("ours", "bare", *more, types={**dict.fromkeys(more, TYPE), **OURS}, files=policies)
        )
        async with bench.control() as control:
            await make_room(control, STREAM, ROOM_BYTES)
        data = bench.context.data / "agents"
        names = agent_names(agents)
        others = await _start([data / name / "agent.toml" for name in names[1:]], stack)
        clients = [await bench.peer(data / name / "nats.creds", name) for name in names]
        reader = await stack.enter_async_context(loads.team(bench))
        for client in clients:
            stack.push_async_callback(client.close)
        team = await stack.enter_async_context(connect(bench.context))
        body = await masked_body(bench, padded(0, uuid4().hex, size))
        await loads.consume(team, "ours", 1)
        yield Setting(bench, team, [bench.agent, *others], clients, reader, body, views, size)


async def _start(tomls: Sequence[object], stack: AsyncExitStack) -> list[Agent]:
    agents: list[Agent] = [Agent.from_file(str(toml)) for toml in tomls]
    room = anyio.CapacityLimiter(STARTING)

    async def start(agent: Agent) -> None:
        async with room:
            await agent.start()
            await agent.wait_ready(60)

    for agent in agents:
        stack.push_async_callback(agent.close)
    async with anyio.create_task_group() as group:
        for agent in agents:
            group.start_soon(start, agent)
    return agents


async def ballast(setting: Setting, count: int) -> None:
    """Store *count* more events, bare and of other types than those that are measured."""
    js = setting.clients[0].jetstream(publish_async_max_pending=loads.PENDING)
    for number in range(count):
        subject = f"ev.local.{VIEW}.s{number % 16:02d}.shop.order.k{number % 50:02d}.v1"
        await js.publish_async(subject, setting.body)
    await js.publish_async_completed()
