"""kill -9 of agents under load: nothing that got 202 is lost, nothing is stored twice or unsigned."""

from __future__ import annotations

import pytest

from tests.faults.run import failures, run
from tests.faults.schedule import schedule
from tests.faults.world import WITHOUT_READERS

KILLS = 10
SEED = 20261122

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]  # 20 s; a busy machine takes its time


async def test_every_accepted_event_is_stored_once_in_each_view() -> None:
    """Through many kills an event with a 202 is stored once in each view, where its receipt says, and verifies."""
    faults = schedule(SEED, "single", KILLS, pace_s=0.7, only=["agent_kill"])
    result = await run("single", faults, events=1000, per_s=300, size=WITHOUT_READERS)
    assert failures(result) == {}
    assert result["stored"] == 2 * result["accepted"]
    assert sum(count for name, count in result["answers"].items() if name.startswith("unanswered")) >= KILLS / 2
