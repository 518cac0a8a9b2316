from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mesh.context import AgentAddress, Context, MeshFile, SubscriptionAddress, TeamAddress, TenantAddress
from mesh.errors import ConfigError

AGENT = AgentAddress(url="http://a", webhooks_url="http://w", health_url="http://h", token_file="t", creds_file="c")
TEAM = TeamAddress(
    creds_file="c", subscriptions={"s": SubscriptionAddress(stream="EV_local_crm", durable="support--s", view="v")}
)


def write(directory: Path, **tenants: TenantAddress) -> Path:
    """A `mesh.json` in *directory*."""
    file = directory / "mesh.json"
    mesh = MeshFile(nats_url="nats://n", data=str(directory), site="local", tenants=tenants)
    file.write_bytes(msgspec.json.encode(mesh))
    return file


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONTEXT", "TENANT", "TEAM", "AGENT"):
        monkeypatch.delenv(f"MESH_{name}", raising=False)


def test_a_directory_stands_for_its_mesh_json(tmp_path: Path) -> None:
    """The data directory is enough to find a mesh."""
    write(tmp_path, acme=TenantAddress(agents={"a": AGENT}, teams={"support": TEAM}))
    context = Context.load(tmp_path, team="support")
    assert (context.tenant, context.team, context.data) == ("acme", "support", tmp_path)
    assert context.agent_address() == AGENT
    assert context.team_address() == TEAM


def test_variables_stand_in_for_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`MESH_*` say where and who, and an argument wins over them."""
    one = TenantAddress(agents={"a": AGENT}, teams={"support": TEAM, "lake": TEAM})
    monkeypatch.setenv("MESH_CONTEXT", str(write(tmp_path, acme=one, other=one)))
    monkeypatch.setenv("MESH_TENANT", "other")
    monkeypatch.setenv("MESH_TEAM", "support")
    assert (Context.load().tenant, Context.load().team) == ("other", "support")
    assert (Context.load(tenant="acme", team="lake").tenant, Context.load(team="lake").team) == ("acme", "lake")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tenant": "nobody"}, "no tenant nobody"),
        ({"team": "nobody"}, "no team nobody"),
        ({"agent": "nobody"}, "no agent nobody"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path, arguments: dict[str, str], says: str) -> None:
    """A misspelt name never means somebody else."""
    write(tmp_path, acme=TenantAddress(agents={"a": AGENT}, teams={"support": TEAM}))
    with pytest.raises(ConfigError, match=says) as caught:
        Context.load(tmp_path, **arguments)
    assert caught.value.expected.startswith("one of ")


def test_nobody_reads_without_a_team_and_no_agent_is_guessed(tmp_path: Path) -> None:
    """There is no default team, and no default agent among several."""
    write(tmp_path, acme=TenantAddress(agents={"a": AGENT, "b": AGENT}, teams={"support": TEAM}))
    context = Context.load(tmp_path)
    with pytest.raises(ConfigError, match="reading needs a team"):
        context.team_address()
    with pytest.raises(ConfigError, match="2 agents"):
        context.agent_address()


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"nats_url": 1}', b"\xff"])
def test_a_file_that_is_no_mesh_json_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """A missing or broken file is a clear refusal, not a crash."""
    file = tmp_path / "mesh.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Context.load(file)
    assert "mesh up" in caught.value.expected + caught.value.next


def secured(directory: Path, team: TeamAddress) -> Context:
    """A context of a mesh with TLS."""
    tenants = {"acme": TenantAddress(agents={"a": AGENT}, teams={"support": team})}
    mesh = MeshFile(
        nats_url="nats://n", data=str(directory), site="local", tenants=tenants, tls_ca_file=str(directory / "ca.crt")
    )
    (directory / "mesh.json").write_bytes(msgspec.json.encode(mesh))
    return Context.load(directory, team="support")


def test_a_team_connects_with_its_files(tmp_path: Path) -> None:
    """Credentials are read when they are needed; TLS files where the mesh has TLS, and none where it has not."""
    team = TeamAddress(creds_file=str(tmp_path / "nats.creds"), subscriptions={})
    write(tmp_path, acme=TenantAddress(agents={"a": AGENT}, teams={"support": team}))
    plain = Context.load(tmp_path, team="support").team_connection()
    assert plain["tls"] is None
    for content in (b"one", b"another"):
        (tmp_path / "nats.creds").write_bytes(content)
        assert plain["creds"]() == content
    team = TeamAddress(creds_file="c", subscriptions={}, tls_cert_file="t.crt", tls_key_file="t.key")
    assert secured(tmp_path, team).team_connection()["tls"] == (tmp_path / "ca.crt", Path("t.crt"), Path("t.key"))


def test_nobody_connects_without_a_certificate_where_the_mesh_has_tls(tmp_path: Path) -> None:
    """A context that names no certificate is no way around TLS."""
    with pytest.raises(ConfigError, match="names no client certificate"):
        secured(tmp_path, TEAM).team_connection()
    with pytest.raises(ConfigError, match="needs a team"):
        Context.load(write(tmp_path, acme=TenantAddress(agents={}, teams={"support": TEAM}))).team_connection()


def test_a_mesh_without_tls_writes_the_members_it_always_had() -> None:
    """What reads `mesh.json` today goes on reading it."""
    mesh = MeshFile(
        nats_url="n", data="d", site="s", tenants={"t": TenantAddress(agents={"a": AGENT}, teams={"support": TEAM})}
    )
    assert b"tls" not in msgspec.json.encode(mesh)
