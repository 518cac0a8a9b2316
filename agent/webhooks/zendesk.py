"""Zendesk: `X-Zendesk-Webhook-Signature`, base64 over the signature's timestamp and the body.

A webhook that is subscribed to events sends Zendesk's own schema: `type` is `zendesk.<type>.v1`
(`zendesk.ticket.status_changed.v1`), `id`, `time` and `subject` are theirs, and the id is signed. One that a trigger or
an automation calls sends whatever its author wrote: `type` is the `type` in it, else `zendesk.trigger.v1`, `id` the
invocation's, which stays through its attempts. That header is not signed, so within the tolerance whoever gets hold of
such a delivery can post it under another id, which is one more event.

Source: Zendesk Developer Docs, "Verifying webhook authenticity", "Anatomy of a webhook request", "Webhook event types".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.webhooks import checks, events
from agent.webhooks.provider import Incoming, Provider

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNATURE = "X-Zendesk-Webhook-Signature"
TIMESTAMP = "X-Zendesk-Webhook-Signature-Timestamp"
INVOCATION = "X-Zendesk-Webhook-Invocation-Id"

_EVENT = "zen:event-type:"


class Zendesk(Provider):
    """JSON alone: a trigger's webhook can be told to send that."""

    def verify(self, incoming: Incoming, secrets: Sequence[bytes], *, now_s: float) -> None:
        """As every provider."""
        timestamp = checks.header(incoming, TIMESTAMP, "an RFC 3339 time")
        at_ms = events.from_rfc3339(timestamp)
        if at_ms is None:
            raise checks.missing(TIMESTAMP, "an RFC 3339 time", timestamp)
        given = checks.header(incoming, SIGNATURE, "44 characters of base64")
        message = timestamp.encode() + incoming.body
        checks.check_mac(SIGNATURE, [given], [message], secrets, encoding=checks.BASE64)
        checks.check_fresh(TIMESTAMP, at_ms / 1000, now_s=now_s, tolerance_s=self.tolerance_s)

    def translate(self, incoming: Incoming, payload: Any) -> list[dict[str, Any]]:
        """As every provider."""
        kind = events.at(payload, "type")
        if isinstance(kind, str) and kind.startswith(_EVENT):
            return [
                self.event(
                    id=events.event_id(events.at(payload, "id"), what="Zendesk's event id"),
                    type=events.type_of("zendesk", events.parts(kind.removeprefix(_EVENT))),
                    time_ms=events.from_rfc3339(events.at(payload, "time")),
                    subject=events.subject(events.at(payload, "subject")),
                    data=payload,
                )
            ]
        return [
            self.event(
                id=events.event_id(incoming.headers.get(INVOCATION), what=INVOCATION),
                type=events.type_of("zendesk", events.parts(kind) or ["trigger"]),
                time_ms=events.from_rfc3339(incoming.headers.get(TIMESTAMP)),
                data=payload,
            )
        ]
