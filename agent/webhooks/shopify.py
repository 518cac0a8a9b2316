"""Shopify webhooks: `X-Shopify-Hmac-Sha256`, base64 over the raw body; one event id and topic are one event.

`type` is `shopify.<topic>.v1` (`shopify.orders.create.v1`), `id` the event id and the topic, because one action of a
merchant may send several topics under one event id, and several subscriptions to a topic send it several times; where
there is no event id, the webhook id. `time` is when it was triggered, `subject` the object's GraphQL id, the extension
`shopdomain` the shop that it comes from, where the header names one.

Shopify signs the body and nothing else: topic, ids and `X-Shopify-Shop-Domain` are as good as the way they came, and
`shopdomain` proves nothing. `X-Shopify-Triggered-At` is not signed either, and stays the same through retries of up to
four hours, so there is no tolerance to hold it against. Whoever gets hold of a whole delivery (TLS keeps it from
strangers) can post its body again, under its own ids, which is the same event, or under others, which is one more.

Source: Shopify Dev Docs, "Deliver webhooks through HTTPS", "Ignore duplicate webhooks", "Webhooks: headers".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from agent.webhooks import checks, events
from agent.webhooks.provider import Incoming, Provider

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNATURE = "X-Shopify-Hmac-Sha256"
TOPIC = "X-Shopify-Topic"
EVENT = "X-Shopify-Event-Id"
WEBHOOK = "X-Shopify-Webhook-Id"
TRIGGERED = "X-Shopify-Triggered-At"
SHOP = "X-Shopify-Shop-Domain"

_DOMAIN = re.compile(r"[A-Za-z0-9.-]{1,253}")


class Shopify(Provider):
    """A shop's, or an app's for all its shops: `shopdomain` says which."""

    def verify(self, incoming: Incoming, secrets: Sequence[bytes], *, now_s: float) -> None:
        """As every provider."""
        del now_s  # no signed time, see above
        given = checks.header(incoming, SIGNATURE, "44 characters of base64")
        checks.check_mac(SIGNATURE, [given], [incoming.body], secrets, encoding=checks.BASE64)

    def translate(self, incoming: Incoming, payload: Any) -> list[dict[str, Any]]:
        """As every provider."""
        headers = incoming.headers
        topic = headers.get(TOPIC, "")
        if headers.get(EVENT):
            name = events.event_id(headers[EVENT], topic, what=f"{EVENT} and {TOPIC}")
        else:
            name = events.event_id(headers.get(WEBHOOK), what=f"{EVENT}, or {WEBHOOK},")
        event = self.event(
            id=name,
            type=events.type_of("shopify", events.parts(topic)),
            time_ms=events.from_rfc3339(headers.get(TRIGGERED)),
            subject=events.subject(events.at(payload, "admin_graphql_api_id") or events.at(payload, "id")),
            data=payload,
        )
        shop = headers.get(SHOP, "")
        return [{**event, "shopdomain": shop} if _DOMAIN.fullmatch(shop) else event]
