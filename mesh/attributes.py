"""What a CloudEvents attribute may be: one grammar for every mode an event can arrive in, and the limits.

Names of standard attributes and of the extensions the mesh knows have a grammar of their own (`GRAMMAR`); any other
name is an extension of the sender's: `[a-z0-9]{1,20}`, a string without control characters, a boolean or an int32.

Source: CloudEvents 1.0.2 (attributes, type system), its partitioning, distributed tracing, sequence and expirytime
extensions, RFC 3339 (times), RFC 3986 (URI references).
"""

from __future__ import annotations

import re
from calendar import isleap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from mesh.errors import BadAttribute, ReservedAttribute
from mesh.subjects import TYPE_RE, check_type
from mesh.tracing import is_traceparent, is_tracestate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Limits:
    """How large an event may be. Each number guards the agent's memory and its one event loop."""

    max_event_bytes: int = 262_144  # as re-encoded; four views of it still fit NATS's 1 MiB messages one by one
    max_depth: int = 64  # containers, the event itself being the first; masking walks them
    max_batch_events: int = 1000  # one answer names them all
    max_batch_bytes: int = 4 * 1024 * 1024  # of a whole body; about 40 ms of parsing
    max_headers: int = 64  # header fields of one request
    max_header_bytes: int = 16_384  # names and values of one request together


RESERVED = frozenset({"tenant", "view", "policyrevision", "sequence"})  # the mesh's own words: only it says them
ATTRIBUTES_NEVER_MASKED = RESERVED | {
    "specversion",
    "id",
    "source",
    "type",
    "time",
    "datacontenttype",
    "dataschema",
    "correlationid",
    "causationid",
    "traceparent",
    "tracestate",
    "expirytime",
}
REQUIRED = ("specversion", "id", "source", "type")
MAX_STRING_CHARS = 1024
MAX_USUAL = 1024  # values of one attribute that are known to match, of at most 600 bytes each
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

_ID = r"[A-Za-z0-9._:/+=~-]{1,256}"  # fits a header, a subject's neighbour and a log line without escapes
_URI_CHARS = r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]"
_URI = rf"(?:{_URI_CHARS}{{1,256}}|(?=[!-~]{{1,256}}\Z){_URI_CHARS}*(?:%[0-9A-Fa-f]{{2}}{_URI_CHARS}*)*)"
_STRING = r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]"  # CloudEvents 1.0.2, type String: no control characters, no surrogates
_MONTH_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-9]))"
)
_TIME = (
    rf"[0-9]{{4}}-{_MONTH_DAY}[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]{{1,18}})?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_MEDIA = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,127}"
_MEDIA_TYPE = rf"{_MEDIA}/{_MEDIA}(?:[ \t]*;[ \t]*{_MEDIA}=(?:{_MEDIA}|\"(?:[ !#-\[\]-~]|\\[ -~]){{0,127}}\")){{0,8}}"


def _match(pattern: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(pattern).fullmatch


class _Usual(dict[str, bool]):
    """What matched lately, of values that repeat from event to event: they need no second look, nor a call of ours."""

    def __init__(self, match: Callable[[str], re.Match[str] | None]) -> None:
        super().__init__()
        self._match = match

    def __missing__(self, value: str) -> bool:
        if self._match(value) is None:
            return False
        if len(self) >= MAX_USUAL:
            self.clear()
        self[value] = True
        return True


_media_type = _match(rf"(?=.{{3,256}}\Z){_MEDIA_TYPE}")

SOURCES: dict[str, bool] = _Usual(_match(_URI))
TYPES: dict[str, bool] = _Usual(TYPE_RE.fullmatch)

# What a string has to be to pass at once, without another call; `keep` has the last word on everything else.
GRAMMAR: dict[str, Callable[[str], object]] = {
    "specversion": frozenset({"1.0"}).__contains__,
    "id": _match(_ID),
    "source": SOURCES.__getitem__,
    "type": TYPES.__getitem__,
    "time": _match(_TIME),
    "datacontenttype": frozenset({"application/json"}).__contains__,
    "subject": _match(rf"{_STRING}{{1,{MAX_STRING_CHARS}}}"),
    "correlationid": _match(_ID),
    "causationid": _match(_ID),
    "partitionkey": _match(rf"{_STRING}{{1,{MAX_STRING_CHARS}}}"),
    "dataschema": _match(rf"(?=[A-Za-z][A-Za-z0-9+.-]*:){_URI}"),
    "expirytime": _match(_TIME),
    "traceparent": is_traceparent,
    "tracestate": is_tracestate,
}
_SAYS = {
    "specversion": "exactly `1.0`",
    "id": "1 to 256 of A-Z a-z 0-9 . _ : / + = ~ -",
    "source": "a URI reference of 1 to 256 characters without `.` and `..` segments, like /crm/eu",
    "time": "an RFC 3339 time, like 2026-01-31T12:00:00Z",
    "datacontenttype": "a media type of at most 256 characters, like application/json",
    "subject": f"a string of 1 to {MAX_STRING_CHARS} characters without control characters",
    "dataschema": "an absolute URI of at most 256 characters",
}
_SAYS |= {"correlationid": _SAYS["id"], "causationid": _SAYS["id"], "expirytime": _SAYS["time"]}
_SAYS |= {"partitionkey": _SAYS["subject"]}
_TRACE = frozenset({"traceparent", "tracestate"})
_name = _match(r"[a-z0-9]{1,20}")
_harmless_name = _match(r"[A-Za-z0-9_.-]{1,40}")
_string = _match(rf"{_STRING}{{0,{MAX_STRING_CHARS}}}")


def describe(value: object) -> str:
    """What *value* is without saying it: a type, and a length where it has one."""
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    names = {
        dict: "an object",
        list: "an array",
        bool: "a boolean",
        int: "an integer",
        float: "a number with a fraction",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def show_name(name: str) -> str:
    """An attribute's or header's name as an error may repeat it."""
    return f"`{name}`" if _harmless_name(name) else f"a name of {len(name)} characters"


def keep(name: str, value: object) -> bool:
    """Whether an attribute that did not match `GRAMMAR` at once stays; False means it counts as not there.

    Raises:
        BadAttribute: It is malformed, or no attribute can have this name.
        ReservedAttribute: Only the mesh may set it.
    """
    if value is None:
        return False  # JSON format 1.0.2, 2: null is the same as unset
    if name in _TRACE:
        return False  # W3C Trace Context 3.2.2.3: what does not parse is dropped, and the request goes on
    if name in RESERVED:
        raise ReservedAttribute(
            f"`{name}` is set by the mesh alone",
            expected=f"an event without `{name}`",
            got=describe(value),
            next="leave it out",
            attribute=name,
        )
    if name in GRAMMAR:
        if name == "datacontenttype" and isinstance(value, str) and _media_type(value):
            return True
        refuse(name, value)
    if _name(name) is None:
        raise BadAttribute(
            "an attribute's name is outside the grammar",
            expected="a name of 1 to 20 lower-case letters and digits",
            got=show_name(name),
            next="rename it, or move it into `data`",
        )
    kind = type(value)
    if kind is bool or (kind is str and _string(value)):  # type: ignore[arg-type]  # `kind` says it is one
        return True
    if kind is int and INT32_MIN <= value <= INT32_MAX:  # type: ignore[operator]  # `kind` says it is one
        return True
    return refuse(name, value)


def refuse(name: str, value: object) -> NoReturn:
    """Raise for the malformed attribute *name*. Raises BadType for `type`, else BadAttribute."""
    if name == "type":
        check_type(value)  # type: ignore[arg-type]  # refuses what is no string
    other = f"a string of at most {MAX_STRING_CHARS} characters without control characters, a boolean or an int32"
    raise BadAttribute(
        f"the attribute `{name}` is malformed",
        expected=_SAYS.get(name, other),
        got=describe(value),
        next=f"correct `{name}`",
        attribute=name,
    )


def check_required(fields: Mapping[str, Any]) -> None:
    """Every required attribute is there. Raises BadAttribute, which names the first that is missing."""
    for name in REQUIRED:
        if name not in fields:
            raise BadAttribute(
                f"the attribute `{name}` is missing",
                expected=", ".join(REQUIRED),
                got=f"no `{name}`",
                next=f"add `{name}`: {_SAYS.get(name, 'such as crm.contact.updated.v1')}",
                attribute=name,
            )


def check_rest(fields: Mapping[str, Any]) -> None:
    """What a pattern cannot say of attributes that match theirs: leap days, dot segments. Raises BadAttribute."""
    for name in ("time", "expirytime"):
        if name in fields and fields[name][5:10] == "02-29" and not isleap(int(fields[name][:4])):
            refuse(name, fields[name])
    path = re.split("[?#]", fields["source"], maxsplit=1)[0]
    if "." in path and not {".", ".."}.isdisjoint(path.split("/")):
        refuse("source", fields["source"])  # `/crm/../hr` is not below /crm, whoever resolves it
