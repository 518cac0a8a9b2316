"""What a user's test waits for: the mesh of the testing kit, its first event, and each test after that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from benchmarks.runner import ROOT, Key, Spread
from mesh.testing import LocalMesh, local_mesh

NAME = "testing"
KEYS = {
    "testing_start_s": Key("s", better="less", what="a mesh from the worked example, its policy tests included"),
    "testing_agent_s": Key("s", better="less", what="the first publish: its agent starts"),
    "testing_event_ms": Key("ms", better="less", what="publish, and the team was handed it"),
    "testing_reset_ms": Key("ms", better="less", what="the next test begins with nothing"),
    "testing_stop_s": Key("s", better="less", what="everything ended"),
}
EVENT = ROOT / "policies" / "fixtures" / "crm_contact_updated.json"


async def run(quick: bool) -> Mapping[str, float | Spread]:
    """Start meshes one after the other, and use each as a test does."""
    rounds = [await _round(ROOT / "policies") for _ in range(1 if quick else 5)]
    return {name: Spread.of([figures[name] for figures in rounds]) for name in KEYS}


async def _round(policies: Path) -> dict[str, float]:
    data = msgspec.json.decode(EVENT.read_bytes())["data"]
    began = time.perf_counter()
    async with local_mesh(policies) as kit:
        up = time.perf_counter()
        await kit.publish("crm.contact.updated.v1", data, source="/salesforce/eu")
        published = time.perf_counter()
        await kit.expect("support", "contacts")
        events, resets = [], []
        for _ in range(10):
            events.append(await _event(kit, data))
            start = time.perf_counter()
            await kit.reset()
            resets.append(time.perf_counter() - start)
        ending = time.perf_counter()
    return {
        "testing_start_s": up - began,
        "testing_agent_s": published - up,
        "testing_event_ms": sorted(events)[5] * 1000,
        "testing_reset_ms": sorted(resets)[5] * 1000,
        "testing_stop_s": time.perf_counter() - ending,
    }


async def _event(kit: LocalMesh, data: object) -> float:
    start = time.perf_counter()
    await kit.publish("crm.contact.updated.v1", data, source="/salesforce/eu")
    await kit.expect("support", "contacts")
    return time.perf_counter() - start
