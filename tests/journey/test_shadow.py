"""`mesh policy shadow`: start, report and stop against a running mesh, from policies on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mesh.client import PublishFailed, connect
from tests.contract.agent_mesh import until
from tests.journey.meshes import RunningMesh, contact
from tests.journey.test_cli import MISUSE, NO, YES, Command, Done, call, error_of

pytestmark = pytest.mark.anyio

AGENTS = {"billing-adapter", "crm-adapter", "desk", "github-adapter"}

ONLY_GERMANY = """\
    - id: only-germany
      who: {teams: [crm]}
      publish: ["crm.>"]
      when: "has(data.country) && data.country != 'DE'"
"""


@pytest.fixture
def command(mesh: RunningMesh) -> Command:
    """Run a command in the context of the running mesh."""
    return lambda *arguments: call(*arguments, MESH_CONTEXT=str(mesh.data))


@pytest.fixture
def stricter(mesh: RunningMesh, tmp_path: Path) -> Path:
    """What is in force, with a new deny and a wider mask for support."""
    copy = tmp_path / "policies"
    shutil.copytree(mesh.data.parent / "policies", copy)
    owners, service = copy / "access" / "owners.yaml", copy / "views" / "service.yaml"
    owners.write_text(owners.read_text() + ONLY_GERMANY)
    text = service.read_text()
    assert "as: partial, with: {style: email}" in text
    service.write_text(text.replace("as: partial, with: {style: email}", "as: clear"))
    return copy


def answer(done: Done, status: int = YES) -> dict[str, Any]:
    """The JSON that a command printed."""
    assert done.returncode == status, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


async def test_a_candidate_is_tried_reported_and_stopped(mesh: RunningMesh, command: Command, stricter: Path) -> None:
    """Each agent tries it; what differs is told by rule, view and path; publishing goes on as before; then it ends."""
    started = answer(command("policy", "shadow", "start", "--policies", str(stricter), "--json"))
    assert (started["tenant"], started["revision"], started["sample"], started["same"]) == ("acme", 2, 1.0, False)

    def trying() -> bool:
        done = command("policy", "shadow", "report", "--json")
        return {one["agent"] for one in json.loads(done.stdout)["agents"] if one["state"] == "trying"} == AGENTS

    await until(trying)
    async with connect(mesh.data, agent="crm-adapter") as m:
        await m.publish("crm.contact.updated.v1", contact(), source="/crm", id="evt-de")
        receipt = await m.publish("crm.contact.updated.v1", contact(country="FR"), source="/crm", id="evt-fr")
        assert receipt.copies
        with pytest.raises(PublishFailed):
            await m.publish("crm.contact.updated.v1", {"account": {"id": "a-test"}}, source="/crm", id="evt-test")
    report = answer(command("policy", "shadow", "report", "--json"), NO)
    assert {name: report[name] for name in ("revision", "against", "compared", "disagreed")} == {
        "revision": 2,
        "against": 1,
        "compared": 3,
        "disagreed": 2,
    }
    found = {(one["kind"], one["about"], one["path"], one["active"], one["candidate"]) for one in report["found"]}
    assert ("would_deny", "", "", "crm-publishes", "only-germany") in found
    masks = [one for one in report["found"] if one["kind"] == "mask_changed"]
    assert [(one["about"], one["active"], one["candidate"], one["event"]) for one in masks] == [
        ("service", "partial email", "clear", "evt-de")
    ]
    assert "anna.schmidt" not in json.dumps(report)
    shown = command("policy", "shadow", "report")
    assert shown.returncode == NO
    assert "only-germany" in shown.stdout
    assert "2 of 3 events compared would be decided otherwise" in shown.stdout
    assert answer(command("policy", "shadow", "stop", "--json"))["stopped"] is True
    assert answer(command("policy", "shadow", "stop", "--json")) == {"stopped": False}
    kinds = [one["kind"] for one in answer(command("audit", "list", "--writer", "_control", "--json"))["records"]]
    assert [kind for kind in kinds if kind.startswith("shadow")] == ["shadow-started", "shadow-stopped"]


async def test_a_candidate_that_agrees_ends_with_yes(mesh: RunningMesh, command: Command) -> None:
    """The policies in force, tried again, differ in nothing, and `start` says so."""
    policies = str(mesh.data.parent / "policies")
    done = command("policy", "shadow", "start", "--policies", policies, "--sample", "0.5")
    assert done.returncode == YES
    assert "agents try what would be revision 2 on 50% of their events" in done.stdout
    assert "there will be nothing to report" in done.stdout
    assert command("policy", "shadow", "report").returncode == YES
    assert command("policy", "shadow", "stop").returncode == YES


async def test_without_a_candidate_the_answer_is_no(command: Command) -> None:
    """`report` says that nothing is being tried and how to begin."""
    done = command("policy", "shadow", "report", "--json")
    assert done.returncode == NO
    assert error_of(done)["code"] == "not-found"


async def test_what_cannot_be_tried_is_misuse(command: Command, root: Path, tmp_path: Path) -> None:
    """Policies that do not load, a directory that is none, a sample of nothing: exit 2, and no trial begins."""
    (tmp_path / "bad.yaml").write_text("apiVersion: mesh/v1\nkind: Tenent\n")
    for options in (
        ("--policies", str(tmp_path)),
        ("--policies", str(tmp_path / "nowhere")),
        ("--policies", str(root / "policies"), "--sample", "0"),
        ("--policies", str(root / "policies"), "--sample", "most"),
    ):
        done = command("policy", "shadow", "start", *options, "--json")
        assert done.returncode == MISUSE, options
        error_of(done)
    assert command("policy", "shadow", "report").returncode == NO
