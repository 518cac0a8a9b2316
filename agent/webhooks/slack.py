"""Slack: events, interactions and slash commands; `X-Slack-Signature: v0=…` over `v0:<timestamp>:<body>`.

| what comes | type | id |
|---|---|---|
| an event (`event_callback`) | `slack.<type>[.<subtype>].v1` | `event_id`: a retry (`X-Slack-Retry-Num`) has the same |
| an interaction (a form with `payload`) | `slack.interaction.<type>.v1` | `trigger_id`, else the view's id and hash |
| a slash command (a form) | `slack.command.<command>.v1` | `trigger_id` |
| `app_rate_limited` | `slack.app_rate_limited.v1` | team and minute |

`url_verification`, which tries the address, is answered with its challenge and is no event; nor is `ssl_check`. What is
accepted gets an empty 200, which is what Slack shows nobody. Slack waits 3 seconds and sends an event up to three times
more. `token`, Slack's older way to show who is calling, is a secret and left out of the event's data.

Source: Slack Docs, "Verifying requests from Slack", "Using the Events API", "Handling user interaction", "Slash
commands".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from agent.webhooks import checks, events, forms
from agent.webhooks.provider import FORM, JSON, Answer, Incoming, Provider
from mesh.event import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNATURE = "X-Slack-Signature"
TIMESTAMP = "X-Slack-Request-Timestamp"

_PREFIX = "v0="
_TEXT = "text/plain"
_MAX_CHALLENGE = 1024  # theirs have about 50 characters


class Slack(Provider):
    """One app's requests, at one address or several."""

    CONTENT_TYPES: ClassVar[tuple[str, ...]] = (JSON, FORM)
    ACCEPTED: ClassVar[Answer | None] = Answer(200, b"", _TEXT)

    def verify(self, incoming: Incoming, secrets: Sequence[bytes], *, now_s: float) -> None:
        """As every provider."""
        timestamp = checks.header(incoming, TIMESTAMP, "Unix seconds")
        at_s = checks.digits(TIMESTAMP, timestamp)
        given = checks.header(incoming, SIGNATURE, f"{_PREFIX} and 64 hexadecimal digits")
        if not given.startswith(_PREFIX):
            raise checks.missing(SIGNATURE, f"{_PREFIX} and 64 hexadecimal digits", given)
        message = b"v0:" + timestamp.encode() + b":" + incoming.body
        checks.check_mac(SIGNATURE, [given.removeprefix(_PREFIX)], [message], secrets)
        checks.check_fresh(TIMESTAMP, at_s, now_s=now_s, tolerance_s=self.tolerance_s)

    def payload(self, incoming: Incoming) -> Any:
        """JSON, a form, or JSON in a form. The body says which: it is signed, and its content type is not."""
        if incoming.body.lstrip()[:1] == b"{":
            return decode(incoming.body)
        fields = forms.as_object(forms.parse(incoming.body))
        inner = fields.get("payload")
        return decode(inner.encode()) if isinstance(inner, str) else fields

    def answer(self, incoming: Incoming, payload: Any) -> Answer | None:
        """The challenge of `url_verification`, which Slack signs like everything else."""
        del incoming
        if events.at(payload, "type") == "url_verification":
            challenge = events.at(payload, "challenge")
            if not isinstance(challenge, str) or not 0 < len(challenge) <= _MAX_CHALLENGE:
                raise events.absent("the challenge")
            return Answer(200, challenge.encode(), _TEXT)
        return self.ACCEPTED if events.at(payload, "ssl_check") == "1" else None

    def translate(self, incoming: Incoming, payload: Any) -> list[dict[str, Any]]:
        """As every provider."""
        del incoming  # all that matters stands in the signed body
        kind = events.at(payload, "type")
        data = {name: value for name, value in payload.items() if name != "token"}
        if kind == "event_callback":
            return [self._event(data)]
        if kind == "app_rate_limited":
            names = (kind, events.at(data, "team_id"), events.at(data, "minute_rate_limited"))
            return [self.event(id=events.event_id(*names, what="the team"), type=_type([kind]), data=data)]
        if isinstance(kind, str):
            return [self._interaction(kind, data)]
        return [self._command(data)]

    def _event(self, data: dict[str, Any]) -> dict[str, Any]:
        inner = events.at(data, "event")
        subtype = events.at(inner, "subtype")
        names = events.parts(events.at(inner, "type")) + ([subtype] if isinstance(subtype, str) else [])
        return self.event(
            id=events.event_id(events.at(data, "event_id"), what="Slack's event id"),
            type=_type(names),
            time_ms=events.milliseconds(events.at(data, "event_time")),
            subject=_about(inner),
            data=data,
        )

    def _interaction(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        trigger = events.at(data, "trigger_id")
        view = (kind, events.at(data, "view", "id"), events.at(data, "view", "hash"))
        name = (trigger,) if trigger is not None else view
        return self.event(
            id=events.event_id(*name, what="the interaction's trigger id"),
            type=_type(["interaction", kind]),
            time_ms=events.milliseconds(events.at(data, "action_ts") or events.at(data, "actions", "0", "action_ts")),
            subject=_about(data),
            data=data,
        )

    def _command(self, data: dict[str, Any]) -> dict[str, Any]:
        command = events.at(data, "command")
        return self.event(
            id=events.event_id(events.at(data, "trigger_id"), what="the command's trigger id"),
            type=_type(["command", *events.parts(command)]) if events.parts(command) else _type([]),
            subject=events.subject(events.at(data, "channel_id")),
            data=data,
        )


def _type(names: list[str]) -> str:
    return events.type_of("slack", names)


def _about(inner: Any) -> str | None:
    """The channel, else the user, however deep this kind of event has them."""
    for path in (("channel",), ("channel", "id"), ("item", "channel"), ("user",), ("user", "id")):
        if found := events.subject(events.at(inner, *path)):
            return found
    return None
