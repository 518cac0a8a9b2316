"""The agents and teams of one tenant on one machine: their files below the data directory, and the agents' processes.

Every file is written before the bundle that needs it is handed out: an agent that adopts a revision has the keys it
masks with. `agent.toml` is written once, and what its owner changes in it stays; what a policy can change about an
agent later (its identity, its team) is given to its process instead.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from mesh import logs
from mesh.context import AgentAddress, SubscriptionAddress, TeamAddress, TenantAddress
from mesh.control.agents import AgentProcess, Ports
from mesh.control.datadir import DataDirectory, private_directory, write_if_changed, write_private
from mesh.control.preflight import check_tenant
from mesh.control.reconcile import Operator, Reconciler, now_ms, team_workload
from mesh.errors import ConfigError
from mesh.jetstream.topology import durables

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from mesh.control.trust import Authority
    from mesh.policy.compile import Plans
    from mesh.policy.grants import AgentGrants, Grants

WEBHOOK_DOMAINS = ("github",)  # an agent that may publish such types gets a webhook source of that name

log = logs.get("agents")


class LocalWorkloads:
    """The agents and teams of one tenant of `mesh up`.

    Args:
        tenant: Whose.
        data: The data directory.
        operator: Makes credentials.
        authority: Makes certificates.
        reconciler: Publishes them.
        nats_url, site, trust_domain: What agents are told.
        ports: Where agents listen, one number after the other; None: free ports.
        taken: The agents of all tenants, by name, and whose they are: each has one directory.
        changed: Called when the agents, teams or subscriptions are other ones than before.
        forget: Called with an agent's name whenever none of its processes runs: what they reported counts no more.
    """

    def __init__(
        self,
        tenant: str,
        data: DataDirectory,
        operator: Operator,
        authority: Authority,
        reconciler: Reconciler,
        *,
        nats_url: str,
        site: str,
        trust_domain: str,
        ports: Iterator[int] | None,
        taken: dict[str, str],
        changed: Callable[[], Awaitable[None]],
        forget: Callable[[str], Awaitable[None]],
    ) -> None:
        self.tenant = tenant
        self._data = data
        self._operator = operator
        self._authority = authority
        self._reconciler = reconciler
        self._nats_url = nats_url
        self._site = site
        self._trust_domain = trust_domain
        self._ports = ports
        self._taken = taken
        self._changed = changed
        self._forget = forget
        self._group: anyio.abc.TaskGroup | None = None
        self._lock = anyio.Lock()
        self._written: dict[str, tuple[object, ...]] = {}  # what decided an agent's files when they were written
        self.processes: dict[str, AgentProcess] = {}

    # --- asked by `Policies` -----------------------------------------------------------------------------------------

    def check(self, plans: Plans) -> None:
        """Whether every agent can run here.

        Raises:
            ConfigError: See `check_tenant`.
        """
        check_tenant(self.tenant, plans, self._trust_domain, self._taken)

    async def prepare(self, grants: Grants) -> None:
        """Write the files of everybody, and publish the certificates.

        Raises:
            ConfigError, IdentityError: A file of ours is not what it should be.
            RequestFailed, Unavailable: The certificates cannot be published.
        """
        self._taken.update(dict.fromkeys(grants.agents, self.tenant))
        fresh = {
            name: agent for name, agent in grants.agents.items() if self._written.get(name) != _files(agent, grants)
        }
        signers = [
            self._authority.signer(self._data.agent(name), agent.spiffe_id, now_ms=now_ms())
            for name, agent in fresh.items()
        ]
        await self._reconciler.certificates({signer.kid: signer.certificate for signer in signers})
        for team in grants.teams:
            self._write_team(team, grants)
        for name in sorted(fresh):
            self._write_agent(fresh[name], grants)
            self._written[name] = _files(fresh[name], grants)

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

    def _made(self, grants: Grants) -> list[AgentProcess]:
        """A process for each agent that has none."""
        made = [self._process(grants, name) for name in sorted(grants.agents) if name not in self.processes]
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
        return AgentProcess(name, self._data.agent(name), log_file=log_file, settings=settings, ended=ended)

    def _settings(self, grants: Grants, name: str) -> dict[str, str]:
        """What may change between two starts, over an `agent.toml` that was written at the first."""
        agent = grants.agents[name]
        return {
            "MESH_AGENT_NATS_URL": self._nats_url,
            "MESH_AGENT_SPIFFE_ID": agent.spiffe_id,
            "MESH_AGENT_TEAM": agent.team,
        }

    # --- files -------------------------------------------------------------------------------------------------------

    def _write_team(self, team: str, grants: Grants) -> None:
        directory = self._data.team(team)
        if not (directory / "nats.creds").exists():
            write_private(directory / "nats.creds", self._operator.workload_creds(self.tenant, team_workload(team)))
        for cipher in grants.team_ciphers.get(team, ()):
            key = self._data.cipher_key(self.tenant, cipher)
            write_if_changed(directory / "ciphers" / f"{cipher}.key", key.hex().encode() + b"\n")

    def _write_agent(self, agent: AgentGrants, grants: Grants) -> None:
        """Everything an agent reads."""
        name, directory = agent.agent, self._data.agent(agent.agent)
        if not (directory / "nats.creds").exists():
            write_private(directory / "nats.creds", self._operator.workload_creds(self.tenant, name))
        self._data.token(name)
        self._data.dedupe_key(name)
        private_directory(directory / "domains")
        private_directory(directory / "ciphers")
        for domain in agent.domains:
            key = self._data.domain_key(self.tenant, domain)
            write_if_changed(directory / "domains" / f"{domain}.key", key.hex().encode() + b"\n")
        for cipher in _ciphers(agent, grants):
            key = self._data.cipher_key(self.tenant, cipher)
            write_if_changed(directory / "ciphers" / f"{cipher}.key", key.hex().encode() + b"\n")
        webhooks = _webhooks(agent)
        for source in webhooks:
            secret = directory / "webhooks" / f"{source}.secret"
            if not secret.exists():
                write_private(secret, secrets.token_hex(32).encode() + b"\n")
        path = directory / "agent.toml"
        if not path.exists():
            numbers = [next(self._ports) for _ in range(3)] if self._ports is not None else [0, 0, 0]
            write_private(path, self._agent_toml(agent, numbers, webhooks).encode())

    def _agent_toml(self, agent: AgentGrants, ports: list[int], webhooks: list[str]) -> str:
        lines = [
            f"# The agent {agent.agent}. Written once by `mesh up`; change what you like. Every setting:",
            "# `mesh-agent config`.",
            f'name = "{agent.agent}"',
            f'tenant = "{self.tenant}"',
            f'team = "{agent.team}"  # `mesh up` sets MESH_AGENT_TEAM, which wins',
            f'site = "{self._site}"',
            f'trust_domain = "{self._trust_domain}"',
            f'spiffe_id = "{agent.spiffe_id}"  # `mesh up` sets MESH_AGENT_SPIFFE_ID, which wins',
            f'nats_url = "{self._nats_url}"  # `mesh up` sets MESH_AGENT_NATS_URL, which wins',
            f"http_port = {ports[0]}",
            f"webhooks_port = {ports[1]}",
            f"health_port = {ports[2]}",
        ]
        for name in webhooks:
            lines += ["", f"[webhooks.{name}]", f'provider = "{name}"', f'secret_files = ["webhooks/{name}.secret"]']
        return "\n".join([*lines, ""])

    # --- `mesh.json` -------------------------------------------------------------------------------------------------

    def address(self, grants: Grants) -> TenantAddress:
        """Where the agents listen and what the teams subscribe to."""
        return TenantAddress(
            agents={name: self._agent_address(name, ports) for name, ports in self._ready()},
            teams={team: self._team_address(team, grants) for team in sorted(grants.teams)},
        )

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
        )

    def _team_address(self, team: str, grants: Grants) -> TeamAddress:
        subscriptions = {}
        for grant in grants.active:
            if grant.team == team:
                streams = tuple(durable.stream for durable in durables(self._site, grants.domains, grant))
                subscriptions[grant.name] = SubscriptionAddress(
                    stream=streams[0],
                    durable=grant.durable,
                    view=grant.view,
                    streams=streams if len(streams) > 1 else (),
                )
        return TeamAddress(creds_file=str(self._data.team(team) / "nats.creds"), subscriptions=subscriptions)


def _ciphers(agent: AgentGrants, grants: Grants) -> list[str]:
    """The cipher keys of an agent: those it encrypts with, and those its team may open values with."""
    return sorted({*agent.ciphers, *grants.team_ciphers.get(agent.team, ())})


def _webhooks(agent: AgentGrants) -> list[str]:
    published = {pattern.domain for pattern in agent.types}
    return [domain for domain in WEBHOOK_DOMAINS if domain in published]


def _files(agent: AgentGrants, grants: Grants) -> tuple[object, ...]:
    """What decides an agent's files; most changes of policies leave it as it is."""
    return agent.spiffe_id, agent.team, agent.domains, _ciphers(agent, grants), _webhooks(agent)
