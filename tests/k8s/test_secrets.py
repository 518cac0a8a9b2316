"""`mesh control secrets`: what it prints is what the pods of our manifests mount."""

from __future__ import annotations

import base64
import json
import posixpath
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from agent.settings import AgentSettings, load
from mesh.cli import app
from mesh.cli.operator import OperatorConnection, operator_connection
from mesh.control.datadir import DataDirectory, write_private
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import Operator, now_ms
from mesh.control.run_file import write_mesh_file
from mesh.control.trust import Authority
from mesh.control.vault_files import KEY_FILES
from mesh.control.workload_files import WorkloadFiles
from mesh.errors import Disconnected
from mesh.jetstream.tls import TlsFiles
from mesh.policy.bundle import compile_bundles
from mesh.policy.compile import Plans
from mesh.policy.load import load as load_policies
from mesh.policy_files import read_directory
from tests.conftest import ROOT
from tests.k8s.objects import Object, of_kind, pods_of
from tests.k8s.rendering import rendered, schema_faults, versions
from tests.k8s.test_manifests import FRAGMENT

MISUSE = 2
cli = CliRunner()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replica's directory, with the worked example in force."""
    root = tmp_path_factory.mktemp("mesh") / "data"
    assert cli.invoke(app, ["control", "init", "--data", str(root)]).exit_code == 0
    directory = DataDirectory.open(root)
    policies = load_policies(read_directory(ROOT / "policies"))
    bundle = compile_bundles(policies, site="local", trust_domain="mesh.local", created_ms=0)["acme"]
    authority = Authority(directory.trust, directory.admin, trust_domain="mesh.local", now_ms=now_ms())
    write_private(directory.bundle("acme"), authority.seal(bundle))
    given: dict[str, Any] = {"nats_url": "nats://n:4222", "site": "local", "trust_domain": "mesh.local"}
    files = WorkloadFiles("acme", directory, Operator(NkeyFiles(directory.keys)), None, ports=None, tls=None, **given)
    files.write(Plans(bundle).grants(now_ms=now_ms()))
    for settings in directory.root.glob("agents/*/agent.toml"):
        settings.unlink()  # a replica that waits has none
    return root


def _printed(data: Path, *arguments: str) -> list[Object]:
    said = cli.invoke(app, ["control", "secrets", *arguments, "--data", str(data)])
    assert said.exit_code == 0, said.output
    items: list[Object] = json.loads(said.stdout)["items"]
    assert schema_faults(items, versions()[-1]) == []
    return items


def _contents(docs: list[Object], kind: str = "Secret") -> dict[str, dict[str, str]]:
    return {d["metadata"]["name"]: d["data"] for d in of_kind(docs, kind)}


def test_control_plane_s_keys_are_those_it_mounts(data: Path) -> None:
    """Each file once, in the Secrets that the StatefulSet names, byte for byte."""
    secrets = _contents(_printed(data))
    (pod,) = [p for p in pods_of(rendered("base")) if p.owner == "StatefulSet/mesh-control"]
    volume = next(v for v in pod.volumes if v["name"] == "keys")
    mounted = {
        item["path"]: base64.b64decode(secrets[source["secret"]["name"]][item["key"]])
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }
    assert mounted == {name: (data / name).read_bytes() for name in KEY_FILES}
    assert base64.b64decode(secrets["mesh-nats-operator"]["operator.conf"]).startswith(b"operator: ")


@pytest.mark.parametrize("agent", ["crm-door", "crm-tls", "crm-webhooks", "trust"])
def test_agents_whose_objects_would_be_another_s_get_none(data: Path, agent: str) -> None:
    """`mesh-crm-door` is what the application of agent crm reads."""
    said = cli.invoke(app, ["control", "secrets", agent, "--namespace", "acme", "--data", str(data)])
    assert said.exit_code == MISUSE
    assert "names of another's" in said.output


def test_root_key_that_was_taken_away_is_not_asked_for(data: Path) -> None:
    """It certifies mesh CAs only, and may be kept elsewhere once the mesh is up."""
    kept = (data / "admin/root.key").read_bytes()
    (data / "admin/root.key").unlink()
    try:
        assert "mesh-control-root" not in _contents(_printed(data))
    finally:
        write_private(data / "admin/root.key", kept)


@pytest.mark.parametrize(("agent", "team"), [("crm-adapter", True), ("desk", True), ("github-adapter", True)])
def test_an_agent_s_secrets_hold_what_its_settings_name(data: Path, agent: str, team: bool) -> None:
    """Every file that the sidecar's variables name below a Secret is there, under the name it is mounted by."""
    docs = _printed(data, agent, "--namespace", "acme")
    secrets, maps = _contents(docs), _contents(docs, "ConfigMap")
    assert {doc["metadata"]["namespace"] for doc in docs} == {"acme"}
    spec = yaml.safe_load(FRAGMENT.read_text())["spec"]["template"]["spec"]
    mounts = {m["mountPath"]: m["name"] for m in spec["initContainers"][0]["volumeMounts"]}
    sources = {v["name"]: v for v in spec["volumes"]}
    for field in ("creds_file", "dedupe_key_file", "token_file"):
        path = getattr(_settings(spec), field)
        name = sources[mounts[posixpath.dirname(path)]]["secret"]["secretName"].replace("AGENT", agent)
        assert posixpath.basename(path) in secrets[name], field
    assert ("team.creds" in secrets[f"mesh-{agent}"]) == team
    assert set(maps["mesh-trust"]) == {"ca.crt", "trust.pub", "policy.pub", "enrol.pub"}
    optional = {f"mesh-{agent}-{end}" for end in ("domains", "ciphers", "webhooks")}
    assert set(secrets) - optional == {f"mesh-{agent}", f"mesh-{agent}-door"}


def _settings(spec: Object) -> AgentSettings:
    environment = {e["name"]: e.get("value", "10.0.0.7") for e in spec["initContainers"][0]["env"]}
    return load("", environment | {"MESH_AGENT_NAME": "a", "MESH_AGENT_TENANT": "t"}).settings


def test_keys_to_mask_with_are_those_of_the_directories(data: Path) -> None:
    """One Secret a directory: an agent that masks in no domain has none."""
    secrets = _contents(_printed(data, "crm-adapter", "-n", "acme"))
    for kind in ("domains", "ciphers"):
        files = {p.name: p.read_bytes() for p in (data / "agents/crm-adapter" / kind).iterdir()}
        assert {n: base64.b64decode(v) for n, v in secrets[f"mesh-crm-adapter-{kind}"].items()} == files
        assert files
    assert "mesh-github-adapter-webhooks" in _contents(_printed(data, "github-adapter", "-n", "acme"))


@pytest.mark.parametrize(
    "arguments", [["nobody", "-n", "acme"], ["../crm", "-n", "acme"], ["crm-adapter"]], ids=["unknown", "path", "where"]
)
def test_what_is_not_there_is_not_printed(data: Path, arguments: list[str]) -> None:
    """An agent that no policy knows, one that is no name, one without a namespace."""
    said = cli.invoke(app, ["control", "secrets", *arguments, "--data", str(data)])
    assert said.exit_code == MISUSE
    assert "items" not in said.stdout


@pytest.mark.anyio
async def test_commands_in_the_pod_show_the_mounted_certificate(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `kubectl exec` runs them: by the path at which it is renewed, not by what the path leads to."""
    (pod,) = [p for p in pods_of(rendered("base")) if p.owner == "StatefulSet/mesh-control"]
    options = dict(a.lstrip("-").split("=", 1) for a in pod.containers[0]["args"] if "=" in a)
    tls = TlsFiles(*(Path(options[f"tls-{which}"]) for which in ("ca", "cert", "key")))
    write_mesh_file(DataDirectory(data), nats_url="nats://n:4222", site="local", tls=tls)
    dialled = []

    async def dial(url: str, **given: Any) -> None:
        dialled.append((url, given["tls"]))
        raise Disconnected("nobody", got=url)

    monkeypatch.setattr(OperatorConnection, "open", dial)
    monkeypatch.setattr("mesh.cli.operator._stopped", lambda _data: False)
    with pytest.raises(Disconnected):
        async with operator_connection(str(data)):
            pass
    assert dialled == [("nats://n:4222", tls)]


def test_a_terminal_gets_no_secret(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep them in its history."""
    monkeypatch.setattr("mesh.cli.control.on_terminal", lambda: True)
    said = cli.invoke(app, ["control", "secrets", "--data", str(data)])
    assert said.exit_code == MISUSE
    assert "items" not in said.stdout
