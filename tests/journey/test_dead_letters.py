"""`mesh dlq` on a whole mesh: the walk in `mesh/cli/README.md` first, then plain clients, failures and files."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, chdir
from pathlib import Path
from typing import Any

import anyio
import nats
import pytest
from nats.aio.client import Client

import mesh as library
from mesh.cli.output import console
from mesh.client import Mesh
from mesh.inbound import Admitted
from tests.journey.meshes import RunningMesh, contact, mesh_up, policies_with
from tests.journey.test_cli import MISUSE, NO, YES, Done, call
from tests.journey.walks import WIDTH, Step, blocks, different, walk

SOURCE = "/salesforce/eu"
SECTION = "## Letters from beginning to end"
DEADLINE_S = 40
# One subscription and one type a test: they share a mesh and do not meet.
SUBSCRIPTIONS = {
    "plain": "retry: {attempts: 2, ack_wait: 1s}, client: nats",
    "ends": "retry: {attempts: 2, ack_wait: 60s}, client: nats",
    "mended": "retry: {attempts: 1}",
    "broken": "retry: {attempts: 1}",
    "written": "retry: {attempts: 1}",
}

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]  # nine commands of the walk, and a mesh of its own


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[RunningMesh]:
    """The worked example, with support's subscriptions of this file."""
    documents = [
        "apiVersion: mesh/v1\nkind: Subscription\n"
        f"metadata: {{name: {name}, tenant: acme, team: support}}\n"
        f"spec: {{types: [crm.contact.{name}.v1], start: all, {spec}}}\n"
        for name, spec in SUBSCRIPTIONS.items()
    ]
    directory = tmp_path_factory.mktemp("mesh")
    policies = policies_with(directory, root / "policies", {"tests.yaml": "---\n".join(documents)})
    with mesh_up(directory, policies) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def walked(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory, root: Path) -> list[Step]:
    """Every command of the walk, while the mesh has no other letters."""
    directory = tmp_path_factory.mktemp("walk")
    with pytest.MonkeyPatch.context() as patch, chdir(directory):
        patch.setattr(console, "width", WIDTH)
        return walk(blocks(root / "mesh" / "cli" / "README.md", SECTION), directory, mesh.data)


@pytest.fixture
async def support(mesh: RunningMesh) -> AsyncIterator[Mesh]:
    """The team support, publishing through the CRM's agent."""
    async with library.connect(mesh.data, team="support", agent="crm-adapter") as m:
        yield m


Command = Callable[..., Done]


@pytest.fixture
def command(mesh: RunningMesh) -> Command:
    """Run a command in the context of the running mesh."""
    return lambda *arguments: call(*arguments, MESH_CONTEXT=str(mesh.data))


async def aside(command: Command, *arguments: str) -> Done:
    """Run a command while this process goes on."""
    return await anyio.to_thread.run_sync(lambda: command(*arguments))


async def listed(command: Command, name: str) -> list[dict[str, Any]]:
    """The letters of one subscription, as machines see them."""
    done = await aside(command, "dlq", "list", "--subscription", name, "--json")
    assert done.returncode == YES, done.stderr
    return list(json.loads(done.stdout)["letters"])


async def until_letters(command: Command, name: str, count: int) -> list[dict[str, Any]]:
    """Wait for as many letters."""
    with anyio.fail_after(DEADLINE_S):
        while len(found := await listed(command, name)) != count:
            await anyio.sleep(0.1)
    return found


async def publish(m: Mesh, name: str, id_: str) -> None:
    """A contact for one subscription."""
    await m.publish(f"crm.contact.{name}.v1", contact(), source=SOURCE, id=id_)


async def bury(m: Mesh, name: str, *ids: str) -> None:
    """Publish contacts, and have a handler reject each."""
    for id_ in ids:
        await publish(m, name, id_)
    async with m.subscription(name) as subscription:
        with anyio.fail_after(DEADLINE_S):
            for _ in ids:
                await (await subscription.next()).reject("no queue")


# --- the walk --------------------------------------------------------------------------------------------------------


def test_every_command_prints_what_the_walk_shows(walked: list[Step]) -> None:
    """From the first letter to the last, each command prints what the page says."""
    assert not different(walked)
    used = {word for step in walked for word in re.findall(r"mesh dlq ([a-z-]+)", step.command)}
    assert used == {"list", "show", "discard", "redrive"}


# --- plain clients ---------------------------------------------------------------------------------------------------


async def test_what_a_plain_client_leaves_is_a_letter(mesh: RunningMesh, support: Mesh, command: Command) -> None:
    """Pulled twice and never acked, with the team's own credentials: the control plane buries it whole."""
    await publish(support, "plain", "left")
    async with plain_client(mesh) as client:
        subscription = await client.jetstream().pull_subscribe_bind("support--plain", "EV_local_crm")
        deliveries = 0
        with anyio.fail_after(DEADLINE_S):
            while not await listed(command, "plain"):
                try:
                    deliveries += len(await subscription.fetch(1, timeout=1))
                except nats.errors.TimeoutError:  # nothing is due
                    continue
    assert 1 <= deliveries <= 2  # nats-py may have given up on one that was on its way
    (letter,) = await listed(command, "plain")
    assert (letter["reason"], letter["attempts"], letter["id"]) == ("max-deliveries", 2, "left")
    shown = json.loads((await aside(command, "dlq", "show", str(letter["letter"]), "--json")).stdout)
    assert shown["record"]["event"]["view"] == "service"


async def test_what_a_plain_client_ends_is_a_letter(mesh: RunningMesh, support: Mesh, command: Command) -> None:
    """`+TERM` with a reason."""
    await publish(support, "ends", "ended")
    async with plain_client(mesh) as client:
        subscription = await client.jetstream().pull_subscribe_bind("support--ends", "EV_local_crm")
        (message,) = await subscription.fetch(1, timeout=DEADLINE_S)
        await client.publish(message.reply, b"+TERM no such customer")
        await client.flush()
    (letter,) = await until_letters(command, "ends", 1)
    assert (letter["reason"], letter["id"]) == ("no such customer", "ended")


@asynccontextmanager
async def plain_client(mesh: RunningMesh) -> AsyncIterator[Client]:
    """Plain nats-py with the credentials of support."""
    creds = mesh.file.tenants["acme"].teams["support"].creds_file
    client = await nats.connect(mesh.file.nats_url, user_credentials=creds, inbox_prefix=b"_INBOX_team-support")
    try:
        yield client
    finally:
        await client.close()


# --- sent back -------------------------------------------------------------------------------------------------------


async def test_letters_are_handled_once_what_failed_is_mended(support: Mesh, command: Command) -> None:
    """A running subscription gets them beside its live events; then there are none, and the audit trail says who."""
    await bury(support, "mended", "one", "two")
    got: list[tuple[str, str]] = []

    async def handle(event: Admitted) -> None:
        got.append((event.id, event.redrive))

    async with support.subscription("mended") as subscription, anyio.create_task_group() as group:
        group.start_soon(subscription.run, handle)
        dry = await aside(command, "dlq", "redrive", "--subscription", "mended", "--dry-run", "--json")
        assert (dry.returncode, json.loads(dry.stdout)["sent"]) == (YES, 2)
        arguments = ["--subscription", "mended", "--wait", str(DEADLINE_S), "--reason", "mended", "--json"]
        done = await aside(command, "dlq", "redrive", *arguments)
        await publish(support, "mended", "live")
        with anyio.fail_after(DEADLINE_S):
            while len(got) < 3:
                await anyio.sleep(0.02)
        group.cancel_scope.cancel()
    told = json.loads(done.stdout)
    assert (done.returncode, told["sent"], told["handled"], told["back"], told["waiting"]) == (YES, 2, 2, 0, 0)
    assert sorted(got[:2]) == [("one", told["run"]), ("two", told["run"])]
    assert got[2] == ("live", "")
    assert await listed(command, "mended") == []
    await _audited(command, "dlq-redriven", {"run": told["run"], "letters": 2, "reason": "mended"})


async def _audited(command: Command, kind: str, facts: dict[str, Any]) -> None:
    with anyio.fail_after(DEADLINE_S):
        while True:
            done = await aside(command, "audit", "list", "--kind", kind, "--json")
            if any(record["facts"].items() >= facts.items() for record in json.loads(done.stdout)["records"]):
                return
            await anyio.sleep(0.1)


async def test_what_fails_again_is_a_letter_again(support: Mesh, command: Command) -> None:
    """The command says so and exits with 1; the letter knows which one it was."""
    await bury(support, "broken", "again")
    (before,) = await listed(command, "broken")

    async def handle(event: Admitted) -> None:
        raise LookupError("still none")

    async with support.subscription("broken") as subscription, anyio.create_task_group() as group:
        group.start_soon(subscription.run, handle)
        arguments = ["--seq", str(before["letter"]), "--wait", str(DEADLINE_S), "--json"]
        done = await aside(command, "dlq", "redrive", *arguments)
        group.cancel_scope.cancel()
    told = json.loads(done.stdout)
    assert (done.returncode, told["sent"], told["handled"], told["back"]) == (NO, 1, 0, 1)
    (after,) = await listed(command, "broken")
    assert (after["reason"], after["redriven"]) == ("attempts-exhausted", 1)
    shown = await aside(command, "dlq", "show", str(after["letter"]))
    assert f"last as letter {before['letter']}, in run {told['run']}" in shown.stdout
    assert "LookupError: still none" in shown.stdout


# --- written out, thrown away ----------------------------------------------------------------------------------------


async def test_letters_are_written_out_and_thrown_away(support: Mesh, command: Command, tmp_path: Path) -> None:
    """Into a file that only its owner reads and that is not there yet; a change has to be meant, and has a reason."""
    await bury(support, "written", "one", "two")
    file = tmp_path / "letters.jsonl"
    export = ["dlq", "export", str(file), "--subscription", "written"]
    assert (await aside(command, *export)).returncode == YES
    assert file.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["record"]["event"]["id"] for line in lines] == ["one", "two"]
    assert (await aside(command, *export)).returncode == MISUSE
    assert [json.loads(line) for line in file.read_text().splitlines()] == lines

    for wrong in (["redrive"], ["discard", "--reason", "x"], ["discard", "--subscription", "written"]):
        assert (await aside(command, "dlq", *wrong)).returncode == MISUSE
    assert len(await listed(command, "written")) == 2
    chosen = ["--subscription", "written", "--id", "one"]
    for more, left in ((["--dry-run"], 2), (["--reason", "test data"], 1)):
        done = await aside(command, "dlq", "discard", *chosen, *more)
        assert (done.returncode, done.stdout.startswith("1 letter ")) == (YES, True)
        assert len(await listed(command, "written")) == left
    await _audited(command, "dlq-discarded", {"letters": 1, "reason": "test data", "for_id": "one"})
    (left_over,) = await listed(command, "written")
    absent = str(left_over["letter"] + 1000)
    for asked in (["show", absent], ["redrive", "--seq", absent], ["discard", "--seq", absent, "--reason", "x"]):
        none = await aside(command, "dlq", *asked)
        assert (none.returncode, "not-found" in none.stderr) == (NO, True)


async def test_nobody_redrives_without_a_proof(mesh: RunningMesh) -> None:
    """A team's credentials do not reach the door."""
    async with plain_client(mesh) as client:
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request("ctl.dlq.list", b"{}", timeout=2)
