"""The spool at the start of an agent: opened, and every row of it checked, before anything is sent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from agent.spool.database import Database

if TYPE_CHECKING:
    from pathlib import Path

    from agent.settings import AgentSettings
    from agent.spool.record import Contents


class Opened(NamedTuple):
    """A spool file, and what it holds."""

    database: Database
    contents: Contents


async def open_spool(settings: AgentSettings, base: Path) -> Opened | None:
    """Open the agent's spool and check every row of it; None where it has none.

    Raises:
        ConfigError: It cannot be opened.
        SpoolDamaged: It is not what was written.
    """
    if not settings.spool_file:
        return None

    def opened() -> Opened:
        file, key_file = base / settings.spool_file, base / settings.spool_key_file
        database = Database(file, key_file, max_bytes=settings.spool_max_bytes)
        try:
            return Opened(database, database.contents())
        except BaseException:
            database.close()
            raise

    return await asyncio.to_thread(opened)
