"""The application's side of an agent's door, against a real HTTP server: tokens that change, sockets, one session."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from mesh.context import AgentAddress
from mesh.door import AgentDoor
from mesh.errors import ConfigError, Unavailable

pytestmark = pytest.mark.anyio


class Counting(AsyncExitStack):
    """Counts what it has to close."""

    entered = 0

    def push_async_callback(self, callback: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Push and count."""
        self.entered += 1
        return super().push_async_callback(callback, *args, **kwargs)


class Agent:
    """Answers 202 to whoever has a token in force, at a port and at a Unix socket."""

    def __init__(self, directory: Path) -> None:
        self.tokens = {"first"}
        self.asked: list[str] = []
        self.looks_after = ""  # it reads its token's file right after it refused this one
        self.socket = directory / "door.sock"
        self.token_file = directory / "token"
        self.token_file.write_text("first\n")
        self.url = ""
        self.runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        application = web.Application()
        application.router.add_post("/v1/events", self._answer)
        self.runner = web.AppRunner(application)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        await web.UnixSite(self.runner, self.socket).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def _answer(self, request: web.Request) -> web.Response:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        self.asked.append(token)
        accepted = token in self.tokens
        if token == self.looks_after:
            self.tokens = {token}
        return web.Response(status=202 if accepted else 401, text=request.host)

    def address(self, url: str = "") -> AgentAddress:
        """Where it listens."""
        return AgentAddress(
            url=url or self.url, webhooks_url="", health_url="", token_file=str(self.token_file), creds_file=""
        )

    def rotate(self, token: str) -> None:
        """Replace the token's file, as `write_private` does."""
        new = self.token_file.with_suffix(".new")
        new.write_text(token + "\n")
        new.replace(self.token_file)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent that listens."""
    agent = Agent(tmp_path)
    await agent.start()
    assert agent.runner is not None
    yield agent
    await agent.runner.cleanup()


@pytest.fixture
async def stack() -> AsyncIterator[Counting]:
    """What the door leaves to close."""
    async with Counting() as stack:
        yield stack


async def test_first_posts_at_once_share_a_session(agent: Agent, stack: Counting) -> None:
    """However many publish first, one session is opened, and so one to close."""
    door = AgentDoor(agent.address(), stack)
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(door.post, b"{}")
    assert agent.asked == ["first"] * 5
    assert stack.entered == 1


async def test_a_new_token_is_used_once_its_file_changed(agent: Agent, stack: Counting) -> None:
    """The next request has it; no request is refused for it."""
    door = AgentDoor(agent.address(), stack)
    assert (await door.post(b"{}"))[0] == 202
    agent.rotate("second")
    agent.tokens = {"second"}
    assert (await door.post(b"{}"))[0] == 202
    assert agent.asked == ["first", "second"]


async def test_an_agent_that_still_wants_the_old_token_gets_it(agent: Agent, stack: Counting) -> None:
    """The file has changed and the agent has not looked yet: the token it took last fits."""
    door = AgentDoor(agent.address(), stack)
    await door.post(b"{}")
    agent.rotate("second")
    assert (await door.post(b"{}"))[0] == 202
    agent.tokens = {"second"}
    assert (await door.post(b"{}"))[0] == 202
    assert agent.asked == ["first", "second", "first", "second"]


async def test_an_agent_that_looks_between_two_posts_gets_the_new_token_again(agent: Agent, stack: Counting) -> None:
    """The new token came too early and the old one too late: the new one fits now."""
    door = AgentDoor(agent.address(), stack)
    await door.post(b"{}")
    agent.rotate("second")
    agent.looks_after = "second"
    assert (await door.post(b"{}"))[0] == 202
    assert agent.asked == ["first", "second", "first", "second"]


async def test_a_token_changed_while_the_request_was_on_its_way_is_tried(agent: Agent, stack: Counting) -> None:
    """On 401 the file is read once more, even where its times and size say that it is the same."""
    door = AgentDoor(agent.address(), stack)
    await door.post(b"{}")
    before = agent.token_file.stat()
    agent.token_file.write_text("other\n")
    os.utime(agent.token_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    agent.tokens = {"other"}
    assert (await door.post(b"{}"))[0] == 202
    assert agent.asked == ["first", "first", "other"]


async def test_a_wrong_token_is_refused_after_one_try(agent: Agent, stack: Counting) -> None:
    """Nothing newer to try: the 401 is the caller's to see."""
    agent.tokens = set()
    assert (await AgentDoor(agent.address(), stack).post(b"{}"))[0] == 401
    assert agent.asked == ["first"]


async def test_a_unix_socket_is_a_door_too(agent: Agent, stack: Counting) -> None:
    """An agent with `http_socket` says `unix:<path>` in `ports.json`, and expects the name localhost."""
    door = AgentDoor(agent.address(f"unix:{agent.socket}"), stack)
    assert await door.post(b"{}") == (202, b"localhost")


async def test_what_cannot_be_reached_or_read_says_so(agent: Agent, stack: Counting, tmp_path: Path) -> None:
    """An agent that is away is worth a retry; a token that is not there is not."""
    with pytest.raises(Unavailable, match="cannot be reached"):
        await AgentDoor(agent.address(f"unix:{tmp_path / 'none'}"), stack).post(b"{}")
    agent.token_file.unlink()
    with pytest.raises(ConfigError, match="token of the agent's door"):
        await AgentDoor(agent.address(), stack).post(b"{}")
