"""Makes cel_conformance.json: the rows of cel-spec's simple conformance tests that fall inside our subset of CEL.

    npm pack @bufbuild/cel-spec@0.6.1 && tar xzf bufbuild-cel-spec-0.6.1.tgz
    node -e "import('./package/dist/esm/testdata/conformance.js').then(m => console.log(JSON.stringify(m.tests)))" \
        | python tests/tables/make_cel_conformance.py > tests/tables/cel_conformance.json

What is outside is decided here by what a row is about, not by what our parser accepts: see CEL-NOTICE.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

MESSAGES = "protobuf messages, enums, wrappers and namespaces: events are JSON"
WHOLE_SUITES = {
    "bindings_ext": "extension cel.bind",
    "block_ext": "extension cel.block",
    "encoders_ext": "extension base64",
    "enums": MESSAGES,
    "macros2": "comprehensions with two variables",
    "math_ext": "extension math",
    "namespace": MESSAGES,
    "optionals": "optional values",
    "proto2": MESSAGES,
    "proto2_ext": MESSAGES,
    "proto3": MESSAGES,
    "string_ext": "extension strings",
    "type_deductions": "types that a checker deduces: ours only refuses what never fits",
    "wrappers": MESSAGES,
}
UNDECLARED = "undeclared functions and variables: refused when the policy loads"
BY_NAME = {
    "macros/nested": "a macro inside another's body",
    "fields/qualified_identifier_resolution/": "variables with dots in their names",
    "basic/functions/unbound": UNDECLARED,
    "basic/variables/self_eval_unbound_lookup": UNDECLARED,
    "basic/variables/unbound_is_runtime_error": UNDECLARED,
    "parse/receiver_function_names/": UNDECLARED,
}
TYPE_NAME = r"(bool|bytes|double|dyn|int|list|map|null_type|string|type|uint)"
BY_EXPRESSION = (
    (r"TestAllTypes|\bValue\{|google\.protobuf", MESSAGES),
    (r"(?<![\w'\"])([bB][rR]?|[rR][bB])['\"]|\bbytes\(", "bytes: JSON has none"),
    (rf"\btype\(|^{TYPE_NAME}$", "types as values"),
    (r"[{,]\s*(-?\d+(\.\d+)?u?|true|false|null)\s*:", "map literals with keys that are no strings: JSON has none"),
    (r"\.matches\(", "matches: a regular expression costs what the event makes it cost"),
    (r"\.get[A-Z]\w+\(", "timestamp and duration getters"),
)
TYPED = {"boolValue": "bool", "int64Value": "int", "uint64Value": "uint", "doubleValue": "double"}
TYPED |= {"stringValue": "string", "nullValue": "null"}


def rows(suite: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every test below *suite* with its path."""
    for test in suite.get("tests", []):
        yield f"{path}{test['original']['name']}", test["original"]
    for inner in suite.get("suites", []):
        yield from rows(inner, f"{path}{inner['name']}/")


def outside(path: str, row: dict[str, Any]) -> str | None:
    """Why a row is no matter of ours, or None."""
    whole = WHOLE_SUITES.get(path.split("/", maxsplit=1)[0])
    named = (reason for start, reason in BY_NAME.items() if path.startswith(start))
    written = (reason for pattern, reason in BY_EXPRESSION if re.search(pattern, row["expr"]))
    bound = json.dumps(row.get("bindings", {})) + json.dumps(row.get("value", {}))
    found = whole or next(named, None) or next(written, None)
    if found is None and "objectValue" in bound:
        return MESSAGES
    if found is None and "bytesValue" in bound:
        return "bytes: JSON has none"
    return found


def typed(value: dict[str, Any]) -> list[Any]:
    """A value as `[type, content]`: integers and NaN as text, maps as pairs."""
    ((kind, content),) = value.items()
    if kind == "listValue":
        return ["list", [typed(item) for item in content.get("values", [])]]
    if kind == "mapValue":
        return ["map", [[entry["key"]["stringValue"], typed(entry["value"])] for entry in content.get("entries", [])]]
    return [TYPED[kind], content]


def main() -> None:
    """Read the suites from standard input, write the table to standard output."""
    inside: list[dict[str, Any]] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    for path, row in rows(json.load(sys.stdin)):
        reason = outside(path, row)
        if reason is not None:
            left_out[reason].append(path)
            continue
        made: dict[str, Any] = {"name": path, "expr": row["expr"]}
        if row.get("bindings"):
            made["bindings"] = {name: typed(bound["value"]) for name, bound in row["bindings"].items()}
        made["expect"] = typed(row["value"]) if "value" in row else "error"
        inside.append(made)
    whole = set(WHOLE_SUITES)
    sys.stdout.write('{"source": "@bufbuild/cel-spec 0.6.1, cel-spec v0.25.1; see CEL-NOTICE.md",\n "inside": [\n  ')
    sys.stdout.write(",\n  ".join(json.dumps(row, ensure_ascii=True) for row in inside))
    sys.stdout.write('\n ],\n "outside": {\n  ')
    lines = []
    for reason, paths in sorted(left_out.items()):
        suites = sorted({path.split("/", maxsplit=1)[0] for path in paths} & whole)
        single = [path for path in paths if path.split("/", maxsplit=1)[0] not in whole]
        entry = {"rows": len(paths), "suites": suites, "names": single}
        lines.append(f"{json.dumps(reason)}: {json.dumps(entry)}")
    sys.stdout.write(",\n  ".join(lines) + "\n }\n}\n")


if __name__ == "__main__":
    main()
