"""The demo's SaaS systems: events and webhooks over HTTP, in every mode a door takes."""

from __future__ import annotations

import hashlib
import hmac
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import aiohttp
import anyio
import msgspec

from mesh.client import Receipt
from mesh.demo.account import Input, Key
from mesh.errors import Unavailable
from mesh.event import BATCH_CONTENT_TYPE, CONTENT_TYPE, encode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from mesh.context import TenantAddress

AT_ONCE = 16  # requests in flight: a handful of adapters
PACE_S = 0.004  # between two sends: 250 a second, so that "half way" is a moment one can watch
TRIES = 20  # a 503 is answered by sending the same event again
TRY_AGAIN_S = 0.25
ACCEPTED = 202
CAN_RETRY = frozenset({408, 429, 503})


class Send(msgspec.Struct, frozen=True):
    """One request: which door, in which mode, and the events as the mesh should understand them."""

    agent: str
    mode: Literal["structured", "binary", "batch", "webhook"]
    events: list[dict[str, Any]]
    webhook: str = ""
    headers: dict[str, str] = {}


class _BatchReceipt(msgspec.Struct, frozen=True):
    accepted: int
    events: tuple[Receipt, ...]


class Sender:
    """Sends and keeps what was accepted."""

    def __init__(self, tenant: TenantAddress, webhook_secret: bytes) -> None:
        self._tenant = tenant
        self._secret = webhook_secret
        self._tokens = {name: Path(agent.token_file).read_text().strip() for name, agent in tenant.agents.items()}
        self._http: aiohttp.ClientSession | None = None
        self.accepted: list[Input] = []
        self._keys: set[Key] = set()
        self.duplicates = 0
        self.answered = 0

    async def __aenter__(self) -> Self:
        self._http = await aiohttp.ClientSession().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.__aexit__(kind, error, trace)

    async def send(self, sends: Sequence[Send]) -> None:
        """Send them all, paced, a few at once; returns when all were answered."""
        limiter = anyio.CapacityLimiter(AT_ONCE)

        async def one(send: Send) -> None:
            async with limiter:
                await self.send_one(send)

        async with anyio.create_task_group() as group:
            for send in sends:
                group.start_soon(one, send)
                await anyio.sleep(PACE_S)

    async def send_one(self, send: Send) -> Receipt:
        """Send one request until it is accepted; returns the receipt of its first event.

        Raises:
            Unavailable: It was refused, or never accepted.
        """
        url, body, headers = self._request(send)
        sent_ms = time.time_ns() // 1_000_000
        for _ in range(TRIES):
            status, answer = await self._post(url, body, headers)
            if status == ACCEPTED:
                return self._note(send, answer, sent_ms)
            if status not in CAN_RETRY:
                break
            await anyio.sleep(TRY_AGAIN_S)
        raise Unavailable(
            f"{send.agent} did not accept {send.events[0]['type']}: status {status}",
            expected="202",
            got=answer.decode(errors="replace")[:300],
            next="read the agent's log in the data directory",
        )

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        if self._http is None:
            raise Unavailable("the sender is not open", next="use it inside `async with`")
        try:
            async with self._http.post(url, data=body, headers=headers) as response:
                return response.status, await response.read()
        except aiohttp.ClientConnectionError as error:
            return 503, str(error).encode()

    def _note(self, send: Send, answer: bytes, sent_ms: int) -> Receipt:
        if send.mode == "batch":
            receipts = msgspec.json.decode(answer, type=_BatchReceipt).events
        else:
            receipts = (msgspec.json.decode(answer, type=Receipt),)
        for fields, receipt in zip(send.events, receipts, strict=True):
            self.answered += 1
            self.duplicates += receipt.duplicate
            sent = Input(agent=send.agent, fields=fields, sent_ms=sent_ms)
            if sent.key not in self._keys:  # a first answer can be a duplicate's: the one before it never came
                self._keys.add(sent.key)
                self.accepted.append(sent)
        return receipts[0]

    def _request(self, send: Send) -> tuple[str, bytes, dict[str, str]]:
        address = self._tenant.agents[send.agent]
        headers = {"Authorization": f"Bearer {self._tokens[send.agent]}"}
        if send.mode == "webhook":
            body = encode(send.events[0]["data"])
            digest = hmac.new(self._secret, body, hashlib.sha256).hexdigest()
            headers = {**send.headers, "Content-Type": "application/json", "X-Hub-Signature-256": f"sha256={digest}"}
            return f"{address.webhooks_url}/v1/webhooks/{send.webhook}", body, headers
        if send.mode == "batch":
            return (
                f"{address.url}/v1/events",
                msgspec.json.encode(send.events),
                {**headers, "Content-Type": BATCH_CONTENT_TYPE},
            )
        if send.mode == "binary":
            attributes = {f"ce-{name}": str(value) for name, value in send.events[0].items() if name != "data"}
            return (
                f"{address.url}/v1/events",
                encode(send.events[0]["data"]),
                {**headers, **attributes, "Content-Type": "application/json"},
            )
        return f"{address.url}/v1/events", encode(send.events[0]), {**headers, "Content-Type": CONTENT_TYPE}
