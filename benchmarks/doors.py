"""A mesh whose agent is a process of its own with its doors open, as its users meet it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL

import anyio
import msgspec

from benchmarks.machine import ROOT
from benchmarks.policy_sets import POLICIES, VIEW
from benchmarks.validity import require, require_durable
from mesh.cli.session import operator_session
from mesh.control.reader import reading
from mesh.control.up import Options, running
from mesh.event import decode
from mesh.jetstream.manage import stream_info

AGENT = "shop"
STREAM = "EV_local_shop"
READ_S = 60.0  # without a new event from a stream that has more
_MB = 1024  # kB, as /proc counts
_CLEAR = (
    b"Ada Lindqvist",
    b"ada.lindqvist@example.com",
    b"40 1234567",
    b"neighbour",
)  # of the four fields that are masked


class Ports(msgspec.Struct):
    """`ports.json` of a running agent."""

    url: str
    health_url: str
    pid: int


@dataclass(frozen=True, slots=True)
class Beside:
    """A running mesh, and the process of its publishing agent."""

    data: Path
    nats_url: str
    ports: Ports

    @property
    def directory(self) -> Path:
        """Of the agent's files."""
        return self.data / "agents" / AGENT

    @property
    def token(self) -> str:
        """What its door asks for."""
        return (self.directory / "token").read_text().strip()

    @asynccontextmanager
    async def another(self, **settings: str) -> AsyncIterator[Ports]:
        """One more process of the same agent for the length of the block, ready at its start."""
        name = f"another-{time.monotonic_ns()}"
        process = await self.spawn(name, **settings)
        try:
            yield await ports_of(self.directory / f"{name}.json", process.pid)
        finally:
            await end(process)

    async def spawn(self, name: str, **settings: str) -> Process:
        """Start one more process of the same agent, with a spool and a ports file of its own."""
        own = {"SPOOL_FILE": f"{name}.db", "SPOOL_KEY_FILE": f"{name}.key", "PORTS_FILE": f"{name}.json", **settings}
        ports = {f"MESH_AGENT_{door}_PORT": "0" for door in ("HTTP", "WEBHOOKS", "HEALTH")}
        environment = {**os.environ, **ports, **{f"MESH_AGENT_{key}": value for key, value in own.items()}}
        command = [sys.executable, "-m", "agent", "run", "--config", str(self.directory / "agent.toml")]
        return await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, env=environment
        )


@asynccontextmanager
async def beside() -> AsyncIterator[Beside]:
    """A mesh of its own for the length of the block; server, control plane and agents are as `mesh up` starts them."""
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as directory:
        policies = Path(directory) / "policies"
        policies.mkdir()
        (policies / "bench.yaml").write_text(POLICIES)
        data = Path(directory) / "data"
        async with running(Options(data=data, policies=policies)) as up, anyio.create_task_group() as group:
            group.start_soon(up.watch)
            yield Beside(data, up.server.url, await ports_of(data / "agents" / AGENT / "ports.json"))
            group.cancel_scope.cancel()


async def ports_of(file: Path, pid: int = 0) -> Ports:
    """What the agent wrote into *file* once it was ready; of the process *pid*, where one is meant."""
    with anyio.fail_after(READ_S):
        while True:
            with suppress(FileNotFoundError, msgspec.DecodeError):
                ports = msgspec.json.decode(file.read_bytes(), type=Ports)
                if pid in (0, ports.pid):
                    return ports
            await anyio.sleep(0.01)


async def end(process: Process) -> None:
    """Let it drain."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with anyio.CancelScope(shield=True):
        await process.wait()


def free_port() -> int:
    """A port of loopback that nobody has at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def memory_mb(pid: int, *, peak: bool = False) -> float:
    """Megabytes of *pid* in memory: now, or at most since it began (`VmRSS`, `VmHWM`)."""
    name = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / _MB
    raise LookupError(name)


def cpu_s(pid: int) -> float:
    """Seconds of processor that *pid* has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def check_stored(mesh: Beside, runs: Mapping[str, int], *, unsigned: int = 0) -> None:
    """Refuse figures unless each event of *runs* is stored on disk exactly once, signed and masked.

    Args:
        mesh: Where.
        runs: How many events each run published, by its name: their ids are `<run>-<number>`.
        unsigned: Messages that a peer put beside them.

    Raises:
        InvalidRun: It is not so.
        VerificationError: Nobody would believe one of them.
    """
    seen = {run: bytearray(count) for run, count in runs.items()}
    async with operator_session(str(mesh.data)) as session:
        info = await stream_info(session.connection, STREAM)
        require_durable(info["config"])
        stored, expected = info["state"]["messages"], sum(runs.values()) + unsigned
        require(stored == expected, f"events lost or stored twice: {stored:,} stored, {expected:,} accepted")
        async with reading(session.connection, {STREAM: [f"ev.local.{VIEW}.>"]}, new_only=False) as (_, events):
            for _ in range(stored):
                with anyio.fail_after(READ_S):
                    received = await events.receive()
                if received.signature is None:
                    unsigned -= 1
                    continue
                await session.verify(received)
                require(not any(value in received.body for value in _CLEAR), "unmasked: a value that the view hides")
                run, _, number = decode(received.body)["id"].rpartition("-")
                seen[run][int(number)] += 1
    require(not unsigned, f"unsigned: {-unsigned} more messages than a peer published")
    for run, counts in seen.items():
        require(counts.count(1) == len(counts), f"{len(counts) - counts.count(1)} events of {run} are not stored once")
