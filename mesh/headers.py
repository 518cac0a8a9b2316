"""Header fields from outside: which are refused, and how CloudEvents binary mode writes attributes into them.

Source: RFC 9110 5.5 and 5.6.2 (names and values), CloudEvents HTTP protocol binding 1.0.2, 3.1.3.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote_to_bytes

from mesh.attributes import show_name
from mesh.errors import BadHeader, TooManyHeaders

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.attributes import Limits

PREFIX = "ce-"

_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}").fullmatch  # RFC 9110 5.6.2, token
_value = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*").fullmatch  # RFC 9110 5.5; also what nats-py would not survive
_ascii = re.compile(r"[\t -~]*").fullmatch
_quoted = re.compile(r'"((?:[^"\\]|\\.)*)"').fullmatch  # RFC 7230 3.2.6
_escape = re.compile(r"\\(.)").sub
_bad_percent = re.compile(r"%(?![0-9A-Fa-f]{2})").search
_OURS = ("nats-", "mesh-")  # what the stream and the mesh read
_STATUS = frozenset({"status", "description"})  # nats.py and the server answer with these
_ONCE = frozenset({"content-type", "content-length", "host", "authorization"})


def check_headers(headers: Iterable[tuple[str, str]], limits: Limits) -> list[tuple[str, str]]:
    """Return the header fields of a request, names in lower case, if none of them is a trick.

    Raises:
        TooManyHeaders: More fields, or more bytes in them, than the limits.
        BadHeader: CR, LF, NUL or another control character; a name that is no token; a `Nats-` or `Mesh-` name,
            `Status` or `Description`; a `ce-` name or one that decides how the body is read, twice.
    """
    fields = list(headers)
    if len(fields) > limits.max_headers:
        raise TooManyHeaders(
            f"the request has {len(fields)} header fields, limit {limits.max_headers}",
            expected=f"at most {limits.max_headers}",
            got=str(len(fields)),
            limit=limits.max_headers,
        )
    size = sum(len(name) + len(value) for name, value in fields)
    if size > limits.max_header_bytes:
        raise TooManyHeaders(
            f"the request has {size} bytes of header fields, limit {limits.max_header_bytes}",
            expected=f"at most {limits.max_header_bytes} bytes",
            got=f"{size} bytes",
            limit=limits.max_header_bytes,
        )
    checked, seen = [], set()
    for given, value in fields:
        name = given.lower()
        if _name(given) is None or _value(value) is None:
            refuse(name, "a token as name, and no control character in the value", "a CR, LF, NUL or the like")
        if name.startswith(_OURS) or name in _STATUS:
            refuse(name, "no header that NATS or the mesh itself sets", show_name(name))
        if name in seen and (name in _ONCE or name.startswith(PREFIX)):
            refuse(name, "the header once", "it twice")
        seen.add(name)
        checked.append((name, value))
    return checked


def attribute_value(name: str, raw: str) -> str:
    """The attribute that the value of one `ce-` header stands for.

    Raises:
        BadHeader: Not ASCII, a `%` without two hexadecimal digits, or not UTF-8 once decoded.
    """
    text = raw.strip(" \t")
    if _ascii(text) is None:
        refuse(name, "printable ASCII, everything else percent-encoded", "a character beyond it")
    quoted = _quoted(text)
    if quoted is not None:
        text = _escape(r"\1", quoted[1])  # binding 1.0.2, 3.1.3.2: for senders of older versions
    if "%" not in text:
        return text
    if _bad_percent(text):
        refuse(name, "two hexadecimal digits after each `%`", "a `%` without them")
    try:
        return unquote_to_bytes(text).decode()  # one round only
    except UnicodeDecodeError:
        refuse(name, "percent-encoded UTF-8", "bytes that are not UTF-8")


def refuse(name: str, expected: str, got: str) -> NoReturn:
    """Raise BadHeader for the header *name*."""
    shown = show_name(name)
    raise BadHeader(f"the header {shown} is not accepted", expected=expected, got=got, next="leave it out")
