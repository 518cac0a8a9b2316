"""The kit that a user's tests start from: a real mesh, what it says when an event does not come, faults on request."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import msgspec
import pytest

import mesh
from mesh.errors import ConfigError
from mesh.inbound import Admitted
from mesh.testing import LocalMesh, MeshHost, Unmet, kit
from mesh.testing import local_mesh as started

pytest_plugins = ["mesh.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]  # the first test starts a mesh on a busy machine

TYPE = "crm.contact.updated.v1"
SOURCE = "/salesforce/eu"
ADDRESS = "anna.schmidt@example.com"
CONTACT = {"contact": {"id": "4711", "name": "Anna Schmidt", "email": ADDRESS}, "country": "DE"}


@mesh.event_type(TYPE)
class ContactUpdated(msgspec.Struct):
    """As support may see it: the address is hidden in part, and the rest is as it was."""

    contact: dict[str, str]
    country: str


async def test_what_an_agent_publishes_its_team_gets_in_its_view(local_mesh: LocalMesh) -> None:
    """The whole way: decided, masked, signed, stored, pulled, verified."""
    receipt = await local_mesh.publish(ContactUpdated(**CONTACT), source=SOURCE)  # type: ignore[arg-type]
    (event,) = await local_mesh.expect("support", "contacts", type=TYPE, where=lambda e: e.id == receipt.id)
    assert (event.view, event.rule) == ("service", "support-reads-crm")
    assert event.data["contact"]["email"] == "a***@***.com"


async def test_what_does_not_fit_waits_for_the_next_expectation(local_mesh: LocalMesh) -> None:
    """So the order of two expectations does not matter."""
    for type_ in ("crm.contact.created.v1", TYPE):
        await local_mesh.publish(type_, CONTACT, source=SOURCE)
    (later,) = await local_mesh.expect("support", "contacts", type=TYPE)
    (earlier,) = await local_mesh.expect("support", "contacts")
    assert (earlier.type, later.type) == ("crm.contact.created.v1", TYPE)


async def test_a_test_without_a_loop_calls_the_same(local_mesh: LocalMesh) -> None:
    """Through `call`, from a thread that has no event loop."""

    def plain() -> list[Admitted]:
        local_mesh.call(local_mesh.publish, TYPE, CONTACT, source=SOURCE)
        return local_mesh.call(local_mesh.expect, "support", "contacts")

    assert len(await anyio.to_thread.run_sync(plain)) == 1


# --- what it says ----------------------------------------------------------------------------------------------------


async def test_a_failure_says_what_came_and_what_policy_says(local_mesh: LocalMesh) -> None:
    """The subscription, other events, dead letters, refusals, and each published event by the policies; no value."""

    async def reject(event: Admitted) -> None:
        raise mesh.Reject("unknown country")

    await local_mesh.publish(TYPE, CONTACT, source=SOURCE, id="kit-buried")
    await local_mesh.run("support", "contacts", reject)
    await local_mesh.publish("crm.contact.created.v1", CONTACT, source=SOURCE, id="kit-came")
    await local_mesh.publish("crm.deal.won.v1", {"deal": {"id": "d-1"}}, source=SOURCE, id="kit-deal")
    with pytest.raises(mesh.PublishFailed):
        await local_mesh.publish("hr.salary.raised.v1", {}, source="/hr/x", agent="crm-adapter")
    await local_mesh.nothing("support", "contacts", type=TYPE)  # so the other has come
    await until_told(local_mesh, "hr.salary.raised.v1 from /hr/x at crm-adapter")
    with pytest.raises(Unmet) as unmet:
        await local_mesh.expect("support", "contacts", type=TYPE, count=2, timeout_s=0.5)
    message = str(unmet.value)
    for line in (
        "expected 2 events of crm.contact.updated.v1 for support/contacts within 0.5 s, 0 came",
        "support/contacts reads crm.contact.> in view service",
        "crm.contact.created.v1 kit-came from /salesforce/eu, attempt 1",
        "crm.contact.updated.v1 kit-buried: unknown country after 1 attempts, Reject",
        "hr.salary.raised.v1 from /hr/x at crm-adapter: no-allow-matched",
        "kit-came from /salesforce/eu: the team may read it by support-reads-crm, in view service",
        "crm.deal.won.v1 kit-deal from /salesforce/eu: not of the subscription's types",
    ):
        assert line in message, message
    assert ADDRESS not in message
    assert "Schmidt" not in message


async def until_told(local_mesh: LocalMesh, what: str) -> None:
    """Wait until an explanation has it: an agent's audit records are sent behind."""
    with anyio.fail_after(60):
        while what not in await local_mesh.explain("support", "contacts"):
            await anyio.sleep(0.05)


async def test_a_subscription_that_is_not_there_is_told_at_once(local_mesh: LocalMesh) -> None:
    """Not after a deadline."""
    with pytest.raises(Unmet, match="the policies have no such subscription"):
        await local_mesh.expect("support", "invoices", timeout_s=60)


async def test_nothing_is_proven_and_not_waited_for(local_mesh: LocalMesh) -> None:
    """All that is stored was pulled and looked at; an event that came after all fails it."""
    await local_mesh.publish(TYPE, CONTACT, source=SOURCE)
    await local_mesh.nothing("support", "contacts", type="crm.contact.created")
    with pytest.raises(Unmet, match=r"expected no event of crm\.contact\.updated .*, 1 came"):
        await local_mesh.nothing("support", "contacts", type="crm.contact.updated")


async def test_nothing_is_not_said_of_what_another_has(local_mesh: LocalMesh) -> None:
    """Somebody holds an event of it: nobody can say that it does not come."""
    await local_mesh.publish(TYPE, CONTACT, source=SOURCE)
    async with local_mesh.connect(team="support") as m, m.subscription("contacts") as other:
        await other.next()
        with pytest.raises(Unmet, match="1 events that another consumer has"):
            await local_mesh.nothing("support", "contacts", timeout_s=0.5)


async def test_no_agent_may_publish_it(local_mesh: LocalMesh) -> None:
    """Said before anything is started."""
    with pytest.raises(ConfigError, match=r"no agent may publish hr\.salary\.raised\.v1 from /hr/x"):
        await local_mesh.publish("hr.salary.raised.v1", {}, source="/hr/x")


# --- handlers --------------------------------------------------------------------------------------------------------


async def test_run_ends_when_everything_is_settled(local_mesh: LocalMesh) -> None:
    """A handler that fails gets its event again at once, whatever its backoff; `Ran` tells both."""
    for _ in range(3):
        await local_mesh.publish(TYPE, CONTACT, source=SOURCE)
    seen: list[str] = []

    async def flaky(data: ContactUpdated, event: Admitted) -> None:
        seen.append(event.id)
        if len(seen) < 3:
            raise OSError

    ran = await local_mesh.run("support", "contacts", flaky)
    assert len(ran.handled) == 3
    assert [type(error) for _, error in ran.failed] == [OSError, OSError]
    assert await local_mesh.dead_letters("support", "contacts") == []


async def test_run_says_so_when_it_is_not_settled_in_time(
    local_mesh: LocalMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that asks for a minute does not hold a test for it."""
    await local_mesh.publish(TYPE, CONTACT, source=SOURCE)
    asked, polled = anyio.Event(), kit._polled

    async def later(event: Admitted) -> None:
        asked.set()
        raise mesh.RetryLater(60)

    async def once_it_was_asked(enough: Callable[[], Awaitable[bool]], timeout_s: float) -> bool:
        with anyio.fail_after(60):
            await asked.wait()
        return await polled(enough, timeout_s)

    monkeypatch.setattr(kit, "_polled", once_it_was_asked)
    says = r"was not settled within 0\.5 s; it is running, its handler had 0 events and failed 1"
    with pytest.raises(Unmet, match=says):
        await local_mesh.run("support", "contacts", later, timeout_s=0.5)


async def test_data_that_does_not_fit_is_a_dead_letter_without_its_value(local_mesh: LocalMesh) -> None:
    """Its reason says where; the handler is not called."""
    await local_mesh.publish(TYPE, {"contact": {"id": "4711"}, "country": ["DE"]}, source=SOURCE)
    handlers = mesh.Handlers()

    @handlers.on(ContactUpdated)
    def never(data: ContactUpdated) -> None:
        pytest.fail("handled")

    ran = await local_mesh.run("support", "contacts", handlers)
    (letter,) = await local_mesh.dead_letters("support", "contacts", count=1)
    assert ran.handled == []
    assert letter.reason == "data-mismatch at $.country: Expected `str`, got `null`"  # a view hid it
    with pytest.raises(Unmet, match=r"expected 2 dead letters of support/contacts within 0\.2 s, found 1"):
        await local_mesh.dead_letters("support", "contacts", count=2, timeout_s=0.2)


# --- one mesh for many tests -----------------------------------------------------------------------------------------


async def test_each_test_begins_with_nothing(local_mesh: LocalMesh) -> None:
    """What an earlier one left is gone: events, those that wait for a retry, and dead letters."""

    async def reject(event: Admitted) -> None:
        raise mesh.Reject

    await local_mesh.publish(TYPE, CONTACT, source=SOURCE)
    await local_mesh.run("support", "contacts", reject)
    await local_mesh.publish(TYPE, CONTACT, source=SOURCE)
    async with local_mesh.connect(team="support") as m, m.subscription("contacts") as left:
        (await left.next()).retry(3600)
    await local_mesh.reset()
    await local_mesh.nothing("support", "contacts")
    assert await local_mesh.dead_letters("support", "contacts") == []
    assert "nothing, as far as the kit knows" in await local_mesh.explain("support", "contacts")


async def test_an_id_of_an_earlier_test_is_refused_with_words(mesh_host: MeshHost, local_mesh: LocalMesh) -> None:
    """The mesh would store it once, and the test would wait for nothing."""
    await LocalMesh(mesh_host).publish(TYPE, CONTACT, source=SOURCE, id="kit-once")
    with pytest.raises(Unmet, match="kit-once from /salesforce/eu was published by an earlier test"):
        await local_mesh.publish(TYPE, CONTACT, source=SOURCE, id="kit-once")


async def test_a_duplicate_within_a_test_is_the_test(local_mesh: LocalMesh) -> None:
    """Sent twice, it comes once."""
    for _ in range(2):
        receipt = await local_mesh.publish(TYPE, CONTACT, source=SOURCE, id="kit-twice")
    assert receipt.duplicate
    await local_mesh.expect("support", "contacts")
    await local_mesh.nothing("support", "contacts")


# --- faults ----------------------------------------------------------------------------------------------------------


async def test_an_event_survives_a_server_that_is_killed(local_mesh: LocalMesh) -> None:
    """It is spooled while nobody answers, and comes when the server is back."""
    await local_mesh.publish(TYPE, CONTACT, source=SOURCE)
    async with local_mesh.server_away(killed=True):
        receipt = await local_mesh.publish(TYPE, CONTACT, source=SOURCE)
    assert receipt.durable == "spool"
    assert len(await local_mesh.expect("support", "contacts", count=2, timeout_s=60)) == 2


async def test_an_agent_that_is_killed_is_back_at_the_same_door(local_mesh: LocalMesh) -> None:
    """An application keeps its URL."""
    await local_mesh.start_agent("crm-adapter")
    before = local_mesh.host.context(agent="crm-adapter").agent_address().url
    await local_mesh.kill_agent("crm-adapter")
    assert local_mesh.host.context(agent="crm-adapter").agent_address().url == before
    await local_mesh.publish(TYPE, CONTACT, source=SOURCE)
    await local_mesh.expect("support", "contacts")


# --- from the outside ------------------------------------------------------------------------------------------------

POLICIES = """
apiVersion: mesh/v1
kind: Tenant
metadata: {name: shop, owner: security}
spec: {teams: {shop: {agents: [till]}, stock: {agents: [shelf]}}}
---
apiVersion: mesh/v1
kind: Classification
metadata: {name: orders, tenant: shop, owner: shop}
spec: {types: ["shop.>"], fields: {data.sku: [public]}}
---
apiVersion: mesh/v1
kind: View
metadata: {name: plain, tenant: shop, owner: security}
spec: {mask: [{tags: [public], as: clear}], otherwise: redact}
---
apiVersion: mesh/v1
kind: Access
metadata: {name: access, tenant: shop, owner: security}
spec:
  allow:
    - {id: shop-publishes, who: {teams: [shop]}, publish: ["shop.>"]}
    - {id: stock-reads, who: {teams: [stock]}, subscribe: ["shop.order.>"], view: plain}
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: orders, tenant: shop, team: stock}
spec: {types: ["shop.order.>"], start: all}
"""
USERS_TESTS = """
import mesh
import pytest

@pytest.mark.anyio
async def test_five_lines(local_mesh):
    async def take(event):
        assert event.data["sku"] == "x-1"
    await local_mesh.publish("shop.order.placed.v1", {"sku": "x-1"}, source="/shop")
    ran = await local_mesh.run("stock", "orders", take)
    assert (len(ran.handled), await local_mesh.dead_letters("stock", "orders")) == (1, [])

def test_plain(local_mesh):
    with mesh.connect_sync(agent="till") as m:  # an application, that finds the mesh by itself
        m.publish("shop.order.placed.v1", {"sku": "x-2"}, source="/shop")
    (event,) = local_mesh.call(local_mesh.expect, "stock", "orders")
    assert event.data == {"sku": "x-2"}

def test_fails(local_mesh):
    local_mesh.call(local_mesh.expect, "stock", "orders", timeout_s=0.1)
"""


def test_a_users_project_needs_one_line_of_setup(tmp_path: Path) -> None:
    """`pytest_plugins` in its conftest.py; policies and agents that start at once in its ini file."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "all.yaml").write_text(POLICIES)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["mesh.testing.plugin"]\n')
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmesh_policies = rules\nmesh_agents = till\nfilterwarnings = error\n"
    )
    (tmp_path / "test_orders.py").write_text(USERS_TESTS)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "MESH_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "1 failed, 2 passed" in run.stdout, run.stdout + run.stderr
    assert "expected 1 events of > for stock/orders within 0.1 s, 0 came" in run.stdout


async def test_a_mesh_of_its_own_leaves_nothing_behind(tmp_path: Path) -> None:
    """Policies by name; when the block ends no thread, no process and no directory of it is left."""
    before = {thread.name for thread in threading.enumerate()}
    async with started({"all.yaml": POLICIES}) as own:
        await own.publish("shop.order.placed.v1", {"sku": "x-1"}, source="/shop")
        await own.expect("stock", "orders")
        server, workloads = own.host.running.server.pid, own.host.tenant.workloads
        pids = [server, *(process.pid for process in workloads.processes.values())]  # type: ignore[attr-defined]
        base = own.host.path.parent.parent
        assert base.exists()
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not base.exists()
    assert not {t.name for t in threading.enumerate() if "portal" in t.name.lower()} - before
