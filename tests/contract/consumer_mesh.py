"""For the tests of consumers: events sealed by keys that the test holds, and readers that end and start again."""

from __future__ import annotations

import secrets
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.anchors import open_keyring
from mesh.ca import MeshCA
from mesh.context import SubscriptionAddress
from mesh.deadletters import DeadLetterRecord
from mesh.errors import Unavailable
from mesh.event import encode
from mesh.identity import Signer, SpiffeId, TrustStatement
from mesh.inbound import Admitted
from mesh.jetstream import manage
from mesh.jetstream.connection import Connection
from mesh.jetstream.store import KeyValue
from mesh.signing import message_id, seal
from mesh.subscription import Subscription
from mesh.trust_watch import TrustWatch
from mesh.watch import BundleWatch
from tests.contract.agent_mesh import POLICIES, POLICY_KEY, TRUST_KEY, TRUST_SEED, Streams, now_ms, until

STREAM = "EV_local_crm"
DURABLE = "support--contacts"
VIEW = "service"
TYPE = "crm.contact.created.v1"
SUBJECT = f"ev.local.{VIEW}.s00.{TYPE}"
SUBSCRIPTION = """---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: contacts, tenant: acme, team: support}
spec: {types: ["crm.contact.>"], start: all, retry: {attempts: 1, ack_wait: 30s}}
"""
GRACE = POLICIES + SUBSCRIPTION
STRICT = GRACE.replace("desk]}}}", "desk]}}, trust: {staleness: strict}}")
TENANT = "acme"
DEDUPE_KEY = bytes(range(32))
DEADLINE_S = 20


def sealed_statement(
    epoch: int, issued_ms: int, revoked: Mapping[str, int] | None = None, *, tenant: str = TENANT
) -> bytes:
    """A statement as the control plane signs it."""
    statement = TrustStatement(tenant=tenant, epoch=epoch, issued_ms=issued_ms, revoked=dict(revoked or {}))
    return statement.seal(TRUST_SEED)


def new_signer(ca: MeshCA, *, issued_ms: int | None = None, lifetime_s: float = 3600) -> Signer:
    """A new event key of crm-adapter."""
    seed = secrets.token_bytes(32)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    workload = SpiffeId.for_agent("mesh.local", TENANT, "crm-adapter")
    at_ms = now_ms() if issued_ms is None else issued_ms
    return Signer.from_seed(seed, ca.issue(workload, public, now_ms=at_ms, lifetime_s=lifetime_s))


@dataclass
class Clock:
    """What the readers of a test take for now."""

    ahead_ms: int = 0

    def __call__(self) -> int:
        """Unix milliseconds."""
        return now_ms() + self.ahead_ms

    @classmethod
    def of_feeds(cls, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """The clock of every feed of this test."""
        clock = cls()
        monkeypatch.setattr("mesh.feed._now_ms", clock)
        return clock


@dataclass
class Source:
    """A tenant with one publisher, whose keys the test makes, and the team support, which reads from it."""

    streams: Streams
    directory: Path
    ca: MeshCA
    signer: Signer
    epoch: int = 0

    @classmethod
    @asynccontextmanager
    async def running(cls, directory: Path, policies: str = GRACE) -> AsyncIterator[Source]:
        """A server with streams, a bundle, a certificate, a durable and a fresh trust statement."""
        ca = MeshCA.create("mesh.local", now_ms=now_ms() - 7 * 86_400_000)
        trust = directory / "trust"
        trust.mkdir(parents=True)
        (trust / "ca.crt").write_bytes(ca.root_pem)
        (trust / "trust.pub").write_text(TRUST_KEY.hex())
        (trust / "policy.pub").write_text(POLICY_KEY.hex())
        async with Streams.running(directory / "nats", bundle=False) as streams:
            source = cls(streams, directory, ca, new_signer(ca), epoch=streams.epoch)
            await streams.hand_out(policies=policies)
            await source.certify(source.signer)
            await source.durable()
            yield source

    @property
    def trust(self) -> KeyValue:
        """The bucket, as whoever can write to it."""
        return KeyValue(self.streams.connection, "mesh_trust")

    async def durable(self) -> None:
        """Make the durable, as the control plane does."""
        config = {
            "durable_name": DURABLE,
            "name": DURABLE,
            "ack_policy": "explicit",
            "ack_wait": 30_000_000_000,
            "deliver_policy": "all",
            "filter_subjects": [f"ev.local.{VIEW}.*.crm.contact.>"],
        }
        body = {"stream_name": STREAM, "config": config, "action": ""}
        await manage.api(self.streams.connection, f"CONSUMER.CREATE.{STREAM}.{DURABLE}", body)

    async def certify(self, signer: Signer) -> None:
        """Publish its certificate."""
        await self.trust.put(f"cert.{signer.kid}", signer.certificate)

    async def state(self, revoked: Mapping[str, int] | None = None, *, issued_ms: int | None = None) -> bytes:
        """Issue the next trust statement and tell everybody; returns it as it was signed."""
        self.epoch += 1
        sealed = sealed_statement(self.epoch, now_ms() if issued_ms is None else issued_ms, revoked)
        await self.put_statement(sealed)
        return sealed

    async def lose_bucket(self) -> None:
        """Nobody answers for statement and certificates any more."""
        await manage.api(self.streams.connection, "STREAM.DELETE.KV_mesh_trust")

    async def put_statement(self, sealed: bytes) -> None:
        """Put any bytes in the statement's place, and tell everybody."""
        await self.trust.put("trust", sealed)
        await self.streams.connection.publish("ctl.notice", b'{"kind": "trust"}')

    async def publish(self, *ids: str, signer: Signer | None = None, pad: int = 0) -> list[int]:
        """Store an event of each id, signed now, with so many more bytes; returns the stream times."""
        return [await self._store(id_, signer or self.signer, pad) for id_ in ids]

    async def _store(self, id_: str, signer: Signer, pad: int) -> int:
        fields = {
            "specversion": "1.0",
            "id": id_,
            "source": "/crm",
            "type": TYPE,
            "tenant": TENANT,
            "view": VIEW,
            "policyrevision": 1,
            "data": {"country": "DE", **({"pad": "." * pad} if pad else {})},
        }
        body, msg_id = encode(fields), message_id(DEDUPE_KEY, "/crm", id_, SUBJECT)
        (header,) = seal([(SUBJECT, msg_id, body)], signer, signed_ms=now_ms(), salts=secrets.token_bytes(16))
        headers = {"Nats-Msg-Id": msg_id, "Mesh-Signature": header}
        reply = await self.streams.connection.request(SUBJECT, body, headers=headers)
        ack = msgspec.json.decode(reply.data, type=dict[str, Any])
        assert "error" not in ack, ack
        found = await manage.api(self.streams.connection, f"STREAM.MSG.GET.{STREAM}", {"seq": ack["seq"]})
        return int(datetime.fromisoformat(found["message"]["time"]).timestamp() * 1000)

    @asynccontextmanager
    async def reader(self, directory: Path | None = None) -> AsyncIterator[Reader]:
        """A process of the team: it begins with what is kept in *directory*, and watches until the block ends."""
        connection = await Connection.open(self.streams.server.url, name="team-support")
        try:
            keyring = open_keyring(self.directory / "trust", tenant=TENANT)
            reader = Reader(
                connection,
                BundleWatch(connection, POLICY_KEY, tenant=TENANT),
                TrustWatch(connection, keyring, directory=directory),
            )
            reader.trust.load()
            await reader.bundle.refresh()
            with suppress(Unavailable):
                await reader.trust.look()
            async with anyio.create_task_group() as group:
                group.start_soon(reader.bundle.run)
                group.start_soon(reader.trust.run)
                yield reader
                group.cancel_scope.cancel()
        finally:
            await connection.close()

    async def settled(self) -> bool:
        """Whether everything stored was delivered and acked."""
        info = await manage.consumer_info(self.streams.connection, STREAM, DURABLE)
        return bool(info["num_pending"] == 0 and info["num_ack_pending"] == 0)

    async def buried(self) -> list[tuple[str, int]]:
        """Reason and sequence of each dead letter."""
        found = []
        for sequence in range(1, await self.streams.stored("DLQ") + 1):
            answer = await manage.api(self.streams.connection, "STREAM.MSG.GET.DLQ", {"seq": sequence})
            letter = msgspec.json.decode(b64decode(answer["message"]["data"]), type=DeadLetterRecord)
            found.append((letter.reason, letter.sequence))
        return found


@dataclass
class Reader:
    """One process of the team support."""

    connection: Connection
    bundle: BundleWatch
    trust: TrustWatch

    @asynccontextmanager
    async def subscription(self, *, max_in_flight: int | None = None) -> AsyncIterator[Subscription]:
        """The subscription `contacts`."""
        reading = Subscription(
            self.connection,
            team="support",
            name="contacts",
            address=SubscriptionAddress(stream=STREAM, durable=DURABLE, view=VIEW),
            bundle=self.bundle,
            trust=self.trust,
            max_in_flight=max_in_flight,
        )
        async with reading:
            yield reading

    @property
    def epoch(self) -> int:
        """Of the statement in force; 0 where there is none."""
        held = self.trust.keyring.statement
        return 0 if held is None else held.epoch

    async def at(self, epoch: int) -> None:
        """Wait until the statement of *epoch* is in force."""
        await until(lambda: self.epoch == epoch)


async def take(reading: Subscription, count: int) -> list[Admitted]:
    """The next *count* events, each acked."""
    got = []
    with anyio.fail_after(DEADLINE_S):
        for _ in range(count):
            delivery = await reading.next()
            got.append(delivery.event)
            delivery.ack()
    return got
