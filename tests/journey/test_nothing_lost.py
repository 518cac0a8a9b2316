"""What must not cost an event: crashed consumers, a refusing DLQ, a late bundle, an absent trust store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import msgspec
import pytest
from msgspec.structs import replace

from mesh.cli.session import operator_session
from mesh.client import Mesh, connect
from mesh.delivery import Reject
from mesh.errors import Unavailable
from mesh.inbound import Admitted
from mesh.jetstream.manage import api, stream_info
from mesh.policy.compile import Plans
from mesh.policy.model import Access
from tests.journey.meshes import RunningMesh, mesh_up, policies_with
from tests.stalls import Stalls, undisturbed

pytestmark = pytest.mark.anyio

DEADLINE_S = 40
RETRY = "retry: {attempts: 2, backoff: [100ms], ack_wait: 1s}"
HANG = """\
import sys, anyio, mesh
async def hang(event):
    print("handling", flush=True)
    await anyio.sleep_forever()
async def main():
    async with mesh.connect(sys.argv[1], team="support") as m, m.subscription("contacts") as contacts:
        await contacts.run(hang, concurrency=1)
anyio.run(main)
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[RunningMesh]:
    """The worked example with a subscription that is quick to give up."""
    directory = tmp_path_factory.mktemp("mesh")
    policies = policies_with(directory, root / "policies")
    file = policies / "subscriptions" / "support.yaml"
    file.write_text(file.read_text().replace("retry: {attempts: 5, backoff: [500ms, 2s, 30s]}", RETRY))
    assert RETRY in file.read_text()
    with mesh_up(directory, policies) as running:
        yield running


def contact() -> dict[str, Any]:
    """An event that support reads."""
    return {"contact": {"id": "4711", "name": "Ada"}, "account": {"id": "acc-1"}, "country": "DE"}


async def publish(m: Mesh, count: int) -> set[str]:
    """Publish so many contacts; their ids."""
    ids = [uuid4().hex for _ in range(count)]
    for event_id in ids:
        await m.publish("crm.contact.updated.v1", contact(), source="/crm", id=event_id)
    return set(ids)


async def handle_until(m: Mesh, wanted: set[str]) -> list[str]:
    """Handle until all of *wanted* were; the ids in the order they came."""
    seen: list[str] = []
    with anyio.fail_after(DEADLINE_S):
        async with m.subscription("contacts") as contacts:
            while not wanted <= set(seen):
                async with await contacts.next() as event:
                    seen.append(event.id)
    return seen


async def test_consumers_killed_again_and_again_cost_nothing(mesh: RunningMesh) -> None:
    """However often an event was prefetched by a consumer that died, a healthy one still gets it."""
    async with connect(mesh.data, team="support", agent="crm-adapter") as m:
        ids = await publish(m, 20)
        for _ in range(6):
            command = [sys.executable, "-c", HANG, str(mesh.data)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as consumer:
                assert consumer.stdout is not None
                assert await anyio.to_thread.run_sync(consumer.stdout.readline) == b"handling\n"
                consumer.kill()
        assert ids <= set(await handle_until(m, ids))


async def test_a_dead_letter_waits_for_its_stream(mesh: RunningMesh) -> None:
    """While the dead letter stream refuses, the event stays in hand: handled once, buried once, never lost."""

    async def scenario(stalls: Stalls) -> None:
        handled: list[str] = []

        async def handler(event: Admitted) -> None:
            handled.append(event.id)
            raise Reject("never")

        async with (
            connect(mesh.data, team="support", agent="crm-adapter") as m,
            operator_session(str(mesh.data)) as operator,
            stalls.watched(operator.connection),
        ):
            config = (await stream_info(operator.connection, "DLQ"))["config"]
            await api(operator.connection, "STREAM.UPDATE.DLQ", {**config, "max_msg_size": 10})
            before = (await stream_info(operator.connection, "DLQ"))["state"]["messages"]
            (event_id,) = await publish(m, 1)
            with anyio.fail_after(DEADLINE_S):
                async with m.subscription("contacts") as contacts, anyio.create_task_group() as group:
                    group.start_soon(contacts.run, handler)
                    while not handled:
                        await anyio.sleep(0.05)
                    await anyio.sleep(2.5)  # longer than ack_wait: it would come again if nobody held it
                    await api(operator.connection, "STREAM.UPDATE.DLQ", config)
                    while (await stream_info(operator.connection, "DLQ"))["state"]["messages"] == before:
                        await anyio.sleep(0.05)
                    group.cancel_scope.cancel()
            last = await api(operator.connection, "STREAM.MSG.GET.DLQ", {"last_by_subj": "dlq.support.contacts"})
            assert handled == [event_id]
            letter = msgspec.json.decode(msgspec.convert(last["message"]["data"], bytes, strict=False))
            assert (letter["reason"], letter["attempts"], letter["event"]["id"]) == ("never", 1, event_id)

    await undisturbed(0.25, scenario)  # of an ack_wait of 1 s


async def test_a_handler_cut_off_by_its_caller_gets_the_event_again(mesh: RunningMesh) -> None:
    """A timeout around a delivery is no verdict: the event is handed back at once."""
    async with connect(mesh.data, team="support", agent="crm-adapter") as m:
        (event_id,) = await publish(m, 1)
        with anyio.fail_after(DEADLINE_S):
            async with m.subscription("contacts") as contacts:
                with anyio.CancelScope() as scope:
                    async with await contacts.next() as event:
                        assert event.id == event_id
                        scope.cancel()
                        await anyio.sleep_forever()
                async with await contacts.next() as event:
                    assert event.id == event_id


async def test_a_consumer_whose_bundle_is_late_waits_for_it(mesh: RunningMesh) -> None:
    """An event decided by a newer bundle than ours is not judged by ours."""
    async with connect(mesh.data, team="support", agent="crm-adapter") as m:
        assert m._reader is not None
        watching = m._reader.bundle
        assert watching.plans is not None
        now = watching.plans.bundle
        without_grants = tuple(
            document
            for document in now.policies
            if not (isinstance(document, Access) and document.metadata.name == "readers")
        )
        async with m.subscription("contacts") as contacts:
            watching._bundles.plans = watching._seen = None  # it has not read the one of now
            watching.plans = Plans(replace(now, revision=0, policies=without_grants))
            (event_id,) = await publish(m, 1)
            with anyio.fail_after(DEADLINE_S):
                async with await contacts.next() as event:
                    assert event.id == event_id


async def test_an_absent_trust_store_delays_and_loses_nothing(
    mesh: RunningMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While certificates cannot be fetched events wait, in their order, and then they are handled."""
    async with connect(mesh.data, team="support", agent="crm-adapter") as m:
        ids = await publish(m, 5)
        assert m._reader is not None
        trust = m._reader.trust
        fetch, calls = trust.certificate, []

        async def away(kid: str) -> Any:
            calls.append(kid)
            if len(calls) < 4:
                raise Unavailable("the bucket has no leader")
            return await fetch(kid)

        monkeypatch.setattr(trust, "certificate", away)
        seen = await handle_until(m, ids)
        assert sorted(seen) == sorted(ids)
        assert len(calls) == 4
