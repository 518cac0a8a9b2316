"""How fast is a stolen key refused, and what do revoking and rotating cost those who are honest?

A thief holds the credentials and the enrolment token of an agent, enrols a key of his own and publishes with it without
a pause, as does the honest agent. His key is revoked by the command's own request, then the agent's keys are rotated.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import anyio
import msgspec
from anyio.abc import TaskGroup

from benchmarks.meshes import STREAM, Bench, event, mesh
from benchmarks.policy_sets import TYPE, VIEW
from benchmarks.runner import Key, Spread
from mesh.certificates import make_csr
from mesh.cli.operator import OperatorConnection
from mesh.cli.policy.request import ask
from mesh.client import connect
from mesh.enrolment import ENROL_SUBJECT, read_answer, seal_request
from mesh.event import draft_from_structured
from mesh.identity import Signer
from mesh.jetstream.connection import Connection
from mesh.jetstream.manage import consumer_info
from mesh.signing import seal

NAME = "trust"
KEYS = {
    "trust.revoke_refused_ms": Key(
        "ms", must=2000, better="less", what="revoke: command to the first refused event, its cut a second ahead"
    ),
    "trust.revoke_now_refused_ms": Key("ms", must=2000, better="less", what="the same with --now"),
    "trust.late_events": Key(
        "events", must=0, better="less", what="stored at or after a cut a second ahead, and accepted"
    ),
    "trust.late_events_now": Key("events", better="less", what="the same with --now, all revocations together"),
    "trust.rotate_ms": Key("ms", better="less", what="rotate: command to the agent's next key, under load"),
    "trust.honest_lost": Key("events", must=0, better="less", what="honest events accepted and not handed over"),
    "trust.honest_events": Key("events", what="honest events published meanwhile"),
}
SUBSCRIPTION = "orders"
HONEST_EVERY_S = 0.001
THIEF_EVERY_S = 0.002
AFTER_S = 0.5  # the thief goes on for so long after the first refusal
SETTLE_S = 30.0
REPLY_S = 10.0


@dataclass(slots=True)
class Seen:
    """What the reading team was handed, and what was refused it."""

    accepted: dict[str, int] = field(default_factory=dict)  # stream time (Unix ms) by event id
    refused_ns: list[int] = field(default_factory=list)  # our clock, as each dead letter came
    honest: list[str] = field(default_factory=list)


async def run(quick: bool) -> Mapping[str, float | Spread]:
    """Revocations of a thief's keys, then rotations, all under load."""
    rounds = 2 if quick else 10
    logging.getLogger("mesh.feed").setLevel(logging.CRITICAL)  # a line for each event of the thief
    ahead, at_once, rotations = [], [], []
    async with mesh(SUBSCRIPTION) as bench, bench.control() as control, _watched(bench, control) as (seen, group):
        group.start_soon(_publish, bench, seen)
        for _ in range(rounds):
            ahead.append(await _revocation(bench, control, seen, now=False))
            at_once.append(await _revocation(bench, control, seen, now=True))
        for _ in range(3):
            began = time.perf_counter()
            await ask(control, "rotate", {"agents": ["shop"]}, noun="trust")
            rotations.append((time.perf_counter() - began) * 1000)
        group.cancel_scope.cancel()
    lost = [id_ for id_ in seen.honest if id_ not in seen.accepted]
    return {
        "trust.revoke_refused_ms": Spread.of([refused_ms for refused_ms, _ in ahead]),
        "trust.revoke_now_refused_ms": Spread.of([refused_ms for refused_ms, _ in at_once]),
        "trust.late_events": float(sum(late for _, late in ahead)),
        "trust.late_events_now": float(sum(late for _, late in at_once)),
        "trust.rotate_ms": Spread.of(rotations),
        "trust.honest_lost": float(len(lost)),
        "trust.honest_events": float(len(seen.honest)),
    }


@asynccontextmanager
async def _watched(bench: Bench, control: Connection) -> AsyncIterator[tuple[Seen, TaskGroup]]:
    """A consumer of the team, and a task group to work beside it; ends once all that is stored was handed over."""
    seen = Seen()
    control.listen("dlq.>", lambda *_: seen.refused_ns.append(time.perf_counter_ns()))
    async with connect(bench.context) as team, team.subscription(SUBSCRIPTION) as deliveries:

        async def handle() -> None:
            async for delivery in deliveries:
                async with delivery as admitted:
                    seen.accepted[admitted.id] = admitted.stream_ms

        async with anyio.create_task_group() as consumer:
            consumer.start_soon(handle)
            async with anyio.create_task_group() as group:
                yield seen, group
            with anyio.fail_after(SETTLE_S):
                while True:
                    state = await consumer_info(control, STREAM, f"reader--{SUBSCRIPTION}")
                    if state["num_pending"] + state["num_ack_pending"] == 0:
                        break
                    await anyio.sleep(0.1)
            consumer.cancel_scope.cancel()


async def _publish(bench: Bench, seen: Seen) -> None:
    """The honest agent, until cancelled."""
    run_id, number = uuid4().hex, 0
    while True:
        with anyio.CancelScope(shield=True):  # what was accepted counts
            await bench.agent.publish_drafts([draft_from_structured(event(number, run_id), now_ms=0)])
        seen.honest.append(f"{run_id}-{number}")
        number += 1
        await anyio.sleep(HONEST_EVERY_S)


async def _revocation(bench: Bench, control: OperatorConnection, seen: Seen, *, now: bool) -> tuple[float, int]:
    """Milliseconds from the request to the first refused event of a thief, and his events accepted from the cut on."""
    thief = await _Thief.enrolled(bench)
    async with anyio.create_task_group() as group:
        group.start_soon(thief.publish)
        with anyio.fail_after(REPLY_S):
            while not any(id_ in seen.accepted for id_ in thief.sent):
                await anyio.sleep(0.01)
        seen.refused_ns.clear()
        began = time.perf_counter_ns()
        answer = await ask(control, "revoke", {"kid": thief.signer.kid, "now": now}, noun="trust")
        with anyio.fail_after(REPLY_S):
            while not seen.refused_ns:
                await anyio.sleep(0.001)
        refused = (seen.refused_ns[0] - began) / 1e6
        await anyio.sleep(AFTER_S)
        group.cancel_scope.cancel()
    await thief.connection.close()
    return refused, sum(seen.accepted.get(id_, 0) >= answer["cut_ms"] for id_ in thief.sent)


class _Thief:
    """An event key of an agent, in the wrong hands, with the agent's NATS credentials."""

    def __init__(self, connection: Connection, signer: Signer, body: dict[str, object]) -> None:
        self.connection = connection
        self.signer = signer
        self.sent: list[str] = []
        self._body = body

    @classmethod
    async def enrolled(cls, bench: Bench) -> _Thief:
        """He has the agent's directory, and asks for a key of his own."""
        directory = bench.context.data / "agents" / "shop"
        creds = (directory / "nats.creds").read_bytes()
        connection = await Connection.open(bench.context.mesh.nats_url, name="shop", creds=creds)
        seed = secrets.token_bytes(32)
        public = bytes.fromhex((bench.context.data / "trust" / "enrol.pub").read_text())
        request = seal_request(make_csr(seed), (directory / "enrol.token").read_bytes().strip(), public)
        answer = read_answer((await connection.request(f"{ENROL_SUBJECT}.shop", request, timeout_s=REPLY_S)).data)
        if answer.chain is None:
            raise RuntimeError(f"the thief got no key: {answer.error}")
        body = msgspec.json.decode(event(0, "forged"))
        body |= {"tenant": "bench", "view": VIEW, "policyrevision": 1}
        return cls(connection, Signer.from_seed(seed, answer.chain), body)

    async def publish(self) -> None:
        """Publish until cancelled."""
        subject = f"ev.local.{VIEW}.s00.{TYPE}"
        while True:
            id_ = uuid4().hex
            body = msgspec.json.encode(self._body | {"id": id_})
            msg_id = secrets.token_urlsafe(16)[:21] + "A"
            signed_ms = time.time_ns() // 1_000_000
            (signature,) = seal(
                [(subject, msg_id, body)], self.signer, signed_ms=signed_ms, salts=secrets.token_bytes(16)
            )
            headers = {"Nats-Msg-Id": msg_id, "Mesh-Signature": signature}
            await self.connection.request(subject, body, headers=headers)
            self.sent.append(id_)
            await anyio.sleep(THIEF_EVERY_S)
