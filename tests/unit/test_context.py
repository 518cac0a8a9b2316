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
