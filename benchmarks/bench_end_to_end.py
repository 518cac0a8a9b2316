"""How fast do events go from an adapter to a team's handler, against nats-py doing both without any of it?

Publishing and consuming go on at the same time, in this process: the agent decides, masks, signs and waits for acks
while the subscription pulls, verifies, admits and acks; nats-py does `publish_async` beside `fetch(100)` and ack. Each
has types of its own in the same stream, so that neither is handed what the other sent.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from uuid import uuid4

import anyio

from benchmarks import loads, peers
from benchmarks.bench_publish import masked_body
from benchmarks.meshes import STREAM, Bench, event, mesh
from benchmarks.policy_sets import VIEW
from benchmarks.runner import Figure, Key, Spread, interleave, ratio
from benchmarks.validity import require_stored
from mesh.client import Mesh, connect

NAME = "end_to_end"
KEYS = {
    "end_to_end_ratio": Key("x", what="publish to handler: all of it / publish_async to fetch(100) + ack, bare"),
    "end_to_end_per_s": Key("1/s", what="adapter to handler, embedded agent and subscription"),
    "bare_end_to_end_per_s": Key("1/s", what="nats-py publish_async to fetch(100), same bytes"),
    "core_end_to_end_per_s": Key("1/s", what="nats-py core to core: nothing stored, the ceiling"),
}
EVENTS = 10_000
BARE = "shop.order.bare.v1"


async def run(quick: bool) -> Mapping[str, Figure]:
    """All through the accounts of one agent and one team, and one stream on disk, R1."""
    count, rounds = (2_000, 1) if quick else (EVENTS, 5)
    async with mesh("ours", "bare", types={"ours": "shop.order.placed.v1", "bare": BARE}) as bench:
        body = await masked_body(bench)
        async with connect(bench.context) as team:
            await loads.consume(team, "ours", 1)  # the one that showed us the masked bytes
            figures = await interleave(
                {
                    "ours": lambda: _ours(bench, team, count),
                    "bare": lambda: _bare(bench, body, count),
                    "core": lambda: peers.core_end_to_end(bench, count, body),
                },
                rounds=rounds,
            )
        async with bench.control() as control:
            await require_stored(control, STREAM, 2 * rounds * count + 1)
    return {
        "end_to_end_ratio": ratio(figures["ours"], figures["bare"]),
        "end_to_end_per_s": Spread.of(figures["ours"]),
        "bare_end_to_end_per_s": Spread.of(figures["bare"]),
        "core_end_to_end_per_s": Spread.of(figures["core"]),
    }


async def _ours(bench: Bench, team: Mesh, count: int) -> float:
    run_id = uuid4().hex
    bodies = [event(number, run_id) for number in range(count)]
    return await _both(count, loads.publish([bench.agent], bodies), loads.consume(team, "ours", count))


async def _bare(bench: Bench, body: bytes, count: int) -> float:
    durable = bench.context.team_address().subscriptions["bare"].durable
    async with loads.adapter(bench) as adapter, loads.team(bench) as reader:
        sending = loads.publish_async([adapter], [f"ev.local.{VIEW}.s00.{BARE}"], body, count)
        return await _both(count, sending, loads.fetch(reader, durable, count))


async def _both(count: int, *sides: Awaitable[float]) -> float:
    """Events a second, from the first that is sent to the last that is handled and acked."""

    async def wait(side: Awaitable[float]) -> None:
        await side

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for side in sides:
            group.start_soon(wait, side)
    return count / (time.perf_counter() - began)
