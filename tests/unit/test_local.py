from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mesh.control.agents import AgentProcess
from mesh.control.attest import FileAttestor
from mesh.control.datadir import DataDirectory
from mesh.control.local import LocalWorkloads
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import Operator
from mesh.control.renewal import Renewal
from mesh.control.standing import Standing
from mesh.control.workload_files import WorkloadFiles
from mesh.jetstream.accounts import Nkey
from mesh.jetstream.link import Credentials
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


async def test_where_the_platform_gives_tokens_none_is_written(tmp_path: Path, grants: Grants) -> None:
    """Nor replaced: there is no file that could be lost."""
    data = DataDirectory.open(tmp_path / "d")
    what: dict[str, Any] = {"nats_url": "nats://127.0.0.1:1", "site": "local", "trust_domain": "mesh.local"}
    files = WorkloadFiles("acme", data, Operator(NkeyFiles(data.keys)), None, ports=None, tls=None, **what)
    files.write(grants)
    agent = next(iter(grants.agents))
    files.write_token(agent, grants.agents[agent].spiffe_id)
    assert not files.keep_token(agent, grants.agents[agent].spiffe_id)
    assert not list(data.root.rglob("enrol.token"))
    assert not data.enrolment("acme").exists()


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


# --- credentials that a crash left half replaced ---------------------------------------------------------------------

WORKLOADS = ["crm-adapter", "team-support"]


class Killed(BaseException):
    """The process ended here."""


def user_of(data: DataDirectory, workload: str) -> str:
    """The public key of the NATS user in a workload's creds file."""
    team = workload.removeprefix("team-")
    directory = data.agent(workload) if team == workload else data.team(team)
    return Nkey(Credentials.parse((directory / "nats.creds").read_bytes()).seed.decode()).public


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("at", [(NkeyFiles, "renew"), (WorkloadFiles, "write_credentials")])
async def test_a_start_ends_what_a_killed_control_plane_began(
    tmp_path: Path, grants: Grants, workload: str, at: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it replaced a user, it leaves credentials that no server takes: the next start writes good ones."""
    data = DataDirectory.open(tmp_path / "d")
    local = workloads(data)
    await local.prepare(grants)
    standing, keys = Standing(data.standing("acme")), NkeyFiles(data.keys)
    others = {name: user_of(data, name) for name in (*grants.agents, *WORKLOADS) if name != workload}

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*at, killed)
        with pytest.raises(Killed):
            Renewal(keys, local.files, standing).user(workload)
    assert user_of(data, workload) in standing.users[workload]

    await workloads(data).prepare(grants)
    held = keys.find("user", f"acme/{workload}")
    assert held is not None
    assert user_of(data, workload) == held.public
    assert held.public not in Standing(data.standing("acme")).users[workload]
    assert {name: user_of(data, name) for name in others} == others


async def test_a_start_leaves_good_credentials_alone(tmp_path: Path, grants: Grants) -> None:
    """Also those of a user that took the place of a revoked one: not a byte is other."""
    data = DataDirectory.open(tmp_path / "d")
    local = workloads(data)
    await local.prepare(grants)
    for workload in WORKLOADS:
        Renewal(NkeyFiles(data.keys), local.files, Standing(data.standing("acme"))).user(workload)
    files = [*(tmp_path / "d").glob("agents/*/nats.creds"), *(tmp_path / "d").glob("teams/*/nats.creds")]
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in files}
    await workloads(data).prepare(grants)
    assert len(files) == len(grants.agents) + len(grants.teams)
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in files} == before


async def test_two_replacements_at_once_leave_one_good_user(
    tmp_path: Path, grants: Grants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one in the creds file; whoever was made before it is revoked."""
    data = DataDirectory.open(tmp_path / "d")
    local = workloads(data)
    await local.prepare(grants)
    standing, keys, together = Standing(data.standing("acme")), NkeyFiles(data.keys), threading.Barrier(2)
    made = [user_of(data, "desk")]
    renew = NkeyFiles.renew

    def slowly(*what: Any) -> Nkey:
        with suppress(threading.BrokenBarrierError):
            together.wait(0.2)  # until both have begun, where nothing keeps them from it
        key = renew(*what)
        made.append(key.public)
        return key

    monkeypatch.setattr(NkeyFiles, "renew", slowly)
    renewal = Renewal(keys, local.files, standing)
    with ThreadPoolExecutor(2) as threads:
        for ended in [threads.submit(renewal.user, "desk") for _ in range(2)]:
            ended.result()
    assert user_of(data, "desk") == made[-1]
    assert set(standing.users["desk"]) == set(made[:-1])
