"""One replica of a control plane: it waits for the lead, and serves every tenant for as long as it has it.

    wait     follow the state, so that the data directory is a copy that is seconds old
    lead     take the state, cut off whoever led before, open every tenant, answer
    lost     all that the lead began is cancelled; wait again

Servers and agents are run by others. What agents and teams read is written below the data directory.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from mesh import logs
from mesh.control import readiness
from mesh.control.datadir import DataDirectory, write_private
from mesh.control.given import Given, read_given
from mesh.control.lease import Lease
from mesh.control.lease_connection import LeaderConnection
from mesh.control.lease_cut import cut_off, leader_name
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import SYSTEM, Operator, now_ms
from mesh.control.run_file import write_mesh_file
from mesh.control.run_first import require_new
from mesh.control.run_status import adopt_keys, check_keys
from mesh.control.shared import Leading, Options, Shared
from mesh.control.tenant import Tenant, open_tenant
from mesh.control.trust import Authority, keep_ca
from mesh.control.vault import BUCKET, Vault
from mesh.control.vault_bucket import ensure_bucket
from mesh.control.vault_files import CONTROL_ACCOUNT
from mesh.errors import ConfigError, MeshError, PolicyError, RequestFailed, Unavailable
from mesh.jetstream.connection import Connection
from mesh.jetstream.store import KeyValue
from mesh.jetstream.tls import watch_dates

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anyio.abc import TaskGroup

    from mesh.control.attest import Attestor
    from mesh.control.policies import Policies
    from mesh.control.policy_set import Policies as Live
    from mesh.control.policy_sources import SourceOptions
    from mesh.jetstream.tls import TlsFiles
    from mesh.policy.compile import Plans

AGAIN_S = 1.0  # after a lead that ended with an error of the servers

log = logs.get("control")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """What `mesh control run` was asked for.

    Attributes:
        data: The data directory.
        nats_url: Of the servers, separated by commas; agents are told the same.
        replica: Our name, for people.
        keys: Has the key files of `mesh control init`; None where the data directory has them.
        policies: For the first start of the mesh; None where it has policies.
        site, trust_domain: Of the mesh.
        streams: Replicas of each stream.
        event_gib: How much each domain's stream of events may hold.
        tls: What we show to NATS; None for servers without TLS.
        attestor: Says whose an enrolment token is; None: tokens are files that we write.
        sources: Where policies are kept that whoever leads follows; None where people apply them.
    """

    data: Path
    nats_url: str
    replica: str
    keys: Path | None = None
    policies: Path | None = None
    site: str = "local"
    trust_domain: str = "mesh.local"
    streams: int = 1
    event_gib: int = 1
    tls: TlsFiles | None = None
    attestor: Attestor | None = None
    sources: SourceOptions | None = None


async def run(options: ReplicaOptions, *, said: Callable[[str], None] = lambda _: None) -> None:
    """Be a replica until cancelled.

    Args:
        options: Where, and of which mesh.
        said: Told `waits` and `leads`, each time it becomes so.

    Raises:
        ConfigError: The directory lacks key files, is in use, or something in it is not what it should be.
        PolicyError: The policies of a first start do not load, or their tests fail.
        MeshError: What no replica could put right: see `open_tenant`.
    """
    data = DataDirectory.open(options.data)
    if options.tls is not None:
        watch_dates(options.tls.cert)
    with data.only_one():
        if options.keys is not None:
            adopt_keys(data, options.keys)
        check_keys(data)
        creds = Operator(NkeyFiles(data.keys)).control_creds(CONTROL_ACCOUNT)
        home = await Connection.open(options.nats_url, name="control-home", creds=creds, tls=options.tls, wait=False)
        try:
            await ensure_bucket(home, options.streams)
            await _take_turns(options, data, home, said)
        finally:
            with anyio.CancelScope(shield=True):
                await home.close()


async def _take_turns(
    options: ReplicaOptions, data: DataDirectory, home: Connection, said: Callable[[str], None]
) -> None:
    given = await anyio.to_thread.run_sync(_read_given, options)
    lease = Lease(KeyValue(home, BUCKET), options.replica)
    while True:
        said("waits")
        await lease.acquire(partial(_follow, Vault(home, data), options, data))
        try:
            await Lead(options, data, lease, given, said).run()
        except* (RequestFailed, Unavailable) as errors:
            for error in _leaves(errors):
                log.warning("lead_ended", term=lease.term, code=error.code, error=error.message, next=error.next)
        finally:
            with anyio.CancelScope(shield=True):
                await lease.release()
        await anyio.sleep(AGAIN_S)


async def _follow(copy: Vault, options: ReplicaOptions, data: DataDirectory) -> None:
    try:
        changed = await copy.follow()
    except OSError as error:  # a full disk: a copy that lags is better than none
        log.error("control_state_not_followed", error=error.strerror or type(error).__name__)
        return
    if changed:
        await anyio.to_thread.run_sync(_write_mesh_file, options, data)


def _read_given(options: ReplicaOptions) -> Given:
    """The policies for a first start. A fault in them counts there alone."""
    if options.policies is None:
        return Given()
    author = f"mesh control run, {options.replica}"
    try:
        return read_given(options.data, options.policies, author)
    except PolicyError as error:
        return Given(fault=error, author=author)


def _leaves(errors: BaseExceptionGroup[MeshError]) -> list[MeshError]:
    found: list[MeshError] = []
    for error in errors.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


class Lead:
    """One term of ours.

    Args:
        options: Of the replica.
        data: Its data directory.
        lease: Which we have.
        given: Policies for tenants that have none.
        said: See `run`.
    """

    def __init__(
        self,
        options: ReplicaOptions,
        data: DataDirectory,
        lease: Lease,
        given: Given,
        said: Callable[[str], None],
    ) -> None:
        self._options = options
        self._given = given
        self._data = data
        self._lease = lease
        self._term = lease.term
        self._said = said
        self._stack = AsyncExitStack()
        self._tenants: list[Tenant] = []
        self._open = False  # every tenant is

    async def run(self) -> None:
        """Lead until the lease is lost; raises what ended it, in a group."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._lease.hold)
            try:
                await self._serve()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._stack.aclose()

    async def _serve(self) -> None:
        operator = Operator(NkeyFiles(self._data.keys))
        system = await self.connect("control-system", operator.control_creds(SYSTEM))
        vault = Vault(await self.connect("control-state", operator.control_creds(CONTROL_ACCOUNT)), self._data)
        if not self._data.bundled and await vault.is_first():
            await require_new(system, operator)
        await vault.take(self._term)
        shared = self._shared(operator, system, vault)
        await self._read_cluster()
        names = self._names()
        accounts = [shared.operator.public(name) for name in (SYSTEM, CONTROL_ACCOUNT, *names)]
        await cut_off(shared.system, accounts, self._term)
        for name in names:
            opened = open_tenant(shared, name, names, self._given, lambda _: None)
            self._tenants.append(await self._stack.enter_async_context(opened))
        self._open = True
        await self._write_file()
        await vault.save()
        log.info("leads", replica=self._options.replica, term=self._term, tenants=names)
        self._said("leads")
        async with anyio.create_task_group() as group:
            group.start_soon(keep_ca, shared.authority)
            group.start_soon(vault.run)
            for tenant in self._tenants:
                _start(group, tenant)
            if self._options.sources is not None:
                from mesh.control.policy_sources import Sources

                policies: dict[str, Live] = {tenant.name: tenant.policies for tenant in self._tenants}
                begin = partial(self._begin, group, shared, vault)
                group.start_soon(Sources(self._options.sources, policies, begin).run)

    async def _begin(self, group: TaskGroup, shared: Shared, vault: Vault, name: str, given: Given) -> Policies:
        """Serve one more tenant.

        Raises:
            MeshError: See `open_tenant`.
        """
        names = sorted({*(tenant.name for tenant in self._tenants), name})
        for tenant in self._tenants:  # which of them has the file without a name is another question now
            creds = shared.operator.control_creds(tenant.name)
            write_private(self._data.admin_creds(tenant.name, names), creds)
        await cut_off(shared.system, [shared.operator.public(name)], self._term)
        begun = await self._stack.enter_async_context(open_tenant(shared, name, names, given, lambda _: None))
        self._tenants.append(begun)
        _start(group, begun)
        await self._write_file()
        await vault.save()
        log.info("tenant_begun", tenant=name, term=self._term)
        return begun.policies

    async def connect(self, name: str, creds: bytes) -> Connection:
        """A connection that sends nothing after our term, closed at its end.

        Raises:
            ConfigError, Disconnected: As `Connection.open`.
        """
        connection = await LeaderConnection.lead(
            self._options.nats_url,
            leader_name(name, self._term),
            creds,
            partial(self._lease.guard, self._term),
            tls=self._options.tls,
        )
        self._stack.push_async_callback(connection.close)
        return connection

    def _shared(self, operator: Operator, system: Connection, vault: Vault) -> Shared:
        options = self._options
        authority = Authority(self._data.trust, self._data.admin, trust_domain=options.trust_domain, now_ms=now_ms())
        leading = Leading(
            term=self._term,
            connect=self.connect,
            save=vault.save,
            streams=options.streams,
            event_gib=options.event_gib,
            attestor=options.attestor,
        )
        return Shared(
            self._data,
            operator,
            authority,
            system,
            options.nats_url,
            Options(
                data=self._data.root,
                policies=options.policies or self._data.root,
                site=options.site,
                trust_domain=options.trust_domain,
            ),
            self._write_file,
            leading=leading,
        )

    async def _read_cluster(self) -> None:
        if self._options.sources is not None:
            from mesh.control.policy_first import with_cluster

            self._given = await with_cluster(self._given, self._options.sources, self._data.bundled)

    def _names(self) -> list[str]:
        """The tenants: those that have policies, and those that are given some."""
        names = sorted({*self._data.bundled, *self._given.tenants})
        if not self._data.bundled and self._given.fault is not None:
            raise self._given.fault
        if not names:
            raise ConfigError("this mesh has no policies", expected="policies for its first start", next="--policies")
        return names

    async def _write_file(self) -> None:
        if not self._open:  # whoever reads it finds everything in it ready
            return
        await anyio.to_thread.run_sync(_write_mesh_file, self._options, self._data)


def _write_mesh_file(options: ReplicaOptions, data: DataDirectory) -> None:
    write_mesh_file(data, nats_url=options.nats_url, site=options.site, tls=options.tls)


def _start(group: TaskGroup, tenant: Tenant) -> None:
    group.start_soon(tenant.run)
    group.start_soon(readiness.watch, tenant.name, tenant.connection, partial(_plans, tenant))


def _plans(tenant: Tenant) -> Plans:
    return tenant.policies.plans
