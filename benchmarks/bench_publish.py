"""How fast does an event become durable: decided, masked, signed and acked, against a client that does none of it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from uuid import uuid4

from benchmarks import loads, peers
from benchmarks.meshes import STREAM, Bench, event, mesh
from benchmarks.policy_sets import TYPE, VIEW
from benchmarks.runner import Figure, Key, Spread, interleave, ratio
from benchmarks.validity import require, require_stored
from mesh.control.reader import reading
from mesh.event import draft_from_structured

NAME = "publish"
KEYS = {
    "publish_ratio": Key("x", must=1.15, aim=1.6, what="publish: decide, mask, sign, ack / publish_async, bare"),
    "faststream_publish_ratio": Key("x", what="publish: the same / FastStream on JetStream, bare"),
    "publish_ids_ratio": Key("x", what="publish: the same / publish_async with a message id, safe to send again"),
    "publish_per_s": Key("1/s", what="publish, embedded agent"),
    "publish_async_per_s": Key("1/s", what="nats-py publish_async, same bytes, same account"),
    "publish_cpu_us": Key("us", better="less", what="publish: our processor time for an event, from its bytes on"),
    "publish_async_cpu_us": Key("us", better="less", what="nats-py publish_async: its processor time for an event"),
    "publish_server_cpu_us": Key("us", better="less", what="publish: the server's processor time for an event of ours"),
    "publish_async_server_cpu_us": Key("us", better="less", what="nats-py publish_async: the server's for one of its"),
    "core_publish_per_s": Key("1/s", what="nats-py core publish: nothing stored, the ceiling"),
}
EVENTS = 20_000


async def run(quick: bool) -> Mapping[str, Figure]:
    """All through the account of one agent, into one stream on disk, R1."""
    count, rounds, few = (2_000, 1, 1) if quick else (EVENTS, 9, 5)
    cpu_us: dict[str, list[float]] = {}
    bodies: list[bytes] = []  # made before the clock runs: an adapter has them, as the peer has its own

    async def ours() -> float:
        bodies[:] = _events(count)
        return await timed()

    async with mesh() as bench:
        masked = await masked_body(bench)
        server = bench.server
        timed = loads.costing(cpu_us, "ours", lambda: loads.publish([bench.agent], bodies), count, server=server)
        contestants: dict[str, loads.Measured] = {
            "ours": ours,
            "peer": lambda: _peer(bench, count, masked, cpu_us),
            "core": lambda: peers.core_publish(bench, count, masked),
        }
        if peers.faststream_installed():
            contestants["faststream"] = lambda: peers.faststream_publish(bench, count // 4, masked)
        figures = await interleave(contestants, rounds=rounds)
        stored = rounds * (2 * count + count // 4 * ("faststream" in figures)) + 1
        async with bench.control() as control:
            await require_stored(control, STREAM, stored)
    beside_ids = await _beside_ids(count, few)
    return {
        "publish_ratio": ratio(figures["ours"], figures["peer"]),
        "publish_ids_ratio": ratio(beside_ids["ours"], beside_ids["ids"]),
        "faststream_publish_ratio": peers.against(figures["ours"], figures.get("faststream")),
        "publish_per_s": Spread.of(figures["ours"]),
        "publish_async_per_s": Spread.of(figures["peer"]),
        "publish_cpu_us": Spread.of(cpu_us["ours"]),
        "publish_async_cpu_us": Spread.of(cpu_us["peer"]),
        "publish_server_cpu_us": Spread.of(cpu_us["ours_server"]),
        "publish_async_server_cpu_us": Spread.of(cpu_us["peer_server"]),
        "core_publish_per_s": Spread.of(figures["core"]),
    }


async def _beside_ids(count: int, rounds: int) -> Mapping[str, list[float]]:
    """Ours, and the peer with message ids, on a server of their own: what it has to remember costs all others, too."""
    async with mesh() as bench:
        masked = await masked_body(bench)
        contestants: dict[str, loads.Measured] = {
            "ours": lambda: loads.publish([bench.agent], _events(count)),
            "ids": lambda: _peer(bench, count, masked, ids=[uuid4().hex for _ in range(count)]),
        }
        figures = await interleave(contestants, rounds=rounds)
        async with bench.control() as control:
            await require_stored(control, STREAM, rounds * 2 * count + 1)
    return figures


def _events(count: int) -> list[bytes]:
    """Events that were never published."""
    run_id = uuid4().hex
    return [event(number, run_id) for number in range(count)]


async def _peer(
    bench: Bench, count: int, body: bytes, cpu_us: dict[str, list[float]] | None = None, *, ids: Sequence[str] = ()
) -> float:
    """The same number of bytes, published as fast as nats-py can be asked to; connecting costs neither of us."""
    async with loads.adapter(bench) as client:
        subjects = [f"ev.local.{VIEW}.s00.{TYPE}"]
        costs = {} if cpu_us is None else cpu_us
        publish = partial(loads.publish_async, [client], subjects, body, count, ids=ids)
        return await loads.costing(costs, "peer", publish, count, server=bench.server)()


async def masked_body(bench: Bench, body: bytes | None = None) -> bytes:
    """The stored copy of *body*, or of the usual event: what the peer sends is what ours sends."""
    await bench.agent.publish_drafts([draft_from_structured(body or event(0, uuid4().hex), now_ms=0)])
    async with (
        bench.control() as control,
        reading(control, {STREAM: [f"ev.local.{VIEW}.>"]}, new_only=False) as (_, events),
    ):
        received = await events.receive()
    require(b"ada.lindqvist@example.com" not in received.body, "unmasked: a stored copy has the address in clear")
    require(received.signature, "unsigned: a stored copy has no signature")
    return received.body
