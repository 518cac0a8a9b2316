"""What a test may break: an agent, the server. Everybody else has to get over it, as in production."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from mesh.testing import looking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesh.testing.host import MeshHost

DEADLINE_S = 30.0  # an event takes milliseconds, and a busy machine many seconds; only a test that fails waits so long
POLL_S = 0.01


class Faults:
    """The part of `LocalMesh` that starts, ends and brings back.

    Args:
        host: The mesh; it runs.
    """

    def __init__(self, host: MeshHost) -> None:
        self.host = host

    async def start_agent(self, name: str) -> None:
        """Have an agent run, so that an application finds it in `mesh.json`.

        Raises:
            NotFound, ConfigError: There is no such agent, or it does not start.
        """
        await self.host.on_its_loop(self.host.want, name)

    async def kill_agent(self, name: str) -> None:
        """End an agent's process as a crash would; returns once another one is ready, on the same ports."""
        await self.host.on_its_loop(looking.kill_agent, self.host.tenant, name, DEADLINE_S)

    @asynccontextmanager
    async def server_away(self, *, killed: bool = False) -> AsyncIterator[None]:
        """No NATS for the length of the block; *killed*: it ends as by a crash. Everybody reconnects by himself."""
        away = self.host.portal.wrap_async_context_manager(self.host.running.server_away(killed=killed))
        await anyio.to_thread.run_sync(away.__enter__)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(away.__exit__, None, None, None)
                await self.host.on_its_loop(looking.back, self.host.tenant, DEADLINE_S)
