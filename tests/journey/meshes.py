"""A whole mesh as real processes, for tests that start where a user starts: `mesh up`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anyio
import msgspec

from mesh.cli.session import Session
from mesh.context import Context, MeshFile
from mesh.control.reader import reading
from mesh.deadletters import DeadLetterRecord
from mesh.jetstream.manage import api, consumer_info, stream_info
from mesh.signing import Received
from tests import forks

START_S = 60.0
# A stream that is there is waited for, however busy the machine is: nothing goes to the spool meanwhile.
PATIENT = {"MESH_AGENT_SPOOL_AFTER_S": "60", "MESH_AGENT_GIVE_UP_S": "60"}
STOP_S = 30.0


class RunningMesh:
    """`mesh up` on a directory of its own."""

    def __init__(self, directory: Path, policies: Path, *options: str) -> None:
        self.data = directory / "data"
        self.log = directory / "mesh-up.log"
        self._command = [sys.executable, "-m", "mesh", "up", "--data", str(self.data), "--policies", str(policies)]
        self._command += ["--json", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.printed = b""

    @property
    def pid(self) -> int:
        """Of `mesh up`."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start and wait until `--json` has printed."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **PATIENT},
                start_new_session=True,
                umask=0,  # what is private is so by its mode, not by luck
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        until = time.monotonic() + START_S
        while not self.printed.endswith(b"\n"):
            assert self._process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < until, self.log.read_text()[-2000:]
            self.printed += self._process.stdout.read() or b""
            time.sleep(0.02)
        assert b'"nats_url"' in self.printed, self.printed.decode()

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self.printed = b""
        return status

    def kill(self) -> None:
        """SIGKILL `mesh up` if it still runs; its children end with it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self.printed = b""

    def children(self) -> dict[int, str]:
        """Its child processes: command line by process id; not the one that forks them in a test."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                if stat.read_text().rpartition(")")[2].split()[1] == str(self.pid):
                    found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")
        return {pid: command for pid, command in found.items() if not command.startswith(forks.TITLE)}

    @property
    def file(self) -> MeshFile:
        """`mesh.json`."""
        return msgspec.json.decode((self.data / "mesh.json").read_bytes(), type=MeshFile)

    def context(self, *, team: str | None = None, agent: str | None = None) -> Context:
        """A context for the library."""
        return Context.load(self.data, team=team, agent=agent)

    def agent_pid(self, agent: str) -> int:
        """The process id of an agent, as it says itself."""
        ports = msgspec.json.decode((self.data / "agents" / agent / "ports.json").read_bytes())
        return int(ports["pid"])


@contextmanager
def mesh_up(directory: Path, policies: Path, *options: str) -> Iterator[RunningMesh]:
    """A mesh for the length of the block; stopped by SIGTERM."""
    mesh = RunningMesh(directory, policies, *options)
    try:
        mesh.start()
        yield mesh
        mesh.stop()
    finally:
        mesh.kill()


READERS = ("desk", "lake", "watch")  # agents of teams that only read: each is a process, and most tests need none


def policies_with(
    directory: Path, policies: Path, documents: Mapping[str, str] = MappingProxyType({}), *, readers: Sequence[str] = ()
) -> Path:
    """A copy of *policies*, the worked example, with more *documents*, by name; of its `READERS` only *readers*."""
    copy = directory / "policies"
    shutil.copytree(policies, copy)
    tenant = copy / "tenants" / "acme.yaml"
    for name in set(READERS) - set(readers):
        assert f"agents: [{name}]" in tenant.read_text()
        tenant.write_text(tenant.read_text().replace(f"agents: [{name}]", "agents: []"))
    for name, text in documents.items():
        (copy / name).write_text(text)
    return copy


def contact(**more: Any) -> dict[str, Any]:
    """The data of a contact, with an e-mail address that only its owners see."""
    return {"contact": {"id": "4711", "email": "anna.schmidt@example.com"}, "country": "DE", **more}


async def stored(session: Session) -> list[Received]:
    """Every message of every event stream, whatever its subject."""
    found = []
    for info in (await api(session.connection, "STREAM.LIST"))["streams"]:
        name = info["config"]["name"]
        if not name.startswith("EV_"):
            continue
        messages = (await stream_info(session.connection, name))["state"]["messages"]
        filters = {name: info["config"]["subjects"]}
        async with reading(session.connection, filters, new_only=False) as (_, events):
            with anyio.fail_after(60):
                found += [await events.receive() for _ in range(messages)]
    return found


async def dead_letters(session: Session, subscription: str) -> list[DeadLetterRecord]:
    """What was buried for one subscription."""
    last = (await stream_info(session.connection, "DLQ"))["state"]["last_seq"]
    found = []
    for sequence in range(1, last + 1):
        message = (await api(session.connection, "STREAM.MSG.GET.DLQ", {"seq": sequence}))["message"]
        found.append(msgspec.json.decode(b64decode(message["data"]), type=DeadLetterRecord))
    return [letter for letter in found if letter.subscription == subscription]


async def wait_settled(session: Session, stream: str, durable: str) -> None:
    """Wait until the server has nothing left of a durable, neither to deliver nor to be acked."""
    with anyio.fail_after(60):
        while True:
            info = await consumer_info(session.connection, stream, durable)
            if not info["num_pending"] + info["num_ack_pending"]:
                return
            await anyio.sleep(0.05)


async def restart_agent(mesh: RunningMesh, agent: str) -> None:
    """SIGTERM: it drains, and its supervisor starts it again."""
    ports, old = mesh.data / "agents" / agent / "ports.json", mesh.agent_pid(agent)
    os.kill(old, signal.SIGTERM)
    with anyio.fail_after(60):
        while not ports.exists() or mesh.agent_pid(agent) == old:
            await anyio.sleep(0.05)


async def wait_ended(pids: Iterable[int]) -> None:
    """Wait until none of these processes is left."""
    with anyio.fail_after(60):
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            await anyio.sleep(0.05)
