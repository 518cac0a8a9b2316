"""Twilio: `X-Twilio-Signature` over the URL and the sorted form fields, or over a URL that holds the body's SHA-256.

| what comes | type | id |
|---|---|---|
| a message, and its status callbacks | `twilio.message.<status>.v1` | `MessageSid` and status |
| a call, and its status callbacks | `twilio.call.<status>.v1` | `CallSid`, status, and the sequence number |
| a recording | `twilio.recording.<status>.v1` | `RecordingSid` and status |
| a conversation's webhook | `twilio.conversation.<event>.v1` | `ConversationSid` and event |
| Event Streams (JSON, an array of CloudEvents) | `twilio.<type>.v1` | theirs |
| other JSON | `twilio.request.v1` | the SHA-256 of the body |

Where these do not name one delivery alone (the first request for a call comes again after each of its verbs), a digest
of the fields is part of the id; retries have the same fields. The answer is empty TwiML, so that Twilio does nothing
more. `data` is the form as an object.

The scheme signs no time, so there is no tolerance: a delivery that somebody got hold of can be posted again, and is the
same event. Form fields are signed as a row of names and values with nothing between them, so such a person can also
move letters between a value and the name beside it. SIDs have a fixed form for that reason, and the status of a message
or a call is one of those that Twilio documents, or the delivery is refused. What stays open: a field can be made part
of another's value, so that the one after it names the status or the digest stands for the sequence number, and the
status of a recording and the event of a conversation can be cut. Each is one event more, about the same SID.
The form has to be parsed to check the signature; JSON bodies are hashed as they came. With a shared key instead of the
account's token (`X-Twilio-Webhooks-Signature-Settings`) the digest may be SHA-256.

Source: Twilio Docs, "Webhook security", "Sign webhooks with shared keys".
"""

from __future__ import annotations

import hmac
import re
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

from agent.webhooks import checks, events, forms
from agent.webhooks.provider import FORM, JSON, Answer, Incoming, Provider
from mesh.errors import InputError
from mesh.event import decode
from mesh.jsontext import MAX_DEPTH, decode_value

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNATURE = "X-Twilio-Signature"
SETTINGS = "X-Twilio-Webhooks-Signature-Settings"
BODY_HASH = "bodySHA256"

_DIGESTS = {"HMAC_SHA1": "sha1", "HMAC_SHA256": "sha256"}
_SID = re.compile(r"[A-Z]{2}[0-9a-f]{32}")
_ADDRESS = re.compile(r"(https?)://([^/?]*?)(?::([0-9]{1,5}))?([/?].*|)", re.DOTALL)
_PORTS = {"http": "80", "https": "443"}
_KINDS = (  # the first that is there: a recording names its call too
    ("conversation", "ConversationSid", ("EventType",)),
    ("recording", "RecordingSid", ("RecordingStatus",)),
    ("message", "MessageSid", ("MessageStatus", "SmsStatus")),
    ("call", "CallSid", ("CallStatus",)),
)
_MESSAGE = "accepted scheduled canceled queued sending sent failed delivered undelivered partially_delivered receiving"
_CALL = "queued initiated ringing in-progress answered completed busy failed no-answer canceled"
_STATUSES = {"message": (*_MESSAGE.split(), "received", "read"), "call": tuple(_CALL.split())}  # cut, they are none


class Twilio(Provider):
    """One address that Twilio was given; an account's token is the secret."""

    CONTENT_TYPES: ClassVar[tuple[str, ...]] = (FORM, JSON)
    NEEDS_URL: ClassVar[bool] = True
    ACCEPTED: ClassVar[Answer | None] = Answer(200, b"<Response/>", "text/xml")

    def verify(self, incoming: Incoming, secrets: Sequence[bytes], *, now_s: float) -> None:
        """As every provider."""
        del now_s  # no signed time, see above
        digest = _digest(incoming.headers.get(SETTINGS, ""))
        given = checks.header(incoming, SIGNATURE, f"{digest} in base64")
        fields = b"" if _is_json(incoming) else _signed_fields(_form(incoming.body))
        messages = [checks.raw(url) + fields for url in _addresses(incoming.url)]
        checks.check_mac(SIGNATURE, [given], messages, secrets, digest=digest, encoding=checks.BASE64)
        if _is_json(incoming):
            _check_body_hash(incoming)

    def payload(self, incoming: Incoming) -> Any:
        """A form as an object; JSON as it is."""
        if not _is_json(incoming):
            return forms.as_object(forms.parse(incoming.body))
        value = decode_value(incoming.body, max_depth=MAX_DEPTH)
        return value if isinstance(value, list) else decode(incoming.body)

    def translate(self, incoming: Incoming, payload: Any) -> list[dict[str, Any]]:
        """As every provider."""
        if isinstance(payload, list):
            return [self._streamed(item) for item in payload]
        if _is_json(incoming):
            digest = sha256(incoming.body).hexdigest()
            return [self.event(id=digest, type=events.type_of("twilio", ["request"]), data=payload)]
        for kind, sid_field, status_fields in _KINDS:
            sid = payload.get(sid_field)
            if isinstance(sid, str) and _SID.fullmatch(sid):
                return [self._callback(kind, sid, status_fields, payload, incoming.body)]
        raise events.absent(" or ".join(sid for _, sid, _ in _KINDS))

    def _callback(
        self, kind: str, sid: str, status_fields: tuple[str, ...], payload: dict[str, Any], body: bytes
    ) -> dict[str, Any]:
        named = next((field for field in status_fields if payload.get(field)), None)
        status = payload.get(named or "")
        if kind in _STATUSES and status not in _STATUSES[kind]:
            raise events.absent(" or ".join(status_fields))
        names = [sid, status]
        if named != "MessageStatus":  # a message has each status once; of the others only a sequence number says so
            digest = sha256(_signed_fields(forms.parse(body))).hexdigest()[:32]
            names.append(payload.get("SequenceNumber") or digest)
        return self.event(
            id=events.event_id(*names, what=" or ".join(status_fields)),
            type=events.type_of("twilio", [kind, *events.parts(status)]),
            time_ms=_from_rfc2822(payload.get("Timestamp")),
            subject=events.subject(sid),
            data=payload,
        )

    def _streamed(self, item: Any) -> dict[str, Any]:
        """One CloudEvent of an Event Streams sink."""
        names = events.parts(events.at(item, "type"))
        return self.event(
            id=events.event_id(events.at(item, "id"), what="the id of a streamed event"),
            type=events.type_of("twilio", names[2:] if names[:2] == ["com", "twilio"] else names),
            time_ms=events.from_rfc3339(events.at(item, "time")),
            subject=events.subject(events.at(item, "subject")),
            data=events.at(item, "data"),
        )


def _is_json(incoming: Incoming) -> bool:
    return incoming.headers.get("Content-Type", "").partition(";")[0].strip().lower() == JSON


def _digest(settings: str) -> str:
    """The hash of the HMAC, as the header of a shared key names it; SHA-1 for an account's token."""
    options = dict(part.strip().partition("=")[::2] for part in settings.split(","))
    name = options.get("algorithm") or "HMAC_SHA1"
    if name.upper() not in _DIGESTS:
        raise checks.missing(SETTINGS, f"algorithm={' or '.join(_DIGESTS)}", settings)
    return _DIGESTS[name.upper()]


def _form(body: bytes) -> list[tuple[str, str]]:
    try:
        return forms.parse(body)
    except InputError as error:  # nobody is believed yet
        raise checks.unfit(SIGNATURE, "the signature of a form that parses") from error


def _signed_fields(fields: list[tuple[str, str]]) -> bytes:
    """Names and values in a row: names sorted, of each name its distinct values sorted."""
    return "".join(f"{name}{value}" for name, value in sorted(set(fields))).encode("utf-8", "surrogatepass")


def _addresses(url: str) -> list[str]:
    """The URL with and without a port: Twilio signs one or the other."""
    match = _ADDRESS.fullmatch(url)
    if match is None:
        return [url]
    scheme, host, port, rest = match.groups()
    return [f"{scheme}://{host}{rest}", f"{scheme}://{host}:{port or _PORTS[scheme]}{rest}"]


def _check_body_hash(incoming: Incoming) -> None:
    """The URL is signed, and the body is what it names."""
    query = incoming.url.partition("?")[2]
    named = [value for name, _, value in (part.partition("=") for part in query.split("&")) if name == BODY_HASH]
    digest = sha256(incoming.body).hexdigest()
    if len(named) != 1 or not hmac.compare_digest(checks.raw(named[0]), digest.encode()):
        raise checks.unfit(SIGNATURE, f"{BODY_HASH} in the query, the SHA-256 of this body")


def _from_rfc2822(value: Any) -> int | None:
    try:
        seconds = parsedate_to_datetime(value).timestamp() if isinstance(value, str) else -1.0
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return events.milliseconds(seconds)
