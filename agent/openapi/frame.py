"""What the documents of all doors have in common: the frame, and every problem an operation can answer.

An operation names error classes, and nothing else about them: status, code, text and header fields are those that
`mesh.errors` and `agent.problems` give the answer itself, so that a document cannot say another code than the door.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from agent import problems
from mesh import __version__
from mesh.errors import (
    BadHeader,
    CrossOrigin,
    MeshError,
    MethodNotAllowed,
    Overloaded,
    RequestTimeout,
    TooManyHeaders,
    WrongHost,
)

VERSION: Final = "3.1.1"
JSON: Final = "application/json"

# By whom a request reaches: each list is what a listener, and then a door, can answer before it looks at the operation.
LISTENER: Final = (BadHeader, RequestTimeout, TooManyHeaders, MethodNotAllowed, Overloaded)
DOOR: Final = (*LISTENER, CrossOrigin, WrongHost)

_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_FIELDS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Cache-Control": ("A problem is about this request alone.", {"const": "no-store"}),
    "Retry-After": ("Seconds after which sending the same again makes sense.", {"type": "integer", "minimum": 1}),
    "WWW-Authenticate": ("How to ask.", {"const": "Bearer"}),
    "Allow": ("The methods that this path has.", _TEXT),
}
_INTERNAL: Final = "The agent failed on this request; its log has the `instance` beside the traceback."
_PROBLEM: Final = {
    "type": "object",
    "description": "RFC 9457. It says what to do next, and repeats no value of an event.",
    "required": ["type", "title", "status", "code", "instance"],
    "properties": {
        "type": {"type": "string", "description": f"`{problems.TYPE_PREFIX}` and the code."},
        "title": _TEXT,
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable; what a program looks at."},
        "detail": _TEXT,
        "expected": _TEXT,
        "got": {"type": "string", "description": "A name, a length or a type; never a value of an event."},
        "next": {"type": "string", "description": "What to do about it."},
        "rule": {"type": ["string", "null"], "description": "The policy rule that decided."},
        "reason": _TEXT,
        "instance": {"type": "string", "description": "Names this occurrence; the agent's log has it too."},
        "attribute": {"type": "string", "description": "Of the event: the one that is wrong."},
        "index": _COUNT | {"description": "Of a batch: which event, from 0."},
        "accepted": _COUNT | {"description": "Of a batch: how many are durable all the same."},
        "failed": {"type": "array", "items": _COUNT, "description": "Of a batch: which are not, the first hundred."},
        "limit": _COUNT,
        "size": _COUNT,
    },
}


def frame(
    *,
    title: str,
    summary: str,
    description: str,
    servers: list[dict[str, Any]],
    paths: Mapping[str, Any],
    schemas: Mapping[str, Any],
    security: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One document."""
    components: dict[str, Any] = {"schemas": {**schemas, "Problem": _PROBLEM}}
    if security:
        components["securitySchemes"] = dict(security)
    return {
        "openapi": VERSION,
        "info": {
            "title": title,
            "version": __version__,
            "summary": summary,
            "description": description,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": servers,
        "paths": dict(paths),
        "components": components,
    }


def loopback(port: int, usual: int, *, host: str = "127.0.0.1") -> dict[str, Any]:
    """The server that a door of ours is; a port that the system chose is in `ports.json`."""
    shown = f"[{host}]" if ":" in host else host
    variable = {"default": str(port or usual), "description": "`ports.json` beside agent.toml names the bound one."}
    return {"url": f"http://{shown}:{{port}}", "variables": {"port": variable}}


def component(name: str) -> dict[str, Any]:
    """A reference to one of the document's schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def answer(description: str, content: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A response with these schemas by media type."""
    return {"description": description, "content": {kind: {"schema": schema} for kind, schema in content.items()}}


def refusals(*errors: type[MeshError]) -> dict[str, Any]:
    """A response for each status of *errors*, and of what nobody foresaw."""
    by_status: dict[int, list[type[MeshError]]] = {}
    for error in dict.fromkeys(errors):
        by_status.setdefault(error.status, []).append(error)
    made = {str(status): _refusal(status, some) for status, some in sorted(by_status.items())}
    return {**made, str(problems.INTERNAL_STATUS): _internal()}


def _refusal(status: int, errors: Iterable[type[MeshError]]) -> dict[str, Any]:
    held = sorted(errors, key=lambda error: error.code)
    fields = [problems.headers(error(""), retry_after_s=1) for error in held]
    always = {name for name in _FIELDS if all(name in some for some in fields)}
    sometimes = {name for name in _FIELDS if any(name in some for some in fields)}
    return {
        "description": "\n".join(f"- `{error.code}`: {' '.join((error.__doc__ or '').split())}" for error in held),
        "headers": {name: _field(name, required=name in always) for name in _FIELDS if name in sometimes},
        "content": {problems.CONTENT_TYPE: {"schema": _coded(status, [error.code for error in held])}},
    }


def _internal() -> dict[str, Any]:
    codes = [problems.INTERNAL_CODE]
    return {
        "description": f"- `{problems.INTERNAL_CODE}`: {_INTERNAL}",
        "content": {problems.CONTENT_TYPE: {"schema": _coded(problems.INTERNAL_STATUS, codes)}},
    }


def _coded(status: int, codes: list[str]) -> dict[str, Any]:
    """A problem of this status with one of *codes*."""
    known = {"status": {"const": status}, "code": {"enum": codes}}
    return {"allOf": [component("Problem"), {"type": "object", "properties": known}]}


def _field(name: str, *, required: bool) -> dict[str, Any]:
    description, schema = _FIELDS[name]
    return {"description": description, "required": required, "schema": schema}
