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
from mesh.jetstream.manage import api

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
ROUNDS = 61
"""Many: what others do on a machine makes the ratio of one round 0.8 to 1.5 where that of most is 1.1 to 1.2."""


async def run(quick: bool) -> Mapping[str, Figure]:
    """All through the account of one agent, into one stream on disk, R1."""
    count, rounds, few = (2_000, 1, 1) if quick else (EVENTS, ROUNDS, 5)
    beside_peer, costs = await _beside_peer(count, rounds)
    beside_others = await _beside_others(count, few)
    beside_ids = await _beside_ids(count, few)
    return {
        "publish_ratio": ratio(beside_peer["ours"], beside_peer["peer"]),
        "publish_ids_ratio": ratio(beside_ids["ours"], beside_ids["ids"]),
        "faststream_publish_ratio": peers.against(beside_others["ours"], beside_others.get("faststream")),
        "publish_per_s": Spread.of(beside_peer["ours"]),
        "publish_async_per_s": Spread.of(beside_peer["peer"]),
        "publish_cpu_us": Spread.of(costs["ours"]),
        "publish_async_cpu_us": Spread.of(costs["peer"]),
        "publish_server_cpu_us": Spread.of(costs["ours_server"]),
        "publish_async_server_cpu_us": Spread.of(costs["peer_server"]),
        "core_publish_per_s": Spread.of(beside_others["core"]),
    }


async def _beside_peer(count: int, rounds: int) -> tuple[Mapping[str, list[float]], Mapping[str, list[float]]]:
    """Ours and the peer, many times in turns, each into an empty stream; and what an event took of the processors.

    Raises:
        InvalidRun: Some run did not store what it published.
    """
    costs: dict[str, list[float]] = {}
    bodies: list[bytes] = []  # made before the clock runs: an adapter has them, as the peer has its own
    async with mesh() as bench, bench.control() as control:
        masked = await masked_body(bench)
        publish = partial(loads.publish, [bench.agent], bodies)
        timed = loads.costing(costs, "ours", publish, count, server=bench.server)

        async def ours() -> float:
            bodies[:] = _events(count)
            return await emptied(await timed())

        async def peer() -> float:
            return await emptied(await _peer(bench, count, masked, costs))

        async def emptied(rate: float) -> float:
            await require_stored(control, STREAM, count)
            await api(control, f"STREAM.PURGE.{STREAM}")
            return rate

        await api(control, f"STREAM.PURGE.{STREAM}")
        return await interleave({"ours": ours, "peer": peer}, rounds=rounds), costs


async def _beside_others(count: int, rounds: int) -> Mapping[str, list[float]]:
    """Ours, FastStream, and the ceiling."""
    async with mesh() as bench:
        masked = await masked_body(bench)
        contestants: dict[str, loads.Measured] = {
            "ours": lambda: loads.publish([bench.agent], _events(count)),
            "core": lambda: peers.core_publish(bench, count, masked),
        }
        if peers.faststream_installed():
            contestants["faststream"] = lambda: peers.faststream_publish(bench, count // 4, masked)
        figures = await interleave(contestants, rounds=rounds)
        async with bench.control() as control:
            await require_stored(control, STREAM, rounds * (count + count // 4 * ("faststream" in figures)) + 1)
    return figures


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
