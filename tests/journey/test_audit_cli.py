"""`mesh audit`: refusals of real agents, on record and checked, and what is shown of a trail that was tampered with."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from mesh import audit
from mesh.cli.session import operator_session
from mesh.client import PublishFailed, connect
from tests.contract.agent_mesh import until
from tests.journey.meshes import RunningMesh
from tests.journey.test_cli import MISUSE, NO, YES, Command, Done, call, error_of

pytestmark = pytest.mark.anyio

SECRET = "secret-0815-test"  # what the refused events hold


@pytest.fixture
def command(mesh: RunningMesh) -> Command:
    """Run a command in the context of the running mesh."""
    return lambda *arguments: call(*arguments, MESH_CONTEXT=str(mesh.data))


@pytest.fixture(scope="module")
async def refused(mesh: RunningMesh) -> None:
    """Two refused events, of two agents, on record."""
    async with connect(mesh.data, agent="crm-adapter") as m:
        with pytest.raises(PublishFailed):
            await m.publish("crm.contact.updated.v1", {"account": {"id": SECRET}}, source="/crm", id="evt-test")
    await until(lambda: len(records(mesh, "--kind", "denied")) == 1)  # writers are stored in no order among themselves
    async with connect(mesh.data, agent="desk") as m:
        with pytest.raises(PublishFailed):
            await m.publish("hr.person.hired.v1", {"name": SECRET}, source="/support", id="evt-hr")
    await until(lambda: len(records(mesh, "--kind", "denied")) == 2)


def answer(done: Done) -> Any:
    """What a command that went well printed."""
    assert done.returncode == YES, done.stdout + done.stderr
    return json.loads(done.stdout)


def records(mesh: RunningMesh, *options: str) -> list[dict[str, Any]]:
    """The records that `list` shows."""
    found = answer(call("audit", "list", *options, "--json", MESH_CONTEXT=str(mesh.data)))
    return list(found["records"])


async def test_list_shows_who_was_refused(mesh: RunningMesh, refused: None) -> None:
    """Event, type, source, agent, rule, reason and revision of each refusal, oldest first."""
    first, second = records(mesh, "--kind", "denied")
    assert first["writer"].startswith("crm-adapter.")
    assert first["facts"] == {
        "event": "evt-test",
        "type": "crm.contact.updated.v1",
        "source": "/crm",
        "principal": "crm-adapter",
        "reason": "rule",
        "rule": "no-test-accounts",
        "revision": 1,
    }
    assert (second["facts"]["reason"], second["facts"]["principal"]) == ("no-allow-matched", "desk")


async def test_list_can_be_narrowed(mesh: RunningMesh, refused: None) -> None:
    """By kind, writer, process, time and number."""
    denied = ("--kind", "denied")
    whole = records(mesh, *denied)
    process = whole[0]["writer"]
    for writer in ("crm-adapter", process):
        assert records(mesh, *denied, "--writer", writer) == whole[:1]
    assert records(mesh, *denied, "--writer", "crm-adapter.00000000") == []
    assert records(mesh, *denied, "--since", "1h") == whole
    assert records(mesh, *denied, "--since", "2999-01-01T00:00:00Z") == []
    assert records(mesh, *denied, "--count", "1") == whole[1:]
    assert records(mesh, "--kind", "unmasked") == []


async def test_list_reads_as_lines(command: Command, refused: None) -> None:
    """For a person a record is one line, and nothing of the event but its id, type and source is in it."""
    done = command("audit", "list", "--kind", "denied")
    assert done.returncode == YES
    lines = done.stdout.splitlines()
    assert "denied crm-adapter." in lines[0]
    assert "rule=no-test-accounts" in lines[0]
    assert lines[-1] == "2 records"
    assert SECRET not in done.stdout


@pytest.mark.parametrize("options", [("--kind", "refused"), ("--since", "yesterday"), ("--since", "9" * 30 + "d")])
async def test_a_question_that_is_none_is_misuse(command: Command, options: tuple[str, ...]) -> None:
    """An unknown kind or time is said, not taken for nothing found."""
    done = command("audit", "list", *options, "--json")
    assert done.returncode == MISUSE
    assert error_of(done)["code"] == "bad-config"


async def test_an_untouched_trail_holds(command: Command, refused: None) -> None:
    """`verify` ends with 0 and says how many records of how many writers it checked."""
    said = answer(command("audit", "verify", "--json"))
    assert said["holds"] is True
    assert said["problems"] == []
    assert said["records"] >= 2
    assert {writer.partition(".")[0] for writer in said["writers"]} >= {"crm-adapter", "desk"}
    assert "the audit trail holds" in command("audit", "verify").stdout


async def test_a_forged_record_is_named(mesh: RunningMesh, command: Command, refused: None) -> None:
    """Whoever has the operator's credentials can add to the trail, and `verify` says where and what; it comes last."""
    victim = records(mesh, "--kind", "denied", "--writer", "crm-adapter")[0]
    forged = {name: victim[name] for name in ("v", "writer", "seq", "prev", "at_ms", "kind")} | {
        "facts": {"event": "x"}
    }
    async with operator_session(str(mesh.data)) as session:
        await session.connection.request("audit.crm-adapter", msgspec.json.encode(forged, order="sorted"))
        await session.connection.request("audit.desk", audit.Chain("crm-adapter.ffffffff").append("denied", 0, {}))
    done = command("audit", "verify", "--json")
    assert done.returncode == NO
    said = json.loads(done.stdout)
    assert [(one["what"], one["writer"], one["seq"]) for one in said["problems"]] == [
        ("forked", victim["writer"], victim["seq"]),
        ("foreign", "crm-adapter.ffffffff", 1),
    ]
    shown = command("audit", "verify")
    assert shown.returncode == NO
    assert "forked crm-adapter." in shown.stdout
    assert "does not hold in 2 places" in shown.stdout
