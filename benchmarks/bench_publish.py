"""How fast does an event become durable: decided, masked, signed and acked, against a client that does none of it?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from uuid import uuid4

from benchmarks.meshes import STREAM, Bench, event, mesh
from benchmarks.policy_sets import TYPE, VIEW
from benchmarks.runner import Key, Spread, interleave, ratio
from mesh.control.reader import reading
from mesh.event import draft_from_structured
from mesh.jetstream.manage import stream_info

NAME = "publish"
KEYS = {
    "publish_ratio": Key("x", must=1.15, aim=1.6, what="publish: decide, mask, sign, ack / publish_async, bare"),
    "publish_per_s": Key("1/s", what="publish, embedded agent"),
    "publish_async_per_s": Key("1/s", what="nats-py publish_async, same bytes, same account"),
}
EVENTS = 20_000
CHUNK = 500  # events in one call of an application
CALLS = 4  # calls at once
PEER_PENDING = 4000  # nats-py's own default window


async def run(quick: bool) -> Mapping[str, float | Spread]:
    """Both through the account of one agent, into one stream on disk, R1."""
    count = 2_000 if quick else EVENTS
    async with mesh() as bench:
        masked = await _masked_body(bench)
        figures = await interleave(
            {"ours": lambda: _ours(bench, count), "peer": lambda: _peer(bench, count, masked)}, rounds=1 if quick else 5
        )
        await _check(bench, count)
    return {
        "publish_ratio": ratio(figures["ours"], figures["peer"]),
        "publish_per_s": Spread.of(figures["ours"]),
        "publish_async_per_s": Spread.of(figures["peer"]),
    }


async def _ours(bench: Bench, count: int) -> float:
    """Events a second from bytes in hand to acknowledged."""
    run_id = uuid4().hex
    bodies = [event(number, run_id) for number in range(count)]
    chunks = iter([bodies[start : start + CHUNK] for start in range(0, count, CHUNK)])
    agent = bench.agent

    async def calls() -> None:
        for chunk in chunks:
            now_ms = time.time_ns() // 1_000_000
            drafts = [draft_from_structured(body, now_ms=now_ms) for body in chunk]
            receipts = await agent.publish_drafts(drafts)
            assert all(len(receipt.copies) == 1 for receipt in receipts)

    began = time.perf_counter()
    await asyncio.gather(*(calls() for _ in range(CALLS)))
    return count / (time.perf_counter() - began)


async def _peer(bench: Bench, count: int, body: bytes) -> float:
    """The same number of bytes, published as fast as nats-py can be asked to."""
    client = await bench.peer(bench.context.data / "agents" / "shop" / "nats.creds", "shop")
    try:
        js = client.jetstream(publish_async_max_pending=PEER_PENDING)
        subject = f"ev.local.{VIEW}.s00.{TYPE}"
        began = time.perf_counter()
        for _ in range(count):
            await js.publish_async(subject, body, wait_stall=30)
        await js.publish_async_completed()
        return count / (time.perf_counter() - began)
    finally:
        await client.close()


async def _masked_body(bench: Bench) -> bytes:
    """A stored copy: what the peer sends is what ours sends."""
    await bench.agent.publish_drafts([draft_from_structured(event(0, uuid4().hex), now_ms=0)])
    async with (
        bench.control() as control,
        reading(control, {STREAM: [f"ev.local.{VIEW}.>"]}, new_only=False) as (_, events),
    ):
        received = await events.receive()
    assert b"ada.lindqvist@example.com" not in received.body, "not masked"
    assert received.signature, "not signed"
    return received.body


async def _check(bench: Bench, count: int) -> None:
    """Refuse to report a run that lost events or kept them in memory."""
    async with bench.control() as control:
        info = await stream_info(control, STREAM)
    assert info["config"]["storage"] == "file", "not on disk"
    assert info["state"]["messages"] >= count, "events were lost"
