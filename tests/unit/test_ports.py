"""Ports that a server has again after a restart."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse

from agent import listener
from agent.listener import Listener
from agent.settings import AgentSettings
from mesh import ports
from mesh.ports import PORTS, lasting_ports


def test_one_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """All the others of the range are, each once."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", next(lasting_ports())))
        port = taken.getsockname()[1]
        assert port in PORTS
        monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
        assert list(lasting_ports()) == []
    assert list(lasting_ports()) == [port]


class Nobody:
    """Answers nothing."""

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Never called."""
        raise NotImplementedError

    async def repeat(self, again: Callable[[bytes], Awaitable[bytes]], body: bytes) -> tuple[bytes, bool]:
        """Never called."""
        raise NotImplementedError


@pytest.mark.anyio
async def test_a_door_takes_the_next_where_somebody_was_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between being told of a port and having it."""
    with socket.socket() as quicker:
        quicker.bind(("127.0.0.1", next(lasting_ports())))
        quicker.listen()
        free = next(lasting_ports())
        monkeypatch.setattr(listener, "lasting_ports", lambda _: iter([quicker.getsockname()[1], free]))
        door = Listener("http", Nobody(), AgentSettings(name="crm-adapter", tenant="acme"))
        await door.start()
        assert door.port == free
        await door.close(1)
