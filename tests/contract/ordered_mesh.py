"""For the tests of ordered subscriptions: events with keys, the durables of every slot, and replicas as processes."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec

from mesh.event import encode
from mesh.jetstream import manage
from mesh.jetstream.changes import plan
from mesh.jetstream.durables import redrive, replays
from mesh.jetstream.topology import ConsumerSpec, consumer, desired
from mesh.jetstream.wire import publish_frame
from mesh.policy.compile import Plans
from mesh.policy.envelope import open_bundle
from mesh.policy.grants import SubscriptionGrant
from mesh.signing import message_id, seal
from mesh.subjects import slot_name
from tests.contract.agent_mesh import DOMAINS, POLICIES, POLICY_KEY, SMALL, now_ms
from tests.contract.consumer_mesh import DEDUPE_KEY, STREAM, TENANT, TYPE, VIEW, Source

SLOTS = 16
ACK_WAIT_S = 2.0
ORDERED = (
    POLICIES
    + f"""---
apiVersion: mesh/v1
kind: Subscription
metadata: {{name: contacts, tenant: acme, team: support}}
spec:
  types: ["crm.contact.>"]
  start: all
  order_by: partitionkey
  max_in_flight: 400
  retry: {{attempts: 3, backoff: [200ms], ack_wait: {ACK_WAIT_S:g}s}}
"""
)
BATCH = 64


def slot_of(key: str) -> int:
    """A slot for each key, spread evenly."""
    return zlib.crc32(key.encode()) % SLOTS


class Handled(NamedTuple):
    """One call of a handler: which replica, which key, the key's how-manieth event, and from which run of a replay."""

    replica: str
    key: str
    number: int
    run: str = ""


@dataclass
class OrderedSource(Source):
    """A tenant with an ordered subscription."""

    @classmethod
    @asynccontextmanager
    async def ordered(cls, directory: Path, policies: str = ORDERED) -> AsyncIterator[OrderedSource]:
        """As `running`."""
        async with cls.running(directory, policies) as source:
            assert isinstance(source, cls)
            yield source

    async def durable(self) -> None:
        """Make the durables, as the control plane does."""
        wanted = desired("local", DOMAINS, [await self.grant()], SMALL)
        await manage.apply(self.streams.connection, plan(wanted, await manage.read_actual(self.streams.connection)))

    async def grant(self) -> SubscriptionGrant:
        """Of the subscription, under the bundle in force."""
        plans = Plans(open_bundle(await self.streams.envelope(), POLICY_KEY))
        return plans.subscription("support", "contacts", now_ms=now_ms())

    async def replay(self) -> str:
        """Make the durable of a replay of everything, as the control plane does; its stream."""
        grant = await self.grant()
        (durable,) = replays("local", ["crm"], grant)
        await self._make(consumer(durable, grant, pinned=grant.ordered, start="all"))
        return durable.stream

    async def redrive(self, *messages: bytes) -> None:
        """Make the durable of a redrive, and send messages to it, as the control plane does."""
        grant = await self.grant()
        await self._make(consumer(redrive(grant), grant, start="all"))
        for message in messages:
            await self.streams.connection.request("redrive.support.contacts", message)

    async def _make(self, spec: ConsumerSpec) -> None:
        config = {name: value for name, value in (spec.config() | spec.start_config()).items() if value is not None}
        body = {"stream_name": spec.stream, "config": config, "action": "create"}
        await manage.api(self.streams.connection, f"CONSUMER.CREATE.{spec.stream}.{spec.name}", body)

    async def notice(self, kind: str, run: str, stream: str, **to: int) -> None:
        """Say that a run is open, as the control plane does every two seconds."""
        said = {"kind": kind, "team": "support", "subscription": "contacts", "run": run, "to": to, "stream": [stream]}
        await self.streams.connection.publish("ctl.notice", msgspec.json.encode(said))

    async def publish_keys(self, events: Iterable[tuple[str, int]], **attributes: str) -> None:
        """Store events of (key, number) in this order, signed in batches."""
        connection, waiting = self.streams.connection, list(events)
        stored = await self.streams.stored()
        for start in range(0, len(waiting), BATCH):
            connection.write(b"".join(self._sealed(waiting[start : start + BATCH], attributes)))
            await connection.flush(20)
        with anyio.fail_after(60):
            while await self.streams.stored() < stored + len(waiting):
                await anyio.sleep(0.01)

    def _sealed(self, batch: list[tuple[str, int]], attributes: dict[str, str]) -> list[bytes]:
        items = []
        for key, number in batch:
            id_ = secrets.token_hex(8)
            subject = f"ev.local.{VIEW}.{slot_name(slot_of(key))}.{TYPE}"
            fields = {
                "specversion": "1.0",
                "id": id_,
                "source": "/crm",
                "type": TYPE,
                "tenant": TENANT,
                "view": VIEW,
                "policyrevision": 1,
                "partitionkey": key,
                "data": {"country": str(number)},
                **attributes,
            }
            items.append((subject, message_id(DEDUPE_KEY, "/crm", id_, subject), encode(fields)))
        salts = secrets.token_bytes(16 * len(items))
        signatures = seal(items, self.signer, signed_ms=now_ms(), salts=salts)
        return [
            publish_frame(subject, body, headers={"Nats-Msg-Id": msg_id, "Mesh-Signature": signature})
            for (subject, msg_id, body), signature in zip(items, signatures, strict=True)
        ]

    async def outstanding(self) -> int:
        """Events that no replica has settled."""
        total = 0
        for slot in range(SLOTS):
            info = await manage.consumer_info(self.streams.connection, STREAM, f"support--contacts--{slot_name(slot)}")
            total += info["num_pending"] + info["num_ack_pending"]
        return total


class Replica:
    """One process that runs the subscription; it writes each call of its handler to *book*, a line each."""

    def __init__(self, source: OrderedSource, book: Path, name: str, *, behaviour: str = "") -> None:
        self.name = name
        self._log = (book.parent / f"{name}.log").open("wb")
        trust = source.directory / "trust"
        command = [sys.executable, "-m", "tests.contract.ordered_replica"]
        arguments = [source.streams.server.url, str(trust), str(book), name, behaviour]
        self.process = subprocess.Popen([*command, *arguments], stderr=self._log)

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        self.process.send_signal(number)

    def end(self) -> None:
        """Whatever state it is in."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self._log.close()


def read(book: Path) -> list[Handled]:
    """What the handlers of all replicas were called with, in the order of the calls; a torn last line is left out."""
    lines = book.read_bytes().split(b"\n")[:-1] if book.exists() else []
    return [msgspec.json.decode(line, type=Handled) for line in lines]


def disorder(calls: Iterable[Handled]) -> list[str]:
    """Where an event was handled for the first time after a later one of its key."""
    last: dict[str, int] = {}
    wrong = []
    for call in calls:
        if call.number > last.get(call.key, 0) + 1:
            wrong.append(f"{call.replica} handled {call.key} {call.number} after {last.get(call.key, 0)}")
        last[call.key] = max(last.get(call.key, 0), call.number)
    return wrong
