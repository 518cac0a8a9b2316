"""How fast does a team get its events: pulled, verified, admitted, acked, against a client that verifies nothing?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from uuid import uuid4

import anyio

from benchmarks import loads, peers
from benchmarks.meshes import STREAM, Bench, event, mesh
from benchmarks.runner import Figure, Key, Spread, interleave, ratio
from benchmarks.validity import require_stored
from mesh.client import connect
from mesh.event import draft_from_structured
from mesh.jetstream.manage import consumer_info

NAME = "consume"
KEYS = {
    "consume_ratio": Key(
        "x", must=1.75, aim=2.5, what="consume: pull, verify, decode, ack / fetch(100) + ack, unverified"
    ),
    "faststream_consume_ratio": Key("x", what="consume: the same / FastStream on JetStream, unverified"),
    "consume_per_s": Key("1/s", what="consume, a subscription's deliveries"),
    "fetch_per_s": Key("1/s", what="nats-py fetch(100) and ack"),
    "consume_cpu_us": Key("us", better="less", what="consume: our processor time for an event"),
    "fetch_cpu_us": Key("us", better="less", what="nats-py fetch(100) and ack: its processor time for an event"),
}
EVENTS = 20_000
SETTLE_S = 30.0


async def run(quick: bool) -> Mapping[str, Figure]:
    """All that is stored, each round through two new durables of one team."""
    count, rounds = (2_000, 1) if quick else (EVENTS, 5)
    who_runs = ("ours", "peer", "faststream") if peers.faststream_installed() else ("ours", "peer")
    names = {who: [f"{who}-{number}" for number in range(rounds)] for who in who_runs}
    durables = [name for numbered in names.values() for name in numbered]
    cpu_us: dict[str, list[float]] = {}
    async with mesh(*durables) as bench:
        await _fill(bench, count)
        async with bench.control() as control:
            await require_stored(control, STREAM, count)
        async with connect(bench.context) as ours:
            fresh = {who: iter(numbered) for who, numbered in names.items()}
            part = count // 4  # FastStream's: it is slower, and a rate is a rate
            contestants: dict[str, loads.Measured] = {
                "ours": loads.costing(cpu_us, "ours", lambda: loads.consume(ours, next(fresh["ours"]), count), count),
                "peer": loads.costing(cpu_us, "peer", lambda: _peer(bench, next(fresh["peer"]), count), count),
                "faststream": lambda: peers.faststream_consume(bench, next(fresh["faststream"]), part),
            }
            figures = await interleave({who: contestants[who] for who in names}, rounds=rounds)
        await _check(bench, [*names["ours"], *names["peer"]])
    return {
        "consume_ratio": ratio(figures["ours"], figures["peer"]),
        "faststream_consume_ratio": peers.against(figures["ours"], figures.get("faststream")),
        "consume_per_s": Spread.of(figures["ours"]),
        "fetch_per_s": Spread.of(figures["peer"]),
        "consume_cpu_us": Spread.of(cpu_us["ours"]),
        "fetch_cpu_us": Spread.of(cpu_us["peer"]),
    }


async def _fill(bench: Bench, count: int) -> None:
    run_id, chunk = uuid4().hex, 500
    for start in range(0, count, chunk):
        drafts = [draft_from_structured(event(n, run_id), now_ms=0) for n in range(start, min(start + chunk, count))]
        await bench.agent.publish_drafts(drafts)


async def _peer(bench: Bench, name: str, count: int) -> float:
    """The same by nats-py, in its fastest documented way."""
    durable = bench.context.team_address().subscriptions[name].durable
    async with loads.team(bench) as client:
        return await loads.fetch(client, durable, count)


async def _check(bench: Bench, names: list[str]) -> None:
    """Refuse to report a run in which an event is left: neither delivered nor acked."""
    async with bench.control() as control:
        with anyio.fail_after(SETTLE_S):
            while True:
                states = [await consumer_info(control, STREAM, f"reader--{name}") for name in names]
                if all(state["num_pending"] + state["num_ack_pending"] == 0 for state in states):
                    return
                await asyncio.sleep(0.1)
