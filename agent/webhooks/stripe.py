"""Stripe webhooks: `Stripe-Signature: t=…,v1=…` over `<t>.<body>`; one event id is one event.

`type` is `stripe.<type>.v1` (`stripe.invoice.payment_failed.v1`), `id` Stripe's event id (`evt_…`), which stands in
the signed body and stays through retries, `time` its `created`, `subject` the id of the object it is about. While a
secret is rolled Stripe signs with both, one `v1` each; the secret is used as it is written, `whsec_` included.

Source: Stripe Docs, "Receive Stripe events in your webhook endpoint", "Verify webhook signatures manually".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.webhooks import checks, events
from agent.webhooks.provider import Incoming, Provider

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNATURE = "Stripe-Signature"
_SAYS = "t=<seconds>,v1=<64 hexadecimal digits>"


class Stripe(Provider):
    """Snapshot events and thin ones: both name themselves by `id` and `type`."""

    def verify(self, incoming: Incoming, secrets: Sequence[bytes], *, now_s: float) -> None:
        """As every provider."""
        given = checks.header(incoming, SIGNATURE, _SAYS)
        items = [item.partition("=")[::2] for item in given.split(",")]
        times = [value for name, value in items if name == "t"]
        if len(times) != 1:
            raise checks.missing(SIGNATURE, _SAYS, given)
        at_s = checks.digits(SIGNATURE, times[0])
        signatures = [value for name, value in items if name == "v1"]  # others are older schemes, or tests
        checks.check_mac(SIGNATURE, signatures, [times[0].encode() + b"." + incoming.body], secrets)
        checks.check_fresh(SIGNATURE, at_s, now_s=now_s, tolerance_s=self.tolerance_s)

    def translate(self, incoming: Incoming, payload: Any) -> list[dict[str, Any]]:
        """As every provider."""
        del incoming  # all that matters stands in the signed body
        created = events.at(payload, "created")
        about = events.at(payload, "data", "object", "id") or events.at(payload, "related_object", "id")
        return [
            self.event(
                id=events.event_id(events.at(payload, "id"), what="Stripe's event id"),
                type=events.type_of("stripe", events.parts(events.at(payload, "type"))),
                time_ms=events.from_rfc3339(created) if isinstance(created, str) else events.milliseconds(created),
                subject=events.subject(about),
                data=payload,
            )
        ]
