"""A control plane of several replicas as real processes, on one real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal

from mesh import audit
from mesh.audit import Record
from mesh.cli.operator import operator_connection
from mesh.cli.policy.request import ask
from mesh.control.datadir import DataDirectory
from mesh.control.init import initialise
from mesh.control.nats_config import plain_config
from mesh.control.nats_server import NatsServer
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import Operator
from mesh.control.trail import last_sequence, stored_trail
from mesh.control.vault import STREAM
from mesh.control.vault_files import CONTROL_ACCOUNT
from mesh.errors import NotAttested, Unavailable
from mesh.jetstream.connection import Connection
from mesh.jetstream.manage import api

SCALE = 0.4  # of the lease: 4 s
LEADS_S = 90.0


class Replica:
    """One `mesh control run`."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.data = DataDirectory(directory / name)
        self._keys = directory / "keys"
        self.said = directory / f"{name}.out"
        self.log = directory / f"{name}.err"
        self.more: list[str] = []  # options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, url: str, policies: Path, *, ahead_s: float = 0.0) -> None:
        """Start it; `ahead_s` is how far its wall clock is ahead."""
        command = [sys.executable, "-m", "tests.journey.replica_process", str(SCALE), str(ahead_s)]
        command += ["control", "run", "--data", str(self.data.root), "--nats-url", url, "--replica", self.name]
        command += ["--policies", str(policies), "--keys", str(self._keys), "--json", *self.more]
        with self.said.open("wb") as said, self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=log)

    @property
    def alive(self) -> bool:
        """Whether it runs, or is stopped."""
        return self._process is not None and self._process.poll() is None

    @property
    def states(self) -> list[str]:
        """What it said, in order: `waits` and `leads`."""
        return [json.loads(line)["state"] for line in self.said.read_text().splitlines() if line.endswith("}")]

    def logged(self, event: str) -> bool:
        """Whether its log has such an event."""
        return f'"event":"{event}"' in self.log.read_text()

    def ended(self) -> int:
        """Its exit code, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(LEADS_S)

    def signal(self, number: signal.Signals) -> None:
        """Send it one; returns when it has ended, where it ends by it."""
        assert self._process is not None
        self._process.send_signal(number)
        if number in {signal.SIGKILL, signal.SIGTERM}:
            self._process.wait(30)

    def kill(self) -> None:
        """Whatever state it is in."""
        if self.alive:
            self.signal(signal.SIGKILL)


class Replicas:
    """Several, and the server."""

    def __init__(self, directory: Path, policies: Path, url: str, names: tuple[str, ...]) -> None:
        self._keys = DataDirectory(directory / "keys")
        self.policies = policies
        self.url = url
        self.all = [Replica(directory, name) for name in names]

    def start(self, replica: Replica, *, ahead_s: float = 0.0) -> None:
        """Start one."""
        replica.start(self.url, self.policies, ahead_s=ahead_s)

    def leader(self, *, but: Replica | None = None) -> Replica:
        """Whoever leads, once somebody does; *but* is stopped and cannot say that it does not."""
        until = time.monotonic() + LEADS_S
        while True:
            leading = [one for one in self.all if one is not but and one.alive and one.states[-1:] == ["leads"]]
            if leading:
                return leading[0]
            assert time.monotonic() < until, "\n".join(one.log.read_text()[-2000:] for one in self.all if one.alive)
            time.sleep(0.05)

    async def ask(self, replica: Replica, noun: str, verb: str, **body: Any) -> dict[str, Any]:
        """A request of an operator who sits where *replica* runs; again, where the leader changes on a busy machine."""
        with anyio.fail_after(LEADS_S):
            while True:
                try:
                    async with operator_connection(str(replica.data.root)) as (_, connection):
                        return await ask(connection, verb, body, noun=noun, timeout_s=10.0)
                except (Unavailable, NotAttested):  # the latter: asked before this leader began
                    await anyio.sleep(0.1)

    async def lose_state(self) -> None:
        """Have the servers lose lease and state, and nothing else."""
        creds = Operator(NkeyFiles(self._keys.keys)).control_creds(CONTROL_ACCOUNT)
        connection = await Connection.open(self.url, name="test", creds=creds)
        try:
            await api(connection, f"STREAM.DELETE.{STREAM}")
        finally:
            await connection.close()

    async def audited(self, replica: Replica, kind: str) -> list[Record]:
        """The audit records of one kind, by all leaders."""
        async with operator_connection(str(replica.data.root)) as (_, connection):
            last = await last_sequence(connection)
            records = [audit.read(stored.line) async for stored in stored_trail(connection, last=last)]
        return [record for record in records if record.kind == kind]


@contextmanager
def replicas(directory: Path, policies: Path, *names: str) -> Iterator[Replicas]:
    """Replicas that are not started yet, on a server that runs."""
    made = initialise(directory / "keys", trust_domain="mesh.local", resolver_dir=str(directory / "accounts"))
    config = plain_config(directory / "store") + made.server_part.read_text()
    with start_blocking_portal("asyncio") as portal:
        server = portal.call(NatsServer.start, config, directory / "server")
        mesh = Replicas(directory, policies, server.url, names)
        try:
            yield mesh
        finally:
            for replica in mesh.all:
                replica.kill()
            portal.call(server.stop)
