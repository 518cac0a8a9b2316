"""The CloudEvent as JSON Schema: as a door takes it, as it hands it out, and what it answers for one it took.

What the schema of an accepted event calls valid, the door's grammar takes, and the other way round (`mesh.attributes`);
the tests ask both for events made at random. No look-around in the patterns: Go's and Rust's engines have none. What
is beyond a schema (how deep `data` nests, whether `expirytime` is past, what the policies say) the descriptions say.

Source: CloudEvents 1.0.2, JSON event format 1.0.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mesh.attributes import INT32_MAX, INT32_MIN, MAX_STRING_CHARS, REQUIRED, RESERVED

if TYPE_CHECKING:
    from agent.settings import AgentSettings

EXAMPLE: Final = {
    "specversion": "1.0",
    "id": "c-4711-17",
    "source": "/crm",
    "type": "crm.contact.updated.v1",
    "data": {"contact": {"id": "c-4711", "email": "ada@example.org"}, "country": "DE"},
}

_ID: Final = r"^[A-Za-z0-9._:/+=~-]{1,256}$"
_URI: Final = r"^([A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+$"
_DOT_SEGMENT: Final = r"^([^?#]*/)?\.{1,2}([/?#]|$)"
_TYPE: Final = r"^[a-z0-9_-]{1,64}(\.[a-z0-9_-]{1,64}){1,7}$"
_DAY: Final = r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
_LEAP_YEAR: Final = r"([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_TIME: Final = (  # no `format` beside it: validators disagree about where a leap second may stand
    rf"^([0-9]{{4}}-{_DAY}|{_LEAP_YEAR}-02-29)[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]{{1,18}})?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
_BASE64: Final = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_PRINTED: Final = r"^[^\u0000-\u001f\u007f-\u009f]*$"
_TOKEN: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,127}"  # noqa: S105 - of a media type
_MEDIA_TYPE: Final = rf'^{_TOKEN}/{_TOKEN}([ \t]*;[ \t]*{_TOKEN}=({_TOKEN}|"([ !#-\[\]-~]|\\[ -~]){{0,127}}")){{0,8}}$'
_URI_CHARS: Final = 256

_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}


def _string(pattern: str, low: int, high: int, **more: Any) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern, "minLength": low, "maxLength": high, **more}


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    return schema | {"type": [schema["type"], "null"]}


def _attributes() -> dict[str, Any]:
    """The attributes that a sender may set."""
    time = {"type": "string", "pattern": _TIME, "description": "RFC 3339."}
    text = _string(_PRINTED, 1, MAX_STRING_CHARS)
    name = _string(_ID, 1, 256)
    return {
        "specversion": {"const": "1.0"},
        "id": name | {"description": "Unique within its source; the same again is the same event."},
        "source": _string(_URI, 1, _URI_CHARS, description="`/<team>` or below, or what the team's policies add.")
        | {"not": {"pattern": _DOT_SEGMENT}},
        "type": {"type": "string", "pattern": _TYPE, "not": {"pattern": r"\.v0$"}}
        | {"description": "Domain, thing, what happened, contract version: `crm.contact.updated.v1`."},
        "time": _optional(time),
        "datacontenttype": _optional(_string(_MEDIA_TYPE, 3, 256)),
        "dataschema": _optional(_string(rf"^[A-Za-z][A-Za-z0-9+.-]*:{_URI[1:-1].removesuffix('+')}*$", 2, _URI_CHARS)),
        "subject": _optional(text | {"description": "Masked as the policies classify it."}),
        "correlationid": _optional(
            name | {"description": "Shared by a chain of events; the own id where none is given."}
        ),
        "causationid": _optional(name | {"description": "The id of the event that caused this one."}),
        "partitionkey": _optional(text | {"description": "Events with an equal key keep their order."}),
        "expirytime": _optional(
            time | {"description": "RFC 3339. After it nobody is handed the event; a past one is refused."}
        ),
        "traceparent": {
            "description": "W3C Trace Context; one that does not parse is left out. An event that has none takes "
            "`traceparent` and `tracestate` of the request's header fields."
        },
        "tracestate": {
            "description": "Beside `traceparent`; one that does not parse is left out, and of one of more than 512 "
            "characters the long members, then the last."
        },
    }


def accepted(settings: AgentSettings) -> dict[str, Any]:
    """The schema of an event that a sender hands in, structured."""
    extension = {
        "type": ["string", "boolean", "integer", "null"],
        "pattern": _PRINTED,
        "maxLength": MAX_STRING_CHARS,
        "minimum": INT32_MIN,
        "maximum": INT32_MAX,
    }
    base64 = {"type": ["string", "null"], "contentEncoding": "base64", "pattern": _BASE64}
    return {
        "type": "object",
        "description": (
            f"A CloudEvent 1.0. At most {settings.max_event_bytes} bytes and {settings.max_depth} levels of JSON. "
            "Beside what is named here it may carry extensions: strings, booleans and 32-bit integers. "
            "An attribute that is null counts as left out."
        ),
        "required": list(REQUIRED),
        "properties": {
            **_attributes(),
            **{name: {"type": "null", "description": "Set by the mesh alone."} for name in sorted(RESERVED)},
            "data": {"description": "Any JSON value."},
            "data_base64": base64 | {"description": "Data that is no JSON: RFC 4648, with padding."},
        },
        "propertyNames": {"pattern": "^([a-z0-9]{1,20}|data_base64)$"},
        "additionalProperties": extension,
        "not": {"required": ["data", "data_base64"]},
        "examples": [EXAMPLE],
    }


def delivered() -> dict[str, Any]:
    """The schema of an event as the mesh hands it to a reader: in the reader's view, verified."""
    mine = {
        "tenant": _TEXT | {"description": "Whose event it is."},
        "view": _TEXT | {"description": "In which it is shown: fields that the view hides are masked or absent."},
        "policyrevision": _COUNT | {"description": "The policies it was masked by."},
        "sequence": {"description": "Counts a source's events in this view."},
    }
    given = dict.fromkeys(("time", "datacontenttype", "correlationid", "subject", "partitionkey"), _TEXT)
    return {
        "type": "object",
        "description": "A CloudEvent 1.0 in the view that the team reads; extensions of its sender may stand beside.",
        "required": [*REQUIRED, "tenant", "view"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": _TEXT,
            "source": _TEXT,
            "type": _TEXT,
            **given,
            **mine,
            "data": {"description": "Any JSON value, masked."},
            "data_base64": {"type": "string", "contentEncoding": "base64"},
        },
    }


def receipts() -> dict[str, Any]:
    """The schemas of what a door answers for events it took."""
    return {
        "Receipt": {
            "type": "object",
            "description": "Every copy of one event is durable. No copies: it is allowed, and nobody reads it.",
            "required": ["id", "durable", "duplicate", "copies"],
            "properties": {
                "id": _TEXT,
                "durable": {"enum": ["stream", "spool"], "description": "`spool`: on disk, and sent when it can be."},
                "duplicate": {"type": "boolean", "description": "Every copy was stored already."},
                "copies": {"type": "array", "items": {"$ref": "#/components/schemas/Copy"}},
            },
        },
        "Copy": {
            "type": "object",
            "required": ["view", "stream", "seq"],
            "properties": {
                "view": _TEXT,
                "stream": _TEXT,
                "seq": _COUNT | {"description": "In its stream; 0 while the copy rests in the spool."},
            },
        },
    }  # fmt: skip


def batch_receipt() -> dict[str, Any]:
    """The schema of the answer to a batch."""
    return {
        "type": "object",
        "description": "One receipt for each event, in the order of the request.",
        "required": ["accepted", "events"],
        "properties": {
            "accepted": _COUNT,
            "events": {"type": "array", "items": {"$ref": "#/components/schemas/Receipt"}},
        },
    }
