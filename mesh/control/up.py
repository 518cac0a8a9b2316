"""A whole mesh on loopback: the real nats-server, a control plane, one agent process per agent of the policies.

Start order: server, then for each tenant accounts, streams and durables, trust, bundle; then agents and `mesh.json`.
Drain order is the reverse: agents finish what they accepted before the server goes. A second start on the same
directory goes on with its keys, events, durables and policies.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import anyio
import msgspec

from mesh import logs
from mesh.context import MeshFile
from mesh.control.datadir import DataDirectory, write_if_changed
from mesh.control.given import read_given
from mesh.control.nats_server import NatsServer, operator_config
from mesh.control.nkeys import NkeyFiles
from mesh.control.preflight import check_agents
from mesh.control.reconcile import SYSTEM, Operator, now_ms
from mesh.control.tenant import Options, Shared, Tenant, open_tenant
from mesh.control.trust import Authority
from mesh.errors import ConfigError
from mesh.jetstream.connection import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["Options", "Running", "running"]

WATCH_SERVER_S = 0.5

log = logs.get("up")


class Running:
    """A mesh that is up."""

    def __init__(self, server: NatsServer, tenants: list[Tenant], data: DataDirectory, site: str) -> None:
        self.server = server
        self._tenants = tenants
        self._data = data
        self._site = site

    @property
    def file(self) -> MeshFile:
        """`mesh.json` as it has to be now."""
        return MeshFile(
            nats_url=self.server.url,
            data=str(self._data.root),
            site=self._site,
            tenants={tenant.name: tenant.address() for tenant in self._tenants},
        )

    async def watch(self) -> None:
        """Keep it up until cancelled: reissue trust, answer requests, end grants, restart what ends."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_server)
            for tenant in self._tenants:
                group.start_soon(tenant.run)

    async def write_file(self) -> None:
        """Write `mesh.json`: who reads it finds everything in it ready."""
        content = msgspec.json.format(msgspec.json.encode(self.file), indent=2) + b"\n"
        write_if_changed(self._data.mesh_file, content)

    async def _keep_server(self) -> None:
        while True:
            await anyio.sleep(WATCH_SERVER_S)
            if not self.server.running:
                log.error("server_ended", port=self.server.port)
                await self.server.restart()
                log.info("server_restarted", port=self.server.port)


@asynccontextmanager
async def running(options: Options, *, progress: Callable[[str], None] = lambda _: None) -> AsyncIterator[Running]:
    """A mesh for the length of the block.

    Policies that are in force already stay in force: those in the directory are for the first start, and for
    `mesh policy apply`.

    Args:
        options: Where, and from which policies.
        progress: Told each step as it begins.

    Raises:
        PolicyError: The policies of a first start do not load, or their tests fail; nothing was started.
        ConfigError: The directory is in use or not ours, or a process did not start.
    """
    progress("policies")
    given = await anyio.to_thread.run_sync(read_given, options.data, options.policies)
    check_agents(given.bundles(options.site, options.trust_domain), options.trust_domain)
    data = DataDirectory.open(options.data)
    stack = AsyncExitStack()
    try:
        stack.enter_context(_only_one(data))
        data.mesh_file.unlink(missing_ok=True)  # it says "ready"
        operator = Operator(NkeyFiles(data.keys))
        authority = Authority(data.trust, data.policy_key, trust_domain=options.trust_domain, now_ms=now_ms())
        progress("nats-server")
        server = await _start_server(data, operator, options.nats_port)
        stack.push_async_callback(server.stop)
        system = await Connection.open(server.url, name="control-system", creds=operator.control_creds(SYSTEM))
        stack.push_async_callback(system.close)
        tenants: list[Tenant] = []
        mesh = Running(server, tenants, data, options.site)
        shared = Shared(data, operator, authority, system, server.url, options, mesh.write_file)
        names = sorted({*data.bundled, *given.tenants})
        for name in names:
            progress(f"tenant {name}")
            tenants.append(await stack.enter_async_context(open_tenant(shared, name, names, given, progress)))
        progress("agents")
        async with anyio.create_task_group() as group:
            for tenant in tenants:
                stack.push_async_callback(tenant.workloads.stop)
                group.start_soon(tenant.workloads.start, tenant.policies.grants)
        await mesh.write_file()
        progress("ready")
        yield mesh
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
