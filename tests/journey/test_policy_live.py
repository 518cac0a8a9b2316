"""`mesh policy apply | rollback | status | history` on a whole mesh: what people type, what events then look like."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

from mesh.cli.session import operator_session
from mesh.client import connect
from mesh.reports import read_reports
from tests.journey.meshes import RunningMesh, contact, mesh_up, policies_with, wait_ended
from tests.journey.test_cli import Done, call

pytestmark = pytest.mark.anyio

TYPE, SOURCE = "crm.contact.updated.v1", "/salesforce/eu"
DEADLINE_S = 60
SUPPORT_READS = 'subscribe: ["crm.contact.>", "crm.deal.>"], view: service'
FAILING = """\
apiVersion: mesh/v1
kind: PolicyTest
metadata: {name: nobody-reads, tenant: acme, owner: security}
spec: {invariants: [{only: {teams: [crm], subscribe: ["crm.contact.>"]}}]}
"""


class Live:
    """A mesh that is up, and the directory somebody edits."""

    def __init__(self, mesh: RunningMesh, policies: Path) -> None:
        self.mesh = mesh
        self.policies = policies

    def command(self, *arguments: str | Path) -> Done:
        """Run `mesh policy ...` on it."""
        return call("policy", *map(str, arguments), "--context", str(self.mesh.data))

    def asked(self, *arguments: str | Path, status: int = 0) -> dict[str, Any]:
        """The JSON that a command prints."""
        done = self.command(*arguments, "--json")
        assert done.returncode == status, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def apply(self, *options: str) -> dict[str, Any]:
        """Apply the directory."""
        return self.asked("apply", "--policies", self.policies, *options)

    def edit(self, file: str, old: str, new: str) -> None:
        """Change one text of the policies."""
        path = self.policies / file
        text = path.read_text()
        assert old in text, (file, old)
        path.write_text(text.replace(old, new))

    async def publish(self, id_: str) -> None:
        """Publish one contact through the agent's door."""
        async with connect(self.mesh.data, agent="crm-adapter") as m:
            await m.publish(TYPE, contact(), source=SOURCE, id=id_)

    async def reporting(self) -> list[tuple[str, str]]:
        """The instances of agents that an apply would go by: name and instance."""
        async with operator_session(str(self.mesh.data)) as session:
            reports = await read_reports(session.connection)
        return [(report.name, report.instance) for report in reports if report.kind == "agent"]

    async def read(self, *ids: str) -> dict[str, tuple[str, dict[str, Any]]]:
        """View and data of each of these contacts as support is handed them, by id."""
        got: dict[str, tuple[str, dict[str, Any]]] = {}
        with anyio.fail_after(DEADLINE_S):
            async with connect(self.mesh.data, team="support") as m, m.subscription("contacts") as contacts:
                while not set(ids) <= set(got):
                    async with await contacts.next() as event:
                        assert event.id not in got
                        got[event.id] = (event.view, event.data)
        return got


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Live]:
    """A mesh of the worked example, for all tests of this file."""
    directory = tmp_path_factory.mktemp("live")
    policies = directory / "policies"
    copy_policies(root / "policies", policies)
    with mesh_up(directory, policies) as mesh:
        yield Live(mesh, policies)


@pytest.fixture
def live(shared: Live, root: Path) -> Live:
    """The mesh with the worked example in force, and a directory of it to edit."""
    copy_policies(root / "policies", shared.policies)
    shared.apply()
    return shared


def copy_policies(source: Path, target: Path) -> None:
    """The worked example without its own tests: what is changed here they would forbid."""
    shutil.rmtree(target, ignore_errors=True)
    policies_with(target.parent, source, readers=["desk"])
    shutil.rmtree(target / "tests")


async def test_apply_and_rollback_change_what_a_team_sees(live: Live) -> None:
    """Support's view changes and changes back: each event is delivered once, in what it may see then and now."""
    before = live.asked("status")["revision"]
    first, second, third = (uuid4().hex for _ in range(3))
    await live.publish(first)
    live.edit("access/readers.yaml", SUPPORT_READS, SUPPORT_READS.replace("view: service", "view: minimal"))
    applied = live.apply("--reason", "DPIA 8")
    assert (applied["revision"], applied["unchanged"], applied["behind"]) == (before + 1, False, [])
    assert [step["step"] for step in applied["steps"]] == ["tests", "withdraw", "extend", "bundle", "agents", "settle"]
    assert {change["who"] for change in applied["diff"]["changes"]} == {"support"}
    await live.publish(second)
    got = await live.read(first, second)
    assert [got[id_][0] for id_ in (first, second)] == ["service", "minimal"]
    assert all("email" not in json.dumps(data) for _, data in got.values())  # minimal drops it, then and now
    back = live.asked("rollback", "--reason", "INC-1")
    assert (back["revision"], back["rollback_of"]) == (before + 2, before)
    await live.publish(third)
    view, data = (await live.read(third))[third]
    assert view == "service"
    assert "email" in json.dumps(data)
    told = live.asked("history", "--limit", "2")["revisions"]
    assert [(one["revision"], one["rollback_of"], one["reason"]) for one in told] == [
        (before + 2, before, "INC-1"),
        (before + 1, 0, "DPIA 8"),
    ]
    assert {one["state"] for one in live.asked("status")["instances"]} == {"current"}


async def test_agents_come_and_go_with_the_policies(live: Live) -> None:
    """An agent that is new in the policies is started, one that is gone is stopped, and `mesh.json` says so."""
    live.edit("tenants/acme.yaml", "agents: [desk]", "agents: [phone]")
    gone = live.mesh.agent_pid("desk")
    live.apply()
    await wait_ended([gone])
    agents = live.mesh.file.tenants["acme"].agents
    assert "desk" not in agents
    assert Path(agents["phone"].token_file).is_file()
    assert {one["name"] for one in live.asked("status")["instances"]} == set(agents)
    assert live.mesh.stop() == 0
    live.mesh.start()
    assert set(live.mesh.file.tenants["acme"].agents) == set(agents)


@pytest.mark.parametrize("victim", ["an agent", "mesh up"])
async def test_nobody_waits_for_the_dead(live: Live, victim: str) -> None:
    """After SIGKILL the successors alone count: one instance an agent, and an apply finds all of them current."""
    agents = sorted(live.mesh.file.tenants["acme"].agents)
    before = dict(await live.reporting())
    if victim == "an agent":
        os.kill(live.mesh.agent_pid("desk"), signal.SIGKILL)
    else:
        live.mesh.kill()
        live.mesh.start()
    with anyio.fail_after(DEADLINE_S):
        while True:
            there = await live.reporting()
            if [name for name, _ in there] == agents and dict(there)["desk"] != before["desk"]:
                break
            await anyio.sleep(0.05)
    live.edit("access/readers.yaml", SUPPORT_READS, SUPPORT_READS.replace("view: service", "view: minimal"))
    assert live.apply()["behind"] == []
    instances = live.asked("status")["instances"]
    assert [(one["name"], one["state"]) for one in instances] == [(name, "current") for name in agents]


async def test_what_does_not_hold_changes_nothing(live: Live) -> None:
    """Exit 1 where the policies' own tests fail, 2 where they do not load; the mesh goes on as it was."""
    before = live.asked("status")["revision"]
    (live.policies / "failing.yaml").write_text(FAILING)
    error = live.asked("apply", "--policies", live.policies, status=1)["error"]
    assert error["code"] == "policy-tests-failed"
    assert "failing.yaml" in error["message"]
    (live.policies / "failing.yaml").write_text("kind: Nonsense\n")
    error = live.asked("apply", "--policies", live.policies, status=2)["error"]
    assert error["code"] == "policies-invalid"
    assert live.asked("apply", "--policies", live.policies / "nowhere", status=2)["error"]["code"]
    assert live.asked("rollback", "999", status=1)["error"]["code"] == "not-found"
    (live.policies / "failing.yaml").unlink()
    assert live.apply()["unchanged"] is True
    assert live.asked("status")["revision"] == before


async def test_a_person_is_told_each_step(live: Live) -> None:
    """Without `--json`: what changes and who must agree, each step as it begins, and what is in force."""
    live.edit("access/readers.yaml", SUPPORT_READS, SUPPORT_READS.replace("view: service", "view: minimal"))
    before = live.asked("status")["revision"]
    done = live.command("apply", "--policies", live.policies)
    assert done.returncode == 0
    assert "support" in done.stdout
    assert f"revision {before + 1} is in force" in done.stdout
    assert "waiting until everybody runs it" in done.stderr
    status = live.command("status")
    assert status.returncode == 0
    assert "crm-adapter" in status.stdout
    history = live.command("history")
    assert f"{before + 1} in force" in history.stdout
