"""The control plane's door over NATS: who reaches it, and what it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from mesh.control.door import ControlDoor, pack, policy_handlers
from mesh.errors import Unavailable
from tests.contract.policy_mesh import PolicyMesh, policies, reads

pytestmark = pytest.mark.anyio


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[PolicyMesh]:
    """A tenant with policies, and its door open."""
    async with PolicyMesh.running(tmp_path) as made:
        await made.apply(reads("masked"))
        async with anyio.create_task_group() as group:
            group.start_soon(ControlDoor(made.control, policy_handlers(made.policies), made.proofs()).run)
            await anyio.lowlevel.checkpoint()
            yield made
            group.cancel_scope.cancel()


async def ask(mesh: PolicyMesh, verb: str, body: Any = None) -> dict[str, Any]:
    """Ask as the control plane's own credentials may."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body or {})
    return await mesh.ask(f"policy.{verb}", data)


async def test_an_apply_through_the_door(mesh: PolicyMesh) -> None:
    """Packed policies in, what was done out; each step is told to the inbox that was named."""
    operator = await mesh.connect(mesh.operator.control_creds("acme"), "operator")
    told: list[bytes] = []
    inbox = operator.new_inbox()
    operator.listen(inbox, lambda _s, _r, _h, data: told.append(data))
    body = {"files": pack(policies(reads("bare")), {}), "author": "ada", "expected": 1, "progress": inbox}
    answer = await mesh.ask("policy.apply", msgspec.json.encode(body), by=operator)
    assert (answer["revision"], answer["unchanged"], answer["behind"]) == (2, False, [])
    assert told == [b"tests", b"withdraw", b"extend", b"bundle", b"agents", b"settle"]
    status = await ask(mesh, "status")
    assert (status["tenant"], status["revision"], status["author"]) == ("acme", 2, "ada")
    assert (await ask(mesh, "rollback"))["rollback_of"] == 1
    revisions = (await ask(mesh, "history", {"limit": 2}))["revisions"]
    assert [(one["revision"], one["author"]) for one in revisions] == [(3, ""), (2, "ada")]


async def test_no_workload_reaches_the_door(mesh: PolicyMesh) -> None:
    """Neither an agent's nor a team's account gets an answer, and nothing happens."""
    for workload in ("crm-adapter", "team-support"):
        connection = await mesh.workload(workload)
        for verb in ("apply", "rollback", "status", "history"):
            with pytest.raises(Unavailable):
                await connection.request(f"ctl.policy.{verb}", b"{}", timeout_s=0.5)
    assert mesh.policies.plans.bundle.revision == 1


BAD_REQUESTS: list[tuple[str, Any, str]] = [
    ("nothing", {}, "not-found"),
    ("status", b"[", "bad-attribute"),
    ("status", b"[1]", "bad-attribute"),
    ("apply", {}, "bad-attribute"),
    ("apply", {"files": "AAAA"}, "bad-attribute"),
    ("apply", {"files": 7}, "bad-attribute"),
    ("apply", {"files": pack({"p.yaml": "kind: View"}, {})}, "policies-invalid"),
    ("apply", {"files": pack(policies(), {}), "expected": 9}, "bundle-chain"),
    ("rollback", {"revision": 9}, "not-found"),
    ("rollback", {"revision": "one"}, "bad-attribute"),
    ("history", {"limit": 0}, "bad-attribute"),
]


async def test_a_bad_request_is_answered_with_a_problem(mesh: PolicyMesh) -> None:
    """A stable code, and what was expected; the policies in force stay."""
    for verb, body, code in BAD_REQUESTS:
        error = (await ask(mesh, verb, body))["error"]
        assert (verb, error["code"]) == (verb, code)
        assert error["message"]
    assert mesh.policies.plans.bundle.revision == 1


async def test_a_question_is_answered_while_an_apply_waits(mesh: PolicyMesh) -> None:
    """Who asks for the status need not wait for the slowest agent."""
    asked = anyio.Event()

    async def slow(_request: dict[str, Any]) -> dict[str, Any]:
        await asked.wait()
        return {"done": True}

    async def quick(_request: dict[str, Any]) -> dict[str, Any]:
        asked.set()
        return {}

    async with anyio.create_task_group() as group:
        group.start_soon(ControlDoor(mesh.control, {"slow": slow, "quick": quick}, mesh.proofs(), noun="test").run)
        await anyio.lowlevel.checkpoint()
        answers: list[dict[str, Any]] = []

        async def wait_for_it() -> None:
            answers.append(await mesh.ask("test.slow", by=mesh.control))

        async with anyio.create_task_group() as asking:
            asking.start_soon(wait_for_it)
            await mesh.ask("test.quick", by=mesh.control)
        assert answers == [{"done": True}]
        group.cancel_scope.cancel()


async def test_a_fault_of_ours_is_answered_too(mesh: PolicyMesh, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asked learns that it failed, and nothing of what was in it; our log says where."""

    async def broken(_request: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("ada@example.org")

    async with anyio.create_task_group() as group:
        group.start_soon(ControlDoor(mesh.control, {"broken": broken}, mesh.proofs(), noun="test").run)
        await anyio.lowlevel.checkpoint()
        answer = await mesh.ask("test.broken", by=mesh.control)
        assert answer["error"]["code"] == "mesh-error"
        assert "ada" not in str(answer)
        group.cancel_scope.cancel()
    (told,) = [record for record in caplog.records if record.getMessage() == "request_failed"]
    assert "test_policy_door.py" in str(vars(told)["mesh_fields"])


async def test_who_holds_the_account_alone_is_refused(mesh: PolicyMesh, caplog: pytest.LogCaptureFixture) -> None:
    """The broker can send requests and see those of operators: none of its own counts, nor one seen before."""
    operator = await mesh.connect(mesh.operator.control_creds("acme"), "operator")
    body = b"{}"
    proof = mesh.proof("policy.status", body)
    reply = await operator.request("ctl.policy.status", body, headers=proof)
    assert msgspec.json.decode(reply.data)["revision"] == 1
    attempts: list[tuple[str, bytes, dict[str, str] | None]] = [
        ("status", body, None),
        ("status", body, proof),
        ("status", b'{"limit":1}', mesh.proof("policy.status", body)),
        ("rollback", body, mesh.proof("policy.status", body)),
        ("status", body, mesh.proof("policy.status", body, "globex")),
    ]
    for verb, asked, headers in attempts:
        reply = await operator.request(f"ctl.policy.{verb}", asked, headers=headers)
        assert msgspec.json.decode(reply.data)["error"]["code"] == "not-attested"
    assert mesh.policies.plans.bundle.revision == 1
    assert [record.getMessage() for record in caplog.records].count("request_not_attested") == len(attempts)
