"""RFC 9457 problem documents: every answer of a door that is not a success.

`type` and `title` belong to the code; `detail` is about this occurrence; `expected`, `got` and `next` say what to do;
`rule` and `reason` name the policy that decided, and `reason` alone why NATS will not have the agent. A document never
quotes a value of an event, and an exception that nobody foresaw shows nothing of itself: its `instance` is in the log
beside the traceback.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mesh.errors import MeshError, MethodNotAllowed, RateLimited, Unauthorized, Unavailable

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:mesh:problem:"
INSTANCE_PREFIX = "urn:mesh:request:"
INTERNAL_CODE = "internal"
INTERNAL_STATUS = 500

_ABOUT = ("expected", "got", "next")
_SCALARS = (str, int, float, bool)


def document(error: BaseException, *, instance: str) -> dict[str, Any]:
    """The problem document of *error*.

    Args:
        error: A `MeshError` speaks for itself; anything else becomes `internal` and is not quoted.
        instance: Names this occurrence; the log line of the same request carries it too.

    Source: RFC 9457, section 3.
    """
    if not isinstance(error, MeshError):
        return _members(INTERNAL_CODE, INTERNAL_STATUS, instance) | {
            "detail": "the agent failed on this request",
            "next": "send it again once; if it fails again, report the instance",
        }
    members = _members(error.code, error.status, instance) | {"detail": error.message}
    for name in _ABOUT:
        if text := getattr(error, name):
            members[name] = text
    for name, value in error.details.items():
        if name not in members and _plain(value):
            members[name] = value
    return members


def _members(code: str, status: int, instance: str) -> dict[str, Any]:
    return {
        "type": TYPE_PREFIX + code,
        "title": code.replace("-", " ").capitalize(),
        "status": status,
        "code": code,
        "instance": INSTANCE_PREFIX + instance,
    }


def _plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, _SCALARS) for item in value)
    return isinstance(value, _SCALARS)


def headers(error: BaseException, *, retry_after_s: int) -> dict[str, str]:
    """The header fields that belong to *error*: `Retry-After`, `WWW-Authenticate`, `Allow`.

    Args:
        error: As for `document`.
        retry_after_s: Seconds, unless the error knows better.
    """
    fields = {"Cache-Control": "no-store"}
    if isinstance(error, Unavailable | RateLimited):
        fields["Retry-After"] = str(max(1, int(error.details.get("retry_after_s", retry_after_s))))
    if isinstance(error, Unauthorized):
        fields["WWW-Authenticate"] = "Bearer"  # RFC 9110, 11.6.1: a 401 names a challenge
    if isinstance(error, MethodNotAllowed):
        fields["Allow"] = str(error.details.get("allow", ""))  # RFC 9110, 15.5.6
    return fields


def encode(document_: dict[str, Any]) -> bytes:
    """The document as JSON text."""
    return msgspec.json.encode(document_)


def status(error: BaseException) -> int:
    """The HTTP status of *error*."""
    return error.status if isinstance(error, MeshError) else INTERNAL_STATUS
