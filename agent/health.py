"""Probes and metrics, on a port of their own without data; `/openapi.json` says so.

    /startupz   every door is open: an application that starts now can connect
    /livez      the process need not be restarted          /readyz    the door accepts
    /metrics    for Prometheus

Alive: the event loop turns and no part of the agent has died; so it stays while the agent drains. Ready: the door
accepts and has room, in memory and in the spool. That NATS is reachable is not asked, since it comes back by itself and
taking the application out of service would help nobody; that it has not barred us is, since then everything is refused
until somebody helps: the reason stands beside `nats-unreachable` in `because`. So it is with a bundle, and where there
is no spool with an event key; which ones are in use, what was refused since (`bundle_revision`, `bundle_refused`,
`identity`) and what waits on disk (`spool`) is said and changes nothing. A pseudonym domain
or a cipher without a key stops only the events masked with it, so it is named (`domains_lacking`, `ciphers_lacking`)
and the rest goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent import answers, requests
from agent.door import Door
from agent.openapi import document
from mesh import telemetry
from mesh.errors import MethodNotAllowed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp.web import BaseRequest, Response

    from agent.observed import Observed

JSON = "application/json"
OK = 200
NOT_OK = 503
OPENAPI = "/openapi.json"
STARTING = "starting"
PATHS = ("/startupz", "/livez", "/readyz", "/metrics", OPENAPI)


class Health(Door):
    """The kubelet's and Prometheus' door.

    Args:
        agent: Says whether it is alive and ready.
        beside: More facts, which change neither.
        opened: Whether every door is open.
    """

    name = "health"

    def __init__(
        self,
        agent: Observed,
        beside: Callable[[], Mapping[str, object]] = dict,
        opened: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(agent.settings)
        self._opened = opened
        self._agent = agent
        self._beside = beside

    async def route(self, request: BaseRequest) -> Response:
        """Answer one probe.

        Raises:
            MeshError: Its problem document is the answer.
        """
        path = request.rel_url.raw_path
        if path not in PATHS:
            raise requests.no_such_path(" or ".join(PATHS), next=f"see {OPENAPI}")
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed("probes are read", expected="GET", got="another method", allow="GET, HEAD")
        if path == OPENAPI:
            return answers.answer(OK, msgspec.json.encode(document(self._settings, "health")), JSON)
        if path == "/metrics":
            return answers.answer(OK, telemetry.render_prometheus(), telemetry.PROMETHEUS_CONTENT_TYPE)
        reasons = self._reasons(path)
        state = {"ok": not reasons, "because": reasons, **self._agent.state(), **self._beside()}
        return answers.answer(NOT_OK if reasons else OK, msgspec.json.encode(state), JSON)

    def _reasons(self, path: str) -> list[str]:
        """Why the answer of a probe is no."""
        match path:
            case "/startupz":
                return [] if self._opened() else [STARTING]
            case "/livez":
                return self._agent.not_alive()
        return self._agent.not_ready()
