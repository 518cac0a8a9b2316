"""`ctl.trust.issue` and the files that come of it, with an agent that runs on them, against a real server."""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.core import Agent
from agent.settings import load
from mesh import audit
from mesh.ca import MeshCA
from mesh.certificates import check_chain, make_csr
from mesh.cli.trust import issue as command
from mesh.control.reconcile import now_ms
from mesh.control.trust_requests import MAX_HOURS
from mesh.errors import (
    BadAttribute,
    BadCertificate,
    BadEnrolment,
    ConfigError,
    MeshError,
    NotFound,
    Unavailable,
    WorkloadBarred,
)
from mesh.keys import key_id
from tests.contract.agent_mesh import event, until
from tests.contract.policy_mesh import PolicyMesh
from tests.contract.test_trust_service import IDS, World

pytestmark = pytest.mark.anyio

AGENT = "crm-adapter"
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One control plane for all tests of this file."""
    async with PolicyMesh.running(tmp_path_factory.mktemp("trust-issue")) as mesh:
        world = World(mesh)
        await world.start()
        yield world


@pytest.fixture
async def world(shared: World) -> AsyncIterator[World]:
    """The same; whoever was barred is admitted again afterwards."""
    shared.audited.clear()
    yield shared
    for workload in shared.standing.barred:
        await shared.ask("admit", agent=workload)


def request(world: World, seed: bytes, *, agent: str = AGENT, hours: int = 24, **more: Any) -> dict[str, Any]:
    """What the command sends, and *more*."""
    return {"agent": agent, "csr": make_csr(seed), "hours": hours, "author": "ada", **more}


def kid_of(seed: bytes) -> str:
    """The key id of a seed."""
    return key_id(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())


def agent_on(world: World, out: Path) -> Agent:
    """The agent as `mesh up` sets it up, with a key in files; not yet started."""
    base = world.data.agent(AGENT)
    settings = {
        "event_key_file": out / "event.key", "event_cert_file": out / "event.crt", "file_check_s": 0,
        "trust_dir": world.mesh.directory / "trust", "http_port": 0, "webhooks_port": 0, "health_port": 0,
    }  # fmt: skip
    environ = {f"MESH_AGENT_{name.upper()}": str(value) for name, value in settings.items()}
    return Agent(load((base / "agent.toml").read_text(), environ).settings, base)


async def issued(world: World, out: Path, *, hours: int = 24) -> str:
    """Have a key certified and put into *out*, as the command does; returns its id."""
    seed = secrets.token_bytes(32)
    said = await world.ask("issue", **request(world, seed, hours=hours))
    command.write(out, seed, check_chain(said["chain"], world.mesh.authority.roots))
    return str(said["kid"])


async def test_it_is_published_before_it_is_answered_and_stands_in_the_trail(world: World) -> None:
    """For the agent's own id, for as long as was asked, under the mesh CA."""
    seed, at_ms = secrets.token_bytes(32), now_ms()
    said = await world.ask("issue", **request(world, seed, hours=MAX_HOURS, reason="a host without a control plane"))
    held = check_chain(said["chain"], world.mesh.authority.roots)
    assert (said["tenant"], said["agent"], said["kid"]) == ("acme", AGENT, kid_of(seed))
    assert (held.kid, held.spiffe_id, held.issuer_kid) == (kid_of(seed), IDS[AGENT], world.mesh.authority.ca.kid)
    assert at_ms - 1000 <= held.not_after_ms - MAX_HOURS * HOUR_MS <= now_ms()
    stored = await world.store.certificate(held.kid)
    assert stored is not None
    assert stored.chain == said["chain"]
    assert world.facts(audit.ENROLLED) == {
        "workload": AGENT, "spiffe_id": IDS[AGENT], "kid": held.kid, "attested": "operator", "hours": MAX_HOURS,
        "author": "ada", "reason": "a host without a control plane",
    }  # fmt: skip


async def test_what_cannot_be_stored_is_not_answered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody holds a certificate that others cannot find; the trail says so."""

    async def fails(_chain: bytes) -> str:
        raise Unavailable("the store does not answer")

    monkeypatch.setattr(world.store, "publish", fails)
    with pytest.raises(Unavailable):
        await world.ask("issue", **request(world, secrets.token_bytes(32)))
    assert world.facts(audit.ENROLMENT_REFUSED)["code"] == Unavailable.code


SEED = bytes(range(32))
REFUSED: dict[str, tuple[dict[str, Any], type[MeshError]]] = {
    "for no time": ({"hours": 0}, BadAttribute),
    "for too long": ({"hours": MAX_HOURS + 1}, BadAttribute),
    "with what is no request": ({"csr": b"x"}, BadEnrolment),
    "with a request of another's key": ({"csr": make_csr(SEED)[:-1] + b"x"}, BadEnrolment),
}


@pytest.mark.parametrize("asked", REFUSED)
async def test_what_is_malformed_is_refused(world: World, asked: str) -> None:
    """Nothing is issued, and the trail says why."""
    changed, error = REFUSED[asked]
    with pytest.raises(error):
        await world.ask("issue", **request(world, SEED, **changed))
    facts = world.facts(audit.ENROLMENT_REFUSED)
    assert facts == {"workload": AGENT, "code": error.code, "attested": "operator"}
    assert not await world.store.known(kid_of(SEED))


async def test_an_unknown_agent_gets_none(world: World) -> None:
    """Nobody is issued whom the policies do not know."""
    with pytest.raises(NotFound):
        await world.ask("issue", **request(world, SEED, agent="nobody"))
    assert not await world.store.known(kid_of(SEED))


async def test_one_request_is_one_certificate(world: World) -> None:
    """Played again it is refused."""
    asked = request(world, secrets.token_bytes(32))
    await world.ask("issue", **asked)
    with pytest.raises(BadEnrolment):
        await world.ask("issue", **asked)


async def test_a_barred_agent_gets_none(world: World) -> None:
    """Not before it is admitted."""
    await world.ask("revoke", agent=AGENT)
    with pytest.raises(WorkloadBarred):
        await world.ask("issue", **request(world, SEED))
    assert not await world.store.known(kid_of(SEED))


async def test_an_agent_runs_on_the_files_until_it_is_revoked(world: World, tmp_path: Path) -> None:
    """It publishes under the key, takes a renewed one without a restart, and `list` and `revoke --agent` see both."""
    first = await issued(world, tmp_path / "keys", hours=48)
    agent = agent_on(world, tmp_path / "keys")
    await agent.start()
    try:
        await until(lambda: not agent.not_ready())
        await agent.publish(event(id="first"))
        assert agent.keys.signer.kid == first
        second = await issued(world, tmp_path / "keys")
        await until(lambda: agent.keys.signer.kid == second)
        await agent.publish(event(id="second"))

        listed = {key["kid"]: key for key in (await world.ask("list"))["keys"]}
        assert [(listed[kid]["agent"], listed[kid]["state"]) for kid in (first, second)] == [(AGENT, "good")] * 2
        said = await world.ask("revoke", agent=AGENT, now=True)
        assert {first, second} <= {key["kid"] for key in said["keys"]}
        assert {first, second} <= set(await world.revoked())
        with anyio.fail_after(60):
            while agent.state()["nats_connected"]:
                await anyio.sleep(0.01)
    finally:
        await agent.close()


async def test_an_answer_for_another_key_or_of_another_ca_is_none(world: World, tmp_path: Path) -> None:
    """The broker carries it, too: the command checks it before it writes a file."""
    seed, trust = secrets.token_bytes(32), world.mesh.directory / "trust"
    said = await world.ask("issue", **request(world, seed))
    answer = {"chain": b64encode(said["chain"]).decode()}
    assert command.checked(answer, seed, trust).kid == kid_of(seed)
    with pytest.raises(BadCertificate):
        command.checked(answer, SEED, trust)
    with pytest.raises(BadCertificate):
        command.checked({"chain": "no base64"}, seed, trust)
    (tmp_path / "ca.crt").write_bytes(MeshCA.create("mesh.local", now_ms=now_ms()).root_pem)
    (tmp_path / "trust.pub").write_text((trust / "trust.pub").read_text())
    with pytest.raises(BadCertificate):
        command.checked(answer, seed, tmp_path)


async def test_files_that_cannot_be_written_name_the_key_to_revoke(world: World, tmp_path: Path) -> None:
    """It is in the trust store by then, and nobody has it."""
    (tmp_path / "event.crt").mkdir()
    seed = secrets.token_bytes(32)
    said = await world.ask("issue", **request(world, seed))
    with pytest.raises(ConfigError) as failed:
        command.write(tmp_path, seed, check_chain(said["chain"], world.mesh.authority.roots))
    assert f"mesh trust revoke {kid_of(seed)}" in failed.value.next
