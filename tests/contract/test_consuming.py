"""What an agent reads for its application, over a second connection: opened when needed, kept, left in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from agent.consuming import Consuming
from agent.settings import load
from mesh.errors import ConfigError, Draining, NoBundle, NotFound
from mesh.subscription import Subscription
from tests.contract.agent_mesh import until
from tests.contract.consumer_mesh import DEADLINE_S, GRACE, Source, take

pytestmark = pytest.mark.anyio


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Source]:
    """A tenant with a publisher; the agent reads as the team support."""
    async with Source.running(tmp_path / "mesh") as source:
        yield source


@asynccontextmanager
async def consuming(source: Source, base: Path, **more: str) -> AsyncIterator[Consuming]:
    """As an agent of the team support makes it; its directory is *base*."""
    base.mkdir(exist_ok=True)
    (base / "team.creds").write_bytes(b"")
    values = {
        "name": "desk",
        "tenant": "acme",
        "team": "support",
        "team_creds_file": "team.creds",
        "nats_url": source.streams.server.url,
        "trust_dir": str(source.directory / "trust"),
        **more,
    }
    toml = "\n".join(f'{name} = "{value}"' for name, value in values.items())
    made = Consuming(load(toml).settings, base)
    made._creds = None  # type: ignore[assignment]  # the server has no accounts
    try:
        yield made
    finally:
        await made.close(5.0)


async def opened(made: Consuming, name: str = "contacts") -> Subscription:
    """A subscription, once the first bundle is there."""
    await made.start()
    with anyio.fail_after(DEADLINE_S):
        while name not in made.names:
            await made.adopted()
    return await made.subscription(name)


async def test_nothing_connects_before_something_is_consumed(source: Source, tmp_path: Path) -> None:
    """An agent that only publishes has one connection."""
    async with consuming(source, tmp_path / "agent") as made:
        assert not made.started
        assert made.names == frozenset()
        await made.start()
        assert made.started


async def test_the_team_reads_through_its_agent(source: Source, tmp_path: Path) -> None:
    """Events come verified and in the team's view; the subscription is opened once and kept."""
    await source.publish("1", "2")
    async with consuming(source, tmp_path / "agent") as made:
        subscription = await opened(made)
        assert [event.id for event in await take(subscription, 2)] == ["1", "2"]
        assert await made.subscription("contacts") is subscription
        assert made.state()["subscriptions"] == {"contacts": "running"}
    assert (tmp_path / "agent" / "team" / "bundle.last").exists()
    await until(source.settled)


async def test_what_is_not_settled_when_it_is_left_comes_again(source: Source, tmp_path: Path) -> None:
    """Released with an event in hand, it is handed back at once; opened again it is there."""
    await source.publish("1")
    async with consuming(source, tmp_path / "agent") as made:
        delivery = await (await opened(made)).next()
        assert delivery.event.id == "1"
        await made.release("contacts")
        assert [event.id for event in await take(await made.subscription("contacts"), 1)] == ["1"]


async def test_a_subscription_that_the_team_has_not_is_refused(source: Source, tmp_path: Path) -> None:
    """No such name, or inactive: 404 either way. One that policies add while it runs is there without a restart."""
    async with consuming(source, tmp_path / "agent") as made:
        await opened(made)
        with pytest.raises(NotFound):
            await made.subscription("nobodys")
        adopted = anyio.Event()

        async def wait() -> None:
            await made.adopted()
            adopted.set()

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            await source.streams.hand_out(policies=GRACE + SECOND)
            with anyio.fail_after(DEADLINE_S):
                await adopted.wait()
        assert made.names == {"contacts", "second"}


SECOND = """---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: second, tenant: acme, team: support}
spec: {types: ["crm.contact.>"]}
"""


async def test_before_the_first_bundle_it_is_unavailable(source: Source, tmp_path: Path) -> None:
    """NATS away and nothing kept: the start returns, and what is asked for is refused with `no-bundle`."""
    async with consuming(source, tmp_path / "agent", nats_url="nats://127.0.0.1:1") as made:
        with pytest.raises(NoBundle):
            await made.subscription("contacts")
        assert made.state()["nats_connected"] is False


async def test_it_begins_with_what_it_kept(source: Source, tmp_path: Path) -> None:
    """With NATS away the names of the last good bundle are there."""
    async with consuming(source, tmp_path / "agent") as made:
        await opened(made)
        await until((tmp_path / "agent" / "team" / "bundle.last").exists)
    async with consuming(source, tmp_path / "agent", nats_url="nats://127.0.0.1:1") as made:
        await made.start()
        assert made.names == {"contacts"}


async def test_once_closing_it_opens_nothing(source: Source, tmp_path: Path) -> None:
    """The drain leaves nothing behind that would pull again."""
    async with consuming(source, tmp_path / "agent") as made:
        await opened(made)
        await made.close(5.0)
        with pytest.raises(Draining):
            await made.subscription("contacts")


async def test_credentials_without_a_team_are_a_mistake(source: Source, tmp_path: Path) -> None:
    """Nobody reads without a view, so the settings have to say as whom."""
    with pytest.raises(ConfigError, match="team"):
        async with consuming(source, tmp_path / "agent", team=""):
            pass
