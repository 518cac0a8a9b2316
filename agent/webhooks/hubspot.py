"""HubSpot: `X-HubSpot-Signature-v3` over method, URL, body and timestamp; a delivery is a batch of up to 100 events.

Each notification of the batch is one event, and all of them are published or none: where one is malformed, or the
policy denies its type, HubSpot gets 4xx for all of them and sends all of them again. So let the policy allow every type
that the app subscribes to.

`type` is `hubspot.<subscription type>.v1` (`hubspot.contact.propertychange.v1`), `subject` the object's id, `time` its
`occurredAt`. HubSpot says that `eventId` alone is not unique, so `id` is made of the account, the subscription's type,
the event, the time, the subscription where it is named, and the object, which all stay through retries; `attemptNumber`
in the data does not. A change of an association (`deal.associationChange`) has no object and no subscription: in the
object's place stand both ends, the association's type and whether it was removed, and `subject` is the end it is from.

HubSpot signs the URL that its app was given, so the settings have to name it (`url`). Twelve characters of it that may
come percent-encoded are signed as they are.

Source: HubSpot developer docs, "Validating requests", v3; "Webhooks API", payload.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from agent.webhooks import checks, events
from agent.webhooks.provider import Incoming, Provider
from mesh.event import decode
from mesh.jsontext import MAX_DEPTH, decode_value

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNATURE = "X-HubSpot-Signature-v3"
TIMESTAMP = "X-HubSpot-Request-Timestamp"

_DECODED = {f"%{ord(char):02X}": char for char in ":/?@!$'()*,;"}  # the page's table; the others stay encoded
_ENCODED = re.compile("|".join(_DECODED), re.IGNORECASE)
_STAYS = ("portalId", "subscriptionType", "eventId", "occurredAt")
_OBJECT = ("objectId",)
_ASSOCIATION = ("fromObjectId", "toObjectId", "associationType", "associationRemoved")


class HubSpot(Provider):
    """One app's target URL, for all the accounts that installed it."""

    NEEDS_URL: ClassVar[bool] = True

    def verify(self, incoming: Incoming, secrets: Sequence[bytes], *, now_s: float) -> None:
        """As every provider."""
        timestamp = checks.header(incoming, TIMESTAMP, "Unix milliseconds")
        at_ms = checks.digits(TIMESTAMP, timestamp)
        given = checks.header(incoming, SIGNATURE, "44 characters of base64")
        url = _ENCODED.sub(lambda m: _DECODED[m[0].upper()], incoming.url)
        message = checks.raw(incoming.method + url) + incoming.body + timestamp.encode()
        checks.check_mac(SIGNATURE, [given], [message], secrets, encoding=checks.BASE64)
        checks.check_fresh(TIMESTAMP, at_ms / 1000, now_s=now_s, tolerance_s=self.tolerance_s)

    def payload(self, incoming: Incoming) -> Any:
        """An array; one object, where there is only one."""
        value = decode_value(incoming.body, max_depth=MAX_DEPTH)
        return value if isinstance(value, list) else [decode(incoming.body)]

    def translate(self, incoming: Incoming, payload: Any) -> list[dict[str, Any]]:
        """As every provider."""
        del incoming  # all that matters stands in the signed body
        return [self._event(item) for item in payload]

    def _event(self, item: Any) -> dict[str, Any]:
        subscription = () if events.at(item, "subscriptionId") is None else ("subscriptionId",)
        about = _OBJECT if events.at(item, "objectId") is not None else _ASSOCIATION
        names = (*_STAYS, *subscription, *about)  # 5, 6, 8 or 9: ids of different makes have different numbers of `:`
        what = f"one of {', '.join(_STAYS)}, and {_OBJECT[0]} or {', '.join(_ASSOCIATION)}"
        return self.event(
            id=events.event_id(*(_value(item, name) for name in names), what=what),
            type=events.type_of("hubspot", events.parts(events.at(item, "subscriptionType"))),
            time_ms=events.milliseconds(events.at(item, "occurredAt"), per_s=1000),
            subject=events.subject(events.at(item, about[0])),
            data=item,
        )


def _value(item: Any, name: str) -> Any:
    """A part of the id; true and false as words, which ids have none for."""
    value = events.at(item, name)
    return str(value).lower() if isinstance(value, bool) else value
