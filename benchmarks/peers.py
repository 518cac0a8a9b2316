"""Who we are compared with, beside nats-py's own JetStream: FastStream on JetStream, and core NATS as the ceiling.

FastStream is the framework that a Python team would otherwise take. It publishes with an ack for each event, `CALLS` at
once, and consumes by pulls of 100 with an ack after each handler, through the same accounts, streams and durables as
ours, with the same bytes. Core NATS stores, signs and acknowledges nothing: no client on it is faster.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
from nats.aio.msg import Msg

from benchmarks.meshes import STREAM, Bench
from benchmarks.policy_sets import TYPE, VIEW
from benchmarks.runner import Absent, Figure, ratio
from mesh.control.datadir import DataDirectory

CALLS = 512  # publishes at once: FastStream has no batch, and more are no faster
FETCH = 100
SUBJECT = f"ev.local.{VIEW}.s00.{TYPE}"
CORE_SUBJECT = "benchmark.core"
WAIT_S = 120.0


def faststream_installed() -> bool:
    """Whether FastStream is there; it comes with the extra `bench`."""
    return importlib.util.find_spec("faststream") is not None


def against(ours: Sequence[float], theirs: Sequence[float] | None) -> Figure:
    """Ours against FastStream's round by round, or why there is no such figure."""
    return Absent("FastStream is not installed: make install-bench") if theirs is None else ratio(ours, theirs)


async def faststream_publish(bench: Bench, count: int, body: bytes) -> float:
    """Events a second, each awaited until the stream has acknowledged it."""
    broker = _broker(bench, bench.context.data / "agents" / "shop" / "nats.creds", "shop")
    left = iter(range(count))

    async def calls() -> None:
        for _ in left:
            await broker.publish(body, SUBJECT, stream=STREAM)

    async with broker:
        began = time.perf_counter()
        await asyncio.gather(*(calls() for _ in range(CALLS)))
        return count / (time.perf_counter() - began)


async def faststream_consume(bench: Bench, name: str, count: int) -> float:
    """Events a second through the team's durable, each decoded for its handler and acked after it."""
    nats = importlib.import_module("faststream.nats")
    broker = _broker(bench, bench.context.data / "teams" / "reader" / "nats.creds", "team-reader")
    seen, done = 0, anyio.Event()

    async def handle(event: dict[str, Any]) -> None:
        nonlocal seen
        seen += event["id"] is not None
        if seen == count:
            done.set()

    # FastStream asks about a durable before it binds it, and makes it where it is absent. A team may do neither here.
    async def bind(*_: object, durable: str, stream: str, **__: object) -> object:
        return await jetstream.pull_subscribe_bind(durable=durable, stream=stream)

    stream = nats.JStream(STREAM, declare=False)
    durable = bench.context.team_address().subscriptions[name].durable
    pull = nats.PullSub(batch_size=FETCH)
    broker.subscriber(f"ev.local.{VIEW}.>", durable=durable, stream=stream, pull_sub=pull)(handle)
    async with broker:
        jetstream = broker.config.broker_config.connection_state.stream
        jetstream.pull_subscribe = bind
        began = time.perf_counter()
        await broker.start()
        with anyio.fail_after(WAIT_S):
            await done.wait()
        return count / (time.perf_counter() - began)


async def core_publish(bench: Bench, count: int, body: bytes) -> float:
    """Events a second that nats-py hands to the server, which hands them to nobody."""
    client = await bench.peer(_operator(bench), "operator")
    try:
        began = time.perf_counter()
        for _ in range(count):
            await client.publish(CORE_SUBJECT, body)
        await client.flush()
        return count / (time.perf_counter() - began)
    finally:
        await client.close()


async def core_end_to_end(bench: Bench, count: int, body: bytes) -> float:
    """Events a second from nats-py to nats-py, sender and callback in this process; the server keeps nothing."""
    sender, reader = [await bench.peer(_operator(bench), "operator") for _ in range(2)]
    seen, done = 0, anyio.Event()

    async def callback(_: Msg) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            done.set()

    try:
        await reader.subscribe(CORE_SUBJECT, cb=callback, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await reader.flush()
        began = time.perf_counter()
        for _ in range(count):
            await sender.publish(CORE_SUBJECT, body)
        await sender.flush()
        with anyio.fail_after(WAIT_S):
            await done.wait()
        return count / (time.perf_counter() - began)
    finally:
        await sender.close()
        await reader.close()


def _broker(bench: Bench, creds: Path, name: str) -> Any:
    """FastStream's broker with the credentials and the inbox of one of ours; its log is silent, as ours is."""
    broker = importlib.import_module("faststream.nats").NatsBroker
    security = importlib.import_module("faststream.nats.security").NatsCredentials(str(creds))
    prefix = f"_INBOX_{name}".encode()
    return broker(bench.context.mesh.nats_url, security=security, inbox_prefix=prefix, logger=None)


def _operator(bench: Bench) -> Path:
    """The credentials of the control plane, which may use any subject."""
    return DataDirectory(bench.context.data).admin_creds(bench.context.tenant, sorted(bench.context.mesh.tenants))
