"""What each provider sends, where that is documented, and the events it has to become.

A row is one delivery. `retry` is what the provider changes when it sends the same again, beside time and signature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.tables.webhook_signers import FORM

JSON = "application/json"
AT_S = 1_790_000_000  # 2026-09-21T14:13:20Z: when all of them are signed
URL = "https://hooks.example.org/v1/webhooks/"


class Event(NamedTuple):
    """Attributes of an event; a `time` of None is left to the door."""

    type: str
    id: str
    time: str | None = None
    subject: str | None = None


class Row(NamedTuple):
    """One delivery.

    Attributes:
        provider: As the settings name it.
        case: In a few words.
        page: Where the provider documents the request and its signature.
        body: As sent.
        events: What it becomes.
        headers: Beside those of the signature.
        scheme: Who signs it, where that is not the provider's name: a key of `SECRETS`.
        query: Of the URL.
        retry: Header fields that change with the next attempt.
        retry_body: The body of the next attempt, where it changes.
        data: The events' data, where it is not the body.
        options: More of the source's settings.
    """

    provider: str
    case: str
    page: str
    body: bytes
    events: tuple[Event, ...]
    headers: Mapping[str, str] = MappingProxyType({})
    scheme: str = ""
    query: str = ""
    retry: Mapping[str, str] = MappingProxyType({})
    retry_body: bytes = b""
    data: tuple[Any, ...] | None = None
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def signer(self) -> str:
        """The key of `SECRETS`."""
        return self.scheme or self.provider

    @property
    def name(self) -> str:
        """Of the source in the settings."""
        return "erp" if self.provider in ("generic", "standard") else "main"

    @property
    def url(self) -> str:
        """As the provider was given it."""
        return URL + self.name + self.query

    def __str__(self) -> str:
        """For pytest."""
        return f"{self.provider}: {self.case}"


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _form(**fields: str) -> bytes:
    return urlencode(fields).encode()


def _github(event: str, delivery: str) -> dict[str, str]:
    return {"X-GitHub-Event": event, "X-GitHub-Delivery": delivery}


def _shopify(topic: str, **more: str) -> dict[str, str]:
    named = {name.replace("_", "-"): value for name, value in more.items()}
    return {"X-Shopify-Topic": topic, "X-Shopify-Shop-Domain": "example.myshopify.com", **named}


_HUBSPOT = {
    "eventId": 3816279340,
    "subscriptionId": 25,
    "portalId": 33,
    "appId": 1160452,
    "occurredAt": 1616173120000,
    "subscriptionType": "contact.propertyChange",
    "attemptNumber": 0,
    "objectId": 123,
    "propertyName": "email",
    "propertyValue": "sample@example.org",
    "changeSource": "CRM_UI",
}
_HUBSPOT_MADE = {**_HUBSPOT, "eventId": 3816279480, "subscriptionId": 22, "subscriptionType": "contact.creation"}
_HUBSPOT_ASSOCIATED = {
    "eventId": 2073333923,
    "portalId": 33,
    "appId": 1160452,
    "occurredAt": 1616173120000,
    "subscriptionType": "deal.associationChange",
    "attemptNumber": 0,
    "changeSource": "USER",
    "associationType": "DEAL_TO_LINE_ITEM",
    "fromObjectId": 1,
    "toObjectId": 2,
    "associationRemoved": False,
}
_SMS = {
    "AccountSid": "AC" + "0" * 32,
    "MessageSid": "SM" + "1a" * 16,
    "From": "+15017122661",
    "To": "+15558675310",
    "Body": "Grüße & ein + =",
}
_CALL = {"AccountSid": "AC" + "0" * 32, "CallSid": "CA" + "2b" * 16, "From": "+15017122661"}
_STREAMED = _json([{
    "specversion": "1.0", "type": "com.twilio.messaging.message.delivered", "id": "EZ1d24fa",
    "source": "/accounts/AC0", "time": "2026-09-21T14:13:19.000Z", "data": {"messageSid": "SM1"},
}])  # fmt: skip
_GITHUB_PAGE = 'GitHub Docs, "Validating webhook deliveries"'
_STRIPE_PAGE = 'Stripe Docs, "Verify webhook signatures manually"'
_SHOPIFY_PAGE = 'Shopify Dev Docs, "Deliver webhooks through HTTPS"'
_SLACK_PAGE = 'Slack Docs, "Verifying requests from Slack"'
_STANDARD_PAGE = 'Standard Webhooks 1.0.0, "Webhook signature"'
_HUBSPOT_PAGE = 'HubSpot developer docs, "Validating requests", v3'
_TWILIO_PAGE = 'Twilio Docs, "Webhook security"'
_ZENDESK_PAGE = 'Zendesk Developer Docs, "Verifying webhook authenticity"'
_ATLASSIAN_PAGE = 'Jira Cloud platform, "Webhooks"'

ROWS = [
    # --- github ---
    Row(
        "github",
        "an event with an action",
        _GITHUB_PAGE,
        _json({"action": "opened", "number": 7, "repository": {"full_name": "o/r"}, "title": "Köln ☃"}),
        (Event("github.pull_request.opened.v1", "72d3162e-cc78-11e3-81ab-4c9367dc0958", None, "o/r"),),
        _github("pull_request", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
    ),
    Row(
        "github",
        "the ping that tries the address",
        _GITHUB_PAGE,
        _json({"zen": "Keep it logically awesome.", "hook_id": 1}),
        (Event("github.ping.v1", "0b989ba4-242f-11e5-81e1-c7b6966d2516"),),
        _github("ping", "0b989ba4-242f-11e5-81e1-c7b6966d2516"),
    ),
    # --- stripe ---
    Row(
        "stripe",
        "a snapshot event",
        _STRIPE_PAGE,
        _json({
            "id": "evt_1MqqbKLt4dXK03v5qaIbiNCC", "object": "event", "type": "invoice.payment_failed",
            "created": 1680064028, "data": {"object": {"id": "in_1MtHbELkdIwHu7ixl4OzzPMv", "object": "invoice"}},
        }),
        (Event("stripe.invoice.payment_failed.v1", "evt_1MqqbKLt4dXK03v5qaIbiNCC", "2023-03-29T04:27:08.000Z",
               "in_1MtHbELkdIwHu7ixl4OzzPMv"),),
    ),
    Row(
        "stripe",
        "a thin event",
        _STRIPE_PAGE,
        _json({
            "id": "evt_test_65R9Ijk8dKEYZcXeRWn16R9A7j1FSQ3w3TGDPLLGSM4CW0", "object": "v2.core.event",
            "type": "v1.billing.meter.error_report_triggered", "created": "2024-09-17T06:20:52.246Z",
            "related_object": {"id": "mtr_test_61R9IeP0SgKbYROOx41PEAQhH0qO23oW", "type": "billing.meter"},
        }),
        (Event("stripe.v1.billing.meter.error_report_triggered.v1",
               "evt_test_65R9Ijk8dKEYZcXeRWn16R9A7j1FSQ3w3TGDPLLGSM4CW0", "2024-09-17T06:20:52.246Z",
               "mtr_test_61R9IeP0SgKbYROOx41PEAQhH0qO23oW"),),
    ),
    # --- shopify ---
    Row(
        "shopify",
        "a topic with an event id",
        _SHOPIFY_PAGE,
        _json({"id": 820982911946154508, "admin_graphql_api_id": "gid://shopify/Order/820982911946154508"}),
        (Event("shopify.orders.create.v1", "98880550-7158-44d4-b7cd-2c97c8a091b5:orders/create",
               "2023-03-29T18:00:27.877Z", "gid://shopify/Order/820982911946154508"),),
        _shopify("orders/create", X_Shopify_Event_Id="98880550-7158-44d4-b7cd-2c97c8a091b5",
                 X_Shopify_Webhook_Id="b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
                 X_Shopify_Triggered_At="2023-03-29T18:00:27.877041743Z"),
        retry={"X-Shopify-Webhook-Id": "c65557e4-bdd9-4b37-8a5f-bf7d70bcd044"},
    ),
    Row(
        "shopify",
        "a topic without one",
        _SHOPIFY_PAGE,
        _json({"id": 55}),
        (Event("shopify.app.uninstalled.v1", "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043", None, "55"),),
        _shopify("app/uninstalled", X_Shopify_Webhook_Id="b54557e4-bdd9-4b37-8a5f-bf7d70bcd043"),
    ),
    # --- slack ---
    Row(
        "slack",
        "an event",
        _SLACK_PAGE,
        _json({
            "token": "XXYYZZ", "team_id": "T123ABC456", "api_app_id": "A123ABC456", "type": "event_callback",
            "event": {"type": "message", "subtype": "channel_join", "channel": "C123ABC456", "user": "U123ABC456"},
            "event_id": "Ev123ABC456", "event_time": 1355517523,
        }),
        (Event("slack.message.channel_join.v1", "Ev123ABC456", "2012-12-14T20:38:43.000Z", "C123ABC456"),),
        retry={"X-Slack-Retry-Num": "1", "X-Slack-Retry-Reason": "http_timeout"},
        data=({
            "team_id": "T123ABC456", "api_app_id": "A123ABC456", "type": "event_callback",
            "event": {"type": "message", "subtype": "channel_join", "channel": "C123ABC456", "user": "U123ABC456"},
            "event_id": "Ev123ABC456", "event_time": 1355517523,
        },),
    ),
    Row(
        "slack",
        "an interaction",
        'Slack Docs, "Handling user interaction"',
        _form(payload=json.dumps({
            "type": "block_actions", "trigger_id": "12321423423.333649436676.d8c1bb837935619ccad0f624c448ffb3",
            "channel": {"id": "CBR2V3XEX"}, "actions": [{"action_ts": "1548426417.840180"}],
        })),
        (Event("slack.interaction.block_actions.v1", "12321423423.333649436676.d8c1bb837935619ccad0f624c448ffb3",
               "2019-01-25T14:26:57.840Z", "CBR2V3XEX"),),
        {"Content-Type": FORM},
        data=({
            "type": "block_actions", "trigger_id": "12321423423.333649436676.d8c1bb837935619ccad0f624c448ffb3",
            "channel": {"id": "CBR2V3XEX"}, "actions": [{"action_ts": "1548426417.840180"}],
        },),
    ),
    Row(
        "slack",
        "a slash command",
        'Slack Docs, "Slash commands"',
        _form(token="gIkuvaNzQIHg97ATvDxqgjtO", command="/weather", text="94070", channel_id="C2147483705",
              trigger_id="13345224609.738474920.8088930838d88f008e0"),
        (Event("slack.command.weather.v1", "13345224609.738474920.8088930838d88f008e0", None, "C2147483705"),),
        {"Content-Type": FORM + "; charset=utf-8"},
        data=({"command": "/weather", "text": "94070", "channel_id": "C2147483705",
               "trigger_id": "13345224609.738474920.8088930838d88f008e0"},),
    ),
    Row(
        "slack",
        "the notice of a rate limit",
        'Slack Docs, "Using the Events API"',
        _json({"type": "app_rate_limited", "team_id": "T123456", "minute_rate_limited": 1518467820}),
        (Event("slack.app_rate_limited.v1", "app_rate_limited:T123456:1518467820"),),
    ),
    # --- standard webhooks ---
    Row(
        "standard",
        "HMAC",
        _STANDARD_PAGE,
        _json({"type": "invoice.paid", "timestamp": "2022-11-03T20:26:10.344522Z", "data": {"id": "inv_7"}}),
        (Event("erp.invoice.paid.v1", "msg_p5jXN8AQM9LWM0D4loKWxJek", "2022-11-03T20:26:10.345Z", "inv_7"),),
        {"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek"},
    ),
    Row(
        "standard",
        "Ed25519",
        'Standard Webhooks 1.0.0, "Asymmetric signatures"',
        _json({"type": "invoice.paid", "data": {}}),
        (Event("erp.invoice.paid.v1", "msg_p5jXN8AQM9LWM0D4loKWxJek", "2026-09-21T14:13:20.000Z"),),
        {"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek"},
        scheme="standard-ed25519",
    ),
    # --- hubspot ---
    Row(
        "hubspot",
        "a batch of two",
        _HUBSPOT_PAGE,
        _json([_HUBSPOT, _HUBSPOT_MADE]),
        (
            Event("hubspot.contact.propertychange.v1", "33:contact.propertyChange:3816279340:1616173120000:25:123",
                  "2021-03-19T16:58:40.000Z", "123"),
            Event("hubspot.contact.creation.v1", "33:contact.creation:3816279480:1616173120000:22:123",
                  "2021-03-19T16:58:40.000Z", "123"),
        ),
        query="?next=https%3A//a%2Bb",
        retry_body=_json([{**_HUBSPOT, "attemptNumber": 1}, {**_HUBSPOT_MADE, "attemptNumber": 1}]),
        data=(_HUBSPOT, _HUBSPOT_MADE),
    ),
    Row(
        "hubspot",
        "a change of an association, which has no object and no subscription",
        'HubSpot developer docs, "Webhooks API"',
        _json([_HUBSPOT_ASSOCIATED]),
        (
            Event("hubspot.deal.associationchange.v1",
                  "33:deal.associationChange:2073333923:1616173120000:1:2:DEAL_TO_LINE_ITEM:false",
                  "2021-03-19T16:58:40.000Z", "1"),
        ),
        data=(_HUBSPOT_ASSOCIATED,),
    ),
    # --- twilio ---
    Row(
        "twilio",
        "the status of a message",
        _TWILIO_PAGE,
        _form(**_SMS, MessageStatus="delivered"),
        (Event("twilio.message.delivered.v1", "SM" + "1a" * 16 + ":delivered", None, "SM" + "1a" * 16),),
        {"Content-Type": FORM},
        retry={"I-Twilio-Idempotency-Token": "again"},
        data=({**_SMS, "MessageStatus": "delivered"},),
    ),
    Row(
        "twilio",
        "a call's status, with a query and a port",
        _TWILIO_PAGE,
        _form(**_CALL, CallStatus="completed", SequenceNumber="3", Timestamp="Mon, 21 Sep 2026 14:13:00 +0000"),
        (Event("twilio.call.completed.v1", "CA" + "2b" * 16 + ":completed:3", "2026-09-21T14:13:00.000Z",
               "CA" + "2b" * 16),),
        {"Content-Type": FORM},
        query="?tenant=a%20b",
        data=({**_CALL, "CallStatus": "completed", "SequenceNumber": "3",
               "Timestamp": "Mon, 21 Sep 2026 14:13:00 +0000"},),
    ),
    Row(
        "twilio",
        "JSON, signed by a shared key with SHA-256",
        'Twilio Docs, "Sign webhooks with shared keys"',
        _STREAMED,
        (Event("twilio.messaging.message.delivered.v1", "EZ1d24fa", "2026-09-21T14:13:19.000Z"),),
        {"X-Twilio-Webhooks-Signature-Settings": "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256"},
        query=f"?bodySHA256={sha256(_STREAMED).hexdigest()}",
        data=({"messageSid": "SM1"},),
    ),
    # --- zendesk ---
    Row(
        "zendesk",
        "an event",
        'Zendesk Developer Docs, "Webhook event types"',
        _json({
            "type": "zen:event-type:user.active_changed", "id": "2b24ef10-19d4-4740-93cf-8f98ec4776c0",
            "time": "2099-07-04T05:33:18Z", "subject": "zen:user:6596848315901", "event": {"current": False},
        }),
        (Event("zendesk.user.active_changed.v1", "2b24ef10-19d4-4740-93cf-8f98ec4776c0", "2099-07-04T05:33:18.000Z",
               "zen:user:6596848315901"),),
        {"X-Zendesk-Webhook-Invocation-Id": "8350205582"},
    ),
    Row(
        "zendesk",
        "a trigger's own words",
        _ZENDESK_PAGE,
        _json({"ticket": 35436}),
        (Event("zendesk.trigger.v1", "8350205582", "2026-09-21T14:13:20.000Z"),),
        {"X-Zendesk-Webhook-Invocation-Id": "8350205582"},
    ),
    # --- atlassian ---
    Row(
        "atlassian",
        "Jira",
        _ATLASSIAN_PAGE,
        _json({"timestamp": 1525698237764, "webhookEvent": "jira:issue_updated", "issue": {"key": "TEST-7"}}),
        (Event("atlassian.jira.issue_updated.v1", "7da5ad1d-3c34-4be6-a1c1-b4d7e2b1f2f1", "2018-05-07T13:03:57.764Z",
               "TEST-7"),),
        {"X-Atlassian-Webhook-Identifier": "7da5ad1d-3c34-4be6-a1c1-b4d7e2b1f2f1"},
        retry={"X-Atlassian-Webhook-Retry": "1"},
    ),
    Row(
        "atlassian",
        "Bitbucket",
        'Bitbucket Support, "Event payloads"',
        _json({"repository": {"full_name": "team/repo"}, "push": {"changes": []}}),
        (Event("atlassian.repo.push.v1", "c3a1d2f0-5c1b-4e53-8f0f-0d6a0f0e9d55", None, "team/repo"),),
        {"X-Event-Key": "repo:push", "X-Request-UUID": "c3a1d2f0-5c1b-4e53-8f0f-0d6a0f0e9d55"},
        retry={"X-Attempt-Number": "2"},
    ),
    Row(
        "atlassian",
        "Confluence",
        _ATLASSIAN_PAGE,
        _json({"timestamp": 1525698237764, "event": "page_created", "page": {"id": 393223}}),
        (Event("atlassian.page_created.v1", "0f9a", "2018-05-07T13:03:57.764Z", "393223"),),
        {"X-Atlassian-Webhook-Identifier": "0f9a"},
    ),
    # --- generic ---
    Row(
        "generic",
        "timestamp and body, all in the JSON",
        "the source's own scheme",
        _json({"meta": {"id": "ord 7/1", "at": 1789999999000}, "event": "Order.Shipped", "lines": [{"sku": "x"}]}),
        (Event("erp.order.shipped.v1", "ord~207/1", "2026-09-21T14:13:19.000Z", "x"),),
        options={"scheme": {
            "signature_header": "X-Erp-Signature", "digest": "sha512", "encoding": "base64", "prefix": "v1=",
            "signed": "{timestamp}.{body}", "timestamp_header": "X-Erp-Timestamp", "timestamp_unit": "ms",
            "id": "json:meta.id", "type": "json:event", "time": "json:meta.at", "subject": "json:lines.0.sku",
        }},
    ),
    Row(
        "generic",
        "method, URL and id signed too, a fixed type",
        "the source's own scheme",
        _json({"anything": "at all"}),
        (Event("erp.ping.v1", "a-1", "2026-09-21T14:13:20.000Z"),),
        {"X-Id": "a-1"},
        scheme="generic-signed-id",
        options={"scheme": {
            "signature_header": "X-Mac", "signed": "{method} {url}\n{id}\n{timestamp}\n{body}",
            "timestamp_header": "X-At", "timestamp_unit": "rfc3339", "id": "header:X-Id", "type": "text:ping",
        }},
    ),
]  # fmt: skip

UNTIMED = ("github", "shopify", "twilio", "atlassian")  # their schemes sign no time
URL_SIGNED = ("hubspot", "twilio", "generic-signed-id")
