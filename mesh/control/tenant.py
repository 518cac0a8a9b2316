"""One tenant of a mesh that is up: its connection, its policies, its door, its agents."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.control import readiness
from mesh.control.accounts import Accounts
from mesh.control.datadir import DataDirectory, write_private
from mesh.control.reconcile import CONTROL, now_ms
from mesh.control.shared import Options, Shared
from mesh.control.standing import Standing
from mesh.control.tenant_parts import Task, assemble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mesh.audit_log import AuditLog
    from mesh.context import TenantAddress
    from mesh.control.enrol import Enrolment
    from mesh.control.given import Given
    from mesh.control.policies import Policies
    from mesh.control.truststore import TrustStore
    from mesh.control.workloads import WrittenWorkloads
    from mesh.jetstream.connection import Connection

__all__ = ["Options", "Shared", "Tenant", "open_tenant"]

FLUSH_S = 2.0  # for the last audit records; a message takes a millisecond

log = logs.get("up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One tenant that is up.

    Attributes:
        tasks: What runs for as long as it is up, each until cancelled.
    """

    name: str
    connection: Connection
    accounts: Accounts
    store: TrustStore
    enrolment: Enrolment
    policies: Policies
    workloads: WrittenWorkloads
    tasks: tuple[Task, ...]
    trail: AuditLog
    served: set[asyncio.Task[None]] = field(default_factory=set)  # see `_trusted`

    def address(self) -> TenantAddress:
        """Its part of `mesh.json`."""
        return self.workloads.address(self.policies.grants)

    async def run(self) -> None:
        """Keep it up until cancelled."""
        async with anyio.create_task_group() as group:
            for task in (*self.tasks, self.workloads.supervise, self._serve):
                group.start_soon(task)

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
    await shared.save()  # before a server knows the tenant's key: the next leader must not make another one
    standing = _standing(shared.data, name)
    accounts = Accounts(shared.system, shared.operator, name, standing, term=shared.term, save=shared.save)
    await accounts.open()
    connection = await shared.connect(CONTROL, creds)
    try:
        await readiness.check(connection, shared.data.bundle(name), shared.authority.policy_public)
        tenant = Tenant(name=name, connection=connection, **assemble(shared, name, connection, accounts, standing))
        bundle = await tenant.policies.open()
        await tenant.store.open()
        if shared.authority.ca.kid in tenant.store.revoked:  # `admin/` from a backup of before `rotate --ca`
            shared.authority.renew_ca(now_ms(), force=True)
        if bundle is not None:
            await _retire_event_keys(tenant)
        async with _trusted(tenant):
            if bundle is None:
                await tenant.policies.apply(given.yaml, given.fixtures, author=given.author, reason="first start")
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
