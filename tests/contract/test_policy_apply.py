"""An apply, step by step, against the real server: what NATS lets everybody do before, during and after."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from mesh.control import policies as control_policies
from mesh.control import rollout
from mesh.control.bundles import BundleStore
from mesh.control.durables import FOR_GOOD, PAUSE
from mesh.control.enforce import Enforcer
from mesh.errors import BundleChain, MeshError, NotFound, PolicyErrors, PolicyTestsFailed, Unavailable
from mesh.jetstream import manage
from mesh.jetstream.connection import Connection
from mesh.policy.bundle import Bundle
from mesh.policy.envelope import follows, open_bundle
from tests.contract.policy_mesh import CRM, DURABLE, Instance, PolicyMesh, ack, policies, pull, reads, until

pytestmark = pytest.mark.anyio

CONTACT, DEAL = "crm.contact.updated.v1", "crm.deal.won.v1"
NO_TESTS_PASS = """
---
apiVersion: mesh/v1
kind: PolicyTest
metadata: {name: t, tenant: acme, owner: security}
spec: {invariants: [{only: {teams: [crm], subscribe: ["crm.>"]}}]}
"""

TWO_SUBSCRIPTIONS = """
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: contacts, tenant: acme, team: support}
spec: {types: ["%s"], start: all}
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: people, tenant: acme, team: support}
spec: {types: ["crm.contact.>"], start: all}
"""


class Killed(BaseException):
    """The control plane ends here: nothing is put right."""


class Reader:
    """Pulls one event after the other, and acks each."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.types: list[str] = []
        self.pulls = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            pulled = await pull(self.connection, count=1, expires_s=0.1)
            await ack(self.connection, pulled)
            self.types += [subject.split(".", 4)[4] for subject, _ in pulled]
            self.pulls += 1

    async def twice(self) -> None:
        """Return when it has pulled twice from now on, at least."""
        goal = self.pulls + 3

        async def pulled() -> bool:
            return self.pulls >= goal

        await until(pulled)

    async def has(self, count: int) -> None:
        """Return when it has got *count* events."""

        async def enough() -> bool:
            return len(self.types) >= count

        await until(enough)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[PolicyMesh]:
    """A tenant without policies."""
    async with PolicyMesh.running(tmp_path) as made:
        yield made


# --- bundles ---------------------------------------------------------------------------------------------------------


async def test_each_revision_is_signed_numbered_and_kept(mesh: PolicyMesh) -> None:
    """Three applies: every envelope opens, follows the one before, and lies under its number; audit names each."""
    for view in ("masked", "bare", "masked"):
        await mesh.apply(reads(view))
    store = mesh.store()
    current = await store.in_force()
    assert current is not None
    bundles = [await store.past(current, revision) for revision in (1, 2, 3)]
    for older, newer in pairwise(bundles):
        follows(newer, older)
        assert newer.previous == older.digest
    stamps = [past.at_ms for past in current.lineage]
    assert stamps == sorted(stamps)
    assert stamps[0] > 0
    assert current.since == {"crm": 1, "support": 3, "analytics": 1}
    assert [(kind, facts["revision"]) for kind, facts in mesh.audited] == [("policy-applied", n) for n in (1, 2, 3)]


async def test_what_is_in_force_is_on_record_wherever_the_control_plane_stops(
    mesh: PolicyMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped in the moment after the bundle was stored."""
    stopped = anyio.CancelScope()

    async def stops(*_: object) -> None:
        stopped.cancel()
        await anyio.sleep_forever()

    monkeypatch.setattr(control_policies, "notice", stops)
    with stopped:
        await mesh.apply(reads("masked"))
    assert mesh.policies.plans.bundle.revision == 1
    assert [(kind, facts["revision"]) for kind, facts in mesh.audited] == [("policy-applied", 1)]


async def test_what_fails_once_it_is_in_force_refuses_nothing(
    mesh: PolicyMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever applied hears of it; on record it is applied, and not refused too."""

    async def fails(*_: object) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(control_policies, "notice", fails)
    with pytest.raises(Unavailable):
        await mesh.apply(reads("masked"))
    assert mesh.policies.plans.bundle.revision == 1
    assert [(kind, facts["revision"]) for kind, facts in mesh.audited] == [("policy-applied", 1)]


async def test_the_same_policies_again_are_no_revision(mesh: PolicyMesh) -> None:
    """Nothing is handed out where nothing changed."""
    first = await mesh.apply(reads("masked"))
    again = await mesh.apply(reads("masked"))
    assert (first.unchanged, again.unchanged, again.revision) == (False, True, 1)


async def test_failing_tests_change_nothing(mesh: PolicyMesh) -> None:
    """The policies' own tests stand before everything else, and so does loading."""
    await mesh.apply(reads("masked"))
    with pytest.raises(PolicyTestsFailed):
        await mesh.policies.apply(policies(reads("bare")) | {"t.yaml": NO_TESTS_PASS}, {}, author="eve")
    with pytest.raises(PolicyErrors):
        await mesh.policies.apply({"p.yaml": "kind: View"}, {}, author="eve")
    assert mesh.policies.plans.bundle.revision == 1
    assert await mesh.filters() == {"masked crm.contact.>"}
    assert [(kind, facts["code"]) for kind, facts in mesh.audited[1:]] == [
        ("policy-refused", "policy-tests-failed"),
        ("policy-refused", "policies-invalid"),
    ]


async def test_an_apply_against_an_older_revision_is_refused(mesh: PolicyMesh) -> None:
    """Somebody compared with revision 1, and somebody else applied meanwhile."""
    await mesh.apply(reads("masked"))
    await mesh.apply(reads("bare"))
    with pytest.raises(BundleChain, match="revision 2 is in force, not 1"):
        await mesh.policies.apply(policies(reads("masked")), {}, expected=1)


# --- what lies in the store ------------------------------------------------------------------------------------------


async def test_a_control_plane_that_restarts_goes_on(mesh: PolicyMesh) -> None:
    """It keeps the revision in force, and the next one follows it."""
    await mesh.apply(reads("masked"))
    bundle = await mesh.control_plane()
    assert bundle is not None
    assert bundle.revision == 1
    assert (await mesh.apply(reads("bare"))).revision == 2


@pytest.mark.parametrize("damage", ["older", "flipped", "unsigned", "lost"])
async def test_a_store_that_was_tampered_with_is_put_right(mesh: PolicyMesh, damage: str) -> None:
    """An older revision, a flipped bit, an unsigned bundle or none: the control plane puts its own copy back."""
    await mesh.apply(reads("masked"))
    await mesh.apply(reads("bare"))
    store = mesh.store()
    current = await store.in_force()
    assert current is not None
    older = await store.past(current, 1)
    good = mesh.authority.seal(current)
    value = {
        "older": mesh.authority.seal(older),
        "flipped": good[:-2] + bytes([good[-2] ^ 1]) + good[-1:],
        "unsigned": older.encode(),
        "lost": b"",
    }[damage]
    headers = {"KV-Operation": "DEL"} if damage == "lost" else None
    await mesh.control.request("$KV.mesh_policy.bundle", value, headers=headers)
    bundle = await mesh.control_plane()
    assert bundle is not None
    assert bundle.revision == 2
    entry = await store.entry()
    assert entry is not None
    assert open_bundle(entry.value, mesh.authority.policy_public).digest == current.digest


async def test_a_copy_of_our_own_that_is_lost_or_older_is_made_again(mesh: PolicyMesh) -> None:
    """A control plane moved to another machine, or put back from a backup, takes the newer signed bundle."""
    await mesh.apply(reads("masked"))
    first = mesh.authority.seal(mesh.policies.plans.bundle)
    await mesh.apply(reads("bare"))
    mesh.forget_copy()
    bundle = await mesh.control_plane()
    assert bundle is not None
    assert bundle.revision == 2
    mesh.keep_copy(first)
    bundle = await mesh.control_plane()
    assert bundle is not None
    assert bundle.revision == 2


# --- readers ---------------------------------------------------------------------------------------------------------


async def test_a_change_of_view_neither_skips_nor_doubles(mesh: PolicyMesh) -> None:
    """What was stored under the old view is delivered first; then its filter goes, and events of the new view come."""
    await mesh.apply(reads("masked"))
    support = await mesh.team("support")
    await mesh.store_event("masked", CONTACT)
    applied = await mesh.apply(reads("bare"))
    assert applied.draining == ["support--contacts on EV_local_crm"]
    assert await mesh.filters() == {"masked crm.contact.>", "bare crm.contact.>"}
    await mesh.store_event("bare", CONTACT)
    pulled = await pull(support, count=2)
    assert [subject.split(".")[2] for subject, _ in pulled] == ["masked", "bare"]
    async with anyio.create_task_group() as group:
        group.start_soon(mesh.policies.run)
        await mesh.store_event("masked", CONTACT)  # of a reader of that view elsewhere: not for us any more
        await ack(support, pulled)

        async def drained() -> bool:
            return not mesh.policies.draining and await mesh.filters() == {"bare crm.contact.>"}

        await until(drained)
        group.cancel_scope.cancel()


async def test_draining_survives_a_restart(mesh: PolicyMesh) -> None:
    """A control plane that was killed in between finds the old filter on the server, and ends the drain."""
    await mesh.apply(reads("masked"))
    support = await mesh.team("support")
    await mesh.store_event("masked", CONTACT)
    await mesh.apply(reads("bare"))
    await mesh.control_plane()
    assert mesh.policies.draining == ["support--contacts on EV_local_crm"]
    assert await mesh.filters() == {"masked crm.contact.>", "bare crm.contact.>"}
    await ack(support, await pull(support, count=1))
    async with anyio.create_task_group() as group:
        group.start_soon(mesh.policies.run)

        async def drained() -> bool:
            return await mesh.filters() == {"bare crm.contact.>"}

        await until(drained)
        group.cancel_scope.cancel()


async def test_a_type_that_is_no_longer_granted_goes_at_once(mesh: PolicyMesh) -> None:
    """Its backlog is not delivered either, not even what was delivered before and is not acked."""
    types = 'spec: {types: ["crm.>"], start: all}'
    subscription = (
        "\n---\napiVersion: mesh/v1\nkind: Subscription\nmetadata: {name: contacts, tenant: acme, team: support}\n"
    )
    await mesh.apply(reads("masked"), more=subscription + types)
    support = await mesh.team("support")
    for type_ in (CONTACT, DEAL):
        await mesh.store_event("masked", type_)
    assert len(await pull(support, count=2)) == 2
    applied = await mesh.apply(
        reads("masked", "crm.contact.>"), more=subscription + types.replace("crm.>", "crm.contact.>")
    )
    assert applied.draining == []
    again = await pull(support, count=1)
    assert [subject.split(".", 4)[4] for subject, _ in again] == [CONTACT]


async def test_a_reader_without_a_grant_gets_nothing_even_from_an_open_pull(mesh: PolicyMesh) -> None:
    """Its durable is paused and keeps its place; with a grant again it goes on from there."""
    await mesh.apply(reads("masked"))
    support = await mesh.team("support")
    async with anyio.create_task_group() as group:
        got: list[tuple[str, str]] = []

        async def wait_for_one() -> None:
            got.extend(await pull(support, count=1, expires_s=2))

        group.start_soon(wait_for_one)
        await mesh.apply()
        await mesh.store_event("masked", CONTACT)
    assert got == []
    assert (await manage.consumer_info(mesh.control, CRM, DURABLE))["config"]["pause_until"] == FOR_GOOD
    with pytest.raises(MeshError):
        await support.request("$JS.API.CONSUMER.MSG.NEXT.EV_local_crm.support--contacts", b"1", timeout_s=1)
    await mesh.policies.rollback()
    assert not await mesh.paused()
    assert len(await pull(support, count=1)) == 1


@pytest.mark.parametrize(("granted_first", "begins"), [(True, "all"), (False, "new")])
async def test_a_new_grant_opens_no_history_to_a_plain_client(
    mesh: PolicyMesh, granted_first: bool, begins: str
) -> None:
    """`start: all` means all since the team has the right: its durable begins there, for whoever pulls."""
    others = "{id: analytics-reads, who: {teams: [analytics]}, subscribe: ['crm.>'], view: bare}"
    before = (others, reads("bare")) if granted_first else (others,)
    await mesh.policies.apply(policies(*before, more=""), {})
    await mesh.policies.apply(policies(others, reads("bare")), {})
    info = await manage.consumer_info(mesh.control, CRM, DURABLE)
    assert info["config"]["deliver_policy"] == begins


async def test_skip_backlog_begins_anew(mesh: PolicyMesh) -> None:
    """Durables of teams that see less begin after what is stored, in the new view alone."""
    await mesh.apply(reads("masked"))
    support = await mesh.team("support")
    await mesh.store_event("masked", CONTACT)
    applied = await mesh.policies.apply(policies(reads("bare")), {}, skip_backlog=True)
    assert (applied.restarted, applied.draining) == (["support--contacts"], [])
    assert await mesh.filters() == {"bare crm.contact.>"}
    assert await pull(support, count=1, expires_s=0.3) == []
    await mesh.store_event("bare", CONTACT)
    assert len(await pull(support, count=1)) == 1


# --- publishers ------------------------------------------------------------------------------------------------------


async def test_a_publisher_keeps_its_old_views_until_it_runs_the_new_revision(mesh: PolicyMesh) -> None:
    """No copy of an agent that is behind is refused; once it says that it follows, it has exactly its subjects."""
    await mesh.apply(reads("masked"))
    agent = await Instance.start(mesh, "crm-adapter")
    await agent.runs(1)
    steps: list[str] = []
    async with anyio.create_task_group() as group:

        async def change() -> None:
            await mesh.policies.apply(policies(reads("bare")), {}, progress=steps.append)

        group.start_soon(change)

        async def handed_out() -> bool:
            return "agents" in steps

        await until(handed_out)
        assert [await agent.publish(view, CONTACT) for view in ("masked", "bare")] == [True, True]
        await agent.runs(2)
    assert steps == ["tests", "withdraw", "extend", "bundle", "agents", "settle"]
    assert [await agent.publish(view, CONTACT) for view in ("masked", "bare")] == [False, True]


async def test_a_withdrawn_right_to_publish_is_gone_before_the_bundle(mesh: PolicyMesh) -> None:
    """The agent need not know yet: NATS refuses the type from that step on, and no other."""
    await mesh.apply(reads("masked"))
    agent = await Instance.start(mesh, "crm-adapter")
    await agent.runs(1)
    denied = "{id: no-deals, who: {teams: [crm]}, publish: ['crm.deal.>']}"
    narrowed = policies(reads("masked"), deny=(denied,))
    narrowed["p.yaml"] = narrowed["p.yaml"].replace(
        "publish: ['crm.>', 'hr.>']", "publish: ['crm.contact.>', 'crm.deal.>']"
    )
    steps: list[str] = []
    async with anyio.create_task_group() as group:

        async def change() -> None:
            await mesh.policies.apply(narrowed, {}, progress=steps.append)

        group.start_soon(change)

        async def withdrawn() -> bool:
            return "extend" in steps

        await until(withdrawn)
        assert [await agent.publish("masked", type_) for type_ in (CONTACT, DEAL)] == [True, False]
        await agent.runs(2)


async def test_an_agent_that_does_not_follow_is_named(mesh: PolicyMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time for it the apply ends, says who, and status goes on saying so."""
    monkeypatch.setattr(rollout.wait_adopted, "__kwdefaults__", {"timeout_s": 0.2})
    await mesh.apply(reads("masked"))
    agent = await Instance.start(mesh, "crm-adapter")
    await agent.runs(1)
    applied = await mesh.apply(reads("bare"))
    assert [(one["workload"], one["revision"]) for one in applied.behind] == [("crm-adapter", 1)]
    states = {one["name"]: one["state"] for one in (await mesh.policies.status())["instances"]}
    assert states == {"crm-adapter": "behind", "desk": "silent", "lake": "silent"}


async def test_a_workload_that_is_gone_is_cut_off(mesh: PolicyMesh) -> None:
    """An agent that the policies no longer know may neither publish nor connect, and nobody waits for it again."""
    await mesh.apply(reads("masked"))
    agent = await Instance.start(mesh, "crm-adapter")
    assert await agent.publish("masked", CONTACT)
    renamed = policies(reads("masked"))
    renamed["p.yaml"] = renamed["p.yaml"].replace("crm-adapter", "crm-next")
    await mesh.policies.apply(renamed, {})
    assert not await agent.publish("masked", CONTACT)
    assert await (await Instance.start(mesh, "crm-next")).publish("masked", CONTACT)
    back = await mesh.apply(reads("masked"))
    assert [one["workload"] for one in back.behind] == []


# --- killed or failed half way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["withdraw", "extend", "store"])
@pytest.mark.parametrize("fault", [Killed, Unavailable])
async def test_a_change_that_does_not_come_about_loses_no_event(
    mesh: PolicyMesh, monkeypatch: pytest.MonkeyPatch, step: str, fault: type[BaseException]
) -> None:
    """Somebody pulls throughout: what was stored under the revision that stays in force arrives, each event once."""
    await mesh.apply(reads("masked"), more=TWO_SUBSCRIPTIONS % "crm.>")
    for _ in range(20):
        for type_ in (CONTACT, DEAL):
            await mesh.store_event("masked", type_)
    reader = Reader(await mesh.team("support"))
    owner, method = {
        "withdraw": (Enforcer, "withdraw"), "extend": (Enforcer, "extend"), "store": (BundleStore, "put")
    }[step]  # fmt: skip
    real = getattr(owner, method)

    async def then_fails(*arguments: object) -> None:
        if method != "put":
            await real(*arguments)
        monkeypatch.setattr(owner, method, real)  # once
        info = await manage.consumer_info(mesh.control, CRM, DURABLE)
        left = datetime.fromisoformat(info["config"]["pause_until"]) - datetime.now(UTC)
        assert timedelta(0) < left <= PAUSE
        assert await mesh.filters() == {"masked crm.>"}
        assert not await mesh.paused("support--people")
        await mesh.store_event("masked", DEAL)
        await reader.twice()
        raise fault("here")

    monkeypatch.setattr(owner, method, then_fails)
    async with anyio.create_task_group() as group:
        group.start_soon(reader.run)
        await reader.has(3)
        with pytest.raises(fault):
            await mesh.apply(reads("masked", "crm.contact.>"), more=TWO_SUBSCRIPTIONS % "crm.contact.>")
        if fault is Killed:
            await mesh.control_plane()
        assert mesh.policies.plans.bundle.revision == 1
        await mesh.store_event("masked", DEAL)
        await reader.has(42)
        await reader.twice()
        group.cancel_scope.cancel()
    assert (reader.types.count(CONTACT), reader.types.count(DEAL)) == (20, 22)
    assert not await mesh.paused()


async def test_killed_after_the_bundle_a_change_is_completed(mesh: PolicyMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new revision is in force: the next control plane takes the filters away and lets the durable go on."""
    await mesh.apply(reads("masked"), more=TWO_SUBSCRIPTIONS % "crm.>")
    real = Enforcer.narrow

    async def killed(*_: object) -> None:
        monkeypatch.setattr(Enforcer, "narrow", real)
        raise Killed

    monkeypatch.setattr(Enforcer, "narrow", killed)
    with pytest.raises(Killed):
        await mesh.apply(reads("masked", "crm.contact.>"), more=TWO_SUBSCRIPTIONS % "crm.contact.>")
    assert await mesh.paused()
    for type_ in (DEAL, CONTACT):
        await mesh.store_event("masked", type_)
    support = await mesh.team("support")
    assert await pull(support, count=1, expires_s=0.3) == []
    await mesh.control_plane()
    assert mesh.policies.plans.bundle.revision == 2
    assert await mesh.filters() == {"masked crm.contact.>"}
    assert [subject.split(".", 4)[4] for subject, _ in await pull(support, count=1)] == [CONTACT]


async def test_filters_that_cannot_be_taken_away_at_once_go_before_the_change_ends(
    mesh: PolicyMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is in force by then: the durable stays paused until it is narrowed, and the apply does not fail."""
    await mesh.apply(reads("masked"), more=TWO_SUBSCRIPTIONS % "crm.>")
    real = Enforcer.narrow

    async def failing(*_: object) -> None:
        monkeypatch.setattr(Enforcer, "narrow", real)
        raise Unavailable("here")

    monkeypatch.setattr(Enforcer, "narrow", failing)
    applied = await mesh.apply(reads("masked", "crm.contact.>"), more=TWO_SUBSCRIPTIONS % "crm.contact.>")
    assert applied.revision == 2
    assert await mesh.filters() == {"masked crm.contact.>"}
    assert not await mesh.paused()


async def test_a_bundle_that_is_stored_though_nobody_answers_is_in_force(
    mesh: PolicyMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is asked before anything is given back."""
    await mesh.apply(reads("masked"))
    real = BundleStore.put

    async def put(self: BundleStore, bundle: Bundle, expected: int) -> None:
        await real(self, bundle, expected)
        raise Unavailable("no answer")

    monkeypatch.setattr(BundleStore, "put", put)
    assert (await mesh.apply(reads("bare"))).revision == 2
    assert mesh.policies.plans.bundle.revision == 2


async def test_who_ended_during_an_apply_is_not_waited_for(mesh: PolicyMesh) -> None:
    """Its reports are purged when it ends: it neither runs the new revision nor is it behind."""
    await mesh.apply(reads("masked"))
    agent = await Instance.start(mesh, "crm-adapter")
    await agent.runs(1)
    steps: list[str] = []
    async with anyio.create_task_group() as group:
        found = []

        async def change() -> None:
            found.append(await mesh.policies.apply(policies(reads("bare")), {}, progress=steps.append))

        group.start_soon(change)

        async def handed_out() -> bool:
            return "agents" in steps

        await until(handed_out)
        await rollout.forget(mesh.control, "crm-adapter")
    assert [applied.behind for applied in found] == [[]]


# --- rollback and expiry ---------------------------------------------------------------------------------------------


async def test_rollback_brings_policies_and_grants_back(mesh: PolicyMesh) -> None:
    """As a new revision that says so; filters and subjects are those of the old one."""
    await mesh.apply(reads("masked"))
    agent = await Instance.start(mesh, "crm-adapter")
    await agent.runs(9)
    first = mesh.policies.plans.bundle
    await mesh.apply(reads("bare"))
    applied = await mesh.policies.rollback(author="ada", reason="INC-1")
    assert (applied.revision, applied.rollback_of) == (3, 1)
    bundle = mesh.policies.plans.bundle
    assert (bundle.policies, bundle.rollback_of, bundle.reason) == (first.policies, 1, "INC-1")
    assert "masked crm.contact.>" in await mesh.filters()
    assert [await agent.publish(view, CONTACT) for view in ("masked", "bare")] == [True, False]
    assert mesh.audited[-1][0] == "policy-rolled-back"
    told = await mesh.policies.history()
    assert [(one["revision"], one["rollback_of"], one["in_force"]) for one in told] == [
        (3, 1, True), (2, 0, False), (1, 0, False)
    ]  # fmt: skip
    with pytest.raises(NotFound, match="no bundle of revision 7"):
        await mesh.policies.rollback(7)


async def in_time(apply: Callable[[datetime], Awaitable[None]]) -> datetime:
    """Have *apply* work with a grant that ends soon: later where it did not end within that time. When it ends."""
    for patience_s in (4, 8, 16, 32):
        ends = datetime.now(UTC) + timedelta(seconds=patience_s)
        await apply(ends)
        if datetime.now(UTC) < ends:
            return ends
    raise TimeoutError


def stamp(ends: datetime) -> str:
    """As policies have it."""
    return ends.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def test_an_expired_grant_leaves_nats(mesh: PolicyMesh) -> None:
    """At its second the durable is paused and its pull is gone, without an apply; publishers go on for a moment."""
    subscription = (
        "\n---\napiVersion: mesh/v1\nkind: Subscription\nmetadata: {name: contacts, tenant: acme, team: support}\n"
        'spec: {types: ["crm.contact.>"], view: masked, start: all}\n'
    )
    await mesh.apply(reads("masked"), more=subscription)
    support = await mesh.team("support")

    async def grant_and_pull(ends: datetime) -> None:
        await mesh.apply(reads("masked", expires=stamp(ends), reason="INC-1"), more=subscription)
        await mesh.store_event("masked", CONTACT)
        left_s = (ends - datetime.now(UTC)).total_seconds()
        if left_s > 0:
            await ack(support, await pull(support, count=1, expires_s=left_s))  # nothing until it ends: out of time

    ends = await in_time(grant_and_pull)
    agent = await Instance.start(mesh, "crm-adapter")
    revision = mesh.policies.plans.bundle.revision
    async with anyio.create_task_group() as group:
        group.start_soon(mesh.policies.run)
        await until(mesh.paused)
        assert datetime.now(UTC) >= ends
        with pytest.raises(MeshError):
            await support.request("$JS.API.CONSUMER.MSG.NEXT.EV_local_crm.support--contacts", b"1", timeout_s=1)
        assert await agent.publish("masked", CONTACT)
        assert mesh.policies.plans.bundle.revision == revision
        group.cancel_scope.cancel()


async def test_a_grant_that_ends_beside_others_narrows_its_durable(mesh: PolicyMesh) -> None:
    """The filter is gone at its second, and the durable goes on with the rest."""

    async def grant(ends: datetime) -> None:
        deals = reads("masked", "crm.deal.>", expires=stamp(ends), reason="INC-1")
        deals = deals.replace("support-reads", "support-deals")
        await mesh.apply(reads("masked", "crm.contact.>"), deals, more=TWO_SUBSCRIPTIONS % "crm.>")

    ends = await in_time(grant)
    assert await mesh.filters() == {"masked crm.contact.>", "masked crm.deal.>"}
    async with anyio.create_task_group() as group:
        group.start_soon(mesh.policies.run)

        async def ended() -> bool:
            return await mesh.filters() == {"masked crm.contact.>"} and not await mesh.paused()

        await until(ended)
        assert datetime.now(UTC) >= ends
        for type_ in (DEAL, CONTACT):
            await mesh.store_event("masked", type_)
        support = await mesh.team("support")
        assert [subject.split(".", 4)[4] for subject, _ in await pull(support, count=1)] == [CONTACT]
        group.cancel_scope.cancel()


# --- failure ---------------------------------------------------------------------------------------------------------


async def test_an_apply_that_fails_half_way_gives_rights_back(mesh: PolicyMesh) -> None:
    """Where the bundle cannot be stored, the old revision stays in force and everybody may do what it says."""
    await mesh.apply(reads("masked"))
    support = await mesh.team("support")
    await mesh.control.request("$KV.mesh_policy.bundle", mesh.authority.seal(mesh.policies.plans.bundle))
    entry = mesh.policies.store.entry

    async def stale() -> object:
        found = await entry()
        assert found is not None
        return found._replace(revision=found.revision - 1)

    mesh.policies.store.entry = stale  # type: ignore[method-assign, assignment]
    with pytest.raises(MeshError):
        await mesh.apply()
    mesh.policies.store.entry = entry  # type: ignore[method-assign]
    assert mesh.policies.plans.bundle.revision == 1
    await mesh.store_event("masked", CONTACT)
    assert len(await pull(support, count=1)) == 1
    assert (await mesh.apply(reads("bare"))).revision == 2
