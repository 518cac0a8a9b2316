"""HubSpot: `X-HubSpot-Signature-v3` over method, URL, body and timestamp; a delivery is a batch of up to 100 events.

Each notification of the batch is one event, and all of them are published or none. `type` is
`hubspot.<subscription type>.v1` (`hubspot.contact.propertychange.v1`), `subject` the object's id, `time` its
`occurredAt`. HubSpot says that `eventId` alone is not unique, so `id` is made of the account, the subscription, the
event, the object and the time, which all stay through retries; `attemptNumber` in the data does not.

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
_NAMES = ("portalId", "subscriptionId", "eventId", "objectId", "occurredAt")


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
        return self.event(
            id=events.event_id(*(events.at(item, name) for name in _NAMES), what=f"one of {', '.join(_NAMES)}"),
            type=events.type_of("hubspot", events.parts(events.at(item, "subscriptionType"))),
            time_ms=events.milliseconds(events.at(item, "occurredAt"), per_s=1000),
            subject=events.subject(events.at(item, "objectId")),
            data=item,
        )
