"""One run: a mesh under load, its schedule of faults, then quiet, then the verdict."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from tests.faults.acting import Acting
from tests.faults.schedule import Fault, Shape
from tests.faults.verdict import MUSTS, quiet, verdict
from tests.faults.world import WHOLE, Size, World, world

SAY_S = 10.0
QUIET_S = 20.0  # above every ack_wait and backoff, and a slot of an ordered subscription that is taken over
WARM_EVENTS = 100  # before the first fault: everything is on its way


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


async def run(
    shape: Shape,
    faults: Sequence[Fault],
    *,
    events: int,
    per_s: float,
    size: Size | None = None,
    quiet_s: float = QUIET_S,
    plant: str = "",
    keep: Path | None = None,
) -> dict[str, Any]:
    """Do *faults* to a mesh of that shape under load, and count.

    Args:
        shape: One server, or a cluster.
        faults: In their order; see `schedule.schedule`.
        events: The load goes on until so many were accepted, and the faults are over.
        per_s: Events that are offered a second.
        size: See `world.world`; all of it unless given.
        quiet_s: Nothing moves for so long: what is missing now does not come.
        plant: See `world.world`.
        keep: As well.
    """
    began = anyio.current_time()
    async with (
        world(shape, per_s=per_s, size=size or WHOLE[shape], plant=plant, keep=keep) as mesh,
        anyio.create_task_group() as group,
    ):
        say(f"{shape}: up after {anyio.current_time() - began:.0f} s")
        group.start_soon(_progress, mesh)
        await _accepted(mesh, WARM_EVENTS)
        await _do(mesh, faults)
        say(f"{shape}: faults over after {anyio.current_time() - began:.0f} s")
        await _accepted(mesh, events)
        await mesh.stop_load()
        say(f"{shape}: load over after {anyio.current_time() - began:.0f} s")
        quiet_s, undone = await quiet(mesh, quiet_s)
        say(f"{shape}: quiet after {anyio.current_time() - began:.0f} s")
        for durable in undone:
            say(f"{shape}: not done: {durable}")
        counts = await verdict(mesh)
        for line in counts.pop("astray"):
            say(f"{shape}: {line}")
        say(f"{shape}: counted after {anyio.current_time() - began:.0f} s")
        group.cancel_scope.cancel()
    kinds = Counter(fault.kind for fault in faults)
    seconds = round(anyio.current_time() - began, 1)
    return {
        "runs": len(faults),
        "faults": dict(sorted(kinds.items())),
        **counts,
        "quiet_s": round(quiet_s, 1),
        "seconds": seconds,
    }


async def _do(mesh: World, faults: Sequence[Fault]) -> None:
    """Every fault at its time; all that they took away is back when this returns."""
    acting = Acting(mesh)
    async with anyio.create_task_group() as group:
        for fault in faults:
            await anyio.sleep(fault.wait_s)
            say(f"{mesh.shape} {fault}")
            group.start_soon(acting.act, fault)
    mesh.heal()
    await mesh.servers.complete()


async def _accepted(mesh: World, events: int) -> None:
    """Wait until so many were accepted."""
    while count(mesh) < events:
        for adapter in mesh.adapters:
            if not adapter.running:
                raise RuntimeError(f"{adapter.name} ended\n{adapter.last_words()}")
        await anyio.sleep(0.1)


def count(mesh: World) -> int:
    """Events accepted so far."""
    return sum(file.read_bytes().count(b"\n") for file in mesh.root.glob("notes/*.accepted"))


async def _progress(mesh: World) -> None:
    while True:
        await anyio.sleep(SAY_S)
        say(f"{mesh.shape}: {count(mesh)} accepted")


def total(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The sums over several runs, by name; the runs themselves under `worlds`."""
    summed: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for result in results.values():
        kinds.update(result["faults"])
        summed.update({name: value for name, value in result.items() if isinstance(value, int | float)})
    return {**summed, "faults": dict(sorted(kinds.items())), "worlds": results}


def failures(result: dict[str, Any]) -> dict[str, int]:
    """What had to be 0 and is not."""
    return {name: result[name] for name in MUSTS if result[name]}
