"""The four things that most questions time: publishing and consuming, ours and nats-py's own, in its fastest way.

Each returns what it did in a second. Clients of nats-py use the credentials, the accounts, the stream and the durables
of ours, so that the server does for both what it does for one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
from nats.aio.client import Client

from agent import Agent
from benchmarks.meshes import STREAM, Bench
from benchmarks.validity import InvalidRun, require
from mesh.client import Mesh
from mesh.judging import VERIFIED

CHUNK = 500  # events in one call of an application
CALLS = 8  # at once: as many events on their way as the peer has in its window
PENDING = 4000  # nats-py's own default window
FETCH = 100
Measured = Callable[[], Awaitable[float]]
EMPTY = 20  # empty fetches of 5 s after which what is missing will not come


async def publish(agents: Sequence[Agent], bodies: Sequence[bytes], *, copies: int = 1, chunk: int = CHUNK) -> float:
    """Events a second from bytes in hand to acknowledged, by *agents* in turn.

    Reading the bytes is in it, as it is in what an adapter does; making them is not. Calls of hundreds, a few at once:
    the peer's `publish_async` has thousands of messages on their way, too.

    Raises:
        InvalidRun: An event did not become *copies* copies.
    """
    chunks = iter([(start // chunk, bodies[start : start + chunk]) for start in range(0, len(bodies), chunk)])

    async def calls() -> None:
        for number, some in chunks:
            receipts = await agents[number % len(agents)].publish_many(some)
            made = {len(receipt.copies) for receipt in receipts}
            require(made == {copies}, f"events became {made} copies, not {copies}")

    began = time.perf_counter()
    await asyncio.gather(*(calls() for _ in range(CALLS)))
    return len(bodies) / (time.perf_counter() - began)


async def publish_async(
    clients: Sequence[Client], subjects: Sequence[str], body: bytes, count: int, *, ids: Sequence[str] = ()
) -> float:
    """Events a second by nats-py: each as a bare message to every one of *subjects*, by *clients* in turn.

    With *ids*, each has its message id, as whoever has to be able to send it again needs it.
    """
    contexts = [client.jetstream(publish_async_max_pending=PENDING) for client in clients]
    began = time.perf_counter()
    for number in range(count):
        js = contexts[number % len(contexts)]
        for subject in subjects:
            headers = {"Nats-Msg-Id": ids[number]} if ids else None
            # `wait_stall` would cost it a task for each event, and half its speed
            await js.publish_async(subject, body, headers=headers)
    for js in contexts:
        await js.publish_async_completed()
    return count / (time.perf_counter() - began)


async def consume(mesh: Mesh, name: str, count: int) -> float:
    """Deliveries a second, each verified, admitted, decoded, and acked as soon as it is there.

    Raises:
        InvalidRun: Fewer were verified than were handed over.
    """
    seen, verified = 0, VERIFIED.total()
    async with mesh.subscription(name) as subscription:
        began = time.perf_counter()
        while seen < count:
            delivery = await subscription.next()
            delivery.ack()
            seen += 1
        took = time.perf_counter() - began
    require(VERIFIED.total() - verified >= count, f"unverified: {VERIFIED.total() - verified:.0f} of {count} events")
    return count / took


async def fetch(client: Client, durable: str, count: int) -> float:
    """Deliveries a second by nats-py: `fetch(100)`, each acked, none verified.

    Raises:
        InvalidRun: Some never came.
    """
    pull = await client.jetstream().pull_subscribe_bind(durable=durable, stream=STREAM)
    seen = empty = 0
    began = time.perf_counter()
    while seen < count:
        try:
            messages = await pull.fetch(min(FETCH, count - seen), timeout=5)
        except nats.errors.TimeoutError:
            empty += 1
            if empty == EMPTY:
                raise InvalidRun(f"events lost: {count - seen} of {count} never came") from None
            continue
        for message in messages:
            await message.ack()
        seen += len(messages)
    took = time.perf_counter() - began
    await client.flush()
    return count / took


def costing(
    costs: dict[str, list[float]], name: str, measure: Measured, events: int, *, server: int | None = None
) -> Measured:
    """*measure*, which also notes under *name* what an event took of this process's processor, in microseconds.

    That holds on a machine that others use too, where a rate is what they left of it. What it took of the process
    *server* is noted under `<name>_server`.
    """

    async def run() -> float:
        there = 0.0 if server is None else _processor_s(server)
        before = time.process_time()
        rate = await measure()
        costs.setdefault(name, []).append((time.process_time() - before) / events * 1e6)
        if server is not None:
            costs.setdefault(f"{name}_server", []).append((_processor_s(server) - there) / events * 1e6)
        return rate

    return run


def _processor_s(pid: int) -> float:
    """What process *pid* has taken of the processors. proc(5): user and system time, in ticks, behind the name."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def adapter(bench: Bench) -> AsyncIterator[Client]:
    """A plain nats-py client that may do what the agent may."""
    client = await bench.peer(bench.context.data / "agents" / "shop" / "nats.creds", "shop")
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def team(bench: Bench) -> AsyncIterator[Client]:
    """A plain nats-py client that may do what the reading team may."""
    client = await bench.peer(bench.context.data / "teams" / "reader" / "nats.creds", "team-reader")
    try:
        yield client
    finally:
        await client.close()
