"""What does an application meet at the agent's door: how many events a second, and how much later are they durable?

The agent is a process beside a real server, its application a lean generator in another. Latency is counted from the
moment a request was meant to begin, so that a stall shows in everything it held up; what is added is the difference of
percentiles to nats-py publishing the same bytes, at the same moments, through the same account, without an agent.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Literal
from uuid import uuid4

from benchmarks.doors import STREAM, Beside, Ports, beside, check_stored, cpu_s
from benchmarks.http_load import Generator, Job, Outcome, generator
from benchmarks.policy_sets import TYPE, VIEW
from benchmarks.runner import Figure, Key, Spread, interleave
from mesh.cli.operator import operator_connection
from mesh.control.reader import reading

NAME = "http"
_ADDED = (("p50", 50, 1.0, 0.5), ("p90", 90, 2.0, 1.0), ("p99", 99, 5.0, 2.0))
KEYS = {
    "http_single_per_s": Key("1/s", must=4000, aim=8000, what="HTTP: single events, 64 connections"),
    "http_batch_per_s": Key("1/s", must=12_000, aim=25_000, what="HTTP: events in batches of 100, 8 connections"),
    **{
        f"http_added_ms.{name}": Key(
            "ms", must=must, aim=aim, better="less", what=f"HTTP at 1,000/s: {name} of POST to 202 less a bare publish"
        )
        for name, _, must, aim in _ADDED
    },
    **{
        f"{who}_ms.{name}": Key("ms", better="less", what=f"{what}, at 1,000/s: {name}")
        for who, what in (("http_post", "POST to 202"), ("http_bare", "nats-py publish and ack"))
        for name, *_ in _ADDED
    },
    "http_socket_per_s": Key("1/s", what="HTTP: single events over a Unix socket"),
    "http_repeated": Key("", better="less", what="HTTP: requests sent again, since the door gave their connection up"),
    "http_single_cpu_us": Key("us", better="less", what="the agent's processor time for a single event"),
    "http_batch_cpu_us": Key("us", better="less", what="the agent's processor time for an event of a batch"),
}
SINGLES, BATCHED, PER_S, SECONDS = 12_000, 40_000, 1000.0, 6
CONNECTIONS, BATCHES_AT_ONCE, BATCH = 64, 8, 100
OPEN_CONNECTIONS = 100  # more than are ever needed: at 1,000/s each is for a stall of 100 ms


class Door:
    """A door under load, and what it accepted."""

    def __init__(self, mesh: Beside, load: Generator) -> None:
        self.mesh = mesh
        self._load = load
        self._names = (f"{uuid4().hex[:8]}.{n}" for n in count())
        self.runs: dict[str, int] = {}
        self.bare = 0
        self.repeated = 0
        self.cpu_us: dict[str, list[float]] = {}

    async def per_s(self, name: str, events: int, ports: Ports, *, connections: int, size: int = 0) -> float:
        """Events a second that the door takes; and the processor time of its agent, under *name*."""
        job = self._job("closed", events, ports.url, connections=connections, size=size)
        before = cpu_s(ports.pid)
        outcome = await self._run(job)
        self.cpu_us.setdefault(name, []).append((cpu_s(ports.pid) - before) / events * 1e6)
        return events / outcome.took_s

    async def posts(self, events: int) -> Outcome:
        """Single events, `PER_S` a second."""
        job = self._job("open", events, self.mesh.ports.url, connections=OPEN_CONNECTIONS)
        return await self._run(job)

    async def publishes(self, events: int, body: bytes) -> Outcome:
        """The same without the agent."""
        outcome = await self._load.run(
            Job(
                how="publish",
                run="",
                events=events,
                url=self.mesh.nats_url,
                secret=str(self.mesh.directory / "nats.creds"),
                per_s=PER_S,
                subject=f"ev.local.{VIEW}.s00.{TYPE}",
                body=body.decode(),
            )
        )
        self.bare += events
        return outcome

    async def _run(self, job: Job) -> Outcome:
        outcome = await self._load.run(job)
        self.runs[job.run] = job.events
        self.repeated += outcome.repeated
        return outcome

    def _job(self, how: Literal["closed", "open"], events: int, url: str, *, connections: int, size: int = 0) -> Job:
        return Job(
            how=how,
            run=next(self._names),
            events=events,
            url=url,
            secret=self.mesh.token,
            connections=connections,
            size=size,
            per_s=PER_S,
        )


async def run(quick: bool) -> Mapping[str, Figure]:
    """Throughput and latency in turns, then everything that was accepted is looked for in the stream."""
    scale, rounds = (10, 1) if quick else (1, 3)
    async with beside() as mesh, generator() as load:
        door = Door(mesh, load)
        socket = str(Path(mesh.data).parent / "door.sock")
        async with mesh.another(HTTP_SOCKET=socket) as other:
            figures = await _throughput(door, other, scale, rounds)
        figures |= await _latency(door, round(SECONDS * PER_S / scale), rounds)
        await check_stored(mesh, door.runs, unsigned=door.bare)
    return {**figures, "http_repeated": float(door.repeated)}


async def _throughput(door: Door, other: Ports, scale: int, rounds: int) -> dict[str, Figure]:
    singles, batched, ports = SINGLES // scale, BATCHED // scale, door.mesh.ports
    for one in (ports, other):  # what a process does first it does slower
        await door.per_s("warm", 1000, one, connections=CONNECTIONS)
    found = await interleave(
        {
            "single": lambda: door.per_s("single", singles, ports, connections=CONNECTIONS),
            "batch": lambda: door.per_s("batch", batched, ports, connections=BATCHES_AT_ONCE, size=BATCH),
            "socket": lambda: door.per_s("socket", singles, other, connections=CONNECTIONS),
        },
        rounds=rounds,
    )
    return {
        **{f"http_{name}_per_s": Spread.of(values) for name, values in found.items()},
        **{f"http_{name}_cpu_us": Spread.of(door.cpu_us[name]) for name in ("single", "batch")},
    }


async def _latency(door: Door, events: int, rounds: int) -> dict[str, Figure]:
    """Percentiles of each round, ours and the bare client's, and their differences."""
    body = await _masked_body(door.mesh)
    posts: list[dict[str, float]] = []
    bare: list[dict[str, float]] = []

    async def ours() -> float:
        posts.append(_percentiles((await door.posts(events)).latencies_s))
        return 0.0

    async def theirs() -> float:
        bare.append(_percentiles((await door.publishes(events, body)).latencies_s))
        return 0.0

    await interleave({"ours": ours, "theirs": theirs}, rounds=rounds)
    figures: dict[str, Figure] = {}
    for name, *_ in _ADDED:
        figures[f"http_post_ms.{name}"] = Spread.of([one[name] for one in posts])
        figures[f"http_bare_ms.{name}"] = Spread.of([one[name] for one in bare])
        figures[f"http_added_ms.{name}"] = Spread.of([a[name] - b[name] for a, b in zip(posts, bare, strict=True)])
    return figures


def _percentiles(latencies_s: list[float]) -> dict[str, float]:
    """In milliseconds."""
    cuts = statistics.quantiles(latencies_s, n=100, method="inclusive")
    return {name: cuts[percent - 1] * 1e3 for name, percent, *_ in _ADDED}


async def _masked_body(mesh: Beside) -> bytes:
    """A stored copy: what the bare client sends is as long as what the agent does."""
    async with (
        operator_connection(str(mesh.data)) as (_, control),
        reading(control, {STREAM: [f"ev.local.{VIEW}.>"]}, new_only=False) as (_, events),
    ):
        return (await events.receive()).body
