"""The running process: uvloop, logs, and an exit status."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import uvloop

from agent.lifecycle import EXIT_FAILED, Sidecar
from mesh import logs
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from agent.settings import AgentSettings


def main(settings: AgentSettings, base: Path) -> int:
    """Run the sidecar to its end; returns the exit status.

    Raises:
        ConfigError: A file of ours or an address is wrong; nothing was started.
    """
    logs.setup("agent", level=settings.log_level)
    log = logs.get("agent")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(settings, base))
    except ConfigError as error:
        log.error("not_started", code=error.code, error=error.message, next=error.next)
        raise
    except Exception as error:
        log.exception("failed", error)  # noqa: PLE1205, TRY401 - ours takes the error, not its text
        return EXIT_FAILED


async def _run(settings: AgentSettings, base: Path) -> int:
    return await Sidecar(settings, base).run()
