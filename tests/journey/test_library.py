"""What a Python team relies on: publish, subscribe, and what becomes of an event when a handler does not succeed."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import anyio
import pytest

import mesh as library
from mesh.cli.session import Session, operator_session
from mesh.client import Mesh, PublishFailed
from mesh.control.datadir import write_private
from mesh.control.reconcile import now_ms
from mesh.deadletters import DeadLetterRecord
from mesh.errors import ConfigError
from mesh.inbound import Admitted
from mesh.jetstream.manage import consumer_info
from mesh.signing import Received
from tests.journey.meshes import RunningMesh, contact, dead_letters, mesh_up, policies_with, wait_settled
from tests.journey.test_cli import call

SOURCE = "/salesforce/eu"
STREAM = "EV_local_crm"
BACKOFF_S = 0.5
DEADLINE_S = 30  # below the long ack_wait: what comes within it did not wait for the server to give up on us
LONG_ACK_WAIT = "90s"
QUEUES_ACK_WAIT_S = 6  # longer than a busy machine keeps a word of progress waiting

# One subscription and one type a test: they share a mesh and do not meet.
RETRY = f"attempts: 4, backoff: [{BACKOFF_S * 1000:.0f}ms], ack_wait: {LONG_ACK_WAIT}"
SUBSCRIPTIONS = {
    "acks": RETRY,
    "iterates": RETRY,
    "retries": RETRY,
    "rejects": RETRY,
    "exhausts": "attempts: 2, backoff: [100ms], ack_wait: 90s",
    "causes": RETRY,
    "caused": RETRY,
    "repeats": RETRY,
    "leaves": RETRY,
    "shares": RETRY,
    "works": RETRY,
    "queues": f"attempts: 4, backoff: [100ms], ack_wait: {QUEUES_ACK_WAIT_S}s",
}

pytestmark = pytest.mark.anyio


def type_of(name: str) -> str:
    """The type that the subscription *name* reads."""
    return f"crm.contact.{name}.v1"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[RunningMesh]:
    """The worked example, with support's subscriptions of this file."""
    documents = [
        "apiVersion: mesh/v1\nkind: Subscription\n"
        f"metadata: {{name: {name}, tenant: acme, team: support}}\n"
        f"spec: {{types: [{type_of(name)}], start: all, retry: {{{retry}}}}}\n"
        for name, retry in SUBSCRIPTIONS.items()
    ]
    directory = tmp_path_factory.mktemp("mesh")
    policies = policies_with(directory, root / "policies", {"tests.yaml": "---\n".join(documents)})
    with mesh_up(directory, policies) as running:
        yield running


@pytest.fixture
async def support(mesh: RunningMesh) -> AsyncIterator[Mesh]:
    """The team support, publishing through the CRM's agent."""
    async with library.connect(mesh.data, team="support", agent="crm-adapter") as m:
        yield m


@pytest.fixture
async def operator(mesh: RunningMesh) -> AsyncIterator[Session]:
    """Whoever may look at streams and durables."""
    async with operator_session(str(mesh.data)) as session:
        yield session


async def publish(m: Mesh, name: str, count: int = 1, **data: Any) -> list[str]:
    """Publish contacts for one subscription; returns their ids."""
    ids = []
    for _ in range(count):
        receipt = await m.publish(type_of(name), contact(**data), source=SOURCE, id=uuid4().hex)
        assert receipt.durable == "stream"
        assert not receipt.duplicate
        ids.append(receipt.id)
    return ids


async def handle_until(m: Mesh, name: str, count: int, handler: Any, *, concurrency: int = 16) -> None:
    """Run *handler* on a subscription until it was called *count* times."""
    done = anyio.Event()
    calls = 0

    async def counting(event: Admitted) -> None:
        nonlocal calls
        calls += 1
        try:
            await handler(event)
        finally:
            if calls >= count:
                done.set()

    with anyio.fail_after(DEADLINE_S):
        async with m.subscription(name) as subscription, anyio.create_task_group() as group:
            group.start_soon(lambda: subscription.run(counting, concurrency=concurrency))
            await done.wait()
            with anyio.move_on_after(20):
                while subscription.feed.pending:  # the last verdict is on its way
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()


async def test_handled_event_is_acked(mesh: RunningMesh, support: Mesh, operator: Session) -> None:
    """A handler gets the event in its team's view; when it returns, the event is settled at the server."""
    (id_,) = await publish(support, "acks", note="call after six")
    got: list[Admitted] = []

    async def handle(event: Admitted) -> None:
        got.append(event)

    await handle_until(support, "acks", 1, handle)
    (event,) = got
    assert (event.id, event.source, event.type, event.view, event.attempt) == (
        id_,
        SOURCE,
        type_of("acks"),
        "service",
        1,
    )
    assert event.spiffe_id == "spiffe://mesh.local/ns/acme/sa/crm-adapter"
    assert event.data["contact"] == {"id": "4711", "email": "a***@***.com"}
    await wait_settled(operator, STREAM, "support--acks")


async def test_iterator_hands_out_events_in_order(mesh: RunningMesh, support: Mesh, operator: Session) -> None:
    """`async for` yields each event once, in the stream's order, and the block acks it."""
    ids = await publish(support, "iterates", 5)
    got: list[str] = []
    with anyio.fail_after(DEADLINE_S):
        async with support.subscription("iterates") as subscription:
            async for delivery in subscription:
                async with delivery as event:
                    got.append(event.id)
                if len(got) == len(ids):
                    break
    assert got == ids
    await wait_settled(operator, STREAM, "support--iterates")


async def test_failed_event_comes_again_after_the_backoff(mesh: RunningMesh, support: Mesh, operator: Session) -> None:
    """An exception retries the event, not sooner than its backoff (less the jitter), until a handler succeeds."""
    (id_,) = await publish(support, "retries")
    attempts: list[tuple[str, int, float]] = []

    async def handle(event: Admitted) -> None:
        attempts.append((event.id, event.attempt, time.monotonic()))
        if event.attempt < 3:
            raise RuntimeError("the database is away")

    await handle_until(support, "retries", 3, handle)
    assert [(event, attempt) for event, attempt, _ in attempts] == [(id_, 1), (id_, 2), (id_, 3)]
    moments = [moment for _, _, moment in attempts]
    assert min(later - sooner for sooner, later in itertools.pairwise(moments)) >= BACKOFF_S * 0.75
    await wait_settled(operator, STREAM, "support--retries")
    assert not await dead_letters(operator, "retries")


async def test_rejected_event_becomes_one_dead_letter(mesh: RunningMesh, support: Mesh, operator: Session) -> None:
    """`Reject` buries the event at once: reason, attempts, signature as delivered, and the event in the team's view."""
    (id_,) = await publish(support, "rejects")

    async def handle(event: Admitted) -> None:
        raise library.Reject("unknown currency")

    await handle_until(support, "rejects", 1, handle)
    await wait_settled(operator, STREAM, "support--rejects")
    (letter,) = await dead_letters(operator, "rejects")
    assert (letter.team, letter.reason, letter.error_class, letter.attempts) == (
        "support",
        "unknown currency",
        "Reject",
        1,
    )
    verified = await operator.verify(as_delivered(letter))
    assert verified.fields["id"] == id_
    assert verified.fields["view"] == "service"
    assert b"anna.schmidt" not in bytes(letter.event)


def as_delivered(letter: DeadLetterRecord) -> Received:
    """The event as the record keeps it: enough to verify it once more."""
    return Received(
        subject=letter.subject,
        body=bytes(letter.event),
        msg_ids=(letter.msg_id,),
        signature=letter.signature,
        stream=letter.stream,
        sequence=letter.sequence,
        stream_ms=letter.stream_ms,
        deliveries=letter.attempts,
        reply="",
    )


async def test_event_that_keeps_failing_is_buried(mesh: RunningMesh, support: Mesh, operator: Session) -> None:
    """After the last attempt the event is one dead letter, with the first and the last error, and comes no more."""
    (id_,) = await publish(support, "exhausts")
    attempts = []

    async def handle(event: Admitted) -> None:
        attempts.append(event.attempt)
        raise LookupError(f"no customer, try {event.attempt}")

    await handle_until(support, "exhausts", 2, handle)
    await wait_settled(operator, STREAM, "support--exhausts")
    (letter,) = await dead_letters(operator, "exhausts")
    assert attempts == [1, 2]
    assert (letter.reason, letter.attempts, letter.error_class) == ("attempts-exhausted", 2, "LookupError")
    assert (letter.first_error, letter.last_error) == (
        "LookupError: no customer, try 1",
        "LookupError: no customer, try 2",
    )
    assert json.loads(bytes(letter.event))["id"] == id_


async def test_event_published_while_handling_names_its_cause(mesh: RunningMesh, support: Mesh) -> None:
    """It inherits the correlation of the event being handled and names it as its cause; afterwards nothing does."""
    first = await support.publish(
        type_of("causes"), contact(), source=SOURCE, id="case-17", extensions={"correlationid": "case-1"}
    )
    got: list[Admitted] = []

    async def handle(event: Admitted) -> None:
        await support.publish(type_of("caused"), contact(), source=SOURCE)

    async def keep(event: Admitted) -> None:
        got.append(event)

    await handle_until(support, "causes", 1, handle)
    await publish(support, "caused")
    await handle_until(support, "caused", 2, keep)
    caused = next(event for event in got if event.correlationid == "case-1")
    other = next(event for event in got if event is not caused)
    assert caused.fields["causationid"] == first.id == "case-17"
    assert other.correlationid == other.id
    assert "causationid" not in other.fields


async def test_event_published_twice_is_handled_once(mesh: RunningMesh, support: Mesh) -> None:
    """The second publish of an id says `duplicate`, names the same copies, and reaches no handler."""
    first = await support.publish(type_of("repeats"), contact(), source=SOURCE, id="twice")
    again = await support.publish(type_of("repeats"), contact(), source=SOURCE, id="twice")
    assert not first.duplicate
    assert again.duplicate
    assert {(c.view, c.stream, c.seq) for c in again.copies} == {(c.view, c.stream, c.seq) for c in first.copies}
    (last,) = await publish(support, "repeats")
    got: list[str] = []

    async def handle(event: Admitted) -> None:
        got.append(event.id)

    await handle_until(support, "repeats", 2, handle)
    assert got == ["twice", last]


async def test_refusals_carry_the_problem_document(mesh: RunningMesh) -> None:
    """`PublishFailed` carries status and problem: the rule that denied, or what was wrong with the input."""
    async with library.connect(mesh.data, agent="crm-adapter") as m:
        with pytest.raises(PublishFailed) as denied:
            await m.publish(type_of("acks"), contact(account={"id": "acc-test"}), source=SOURCE)
        with pytest.raises(PublishFailed) as bad_type:
            await m.publish("Contact Updated", contact(), source=SOURCE)
        with pytest.raises(PublishFailed) as elsewhere:
            await m.publish(type_of("acks"), contact(), source="/billing")
    assert (denied.value.http_status, denied.value.problem["code"], denied.value.problem["rule"]) == (
        403,
        "denied",
        "no-test-accounts",
    )
    assert (bad_type.value.http_status, bad_type.value.problem["code"]) == (400, "bad-type")
    assert bad_type.value.problem["expected"]
    assert (elsewhere.value.http_status, elsewhere.value.problem["reason"]) == (403, "source-not-allowed")
    assert not any(error.value.retryable for error in (denied, bad_type, elsewhere))


async def test_a_rotated_token_refuses_no_publish(mesh: RunningMesh) -> None:
    """While the token's file is replaced, before and after the agent notices, every publish is accepted."""
    file = Path(mesh.file.tenants["acme"].agents["crm-adapter"].token_file)
    old, new = file.read_text(), "rotated-" * 6
    async with library.connect(mesh.data, agent="crm-adapter") as m:
        async with anyio.create_task_group() as group:  # two first publishes at once
            for _ in range(2):
                group.start_soon(publish, m, "acks")
        for token in (new, old):
            write_private(file, token.encode())
            with anyio.fail_after(DEADLINE_S):
                while await refused(mesh, token.strip()):  # the agent has not looked yet
                    await publish(m, "acks")
            await publish(m, "acks")


async def refused(mesh: RunningMesh, token: str) -> bool:
    """Whether the door does not take *token*."""
    url = mesh.file.tenants["acme"].agents["crm-adapter"].url
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/events", data=b"{", headers={"Authorization": f"Bearer {token}"}) as response,
    ):
        return response.status == 401


async def test_what_a_block_raises_passes_as_it_is(mesh: RunningMesh) -> None:
    """An exception inside `connect` and `subscription` reaches the caller unwrapped."""
    with pytest.raises(ZeroDivisionError):
        async with library.connect(mesh.data, team="support") as m, m.subscription("acks"):
            _ = 1 / 0
    with pytest.raises(PublishFailed):
        async with library.connect(mesh.data, team="support", agent="crm-adapter") as m:
            await m.publish("nonsense", source=SOURCE)


async def test_replica_that_leaves_hands_back_what_it_did_not_handle(mesh: RunningMesh, support: Mesh) -> None:
    """What a leaving replica had pulled, taken or not, is with the next one at once, not after ack_wait."""
    ids = await publish(support, "leaves", 20)
    got: list[Admitted] = []
    with anyio.fail_after(DEADLINE_S):
        async with support.subscription("leaves") as leaving:
            async with await leaving.next() as event:
                got.append(event)
            await leaving.next()  # in somebody's hands, and never settled
            while leaving.feed.pending < len(ids) - 1:
                await anyio.sleep(0.01)
        async with (
            library.connect(mesh.data, team="support") as other,
            other.subscription("leaves") as staying,
        ):
            while len(got) < len(ids):
                async with await staying.next() as event:
                    got.append(event)
    assert sorted(event.id for event in got) == sorted(ids)
    assert got[0].id == ids[0]
    assert [event.attempt for event in got[1:]] == [2] * (len(ids) - 1)


async def test_replicas_share_a_durable(mesh: RunningMesh, support: Mesh, operator: Session) -> None:
    """Two replicas of one subscription each handle a part, and no event reaches both."""
    ids = await publish(support, "shares", 20)
    got: dict[str, list[str]] = {"one": [], "two": []}
    together, done = anyio.Event(), anyio.Event()
    settled: list[str] = []

    async def replica(name: str) -> None:
        async with (
            library.connect(mesh.data, team="support") as m,
            m.subscription("shares", max_in_flight=2) as subscription,
        ):
            async for delivery in subscription:
                async with delivery as event:
                    got[name].append(event.id)
                    if all(got.values()):
                        together.set()
                    await together.wait()
                settled.append(event.id)
                if len(settled) >= len(ids):
                    done.set()

    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(replica, "one")
            group.start_soon(replica, "two")
            await done.wait()
            group.cancel_scope.cancel()
    assert all(got.values())
    assert sorted(got["one"] + got["two"]) == sorted(ids)
    await wait_settled(operator, STREAM, "support--shares")


async def test_handlers_work_side_by_side(mesh: RunningMesh, support: Mesh) -> None:
    """With a concurrency of eight, eight events are in hand at once, even where they come one by one."""
    inside = 0
    all_in = anyio.Event()

    async def handle(event: Admitted) -> None:
        nonlocal inside
        inside += 1
        if inside == 8:
            all_in.set()
        await all_in.wait()

    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: handle_until(support, "works", 8, handle, concurrency=8))
            for _ in range(8):
                await publish(support, "works")
    assert inside == 8


async def test_events_that_wait_for_their_turn_are_not_redelivered(
    mesh: RunningMesh, support: Mesh, operator: Session
) -> None:
    """Pulled ahead of a slow handler, an event outlives its ack_wait, and the server still delivers it once."""
    ids = await publish(support, "queues", 3)
    got: list[tuple[str, int]] = []
    began = now_ms()

    async def handle(event: Admitted) -> None:
        if not got:
            await anyio.sleep(QUEUES_ACK_WAIT_S * 1.3)  # the work
        got.append((event.id, event.attempt))

    await handle_until(support, "queues", len(ids), handle, concurrency=1)
    assert now_ms() - began > QUEUES_ACK_WAIT_S * 1000  # the others did wait
    assert got == [(id_, 1) for id_ in ids]
    info = await consumer_info(operator.connection, STREAM, "support--queues")
    assert info["delivered"]["consumer_seq"] == len(ids)


async def test_what_policies_add_reaches_who_is_connected(mesh: RunningMesh, support: Mesh) -> None:
    """A running subscription gets events of a domain that an apply adds to it; one made active by it can be opened."""
    policies = mesh.data.parent / "policies"
    owners, more = policies / "access" / "owners.yaml", policies / "tests.yaml"
    owners.write_text(
        owners.read_text().replace(
            '["crm.contact.>", "crm.deal.>"], sources', '["crm.contact.>", "crm.deal.>", "ops.>"], sources'
        )
    )
    late = f"metadata: {{name: late, tenant: acme, team: support}}\nspec: {{types: [{type_of('late')}], start: all}}\n"
    more.write_text(f"{more.read_text()}---\napiVersion: mesh/v1\nkind: Subscription\n{late}")
    apply = ["policy", "apply", "--policies", str(policies), "--context", str(mesh.data), "--json"]
    with pytest.raises(ConfigError):
        support.subscription("late")
    with anyio.fail_after(2 * DEADLINE_S):
        async with library.connect(mesh.data, team="security") as m, m.subscription("overview") as overview:
            done = await anyio.to_thread.run_sync(lambda: call(*apply))
            assert done.returncode == 0, done.stdout + done.stderr
            alarm = await support.publish("ops.alarm.raised.v1", {"level": 1}, source=SOURCE)
            await publish(support, "late")
            async for delivery in overview:
                async with delivery as event:
                    if event.id == alarm.id:
                        break
        async with support.subscription("late") as subscription, await subscription.next() as event:
            assert event.type == type_of("late")
