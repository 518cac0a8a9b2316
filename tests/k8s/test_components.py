"""Components on top of what they are for: each renders, fits the API, and leaves nothing wrong behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from mesh.control.injector import InjectorOptions
from mesh.control.measures import PENDING
from tests.k8s.objects import Object, of_kind, pods_of
from tests.k8s.rendering import DEPLOY, rendered, schema_faults, versions
from tests.k8s.semantics import faults
from tests.k8s.test_manifests import COMPONENTS, ELSEWHERE, GIVEN


def _built(directory: Path, component: str, *, on: str) -> list[Object]:
    """The objects of *on* with one component more."""
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(DEPLOY / on, directory)],
        "components": [os.path.relpath(DEPLOY / "components" / component, directory)],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return rendered(directory)


def _plain(directory: Path) -> list[Object]:
    """The consumer with the agent as a plain container."""
    shutil.copytree(DEPLOY / "examples/consumer", directory, dirs_exist_ok=True)
    file = directory / "kustomization.yaml"
    here = os.path.relpath(DEPLOY / "components", directory)
    file.write_text(file.read_text().replace("native-sidecar", "plain-sidecar").replace("../../components", here))
    return rendered(directory)


def _checked(docs: list[Object], given: set[str]) -> list[str]:
    return [*schema_faults(docs, versions()[0]), *faults(docs, given=given, elsewhere=ELSEWHERE)]


@pytest.mark.parametrize("component", [name for name, on in COMPONENTS.items() if on == "base"])
def test_component_of_the_control_plane(component: str, tmp_path: Path) -> None:
    """Alone on the base, as somebody may take it."""
    docs = _built(tmp_path, component, on="base")
    assert len(docs) > len(rendered("base"))
    assert _checked(docs, GIVEN) == []


def test_injector_needs_its_certificates() -> None:
    """The webhook, its Service, its certificate and the listener have one port and one name."""
    docs = rendered("overlays/prod")
    (hook,) = next(of_kind(docs, "MutatingWebhookConfiguration"))["webhooks"]
    service = next(s for s in of_kind(docs, "Service") if s["metadata"]["name"] == "mesh-injector")
    certificate = next(c for c in of_kind(docs, "Certificate") if c["metadata"]["name"] == "mesh-injector-tls")
    asked = hook["clientConfig"]["service"]
    assert certificate["spec"]["dnsNames"] == [f"{asked['name']}.{asked['namespace']}.svc"]
    assert asked["port"] == service["spec"]["ports"][0]["port"]
    assert service["spec"]["publishNotReadyAddresses"]


def test_injector_listens_on_the_pod_s_address() -> None:
    """Of whatever family the cluster has, and on no other; without a word it listens on loopback alone."""
    control = next(
        s for s in of_kind(rendered("overlays/prod"), "StatefulSet") if s["metadata"]["name"] == "mesh-control"
    )
    (container,) = control["spec"]["template"]["spec"]["containers"]
    assert "--injector-host=$(POD_IP)" in container["args"]
    assert any(entry["name"] == "POD_IP" for entry in container["env"])
    assert InjectorOptions(sidecar=Path(), cert=Path(), key=Path()).host == "127.0.0.1"


def test_plain_sidecar(tmp_path: Path) -> None:
    """The agent is one container among the others, once, and everything else holds."""
    docs = _plain(tmp_path)
    (pod,) = pods_of(docs)
    assert [c["name"] for c in pod.spec["containers"]] == ["mesh-agent", "consumer"]
    assert pod.init == []
    assert _checked(docs, GIVEN) == []


def test_spiffe(tmp_path: Path) -> None:
    """The certificate comes from the CSI driver, in the place of the Secret, under the same path."""
    docs = _built(tmp_path, "spiffe", on="examples/consumer")
    (pod,) = pods_of(docs)
    volume = next(v for v in pod.volumes if v["name"] == "mesh-tls")
    assert set(volume) == {"name", "csi"}
    assert volume["csi"]["readOnly"]
    assert _checked(docs, GIVEN) == []


def test_keda(tmp_path: Path) -> None:
    """It scales the Deployment beside it."""
    docs = _built(tmp_path, "keda", on="examples/consumer")
    (scaled,) = of_kind(docs, "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"] == {"kind": "Deployment", "name": "desk"}
    assert PENDING.name.replace(".", "_") in scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert _checked(docs, GIVEN) == []


def test_sidecar_goes_before_what_the_pod_has(tmp_path: Path) -> None:
    """A Deployment with an init container of its own and lists in brackets gets the agent in front of it."""
    (tmp_path / "deployment.yaml").write_text(
        """\
apiVersion: v1
kind: ServiceAccount
metadata: {name: lake}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: lake, labels: {mesh.dev/inject: "true"}}
spec:
  selector: {matchLabels: {app: lake}}
  template:
    metadata: {labels: {app: lake, mesh.dev/inject: "true"}}
    spec:
      serviceAccountName: lake
      initContainers: [{name: migrate, image: "x:1"}]
      containers: [{name: app, image: "app:1"}]
      volumes: [{name: mesh-door, secret: {secretName: mesh-lake-door}}]
"""
    )
    components = os.path.relpath(DEPLOY / "components/native-sidecar", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        f"namespace: acme\nresources: [deployment.yaml]\ncomponents: [{components}]\n"
    )
    (pod,) = pods_of(rendered(tmp_path))
    assert [c["name"] for c in pod.containers] == ["mesh-agent", "migrate", "app"]
    assert [v["name"] for v in pod.volumes].count("mesh-door") == 1
    text = str(pod.spec)
    assert "AGENT" not in text.replace("MESH_AGENT", "")
    assert "mesh-lake-tls" in text


@pytest.mark.parametrize("name", ["native-sidecar", "netpol", "agent-certificate"])
def test_components_of_the_examples(name: str) -> None:
    """Both examples use them: what they render is tested beside."""
    for example in ("adapter", "consumer"):
        assert f"../../components/{name}\n" in (DEPLOY / "examples" / example / "kustomization.yaml").read_text()
