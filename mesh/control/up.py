"""A whole mesh on loopback: the real nats-server, a control plane, one agent process per agent of the policies.

Start order: server, accounts, streams and durables, trust, bundle, agents, `mesh.json`. Drain order is the reverse:
agents finish what they accepted before the server goes. A second start on the same directory goes on with its keys,
events and durables.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import msgspec

from mesh import logs
from mesh.context import AgentAddress, MeshFile, SubscriptionAddress, TeamAddress, TenantAddress
from mesh.control.agents import AgentProcess
from mesh.control.datadir import DataDirectory, write_if_changed, write_private
from mesh.control.nats_server import NatsServer, operator_config
from mesh.control.nkeys import NkeyFiles
from mesh.control.preflight import check_agents
from mesh.control.reconcile import SYSTEM, Operator, Reconciler, now_ms, push_accounts, team_workload
from mesh.control.trust import Authority
from mesh.errors import ConfigError, MeshError
from mesh.jetstream.connection import Connection
from mesh.jetstream.topology import durables
from mesh.policy.bundle import compile_bundles
from mesh.policy.compile import Plans
from mesh.policy.load import load
from mesh.policy_files import read_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from mesh.identity import Signer
    from mesh.policy.grants import Grants

STATEMENT_EVERY_S = 10.0  # design section 6; a statement older than 60 s is stale
WATCH_SERVER_S = 0.5
WEBHOOK_DOMAINS = ("github",)  # an agent that may publish such types gets a webhook source of that name

log = logs.get("up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `mesh up` was asked for."""

    data: Path
    policies: Path
    site: str = "local"
    trust_domain: str = "mesh.local"
    nats_port: int = 0
    base_port: int = 0  # agents take base, base+1, ... three each, in the order of their names; 0: free ports


@dataclass(slots=True)
class _Tenant:
    name: str
    plans: Plans
    grants: Grants
    connection: Connection
    reconciler: Reconciler
    signers: dict[str, Signer]
    agents: dict[str, AgentProcess]


class Running:
    """A mesh that is up."""

    def __init__(self, file: MeshFile, server: NatsServer, tenants: list[_Tenant]) -> None:
        self.file = file
        self.server = server
        self._tenants = tenants

    async def watch(self) -> None:
        """Keep it up until cancelled: reissue trust, restart what ends."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_server)
            for tenant in self._tenants:
                group.start_soon(_reissue, tenant)
                for agent in tenant.agents.values():
                    group.start_soon(agent.supervise)

    async def _keep_server(self) -> None:
        while True:
            await anyio.sleep(WATCH_SERVER_S)
            if not self.server.running:
                log.error("server_ended", port=self.server.port)
                await self.server.restart()
                log.info("server_restarted", port=self.server.port)


async def _reissue(tenant: _Tenant) -> None:
    while True:
        await anyio.sleep(STATEMENT_EVERY_S)
        try:
            await tenant.reconciler.statement()
        except MeshError as error:
            log.warning("trust_statement_failed", tenant=tenant.name, code=error.code, error=str(error))


@asynccontextmanager
async def running(options: Options, *, progress: Callable[[str], None] = lambda _: None) -> AsyncIterator[Running]:
    """A mesh for the length of the block.

    Args:
        options: Where, and from which policies.
        progress: Told each step as it begins.

    Raises:
        PolicyError: The policies do not load; nothing was started.
        ConfigError: The directory is in use or not ours, or a process did not start.
    """
    progress("policies")
    bundles = compile_bundles(
        load(await anyio.to_thread.run_sync(read_directory, options.policies)),
        revision=1,
        site=options.site,
        trust_domain=options.trust_domain,
        created_ms=now_ms(),
    )
    check_agents(bundles, options.trust_domain)
    data = DataDirectory.open(options.data)
    stack = AsyncExitStack()
    try:
        stack.enter_context(_only_one(data))
        data.mesh_file.unlink(missing_ok=True)  # it says "ready"
        operator = Operator(NkeyFiles(data.keys))
        authority = Authority(data.trust, trust_domain=options.trust_domain, now_ms=now_ms())
        progress("nats-server")
        server = await _start_server(data, operator, options.nats_port)
        stack.push_async_callback(server.stop)
        system = await _connect(stack, server, operator.control_creds(SYSTEM), "control-system")
        tenants = []
        names = sorted(bundles)
        for name in names:
            progress(f"tenant {name}")
            creds = operator.control_creds(name)
            write_private(data.admin_creds(name, names), creds)
            plans = Plans(bundles[name])
            grants = plans.grants(now_ms=now_ms())
            await push_accounts(system, operator, name, options.site, grants)
            connection = await _connect(stack, server, creds, "control")
            reconciler = Reconciler(connection, authority)
            signers = _identities(data, authority, grants)
            await reconciler.streams(options.site, grants)
            await reconciler.certificates({signer.kid: signer.certificate for signer in signers.values()})
            await reconciler.statement()
            bundle = await reconciler.bundle(bundles[name])
            tenants.append(_Tenant(name, Plans(bundle), grants, connection, reconciler, signers, {}))
        _policy_key(data)
        ports = iter(range(options.base_port, options.base_port + 10_000)) if options.base_port else None
        for tenant in tenants:
            _write_teams(data, operator, tenant)
            for agent in sorted(tenant.grants.agents):
                _write_agent(data, operator, tenant, agent, options, server.url, ports)
                process = AgentProcess(
                    agent,
                    data.agent(agent),
                    log_file=data.log / f"{agent}.log",
                    nats_url=server.url,
                    spiffe_id=tenant.grants.agents[agent].spiffe_id,
                )
                tenant.agents[agent] = process
                stack.push_async_callback(process.stop)
        progress("agents")
        async with anyio.create_task_group() as group:
            for tenant in tenants:
                for process in tenant.agents.values():
                    group.start_soon(process.start)
        file = _mesh_file(data, options.site, server, tenants)
        write_private(data.mesh_file, msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n")
        progress("ready")
        yield Running(file, server, tenants)
    finally:
        with anyio.CancelScope(shield=True):  # whatever ends the block, everything it started ends before we go on
            await stack.aclose()


@contextmanager
def _only_one(data: DataDirectory) -> Iterator[None]:
    """Hold the directory's lock; the kernel lets go of it when we end, however we end."""
    descriptor = os.open(data.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another mesh runs on {data.root}",
                expected="a directory nobody uses",
                next="stop it, or name another directory with --data",
            ) from None
        yield
    finally:
        os.close(descriptor)


async def _start_server(data: DataDirectory, operator: Operator, port: int) -> NatsServer:
    operator_jwt, system_account, system_jwt = operator.server_identity()
    config = operator_config(
        operator_jwt=operator_jwt,
        system_account=system_account,
        system_jwt=system_jwt,
        resolver_dir=data.nats / "accounts",
        store_dir=data.nats / "store",
    )
    return await NatsServer.start(config, data.nats, port=port)


async def _connect(stack: AsyncExitStack, server: NatsServer, creds: bytes, name: str) -> Connection:
    connection = await Connection.open(server.url, name=name, creds=creds)
    stack.push_async_callback(connection.close)
    return connection


def _identities(data: DataDirectory, authority: Authority, grants: Grants) -> dict[str, Signer]:
    return {
        name: authority.signer(data.agent(name), agent.spiffe_id, now_ms=now_ms())
        for name, agent in grants.agents.items()
    }


def _policy_key(data: DataDirectory) -> None:
    path = data.admin / "policy.key"
    if not path.exists():
        write_private(path, secrets.token_hex(32).encode() + b"\n")


def _write_teams(data: DataDirectory, operator: Operator, tenant: _Tenant) -> None:
    for team in tenant.grants.teams:
        path = data.team(team) / "nats.creds"
        if not path.exists():
            write_private(path, operator.workload_creds(tenant.name, team_workload(team)))


def _write_agent(  # noqa: PLR0917 - one file's worth of facts
    data: DataDirectory,
    operator: Operator,
    tenant: _Tenant,
    agent: str,
    options: Options,
    nats_url: str,
    ports: Iterator[int] | None,
) -> None:
    """Everything an agent reads. `agent.toml` is written once: what its owner changes in it stays."""
    directory = data.agent(agent)
    if not (directory / "nats.creds").exists():
        write_private(directory / "nats.creds", operator.workload_creds(tenant.name, agent))
    data.token(agent)
    data.dedupe_key(agent)
    for domain in tenant.grants.agents[agent].domains:
        write_if_changed(
            directory / "domains" / f"{domain}.key", data.domain_key(tenant.name, domain).hex().encode() + b"\n"
        )
    (directory / "domains").mkdir(mode=0o700, exist_ok=True)
    published = {pattern.domain for pattern in tenant.grants.agents[agent].types}
    webhooks = [domain for domain in WEBHOOK_DOMAINS if domain in published]
    for source in webhooks:
        secret = directory / "webhooks" / f"{source}.secret"
        if not secret.exists():
            write_private(secret, secrets.token_hex(32).encode() + b"\n")
    path = directory / "agent.toml"
    if not path.exists():
        numbers = [next(ports) for _ in range(3)] if ports is not None else [0, 0, 0]
        write_private(path, _agent_toml(tenant, agent, options, nats_url, numbers, webhooks).encode())


def _agent_toml(  # noqa: PLR0917 - the file's lines
    tenant: _Tenant, agent: str, options: Options, nats_url: str, ports: list[int], webhooks: list[str]
) -> str:
    lines = [
        f"# The agent {agent}. Written once by `mesh up`; change what you like. Every setting: `mesh-agent config`.",
        f'name = "{agent}"',
        f'tenant = "{tenant.name}"',
        f'team = "{tenant.grants.agents[agent].team}"',
        f'site = "{options.site}"',
        f'trust_domain = "{options.trust_domain}"',
        f'spiffe_id = "{tenant.grants.agents[agent].spiffe_id}"  # `mesh up` sets MESH_AGENT_SPIFFE_ID, which wins',
        f'nats_url = "{nats_url}"  # `mesh up` sets MESH_AGENT_NATS_URL, which wins',
        f"http_port = {ports[0]}",
        f"webhooks_port = {ports[1]}",
        f"health_port = {ports[2]}",
    ]
    for source in webhooks:
        lines += ["", f"[webhooks.{source}]", f'provider = "{source}"', f'secret_files = ["webhooks/{source}.secret"]']
    return "\n".join([*lines, ""])


def _mesh_file(data: DataDirectory, site: str, server: NatsServer, tenants: list[_Tenant]) -> MeshFile:
    return MeshFile(
        nats_url=server.url,
        data=str(data.root),
        site=site,
        tenants={tenant.name: _tenant_address(data, site, tenant) for tenant in tenants},
    )


def _tenant_address(data: DataDirectory, site: str, tenant: _Tenant) -> TenantAddress:
    agents = {}
    for name, process in tenant.agents.items():
        if process.ports is None:
            raise ConfigError(f"agent {name} has no ports", expected="a running agent", next=f"read log/{name}.log")
        agents[name] = AgentAddress(
            url=process.ports.url,
            webhooks_url=process.ports.webhooks_url,
            health_url=process.ports.health_url,
            token_file=str(data.agent(name) / "token"),
            creds_file=str(data.agent(name) / "nats.creds"),
        )
    teams = {}
    for team in sorted(tenant.grants.teams):
        subscriptions = {}
        for grant in tenant.grants.active:
            if grant.team == team:
                streams = tuple(durable.stream for durable in durables(site, tenant.grants.domains, grant))
                subscriptions[grant.name] = SubscriptionAddress(
                    stream=streams[0],
                    durable=grant.durable,
                    view=grant.view,
                    streams=streams if len(streams) > 1 else (),
                )
        teams[team] = TeamAddress(creds_file=str(data.team(team) / "nats.creds"), subscriptions=subscriptions)
    return TenantAddress(agents=agents, teams=teams)
