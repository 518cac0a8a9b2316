"""For the tests of dead letters: what the control plane runs for them, over a tenant whose events the test seals."""

from __future__ import annotations

import itertools
import secrets
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec

from mesh import deadletters
from mesh.anchors import open_keyring
from mesh.control import stored_messages
from mesh.control.advisories import Advisories
from mesh.control.deadletters_judge import Judge
from mesh.control.deadletters_service import DeadLetters
from mesh.control.redrive import Redrives
from mesh.deadletters import DeadLetterRecord
from mesh.event import encode
from mesh.jetstream import manage
from mesh.jetstream.connection import Connection
from mesh.policy.grants import Grants
from mesh.signing import message_id, seal
from mesh.trust_watch import TrustWatch
from mesh.watch import BundleWatch
from tests.contract.agent_mesh import POLICY_KEY, now_ms, until
from tests.contract.consumer_mesh import DEDUPE_KEY, DURABLE, STREAM, SUBJECT, TENANT, TYPE, VIEW, Source

LETTER_SUBJECT = "dlq.support.contacts"


@dataclass
class Office:
    """What handles dead letters in a control plane, of one process of it."""

    connection: Connection
    bundle: BundleWatch
    judge: Judge
    redrives: Redrives
    advisories: Advisories
    service: DeadLetters
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @classmethod
    def of(cls, source: Source) -> Office:
        """A process that begins; nothing of it runs."""
        connection = source.streams.connection
        bundle = BundleWatch(connection, POLICY_KEY, tenant=TENANT)
        judge = Judge(bundle, TrustWatch(connection, open_keyring(source.directory / "trust", tenant=TENANT)))

        def grants() -> Grants:
            assert bundle.plans is not None
            return bundle.plans.grants(now_ms=now_ms())

        told: list[tuple[str, dict[str, Any]]] = []
        redrives = Redrives(connection, TENANT, grants, judge)
        service = DeadLetters(connection, TENANT, redrives, judge, lambda kind, **facts: told.append((kind, facts)))
        return cls(connection, bundle, judge, redrives, Advisories(connection, judge), service, told)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """It runs for the length of the block."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.redrives.run)
            group.start_soon(self.advisories.run)
            yield
            group.cancel_scope.cancel()

    async def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        """What the door would answer."""
        return await self.service.handlers()[verb](request)


async def stored_letters(source: Source) -> dict[int, DeadLetterRecord]:
    """Every letter, by number."""
    found = stored_messages.stored(source.streams.connection, deadletters.STREAM)
    return {message.sequence: deadletters.read(message.body) async for message in found}


async def messages(source: Source, stream: str) -> int:
    """How many messages a stream holds."""
    return await source.streams.stored(stream)


async def forgetful(source: Source) -> None:
    """Have `DLQ` forget message ids at once, as it does after three minutes: what came before is new to it.

    A server that gets a shorter window may never begin to forget (nats-server 2.15.1, one time in 500): it does at the
    next change, so each look is one.
    """
    connection = source.streams.connection
    config = (await manage.stream_info(connection, "DLQ"))["config"]
    windows = itertools.count(100_000_000)
    taken: list[int] = []

    async def took_twice() -> bool:
        await manage.api(connection, "STREAM.UPDATE.DLQ", {**config, "duplicate_window": next(windows)})
        reply = await connection.request("dlq.nobody.probe", b"{}", headers={"Nats-Msg-Id": "probe"})
        answer = msgspec.json.decode(reply.data)
        if not answer.get("duplicate"):
            taken.append(answer["seq"])
        return len(taken) > 1

    await until(took_twice)
    for number in taken:
        await stored_messages.delete(connection, deadletters.STREAM, number)


async def publish_with(source: Source, id_: str, **more: Any) -> None:
    """Store an event with *more* attributes, signed now."""
    fields = {
        "specversion": "1.0", "id": id_, "source": "/crm", "type": TYPE, "tenant": TENANT, "view": VIEW,
        "policyrevision": 1, "data": {"country": "DE"}, **more,
    }  # fmt: skip
    body, msg_id = encode(fields), message_id(DEDUPE_KEY, "/crm", id_, SUBJECT)
    (header,) = seal([(SUBJECT, msg_id, body)], source.signer, signed_ms=now_ms(), salts=secrets.token_bytes(16))
    headers = {"Nats-Msg-Id": msg_id, "Mesh-Signature": header}
    await source.streams.connection.request(SUBJECT, body, headers=headers)


async def plain_durable(source: Source, *, attempts: int, ack_wait_s: float) -> None:
    """Have the server count deliveries, as it does for a plain client."""
    info = await manage.consumer_info(source.streams.connection, STREAM, DURABLE)
    config = {**info["config"], "max_deliver": attempts, "ack_wait": int(ack_wait_s * 1e9)}
    body = {"stream_name": STREAM, "config": config, "action": "update"}
    await manage.api(source.streams.connection, f"CONSUMER.CREATE.{STREAM}.{DURABLE}", body)


async def pulled(source: Source, *, stream: str = STREAM, durable: str = DURABLE, within_s: float = 60) -> str | None:
    """Pull one message as a plain client does; its ack subject, or None where none comes."""
    got: list[str] = []
    connection = source.streams.connection
    inbox = connection.new_inbox()
    listener = connection.listen(inbox, lambda _subject, reply, *_: got.append(reply))
    ask = msgspec.json.encode({"batch": 1, "expires": int(within_s * 1e9)})
    await connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}", ask, reply=inbox)
    await until(lambda: got)
    listener.close()
    return got[0] or None


async def given_up(source: Source) -> None:
    """Pull until the server has said that an event is delivered no more."""
    before = await said(source)

    async def told() -> bool:
        await pulled(source, within_s=0.3)
        return await said(source) > before

    await until(told)


async def said(source: Source) -> int:
    """How many advisories there were."""
    return int((await manage.stream_info(source.streams.connection, "ADVISORY"))["state"]["last_seq"])


async def advisory(source: Source, number: int) -> tuple[str, bytes]:
    """Subject and body of one."""
    found = (await manage.api(source.streams.connection, "STREAM.MSG.GET.ADVISORY", {"seq": number}))["message"]
    return found["subject"], b64decode(found["data"])
