"""One tenant of a mesh that is up: its connection, its policies, its door, its agents."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import anyio

from mesh import audit, logs
from mesh.audit_log import AuditLog
from mesh.control import readiness, shadow, trust_audit, trust_service
from mesh.control.accounts import Accounts
from mesh.control.attest import FileAttestor
from mesh.control.bundles import BundleStore
from mesh.control.datadir import DataDirectory, write_private
from mesh.control.door import ControlDoor, policy_handlers
from mesh.control.enforce import Enforcer
from mesh.control.enrol import Enrolment
from mesh.control.local import LocalWorkloads
from mesh.control.policies import Policies
from mesh.control.proof import Proofs
from mesh.control.reconcile import CONTROL, now_ms
from mesh.control.renewal import Renewal
from mesh.control.rollout import forget
from mesh.control.shared import Options, Shared
from mesh.control.standing import Standing
from mesh.control.trust_audit import TrustAudit
from mesh.control.truststore import TrustStore
from mesh.control.workload_files import WorkloadFiles
from mesh.jetstream.connection import Connection
from mesh.reports import new_instance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mesh.context import TenantAddress
    from mesh.control.door import Handler
    from mesh.control.given import Given

__all__ = ["Options", "Shared", "Tenant", "open_tenant"]

FLUSH_S = 2.0  # for the last audit records; a message takes a millisecond

log = logs.get("up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One tenant that is up."""

    name: str
    connection: Connection
    accounts: Accounts
    store: TrustStore
    enrolment: Enrolment
    policies: Policies
    workloads: LocalWorkloads
    doors: tuple[ControlDoor, ...]
    trail: AuditLog
    served: set[asyncio.Task[None]] = field(default_factory=set)  # see `_trusted`

    def address(self) -> TenantAddress:
        """Its part of `mesh.json`."""
        return self.workloads.address(self.policies.grants)

    async def run(self) -> None:
        """Keep it up until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.accounts.run)
            group.start_soon(self.trail.run)
            group.start_soon(self.policies.run)
            for door in self.doors:
                group.start_soon(door.run)
            group.start_soon(self.workloads.supervise)
            group.start_soon(self._serve)

    async def _serve(self) -> None:
        """Raise what ends enrolment or the statements: a mesh without them is not up."""
        ended, _ = await asyncio.wait(self.served, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()


@asynccontextmanager
async def open_tenant(
    shared: Shared, name: str, names: list[str], given: Given, progress: Callable[[str], None]
) -> AsyncIterator[Tenant]:
    """A tenant with its policies in force: those that were, else those that were given.

    Agents may enrol for the length of the block, and trust statements go out.

    Raises:
        StreamsMissing: The server has another store than this directory belongs to; nothing was made.
        ConfigError: Who is barred cannot be read, or was lost (see `Standing.begin`).
        ConfigError: The mesh CA is revoked, and the root's key is not there to sign another one.
        MeshError: See `Policies.open`, `TrustStore.open` and `Policies.apply`.
    """
    creds = shared.operator.control_creds(name)
    write_private(shared.data.admin_creds(name, names), creds)
    standing = _standing(shared.data, name)
    accounts = Accounts(shared.system, shared.operator, name, standing)
    await accounts.open()
    tls = None if shared.tls is None else shared.tls.control
    connection = await Connection.open(shared.nats_url, name=CONTROL, creds=creds, tls=tls)
    try:
        await readiness.check(connection, shared.data.bundle(name), shared.authority.policy_public)
        tenant = _assemble(shared, name, connection, accounts, standing)
        bundle = await tenant.policies.open()
        await tenant.store.open()
        if shared.authority.ca.kid in tenant.store.revoked:  # `admin/` from a backup of before `rotate --ca`
            shared.authority.renew_ca(now_ms(), force=True)
        if bundle is not None:
            await _retire_event_keys(tenant)
        async with _trusted(tenant):
            if bundle is None:
                await tenant.policies.apply(given.yaml, given.fixtures, author="mesh up", reason="first start")
            elif given.fault is not None or given.differ_from(bundle):
                _say_other_policies(name, bundle.revision, given, progress)
            yield tenant
        await _flush(tenant.trail)
    finally:
        shared.stores.pop(name, None)
        await connection.close()


def _standing(data: DataDirectory, name: str) -> Standing:
    """Who is barred. A tenant is new before its first trust statement: until then nobody could be."""
    standing = Standing(data.standing(name))
    standing.begin(is_new=not data.statement(name).exists())
    return standing


def _say_other_policies(name: str, revision: int, given: Given, progress: Callable[[str], None]) -> None:
    what = "do not hold" if given.fault is not None else "are not those in force"
    log.warning("policies_differ", tenant=name, revision=revision, what=what)
    progress(
        f"revision {revision} of {name} stays in force; the policies given {what}:"
        f" see `mesh policy diff`, then `mesh policy apply`"
    )


async def _retire_event_keys(tenant: Tenant) -> None:
    """End the event keys of a version that kept them in files: somebody may have copied one.

    Nobody runs that seals with them, and what is stored already was stored before.
    """
    files = tenant.workloads.files
    held = files.event_keys(tenant.policies.grants.agents)
    await tenant.store.revoke(dict.fromkeys(filter(None, held.values()), now_ms()))
    files.delete_event_keys(held)


@asynccontextmanager
async def _trusted(tenant: Tenant) -> AsyncIterator[None]:
    """Agents enrol and statements go out for the length of the block: an agent that starts or drains needs both.

    In tasks of their own and not in a group: whoever holds the block open leaves it inside a scope of its own.
    """
    tenant.served.update(
        (
            asyncio.create_task(tenant.enrolment.run(), name=f"enrolment-{tenant.name}"),
            asyncio.create_task(tenant.store.run(), name=f"trust-{tenant.name}"),
        )
    )
    try:
        yield
    finally:
        for task in tenant.served:
            task.cancel()
        await asyncio.wait(tenant.served)


async def _flush(trail: AuditLog) -> None:
    """Store what was audited last; nothing runs any more that would."""
    if len(trail):
        async with anyio.create_task_group() as group:
            group.start_soon(trail.run)
            await trail.flush(FLUSH_S)
            group.cancel_scope.cancel()


def _assemble(shared: Shared, name: str, connection: Connection, accounts: Accounts, standing: Standing) -> Tenant:
    options, authority = shared.options, shared.authority
    trail = AuditLog(connection, audit.CONTROL, new_instance())
    attestor = FileAttestor(shared.data.enrolment(name))
    workloads = _workloads(shared, name, connection, attestor, standing)
    policies = Policies(
        name,
        connection=connection,
        enforcer=Enforcer(connection, accounts, site=options.site),
        store=BundleStore(connection, authority, shared.data.bundle(name)),
        site=options.site,
        trust_domain=options.trust_domain,
        workloads=workloads,
        audit=trail.write,
    )
    store = TrustStore(connection, authority, name, shared.data.statement(name))
    shared.stores[name] = store
    proofs = Proofs(authority.operator_key, name, since_ms=now_ms())
    about_trust = _about_trust(shared, policies, store, standing, accounts, workloads.files)
    return Tenant(
        name=name,
        connection=connection,
        accounts=accounts,
        store=store,
        enrolment=Enrolment(
            connection,
            authority,
            store,
            standing,
            attestor,
            agents=lambda: policies.grants.agents,
            told=trail.write,
        ),
        policies=policies,
        workloads=workloads,
        doors=(
            ControlDoor(connection, {**policy_handlers(policies), **shadow.handlers(policies, authority)}, proofs),
            ControlDoor(connection, about_trust, proofs, noun="trust"),
        ),
        trail=trail,
    )


def _about_trust(  # noqa: PLR0917 - each of another type
    shared: Shared,
    policies: Policies,
    store: TrustStore,
    standing: Standing,
    accounts: Accounts,
    files: WorkloadFiles,
) -> dict[str, Handler]:
    """What the door answers about trust."""
    service = trust_service.handlers(
        policies,
        store=store,
        standing=standing,
        accounts=accounts,
        authority=shared.authority,
        renewal=Renewal(shared.operator.keys, files, standing),
        stores=shared.stores.values,
        renew_store=shared.renew_store,
    )
    return {
        **service,
        **trust_audit.handlers(TrustAudit(shared.system, shared.operator, accounts, policies, standing)),
    }


def _workloads(
    shared: Shared, name: str, connection: Connection, attestor: FileAttestor, standing: Standing
) -> LocalWorkloads:
    options = shared.options
    files = WorkloadFiles(
        name,
        shared.data,
        shared.operator,
        attestor,
        nats_url=shared.nats_url,
        site=options.site,
        trust_domain=options.trust_domain,
        ports=shared.ports,
        tls=shared.tls,
    )
    return LocalWorkloads(
        name,
        shared.data,
        files,
        nats_url=shared.nats_url,
        site=options.site,
        trust_domain=options.trust_domain,
        barred=lambda: standing.barred,
        tls=shared.tls,
        taken=shared.taken,
        changed=shared.changed,
        forget=partial(forget, connection),
    )
