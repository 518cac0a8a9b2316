"""The agents and teams of one tenant on one machine: their files, and the agents' processes.

What a policy can change about an agent after its `agent.toml` was written (its identity, its team) is given to its
process instead.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from mesh import logs
from mesh.context import AgentAddress
from mesh.control.agents import AgentProcess, Ports
from mesh.control.workloads import WrittenWorkloads
from mesh.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from mesh.control.datadir import DataDirectory
    from mesh.control.tls_files import MeshTls
    from mesh.control.workload_files import WorkloadFiles
    from mesh.policy.grants import Grants

log = logs.get("agents")


class LocalWorkloads(WrittenWorkloads):
    """The agents and teams of one tenant of `mesh up`.

    Args:
        tenant, data, files, site, trust_domain, taken, changed: See `WrittenWorkloads`.
        nats_url: Of the server.
        barred: The agents that get no certificate, and so are not waited for.
        tls: Names TLS files; None for a mesh without TLS.
        forget: Called with an agent's name whenever none of its processes runs: what they reported counts no more.
        on_demand: Whether an agent starts only when somebody wants it.
    """

    def __init__(
        self,
        tenant: str,
        data: DataDirectory,
        files: WorkloadFiles,
        *,
        nats_url: str,
        site: str,
        trust_domain: str,
        barred: Callable[[], frozenset[str]],
        tls: MeshTls | None,
        taken: dict[str, str],
        changed: Callable[[], Awaitable[None]],
        forget: Callable[[str], Awaitable[None]],
        on_demand: bool = False,
    ) -> None:
        super().__init__(tenant, data, files, site=site, trust_domain=trust_domain, taken=taken, changed=changed)
        self._nats_url = nats_url
        self._barred = barred
        self._tls = tls
        self._forget = forget
        self._wanted: set[str] | None = set() if on_demand else None  # None: all
        self._group: anyio.abc.TaskGroup | None = None
        self._lock = anyio.Lock()
        self.processes: dict[str, AgentProcess] = {}

    async def follow(self, grants: Grants) -> None:
        """Start agents that are new or are somebody else now, stop those that are gone. What fails is logged."""
        if self._group is None:
            return  # `mesh up` starts them all at once, when every tenant is ready
        async with self._lock:
            gone = [name for name in self.processes if name not in grants.agents]
            other = [n for n, p in self.processes.items() if n not in gone and p.settings != self._settings(grants, n)]
            async with anyio.create_task_group() as group:
                for name in [*gone, *other]:
                    group.start_soon(self._stop, self.processes.pop(name))
            for name in gone:
                self._taken.pop(name, None)
            made = self._made(grants)
            async with anyio.create_task_group() as group:
                for process in made:
                    group.start_soon(self._start_later, process)
            for process in made:
                self._group.start_soon(process.supervise)
            await self._changed()

    # --- processes ---------------------------------------------------------------------------------------------------

    async def start(self, grants: Grants) -> None:
        """Start every agent, all at once. Raises ConfigError where one does not start."""
        made = self._made(grants)
        async with anyio.create_task_group() as group:
            for process in made:
                group.start_soon(self._start, process)

    async def want(self, grants: Grants, name: str) -> None:
        """Have the agent *name* run, and `mesh.json` say where, from here on.

        Raises:
            NotFound: There is no such agent.
            ConfigError: It does not start.
        """
        if name not in grants.agents:
            known = ", ".join(sorted(grants.agents))
            raise NotFound(f"tenant {self.tenant} has no agent {name}", expected=f"one of {known}", got=name)
        async with self._lock:
            if self._wanted is not None:
                self._wanted.add(name)
            for process in self._made(grants):
                await self._start(process)
                if self._group is not None:
                    self._group.start_soon(process.supervise)
            await self._changed()

    def _made(self, grants: Grants) -> list[AgentProcess]:
        """A process for each agent that is to run and has none."""
        names = sorted(grants.agents if self._wanted is None else grants.agents.keys() & self._wanted)
        made = [self._process(grants, name) for name in names if name not in self.processes]
        self.processes.update({process.name: process for process in made})
        return made

    async def supervise(self) -> None:
        """Keep the agents running until cancelled, those that come later as well."""
        async with anyio.create_task_group() as group:
            self._group = group
            for process in self.processes.values():
                group.start_soon(process.supervise)
            await anyio.sleep_forever()

    async def stop(self) -> None:
        """Let every agent drain and end."""
        async with anyio.create_task_group() as group:
            for process in self.processes.values():
                group.start_soon(self._stop, process)

    async def _start(self, process: AgentProcess) -> None:
        await self._forget(process.name)  # a `mesh up` that was killed left reports of its agents behind
        if process.name in self._barred():
            process.launch()  # it is ready when it is admitted
        else:
            await process.start()

    async def _start_later(self, process: AgentProcess) -> None:
        try:
            await self._start(process)
        except ConfigError as error:  # its supervisor starts it again
            log.error("agent_not_started", agent=process.name, code=error.code, error=str(error))

    async def _stop(self, process: AgentProcess) -> None:
        await process.stop()
        await self._forget(process.name)

    def _process(self, grants: Grants, name: str) -> AgentProcess:
        log_file, settings = self._data.log / f"{name}.log", self._settings(grants, name)
        ended = partial(self._forget, name)
        return AgentProcess(
            name, self._data.agent(name), log_file=log_file, settings=settings, ready=self._changed, ended=ended
        )

    def _settings(self, grants: Grants, name: str) -> dict[str, str]:
        """What may change between two starts, over an `agent.toml` that was written at the first."""
        agent = grants.agents[name]
        return {
            "MESH_AGENT_NATS_URL": self._nats_url,
            "MESH_AGENT_SPIFFE_ID": agent.spiffe_id,
            "MESH_AGENT_TEAM": agent.team,
            "MESH_AGENT_TEAM_CREDS_FILE": self._team_creds(grants, agent.team),
            **self._tls_settings(name),
        }

    def _team_creds(self, grants: Grants, team: str) -> str:
        """The credentials that an agent reads with: its team's, where the team may read."""
        return str(self._data.team(team) / "nats.creds") if team in grants.teams else ""

    def _tls_settings(self, name: str) -> dict[str, str]:
        if self._tls is None:
            return {}
        files = self._tls.of(self._data.agent(name))
        return {f"MESH_AGENT_NATS_{what.upper()}_FILE": str(path) for what, path in files._asdict().items()}

    # --- `mesh.json` -------------------------------------------------------------------------------------------------

    def _agent_addresses(self) -> dict[str, AgentAddress]:
        return {name: self._agent_address(name, ports) for name, ports in self._ready()}

    def _ready(self) -> list[tuple[str, Ports]]:
        """The agents that have said where they listen."""
        return [(name, p.ports) for name, p in sorted(self.processes.items()) if p.ports is not None]

    def _agent_address(self, name: str, ports: Ports) -> AgentAddress:
        return AgentAddress(
            url=ports.url,
            webhooks_url=ports.webhooks_url,
            health_url=ports.health_url,
            token_file=str(self._data.agent(name) / "token"),
            creds_file=str(self._data.agent(name) / "nats.creds"),
            **self._tls_address(self._data.agent(name)),
        )

    def _tls_address(self, directory: Path) -> dict[str, str]:
        if self._tls is None:
            return {}
        files = self._tls.of(directory)
        return {"tls_cert_file": str(files.cert), "tls_key_file": str(files.key)}
