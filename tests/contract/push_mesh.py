"""For the tests of push: an application on loopback that answers as it is told, and an agent's push side beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from agent.consuming import Consuming
from agent.push.targets import Targets
from agent.settings import load
from tests.contract.consumer_mesh import Source

TOML = """name = "desk"
tenant = "acme"
team = "support"
team_creds_file = "team.creds"
nats_url = "{nats_url}"
trust_dir = "{trust}"
{more}
[push.contacts]
url = "{url}"
{options}
"""


@dataclass
class Posted:
    """One request, as the application saw it."""

    headers: Mapping[str, str]
    body: bytes
    request: web.BaseRequest

    @property
    def event(self) -> dict[str, Any]:
        """The event of a structured request."""
        fields: dict[str, Any] = msgspec.json.decode(self.body)
        return fields

    @property
    def id(self) -> str:
        """Its event's, in structured and in binary mode."""
        return self.headers.get("ce-id") or self.event["id"]


Answer = Callable[[Posted], Awaitable[web.StreamResponse] | web.StreamResponse]


def status(code: int, **headers: str) -> web.Response:
    """An answer without a body; `retry_after="1"` is `Retry-After: 1`."""
    return web.Response(status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class App:
    """The application: what it was sent, and what it answers."""

    answer: Answer = field(default=lambda _: status(204))
    posted: list[Posted] = field(default_factory=list)
    _transports: set[object] = field(default_factory=set)
    url: str = ""
    port: int = 0

    @classmethod
    @asynccontextmanager
    async def running(cls, answer: Answer | None = None, *, port: int = 0, path: str = "") -> AsyncIterator[App]:
        """On a free port of loopback, or on a Unix socket; its answer is read as it comes."""
        app = cls() if answer is None else cls(answer)
        server = web.Server(app._handle, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        site = web.UnixSite(runner, path) if path else web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        if not path:
            app.port = runner.addresses[0][1]
        app.url = "http://localhost/events" if path else f"http://127.0.0.1:{app.port}/events"
        try:
            yield app
        finally:
            await runner.cleanup()

    @property
    def ids(self) -> list[str]:
        """Of the events, in the order of the requests."""
        return [posted.id for posted in self.posted]

    @property
    def connections(self) -> int:
        """That at least one request came over."""
        return len(self._transports)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._transports.add(request.protocol)
        posted = Posted(request.headers.copy(), await request.read(), request)
        self.posted.append(posted)
        answer = self.answer(posted)
        if isinstance(answer, web.StreamResponse):
            return answer
        return await answer


@dataclass
class Side:
    """The push side of one agent."""

    consuming: Consuming
    targets: Targets

    @property
    def state(self) -> dict[str, Any]:
        """Of the target."""
        found: dict[str, Any] = self.targets.state()["contacts"]
        return found


@asynccontextmanager
async def pushing(source: Source, base: Path, url: str, options: str = "", more: str = "") -> AsyncIterator[Side]:
    """An agent of the team support that pushes `contacts` to *url*; drained at the end."""
    base.mkdir(exist_ok=True, parents=True)
    trust = source.directory / "trust"
    toml = TOML.format(nats_url=source.streams.server.url, trust=trust, url=url, options=options, more=more)
    settings = load(toml).settings
    consuming = Consuming(settings, base)
    consuming._creds = None  # type: ignore[assignment]  # the server has no accounts
    targets = Targets(settings, base, consuming)
    await targets.start()
    try:
        yield Side(consuming, targets)
        await targets.drain(10.0)
    finally:
        await targets.close()
        await consuming.close(5.0)
    assert not targets.failed.is_set()
    assert not consuming.failed.is_set()
