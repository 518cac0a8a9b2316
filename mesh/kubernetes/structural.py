"""A policy Struct as a structural schema: the JSON Schema that editors get, in the part of it that Kubernetes takes.

Whole, without references; every node has a type. What a Struct does not know is kept by the API server, so that the
loader sees and refuses it: pruned, a misspelt `when` would be a wider right, and nobody would be told where the client
does not ask for strict validation, as most controllers do not. Defaults are left to the loader: a stored object says
what its author wrote.

Source: Kubernetes, "Specifying a structural schema".
"""

from __future__ import annotations

from typing import Any, Final

from mesh.kubernetes.rules import RULES
from mesh.policy.schema import json_schema

KEPT: Final = (
    "description", "enum", "pattern", "minLength", "maxLength", "minItems", "maxItems", "minProperties",
    "maxProperties", "minimum", "maximum", "multipleOf",
)  # fmt: skip
OPEN: Final = "x-kubernetes-preserve-unknown-fields"
_REF: Final = "#/$defs/"


def spec_schema(kind: str) -> dict[str, Any]:
    """The schema of `spec` of the objects of *kind*.

    Raises:
        NotFound: There is no such kind.
    """
    whole = json_schema(kind)
    return _node(whole["properties"]["spec"], whole["$defs"])


def _node(schema: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").removeprefix(_REF)
    if name:
        schema = {**parts[name], **{key: schema[key] for key in KEPT if key in schema}}
    made: dict[str, Any] = {key: schema[key] for key in KEPT if key in schema}
    if "enum" in schema:
        return {"type": "string", **made}
    if "type" not in schema:  # any JSON value: what a test puts into an event
        return {OPEN: True, **made}
    made["type"] = schema["type"]
    if schema["type"] == "array":
        made["items"] = _node(schema["items"], parts)
    elif schema["type"] == "object" and "properties" not in schema:
        made["additionalProperties"] = _node(schema.get("additionalProperties") or {}, parts)
    elif schema["type"] == "object":
        made[OPEN] = True
        made["properties"] = {key: _node(part, parts) for key, part in schema["properties"].items()}
        if schema.get("required"):
            made["required"] = sorted(schema["required"])
    if name in RULES:
        made["x-kubernetes-validations"] = [rule._asdict() for rule in RULES[name]]
    return made
