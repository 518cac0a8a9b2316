"""One tenant of a mesh that is up: its connection, its policies, its door, its agents."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio

from mesh import audit, logs
from mesh.audit_log import AuditLog
from mesh.control import shadow
from mesh.control.accounts import Accounts
from mesh.control.bundles import BundleStore
from mesh.control.datadir import DataDirectory, write_private
from mesh.control.door import ControlDoor, policy_handlers
from mesh.control.enforce import Enforcer
from mesh.control.local import LocalWorkloads
from mesh.control.policies import Policies
from mesh.control.reconcile import CONTROL, Operator, Reconciler
from mesh.control.rollout import forget
from mesh.errors import MeshError
from mesh.jetstream.connection import Connection
from mesh.reports import new_instance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from mesh.context import TenantAddress
    from mesh.control.given import Given
    from mesh.control.trust import Authority

FLUSH_S = 2.0  # for the last audit records; a message takes a millisecond
STATEMENT_EVERY_S = 10.0  # design section 6; a statement older than 60 s is stale

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


class Shared:
    """What the tenants of one mesh have in common.

    Args:
        data: The data directory.
        operator, authority: Sign accounts, and certificates and bundles.
        system: A connection of the system account.
        nats_url: Of the server.
        options: What was asked for.
        changed: Called when agents, teams or subscriptions are other ones than before.
    """

    def __init__(  # noqa: PLR0917 - each of another type
        self,
        data: DataDirectory,
        operator: Operator,
        authority: Authority,
        system: Connection,
        nats_url: str,
        options: Options,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self.data = data
        self.operator = operator
        self.authority = authority
        self.system = system
        self.nats_url = nats_url
        self.options = options
        self.changed = changed
        self.taken: dict[str, str] = {}
        base = options.base_port
        self.ports: Iterator[int] | None = iter(range(base, base + 10_000)) if base else None


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant that is up."""

    name: str
    connection: Connection
    reconciler: Reconciler
    policies: Policies
    workloads: LocalWorkloads
    door: ControlDoor
    trail: AuditLog

    def address(self) -> TenantAddress:
        """Its part of `mesh.json`."""
        return self.workloads.address(self.policies.grants)

    async def run(self) -> None:
        """Keep it up until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._reissue)
            group.start_soon(self.trail.run)
            group.start_soon(self.policies.run)
            group.start_soon(self.door.run)
            group.start_soon(self.workloads.supervise)

    async def _reissue(self) -> None:
        while True:
            await anyio.sleep(STATEMENT_EVERY_S)
            try:
                await self.reconciler.statement()
            except MeshError as error:
                log.warning("trust_statement_failed", tenant=self.name, code=error.code, error=str(error))


@asynccontextmanager
async def open_tenant(
    shared: Shared, name: str, names: list[str], given: Given, progress: Callable[[str], None]
) -> AsyncIterator[Tenant]:
    """A tenant with its policies in force: those that were, else those that were given.

    Raises:
        MeshError: See `Policies.open` and `Policies.apply`.
    """
    creds = shared.operator.control_creds(name)
    write_private(shared.data.admin_creds(name, names), creds)
    accounts = Accounts(shared.system, shared.operator, name)
    await accounts.open()
    connection = await Connection.open(shared.nats_url, name=CONTROL, creds=creds)
    try:
        tenant = _assemble(shared, name, connection, accounts)
        bundle = await tenant.policies.open()
        await tenant.reconciler.statement()
        if bundle is None:
            await tenant.policies.apply(given.yaml, given.fixtures, author="mesh up", reason="first start")
        elif given.fault is not None or given.differ_from(bundle):
            what = "do not hold" if given.fault is not None else "are not those in force"
            log.warning("policies_differ", tenant=name, revision=bundle.revision, what=what)
            progress(
                f"revision {bundle.revision} of {name} stays in force; the policies given {what}:"
                f" see `mesh policy diff`, then `mesh policy apply`"
            )
        yield tenant
        await _flush(tenant.trail)
    finally:
        await connection.close()


async def _flush(trail: AuditLog) -> None:
    """Store what was audited last; nothing runs any more that would."""
    if len(trail):
        async with anyio.create_task_group() as group:
            group.start_soon(trail.run)
            await trail.flush(FLUSH_S)
            group.cancel_scope.cancel()


def _assemble(shared: Shared, name: str, connection: Connection, accounts: Accounts) -> Tenant:
    options = shared.options
    reconciler = Reconciler(connection, shared.authority)
    workloads = LocalWorkloads(
        name,
        shared.data,
        shared.operator,
        shared.authority,
        reconciler,
        nats_url=shared.nats_url,
        site=options.site,
        trust_domain=options.trust_domain,
        ports=shared.ports,
        taken=shared.taken,
        changed=shared.changed,
        forget=partial(forget, connection),
    )
    trail = AuditLog(connection, audit.CONTROL, new_instance())
    policies = Policies(
        name,
        connection=connection,
        enforcer=Enforcer(connection, accounts, site=options.site),
        store=BundleStore(connection, shared.authority, shared.data.bundle(name)),
        site=options.site,
        trust_domain=options.trust_domain,
        workloads=workloads,
        audit=trail.write,
    )
    handlers = {**policy_handlers(policies), **shadow.handlers(policies, shared.authority)}
    return Tenant(name, connection, reconciler, policies, workloads, ControlDoor(connection, handlers), trail)
