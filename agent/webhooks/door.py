"""The door of the providers: `POST /v1/webhooks/<source>`, on a listener of its own that an ingress may reach.

The provider's signature stands for the token. It is checked over the raw body before anything parses it; the path says
which settings hold, and so which secrets and which Host names. Bodies have memory of their own, counted as it is used,
so that strangers who send slowly or much take none from the application's door. One delivery id is one event, however
often it comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent import listener, requests
from agent.door import Door
from agent.keys import MIN_SECRET_BYTES, Secrets
from agent.webhooks import PROVIDERS
from mesh.errors import UnsupportedMediaType
from mesh.event import decode, draft_from_fields

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp.web import BaseRequest, Response

    from agent.core import Agent
    from agent.settings import WebhookSource
    from agent.webhooks import Provider

PREFIX = "/v1/webhooks/"
JSON = "application/json"
ACCEPTED = 202


class Webhooks(Door):
    """The providers' door.

    Args:
        agent: Publishes.
        base: Where relative secret files lie.

    Raises:
        ConfigError: A secret cannot be read, or is too short.
    """

    name = "webhooks"

    def __init__(self, agent: Agent, base: Path) -> None:
        settings = agent.settings
        super().__init__(settings)
        self._agent = agent
        self._sources = {
            source.name: (source, PROVIDERS[source.provider], self._secrets(source, base))
            for source in settings.webhooks
        }

    def _secrets(self, source: WebhookSource, base: Path) -> Secrets:
        paths = [base / name for name in source.secret_files]
        return Secrets(paths, min_bytes=MIN_SECRET_BYTES, check_s=self._settings.file_check_s)

    async def route(self, request: BaseRequest) -> Response:
        """Answer one delivery.

        Raises:
            MeshError: Its problem document is the answer.
        """
        path = request.rel_url.raw_path
        known = self._sources.get(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else None
        source, provider, secrets = known or (None, None, None)
        requests.check_origin(request, source.hosts if source and source.hosts else self.own_names)
        requests.check_fields(request, self._settings)
        if source is None or provider is None or secrets is None:
            raise requests.no_such_path(f"{PREFIX}<source>, a source of the agent's settings")
        requests.check_method(request, "POST")
        requests.check_encoding(request)
        if requests.media_type(request.headers) not in provider.CONTENT_TYPES:
            raise UnsupportedMediaType(
                "webhooks are taken as JSON",
                expected=" or ".join(provider.CONTENT_TYPES),
                got="another content type",
                next="choose application/json in the provider's webhook settings",
            )
        self._agent.check_open()
        return await self._deliver(request, source, provider, secrets)

    async def _deliver(
        self, request: BaseRequest, source: WebhookSource, provider: Provider, secrets: Secrets
    ) -> Response:
        agent = self._agent
        limit = agent.limits.max_event_bytes
        async with agent.webhook_bytes.tab() as tab:  # as they arrive: what a stranger announces costs nothing
            timeout_s = self._settings.body_timeout_s
            body = await requests.read_body(request, limit, timeout_s=timeout_s, charge=tab.add)
            provider.verify(request.headers, body, secrets.values())
            fields = provider.translate(request.headers, decode(body), source.name)
            draft = draft_from_fields(fields, now_ms=agent.clock_ms(), limits=agent.limits)
            receipts = await agent.publish_drafts([draft])
        return listener.answer(ACCEPTED, msgspec.json.encode(receipts[0]), JSON)
