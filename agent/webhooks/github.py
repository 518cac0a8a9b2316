"""GitHub webhooks: `X-Hub-Signature-256` over the raw body; one delivery id is one event.

`type` is `github.<event>[.<action>].v1`, `id` the delivery's GUID, `subject` the repository, `data` the payload as it
came. A redelivery has the same GUID, and so is the same event. `ping`, which tries the address, is an event like any
other.

GitHub signs the body and nothing else: no time, and neither the GUID nor the event's name. So there is no tolerance,
and whoever gets hold of a whole delivery (TLS keeps it from strangers) can post its body again, under its own GUID,
which is the same event, or under another, which is one more.

Source: GitHub Docs, "Validating webhook deliveries" and "Webhook events and payloads".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from agent.webhooks import checks, events
from agent.webhooks.provider import Incoming, Provider
from mesh.errors import BadAttribute

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNATURE = "X-Hub-Signature-256"
DELIVERY = "X-GitHub-Delivery"
EVENT = "X-GitHub-Event"

_PREFIX = "sha256="
_DELIVERY = re.compile(r"[A-Za-z0-9-]{8,64}")
_EVENT = re.compile(r"[A-Za-z0-9_-]{1,64}")


class GitHub(Provider):
    """Takes JSON alone: the form-encoded variant wraps the same text in a field, and one way in is enough."""

    def verify(self, incoming: Incoming, secrets: Sequence[bytes], *, now_s: float) -> None:
        """As every provider."""
        del now_s  # nothing says when it was signed
        given = checks.header(incoming, SIGNATURE, f"{_PREFIX} and 64 hexadecimal digits")
        if not given.startswith(_PREFIX):
            raise checks.missing(SIGNATURE, f"{_PREFIX} and 64 hexadecimal digits", given)
        checks.check_mac(SIGNATURE, [given.removeprefix(_PREFIX)], [incoming.body], secrets)

    def translate(self, incoming: Incoming, payload: Any) -> list[dict[str, Any]]:
        """As every provider."""
        event = _field(incoming, EVENT, _EVENT, "1 to 64 characters A-Z a-z 0-9 _ -")
        delivery = _field(incoming, DELIVERY, _DELIVERY, "the delivery's GUID")
        action = events.at(payload, "action")
        names = [event, action] if isinstance(action, str) and action else [event]
        subject = events.subject(events.at(payload, "repository", "full_name"))
        return [self.event(id=delivery, type=events.type_of("github", names), data=payload, subject=subject)]


def _field(incoming: Incoming, name: str, grammar: re.Pattern[str], expected: str) -> str:
    value = incoming.headers.get(name, "")
    if not grammar.fullmatch(value):
        raise BadAttribute(
            f"{name} is missing or malformed",
            expected=expected,
            got=f"{len(value)} characters",
            next="is this GitHub, and does the proxy pass its headers on?",
        )
    return value
