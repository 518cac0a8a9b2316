"""Rendered manifests as objects: the pods in them, and how to say where something is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Object: TypeAlias = dict[str, Any]

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
SIDECAR = "mesh-agent"


@dataclass(frozen=True)
class PodOf:
    """The pod that an object makes.

    Attributes:
        owner: `StatefulSet/mesh-control`.
        object: Which makes it; a Pod makes itself.
        namespace: Of both.
        labels: Of the pod.
        spec: Of the pod.
        claims: Names of volumes that a StatefulSet claims.
    """

    owner: str
    object: Object
    namespace: str
    labels: Mapping[str, str]
    spec: Object
    claims: tuple[str, ...] = ()

    @property
    def init(self) -> list[Object]:
        """What starts before the application."""
        return list(self.spec.get("initContainers") or [])

    @property
    def containers(self) -> list[Object]:
        """All of them, in the order in which they start."""
        return [*self.init, *self.spec["containers"], *(self.spec.get("ephemeralContainers") or [])]

    @property
    def sidecar(self) -> Object | None:
        """The agent's container."""
        return next((c for c in self.containers if c["name"] == SIDECAR), None)

    @property
    def volumes(self) -> list[Object]:
        """Its volumes, without those that are claimed."""
        return list(self.spec.get("volumes") or [])


def name_of(doc: Object) -> str:
    """`Kind/name`."""
    return f"{doc['kind']}/{doc['metadata']['name']}"


def namespace_of(doc: Object) -> str:
    """Where it is; empty for what is in no namespace, or in the one of whoever applies it."""
    return str(doc["metadata"].get("namespace", ""))


def of_kind(docs: list[Object], *kinds: str) -> Iterator[Object]:
    """Those of *kinds*."""
    return (doc for doc in docs if doc["kind"] in kinds)


def pods_of(docs: list[Object]) -> list[PodOf]:
    """Every pod that *docs* make."""
    found = []
    for doc in of_kind(docs, "Pod", *WORKLOADS):
        pod = doc if doc["kind"] == "Pod" else doc["spec"]["template"]
        claims = tuple(claim["metadata"]["name"] for claim in doc["spec"].get("volumeClaimTemplates") or [])
        labels = pod.get("metadata", {}).get("labels") or {}
        found.append(PodOf(name_of(doc), doc, namespace_of(doc), labels, pod["spec"], claims))
    return found


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector takes a thing with *labels*; an empty one takes all."""
    wanted: Mapping[str, str] = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_expression(e, labels) for e in selector.get("matchExpressions") or [])


def _expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise ValueError(expression["operator"])


def walk(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path, key, value) of every member of every mapping below *value*."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield path, str(key), item
            yield from walk(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from walk(item, f"{path}[{number}]")
