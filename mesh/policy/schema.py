"""JSON Schemas of the policy documents, for editors: made from the Structs, so that they say what the loader asks for.

A schema knows shapes: keys, types, bounds, words. What a document must hold beyond its shape (names that exist,
patterns that can match, one verb a line) is the loader's to say.

Source: JSON Schema, draft 2020-12.
"""

from __future__ import annotations

from inspect import cleandoc
from typing import Any, Final

import msgspec

from mesh.errors import NotFound
from mesh.policy.model import KINDS
from mesh.policy.model_words import MOST_CHARS

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_REF: Final = "#/$defs/"


def json_schema(kind: str) -> dict[str, Any]:
    """The schema of the documents of *kind*.

    Raises:
        NotFound: There is no such kind.
    """
    struct = KINDS.get(kind)
    if struct is None:
        raise NotFound(
            f"there is no kind `{kind[:40]}`", expected=", ".join(KINDS), got=kind[:40], next="name one of these kinds"
        )
    (reference,), parts = _components([struct])
    return {"$schema": DIALECT, **parts.pop(reference["$ref"].removeprefix(_REF)), "$defs": parts}


def schemas() -> dict[str, Any]:
    """One schema for a document of any kind, told apart by `kind`: what an editor maps to the whole directory."""
    references, parts = _components(list(KINDS.values()))
    return {
        "$schema": DIALECT,
        "title": "Policy document",
        "description": "One policy document of any kind.",
        "type": "object",
        "required": ["kind"],
        "oneOf": references,
        "$defs": parts,
    }


def _components(structs: list[type[Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    references, parts = msgspec.json.schema_components(structs, ref_template=_REF + "{name}")
    return list(references), {name: _tidy(part) for name, part in sorted(parts.items())}


def _tidy(value: Any) -> Any:
    """*value* without what confuses an editor: a document says nothing by leaving a key out, never by `null`."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if not isinstance(value, dict):
        return value
    tidy = {key: _tidy(item) for key, item in value.items() if not (key == "default" and item is None)}
    if isinstance(tidy.get("description"), str):
        tidy["description"] = cleandoc(tidy["description"])
    if MOST_CHARS in tidy:
        tidy["maxLength"] = tidy.pop(MOST_CHARS)
    choices = tidy.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        rest = [choice for choice in choices if choice != {"type": "null"}]
        del tidy["anyOf"]
        tidy |= rest[0] if len(rest) == 1 else {"anyOf": rest}
    return tidy
