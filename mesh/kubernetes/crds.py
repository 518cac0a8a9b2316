"""The CustomResourceDefinitions of the policies: one a kind, made from the Structs that the YAML is read with.

`python -m mesh.kubernetes.crds [directory]` writes them, a file a kind.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import yaml

from mesh.kubernetes.names import ACCEPTED, API_VERSION, APPLIED, GROUP, OWNER, PLURALS, VERSION
from mesh.kubernetes.rules import RESERVED_NAMES
from mesh.kubernetes.structural import spec_schema
from mesh.policy.schema import json_schema
from mesh.subjects import MAX_NAME_CHARS, NAME_RE

DIRECTORY: Final = Path(__file__).parents[2] / "deploy/k8s/base/crds"
MAX_MESSAGE_CHARS = 32_768  # of a condition, as Kubernetes has it for its own

_COLUMNS: Final[dict[str, tuple[tuple[str, str], ...]]] = {  # what tells one from the other, by kind
    "Subscription": (("View", ".spec.view"), ("Client", ".spec.client")),
    "View": (("Like", ".spec.like"), ("Otherwise", ".spec.otherwise")),
}


def definition(kind: str) -> dict[str, Any]:
    """The definition of *kind*.

    Raises:
        NotFound: There is no such kind.
    """
    plural, singular = PLURALS.get(kind, ""), kind.lower()
    schema = _schema(kind)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": singular,
                "shortNames": [f"mesh{singular}"],  # another group may have Routes or Subscriptions too
                "categories": ["mesh-policies"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _columns(kind),
                }
            ],
        },
    }


def _schema(kind: str) -> dict[str, Any]:
    name = {
        "type": "string",
        "description": "Unique by kind in a tenant, with its team where it is a Subscription.",
        "maxLength": MAX_NAME_CHARS,
        "pattern": f"^(?:{NAME_RE.pattern})$",
    }
    schema = {
        "type": "object",
        "description": json_schema(kind)["description"],
        "required": ["metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"`{API_VERSION}`."},
            "kind": {"type": "string", "description": f"`{kind}`."},
            "metadata": {"type": "object", "properties": {"name": name}},
            "spec": spec_schema(kind),
            "status": _status(),
        },
    }
    if kind == "Subscription":
        schema["x-kubernetes-validations"] = [RESERVED_NAMES._asdict()]
    return schema


def _status() -> dict[str, Any]:
    text = {"type": "string", "maxLength": 1024}
    condition = {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": {**text, "description": f"`{ACCEPTED}`: the mesh reads it. `{APPLIED}`: it is in force."},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": text,
            "message": {"type": "string", "maxLength": MAX_MESSAGE_CHARS},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
        },
    }
    return {
        "type": "object",
        "description": "Written by the control plane.",
        "properties": {
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "revision": {
                "type": "integer",
                "format": "int64",
                "minimum": 0,
                "description": "Of the tenant's policies that hold this object as it was observed.",
            },
            "conditions": {
                "type": "array",
                "maxItems": 8,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": condition,
            },
        },
    }


def _columns(kind: str) -> list[dict[str, Any]]:
    def condition(name: str, part: str) -> str:
        return f'.status.conditions[?(@.type=="{name}")].{part}'

    def column(name: str, path: str, type_: str = "string", priority: int = 0) -> dict[str, Any]:
        wide = {"priority": priority} if priority else {}
        return {"name": name, "type": type_, "jsonPath": path, **wide}

    escaped = OWNER.replace(".", "\\.")
    return [
        column(ACCEPTED, condition(ACCEPTED, "status")),
        column(APPLIED, condition(APPLIED, "status")),
        column("Revision", ".status.revision", "integer"),
        *(column(name, path) for name, path in _COLUMNS.get(kind, ())),
        column("Owner", f".metadata.annotations.{escaped}", priority=1),
        column("Message", condition(ACCEPTED, "message"), priority=1),
        column("Age", ".metadata.creationTimestamp", "date"),
    ]


class _Dumper(yaml.SafeDumper):
    """Writes every value out: no anchors, which a reader of a page has to follow."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - none, whatever it is
        return True


def rendered(kind: str) -> str:
    """The definition of *kind* as the text of its file."""
    head = "# Written by `python -m mesh.kubernetes.crds` from mesh/policy/model*.py; edit that.\n"
    return head + yaml.dump(definition(kind), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def file_name(kind: str) -> str:
    """Of the definition of *kind*."""
    return f"{PLURALS[kind]}.yaml"


def main(directory: Path = DIRECTORY) -> None:
    """Write every definition, and the list of them that Kustomize reads."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in PLURALS:
        (directory / file_name(kind)).write_text(rendered(kind))
    (directory / "kustomization.yaml").write_text(kustomization())


def kustomization() -> str:
    """What `kubectl apply -k` reads in the directory."""
    made = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(file_name(kind) for kind in PLURALS),
    }
    return "# Written by `python -m mesh.kubernetes.crds`.\n" + yaml.safe_dump(made, sort_keys=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
