"""JSON Schemas of the kinds: what an editor accepts is what the loader binds, and the other way round."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from mesh.errors import NotFound
from mesh.policy.model import KINDS
from mesh.policy.nodes import compose, scalar
from mesh.policy.schema import DIALECT, json_schema, schemas
from mesh.policy_files import read_directory
from tests.conftest import ROOT
from tests.unit.policy_world import BASE

ROWS = json.loads((ROOT / "tests/tables/policy_load_errors.json").read_text())
KEYWORDS = {
    "$schema", "$ref", "$defs", "title", "description", "type", "enum", "default", "properties", "required",
    "additionalProperties", "propertyNames", "items", "minItems", "maxItems", "minLength", "maxLength", "minProperties",
    "maxProperties", "minimum", "maximum", "multipleOf", "oneOf", "pattern",
}  # fmt: skip
PYTHON: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
}  # fmt: skip
BOUNDS = {dict: ("minProperties", "maxProperties"), list: ("minItems", "maxItems"), str: ("minLength", "maxLength")}


def plain(node: yaml.Node) -> Any:
    """A YAML node as JSON values, read as the loader reads scalars."""
    if isinstance(node, yaml.MappingNode):
        return {plain(key): plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(item) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return scalar(node)


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether *value* is valid, for the keywords that our schemas use."""
    assert set(schema) <= KEYWORDS, schema
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "oneOf" in schema and sum(fits(value, choice, root) for choice in schema["oneOf"]) != 1:
        return False
    if "type" in schema and (
        not isinstance(value, PYTHON[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean")
    ):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "pattern" in schema and re.search(schema["pattern"], value) is None:
        return False
    return _sized(value, schema) and _inside(value, schema, root)


def _sized(value: Any, schema: dict[str, Any]) -> bool:
    least, most = next((keys for kind, keys in BOUNDS.items() if isinstance(value, kind)), ("minimum", "maximum"))
    size = len(value) if isinstance(value, str | list | dict) else value
    if least in schema and size < schema[least]:
        return False
    if "multipleOf" in schema and value % schema["multipleOf"]:
        return False
    return most not in schema or size <= schema[most]


def _inside(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    if isinstance(value, list):
        return all(fits(item, schema.get("items", {}), root) for item in value)
    if not isinstance(value, dict):
        return True
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    if set(schema.get("required", ())) - set(value):
        return False
    for name, item in value.items():
        if not isinstance(name, str) or not fits(name, schema.get("propertyNames", {}), root):
            return False
        if name not in known and others is False:
            return False
        if not fits(item, known.get(name, others if isinstance(others, dict) else {}), root):
            return False
    return True


def documents(text: str) -> list[Any]:
    """The documents of one file."""
    nodes, faults = compose(text)
    return [] if faults else [plain(node) for node in nodes]


EXAMPLE = [d for text in [*read_directory(ROOT / "policies").values(), *BASE.values()] for d in documents(text)]


def test_the_worked_example_is_valid() -> None:
    """Every document of `policies/`, and of the base of these tests, fits the schema of its kind and the one of all."""
    assert {d["kind"] for d in EXAMPLE} >= {"Tenant", "Classification", "View", "Access", "Subscription"}
    for value in EXAMPLE:
        schema = json_schema(value["kind"])
        assert fits(value, schema, schema), value["metadata"]
        assert fits(value, schemas(), schemas()), value["metadata"]


def test_a_document_fits_one_kind_only() -> None:
    """The schema of all kinds tells them apart by `kind`."""
    for value in EXAMPLE:
        assert [kind for kind in KINDS if fits(value, json_schema(kind), json_schema(kind))] == [value["kind"]]


def test_every_schema_is_strict_and_described() -> None:
    """Each names its dialect; no object but a map of names takes unknown keys, and each says what it is."""
    for kind in KINDS:
        schema = json_schema(kind)
        assert schema["$schema"] == DIALECT
        assert schema["properties"]["kind"] == {"enum": [kind]}
        for part in [schema, *schema["$defs"].values()]:
            assert part["description"]
            assert part["additionalProperties"] is False


def test_no_schema_takes_null() -> None:
    """A document says nothing by leaving a key out, as the loader has it."""
    text = json.dumps(schemas())
    assert '"null"' not in text
    assert "null" not in text


# What the loader says of shapes, and a schema should say too.
SHAPES = (
    "unknown key", "has no `", "is empty", "not a list", "not a mapping", "is a whole number", "use one of",
)  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [r for r in ROWS if any(s in e[1] for e in r["errors"] for s in SHAPES) and "YAML" not in r["errors"][0][1]],
    ids=lambda row: row["name"],
)
def test_a_document_of_the_wrong_shape_fits_no_schema(row: dict[str, Any]) -> None:
    """Where the loader complains of a key or a type, an editor does so while it is written."""
    values = documents(row["yaml"])
    assert not all(fits(value, schemas(), schemas()) for value in values)


def test_a_kind_that_is_none_is_not_found() -> None:
    """The error names the kinds."""
    with pytest.raises(NotFound) as caught:
        json_schema("Exception")
    assert "Classification" in str(caught.value.expected)
