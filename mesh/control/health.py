"""Probes and metrics of a replica, on a port of their own without data: `/livez`, `/readyz`, `/metrics`.

Alive: the event loop turns. Ready: the replica has found the servers and the mesh's state, and waits or leads; so a
rollout stops at the first replica that cannot. That the servers go away later changes nothing: they come back by
themselves, and who waits for the lead serves nobody in the meantime anyway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from mesh import logs, telemetry
from mesh.errors import ConfigError

STARTS = "starts"
OK, NOT_YET, NO_SUCH = 200, 503, 404
JSON = "application/json"

log = logs.get("control")


class Health:
    """What probes are told.

    Attributes:
        state: `starts`, then `waits` or `leads`.
    """

    def __init__(self) -> None:
        self.state = STARTS

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Answer one probe."""
        match request.path:
            case "/livez":
                return self._said(OK)
            case "/readyz":
                return self._said(NOT_YET if self.state == STARTS else OK)
            case "/metrics":
                headers = {"Content-Type": telemetry.PROMETHEUS_CONTENT_TYPE}
                return web.Response(body=telemetry.render_prometheus(), headers=headers)
        return web.Response(status=NO_SUCH, text="/livez, /readyz or /metrics\n")

    def _said(self, status: int) -> web.Response:
        body = msgspec.json.encode({"ok": status == OK, "state": self.state})
        return web.Response(status=status, body=body, content_type=JSON)


@asynccontextmanager
async def serving(health: Health, host: str, port: int) -> AsyncIterator[int]:
    """Answer probes within the block; yields the port, which was free where *port* is 0.

    Raises:
        ConfigError: The address is not ours, or taken.
    """
    runner = web.ServerRunner(web.Server(health.answer, access_log=None))
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"probes cannot be answered: {error.strerror or type(error).__name__}",
                expected="a free address of this machine",
                got=f"{host}:{port}",
                next="see --health-host and --health-port",
            ) from error
        bound: int = runner.addresses[0][1]
        log.info("health", host=host, port=bound)
        yield bound
    finally:
        await runner.cleanup()
