"""The probes of a replica of the control plane."""

from __future__ import annotations

import socket

import aiohttp
import pytest

from mesh.control.health import Health, serving
from mesh.errors import ConfigError

pytestmark = pytest.mark.anyio


async def test_a_replica_is_ready_once_it_waits_or_leads() -> None:
    """Before, it is alive alone; metrics are there, and nothing else."""
    health = Health()
    async with serving(health, "127.0.0.1", 0) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as ask:

        async def status(path: str) -> int:
            async with ask.get(path) as answer:
                return answer.status

        assert [await status(path) for path in ("/livez", "/readyz", "/metrics", "/x")] == [200, 503, 200, 404]
        for state in ("waits", "leads"):
            health.state = state
            async with ask.get("/readyz") as answer:
                assert (answer.status, await answer.json()) == (200, {"ok": True, "state": state})


async def test_an_address_that_is_taken_is_said() -> None:
    """Before anything of the replica starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="probes cannot be answered"):
        await _serve(taken.getsockname()[1])


async def _serve(port: int) -> None:
    async with serving(Health(), "127.0.0.1", port):
        pass
