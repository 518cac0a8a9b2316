"""An insider and what he sends: a plain nats-py client with real credentials, and events for him to change."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

from mesh.base64url import b64u
from mesh.event import encode
from mesh.identity import Signer
from mesh.signing import seal

CRM = "EV_local_crm"
CONTACT = "crm.contact.updated.v1"
SUBJECT = f"ev.local.service.s03.{CONTACT}"  # where support reads
NEXT = "$JS.API.CONSUMER.MSG.NEXT"
DEADLINE_S = 40.0


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


async def until(true: Callable[[], object], timeout_s: float = 60) -> None:
    """Wait until *true* is; an async function is awaited."""
    with anyio.fail_after(timeout_s):
        while True:
            value = true()
            if hasattr(value, "__await__"):
                value = await value
            if value:
                return
            await anyio.sleep(0.01)


# --- who attacks -----------------------------------------------------------------------------------------------------


class Insider:
    """A plain nats-py client.

    Attributes:
        errors: What the server said to it, such as permission violations, in lower case.
        nc: The client itself.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.errors: list[str] = []
        self.nc = Client()

    async def open(self, url: str, creds: Path, **options: Any) -> Insider:
        """Connect with a creds file; the server's refusal is raised."""

        async def said(error: Exception) -> None:
            self.errors.append(str(error).lower())

        await self.nc.connect(
            servers=[url],
            name=self.name,
            user_credentials=str(creds),
            inbox_prefix=f"_INBOX_{self.name}".encode(),
            allow_reconnect=False,
            error_cb=said,
            **{"connect_timeout": DEADLINE_S, **options},
        )
        return self

    async def ask(
        self, subject: str, body: bytes = b"", headers: dict[str, str] | None = None, timeout_s: float = DEADLINE_S
    ) -> Msg | None:
        """The first answer; None where nobody serves *subject* for this account."""
        try:
            return await self.nc.request(subject, body, timeout=timeout_s, headers=headers)
        except (NoRespondersError, NatsTimeout):
            return None

    async def reaches(self, subject: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bool:
        """Whether anybody answers *subject* with anything but an error."""
        answer = await self.ask(subject, body, headers)
        return answer is not None and not failed(answer)

    async def api(self, verb: str, body: object = None) -> dict[str, Any]:
        """A call of the JetStream API that has to succeed: for whoever is entitled to it."""
        payload = b"" if body is None else msgspec.json.encode(body)
        answer = await self.nc.request(f"$JS.API.{verb}", payload, timeout=DEADLINE_S)
        found: dict[str, Any] = msgspec.json.decode(answer.data)
        assert "error" not in found, found
        return found

    async def collect(self, subject: str, body: bytes, count: int = 1, *, wait_s: float = 5.0) -> list[Msg]:
        """Up to *count* messages that *subject* answers with; a delivery keeps its subject, so a request misses it."""
        inbox = self.nc.new_inbox()
        subscription = await self.nc.subscribe(inbox)
        await self.nc.publish(subject, body, reply=inbox)
        got: list[Msg] = []
        try:
            while len(got) < count:
                message = await subscription.next_msg(timeout=wait_s)
                if not message.reply.startswith("$JS.ACK."):  # a status ends it
                    break
                got.append(message)
        except NatsTimeout:
            pass
        await subscription.unsubscribe()
        return got

    async def pull(self, durable: str, count: int = 1, *, stream: str = CRM) -> list[Msg]:
        """Up to *count* messages of a durable that are there now, as any client pulls them."""
        return await self.collect(f"{NEXT}.{stream}.{durable}", b'{"batch":%d,"no_wait":true}' % count, count)

    async def get(self, durable: str, *, stream: str = CRM) -> list[Msg]:
        """The next message of a durable that has one, or will have: what was stored is counted a moment later."""
        ask = b'{"batch":1,"expires":%d}' % int(DEADLINE_S * 1e9)
        return await self.collect(f"{NEXT}.{stream}.{durable}", ask, wait_s=DEADLINE_S)

    async def raw(self, frame: bytes) -> None:
        """Write a frame that no library would, and wait until the server has it."""
        await self.nc._send_command(frame)
        await self.nc.flush()


def failed(answer: Msg) -> bool:
    """Whether an answer is an error: of the JetStream API, of Direct Get, or of a door."""
    status = (answer.headers or {}).get("Status", "")
    return status.startswith("4") or b'"error"' in answer.data


# --- what he sends ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wire:
    """An event as it lies in a stream, for an attacker to change."""

    subject: str
    headers: dict[str, str]
    body: bytes

    def with_(self, **changes: Any) -> Wire:
        """The same with other parts; a header that is None is left out."""
        headers = {**self.headers, **changes.pop("headers", {})}
        return replace(self, headers={k: v for k, v in headers.items() if v is not None}, **changes)

    @property
    def id(self) -> str:
        """The event's id."""
        return str(msgspec.json.decode(self.body)["id"])

    def fields(self, **changes: Any) -> bytes:
        """The body with other fields."""
        return encode({**msgspec.json.decode(self.body), **changes})


def contact(**changes: Any) -> dict[str, Any]:
    """The fields of a copy of a contact in support's view, as crm-adapter makes it."""
    return {
        "specversion": "1.0",
        "id": secrets.token_hex(8),
        "source": "/crm",
        "type": CONTACT,
        "tenant": "acme",
        "view": "service",
        "policyrevision": 1,
        "data": {"country": "DE", "notes": "hello"},
    } | changes


def sealed(
    signer: Signer,
    fields: dict[str, Any] | None = None,
    *,
    subject: str = SUBJECT,
    signed_ms: int | None = None,
    body: bytes | None = None,
) -> Wire:
    """A copy signed with an insider's own key, as an honest agent would."""
    body = encode(fields or contact()) if body is None else body
    msg_id = b64u(secrets.token_bytes(16))
    at_ms = now_ms() if signed_ms is None else signed_ms
    (signature,) = seal([(subject, msg_id, body)], signer, signed_ms=at_ms, salts=secrets.token_bytes(16))
    headers = {
        "Content-Type": "application/cloudevents+json",
        "Nats-Msg-Id": msg_id,
        "Mesh-Signature": signature,
    }
    return Wire(subject, headers, body)


def batch(signer: Signer, size: int, *, data: list[dict[str, Any]] | None = None) -> list[Wire]:
    """Copies under one signature."""
    bodies = [encode(contact(data=data[i] if data else {"country": "DE"})) for i in range(size)]
    items = [(SUBJECT, b64u(secrets.token_bytes(16)), body) for body in bodies]
    signatures = seal(items, signer, signed_ms=now_ms(), salts=secrets.token_bytes(16 * len(items)))
    return [
        Wire(subject, {"Nats-Msg-Id": msg_id, "Mesh-Signature": signature}, body)
        for (subject, msg_id, body), signature in zip(items, signatures, strict=True)
    ]


def frame(subject: str, lines: list[str], body: bytes) -> bytes:
    """A HPUB frame with any header lines, such as two of a name."""
    block = "\r\n".join(["NATS/1.0", *lines, "", ""]).encode()
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (subject.encode(), len(block), len(block) + len(body), block, body)
