"""The last recorded events of a tenant, each in the clearest copy there is: what a change of policies is replayed over.

Read by the control plane alone, through a consumer that vanishes; every copy is verified first, and its values are
only asked about by conditions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from mesh import audit
from mesh.control.reader import ANY_VIEW, reading
from mesh.control.trail import last_sequence, stored_trail
from mesh.errors import MeshError
from mesh.jetstream.manage import stream_info
from mesh.policy.model_masks import STRICTNESS
from mesh.policy.replay import Recorded
from mesh.subjects import Pattern, physical_pattern

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.jetstream.connection import Connection
    from mesh.policy.compile import Plans
    from mesh.signing import Received, Verified

_FACTS = {"id": "event", "type": "type", "source": "source"}  # attribute -> what an audit record calls it
SETTLE_S = 5.0  # without another event: the stream lost what it had counted, or stalls


async def recorded(
    connection: Connection,
    plans: Plans,
    verify: Callable[[Received], Awaitable[Verified]],
    *,
    last: int,
    now_ms: int,
    past: Callable[[int], Awaitable[Plans | None]],
) -> tuple[list[Recorded], int]:
    """The last events of each stream, a copy each.

    Args:
        connection: With the control plane's credentials in the tenant's account.
        plans: In force.
        verify: V1 to V9; what fails them is left out.
        last: At most this many events of each stream.
        now_ms: Unix milliseconds.
        past: The plans of an older revision, or None where they cannot be had.

    Returns:
        The copies, and how many others were left out: they do not verify, or nobody knows what their view hid.
    """
    grants = plans.grants(now_ms=now_ms)
    views = max(1, len(plans.tenancy.views))
    found: dict[str, dict[tuple[str, str], Recorded]] = {}
    left_out = 0
    filters, first = {}, {}
    for domain, stream in grants.streams.items():
        state = (await stream_info(connection, stream))["state"]
        if state["messages"]:
            filters[stream] = [physical_pattern(grants.site, ANY_VIEW, Pattern.parse(f"{domain}.>"))]
            first[stream] = max(1, state["first_seq"], state["last_seq"] - last * views + 1)
    agents = {plans.spiffe_id(agent): agent for agent in plans.tenancy.team_of}
    async with reading(connection, filters, new_only=False, first=first) as (stored, events):
        for _ in range(stored):
            with anyio.move_on_after(SETTLE_S):
                received = await events.receive()
                copy = await _copy(received, verify, past, agents)
                if copy is None:
                    left_out += 1
                else:
                    _keep(found.setdefault(received.stream, {}), copy)
                continue
            break
    return [copy for copies in found.values() for copy in list(copies.values())[-last:]], left_out


async def refused(connection: Connection, plans: Plans, *, last: int) -> list[Recorded]:
    """The last events that agents refused to publish, by the audit trail: no copy was made of them.

    Args:
        connection: With the control plane's credentials in the tenant's account.
        plans: In force.
        last: At most this many records are looked through.

    Raises:
        RequestFailed: The server refused.
        Unavailable: Nobody answered.
    """
    newest = await last_sequence(connection)
    found: dict[tuple[str, str], Recorded] = {}
    async for stored in stored_trail(connection, first=max(1, newest - last + 1), last=newest):
        try:
            record = audit.read(stored.line)
        except ValueError:
            continue
        named = {name: record.facts.get(fact) for name, fact in _FACTS.items()}
        if record.kind == audit.DENIED and record.name in plans.tenancy.team_of and all(named.values()):
            fields = {name: str(fact) for name, fact in named.items()}
            found[fields["source"], fields["id"]] = Recorded(fields, "", record.name)
    return list(found.values())[-last:]


async def _copy(
    received: Received,
    verify: Callable[[Received], Awaitable[Verified]],
    past: Callable[[int], Awaitable[Plans | None]],
    agents: dict[str, str],
) -> Recorded | None:
    try:
        verified = await verify(received)
    except MeshError:
        return None
    then = await past(int(verified.fields.get("policyrevision", 0)))
    if then is None or verified.place.view not in then.tenancy.views:
        return None
    return Recorded(verified.fields, verified.place.view, agents.get(str(verified.spiffe_id)), then)


def _keep(copies: dict[tuple[str, str], Recorded], copy: Recorded) -> None:
    """Keep the clearer of this copy and the one of the same event that is here."""
    key = (str(copy.fields["source"]), str(copy.fields["id"]))
    other = copies.get(key)
    if other is None or _clarity(copy) < _clarity(other):
        copies[key] = copy


def _clarity(copy: Recorded) -> tuple[int, int]:
    """How much of an event the view of a copy hides: lower is clearer."""
    if copy.then is None:
        return 0, 0
    tenancy = copy.then.tenancy
    table = tenancy.tables[copy.view]
    if table.all_clear:
        return 0, 0
    tags = {tag for classified in tenancy.classified for tag in classified.tags}
    hidden = sum(STRICTNESS[table.choose([tag], [])[0][0]] for tag in tags)
    return 1 + STRICTNESS[table.otherwise[0]], hidden
