"""What every door refuses for its size, its age or its rate, against a real server: nothing of it is stored."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.core import Agent
from agent.lifecycle import Sidecar
from mesh.errors import Denied, EventExpired, Overloaded, RateLimited, TooLarge
from tests.contract.agent_mesh import Answer, Http, Streams, event, sidecar, until, write_directory

pytestmark = pytest.mark.anyio

KIB = 1024
EVENT_BYTES = 256 * KIB
BATCH_BYTES = 4096 * KIB
BATCH = {"Content-Type": "application/cloudevents-batch+json"}
PAST, FUTURE = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
LARGE = "x" * (EVENT_BYTES + 1)


@pytest.fixture(scope="module")
async def streams(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Streams]:
    """The tenant's streams and bundle."""
    async with Streams.running(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture(scope="module")
async def doors(streams: Streams, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sidecar]:
    """One sidecar."""
    base = write_directory(tmp_path_factory.mktemp("agent"))
    async with sidecar(base, streams.server.url) as running:
        await until(lambda: not running.agent.not_ready())
        yield running


class Doors:
    """The ways in over HTTP, by name."""

    def __init__(self, running: Sidecar) -> None:
        self._intake = Http(running.intake.url, (running.agent.base / "token").read_text().strip())
        self._webhooks = Http(running.webhooks.url, "")
        self._secret = (running.agent.base / "hook.secret").read_text().strip().encode()

    async def structured(self, **changes: Any) -> Answer:
        """One event as JSON."""
        return await self._intake.post(event(**changes))

    async def binary(self, *, data: Any = None, **changes: Any) -> Answer:
        """One event with its attributes in header fields."""
        headers = {f"ce-{name}": str(value) for name, value in event(data=None, **changes).items()}
        return await self._intake.post({"d": data}, headers={"Content-Type": "application/json", **headers})

    async def batch(self, *, among: int = 2, **changes: Any) -> Answer:
        """An event behind others."""
        events = [event() for _ in range(among)] + [event(**changes)]
        return await self._intake.post(events, headers=BATCH)

    async def webhook(self, *, data: Any = None, **_: Any) -> Answer:
        """A provider's delivery."""
        body = msgspec.json.encode({"action": "opened", "repository": {"full_name": "o/r"}, "more": data})
        headers = {
            "Content-Type": "application/json",
            "X-GitHub-Event": "issues",
            "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
            "X-Hub-Signature-256": "sha256=" + hmac.new(self._secret, body, sha256).hexdigest(),
        }
        return await self._webhooks.send("POST", "/v1/webhooks/main", headers, body)


@pytest.fixture(scope="module")
def ways(doors: Sidecar) -> Doors:
    """All doors of the sidecar."""
    return Doors(doors)


async def everything(streams: Streams) -> int:
    """Messages in all event streams."""
    return await streams.stored("EV_local_crm") + await streams.stored("EV_local_github")


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["structured", "binary", "batch", "webhook"])
async def test_an_event_above_the_limit_gets_413(ways: Doors, streams: Streams, way: str) -> None:
    """At every door, with the limit, the size and what to do; nothing is stored, of a batch neither."""
    before = await everything(streams)
    answer = await getattr(ways, way)(data=LARGE)
    assert (answer.status, answer.json["code"], answer.json["limit"]) == (413, "too-large", EVENT_BYTES)
    assert answer.json["size"] > EVENT_BYTES
    assert "reference" in answer.json["next"]
    assert await everything(streams) == before


async def test_a_batch_above_the_limit_gets_413(ways: Doors, streams: Streams) -> None:
    """Its limit is one of its own."""
    before = await everything(streams)
    answer = await ways.batch(among=0, data=["x" * (BATCH_BYTES + 1)])
    assert (answer.status, answer.json["code"], answer.json["limit"]) == (413, "too-large", BATCH_BYTES)
    assert await everything(streams) == before


async def test_an_embedded_agent_takes_no_larger_event(doors: Sidecar, streams: Streams) -> None:
    """Without HTTP the limits are the same; of several, `index` says which is too large."""
    before = await everything(streams)
    with pytest.raises(TooLarge) as caught:
        await doors.agent.publish(event(data=LARGE))
    assert caught.value.details["limit"] == EVENT_BYTES
    assert caught.value.details["size"] > EVENT_BYTES
    with pytest.raises(TooLarge) as caught:
        await doors.agent.publish_many([event(), event(data=LARGE)])
    assert caught.value.details["index"] == 1
    assert await everything(streams) == before


@pytest.mark.parametrize("way", ["structured", "binary", "batch", "webhook"])
async def test_an_event_below_the_limit_gets_202(ways: Doors, way: str) -> None:
    """What has nearly the limit's size goes through every door."""
    assert (await getattr(ways, way)(data={"d": "x" * (EVENT_BYTES - 2 * KIB)})).status == 202


# --- age -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["structured", "binary", "batch"])
async def test_an_event_that_expired_gets_422(ways: Doors, streams: Streams, way: str) -> None:
    """Nobody would be handed it, so it is refused where its sender hears of it."""
    before = await everything(streams)
    answer = await getattr(ways, way)(expirytime=PAST)
    assert (answer.status, answer.json["code"]) == (422, "event-expired")
    assert answer.json.get("index") == (2 if way == "batch" else None)
    assert await everything(streams) == before
    assert (await getattr(ways, way)(expirytime=FUTURE)).status == 202


async def test_an_embedded_agent_takes_no_expired_event(doors: Sidecar) -> None:
    """The same without HTTP."""
    with pytest.raises(EventExpired):
        await doors.agent.publish(event(expirytime=PAST))


# --- rate ------------------------------------------------------------------------------------------------------------


async def test_a_source_above_its_rate_gets_429(streams: Streams, tmp_path: Path) -> None:
    """At every door, with Retry-After; nothing of it is stored, and other sources go on."""
    base = write_directory(tmp_path / "agent")
    limits = {"source_rate_per_s": 0.001, "source_burst": 2}
    async with sidecar(base, streams.server.url, **limits) as running:
        await until(lambda: not running.agent.not_ready())
        ways, agent = Doors(running), running.agent
        assert (await ways.structured()).status == 202
        assert (await ways.binary()).status == 202
        stored = await everything(streams)
        for refused in (await ways.structured(), await ways.binary(), await ways.batch()):
            assert (refused.status, refused.json["code"]) == (429, "rate-limited")
            assert 1 <= int(refused.headers["retry-after"]) <= 2000
        with pytest.raises(RateLimited):
            await agent.publish(event())
        assert await everything(streams) == stored
        assert [(await ways.webhook()).status for _ in range(3)] == [202, 202, 429]
        await _another_source(agent)


async def test_what_is_refused_uses_up_no_rate(streams: Streams, tmp_path: Path) -> None:
    """A batch with one event that policy denies, and one for which there is no room: the source owes for neither."""
    base = write_directory(tmp_path / "agent")
    limits = {
        "source_rate_per_s": 0.001,
        "source_burst": 2,
        "max_waiting_events": 16,
        "max_batch_events": 16,
        "admit_wait_s": 0.01,
    }
    async with sidecar(base, streams.server.url, **limits) as running:
        agent = running.agent
        await until(lambda: not agent.not_ready())
        for _ in range(2):
            with pytest.raises(Denied):
                await agent.publish_many([event(), event(type="payroll.salary.paid.v1")])
        assert agent.outbound is not None
        await agent.outbound.room.enter(16)
        with pytest.raises(Overloaded):
            await agent.publish_many([event(), event()])
        agent.outbound.room.leave(16)
        assert len(await agent.publish_many([event(), msgspec.json.encode(event())])) == 2
        with pytest.raises(RateLimited):
            await agent.publish_many([msgspec.json.encode(event())])


async def _another_source(agent: Agent) -> None:
    receipt = await agent.publish(event(source="/crm/other"))
    assert receipt.copies
