"""JSON text to values and back: one parser and one encoder, and the three ways to fail as errors of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from mesh import native
from mesh.attributes import Limits, describe
from mesh.errors import NotJson, TooDeep

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DEPTH = Limits().max_depth
_LONG = 4096  # bytes from which leaping from bracket to bracket is faster than looking at each byte

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def encode(fields: Mapping[str, Any]) -> bytes:
    """The event as JSON, members in the order of *fields*."""
    return _encode(fields)


@native.twin
def extended(text: bytes, members: bytes) -> bytes:
    """*text*, a JSON object with at least one member, with more of them behind: *members* is `,"name":value}`."""
    return text[:-1] + members


def decode(body: bytes, *, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Read one JSON object; the only way bytes become an event.

    Raises:
        NotJson: Not one JSON text in UTF-8, or no object.
        TooDeep: Containers nest deeper than *max_depth*, the outermost being 1.
    """
    # As in `decode_value`, without its calls: each level needs a bracket of its own, so few are proof enough.
    if len(body) < _LONG and not brackets_exceed(body, max_depth):
        try:
            fields = _decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            not_json(body, error)
    else:
        fields = decode_value(body, max_depth=max_depth)
    if type(fields) is not dict:
        raise NotJson("the event is not a JSON object", expected="a JSON object", got=describe(fields))
    return fields


def decode_value(body: bytes, *, max_depth: int) -> Any:
    """Read one JSON text of any kind. Raises NotJson or TooDeep."""
    try:
        value = _decode(body)
    except RecursionError:
        too_deep(max_depth)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        not_json(body, error)
    # Each level needs a bracket of its own, so few brackets are proof enough; brackets in strings only cost the walk.
    if brackets_exceed(body, max_depth) and _is_deeper(value, max_depth):
        too_deep(max_depth)
    return value


@native.twin
def brackets_exceed(body: bytes, limit: int) -> bool:
    """Whether there are more than *limit* of `{` and `[`, those in strings too; of a long text no more are looked for.

    `count` looks at every byte by itself: 64 KB of text take it as long as SHA-256 does. `find` leaps, and a short text
    with many brackets is where its calls would cost more.
    """
    if len(body) < _LONG:
        return body.count(b"{") + body.count(b"[") > limit
    found = 0
    for bracket in (b"{", b"["):
        at = body.find(bracket)
        while at >= 0 and found <= limit:
            found += 1
            at = body.find(bracket, at + 1)
    return found > limit


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value] if type(value) in (dict, list) else []
    for _ in range(limit):
        below = []
        for node in level:
            below += [v for v in (node.values() if type(node) is dict else node) if type(v) in (dict, list)]
        if not below:
            return False
        level = below
    return True


def too_deep(limit: int) -> NoReturn:
    """Raise TooDeep for a value deeper than *limit*."""
    raise TooDeep(
        f"JSON containers nest deeper than {limit}", expected=f"at most {limit} levels", got="more", limit=limit
    ) from None


def not_json(body: bytes, error: Exception) -> NoReturn:
    """Raise NotJson for *body*, which failed with *error*; neither is repeated."""
    utf8 = isinstance(error, UnicodeDecodeError)
    raise NotJson(
        "the body is not UTF-8" if utf8 else "the body is not JSON",
        expected="one JSON text in UTF-8; NaN, Infinity, lone surrogates and a byte order mark are not JSON",
        got=f"{len(body)} bytes that do not parse",
        next="check the body with any strict JSON parser",
    ) from None
