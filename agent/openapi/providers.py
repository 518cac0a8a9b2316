"""What each webhook provider sends, in words: header fields, and the types of the events that become of it.

How a signature is checked and what a delivery becomes is in `agent.webhooks`, a file for each provider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agent.webhooks.scheme import FIXED, place

if TYPE_CHECKING:
    from agent.webhooks.scheme import Scheme
    from agent.webhooks.settings import WebhookSource


class Field(NamedTuple):
    """A header field beside the signature: what is in it, its pattern, and whether every delivery has it."""

    name: str
    text: str
    pattern: str = "^.+$"
    required: bool = True


class Described(NamedTuple):
    """What a provider sends.

    Attributes:
        title: As it calls itself.
        signature: The header field with its signature, and what is in that.
        fields: Others that it is looked at for.
        types: The types of the events, and where their words are from.
        batch: Whether one delivery can be several events.
        object: Whether a JSON body is always an object.
    """

    title: str
    signature: tuple[str, str]
    fields: tuple[Field, ...]
    types: str
    batch: bool = False
    object: bool = True


_HMAC: Final = "HMAC-SHA-256 of"

PROVIDERS: Final[dict[str, Described]] = {
    "github": Described(
        "GitHub",
        ("X-Hub-Signature-256", f"`sha256=` and the {_HMAC} the raw body, in hexadecimal digits."),
        (
            Field("X-GitHub-Event", "Its name: with the body's `action` the type.", "^[A-Za-z0-9_-]{1,64}$"),
            Field("X-GitHub-Delivery", "The delivery's GUID: the id of the event.", "^[A-Za-z0-9-]{8,64}$"),
        ),
        "`github.<event>[.<action>].v1`",
    ),
    "stripe": Described(
        "Stripe",
        ("Stripe-Signature", f"`t=<seconds>,v1=<{_HMAC} the time, a dot and the body>`."),
        (),
        "`stripe.<type>.v1`, from the body",
    ),
    "shopify": Described(
        "Shopify",
        ("X-Shopify-Hmac-Sha256", f"{_HMAC} the raw body, in base64."),
        (
            Field("X-Shopify-Topic", "The topic: makes the type."),
            Field("X-Shopify-Event-Id", "With the topic the id of the event.", required=False),
            Field("X-Shopify-Webhook-Id", "The id where there is no event id.", required=False),
            Field("X-Shopify-Triggered-At", "The event's time, RFC 3339.", required=False),
            Field("X-Shopify-Shop-Domain", "The event's extension `shopdomain`; not signed.", required=False),
        ),
        "`shopify.<topic>.v1`",
    ),
    "slack": Described(
        "Slack",
        ("X-Slack-Signature", f"`v0=` and the {_HMAC} `v0:<timestamp>:<body>`, in hexadecimal digits."),
        (Field("X-Slack-Request-Timestamp", "Unix seconds.", "^(0|[1-9][0-9]{0,15})$"),),
        "`slack.<type>[.<subtype>].v1`, `slack.interaction.<type>.v1`, `slack.command.<command>.v1`",
    ),
    "standard": Described(
        "Standard Webhooks",
        ("webhook-signature", "`v1,<base64>` or `v1a,<base64>` over id, timestamp and body; several apart by spaces."),
        (
            Field("webhook-id", "The id of the event."),
            Field("webhook-timestamp", "Unix seconds.", "^(0|[1-9][0-9]{0,15})$"),
        ),
        "`<source>.<type>.v1`, from the body",
    ),
    "hubspot": Described(
        "HubSpot",
        ("X-HubSpot-Signature-v3", f"{_HMAC} method, URL, body and timestamp, in base64."),
        (Field("X-HubSpot-Request-Timestamp", "Unix milliseconds.", "^(0|[1-9][0-9]{0,15})$"),),
        "`hubspot.<subscription type>.v1`, one event for each notification of the batch",
        batch=True,
        object=False,
    ),
    "twilio": Described(
        "Twilio",
        ("X-Twilio-Signature", "HMAC of the URL and the sorted form fields, in base64."),
        (Field("X-Twilio-Webhooks-Signature-Settings", "Which digest, with a shared key.", required=False),),
        "`twilio.message.<status>.v1`, `twilio.call.<status>.v1` and others; of Event Streams `twilio.<type>.v1`",
        batch=True,
        object=False,
    ),
    "zendesk": Described(
        "Zendesk",
        ("X-Zendesk-Webhook-Signature", f"{_HMAC} timestamp and body, in base64."),
        (
            Field("X-Zendesk-Webhook-Signature-Timestamp", "RFC 3339."),
            Field("X-Zendesk-Webhook-Invocation-Id", "The id of what a trigger sends.", required=False),
        ),
        "`zendesk.<type>.v1`, from the body; of a trigger `zendesk.trigger.v1` where it says none",
    ),
    "atlassian": Described(
        "Atlassian",
        ("X-Hub-Signature", f"`sha256=` and the {_HMAC} the raw body, in hexadecimal digits."),
        (
            Field("X-Atlassian-Webhook-Identifier", "Jira's id of the delivery.", required=False),
            Field("X-Request-UUID", "Bitbucket's.", required=False),
            Field("X-Event-Key", "The event, where the body does not name it.", required=False),
        ),
        "`atlassian.<event>.v1`",
    ),
}  # fmt: skip


def described(source: WebhookSource) -> Described:
    """What the provider of *source* sends; of a generic one its scheme says it."""
    return PROVIDERS[source.provider] if source.scheme is None else _generic(source.name, source.scheme)


def _generic(name: str, scheme: Scheme) -> Described:
    named: dict[str, dict[str, list[str]]] = {"header": {}, "json": {}, FIXED: {}}
    for what, where in (("id", scheme.id), ("type", scheme.type), ("time", scheme.time), ("subject", scheme.subject)):
        if where:
            kind, rest = place(where)
            named[kind].setdefault(rest, []).append(what)
    fields = [
        Field(header, f"The event's {' and '.join(whats)}.", required=bool({"id", "type"} & set(whats)))
        for header, whats in named["header"].items()
    ]
    if scheme.timestamp_header and scheme.timestamp_header not in named["header"]:
        fields.append(Field(scheme.timestamp_header, f"When it was signed, {scheme.timestamp_unit}."))
    signed = f"`{scheme.prefix}<{scheme.encoding}>`: HMAC with {scheme.digest} of `{scheme.signed}`."
    return Described(name, (scheme.signature_header, signed), tuple(fields), f"`{name}.<name>.v1`")
