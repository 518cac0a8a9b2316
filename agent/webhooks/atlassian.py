"""Atlassian (Jira, Confluence, Bitbucket): `X-Hub-Signature: sha256=…` over the raw body, as WebSub has it.

`type` is `atlassian.<event>.v1` (`atlassian.jira.issue_updated.v1`, `atlassian.repo.push.v1`), from the signed body
where it names its event, else from `X-Event-Key`. `id` is `X-Atlassian-Webhook-Identifier`, which Jira keeps through
retries, else Bitbucket's `X-Request-UUID` or `X-Request-Id` (let no proxy put its own there). `time` is the body's
`timestamp`, `subject` the issue, page or repository.

The body is signed and nothing else: no time (the body's is that of the event, and retries come up to half an hour
later), and not the id. So there is no tolerance, and whoever gets hold of a whole delivery (TLS keeps it from
strangers) can post its body again, under its own id, which is the same event, or under another, which is one more.

Source: Jira Cloud platform, "Webhooks"; Bitbucket Support, "Manage webhooks", "Event payloads"; W3C WebSub, 7.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.webhooks import checks, events
from agent.webhooks.provider import Incoming, Provider

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNATURE = "X-Hub-Signature"
EVENT_KEY = "X-Event-Key"
IDS = ("X-Atlassian-Webhook-Identifier", "X-Request-UUID", "X-Request-Id")

_PREFIX = "sha256="
_EVENTS = ("webhookEvent", "eventKey", "event")  # Jira's, Bitbucket Data Center's, Confluence's
_ABOUT = (
    ("issue", "key"),
    ("page", "id"),
    ("blog", "id"),
    ("repository", "full_name"),
    ("repository", "slug"),
    ("pullRequest", "toRef", "repository", "slug"),
    ("project", "key"),
)


class Atlassian(Provider):
    """One webhook with a secret, of any of the three."""

    def verify(self, incoming: Incoming, secrets: Sequence[bytes], *, now_s: float) -> None:
        """As every provider."""
        del now_s  # no signed time, see above
        given = checks.header(incoming, SIGNATURE, f"{_PREFIX} and 64 hexadecimal digits")
        if not given.startswith(_PREFIX):
            raise checks.missing(SIGNATURE, f"{_PREFIX} and 64 hexadecimal digits", given)
        checks.check_mac(SIGNATURE, [given.removeprefix(_PREFIX)], [incoming.body], secrets)

    def translate(self, incoming: Incoming, payload: Any) -> list[dict[str, Any]]:
        """As every provider."""
        headers = incoming.headers
        named = [events.parts(events.at(payload, field)) for field in _EVENTS]
        about = [events.subject(events.at(payload, *path)) for path in _ABOUT]
        delivery = next((headers[name] for name in IDS if headers.get(name)), None)
        return [
            self.event(
                id=events.event_id(delivery, what=f"{IDS[0]}, {IDS[1]} or {IDS[2]}"),
                type=events.type_of("atlassian", next((n for n in named if n), events.parts(headers.get(EVENT_KEY)))),
                time_ms=events.milliseconds(events.at(payload, "timestamp"), per_s=1000),
                subject=next((subject for subject in about if subject), None),
                data=payload,
            )
        ]
