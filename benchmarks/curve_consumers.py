"""The curve of consumers: processes that share one durable, against as many that use nats-py."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from uuid import uuid4

import anyio

from benchmarks import loads
from benchmarks.bench_end_to_end import BARE
from benchmarks.bench_publish import masked_body
from benchmarks.curve_points import Point
from benchmarks.meshes import STREAM, Bench, event, mesh
from benchmarks.policy_sets import TYPE, VIEW
from benchmarks.runner import Spread, ratio
from benchmarks.validity import InvalidRun, require
from benchmarks.workers import worker
from mesh.jetstream.manage import consumer_info

COUNT, QUICK_COUNT, ROUNDS = 20_000, 400, 3
DRAIN_S = 120.0


async def shared(xs: Sequence[float], quick: bool) -> AsyncIterator[tuple[float, Point]]:
    """Each point: so many processes of either kind empty a durable, in turns."""
    count, rounds = (QUICK_COUNT, 1) if quick else (COUNT, ROUNDS)
    async with mesh("ours", "bare", types={"ours": TYPE, "bare": BARE}) as bench:
        body = await masked_body(bench)
        for x in xs:
            rates: dict[str, list[float]] = {"ours": [], "bare": []}
            for _ in range(rounds):
                await _publish(bench, body, count)
                for name, values in rates.items():
                    values.append(await _emptied(bench, name, round(x), count))
            yield (
                x,
                {
                    "consume": Spread.of(rates["ours"]),
                    "consume_bare": Spread.of(rates["bare"]),
                    "consume_ratio": ratio(rates["ours"], rates["bare"]),
                },
            )


async def _publish(bench: Bench, body: bytes, count: int) -> None:
    run_id = uuid4().hex
    await loads.publish([bench.agent], [event(number, run_id) for number in range(count)])
    async with loads.adapter(bench) as client:
        await loads.publish_async([client], [f"ev.local.{VIEW}.s00.{BARE}"], body, count)


async def _emptied(bench: Bench, name: str, processes: int, count: int) -> float:
    """Events a second from the word to the last ack."""
    data = bench.context.data
    options = ["--data", str(data), "--name", name, *(["--bare"] if name == "bare" else [])]
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(worker("replica", *options, log=data / "workers.log"))
            for _ in range(processes)
        ]
        began = time.perf_counter()
        for one in workers:
            one.tell({})
        await _wait_empty(bench, name)
        took = time.perf_counter() - began
        for one in workers:
            one.tell({})
        answers = [await one.hear() for one in workers]
    handled = sum(answer["count"] for answer in answers)
    require(handled >= count, f"events lost: {handled} of {count} were handed over")
    if name == "ours":
        require(sum(answer["verified"] for answer in answers) >= handled, "unverified events were handed over")
    return count / took


async def _wait_empty(bench: Bench, name: str) -> None:
    async with bench.control() as control:
        with anyio.move_on_after(DRAIN_S):
            while True:
                state = await consumer_info(control, STREAM, f"reader--{name}")
                if state["num_pending"] + state["num_ack_pending"] == 0:
                    return
                await anyio.sleep(0.01)
    raise InvalidRun(f"events lost: {state['num_pending']} pending, {state['num_ack_pending']} not acked")
