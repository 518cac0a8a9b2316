"""The door of the providers: `POST /v1/webhooks/<source>`, on a listener of its own that an ingress may reach.

The provider's signature stands for the token. It is checked over the raw body before anything parses it; the path says
which settings hold, and so which secrets and which Host names. Bodies have memory of their own, counted as it is used,
so that strangers who send slowly or much take none from the application's door. One delivery id is one event, however
often it comes, and the events of one delivery are published together or not at all.

202 and the receipt is the answer, or what the provider expects instead. Everything else makes a provider try again: a
4xx will be the same then, a 503 need not be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent import answers, requests
from agent.door import Door
from agent.keys import MIN_SECRET_BYTES, Secrets
from agent.receipts import BatchReceipt
from agent.traced import publish
from agent.webhooks import PROVIDERS
from agent.webhooks.provider import JSON, Incoming
from mesh import spans
from mesh.errors import MeshError, TooLarge, UnsupportedMediaType
from mesh.event import Draft, draft_from_fields

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from aiohttp.web import BaseRequest, Response

    from agent.core import Agent
    from agent.settings import AgentSettings
    from agent.webhooks.provider import Answer, Provider
    from agent.webhooks.settings import WebhookSource

PREFIX = "/v1/webhooks/"
ACCEPTED = 202


class _Source:
    """One entry of the settings: who may sign, and how."""

    def __init__(self, settings: AgentSettings, source: WebhookSource, base: Path) -> None:
        self.hosts = source.hosts
        self.provider: Provider = PROVIDERS[source.provider](source)
        self.secrets = Secrets(
            [base / name for name in source.secret_files],
            min_bytes=MIN_SECRET_BYTES,
            check_s=settings.file_check_s,
            check=self.provider.check_secret,
        )
        self._url = source.url.partition("?")[0]

    def incoming(self, request: BaseRequest, body: bytes) -> Incoming:
        """What the provider is shown: the URL it was given, with the query that it sent."""
        _, mark, query = request.raw_path.partition("?")
        return Incoming(request.headers, body, f"{self._url}{mark}{query}" if self._url else "", request.method)


class Webhooks(Door):
    """The providers' door.

    Args:
        agent: Publishes.
        base: Where relative secret files lie.

    Raises:
        ConfigError: A secret cannot be read, is too short, or not of its provider's form.
    """

    name = "webhooks"

    def __init__(self, agent: Agent, base: Path) -> None:
        super().__init__(agent.settings)
        self._agent = agent
        self._sources = {source.name: _Source(agent.settings, source, base) for source in agent.settings.webhooks}

    async def route(self, request: BaseRequest) -> Response:
        """Answer one delivery.

        Raises:
            MeshError: Its problem document is the answer.
        """
        path = request.rel_url.raw_path
        source = self._sources.get(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else None
        requests.check_origin(request, source.hosts if source and source.hosts else self.own_names)
        requests.check_fields(request, self._settings)
        if source is None:
            raise requests.no_such_path(f"{PREFIX}<source>, a source of the agent's settings")
        requests.check_method(request, "POST")
        requests.check_encoding(request)
        _check_media(request, source.provider)
        self._agent.check_open()
        return await self._deliver(request, source)

    async def _deliver(self, request: BaseRequest, source: _Source) -> Response:
        agent, provider = self._agent, source.provider
        limit = agent.limits.max_event_bytes
        async with agent.webhook_bytes.tab() as tab:  # as they arrive: what a stranger announces costs nothing
            timeout_s = self._settings.body_timeout_s
            body = await requests.read_body(request, limit, timeout_s=timeout_s, charge=tab.add)
            incoming = source.incoming(request, body)
            provider.verify(incoming, source.secrets.values(), now_s=agent.clock_ms() / 1000)
            payload = provider.payload(incoming)
            handshake = provider.answer(incoming, payload)
            if handshake is not None:
                return _answered(handshake)
            drafts = self._drafts(provider.translate(incoming, payload))
            if spans.tracer is None or not drafts:
                receipts = await agent.publish_drafts(drafts) if drafts else []
            else:  # a provider's own trace is no business of ours: it is left out, as ever
                receipts = await publish(agent, drafts, {}, spans.tracer)
        if provider.ACCEPTED is not None:
            return _answered(provider.ACCEPTED)
        receipt = receipts[0] if len(receipts) == 1 else BatchReceipt(len(receipts), receipts)
        return answers.answer(ACCEPTED, msgspec.json.encode(receipt), JSON)

    def _drafts(self, events: list[dict[str, Any]]) -> list[Draft]:
        """The events of a delivery, all of them accepted; `index` says which one was not."""
        agent = self._agent
        limit = agent.limits.max_batch_events
        if len(events) > limit:
            raise TooLarge(
                f"the delivery has {len(events)} events, limit {limit}",
                expected=f"at most {limit} events",
                got=f"{len(events)} events",
                next="have the provider send smaller batches",
                limit=limit,
                size=len(events),
            )
        drafts = []
        for index, fields in enumerate(events):
            try:
                drafts.append(draft_from_fields(fields, now_ms=agent.clock_ms(), limits=agent.limits))
            except MeshError as error:
                if len(events) > 1:
                    error.details.setdefault("index", index)
                raise
        return drafts


def _check_media(request: BaseRequest, provider: Provider) -> None:
    if requests.media_type(request.headers) not in provider.CONTENT_TYPES:
        raise UnsupportedMediaType(
            f"this source takes {' or '.join(provider.CONTENT_TYPES)}",
            expected=" or ".join(provider.CONTENT_TYPES),
            got="another content type",
            next=f"choose {provider.CONTENT_TYPES[0]} in the provider's webhook settings",
        )


def _answered(answer: Answer) -> Response:
    return answers.answer(answer.status, answer.body, answer.content_type, {"X-Content-Type-Options": "nosniff"})
