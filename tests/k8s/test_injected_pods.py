"""Recorded pods with what the injector adds: the API's schema, Pod Security, our checks and our admission policy."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.kubernetes.fragment import read_fragment
from mesh.kubernetes.injection import patch
from tests.k8s.objects import of_kind, pods_of
from tests.k8s.pod_checks import pod_faults
from tests.k8s.rendering import rendered, schema_faults, versions
from tests.k8s.test_admission_policy import refusals
from tests.unit.test_injection import BARE, FRAGMENT_FILE, injected, pod_of

RESTRICTED = "request_create_pss_restricted"  # whose application keeps to Pod Security `restricted` by itself
NOT_SECURITY = {"its root can be written", "it mounts a token of the API server into every container"}


def named(pod: dict[str, Any]) -> dict[str, Any]:
    """*pod* as an object by itself: one of a controller has no name yet."""
    pod["metadata"].setdefault("name", "orders")
    return pod


def faults(pod: dict[str, Any]) -> set[str]:
    """What our checks say of a pod."""
    (found,) = pods_of([named(pod)])
    return set(pod_faults(found))


@pytest.mark.parametrize("name", BARE)
def test_the_injector_adds_no_fault(name: str) -> None:
    """Security, resources, probes, volumes, grace: whatever is wrong was wrong with the application before."""
    before, after = faults(pod_of(name)), faults(injected(pod_of(name)))
    assert "it asks for an agent and has none" in before
    assert after == before - {"it asks for an agent and has none"}


def test_a_restricted_pod_stays_restricted() -> None:
    """With its sidecar it keeps to Pod Security `restricted` as a whole."""
    left = {fault.removeprefix("app: ") for fault in faults(injected(pod_of(RESTRICTED)))}
    assert left == NOT_SECURITY


@pytest.mark.parametrize("version", versions())
def test_an_injected_pod_is_one_for_the_api(version: str) -> None:
    """Every member that is added is known to each version of Kubernetes that we stand for."""
    pod = named(injected(pod_of(RESTRICTED)))
    del pod["status"]
    assert schema_faults([pod], version) == []


@pytest.mark.parametrize("name", BARE)
def test_the_admission_policy_lets_it_in(name: str) -> None:
    """It refuses the same pod without its agent: injector and policy agree."""
    assert refusals(pod_of(name))
    assert refusals(injected(pod_of(name))) == []


@pytest.mark.parametrize("tag", ["0.1.0", "0.0.9"])
@pytest.mark.parametrize("example", ["examples/adapter", "examples/consumer"])
def test_production_lets_pods_of_the_component_in(example: str, tag: str) -> None:
    """With the image that the injector has, and with the one before: agents are upgraded after the control plane."""
    (control,) = [
        d for d in of_kind(rendered("overlays/prod"), "StatefulSet") if d["metadata"]["name"] == "mesh-control"
    ]
    variables = control["spec"]["template"]["spec"]["containers"][0]["env"]
    image = next(v["value"] for v in variables if v["name"] == "MESH_SIDECAR_IMAGE")
    (pod,) = pods_of(rendered(example))
    pod.spec["initContainers"][0]["image"] = f"{image.rpartition(':')[0]}:{tag}"
    made = patch({"spec": pod.spec}, "acme", read_fragment(FRAGMENT_FILE.read_text(), image))
    assert [operation["path"] for operation in made] == ["/metadata/annotations"]
