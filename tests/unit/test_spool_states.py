"""The spool as a whole: when it is full, what it says of copies that may not be sent, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from agent.spool import aside
from agent.spool.database import Database, Row
from agent.spool.egress import Egress
from agent.spool.opened import Opened
from agent.spool.record import Copy
from agent.spool.spool import Spool
from agent.spool.tools import SealingKeys
from mesh.errors import SpoolDamaged

pytestmark = pytest.mark.anyio

LIMIT = 300_000


def expired(number: int) -> Row:
    """A copy whose event's time is over."""
    body = {"id": f"e-{number}", "policyrevision": 1, "expirytime": "2020-01-01T00:00:00Z", "data": "x" * 800}
    return Row(number, "EV", 1, Copy("ev.l.v.s00.a.b.v1", "/a", f"e-{number}", None, msgspec.json.encode(body)))


@asynccontextmanager
async def spool_of(directory: Path, *rows: Row, trail: Any = None) -> AsyncIterator[Spool]:
    """The spool of an agent, which found these rows at its start."""
    database = Database(directory / "spool.db", directory / "spool.key", max_bytes=LIMIT)
    database.begin()
    database.append(rows)
    database.commit()
    plans = SimpleNamespace(bundle=SimpleNamespace(revision=1))

    async def today() -> Any:
        return plans

    publisher = SimpleNamespace(
        blocked="", room=4096, max_body=1 << 20, hand_over_to=lambda *_, **__: None, submit=lambda _: None
    )
    spool = Spool(
        Opened(database, database.contents()),
        cast("Any", publisher),
        cast("Any", SimpleNamespace(today=today)),
        Egress("spiffe://mesh.local/a", lambda _: pytest.fail("not asked")),
        SealingKeys(lambda: "k", lambda *_: False),
        limit_bytes=LIMIT,
        after_s=2,
        audit=trail,
    )
    try:
        yield spool
    finally:
        await spool.end()


async def test_expired_copies_take_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool full of them is empty once its stream is there: each is audited, and the log says it in a line or two."""
    lines: list[dict[str, Any]] = []
    records: list[tuple[str, str]] = []
    monkeypatch.setattr(aside, "log", SimpleNamespace(warning=lambda event, **facts: lines.append(facts)))
    trail = SimpleNamespace(write=lambda _kind, **facts: records.append((facts["event"], facts["reason"])))
    async with spool_of(tmp_path, *map(expired, range(1, 301)), trail=trail) as spool:
        assert spool.full
        running = asyncio.create_task(spool.run())
        async with asyncio.timeout(60):
            while spool.copies:
                await asyncio.sleep(0.01)
        assert (spool.bytes, spool.refused_copies, spool.full) == (0, 0, False)
        assert records == [(f"e-{n}", "event-expired") for n in range(1, 301)]
        spool._aside.close()
        assert sum(facts["copies"] for facts in lines) == 300
        assert len(lines) <= 2
        running.cancel()


async def test_a_spool_that_cannot_be_worked_with_ends_the_agent(tmp_path: Path) -> None:
    """Whatever it was: the task ends with an error, so that the agent is not alive and somebody restarts it."""

    def failing(_: Database) -> None:
        raise MemoryError

    async with spool_of(tmp_path) as spool:
        running = asyncio.create_task(spool.run())
        spool.store._call(failing, lambda _: None)
        with pytest.raises(SpoolDamaged):
            await asyncio.wait_for(running, 20)
