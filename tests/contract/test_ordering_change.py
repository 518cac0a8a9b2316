"""A subscription that becomes ordered, or is no longer, against the real server: nothing is skipped on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest

from mesh.control.bundles import BundleStore
from mesh.control.enforce import Enforcer
from mesh.errors import Unavailable
from mesh.jetstream import manage
from mesh.jetstream.connection import Connection
from mesh.jetstream.topology import PIN_GROUP
from mesh.subjects import SLOTS, slot_name
from tests.contract.policy_mesh import CRM, DURABLE, SITE, PolicyMesh, reads, take, until

pytestmark = pytest.mark.anyio

CONTACT = "crm.contact.updated.v1"
SLOT_DURABLES = {f"{DURABLE}--{slot_name(slot)}" for slot in range(SLOTS)}
SUBSCRIPTION = """
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: contacts, tenant: acme, team: support}
spec: {types: ["crm.contact.>"], start: all%s}
"""
PLAIN, ORDERED = SUBSCRIPTION % "", SUBSCRIPTION % ", order_by: partitionkey"


class Killed(BaseException):
    """The control plane ends here: nothing is put right."""


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[PolicyMesh]:
    """A tenant without policies."""
    async with PolicyMesh.running(tmp_path) as made:
        yield made


async def durables(mesh: PolicyMesh) -> set[str]:
    """Those in the stream."""
    return {name for stream, name in (await manage.read_actual(mesh.control)).consumers if stream == CRM}


async def store(mesh: PolicyMesh, slot: int, view: str = "masked") -> int:
    """A contact in a slot; its sequence."""
    reply = await mesh.control.request(f"ev.{SITE}.{view}.{slot_name(slot)}.{CONTACT}", b"{}")
    return int(msgspec.json.decode(reply.data)["seq"])


async def take_all(connection: Connection, names: set[str]) -> set[int]:
    """The sequences that some durables deliver, all acked."""
    found: set[int] = set()

    async def one(name: str) -> None:
        for sequence, _, reply in await take(connection, name, group="" if name == DURABLE else PIN_GROUP):
            found.add(sequence)
            await connection.request(reply, b"+ACK")

    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(one, name)
    return found


async def test_slots_begin_behind_what_was_settled_without_a_gap(mesh: PolicyMesh) -> None:
    """What was acked up to the first gap does not come again, all after it does; the durable that was is gone."""
    await mesh.apply(reads("masked"), more=PLAIN)
    for slot in (1, 2, 1, 3, 2):
        await store(mesh, slot)
    support = await mesh.team("support")
    taken = await take(support, DURABLE)
    for sequence, _, reply in taken:
        if sequence in {1, 2, 4}:
            await support.request(reply, b"+ACK")
    await mesh.apply(reads("masked"), more=ORDERED)
    assert await durables(mesh) == SLOT_DURABLES
    last = await store(mesh, 15)
    assert await take_all(support, SLOT_DURABLES) == {3, 4, 5, last}


async def test_one_durable_begins_behind_the_slot_that_lags_most(mesh: PolicyMesh) -> None:
    """No slot's event is skipped when the slots go."""
    await mesh.apply(reads("masked"), more=ORDERED)
    for slot in (1, 2, 1, 2):
        await store(mesh, slot)
    support = await mesh.team("support")
    assert await take_all(support, SLOT_DURABLES - {f"{DURABLE}--s02"}) == {1, 3}
    await mesh.apply(reads("masked"), more=PLAIN)
    assert await durables(mesh) == {DURABLE}
    assert await take_all(support, {DURABLE}) >= {2, 4}


async def test_a_durable_that_began_with_new_events_hands_that_place_on(mesh: PolicyMesh) -> None:
    """Nothing of before comes to the slots, and what came since without being pulled does."""
    await mesh.apply(reads("masked"), more=PLAIN.replace("contacts", "other"))
    before = await store(mesh, 4)
    await mesh.apply(reads("masked"), more=PLAIN.replace("start: all", "start: new"))
    after = await store(mesh, 4)
    await mesh.apply(reads("masked"), more=ORDERED.replace("start: all", "start: new"))
    found = await take_all(await mesh.team("support"), SLOT_DURABLES)
    assert (before in found, after in found) == (False, True)


async def test_what_a_plain_client_left_to_its_last_delivery_holds_no_place_back(mesh: PolicyMesh) -> None:
    """The server gave it up, and it is a dead letter: slots begin behind it. Attempts count for plain clients alone."""
    plain = PLAIN.replace("start: all", "start: all, client: nats, retry: {attempts: 1, ack_wait: 1s}")
    await mesh.apply(reads("masked"), more=plain)
    await store(mesh, 1)
    support = await mesh.team("support")
    await take(support, DURABLE)  # and never acked

    async def given_up() -> bool:
        await take(support, DURABLE)
        info = await manage.consumer_info(mesh.control, CRM, DURABLE)
        assert info["config"]["max_deliver"] == 1
        return not info["num_ack_pending"]

    await until(given_up)
    await store(mesh, 2)
    assert await take_all(support, {DURABLE}) == {2}
    await mesh.apply(reads("masked"), more=PLAIN)
    assert (await manage.consumer_info(mesh.control, CRM, DURABLE))["config"]["max_deliver"] == -1
    await mesh.apply(reads("masked"), more=ORDERED)
    after = await store(mesh, 3)
    assert await take_all(support, SLOT_DURABLES) == {after}


async def test_old_views_drain_through_the_slots(mesh: PolicyMesh) -> None:
    """A view that changes with the order skips nothing that was stored under the old one; then its filters go."""
    await mesh.apply(reads("masked"), more=PLAIN)
    old = await store(mesh, 7)
    await mesh.apply(reads("bare"), more=ORDERED)
    new = await store(mesh, 7, "bare")
    slot = f"{DURABLE}--s07"
    assert await mesh.filters(slot) == {"masked crm.contact.>", "bare crm.contact.>"}
    assert await take_all(await mesh.team("support"), {slot}) == {old, new}
    async with anyio.create_task_group() as group:
        group.start_soon(mesh.policies.run)

        async def narrowed() -> bool:
            return await mesh.filters(slot) == {"bare crm.contact.>"}

        await until(narrowed)
        group.cancel_scope.cancel()


@pytest.mark.parametrize(("step", "fault"), [("extend", Unavailable), ("store", Unavailable), ("store", Killed)])
async def test_an_order_that_does_not_come_about_leaves_the_durable_where_it_was(
    mesh: PolicyMesh, monkeypatch: pytest.MonkeyPatch, step: str, fault: type[BaseException]
) -> None:
    """The old revision stays in force: its durable goes on, and the slots that were made already are gone."""
    await mesh.apply(reads("masked"), more=PLAIN)
    sequence = await store(mesh, 3)
    owner, method = {"extend": (Enforcer, "extend"), "store": (BundleStore, "put")}[step]
    real = getattr(owner, method)

    async def then_fails(*arguments: object) -> None:
        if method != "put":
            await real(*arguments)
        monkeypatch.setattr(owner, method, real)  # once
        assert await durables(mesh) == {DURABLE, *SLOT_DURABLES}
        assert await mesh.paused()
        raise fault("here")

    monkeypatch.setattr(owner, method, then_fails)
    with pytest.raises(fault):
        await mesh.apply(reads("masked"), more=ORDERED)
    if fault is Killed:
        await mesh.control_plane()
    assert await durables(mesh) == {DURABLE}
    assert not await mesh.paused()
    assert await take_all(await mesh.team("support"), {DURABLE}) == {sequence}


async def test_killed_after_the_bundle_the_order_is_completed(
    mesh: PolicyMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new revision is in force: the next control plane removes the durable that the slots took over from."""
    await mesh.apply(reads("masked"), more=PLAIN)
    sequence = await store(mesh, 3)
    real = Enforcer.narrow

    async def killed(*_: object) -> None:
        monkeypatch.setattr(Enforcer, "narrow", real)
        raise Killed

    monkeypatch.setattr(Enforcer, "narrow", killed)
    with pytest.raises(Killed):
        await mesh.apply(reads("masked"), more=ORDERED)
    assert await durables(mesh) == {DURABLE, *SLOT_DURABLES}
    await mesh.control_plane()
    assert await durables(mesh) == SLOT_DURABLES
    assert await take_all(await mesh.team("support"), SLOT_DURABLES) == {sequence}
