"""What the mesh knows of one subscription: whether it is settled, what was buried, why something did not come.

Runs on the mesh's own loop, with the control plane's connection.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import anyio

from mesh import audit, deadletters
from mesh.control import stored_messages
from mesh.control.deadletters import Filter, letters
from mesh.control.local import LocalWorkloads
from mesh.errors import AmbiguousView, ConfigError, MeshError, RequestFailed, Unavailable
from mesh.jetstream.manage import api, consumer_info, stream_info
from mesh.jetstream.topology import durables
from mesh.policy.trial import Answer, ask_delivery
from mesh.subjects import Pattern
from mesh.testing.told import Facts, Refusal, Sent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mesh.control.deadletters import Letter
    from mesh.control.tenant import Tenant
    from mesh.inbound import Admitted
    from mesh.jetstream.connection import Connection
    from mesh.policy.grants import Grants, SubscriptionGrant

EVENTS = "EV_"  # what the names of event streams begin with
NO_MESSAGE = 10037  # err_code: nothing stored on that subject
POLL_S = 0.02


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def pattern(text: str) -> Pattern:
    """What `type=` means. Raises BadPattern."""
    return Pattern.parse(text)


def fits(types: Pattern, where: Callable[[Admitted], bool], event: Admitted) -> bool:
    """Whether it is one of those that are meant."""
    return types.matches(event.type) and where(event)


async def back(tenant: Tenant, timeout_s: float) -> None:
    """Return once the server answers.

    Raises:
        Unavailable: It did not in time.
    """
    with anyio.move_on_after(timeout_s):
        while True:
            try:
                await stream_info(tenant.connection, audit.STREAM)
            except Unavailable:
                await anyio.sleep(POLL_S)
            else:
                return
    await stream_info(tenant.connection, audit.STREAM)


async def empty(tenant: Tenant) -> int:
    """Delete every stored event and dead letter; returns how far the audit trail has come."""
    for info in (await api(tenant.connection, "STREAM.LIST"))["streams"]:
        name = info["config"]["name"]
        if (name.startswith(EVENTS) or name == deadletters.STREAM) and info["state"]["messages"]:
            await api(tenant.connection, f"STREAM.PURGE.{name}")
    return await stored_messages.last_sequence(tenant.connection, audit.STREAM)


async def settled(tenant: Tenant, team: str, subscription: str) -> bool:
    """Whether all that is stored for the subscription was delivered and settled; not while nobody can say so."""
    try:
        return await _settled(tenant, team, subscription)
    except Unavailable:
        return False


async def _settled(tenant: Tenant, team: str, subscription: str) -> bool:
    grants = tenant.policies.plans.grants(now_ms=now_ms())
    for durable in durables(grants.site, grants.domains, _grant(grants, team, subscription)):
        info = await consumer_info(tenant.connection, durable.stream, durable.name)
        if info["num_pending"] or info["num_ack_pending"]:
            return False
        # the server counts what is pending a moment after it acknowledged a message, but it knows its last one
        last = max([await _last(tenant.connection, durable.stream, subject) for subject in durable.filters], default=0)
        if info["delivered"]["stream_seq"] < last:
            return False
    return True


async def buried(tenant: Tenant, team: str, subscription: str) -> list[Letter]:
    """The dead letters of a subscription, oldest first."""
    last = await stored_messages.last_sequence(tenant.connection, deadletters.STREAM)
    chosen = Filter(team=team, subscription=subscription)
    found = letters(tenant.connection, chosen, after=0, last=last)
    return [letter async for letter in found if letter.matches(chosen)]


async def facts(  # noqa: PLR0917 - each of another type
    tenant: Tenant,
    team: str,
    subscription: str,
    came: Sequence[Admitted],
    sent: Sequence[Mapping[str, Any]],
    audited: int,
) -> Facts:
    """Everything that may explain why an event did not come."""
    grants = tenant.policies.plans.grants(now_ms=now_ms())
    grant = grants.subscriptions.get((team, subscription))
    return Facts(
        grant=grant,
        came=tuple(came),
        letters=await buried(tenant, team, subscription),
        sent=[_asked(tenant, team, grant, fields) for fields in sent],
        refused=await _refused(tenant.connection, audited),
        held=0 if grant is None or not grant.active else await _held(tenant.connection, grants, grant),
    )


async def kill_agent(tenant: Tenant, name: str, timeout_s: float) -> None:
    """SIGKILL; returns once its successor is ready.

    Raises:
        ConfigError: It does not run, or nobody took its place in time.
    """
    workloads = tenant.workloads
    process = workloads.processes.get(name) if isinstance(workloads, LocalWorkloads) else None
    if process is None or process.ports is None:
        raise ConfigError(f"agent {name} does not run", expected="one that was published through, or started")
    before = process.ports.pid
    os.kill(before, signal.SIGKILL)
    with anyio.move_on_after(timeout_s):
        while process.ports is None or process.ports.pid == before:  # noqa: ASYNC110 - a process says nothing
            await anyio.sleep(POLL_S)
        return
    raise ConfigError(f"agent {name} was not back within {timeout_s:g} s", next="read its log")


def _grant(grants: Grants, team: str, subscription: str) -> SubscriptionGrant:
    grant = grants.subscriptions.get((team, subscription))
    if grant is None or not grant.active:
        raise ConfigError(
            f"{team} has no active subscription {subscription}",
            expected=f"one of {', '.join('/'.join(key) for key in sorted(grants.subscriptions)) or 'none'}",
            got="" if grant is None else grant.reason,
        )
    return grant


async def _last(connection: Connection, stream: str, subject: str) -> int:
    try:
        return int((await api(connection, f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}))["message"]["seq"])
    except RequestFailed as error:
        if error.details.get("err_code") == NO_MESSAGE:
            return 0
        raise


async def _held(connection: Connection, grants: Grants, grant: SubscriptionGrant) -> int:
    names = durables(grants.site, grants.domains, grant)
    return sum([(await consumer_info(connection, d.stream, d.name))["num_ack_pending"] for d in names])


def _asked(tenant: Tenant, team: str, grant: SubscriptionGrant | None, fields: Mapping[str, Any]) -> Sent:
    """An event that was sent, and what policy says of *team*."""
    about = str(fields["type"]), str(fields["id"]), str(fields["source"])
    try:
        view = grant.view or None if grant is not None else None
        answer: Answer | None = ask_delivery(tenant.policies.plans, team, about[0], fields, view=view, now_ms=now_ms())
    except (AmbiguousView, MeshError):
        answer = None  # an event that no door took, or several views and no subscription that says which
    covered = grant is None or any(one.matches(about[0]) for one in grant.filters)
    return Sent(*about, answer, covered)


async def _refused(connection: Connection, after: int) -> list[Refusal]:
    found = []
    async for message in stored_messages.stored(connection, audit.STREAM, first=after + 1):
        for line in audit.lines(message.body):
            record = audit.read(line)
            if record.kind == audit.DENIED:
                said = {name: str(record.facts.get(name) or "") for name in ("principal", "type", "source", "reason")}
                agent = said["principal"].rpartition("/")[2]
                rule, count = str(record.facts.get("rule") or ""), int(record.facts.get("count", 1))
                found.append(Refusal(agent, said["type"], said["source"], said["reason"], rule, count))
    return found
