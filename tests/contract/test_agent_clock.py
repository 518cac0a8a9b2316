"""The agent's clock against the server's: a wrong one is seen before anything is signed by it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.clock import MAX_OFFSET_MS, ServerClock
from agent.core import Agent
from agent.settings import load
from mesh.errors import ClockWrong
from mesh.reports import PolicyState, Reporter
from tests.contract.agent_mesh import Streams, event, now_ms, write_directory

pytestmark = pytest.mark.anyio

SLACK_MS = 5_000  # what a busy machine may take between two looks at the clock


class Skewed:
    """A clock that is off."""

    def __init__(self, skew_ms: int = 0) -> None:
        self.skew_ms = skew_ms

    def __call__(self) -> int:
        """Unix milliseconds."""
        return now_ms() + self.skew_ms


def reporter(streams: Streams) -> Reporter:
    """An agent's."""
    return Reporter(streams.connection, "crm-adapter", kind="agent", state=PolicyState)


@pytest.fixture(scope="module")
async def streams(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Streams]:
    """The tenant's streams and bundle."""
    async with Streams.running(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.mark.parametrize("skew_ms", [0, 90_000, -90_000, MAX_OFFSET_MS - SLACK_MS, -(MAX_OFFSET_MS - SLACK_MS)])
async def test_the_offset_is_measured_on_the_servers_clock(streams: Streams, skew_ms: int) -> None:
    """Ahead is positive, behind negative, within the time that the measurement took; over 20 s is wrong."""
    clock = ServerClock(streams.connection, reporter(streams), Skewed(skew_ms))
    unmeasured = clock.wrong
    await clock.measure()
    assert clock.offset_ms is not None
    assert abs(clock.offset_ms - skew_ms) < SLACK_MS
    assert (unmeasured, clock.wrong) == (False, abs(skew_ms) > MAX_OFFSET_MS)
    if clock.wrong:
        side = "ahead of" if skew_ms > 0 else "behind"
        assert side in clock.error().message


async def test_without_an_answer_the_last_measurement_stays(streams: Streams) -> None:
    """A report that nobody takes, or that another stream takes, says nothing about the clock."""
    ours = Skewed(90_000)
    clock = ServerClock(streams.connection, reporter(streams), ours)
    await clock.measure()
    ours.skew_ms = 0
    for nobodys in ("nobody.hears", "audit.crm-adapter"):
        clock._reporter.subject = nobodys
        await clock.measure()
        assert clock.wrong
    clock._reporter = reporter(streams)
    await clock.measure()
    assert not clock.wrong


async def test_an_agent_with_a_wrong_clock_takes_nothing(streams: Streams, tmp_path: Path) -> None:
    """Consumers would refuse what it signs, so it is not ready and says why, from the start and until it is right."""
    base = write_directory(tmp_path)
    environ = {"MESH_AGENT_NATS_URL": streams.server.url}
    agent = Agent(load((base / "agent.toml").read_text(), environ).settings, base)
    ours = Skewed(40_000)
    agent.clock_ms = ours
    try:
        await agent.start()
        await agent.wait_ready(20)
        assert agent.not_ready() == [ClockWrong.code]
        with pytest.raises(ClockWrong) as refused:
            await agent.publish(event())
        assert refused.value.status == 503
        ours.skew_ms = 0
        assert agent._policies is not None
        await agent._policies.clock.measure()
        assert agent.not_ready() == []
        assert (await agent.publish(event())).copies
    finally:
        await agent.close()
