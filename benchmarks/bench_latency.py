"""How late are events while policies are reloaded and keys rotated: at 100, 1,000 and 5,000 a second?

An application with an embedded agent and a team that reads are processes of their own; server and control plane are
here. Policies change every two seconds and the agent's key every five. Latency counts from the moment an event was
meant to be sent, to 202 (`durable`) and to the handler (`handler`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from benchmarks import plots
from benchmarks.meshes import STREAM, Bench, mesh
from benchmarks.open_loop import Job
from benchmarks.runner import Absent, Figure, Key
from benchmarks.steady import PERCENTILES
from benchmarks.validity import require, require_stored
from benchmarks.workers import Worker, worker
from mesh.cli.operator import OperatorConnection
from mesh.cli.policy.request import ask
from mesh.control.door import pack

NAME = "latency"
RATES = (100, 1_000, 5_000)
SECONDS, QUICK_S = 30.0, 2.0
SUBSCRIPTION = "timed"
POLICY_EVERY_S, KEY_EVERY_S = 2.0, 5.0
MASKS = "{tags: [freetext], as: redact}", "{tags: [freetext], as: drop}"  # what the changes change
_FROM = {"durable": "to 202", "handler": "to the handler"}
KEYS = {
    **{
        f"latency_ms.at_{rate}.{end}.{name}": Key(
            "ms", better="less", what=f"{rate:,}/s {to}, {name.replace('_', '.')}"
        )
        for rate in RATES
        for end, to in _FROM.items()
        for name in (*PERCENTILES, "max")
    },
    "latency.reloads": Key("", what="policy changes meanwhile"),
    "latency.rotations": Key("", what="key rotations meanwhile"),
}


@dataclass(slots=True)
class Churn:
    """What went on beside the events."""

    reloads: int = 0
    rotations: int = 0


async def run(quick: bool) -> Mapping[str, Figure]:
    """One rate after the other, in the same mesh, with the same processes."""
    seconds = QUICK_S if quick else SECONDS
    figures: dict[str, Figure] = {}
    total = sum(int(rate * seconds) for rate in RATES)
    async with mesh(SUBSCRIPTION) as bench, _processes(bench, total) as (sender, reader), _churn(bench) as churn:
        first = 0
        for rate in RATES:
            sender.tell(Job(phase=f"at_{rate}", first=first, per_s=rate, seconds=seconds))
            first += int(rate * seconds)
            sent = await sender.hear()
            figures |= _figures(rate, "durable", sent["ms"], sent["failed"])
            reader.tell({"expect": first})
            seen = await reader.hear()
            refused = bool(sent["failed"])
            require(refused or not seen["missing"], f"events lost: {seen['missing']} never came")
            require(seen["verified"] >= seen["count"], "unverified events were handed over")
            figures |= _figures(rate, "handler", seen["ms"].get(f"at_{rate}", {}), sent["failed"])
            if refused:
                break
        if first == total and not refused:
            async with bench.control() as control:
                await require_stored(control, STREAM, total)
    for rate in RATES:  # after one that was too much, none is tried
        for end in _FROM:
            figures = _figures(rate, end, {}, {"not tried": 1}) | figures
    figures |= {"latency.reloads": float(churn.reloads), "latency.rotations": float(churn.rotations)}
    if not quick:
        plots.latency(figures, RATES)
    return figures


@asynccontextmanager
async def _processes(bench: Bench, total: int) -> AsyncIterator[tuple[Worker, Worker]]:
    data = bench.context.data
    options = ["--data", str(data)]
    log = data / "workers.log"
    async with (
        worker("timed_reader", *options, "--name", SUBSCRIPTION, "--events", str(total), log=log) as reader,
        worker("open_loop", *options, log=log) as sender,
    ):
        yield sender, reader


def _figures(rate: int, end: str, ms: Mapping[str, float], failed: Mapping[str, int]) -> dict[str, Figure]:
    """Percentiles by the names in KEYS; where the agent refused events, why there are none."""
    why = Absent(f"at {rate:,}/s the agent did not keep up on this machine: {dict(failed)}") if failed else None
    return {f"latency_ms.at_{rate}.{end}.{name}": why or ms[name] for name in (*PERCENTILES, "max")}


@asynccontextmanager
async def _churn(bench: Bench) -> AsyncIterator[Churn]:
    """Policies that change and keys that rotate, for the length of the block."""
    churn = Churn()
    async with bench.control() as policies, bench.control() as keys, anyio.create_task_group() as group:
        group.start_soon(_reload, policies, bench.policies, churn)
        group.start_soon(_rotate, keys, churn)
        yield churn
        group.cancel_scope.cancel()
    require(churn.reloads and churn.rotations, "no policy changed, or no key was rotated")


async def _reload(control: OperatorConnection, files: Mapping[str, str], churn: Churn) -> None:
    """Apply other policies every two seconds, as `mesh policy apply` does."""
    assert MASKS[0] in "".join(files.values()), "no such mask to change"
    while True:
        other = {name: text.replace(MASKS[0], MASKS[(churn.reloads + 1) % 2]) for name, text in files.items()}
        body = {"files": pack(other, {}), "author": "benchmark", "reason": "load", "skip_backlog": False}
        await ask(control, "apply", {**body, "expected": None})
        churn.reloads += 1
        await anyio.sleep(POLICY_EVERY_S)


async def _rotate(control: OperatorConnection, churn: Churn) -> None:
    """Rotate the agent's key every five seconds, as `mesh trust rotate` does."""
    while True:
        await ask(control, "rotate", {"agents": ["shop"]}, noun="trust")
        churn.rotations += 1
        await anyio.sleep(KEY_EVERY_S)
