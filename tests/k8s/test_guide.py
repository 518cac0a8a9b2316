"""The operator's guide: its commands exist, its names are those of the manifests, and every alert has its section."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from agent.settings import AgentSettings
from mesh import __version__
from mesh.cli import app
from mesh.control.change import checked
from mesh.kubernetes.objects import place
from tests.conftest import ROOT
from tests.k8s.objects import of_kind
from tests.k8s.rendering import DEPLOY, WHOLE, rendered
from tests.k8s.test_manifests import FRAGMENT, GIVEN
from tests.k8s.test_programs import command_of

PAGE = (DEPLOY / "README.md").read_text()
PAGES = {"deploy/k8s/README.md": PAGE, "components/native-sidecar": (FRAGMENT.parent.parent / "README.md").read_text()}
RULES = DEPLOY / "observability/rules.yml"
_BLOCK = re.compile(r"(?ms)^ *```sh\n(.*?)^ *```")
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_MESH = re.compile(r"(?:^|[|;(]\s*|-- )(?:mesh|meshctl) ([^|;)]*)")


def _said() -> Iterator[str]:
    """Every command line of ours on the page, in blocks and in sentences, without `mesh`."""
    text = re.sub(r"\n *", " ", re.sub(r"(?s)```.*?```", "", PAGE))
    inline = [code for code in _INLINE.findall(text) if re.match(r"(mesh|meshctl) [a-z]", code)]
    for line in [*_lines(), *inline]:
        yield from (found.strip() for found in _MESH.findall(line))


def _lines() -> list[str]:
    blocks = "\n".join(re.sub(r"(?m)^ +", "", block) for block in _BLOCK.findall(PAGE))
    return [line for line in re.sub(r"\\\n\s*", "", blocks).splitlines() if line]


COMMANDS = sorted(set(_said()))


def test_page_has_commands() -> None:
    """The pattern finds them: each noun at least once."""
    assert len(COMMANDS) > 20
    assert {c.split()[0] for c in COMMANDS} >= {"control", "trust", "policy", "dlq", "status", "subscription", "audit"}


@pytest.mark.parametrize("line", COMMANDS)
def test_command_exists(line: str) -> None:
    """With its options; arguments in capitals stand for a value."""
    words = [word for word in shlex.split(line) if not word.startswith("...")]
    command, rest = command_of(words)
    if hasattr(command, "commands"):
        assert not rest, line  # a noun that is spoken of
        return
    given = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.split("=")[0] for word in rest if word.startswith("-")} <= given, line


def test_agents_commands_exist() -> None:
    """`mesh-agent` has each verb that the page asks it for."""
    from agent.cli import app

    verbs = set(re.findall(r"mesh-agent ([a-z]+)(?: |\n|`)", PAGE))
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {str(group.name) for group in app.registered_groups}
    assert verbs
    assert verbs <= known


def test_paths_exist() -> None:
    """Whatever is applied by `-k`, or named as a directory, is there."""
    named = set(re.findall(r"(?:-k |--values )(\S+)", "\n".join(_lines())))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
    linked = re.findall(r"`((?:components|overlays|examples|observability|nats|base)/[\w.,-]+[\w/])`", PAGE)
    assert [path for path in linked if not (DEPLOY / path).exists()] == []


def test_the_worked_example_holds_as_objects() -> None:
    """By the page's own command, in the namespaces of the example, with the events of the ConfigMap that is mounted."""
    (command,) = [line for line in COMMANDS if line.startswith("policy objects") and "--policies" in line]
    made = CliRunner().invoke(app, [*shlex.split(command.replace(" policies ", f" {ROOT}/policies ")), "--json"])
    assert made.exit_code == 0, made.output
    labels = {n["metadata"]["name"]: n["metadata"]["labels"] for n in of_kind(rendered("examples/tenant"), "Namespace")}
    placed = [place(item, labels) for item in json.loads(made.stdout)["items"]]
    assert [(one.name, one.refusal) for one in placed if one.refusal] == []
    (events,) = re.findall(r"create configmap mesh-fixtures --from-file=(\S+)", PAGE)
    fixtures = {path.name: path.read_bytes() for path in (ROOT / events).iterdir()}
    assert checked({one.file: one.text for one in placed}, fixtures, "acme").tenants == ("acme",)
    (control,) = [d for d in of_kind(rendered("base"), "StatefulSet") if d["metadata"]["name"] == "mesh-control"]
    spec = control["spec"]["template"]["spec"]
    (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "fixtures"]
    assert f"--watch-directory={mount['mountPath']}" in spec["containers"][0]["args"]
    assert {"name": "fixtures", "configMap": {"name": "mesh-fixtures", "optional": True}} in spec["volumes"]


def test_restore_takes_back_what_it_patches() -> None:
    """A field that the overlay does not name stays as `kubectl patch` left it, also through a forced apply."""
    patched = [json.loads(text)["spec"] for text in re.findall(r"patch statefulset mesh-control .*-p '([^']+)'", PAGE)]
    (control,) = [
        d for d in of_kind(rendered("overlays/prod"), "StatefulSet") if d["metadata"]["name"] == "mesh-control"
    ]
    left = {key: value for spec in patched for key, value in spec.items() if key not in control["spec"]}
    assert set(left.values()) == {None}


def test_names_are_those_of_the_manifests() -> None:
    """Roles, Secrets and objects that the page has somebody create, bind or delete."""
    made = {(d["kind"], d["metadata"]["name"]) for name in WHOLE for d in rendered(name)}
    for role in re.findall(r"--clusterrole (\S+)|ClusterRole\s+`(\S+?)`", PAGE):
        assert ("ClusterRole", role[0] or role[1]) in made
    for name in re.findall(r"delete mutatingwebhookconfiguration (\S+?)`", PAGE):
        assert ("MutatingWebhookConfiguration", name) in made
    for name in ("mesh-control-keys", "mesh-nats-operator", "mesh-trust"):
        assert any(given.endswith(f"/{name}") for given in GIVEN)
    values = yaml.safe_load((DEPLOY / "nats/values.yaml").read_text())
    store = values["container"]["env"]["NATS_STORE_KEY"]["valueFrom"]["secretKeyRef"]
    assert f"create secret generic {store['name']} --from-literal={store['key']}=" in PAGE
    assert f"nats-event-mesh:{__version__}" in PAGE


def test_the_patch_of_the_injector_s_policy_fits(tmp_path: Path) -> None:
    """Beside the overlay it lets one block of addresses in to the port, and nobody else."""
    (patches,) = re.findall(r"(?ms)^```yaml\n(patches:\n.*?)^```", PAGE)
    where = os.path.relpath(DEPLOY / "overlays/prod", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{where}]\n{patches}")
    (policy,) = [d for d in of_kind(rendered(tmp_path), "NetworkPolicy") if d["metadata"]["name"] == "mesh-injector"]
    (rule,) = policy["spec"]["ingress"]
    assert rule["from"] == [{"ipBlock": {"cidr": "172.16.0.0/28"}}]
    assert [port["port"] for port in rule["ports"]] == [9443]


def test_figures_are_those_of_the_manifests() -> None:
    """What the sizing table says an agent and a control plane ask for is what they ask for."""
    agent = yaml.safe_load(FRAGMENT.read_text())["spec"]["template"]["spec"]["initContainers"][0]["resources"]
    rows: dict[str, list[str]] = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows.setdefault(cells[0], cells[1:])
    assert rows["agent"][:2] == _asked(agent)
    for name, row in (("base", "control plane, up to 100 agents"), ("overlays/prod", "control plane, up to 1,000")):
        (control,) = [d for d in of_kind(rendered(name), "StatefulSet") if d["metadata"]["name"] == "mesh-control"]
        assert rows[row][:2] == _asked(control["spec"]["template"]["spec"]["containers"][0]["resources"])
    values = yaml.safe_load((DEPLOY / "nats/values.yaml").read_text())
    assert rows["nats-server, up to 5,000 copies a second"][:2] == _asked(values["container"]["merge"]["resources"])
    assert rows["disk of a nats-server"][0] == values["config"]["jetstream"]["fileStore"]["pvc"]["size"]
    spool = next(e["value"] for e in _variables() if e["name"] == "MESH_AGENT_SPOOL_MAX_BYTES")
    assert f"{int(spool) >> 20} MiB" in rows["disk of an adapter (`mesh-state`)"][2]


def _asked(resources: dict[str, Any]) -> list[str]:
    return [f"{resources['requests']['cpu']}, {resources['requests']['memory']}", resources["limits"]["memory"]]


def _variables() -> list[dict[str, str]]:
    spec = yaml.safe_load(FRAGMENT.read_text())["spec"]["template"]["spec"]
    return [entry for entry in spec["initContainers"][0]["env"] if "value" in entry]


@pytest.mark.parametrize("page", PAGES)
def test_settings_are_settings(page: str) -> None:
    """A name that ends like a setting is one."""
    named = set(
        re.findall(r"`(max_waiting_bytes|spool_max_bytes|source_rate_per_s|drain_s|[a-z_]+_bytes)`", PAGES[page])
    )
    assert named <= set(AgentSettings.__dataclass_fields__)


def test_metrics_are_metrics() -> None:
    """A counter that the page asks Prometheus for is one of an agent's."""
    table = (ROOT / "agent/README.md").read_text()
    known = {name.replace(".", "_") + "_total" for name in re.findall(r"(?m)^\| `(mesh\.[\w.]+)` \| counter", table)}
    named = set(re.findall(r"mesh_\w+_total", PAGE))
    assert named
    assert named <= known


def test_every_alert_has_its_section() -> None:
    """The rules' `runbook` leads to a heading of this page, and no section is of an alert that is gone."""
    headings = re.findall(r"(?m)^### (Mesh\w+)$", PAGE)
    assert len(headings) == len(set(headings))
    groups = yaml.safe_load(RULES.read_text())["groups"]
    alerts = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
    assert set(headings) == set(alerts)
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"deploy/k8s/README.md#{name.lower()}"
