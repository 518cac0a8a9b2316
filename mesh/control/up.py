"""A whole mesh on loopback: the real nats-server, a control plane, one agent process per agent of the policies.

Start order: server, then for each tenant accounts, streams and durables, trust, bundle; then agents and `mesh.json`.
Drain order is the reverse: agents finish what they accepted before the server goes. A second start on the same
directory goes on with its keys, events, durables and policies.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio
import msgspec

from mesh import logs
from mesh.context import MeshFile
from mesh.control import readiness
from mesh.control.datadir import DataDirectory, write_if_changed
from mesh.control.given import read_given
from mesh.control.nats_server import NatsServer, ServerTls, operator_config
from mesh.control.nkeys import NkeyFiles
from mesh.control.preflight import check_agents
from mesh.control.reconcile import SYSTEM, Operator, now_ms
from mesh.control.shared import Options, Shared
from mesh.control.store_key import StoreKey
from mesh.control.tenant import Tenant, open_tenant
from mesh.control.tls_files import MeshTls
from mesh.control.trust import Authority, keep_ca
from mesh.errors import ConfigError, Unavailable
from mesh.jetstream.connection import Connection
from mesh.jetstream.manage import read_actual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mesh.jetstream.changes import Actual
    from mesh.policy.compile import Plans

__all__ = ["Options", "Running", "running"]

WATCH_SERVER_S = 0.5
RECONNECT_S = 10.0  # for our own connections after a restart; they take 50 to 100 ms
RETRY_S = 0.05

log = logs.get("up")


class Running:
    """A mesh that is up."""

    def __init__(  # noqa: PLR0917 - each of another type
        self,
        server: NatsServer,
        tenants: list[Tenant],
        data: DataDirectory,
        authority: Authority,
        site: str,
        tls: MeshTls | None,
        store_key: StoreKey | None,
    ) -> None:
        self.server = server
        self._authority = authority
        self._tls = tls
        self._store_key = store_key
        self._tenants = tenants
        self._data = data
        self._site = site
        self._restarting = anyio.Lock()

    @property
    def tenants(self) -> tuple[Tenant, ...]:
        """Those that are up."""
        return tuple(self._tenants)

    @property
    def file(self) -> MeshFile:
        """`mesh.json` as it has to be now."""
        return MeshFile(
            nats_url=self.server.url,
            data=str(self._data.root),
            site=self._site,
            tenants={tenant.name: tenant.address() for tenant in self._tenants},
            tls_ca_file="" if self._tls is None else str(self._tls.ca_file),
        )

    async def watch(self) -> None:
        """Keep it up until cancelled: reissue trust, answer requests, end grants, restart what ends."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_server)
            group.start_soon(keep_ca, self._authority)
            if self._tls is not None:
                group.start_soon(self._tls.run, self.server.reload)
            for tenant in self._tenants:
                group.start_soon(tenant.run)
                group.start_soon(readiness.watch, tenant.name, tenant.connection, partial(_plans, tenant))

    async def write_file(self) -> None:
        """Write `mesh.json`: who reads it finds everything in it ready."""
        content = msgspec.json.format(msgspec.json.encode(self.file), indent=2) + b"\n"
        write_if_changed(self._data.mesh_file, content)

    async def rotate_store_key(self) -> None:
        """Give the server's store another encryption key. The server restarts: everybody is away for a moment.

        Raises:
            ConfigError: The store is not encrypted, does not open with its key, or the server did not start again.
            StreamsMissing: The server lacks streams or durables that it had; nothing was deleted.
        """
        if self._store_key is None:
            raise ConfigError("the store of this mesh is not encrypted", next="start it with `mesh up --encrypt`")
        before = {tenant.name: await read_actual(tenant.connection) for tenant in self._tenants}
        async with self._restarting:
            self.server.environment = {}  # without the variable it does not start: never with half of a key
            await self.server.stop()
            try:
                await anyio.to_thread.run_sync(self._store_key.rotate)
            finally:
                await self._start_server()
        log.info("store_key_rotated")
        for tenant in self._tenants:
            had, has = before[tenant.name], await _read_again(tenant.connection)
            durables = sorted(had.consumers.keys() - has.consumers.keys())
            lost = [*sorted(had.streams.keys() - has.streams.keys()), *("/".join(durable) for durable in durables)]
            readiness.require(tenant.name, lost)

    @asynccontextmanager
    async def server_away(self, *, killed: bool = False) -> AsyncIterator[None]:
        """No server for the length of the block; then the same one again, with its port and its store.

        Args:
            killed: End it as a crash would, not as a stop does.
        """
        async with self._restarting:
            if killed:
                self.server.kill()
            else:
                await self.server.stop()
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await self._start_server()

    async def _start_server(self) -> None:
        if self._store_key is not None:
            self.server.environment = await anyio.to_thread.run_sync(self._store_key.environment)
        await self.server.restart()

    async def _keep_server(self) -> None:
        while True:
            await anyio.sleep(WATCH_SERVER_S)
            async with self._restarting:
                if not self.server.running:
                    log.error("server_ended", port=self.server.port)
                    await self._start_server()
                    log.info("server_restarted", port=self.server.port)


def _plans(tenant: Tenant) -> Plans:
    return tenant.policies.plans


async def _read_again(connection: Connection) -> Actual:
    """What is there once the connection is back after a restart of the server."""
    with anyio.move_on_after(RECONNECT_S):
        while True:
            try:
                return await read_actual(connection)
            except Unavailable:
                await anyio.sleep(RETRY_S)
    return await read_actual(connection)


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
        stack.enter_context(data.only_one())
        data.mesh_file.unlink(missing_ok=True)  # it says "ready"
        operator = Operator(NkeyFiles(data.keys))
        authority = Authority(data.trust, data.admin, trust_domain=options.trust_domain, now_ms=now_ms())
        progress("nats-server")
        tls = _tls(data, authority, options)
        store_key = _store_key(data, options)
        server = await _start_server(data, operator, options.nats_port, tls, store_key)
        stack.push_async_callback(server.stop)
        creds = operator.control_creds(SYSTEM)
        control = None if tls is None else tls.control
        system = await Connection.open(server.url, name="control-system", creds=creds, tls=control)
        stack.push_async_callback(system.close)
        tenants: list[Tenant] = []
        mesh = Running(server, tenants, data, authority, options.site, tls, store_key)
        renew_store = None if store_key is None else mesh.rotate_store_key
        shared = Shared(
            data,
            operator,
            authority,
            system,
            server.url,
            options,
            mesh.write_file,
            tls=tls,
            renew_store=renew_store,
        )
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


def _tls(data: DataDirectory, authority: Authority, options: Options) -> MeshTls | None:
    """What keeps everybody in TLS files; None in a mesh without TLS. The server's own say what the last start had."""
    tls = MeshTls(data, authority, options.trust_domain)
    if not (options.tls or tls.server.cert.exists()):
        return None
    tls.open()
    return tls


def _store_key(data: DataDirectory, options: Options) -> StoreKey | None:
    """The key of an encrypted store; None where it is not, and nobody asked for it."""
    key = StoreKey(data.admin / "store.key", data.nats / "store")
    return key if options.encrypt or key.exists else None


async def _start_server(
    data: DataDirectory, operator: Operator, port: int, tls: MeshTls | None, store_key: StoreKey | None
) -> NatsServer:
    operator_jwt, system_account, system_jwt = operator.server_identity()
    config = operator_config(
        operator_jwt=operator_jwt,
        system_account=system_account,
        system_jwt=system_jwt,
        resolver_dir=data.nats / "accounts",
        store_dir=data.nats / "store",
        tls=None if tls is None else tls.server,
        encrypted=store_key is not None,
    )
    return await NatsServer.start(
        config,
        data.nats,
        port=port,
        tls=None if tls is None else ServerTls(tls.server, tls.control),
        environment={} if store_key is None else await anyio.to_thread.run_sync(store_key.environment),
    )
