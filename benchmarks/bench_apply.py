"""How long does a change of policies take to the last of 200 agents, and does any event suffer from it?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.fleet import Fleet, fleet
from benchmarks.fleet_members import Findings
from benchmarks.fleet_policies import DOMAIN, MASKED, OTHER, agent_names, field_of, files, type_of
from benchmarks.runner import Key, Spread
from benchmarks.validity import require
from mesh.control.reader import reading
from mesh.jetstream.manage import stream_info

NAME = "apply"
KEYS = {
    "propagation_ms.p50": Key("ms", better="less", what="policy change to the last of 200 agents"),
    "propagation_ms.max": Key(
        "ms", must=1000, aim=100, better="less", what="policy change to the last of 200 agents, worst"
    ),
    "apply.mask_ms": Key("ms", better="less", what="those that narrow a mask"),
    "apply.grant_ms": Key("ms", better="less", what="those that narrow a grant"),
    "apply.done_ms": Key("ms", better="less", what="apply, until NATS has exactly the new rights"),
    "apply.agents": Key("", what="agents, each with its own connection, credentials and watcher"),
    "apply.changes": Key("", what="changes applied"),
    "apply.events": Key("", what="events published meanwhile, none of them lost or shown too widely"),
    "apply.refused": Key("", must=0, aim=0, better="less", what="events refused while policies changed"),
}
AGENTS, ALONE, TOGETHER = 200, 8, 24  # 8 in processes of their own, the others so many to a process
QUICK = (12, 2, 5)
ROUNDS = 15  # each changes a mask, then a grant: 30 changes
PER_S = 10.0  # events a second and process
STREAM = f"EV_local_{DOMAIN}"


@dataclass(frozen=True, slots=True)
class Change:
    """One apply: what it took away, when it began, and when it was through."""

    kind: str
    step: int
    revision: int
    began_ns: int
    done_ms: float


async def run(quick: bool) -> Mapping[str, float | Spread]:
    """Narrow a mask and a grant in turn, under traffic."""
    count, alone, together = QUICK if quick else (AGENTS, ALONE, TOGETHER)
    names = agent_names(count)
    hosts = [[name] for name in names[:alone]]
    hosts += [names[start : start + together] for start in range(alone, count, together)]
    with tempfile.TemporaryDirectory(prefix="mesh-fleet-") as directory:
        async with fleet(Path(directory), files(names, masks=0, grants=0)) as mesh:
            await mesh.start(hosts, per_s=PER_S)
            changes = await _narrow(mesh, names, 3 if quick else ROUNDS)
            found = await mesh.finish()
            stored = await _stored(mesh)
    harm = _harm(changes, found, stored)
    require(not harm["lost"], f"{harm['lost']} events stored or delivered too seldom")
    require(not harm["leaked"], f"unmasked: {harm['leaked']} events carry what was withdrawn before they were made")
    took = {change: _last_ms(change, found, count) for change in changes}
    kinds = {kind: Spread.of([took[c] for c in changes if c.kind == kind]) for kind in ("mask", "grant")}
    return {
        "propagation_ms.p50": Spread.of(list(took.values())),
        "propagation_ms.max": max(took.values()),
        "apply.mask_ms": kinds["mask"],
        "apply.grant_ms": kinds["grant"],
        "apply.done_ms": Spread.of([change.done_ms for change in changes]),
        "apply.agents": float(count),
        "apply.changes": float(len(changes)),
        "apply.events": float(len(found.sent)),
        "apply.refused": float(harm["refused"]),
    }


async def _narrow(mesh: Fleet, names: Sequence[str], rounds: int) -> list[Change]:
    """Take one field and one type away, *rounds* times."""
    changes = []
    for step in range(rounds):
        for kind, grants in (("mask", step), ("grant", step + 1)):
            wanted = files(names, masks=step + 1, grants=grants)
            began_ns = time.time_ns()
            applied = await mesh.policies.apply(wanted, {}, author="benchmark", reason=f"{kind} {step}")
            late = [one["workload"] for one in applied.behind if one["workload"] in names]
            assert not late, f"{len(late)} agents did not follow"
            done_ms = (time.time_ns() - began_ns) / 1e6
            changes.append(Change(kind, step, applied.revision, began_ns, done_ms))
    return changes


def _last_ms(change: Change, found: Findings, agents: int) -> float:
    """Milliseconds from the apply to the last agent's adoption."""
    adopted = [one.at_ns for one in found.adoptions if one.revision == change.revision]
    assert len(adopted) == agents, f"revision {change.revision}: {len(adopted)} of {agents} agents adopted it"
    return (max(adopted) - change.began_ns) / 1e6


# --- what became of the events ---------------------------------------------------------------------------------------


class _Body(msgspec.Struct):
    """What we look at in a stored copy."""

    id: str
    type: str
    view: str
    policyrevision: int
    data: dict[str, object]


async def _stored(mesh: Fleet) -> list[_Body]:
    """Every copy in the stream."""
    count = (await stream_info(mesh.connection, STREAM))["state"]["messages"]
    decoder = msgspec.json.Decoder(_Body)
    async with reading(mesh.connection, {STREAM: ["ev.>"]}, new_only=False) as (_, events):
        return [decoder.decode((await events.receive()).body) for _ in range(count)]


def _harm(changes: Sequence[Change], found: Findings, stored: Sequence[_Body]) -> dict[str, int]:
    """Events that leaked, were refused or were lost."""
    hidden = {change.revision: change.step for change in changes if change.kind == "mask"}
    withdrawn = {change.revision: change.step for change in changes if change.kind == "grant"}
    adopted = {(one.agent, one.revision): one.at_ns for one in found.adoptions}
    copies = {(body.id, body.view): body for body in stored}
    leaked = lost = 0
    for sent in found.sent:
        if sent.error:
            continue
        shown = copies.get((sent.id, MASKED))
        lost += shown is None
        since = [r for r in (*hidden, *withdrawn) if adopted[sent.agent, r] < sent.at_ns]  # before it was published
        fields = {field_of(hidden[r]) for r in since if r in hidden}
        types = {type_of(withdrawn[r]) for r in since if r in withdrawn}
        leaked += shown is not None and bool(fields & shown.data.keys())
        leaked += sent.type in types and (sent.id, OTHER) in copies
    seen = {one.id for one in found.seen}
    lost += sum(not sent.error and sent.id not in seen for sent in found.sent)
    for one in found.seen:  # what a team was handed is as narrow as the policies that it ran by then
        leaked += any(r <= one.revision and field_of(step) in one.fields for r, step in hidden.items())
    refused = sum(bool(sent.error) for sent in found.sent)
    return {"leaked": leaked, "refused": refused, "lost": lost}
