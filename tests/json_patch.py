"""JSON Patch, as far as an admission webhook may use it. Source: RFC 6902, RFC 6901."""

from __future__ import annotations

import copy
from typing import Any


def applied(document: Any, patch: list[dict[str, Any]]) -> Any:
    """A copy of *document* after *patch*; raises LookupError or ValueError where the API server would refuse it."""
    made = copy.deepcopy(document)
    for operation in patch:
        match operation["op"]:
            case "add":
                _add(made, operation["path"], copy.deepcopy(operation["value"]))
            case "remove":
                _remove(made, operation["path"])
            case "replace":
                _remove(made, operation["path"])
                _add(made, operation["path"], copy.deepcopy(operation["value"]))
            case "move":
                _add(made, operation["path"], _remove(made, operation["from"]))
            case other:
                raise ValueError(other)
    return made


def _parent(document: Any, path: str) -> tuple[Any, str]:
    first, *steps = path.split("/")
    if first or not steps:
        raise ValueError(path)
    *way, last = [step.replace("~1", "/").replace("~0", "~") for step in steps]
    for step in way:
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document, last


def _add(document: Any, path: str, value: Any) -> None:
    parent, last = _parent(document, path)
    if not isinstance(parent, list):
        parent[last] = value
        return
    index = len(parent) if last == "-" else int(last)
    if not 0 <= index <= len(parent):
        raise IndexError(path)
    parent.insert(index, value)


def _remove(document: Any, path: str) -> Any:
    parent, last = _parent(document, path)
    return parent.pop(int(last) if isinstance(parent, list) else last)
