"""A mesh with many agents: a real server and a control plane here, agents and reading teams in other processes."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

import anyio
import msgspec

from benchmarks.fleet_members import START_S, Findings
from benchmarks.fleet_policies import READER, SECOND, TENANT
from benchmarks.runner import ROOT
from mesh.context import MeshFile
from mesh.control.change import checked
from mesh.control.datadir import DataDirectory, write_private
from mesh.control.given import Given
from mesh.control.nkeys import NkeyFiles
from mesh.control.policies import Policies
from mesh.control.reconcile import SYSTEM, Operator, now_ms
from mesh.control.tenant import Options, Shared, Tenant, open_tenant
from mesh.control.trust import Authority
from mesh.control.up import _start_server
from mesh.jetstream.connection import Connection

STARTING = 4  # processes at once: each takes a core for a second
END_S = 60.0


@dataclass(slots=True)
class _Member:
    process: Process
    out: Path


class Fleet:
    """Agents and teams in processes of their own, around the policies that they run."""

    def __init__(self, data: Path, tenant: Tenant) -> None:
        self.connection: Connection = tenant.connection
        self.policies: Policies = tenant.policies
        self._data = data
        self._publishers: list[_Member] = []
        self._readers: list[_Member] = []

    async def start(self, hosts: list[list[str]], *, per_s: float) -> None:
        """Start a process for each list of agents, and one for each team that reads; returns when all of them work."""
        room = anyio.CapacityLimiter(STARTING)
        async with anyio.create_task_group() as group:
            for team in (READER, SECOND):
                group.start_soon(self._start, self._readers, team, ["--team", team], room)
            for names in hosts:
                options = ["--agents", ",".join(names), "--per-s", str(per_s)]
                group.start_soon(self._start, self._publishers, names[0], options, room)

    async def _start(self, members: list[_Member], name: str, options: list[str], room: anyio.CapacityLimiter) -> None:
        async with room:
            out = self._data / f"found-{name}.json"
            member = _Member(await self._spawn([*options, "--out", str(out)]), out)
            members.append(member)
            assert member.process.stdout is not None
            with anyio.fail_after(START_S):
                ready = await member.process.stdout.readline() == b"ready\n"
            assert ready, f"{name} did not start: {self._said()}"

    async def _spawn(self, options: list[str]) -> Process:
        command = [sys.executable, "-m", "benchmarks.fleet_members", "--data", str(self._data), *options]
        log = (self._data / "members.log").open("ab")
        with log:
            return await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=log)

    async def finish(self) -> Findings:
        """End every process in order and put together what they saw."""
        found = Findings([], [], [])
        for members in (self._publishers, self._readers):  # readers last: they wait for what is still to come
            for member in members:
                assert member.process.stdin is not None
                member.process.stdin.close()
            with anyio.fail_after(END_S):
                for member in members:
                    assert await member.process.wait() == 0, self._said()
        for member in (*self._publishers, *self._readers):
            one = msgspec.json.decode(member.out.read_bytes(), type=Findings)
            found.adoptions.extend(one.adoptions)
            found.sent.extend(one.sent)
            found.seen.extend(one.seen)
        return found

    def _said(self) -> str:
        """The last of what the processes wrote."""
        return (self._data / "members.log").read_text(errors="replace")[-2000:]

    async def kill(self) -> None:
        """End whatever still runs."""
        for member in (*self._publishers, *self._readers):
            if member.process.returncode is None:
                member.process.kill()
                await member.process.wait()


@asynccontextmanager
async def fleet(directory: Path, files: Mapping[str, str]) -> AsyncIterator[Fleet]:
    """A mesh under *files* for the length of the block, its agents to be started by `Fleet.start`."""
    options = Options(data=directory / "data", policies=directory)
    given = Given(files, {}, checked(files, {}, None))
    data = DataDirectory.open(options.data)
    operator = Operator(NkeyFiles(data.keys))
    authority = Authority(data.trust, data.admin, trust_domain=options.trust_domain, now_ms=now_ms())
    async with AsyncExitStack() as stack:
        server = await _start_server(data, operator, 0, None, None)
        stack.push_async_callback(server.stop)
        system = await Connection.open(server.url, name="control-system", creds=operator.control_creds(SYSTEM))
        stack.push_async_callback(system.close)
        shared = Shared(data, operator, authority, system, server.url, options, _nothing)
        tenant = await stack.enter_async_context(open_tenant(shared, TENANT, [TENANT], given, lambda _: None))
        file = MeshFile(nats_url=server.url, data=str(data.root), site="local", tenants={TENANT: tenant.address()})
        write_private(data.mesh_file, msgspec.json.encode(file))
        group = await stack.enter_async_context(anyio.create_task_group())
        group.start_soon(tenant.policies.run)  # and nothing that would start agents here
        made = Fleet(data.root, tenant)
        try:
            yield made
        finally:
            with anyio.CancelScope(shield=True):
                await made.kill()
            group.cancel_scope.cancel()


async def _nothing() -> None:
    """`mesh.json` stays as it is."""
