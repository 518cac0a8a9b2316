"""Every command line, variable, file, path and port in the manifests is one that our programs know."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest
from typer.main import get_command

from agent import health
from agent.settings import CONFIG_VARIABLE, ENV_PREFIX, AgentSettings, load
from mesh.cli import app
from mesh.control.attest_kubernetes import AUDIENCE
from mesh.control.vault_files import KEY_FILES
from mesh.kubernetes import names
from mesh.kubernetes.api import SERVICE_ACCOUNT
from mesh.kubernetes.fragment import read_fragment
from tests.conftest import ROOT
from tests.k8s.objects import SIDECAR, Object, PodOf, of_kind, pods_of
from tests.k8s.pod_checks import PRIVATE, variables
from tests.k8s.rendering import WHOLE, rendered
from tests.k8s.test_manifests import FRAGMENT

CONTROL_PATHS = ("/livez", "/readyz", "/metrics")  # mesh/control/health.py
IMAGE_DIRECTORY = "/opt/mesh"  # of the Containerfile
LOOPBACK = "127.0.0.1"
AGENT_NEVER_READS = {"MESH_CONTEXT"}  # in the control plane, for who runs commands there


def _ours() -> list[tuple[str, PodOf, Object]]:
    """Every container with our image, by directory."""
    return [
        (name, pod, container)
        for name in WHOLE
        for pod in pods_of(rendered(name))
        for container in pod.containers
        if "nats-event-mesh" in container["image"]
    ]


OURS = _ours()
IDS = [f"{name}: {container['name']}" for name, _, container in OURS]


def _expanded(text: str) -> str:
    """With something for each reference to a variable that only a node knows."""
    return re.sub(r"\$\(([A-Z_]+)\)", "10.0.0.7", text)


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command of `mesh` that *words* name, and what is left of them."""
    command: Any = get_command(app)
    while hasattr(command, "commands") and words:
        found = command.get_command(None, words[0])
        assert found is not None, f"mesh has no command {words[0]}"
        command, words = found, words[1:]
    return command, words


def test_unknown_option_would_be_found() -> None:
    """The test below can fail."""
    command, rest = command_of(["control", "run", "--no-such-option=1"])
    with pytest.raises(Exception, match="no-such-option"):
        command.make_context("mesh", ["--nats-url=nats://n:4222", *rest])
    with pytest.raises(AssertionError, match="mesh has no command walk"):
        command_of(["control", "walk"])


@pytest.mark.parametrize(("name", "pod", "container"), OURS, ids=IDS)
def test_command_line_is_known(name: str, pod: PodOf, container: Object) -> None:
    """Its arguments are a command of ours, with options of that command, and values that it takes."""
    program, *arguments = [_expanded(argument) for argument in container["args"]]
    match program:
        case "mesh":
            command, arguments = command_of(arguments)
            given = {n: v for n, v in variables(container).items() if v is not None}
            required = [f"--{p.name.replace('_', '-')}={given[p.envvar]}" for p in command.params if p.envvar in given]
            command.make_context("mesh", [*required, *arguments])
        case "mesh-agent":
            assert arguments == ["run"]
        case "python":
            assert arguments[0] == "-I"
        case _:
            pytest.fail(program)


def _toml(docs: list[Object], pod: PodOf) -> str:
    volume = next(v for v in pod.volumes if v["name"] == "mesh-config")
    maps = [c for c in of_kind(docs, "ConfigMap") if c["metadata"]["name"] == volume["configMap"]["name"]]
    return str(maps[0]["data"]["agent.toml"]) if maps else ""


def _environment(container: Object) -> dict[str, str]:
    """As in a pod: names for what the pod refers to, and an address."""
    said = {"spec.serviceAccountName": "crm-adapter", "metadata.namespace": "acme", "status.podIP": "10.0.0.7"}
    found = {}
    for entry in container["env"]:
        reference = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        found[entry["name"]] = entry["value"] if reference is None else said[reference]
    return found


def _agents() -> Iterator[tuple[str, PodOf, Object, AgentSettings]]:
    for name, pod, container in OURS:
        if container["name"] == SIDECAR:
            loaded = load(_toml(rendered(name), pod), _environment(container))
            yield name, pod, container, loaded.settings


def test_agents_settings_load() -> None:
    """The variables and agent.toml of each agent are settings, with values within their bounds."""
    found = [(name, settings.name, settings.tenant, settings.team) for name, _, _, settings in _agents()]
    assert found == [
        ("examples/adapter", "crm-adapter", "acme", "crm"),
        ("examples/consumer", "crm-adapter", "acme", "support"),
    ]


def test_agents_files_are_mounted() -> None:
    """Whatever a setting names lies in a volume of the agent, and what it writes in one that can be written."""
    for _, _, container, settings in _agents():
        mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
        assert _environment(container)[CONFIG_VARIABLE] == "/etc/mesh/config/agent.toml"
        for field in AgentSettings.__dataclass_fields__:
            value = getattr(settings, field)
            if not field.endswith(("_file", "_dir", "_socket")) or not value:
                continue
            assert posixpath.isabs(value), field
            mount = next((mounts[str(p)] for p in PurePosixPath(value).parents if str(p) in mounts), mounts.get(value))
            assert mount is not None, field
            writes = field in {"bundle_file", "team_dir", "spool_file", "spool_key_file", "control_socket"}
            assert writes == (not mount.get("readOnly")), field


def test_agents_listen_where_they_are_asked() -> None:
    """Probes, monitors and policies ask the health door at its port, on the pod's address; the door is on loopback."""
    for _, pod, container, settings in _agents():
        (port,) = container["ports"]
        assert (port["containerPort"], settings.health_host) == (settings.health_port, "10.0.0.7")
        assert settings.http_host == LOOPBACK
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[kind]["httpGet"]["path"] in health.PATHS
        for other in pod.containers:
            url = variables(other).get("AGENT_URL")
            assert url in {None, f"http://{LOOPBACK}:{settings.http_port}"}


def test_agents_stop_where_they_listen() -> None:
    """What preStop runs is the script that the image has, on the socket that the agent opens."""
    for _, _, container, settings in _agents():
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == [
            f"{IMAGE_DIRECTORY}/bin/python", "-I", "-S", f"{IMAGE_DIRECTORY}/lib/stop_pull.py", settings.control_socket,
        ]  # fmt: skip
    assert (ROOT / "agent" / "stop_pull.py").exists()


def test_enrolment_token_is_for_the_control_plane() -> None:
    """It has the audience that is asked for, and lies where the agent looks."""
    for _, pod, container, settings in _agents():
        volume = next(v for v in pod.volumes if v["name"] == "mesh-enrol")
        (source,) = volume["projected"]["sources"]
        mount = next(m for m in container["volumeMounts"] if m["name"] == "mesh-enrol")
        assert source["serviceAccountToken"]["audience"] == AUDIENCE
        assert f"{mount['mountPath']}/{source['serviceAccountToken']['path']}" == settings.enrol_token_file


def test_volumes_that_are_the_agents_alone_are_all_but_two() -> None:
    """What no other container may mount, checks and admission policy agree on: all but the door, and what is public."""
    for _, _, container, _ in _agents():
        mounted = {m["name"] for m in container["volumeMounts"]}
        assert mounted - PRIVATE == {"mesh-door", "mesh-trust", "mesh-config"}
        assert mounted >= PRIVATE
    (policy,) = of_kind(rendered("overlays/prod"), "ValidatingAdmissionPolicy")
    ours = next(v["expression"] for v in policy["spec"]["variables"] if v["name"] == "ours")
    assert set(re.findall(r"'([a-z-]+)'", ours)) == PRIVATE


def test_variables_are_known() -> None:
    """Every MESH_ variable is one that the program in that container reads."""
    command, _ = command_of(["control"])
    read = {p.envvar for verb in command.commands.values() for p in verb.params if p.envvar} | AGENT_NEVER_READS
    for _, _, container in OURS:
        known = read if container["args"][0] == "mesh" else {CONFIG_VARIABLE}
        ours = {n for n in variables(container) if n.startswith("MESH_") and not n.startswith(ENV_PREFIX)}
        assert ours <= known
        assert not [n for n in variables(container) if n.startswith(ENV_PREFIX) and container["args"][0] == "mesh"]


# --- the control plane -----------------------------------------------------------------------------------------------


def _control(name: str = "base") -> tuple[PodOf, Object, dict[str, str]]:
    pod = next(p for p in pods_of(rendered(name)) if p.owner == "StatefulSet/mesh-control")
    container = pod.spec["containers"][0]
    options = dict(argument.lstrip("-").split("=", 1) for argument in container["args"] if "=" in argument)
    return pod, container, options


def test_control_plane_gets_every_key_file() -> None:
    """The Secrets that are mounted have each file that `mesh control init` makes, under its own path."""
    pod, container, options = _control()
    volume = next(v for v in pod.volumes if v["name"] == "keys")
    items = [i for source in volume["projected"]["sources"] for i in source["secret"]["items"]]
    assert sorted(i["path"] for i in items) == sorted(KEY_FILES)
    assert all(i["key"] == i["path"].replace("/", ".") for i in items)
    assert options["keys"] in {m["mountPath"] for m in container["volumeMounts"]}


def test_control_plane_finds_its_files() -> None:
    """Its token, its CA, its TLS files and policies are mounted; its data lie below a disk, not at its root."""
    _, container, options = _control()
    mounts = {m["mountPath"] for m in container["volumeMounts"]}
    assert str(SERVICE_ACCOUNT) in mounts
    assert options["attest"] == "kubernetes"
    assert options["policies"] in mounts
    assert {posixpath.dirname(options[f"tls-{which}"]) for which in ("ca", "cert", "key")} <= mounts
    data = PurePosixPath(variables(container)["MESH_DATA_DIR"])
    assert str(data) not in mounts  # a disk's root is root's, and open to the group
    assert str(data.parent) in mounts
    assert variables(container)["MESH_CONTEXT"] == f"{data}/mesh.json"


def test_control_plane_is_asked_where_it_answers() -> None:
    """Its probes, and its Service."""
    _, container, options = _control()
    health_port = int(options["health-port"])
    assert {p["name"]: p["containerPort"] for p in container["ports"]}["health"] == health_port
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[kind]["httpGet"]["path"] in CONTROL_PATHS
    service = next(s for s in of_kind(rendered("base"), "Service") if s["metadata"]["name"] == "mesh-control")
    assert {p["name"]: p["port"] for p in service["spec"]["ports"]}["health"] == health_port


@pytest.mark.parametrize(("name", "replicas", "streams"), [("overlays/dev", 1, "1"), ("overlays/prod", 3, "3")])
def test_overlays_have_their_replicas(name: str, replicas: int, streams: str) -> None:
    """One of each for a laptop; three, each stream on three servers, for production."""
    pod, _, options = _control(name)
    assert (pod.object["spec"]["replicas"], options["replicas-of-streams"]) == (replicas, streams)


def test_ports_in_policies_are_ours() -> None:
    """Network policies let through the ports of our programs and of NATS, and DNS, TLS and the API server."""
    ours = {AgentSettings.__dataclass_fields__["health_port"].default, int(_control()[2]["health-port"])}
    known = ours | {4222, 6222, 7777, 53, 443, 6443, 9443}
    for name in WHOLE:
        for policy in of_kind(rendered(name), "NetworkPolicy"):
            rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
            assert {port["port"] for rule in rules for port in rule["ports"]} <= known


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_package() -> None:
    """Labels, container and volumes have one name in manifests and code, so that the injector and the checks agree."""
    assert names.SIDECAR == SIDECAR
    text = FRAGMENT.read_text()
    assert f"name: {names.SIDECAR}\n" in text
    docs = [doc for name in WHOLE for doc in rendered(name)]
    used = {label for doc in docs for label in doc["metadata"].get("labels") or {} if label.startswith("mesh.dev/")}
    assert used == {names.INJECT, names.TENANT, names.TEAM}


def test_control_plane_may_do_what_it_does() -> None:
    """Each path of the API server that it asks is in its roles, and no other."""
    docs = rendered("base")
    bound = {b["roleRef"]["name"] for b in of_kind(docs, "ClusterRoleBinding")}
    rules = [r for role in of_kind(docs, "ClusterRole") if role["metadata"]["name"] in bound for r in role["rules"]]
    may = {(g, r, v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}
    policies = names.PLURALS.values()
    follows = {("", "namespaces"), *((names.GROUP, plural) for plural in policies)}
    assert may == {
        ("authentication.k8s.io", "tokenreviews", "create"),  # attest_kubernetes.py
        ("", "events", "create"),  # policy_status.py
        *((names.GROUP, f"{plural}/status", "patch") for plural in policies),
        *((group, kind, verb) for group, kind in follows for verb in ("get", "list", "watch")),  # watch.py
    }


def test_injected_image_is_the_control_plane_s() -> None:
    """An overlay that names an image names it for the pods that are injected, too."""
    _, container, _ = _control("overlays/prod")
    assert variables(container)["MESH_SIDECAR_IMAGE"] == container["image"]
    assert (
        read_fragment(FRAGMENT.read_text(), "registry.example.com/x:1").container["image"] == "registry.example.com/x:1"
    )
