"""One tenant put together: who answers what, and what runs while it is up."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from mesh import audit
from mesh.audit_log import AuditLog
from mesh.control import replay_requests, shadow, trust_audit, trust_service, trust_upkeep
from mesh.control.attest import FileAttestor
from mesh.control.bundles import BundleStore
from mesh.control.deadletters_parts import dead_letters
from mesh.control.door import ControlDoor, policy_handlers
from mesh.control.enforce import Enforcer
from mesh.control.enrol import Enrolment
from mesh.control.local import LocalWorkloads
from mesh.control.measures import Measures
from mesh.control.policies import Policies
from mesh.control.proof import Proofs
from mesh.control.reconcile import now_ms
from mesh.control.renewal import Renewal
from mesh.control.replay import Replays
from mesh.control.rollout import forget
from mesh.control.rotation import OVERLAP_S
from mesh.control.trust_audit import TrustAudit
from mesh.control.truststore import TrustStore
from mesh.control.workload_files import WorkloadFiles
from mesh.control.workloads import WrittenWorkloads
from mesh.reports import new_instance

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from mesh.control.accounts import Accounts
    from mesh.control.door import Handler
    from mesh.control.shared import Shared
    from mesh.control.standing import Standing
    from mesh.jetstream.connection import Connection

AUDITED_S = 2.0  # an answer waits no longer for its audit record, which then waits for the stream

Task = Callable[[], Coroutine[Any, Any, None]]


class Parts(TypedDict):
    """What `Tenant` is made of, beside its name and its connection."""

    accounts: Accounts
    store: TrustStore
    enrolment: Enrolment
    policies: Policies
    workloads: WrittenWorkloads
    trail: AuditLog
    tasks: tuple[Task, ...]


def assemble(shared: Shared, name: str, connection: Connection, accounts: Accounts, standing: Standing) -> Parts:
    """A tenant of which nothing runs yet.

    Args:
        shared: What it has in common with the others.
        name: Of the tenant.
        connection: The control plane's, in the tenant account.
        accounts: Of the tenant.
        standing: Who is barred.
    """
    authority = shared.authority
    trail = AuditLog(connection, audit.CONTROL, new_instance())
    files = FileAttestor(shared.data.enrolment(name))
    given = None if shared.leading is None else shared.leading.attestor
    workloads = _workloads(shared, name, connection, files if given is None else None, standing)
    policies = _policies(shared, name, connection, accounts, workloads, trail)
    store = TrustStore(connection, authority, name, shared.data.statement(name), alone=shared.leading is None)
    shared.stores[name] = store
    enrolment = Enrolment(
        connection,
        authority,
        store,
        standing,
        files if given is None else given,
        agents=lambda: policies.grants.agents,
        told=trail.write,
    )
    renewal = Renewal(shared.operator.keys, workloads.files, standing)
    letters = dead_letters(connection, name, shared.data.trust, grants=lambda: policies.grants, told=trail.write)
    replays = Replays(policies, trail.write)
    answers = {
        "dlq": letters.handlers,
        "policy": {**policy_handlers(policies), **shadow.handlers(policies, authority)},
        "replay": replay_requests.handlers(replays),
        "trust": _about_trust(shared, policies, store, standing, accounts, renewal),
    }
    proofs = Proofs(authority.operator_key, name, since_ms=now_ms())
    doors = [ControlDoor(connection, _kept(shared, trail, said), proofs, noun=noun) for noun, said in answers.items()]
    return Parts(
        accounts=accounts,
        store=store,
        enrolment=enrolment,
        policies=policies,
        workloads=workloads,
        trail=trail,
        tasks=(
            accounts.run,
            trail.run,
            policies.run,
            Measures(connection, policies, authority).run,
            *letters.tasks,
            replays.run,
            partial(trust_upkeep.end_users, renewal, accounts),
            *(door.run for door in doors),
        ),
    )


def _kept(shared: Shared, trail: AuditLog, handlers: Mapping[str, Handler]) -> Mapping[str, Handler]:
    """*handlers* that answer, an error too, when what they did is where the next leader and an auditor find it."""
    if shared.leading is None:
        return handlers
    return {verb: partial(_then_save, handler, shared.leading.save, trail) for verb, handler in handlers.items()}


async def _then_save(
    handler: Handler, save: Callable[[], Awaitable[None]], trail: AuditLog, request: dict[str, Any]
) -> dict[str, Any]:
    try:
        return await handler(request)
    finally:
        await save()
        await trail.flush(AUDITED_S)


def _policies(  # noqa: PLR0917 - each of another type
    shared: Shared,
    name: str,
    connection: Connection,
    accounts: Accounts,
    workloads: WrittenWorkloads,
    trail: AuditLog,
) -> Policies:
    options = shared.options
    return Policies(
        name,
        connection=connection,
        enforcer=Enforcer(connection, accounts, site=options.site, sizes=shared.sizes),
        store=BundleStore(connection, shared.authority, shared.data.bundle(name)),
        site=options.site,
        trust_domain=options.trust_domain,
        workloads=workloads,
        audit=trail.write,
    )


def _about_trust(  # noqa: PLR0917 - each of another type
    shared: Shared,
    policies: Policies,
    store: TrustStore,
    standing: Standing,
    accounts: Accounts,
    renewal: Renewal,
) -> dict[str, Handler]:
    """What the door answers about trust."""
    service = trust_service.handlers(
        policies,
        store=store,
        standing=standing,
        accounts=accounts,
        authority=shared.authority,
        renewal=renewal,
        stores=shared.stores.values,
        renew_store=shared.renew_store,
        overlap_s=0.0 if shared.leading is None else OVERLAP_S,  # our own processes read the new file at once
    )
    return {
        **service,
        **trust_audit.handlers(TrustAudit(shared.system, shared.operator, accounts, policies, standing)),
    }


def _workloads(
    shared: Shared, name: str, connection: Connection, attestor: FileAttestor | None, standing: Standing
) -> WrittenWorkloads:
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
    if shared.leading is not None:
        return WrittenWorkloads(
            name,
            shared.data,
            files,
            site=options.site,
            trust_domain=options.trust_domain,
            taken=shared.taken,
            changed=shared.changed,
            save=shared.leading.save,
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
        on_demand=options.on_demand,
    )
