from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mesh.control.agents import AgentProcess
from mesh.control.attest import FileAttestor
from mesh.control.datadir import DataDirectory
from mesh.control.local import LocalWorkloads
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import Operator
from mesh.control.workload_files import WorkloadFiles
from mesh.policy.bundle import compile_bundles
from mesh.policy.compile import Plans
from mesh.policy.grants import Grants
from mesh.policy.load import load
from tests.contract.policy_mesh import policies, reads

pytestmark = pytest.mark.anyio


@pytest.fixture
def grants() -> Grants:
    """Of three agents: crm-adapter, desk, lake."""
    bundle = compile_bundles(load(policies(reads("bare"))), site="local", trust_domain="mesh.local", created_ms=0)
    return Plans(bundle["acme"]).grants(now_ms=1)


def workloads(data: DataDirectory, **changes: Any) -> LocalWorkloads:
    """Of a mesh without TLS in which nobody is barred, but for *changes*."""
    operator, attestor = Operator(NkeyFiles(data.keys)), FileAttestor(data.enrolment("acme"))
    what: dict[str, Any] = {"nats_url": "nats://127.0.0.1:1", "site": "local", "trust_domain": "mesh.local"}
    files = WorkloadFiles("acme", data, operator, attestor, ports=None, tls=None, **what)

    async def nothing(*_: object) -> None:
        """Nobody has to be told."""

    options = {"barred": frozenset, "tls": None, "taken": {}, "changed": nothing, "forget": nothing, **changes}
    return LocalWorkloads("acme", data, files, **what, **options)


async def test_an_agent_s_directory_holds_what_it_needs_and_no_event_key(tmp_path: Path, grants: Grants) -> None:
    """Its key is made in its memory; the token it asks with is its own."""
    data = DataDirectory.open(tmp_path / "d")
    await workloads(data).prepare(grants)
    held = {name: {path.name for path in data.agent(name).iterdir()} for name in grants.agents}
    files = {"agent.toml", "nats.creds", "enrol.token", "token", "dedupe.key", "domains", "ciphers"}
    assert held == dict.fromkeys(grants.agents, files)
    assert len({(data.agent(name) / "enrol.token").read_bytes() for name in grants.agents}) == len(grants.agents)


async def test_a_barred_agent_keeps_no_mesh_from_starting(
    tmp_path: Path, grants: Grants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets no certificate and is not ready: it is started like the others, and nobody waits for it."""
    waited, launched = [], []

    async def start(process: AgentProcess) -> None:
        waited.append(process.name)

    monkeypatch.setattr(AgentProcess, "start", start)
    monkeypatch.setattr(AgentProcess, "launch", lambda process: launched.append(process.name))
    local = workloads(DataDirectory.open(tmp_path / "d"), barred=lambda: frozenset({"lake"}))
    await local.start(grants)
    assert (sorted(waited), launched) == (["crm-adapter", "desk"], ["lake"])
