"""From a provider's words to CloudEvents attributes: types, ids, subjects, times. Pure.

Ids never collide by being made to fit: what is outside the grammar is escaped, and what is too long is hashed whole.
Types are for people and policies: they are lower case, and what is outside the grammar becomes `_`.
"""

from __future__ import annotations

import re
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from mesh.attributes import GRAMMAR, MAX_STRING_CHARS
from mesh.errors import BadAttribute
from mesh.subjects import MAX_TYPE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = "v1"
MAX_TOKEN = 64  # the subject grammar's
MAX_ID = 256  # the grammar of ids
MAX_MS = 253_402_300_799_999  # the last millisecond that RFC 3339 can say
_MAX_INT = 2**63  # larger numbers are nobody's id, and take long to write
_HASHED = 16  # hexadecimal characters at the end of a token that was too long

_OUTSIDE_TOKEN = re.compile(r"[^a-z0-9_-]+")
_OUTSIDE_ID = re.compile(rb"[^A-Za-z0-9._:/+=-]")  # and `~`, which escapes
_BETWEEN_NAMES = re.compile(r"[.:/]+")


def token(text: str) -> str:
    """*text* as one token of a type: lower case, `_` for what is outside the grammar, a hash for what is too long."""
    lowered = _OUTSIDE_TOKEN.sub("_", text.lower())
    if len(lowered) <= MAX_TOKEN:
        return lowered or "_"
    return f"{lowered[: MAX_TOKEN - _HASHED - 1]}_{sha256(_bytes(text)).hexdigest()[:_HASHED]}"


def type_of(domain: str, names: Sequence[str]) -> str:
    """The type `<domain>.<name>….v1`; names beyond the grammar's eight tokens share the last one.

    Raises:
        BadAttribute: There is no name.
    """
    given = [name for name in names if name]
    if not given:
        raise absent("the event's name")
    room = MAX_TYPE_TOKENS - 2  # the domain and the version
    tokens = [token(name) for name in given[:room]]
    if len(given) > room:
        tokens[-1] = token("_".join(given[room - 1 :]))
    return ".".join([domain, *tokens, VERSION])


def parts(name: Any) -> list[str]:
    """The words of a provider's event name: `orders/create`, `jira:issue_updated`, `invoice.paid`; none of no text."""
    return [part for part in _BETWEEN_NAMES.split(name) if part] if isinstance(name, str) else []


def event_id(*values: Any, what: str) -> str:
    """An id of *values*, which together name the event.

    Args:
        values: Texts or numbers of the provider, none of them empty.
        what: Their names, for the error.

    Returns:
        The values joined by `:`. A byte outside the grammar is `~` and two hexadecimal digits, and so is a `:` in one
        of several values; an id that is too long is `~~` and the SHA-256 of it. So two ids are equal only where all
        their values are.

    Raises:
        BadAttribute: A value is missing, empty, or neither text nor integer.
    """
    texts = [as_text(value) for value in values]
    if not all(texts):
        raise absent(what)
    escaped = [_OUTSIDE_ID.sub(lambda m: b"~%02X" % m[0][0], _bytes(text or "")) for text in texts]
    if len(escaped) > 1:
        escaped = [text.replace(b":", b"~3A") for text in escaped]
    whole = b":".join(escaped)
    return whole.decode() if len(whole) <= MAX_ID else f"~~{sha256(whole).hexdigest()}"


def as_text(value: Any) -> str | None:
    """A text, or an integer as text; None for anything else, the empty text included."""
    if isinstance(value, str):
        return value or None
    if type(value) is int and abs(value) < _MAX_INT:
        return str(value)
    return None


def at(payload: Any, *path: str) -> Any:
    """What stands at *path* in nested objects and arrays (by index); None where nothing does."""
    for step in path:
        if isinstance(payload, dict):
            payload = payload.get(step)
        elif isinstance(payload, list) and step.isascii() and step.isdigit() and int(step) < len(payload):
            payload = payload[int(step)]
        else:
            return None
    return payload


def subject(*values: Any) -> str | None:
    """A subject of *values* joined by `/`; None where one is missing, or together they are none."""
    texts = [as_text(value) for value in values]
    whole = "/".join(text for text in texts if text is not None)
    return whole if None not in texts and len(whole) <= MAX_STRING_CHARS and GRAMMAR["subject"](whole) else None


def milliseconds(value: Any, *, per_s: int = 1) -> int | None:
    """Unix milliseconds of a number, or a text of one, that counts *per_s* a second; None for what is no time."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_MS:
        return None
    ms = value * 1000 // per_s if isinstance(value, int) else round(value * 1000 / per_s)
    return ms if ms <= MAX_MS else None


def from_rfc3339(value: Any) -> int | None:
    """Unix milliseconds of an RFC 3339 time; None for what is none."""
    if not isinstance(value, str) or not GRAMMAR["time"](value):
        return None
    try:
        ms = round(datetime.fromisoformat(value.upper()).timestamp() * 1000)
    except (ValueError, OverflowError):  # 29 February of another year, a leap second, year 0
        return None
    return ms if 0 <= ms <= MAX_MS else None


def absent(what: str) -> BadAttribute:
    """The error for a delivery that does not say what it is."""
    return BadAttribute(
        f"{what} is missing or malformed",
        expected=f"{what}, as the provider documents it",
        got="none that can be used",
        next="is this the provider that the source is configured for, and does the proxy pass its headers on?",
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # header values hold undecodable bytes as lone surrogates
