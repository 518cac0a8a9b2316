"""`mesh up`: what it leaves on disk, and that it goes on, whatever ends in between."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import anyio
import pytest

from mesh.client import connect
from tests.journey.meshes import RunningMesh, contact, mesh_up, policies_with, wait_ended
from tests.journey.test_cli import call, run

SOURCE = "/salesforce/eu"
TYPE = "crm.contact.updated.v1"
AGENT = "crm-adapter"
DEADLINE_S = 60

pytestmark = pytest.mark.anyio


async def post(mesh: RunningMesh, id_: str) -> dict[str, Any]:
    """Post one contact as an adapter does: again, with the same id, until the agent says 202."""
    agent = mesh.file.tenants["acme"].agents[AGENT]
    headers = {
        "Authorization": f"Bearer {Path(agent.token_file).read_text().strip()}",
        "Content-Type": "application/cloudevents+json",
    }
    event = {"specversion": "1.0", "id": id_, "source": SOURCE, "type": TYPE, "data": contact()}
    with anyio.fail_after(DEADLINE_S):
        async with aiohttp.ClientSession() as http:
            while True:
                try:
                    async with http.post(f"{agent.url}/v1/events", json=event, headers=headers) as response:
                        answer: dict[str, Any] = await response.json()
                        if response.status == 202:
                            return answer
                        assert response.status == 503, answer
                except aiohttp.ClientConnectionError:
                    pass
                await anyio.sleep(0.05)


async def take(mesh: RunningMesh, *wanted: str) -> list[str]:
    """Handle support's contacts until all the *wanted* are among them; returns their ids, in order."""
    got: list[str] = []
    with anyio.fail_after(DEADLINE_S):
        async with connect(mesh.data, team="support") as m, m.subscription("contacts") as contacts:
            while not set(wanted) <= set(got):
                async with await contacts.next() as event:
                    got.append(event.id)
    return got


async def signer(mesh: RunningMesh, id_: str) -> str:
    """Who signed the event *id_*, as support sees it once it is verified."""
    with anyio.fail_after(DEADLINE_S):
        async with connect(mesh.data, team="support") as m, m.subscription("contacts") as contacts:
            while True:
                async with await contacts.next() as event:
                    if event.id == id_:
                        return event.spiffe_id


def kept(data: Path) -> dict[str, bytes]:
    """Every key, token and credential of a data directory; of credentials the seed, since a JWT may be renewed.

    Not what changes all the time: where agents listen, trust statements, the trust that readers keep, the spool.
    """
    patterns = ("admin/**/*", "agents/**/*", "teams/**/*", "trust/**/*", "nats/keys/**/*")
    files = (file for pattern in patterns for file in data.glob(pattern) if file.is_file())
    renewed = {data / "admin" / "trust", *data.glob("teams/*/trust"), *data.glob("agents/*/trust")}
    changing = ("ports.json", "spool.db", "spool.db-wal", "spool.db-shm")
    lasting = (file for file in files if file.name not in changing and not renewed & set(file.parents))
    found = {str(file.relative_to(data)): file.read_bytes() for file in lasting}
    return {name: content.partition(b"BEGIN USER NKEY SEED")[2] or content for name, content in found.items()}


async def test_mesh_file_says_where_everything_is(mesh: RunningMesh) -> None:
    """`mesh.json` has the agreed members, is what `--json` printed, and every file it names is there."""
    file = json.loads((mesh.data / "mesh.json").read_bytes())
    assert json.loads(mesh.printed) == file
    assert set(file) == {"nats_url", "data", "site", "tenants"}
    assert (file["data"], file["site"]) == (str(mesh.data), "local")
    (tenant,) = file["tenants"].values()
    assert set(tenant) == {"agents", "teams"}
    for agent in tenant["agents"].values():
        assert set(agent) == {"url", "webhooks_url", "health_url", "token_file", "creds_file"}
        assert Path(agent["token_file"]).is_file()
        assert Path(agent["creds_file"]).is_file()
    for team in tenant["teams"].values():
        assert set(team) == {"creds_file", "subscriptions"}
        assert Path(team["creds_file"]).is_file()
        for address in team["subscriptions"].values():
            several = {"streams"} if len(address.get("streams", ())) > 1 else set()
            assert set(address) == {"stream", "durable", "view"} | several
    assert tenant["teams"]["support"]["subscriptions"]["contacts"] == {
        "stream": "EV_local_crm",
        "durable": "support--contacts",
        "view": "service",
    }


async def test_data_directory_is_private_and_complete(mesh: RunningMesh) -> None:
    """Directories are 0700 and files 0600 whatever the umask; an agent holds the domain keys it needs."""
    await post(mesh, uuid4().hex)
    modes = {path: path.lstat().st_mode & 0o777 for path in [mesh.data, *mesh.data.rglob("*")]}
    assert {str(path): oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}
    there = {str(path.relative_to(mesh.data)) for path in modes}
    own = {"agent.toml", "nats.creds", "enrol.token", "dedupe.key", "token"}
    assert {f"agents/{agent}/{name}" for agent in (AGENT, "desk") for name in own} <= there
    assert {
        "admin/nats.creds",
        "admin/policy.key",
        "admin/bundles/acme.bundle",
        "trust/policy.pub",
        "teams/support/nats.creds",
        "mesh.json",
        "trust",
        "log",
    } <= there
    assert not [name for name in there if name.endswith(("event.key", "event.crt"))], "event keys stay in memory"
    assert {name for name in there if name.startswith("trust/")} == {
        f"trust/{name}" for name in ("ca.crt", "trust.pub", "policy.pub", "enrol.pub")
    }
    masks_with = {path.name for path in (mesh.data / "agents" / AGENT / "domains").iterdir()}
    assert masks_with == {"customer.key", "customer-contact.key"}
    assert not list((mesh.data / "agents" / "desk" / "domains").iterdir())


async def test_second_start_on_a_used_directory_is_refused(mesh: RunningMesh, root: Path) -> None:
    """It exits 2 and says who holds the directory; the mesh that runs does not notice."""
    before, children = mesh.file, mesh.children()
    second = run("up", "--data", str(mesh.data), "--policies", str(root / "policies"), "--json")
    assert second.returncode == 2
    error = json.loads(second.stdout)["error"]
    assert error["code"] == "bad-config"
    assert error["message"] == f"another mesh runs on {mesh.data}"
    assert "--data" in error["next"]
    assert mesh.file == before
    assert mesh.children() == children


async def test_bad_policies_start_nothing(tmp_path: Path, root: Path) -> None:
    """A policy that does not load ends `mesh up` with 2, naming file and line; nothing is made and nothing runs."""
    document = "apiVersion: mesh/v1\nkind: View\nmetadata: {name: v, tenant: acme, owner: security}\nspec:\n  rowz: x\n"
    policies = policies_with(tmp_path, root / "policies", {"zz-broken.yaml": document})
    refused = run("up", "--data", str(tmp_path / "data"), "--policies", str(policies))
    assert refused.returncode == 2
    assert "zz-broken.yaml:5" in refused.stderr.replace("\n", "")
    assert refused.stdout == ""
    assert not (tmp_path / "data").exists()


async def test_agent_of_another_tenant_starts_nothing(tmp_path: Path, root: Path) -> None:
    """`fund/feed-in` loads, but no process could be it: `mesh up` ends with 2 and says what to do."""
    tenant = (root / "policies/tenants/acme.yaml").read_text()
    changed = tenant.replace("    support:", "    fund: {agents: [fund/feed-in]}\n    support:")
    policies = policies_with(tmp_path, root / "policies", {"tenants/acme.yaml": changed})
    refused = run("up", "--data", str(tmp_path / "data"), "--policies", str(policies), "--json")
    assert refused.returncode == 2
    error = json.loads(refused.stdout)["error"]
    assert (error["code"], error["got"]) == ("bad-config", "fund/feed-in")
    assert "remove it from the Tenant document" in error["next"]
    assert not (tmp_path / "data").exists()


async def test_directory_of_other_things_is_refused(tmp_path: Path, root: Path) -> None:
    """`--data` on somebody's files ends with 2 and touches none of them."""
    directory = tmp_path / "home"
    directory.mkdir(mode=0o700)
    (directory / "letters.txt").touch()
    refused = run("up", "--data", str(directory), "--policies", str(root / "policies"), "--json")
    assert refused.returncode == 2
    assert "no mesh made it" in json.loads(refused.stdout)["error"]["message"]
    assert [path.name for path in directory.iterdir()] == ["letters.txt"]


async def test_agent_signs_with_the_identity_the_policies_give_it(tmp_path: Path, root: Path) -> None:
    """With `identities` its events verify under that id; policies applied without them go back to the usual one."""
    identity = "spiffe://mesh.local/k8s/crm"
    policies = policies_with(tmp_path, root / "policies")
    file = policies / "tenants" / "acme.yaml"
    tenant = file.read_text()
    file.write_text(tenant.replace("  delivery:", f"  identities: {{{AGENT}: {identity}}}\n  delivery:"))
    signers = {}
    with mesh_up(tmp_path, policies) as mesh:
        await post(mesh, "with")
        signers["with"] = await signer(mesh, "with")
        assert f'spiffe_id = "{identity}"' in (mesh.data / "agents" / AGENT / "agent.toml").read_text()
        file.write_text(tenant)
        applied = call("policy", "apply", "--policies", str(policies), "--context", str(mesh.data))
        assert applied.returncode == 0, applied.stdout + applied.stderr
        await post(mesh, "without")
        signers["without"] = await signer(mesh, "without")
    assert signers == {"with": identity, "without": f"spiffe://mesh.local/ns/acme/sa/{AGENT}"}


async def test_policies_in_force_survive_other_policies_at_the_next_start(tmp_path: Path, root: Path) -> None:
    """A restart with a directory that does not even load keeps what is in force, and says so: changing is for apply."""
    policies = policies_with(tmp_path, root / "policies")
    with mesh_up(tmp_path, policies) as mesh:
        await post(mesh, "before")
        assert mesh.stop() == 0
        (policies / "access/readers.yaml").write_text("kind: Nonsense\n")
        mesh.start()
        status = call("policy", "status", "--json", "--context", str(mesh.data))
        assert json.loads(status.stdout)["revision"] == 1
        assert await take(mesh, "before") == ["before"]
        assert '"event":"policies_differ"' in mesh.log.read_text()


async def test_killed_agent_comes_back_at_its_address(mesh: RunningMesh) -> None:
    """After kill -9 the same URL takes events again, from a new process."""
    await post(mesh, uuid4().hex)
    killed = mesh.agent_pid(AGENT)
    os.kill(killed, signal.SIGKILL)
    id_ = uuid4().hex
    assert (await post(mesh, id_))["id"] == id_
    with anyio.fail_after(DEADLINE_S):
        while not (ports := mesh.data / "agents" / AGENT / "ports.json").exists() or mesh.agent_pid(AGENT) == killed:
            await anyio.sleep(0.05)
    assert json.loads(ports.read_bytes())["url"] == mesh.file.tenants["acme"].agents[AGENT].url


async def test_killed_server_comes_back_with_its_events(mesh: RunningMesh) -> None:
    """After kill -9 of nats-server publishing and consuming go on, and nothing that got 202 is gone."""
    before, after = uuid4().hex, uuid4().hex
    await post(mesh, before)
    (server,) = (pid for pid, command in mesh.children().items() if "nats-server" in command)
    os.kill(server, signal.SIGKILL)
    await post(mesh, after)
    await wait_ended([server])  # the post may have been spooled before it was noticed
    await take(mesh, before, after)


async def test_restart_goes_on_where_it_was(mesh: RunningMesh) -> None:
    """SIGTERM leaves no process; the next start has the same keys, events, message ids and durable positions."""
    ids = [uuid4().hex for _ in range(3)]
    await post(mesh, ids[0])
    await take(mesh, ids[0])
    for id_ in ids[1:]:
        await post(mesh, id_)
    keys, children = kept(mesh.data), mesh.children()
    assert sum("nats-server" in command for command in children.values()) == 1
    assert len(children) == 1 + len(mesh.file.tenants["acme"].agents)
    assert mesh.stop() == 0
    await wait_ended(children)
    mesh.start()
    assert kept(mesh.data) == keys
    assert (await post(mesh, ids[0]))["duplicate"] is True
    assert await take(mesh, *ids[1:]) == ids[1:]


async def test_killed_mesh_leaves_no_process(mesh: RunningMesh) -> None:
    """After kill -9 of `mesh up` itself its server and agents end, and the next start finds the directory free."""
    id_ = uuid4().hex
    await post(mesh, id_)
    children = mesh.children()
    mesh.kill()
    await wait_ended(children)
    mesh.start()
    await take(mesh, id_)


async def test_tls_and_encryption_hold_over_rotation_and_restart(tmp_path: Path, root: Path) -> None:
    """Events flow over TLS while the store gets another key, none is lost, and the next start remembers both.

    A start with a key that does not open the store ends, and names the streams; nothing is made in their place.
    """
    before, during, after = uuid4().hex, [uuid4().hex for _ in range(60)], uuid4().hex
    policies = policies_with(tmp_path, root / "policies")
    with mesh_up(tmp_path, policies, "--tls", "--encrypt") as mesh:
        tenant, key = mesh.file.tenants["acme"], mesh.data / "admin" / "store.key"
        assert Path(mesh.file.tls_ca_file) == mesh.data / "trust" / "ca.crt"
        named = [(agent.tls_cert_file, agent.tls_key_file) for agent in tenant.agents.values()]
        named += [(team.tls_cert_file, team.tls_key_file) for team in tenant.teams.values()]
        assert all(Path(file).is_file() for files in named for file in files)
        await post(mesh, before)
        old = key.read_bytes()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, rotate_store, mesh.data)
            for id_ in during:
                await post(mesh, id_)
        assert key.read_bytes() != old
        assert sorted(await take(mesh, before, *during)) == sorted([before, *during])
    store = [file.read_bytes() for file in (mesh.data / "nats" / "store").rglob("*") if file.is_file()]
    assert not [content for content in store if TYPE.encode() in content]
    new = key.read_bytes()
    key.write_bytes(old)
    refused = run("up", "--data", str(mesh.data), "--policies", str(policies), "--json")
    error = json.loads(refused.stdout)["error"]
    assert (refused.returncode, error["code"]) == (1, "streams-missing")
    assert "EV_local_crm" in error["streams"]
    key.write_bytes(new)
    with mesh_up(tmp_path, policies) as mesh:
        await post(mesh, after)
        assert await take(mesh, after) == [after]
        status = json.loads(call("status", "--json", "--context", str(mesh.data)).stdout)
        assert (status["tls"], status["problems"]) == (True, [])


def rotate_store(data: Path) -> None:
    """`mesh trust rotate --store`, which succeeds."""
    rotated = call("trust", "rotate", "--store", "--context", str(data))
    assert rotated.returncode == 0, rotated.stdout + rotated.stderr
