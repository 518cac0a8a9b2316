"""A small valid set of policies that tests add to, and the keys to mask with."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import msgspec
import yaml

from mesh.policy.bundle import Bundle, compile_bundles
from mesh.policy.compile import Plans
from mesh.policy.load import load
from mesh.policy.mask import Masking
from mesh.policy.masktable import MaskTable
from mesh.policy.model_masks import MaskLine
from mesh.policy.paths import Path

BASE = {
    "tenant.yaml": """\
apiVersion: mesh/v1
kind: Tenant
metadata: {name: acme, owner: security}
spec:
  teams:
    crm: {agents: [crm-adapter]}
    analytics: {agents: [lake]}
    support: {agents: [desk, phone]}
""",
    "crm.yaml": """\
apiVersion: mesh/v1
kind: Classification
metadata: {name: crm, tenant: acme, owner: crm}
spec:
  types: ["crm.>"]
  fields: {data.name: [pii.name], data.email: [pii.contact.email], data.country: [public]}
""",
    "views.yaml": """\
apiVersion: mesh/v1
kind: View
metadata: {name: clear, tenant: acme, owner: security}
spec: {otherwise: clear}
---
apiVersion: mesh/v1
kind: View
metadata: {name: masked, tenant: acme, owner: security}
spec:
  mask: [{tags: [public], as: clear}, {tags: [pii.name], as: drop}]
  otherwise: redact
""",
    "access.yaml": """\
apiVersion: mesh/v1
kind: Access
metadata: {name: base, tenant: acme, owner: security}
spec:
  allow:
    - {id: crm-publishes, who: {teams: [crm]}, publish: ["crm.>"]}
    - {id: crm-reads, who: {teams: [crm]}, subscribe: ["crm.>"], view: clear}
    - {id: analytics-reads, who: {teams: [analytics]}, subscribe: ["crm.>"], view: masked}
""",
}


class Keys:
    """A key for every domain and cipher, or only for those named."""

    def __init__(self, *only: str) -> None:
        self._only = only

    def domain(self, name: str) -> bytes:
        """The domain's key. Raises KeyError where we hold none."""
        if self._only and name not in self._only:
            raise KeyError(name)
        return sha256(name.encode()).digest()

    def cipher(self, name: str) -> bytes:
        """The key of a cipher. Raises KeyError where we hold none."""
        return 2 * self.domain(name)


def document(kind: str, name: str, spec: Any, *, team: str = "") -> str:
    """One document of tenant acme as YAML text."""
    metadata = {"name": name, "tenant": "acme"} | ({"team": team} if team else {})
    whole = {"apiVersion": "mesh/v1", "kind": kind, "metadata": metadata, "spec": spec}
    return yaml.safe_dump(json.loads(json.dumps(whole)))  # what stands in it twice is written twice: no aliases


def access(name: str = "more", **rules: list[dict[str, Any]]) -> str:
    """An Access document with these `allow` and `deny` lines."""
    return document("Access", name, rules)


def bundle(*extra: str, base: dict[str, str] | None = None) -> Bundle:
    """The bundle of the base (or *base*) with *extra* documents."""
    files = dict(BASE if base is None else base) | {f"extra{i}.yaml": text for i, text in enumerate(extra)}
    made = compile_bundles(load(files), revision=1, site="local", trust_domain="mesh.test", created_ms=1_000)
    return made["acme"]


def plans(*extra: str, base: dict[str, str] | None = None) -> Plans:
    """The plans of the base (or *base*) with *extra* documents."""
    return Plans(bundle(*extra, base=base))


NO_DATA = object()


def event(data: Any = NO_DATA, **attributes: Any) -> dict[str, Any]:
    """The fields of an accepted event; without *data* it has none."""
    fields = {"specversion": "1.0", "id": "e-1", "source": "/crm", "type": "crm.contact.updated.v1"}
    return fields | attributes | ({} if data is NO_DATA else {"data": data})


def masking(fields: dict[str, list[str]], mask: list[dict[str, Any]], otherwise: str) -> Masking:
    """A view's masking over one classification, without the documents around it."""
    lines = msgspec.convert(mask, list[MaskLine])
    pairs = [(Path.parse(path), tuple(tags)) for path, tags in fields.items()]
    return Masking(pairs, MaskTable(lines, otherwise))
