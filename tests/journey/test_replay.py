"""`mesh replay` on a whole mesh: into one subscription, seen by its handlers, and by nobody else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import mesh as library
from mesh.client import Mesh
from mesh.inbound import Admitted
from tests.journey.meshes import RunningMesh, mesh_up, policies_with
from tests.journey.test_cli import MISUSE, NO, YES, Done, call

SOURCE = "/salesforce/eu"
DEADLINE_S = 40
# One type a subscription: they share a mesh and do not meet. `bystander` reads what `again` reads.
SUBSCRIPTIONS = {
    "again": ("crm.contact.again.v1", ""),
    "bystander": ("crm.contact.again.v1", ""),
    "sorted": ("crm.contact.sorted.v1", ", order_by: partitionkey"),
    "idle": ("crm.contact.idle.v1", ", client: nats"),
}

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]  # a mesh of its own, and commands that wait


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[RunningMesh]:
    """The worked example, with support's subscriptions of this file."""
    documents = [
        "apiVersion: mesh/v1\nkind: Subscription\n"
        f"metadata: {{name: {name}, tenant: acme, team: support}}\n"
        f"spec: {{types: [{type_}], start: all{more}}}\n"
        for name, (type_, more) in SUBSCRIPTIONS.items()
    ]
    directory = tmp_path_factory.mktemp("mesh")
    policies = policies_with(directory, root / "policies", {"replay.yaml": "---\n".join(documents)})
    with mesh_up(directory, policies) as running:
        yield running


@pytest.fixture
async def support(mesh: RunningMesh) -> AsyncIterator[Mesh]:
    """The team support, publishing through the CRM's agent."""
    async with library.connect(mesh.data, team="support", agent="crm-adapter") as m:
        yield m


@pytest.fixture
def command(mesh: RunningMesh) -> Callable[..., Done]:
    """Run `mesh replay` in the context of the running mesh."""
    return lambda *arguments: call("replay", *arguments, MESH_CONTEXT=str(mesh.data))


class Handler:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.events: list[Admitted] = []

    async def __call__(self, event: Admitted) -> None:
        """Handle an event."""
        self.events.append(event)

    async def has(self, count: int) -> list[Admitted]:
        """The first *count* events, once they have come."""
        with anyio.fail_after(DEADLINE_S):
            while len(self.events) < count:
                await anyio.sleep(0.02)
        return self.events[:count]


@asynccontextmanager
async def handled(m: Mesh, name: str) -> AsyncIterator[Handler]:
    """A subscription whose events are handled for the length of the block."""
    handler = Handler()
    async with m.subscription(name) as subscription, anyio.create_task_group() as group:
        group.start_soon(subscription.run, handler)
        yield handler
        group.cancel_scope.cancel()


async def published(m: Mesh, name: str, *keys: str) -> list[str]:
    """Publish one event of the type of subscription *name* for each key; their ids."""
    type_ = SUBSCRIPTIONS[name][0]
    return [(await m.publish(type_, {"n": n}, source=SOURCE, partitionkey=key)).id for n, key in enumerate(keys)]


async def aside(run: Callable[..., Done], *arguments: str) -> Done:
    """Run a command while this process goes on."""
    return await anyio.to_thread.run_sync(lambda: run(*arguments))


async def runs(command: Callable[..., Done]) -> list[dict[str, Any]]:
    """What `mesh replay list` tells machines."""
    done = await aside(command, "list", "--json")
    assert done.returncode == YES, done.stderr
    return list(json.loads(done.stdout))


def wanted(name: str, *more: str) -> tuple[str, ...]:
    """The arguments of a replay to a subscription of support."""
    return ("--team", "support", "--subscription", name, "--from", "1h", *more)


async def test_handlers_see_that_an_event_is_replayed(support: Mesh, command: Callable[..., Done]) -> None:
    """The command returns once all of it is handled again; others are delivered nothing, and live events go on."""
    async with handled(support, "again") as again, handled(support, "bystander") as bystander:
        ids = await published(support, "again", "a", "b", "c")
        await again.has(3)
        await bystander.has(3)
        done = await aside(command, *wanted("again", "--reason", "the API was down"))
        assert done.returncode == YES, done.stderr
        assert "finished: 3 of 3 settled" in done.stdout
        live, repeated = again.events[:3], again.events[3:]
        assert [event.id for event in repeated] == ids
        (run,) = {event.replay for event in repeated}
        assert run in done.stdout
        assert [event.replayed for event in (*live, *repeated)] == [False] * 3 + [True] * 3
        assert [(e.stream, e.sequence) for e in repeated] == [(e.stream, e.sequence) for e in live]
        (later,) = await published(support, "again", "d")
        assert [(event.id, event.replay) for event in (await again.has(7))[6:]] == [(later, "")]
        assert [event.id for event in await bystander.has(4)] == [*ids, later]
    (told,) = [one for one in await runs(command) if one["run"] == run]
    assert (told["state"], told["left"], told["reason"]) == ("finished", 0, "the API was down")


async def test_an_ordered_subscription_is_replayed_in_order(support: Mesh, command: Callable[..., Done]) -> None:
    """By key, as the events were stored."""
    async with handled(support, "sorted") as handler:
        keys = ["a", "b", "c"] * 4
        ids = await published(support, "sorted", *keys)
        await handler.has(12)
        done = await aside(command, *wanted("sorted"))
        assert done.returncode == YES, done.stderr
        repeated = [event.id for event in handler.events if event.replayed]
    assert sorted(repeated) == sorted(ids)
    for key in "abc":
        mine = [one for one, its in zip(ids, keys, strict=True) if its == key]
        assert [one for one in repeated if one in mine] == mine


async def test_what_nobody_pulls_stays_open_until_it_is_cancelled(support: Mesh, command: Callable[..., Done]) -> None:
    """A dry run begins nothing; a detached one is listed, keeps another from beginning, and ends when asked to."""
    await published(support, "idle", "a", "b")
    counted = await aside(command, *wanted("idle", "--dry-run"))
    assert (counted.returncode, "2 stored copies would be replayed" in counted.stdout) == (YES, True)
    begun = await aside(command, *wanted("idle", "--detach"))
    assert (begun.returncode, "support--idle--replay" in begun.stdout) == (YES, True)
    (run,) = [one["run"] for one in await runs(command) if one["subscription"] == "idle"]
    refused = await aside(command, *wanted("idle", "--json"))
    assert (refused.returncode, json.loads(refused.stdout)["error"]["code"]) == (MISUSE, "replay-open")
    ended = await aside(command, "cancel", run, "--json")
    assert (ended.returncode, json.loads(ended.stdout)["left"]) == (YES, 2)
    (told,) = [one for one in await runs(command) if one["run"] == run]
    assert told["state"] == "cancelled"
    assert (await aside(command, "cancel", run)).returncode == NO


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), MISUSE, "--subscription"),
        (("--subscription", "idle", "--team", "support", "--from", "yesterday"), MISUSE, "bad-config"),
        (("--subscription", "none", "--team", "support", "--from", "1h"), NO, "not-found"),
        (("--subscription", "idle", "--team", "support", "--from", "1h", "--type", "hr.>"), NO, "not-found"),
    ],
)
def test_what_is_asked_wrongly_says_so(
    command: Callable[..., Done], arguments: tuple[str, ...], code: int, said: str
) -> None:
    """Misuse ends with 2, what is not there with 1; each names what was wrong."""
    done = command(*arguments)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
