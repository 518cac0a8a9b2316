"""What a team's reading brings with it: values encrypted for it, a record of break-glass, a report, a kept bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import mesh as library
from mesh import audit
from mesh.bundles import policy_key
from mesh.cli.session import Session, operator_session
from mesh.inbound import Admitted
from mesh.jetstream.manage import stream_info
from mesh.policy.envelope import open_bundle
from mesh.reports import read_reports
from tests.contract.agent_mesh import POLICIES
from tests.journey.meshes import RunningMesh, mesh_up
from tests.journey.test_cli import call

pytestmark = pytest.mark.anyio

DEADLINE_S = 60
TYPE = "crm.contact.glass.v1"
SOURCE = "/crm"
GLASS = """\
apiVersion: mesh/v1
kind: View
metadata: {name: glass, tenant: acme, owner: security}
spec:
  mask: [{tags: [pii.contact.email], as: encrypt, with: {mode: random, for: [support]}}]
  otherwise: redact
---
apiVersion: mesh/v1
kind: Access
metadata: {name: glass, tenant: acme, owner: security}
spec:
  allow:
    - id: inc-17
      who: {teams: [support, analytics]}
      subscribe: [crm.contact.glass.v1]
      view: glass
      expires: "2099-01-01T00:00:00Z"
      reason: INC-17
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: glass, tenant: acme, team: support}
spec: {types: [crm.contact.glass.v1], view: glass, start: all}
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: glass, tenant: acme, team: analytics}
spec: {types: [crm.contact.glass.v1], view: glass, start: all}
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """A small mesh with a grant that expires, in whose view an address is encrypted for support."""
    directory = tmp_path_factory.mktemp("mesh")
    policies = directory / "policies"
    policies.mkdir()
    (policies / "base.yaml").write_text(POLICIES.replace("desk]}", "desk]}, analytics: {agents: [lake]}"))
    (policies / "glass.yaml").write_text(GLASS)
    with mesh_up(directory, policies) as running:
        yield running


async def audited(session: Session) -> list[dict[str, Any]]:
    """Every audit record."""
    last = (await stream_info(session.connection, "AUDIT"))["state"]["last_seq"]
    found = []
    for sequence in range(1, last + 1):
        reply = await session.connection.request("$JS.API.DIRECT.GET.AUDIT", json.dumps({"seq": sequence}).encode())
        found += [json.loads(line) for line in reply.data.splitlines()]
    return found


async def read_one(m: library.Mesh) -> Admitted:
    """The first event of the subscription."""
    with anyio.fail_after(DEADLINE_S):
        async with m.subscription("glass") as subscription:
            delivery = await subscription.next()
            delivery.ack()
            return delivery.event


async def test_what_is_encrypted_for_a_team_opens_for_it_alone(mesh: RunningMesh) -> None:
    """`reveal` gives the original to a team of `for`, and leaves it as it is for another that reads the same view."""
    async with library.connect(mesh.data, team="support", agent="crm-adapter") as support:
        await support.publish(TYPE, {"email": "anna.schmidt@example.com"}, source=SOURCE, id="e-1")
        event = await read_one(support)
        shown = event.data["email"]
        opened = support.reveal(event)
    async with library.connect(mesh.data, team="analytics") as analytics:
        other = await read_one(analytics)
        closed = analytics.reveal(other)
    assert shown.startswith("e")
    assert "anna" not in shown
    assert opened["data"]["email"] == "anna.schmidt@example.com"
    assert event.data["email"] == shown
    assert closed["data"]["email"] == other.data["email"] == shown


async def test_what_a_grant_that_expires_hands_over_is_in_the_audit_trail(mesh: RunningMesh) -> None:
    """One record an event, by the team that read it: rule, view, type, id and source, and no value."""
    async with operator_session(str(mesh.data)) as operator:
        async with library.connect(mesh.data, team="support", agent="crm-adapter") as support:
            await support.publish(TYPE, {"email": "anna.schmidt@example.com"}, source=SOURCE, id="e-2")
            await read_one(support)
        with anyio.fail_after(DEADLINE_S):
            while not (found := [r for r in await audited(operator) if r["facts"].get("event") == "e-2"]):
                await anyio.sleep(0.05)
    (record,) = found
    assert record["kind"] == audit.UNMASKED
    assert record["writer"].startswith("team-support.")
    assert record["facts"] == {
        "event": "e-2", "source": SOURCE, "type": TYPE, "view": "glass", "rule": "inc-17", "revision": 1,
    }  # fmt: skip


async def test_a_reading_team_reports_what_it_runs(mesh: RunningMesh) -> None:
    """While it is connected it is among those who run the revision in force; the agents are too."""
    async with operator_session(str(mesh.data)) as operator, library.connect(mesh.data, team="support"):
        with anyio.fail_after(DEADLINE_S):
            while True:
                reports = await read_reports(operator.connection)
                said = {(r.kind, r.name): r for r in reports}
                if ("team", "support") in said and ("agent", "crm-adapter") in said:
                    break
                await anyio.sleep(0.05)
        assert {r.revision for r in said.values()} == {1}
        assert {r.digest for r in said.values()} == {operator.plans.bundle.digest}
    async with operator_session(str(mesh.data)) as operator:
        assert not [r for r in await read_reports(operator.connection) if r.kind == "team"]


async def test_the_last_good_bundle_lies_beside_the_credentials(mesh: RunningMesh) -> None:
    """Of the team and of each agent, signed as it was handed out."""
    file = mesh.data / "teams" / "support" / "bundle.last"
    async with library.connect(mesh.data, team="support"):
        with anyio.fail_after(DEADLINE_S):
            while not file.exists():
                await anyio.sleep(0.05)
    key = policy_key(mesh.data / "trust")
    for kept in (file, mesh.data / "agents" / "crm-adapter" / "bundle.last"):
        assert open_bundle(kept.read_bytes(), key).revision == 1


async def run(*arguments: str) -> list[dict[str, Any]]:
    """What a command prints with `--json`, as a list; it has to succeed."""
    done = await anyio.to_thread.run_sync(lambda: call(*arguments, "--json"))
    assert done.returncode == 0, done.stdout + done.stderr
    decoded = json.loads(done.stdout)  # `show` prints a list, the others one object here
    return decoded if isinstance(decoded, list) else [decoded]


async def test_the_tools_show_what_the_team_would_be_handed_now(tmp_path: Path) -> None:
    """After an apply that narrows a mask, `events show` and `tail` and a consumer narrow a stored event alike."""
    pseudonym = "as: pseudonym, with: {domain: customer}}"
    assert POLICIES.count(pseudonym) == 1
    policies = tmp_path / "policies"
    policies.mkdir()
    document = "---\napiVersion: mesh/v1\nkind: Subscription\nmetadata: {name: glass, tenant: acme, team: support}\n"
    text = POLICIES + document + "spec: {types: [crm.contact.>], start: all}\n"
    (policies / "all.yaml").write_text(text.replace(pseudonym, "as: clear}"))
    context = ["--context", str(tmp_path / "data")]
    with mesh_up(tmp_path, policies) as running:
        async with library.connect(running.data, team="support", agent="crm-adapter") as support:
            await support.publish(TYPE, {"email": "anna.schmidt@example.com"}, source=SOURCE, id="old")
            (policies / "all.yaml").write_text(text)
            await run("policy", "apply", "--policies", str(policies), *context)
            handed = await read_one(support)
            (after,) = await run("events", "show", "old", "--team", "support", *context)
            (tailed,) = await run("events", "tail", "--all", "--count", "1", "--team", "support", *context)
    assert handed.data == after["event"]["data"] == tailed["event"]["data"] == {"email": "[REDACTED]"}
    assert (after["verified"], after["view"], after["rule"]) == (True, "service", "support-reads")
