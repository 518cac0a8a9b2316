"""One process of the fleet, `python -m benchmarks.fleet_members`: agents that publish, or a team that reads.

It prints `ready`, works until its input ends, and writes what it saw to a file.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from agent import Agent
from benchmarks.fleet_policies import LAST, STEPS, SUBSCRIPTION, TENANT, field_of, team_of, type_of
from mesh.client import connect
from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.policy.compile import Plans

TYPES = (*(type_of(step) for step in range(STEPS)), LAST)
PARTITION = "fleet"  # one slot of sixteen: what is counted is agents, not subjects
START_S = 300.0  # of 24 agents one after the other: 6 s of processor, on a machine that others use too
DRAIN_S = 5.0  # without a new event, after the end


class Adoption(msgspec.Struct, frozen=True):
    """An agent began to run a revision, by the machine's clock."""

    agent: str
    revision: int
    at_ns: int


class Sent(msgspec.Struct, frozen=True):
    """An event as it was published: begun at, under which revision, and what came of it (empty: durable)."""

    id: str
    type: str
    agent: str
    revision: int
    at_ns: int
    error: str = ""


class Seen(msgspec.Struct, frozen=True):
    """An event as a team was handed it, and the revision that the team ran then."""

    id: str
    type: str
    made_under: int
    revision: int
    fields: tuple[str, ...]


class Findings(msgspec.Struct, frozen=True):
    """What one process saw."""

    adoptions: list[Adoption] = []
    sent: list[Sent] = []
    seen: list[Seen] = []


class WatchedAgent(Agent):
    """An agent that takes down when it adopts a bundle: from then on it decides and masks by it."""

    adoptions: list[Adoption]

    def _adopt(self, plans: Plans) -> None:
        super()._adopt(plans)
        self.adoptions.append(Adoption(self.settings.name, plans.bundle.revision, time.time_ns()))


class Ended:
    """Set when our input ends."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin, self._read)

    def _read(self) -> None:
        if not os.read(sys.stdin.fileno(), 1):
            asyncio.get_running_loop().remove_reader(sys.stdin)
            self.event.set()


def event(agent: str, number: int, type_: str) -> dict[str, object]:
    """An event with every field that a view may be told to hide."""
    return {
        "specversion": "1.0",
        "id": f"{agent}.{number}",
        "source": f"/{team_of(agent)}",
        "type": type_,
        "partitionkey": PARTITION,
        "data": {"sent": number, **{field_of(step): f"value-{step}" for step in range(STEPS)}},
    }


async def publish(data: Path, names: Iterable[str], per_s: float) -> Findings:
    """Run the agents *names* and publish with each in turn, *per_s* events a second together, until our input ends."""
    found = Findings([], [], [])
    ended = Ended()
    async with AsyncExitStack() as stack:
        agents = []
        for name in names:
            agent = WatchedAgent.from_file(data / "agents" / name / "agent.toml")
            agent.adoptions = found.adoptions
            agents.append(await stack.enter_async_context(agent))
        print("ready", flush=True)
        async with anyio.create_task_group() as group:
            turns = itertools.cycle(agents)
            for number, type_ in enumerate(itertools.cycle(TYPES)):
                if ended.event.is_set():
                    break
                group.start_soon(_publish, next(turns), number, type_, found.sent)
                await anyio.sleep(1 / per_s)
    return found


async def _publish(agent: Agent, number: int, type_: str, sent: list[Sent]) -> None:
    name = agent.settings.name
    revision = 0 if agent.outbound is None else agent.outbound.revision
    made, error, at_ns = event(name, number, type_), "", time.time_ns()
    try:
        receipt = await agent.publish(made)
        if not receipt.copies:
            error = "no-copies"
    except MeshError as refused:
        error = refused.code
    sent.append(Sent(str(made["id"]), type_, name, revision, at_ns, error))


async def read(data: Path, team: str) -> Findings:
    """Read all that the team's subscription has until our input ends and nothing more comes."""
    found = Findings([], [], [])
    ended = Ended()
    async with connect(data, tenant=TENANT, team=team) as mesh, mesh.subscription(SUBSCRIPTION) as subscription:
        bundle = subscription._bundle
        print("ready", flush=True)
        while True:
            with anyio.move_on_after(DRAIN_S):
                delivery = await subscription.next()
                one = delivery.event
                fields = tuple(sorted(one.data))
                made_under = int(one.fields["policyrevision"])
                found.seen.append(Seen(one.id, one.type, made_under, bundle.state.revision, fields))
                delivery.ack()
                continue
            if ended.event.is_set():
                return found


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the mesh's data directory")
    parser.add_argument("--out", type=Path, required=True, help="where to write what was seen")
    parser.add_argument("--agents", default="", help="agents to run, by name, joined by commas")
    parser.add_argument("--per-s", type=float, default=10.0, help="events a second, of all agents together")
    parser.add_argument("--team", default="", help="the team to read as")
    options = parser.parse_args()

    async def run() -> Findings:
        if options.team:
            return await read(options.data, options.team)
        return await publish(options.data, options.agents.split(","), options.per_s)

    found = anyio.run(run, backend_options={"use_uvloop": True})
    options.out.write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
