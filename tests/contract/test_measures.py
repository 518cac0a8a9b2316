"""What the control plane measures, against what a real server holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from mesh.control import measures
from mesh.control.measures import Measures
from mesh.deadletters import subject
from mesh.jetstream.connection import Connection
from tests.contract.policy_mesh import NEXT, Instance, PolicyMesh, reads

pytestmark = pytest.mark.anyio

CONTACTS = {"tenant": "acme", "team": "support", "subscription": "contacts"}


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[PolicyMesh]:
    """A tenant with policies in force."""
    async with PolicyMesh.running(tmp_path) as mesh:
        await mesh.apply(reads("masked"))
        yield mesh


def measuring(mesh: PolicyMesh) -> Measures:
    """Of the tenant."""
    return Measures(mesh.control, mesh.policies, mesh.authority)


async def pulled(team: Connection) -> str:
    """Where to ack the next event."""
    came: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    inbox = team.new_inbox()
    listener = team.listen(inbox, lambda _subject, reply, _headers, _data: came.set_result(reply))
    try:
        await team.publish(NEXT, b'{"batch": 1, "expires": 5000000000}', reply=inbox)
        async with asyncio.timeout(60):
            return await came
    finally:
        listener.close()


async def test_how_far_a_subscription_is_behind(mesh: PolicyMesh) -> None:
    """Pending, in hand, delivered again, and the age of the oldest that is not settled; only what it reads counts."""
    measured, began = measuring(mesh), time.time()
    await mesh.store_event("bare", "crm.contact.updated.v1")  # of another view
    for _ in range(3):
        await mesh.store_event("masked", "crm.contact.updated.v1")
    await measured._round()
    assert measures.PENDING.value(**CONTACTS) == 3
    assert measures.OLDEST.value(**CONTACTS) > 0
    team = await mesh.team("support")
    first = await pulled(team)
    await measured._round()
    assert (measures.PENDING.value(**CONTACTS), measures.ACK_PENDING.value(**CONTACTS)) == (2, 1)
    for ack in (first, await pulled(team)):
        await team.request(ack, b"+ACK")
    await measured._round()
    assert (measures.SETTLED.value(**CONTACTS), measures.ACK_PENDING.value(**CONTACTS)) == (2, 0)
    since_s = time.time() - began
    assert 0 < measures.OLDEST.value(**CONTACTS) <= since_s
    assert measures.LAST_ACK.value(**CONTACTS) <= since_s
    await team.request(await pulled(team), b"+ACK")
    await measured._round()
    assert [measures.OLDEST.value(**CONTACTS), measures.LAST_ACK.value(**CONTACTS)] == [0, 0]


async def test_who_does_not_run_what_is_in_force(mesh: PolicyMesh) -> None:
    """An agent that is behind counts, since when too; once it runs the revision nobody is."""
    measured = measuring(mesh)
    adapter = await Instance.start(mesh, "crm-adapter")
    await measured._round()
    behind = {"tenant": "acme", "state": "behind"}
    assert measures.AGENTS.value(**behind) == 1
    await anyio.sleep(0.01)  # an age above 0 is what is asked for
    await measured._round()
    assert measures.APPLY_AGE.value(tenant="acme") > 0
    assert measures.RUNS.value(tenant="acme", kind="agent", name="crm-adapter") == 0
    bundle = mesh.policies.plans.bundle
    adapter.digest = bundle.digest
    await adapter.runs(bundle.revision)
    await measured._round()
    assert (measures.AGENTS.value(**behind), measures.APPLY_AGE.value(tenant="acme")) == (0, 0)
    assert measures.RUNS.value(tenant="acme", kind="agent", name="crm-adapter") == bundle.revision
    assert measures.REVISION.value(tenant="acme") == bundle.revision


async def test_dead_letters_and_streams(mesh: PolicyMesh) -> None:
    """Written and stored letters, how full each stream is; and what is left of it all once somebody else leads."""
    measured = measuring(mesh)
    await mesh.control.request(subject("support", "contacts"), b"{}")
    async with anyio.create_task_group() as group:
        group.start_soon(measured.run)
        with anyio.fail_after(60):
            while measures.STORED.value(**CONTACTS) != 1 or measures.CA_LEFT.value() <= 0:
                await anyio.sleep(0.01)
        with anyio.fail_after(60):
            while not measures.APPLY_AGE._cells:
                await anyio.sleep(0.01)
        assert measures.LETTERS.value(tenant="acme") == 1
        stream = {"tenant": "acme", "stream": "EV_local_crm"}
        assert 0 <= measures.STREAM_BYTES.value(**stream) < measures.STREAM_LIMIT.value(**stream) == 64 << 20
        group.cancel_scope.cancel()
    for metric in (measures.PENDING, measures.STORED, measures.STREAM_BYTES, measures.CA_LEFT, measures.REVISION):
        assert not metric._cells
