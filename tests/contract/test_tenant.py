"""A tenant of a real server as `mesh up` opens it, without the processes of its agents."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.enrolment import Enroller
from agent.settings import AgentSettings
from mesh.anchors import open_keyring
from mesh.control.change import checked
from mesh.control.datadir import DataDirectory
from mesh.control.enrol import Enrolment
from mesh.control.given import Given
from mesh.control.nats_server import NatsServer, operator_config
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import SYSTEM, Operator, now_ms
from mesh.control.tenant import Options, Shared, Tenant, open_tenant
from mesh.control.trust import Authority
from mesh.control.truststore import TrustStore
from mesh.identity import Signer
from mesh.jetstream.connection import Connection
from tests.conftest import ROOT
from tests.contract.policy_mesh import policies, reads

pytestmark = pytest.mark.anyio

AGENT, MANAGED = "crm-adapter", "desk"
SPIFFE = f"spiffe://mesh.local/ns/acme/sa/{AGENT}"
OLDER = ROOT / "tests" / "tables" / "older_trust"


@asynccontextmanager
async def tenant_of(data: DataDirectory) -> AsyncIterator[tuple[Tenant, str]]:
    """`acme` on its own server, both with what the directory holds; and the server's URL."""
    operator = Operator(NkeyFiles(data.keys))
    authority = Authority(data.trust, data.admin, trust_domain="mesh.local", now_ms=now_ms())
    operator_jwt, system_account, system_jwt = operator.server_identity()
    config = operator_config(
        operator_jwt=operator_jwt,
        system_account=system_account,
        system_jwt=system_jwt,
        resolver_dir=data.nats / "accounts",
        store_dir=data.nats / "store",
    )
    files = policies(reads("bare"))
    options, given = Options(data=data.root, policies=data.root), Given(files, {}, checked(files, {}, None))
    server = await NatsServer.start(config, data.nats)
    try:
        system = await Connection.open(server.url, name="system", creds=operator.control_creds(SYSTEM))
        try:
            shared = Shared(data, operator, authority, system, server.url, options, _nothing)
            async with open_tenant(shared, "acme", ["acme"], given, lambda _: None) as tenant:
                yield tenant, server.url
        finally:
            await system.close()
    finally:
        await server.stop()


async def _nothing() -> None:
    """There is no `mesh.json`."""


async def enrolled(data: DataDirectory, url: str) -> Signer:
    """Enrol as the agent does, from its own files."""
    base = data.agent(AGENT)
    connection = await Connection.open(url, name=AGENT, creds=(base / "nats.creds").read_bytes())
    try:
        return await Enroller(AgentSettings(name=AGENT, tenant="acme"), base).enrol(connection)
    finally:
        await connection.close()


def make_older(data: DataDirectory) -> None:
    """Turn the directory into one of the version whose root signed certificates itself, with event keys in files."""
    for name in ("root.crt", "root.key", "ca.crt", "ca.key", "trust.key", "enrol.key"):
        (data.admin / name).unlink()
    for name in ("trust", "standing", "enrol"):
        shutil.rmtree(data.admin / name, ignore_errors=True)
    (data.trust / "enrol.pub").unlink()
    for name in ("ca.crt", "ca.key", "trust.key"):
        shutil.copy(OLDER / name, data.trust / name)
    for agent in (AGENT, MANAGED):
        (data.agent(agent) / "enrol.token").unlink()
        (data.agent(agent) / "event.key").write_text("of an earlier version")
        shutil.copy(OLDER / "event.crt", data.agent(agent) / "event.crt")
    with (data.agent(MANAGED) / "agent.toml").open("a") as settings:
        settings.write('event_key_file = "event.key"\nevent_cert_file = "event.crt"\n')


async def test_agents_can_enrol_from_the_first_moment(tmp_path: Path) -> None:
    """Before anything runs: agents that start have to be ready. A second start goes on with what was there."""
    data = DataDirectory.open(tmp_path / "data")
    data.lock_file.touch()
    async with tenant_of(data) as (tenant, url):
        first = await enrolled(data, url)
        assert await tenant.store.known(first.kid)
        await tenant.store.revoke({first.kid: 1})
    async with tenant_of(data) as (tenant, url):
        second = await enrolled(data, url)
        assert second.kid != first.kid
        assert {held.kid for held in await tenant.store.certificates()} == {first.kid, second.kid}
        assert tenant.store.revoked == {first.kid: 1}


async def test_a_mesh_of_an_earlier_version_is_carried_over(tmp_path: Path) -> None:
    """What it stored verifies, its event keys in files end, its agents enrol; a key that others manage stays theirs."""
    data = DataDirectory.open(tmp_path / "data")
    data.lock_file.touch()
    async with tenant_of(data):
        pass
    make_older(data)
    async with tenant_of(data) as (tenant, url):
        older = x509.load_pem_x509_certificate((OLDER / "event.crt").read_bytes()).public_bytes(Encoding.DER)
        signer = await enrolled(data, url)
        keyring = open_keyring(data.trust, tenant="acme")
        keyring.apply((data.statement("acme")).read_bytes())
        kid = keyring.add(older).kid
        from_ms = keyring.revoked_from(kid)
        assert from_ms is not None
        assert now_ms() - 60_000 < from_ms <= now_ms()  # what is stored was stored before
        assert keyring.add(signer.certificate).spiffe_id == SPIFFE
        assert keyring.revoked_from(signer.kid) is None
        assert tenant.store.revoked == {kid: from_ms}
    assert not [name for name in ("event.key", "event.crt") if (data.agent(AGENT) / name).exists()]
    assert [name for name in ("event.key", "event.crt") if (data.agent(MANAGED) / name).exists()] != []


async def test_a_mesh_ca_that_was_revoked_signs_nothing(tmp_path: Path) -> None:
    """Where `admin/` came back from a backup there is another one: agents could not use what the old one signs."""
    data = DataDirectory.open(tmp_path / "data")
    data.lock_file.touch()
    async with tenant_of(data) as (tenant, url):
        before = (await enrolled(data, url)).issuer_kid
        await tenant.store.revoke({before: now_ms()})
    async with tenant_of(data) as (tenant, url):
        issuer = (await enrolled(data, url)).issuer_kid
        assert issuer != before
        assert issuer not in tenant.store.revoked


@pytest.mark.parametrize("part", ["enrolment", "store"])
async def test_a_tenant_without_enrolment_or_statements_is_not_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """What ends one of them ends the mesh, and says so."""

    async def broken(_self: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr({"enrolment": Enrolment, "store": TrustStore}[part], "run", broken)
    data = DataDirectory.open(tmp_path / "data")
    data.lock_file.touch()
    async with tenant_of(data) as (tenant, _):
        with pytest.raises(ExceptionGroup) as ended, anyio.fail_after(60):
            await tenant.run()
    assert ended.group_contains(RuntimeError, match="broken")
