"""Webhook providers, one per file: each verifies its own signature and says which events a delivery is.

    provider.py     what every provider offers, and what it is given
    checks.py       what the signing schemes share: HMACs in constant time, strict timestamps, tolerance
    events.py       from a provider's words to types, ids, subjects and times
    settings.py     the [webhooks.<source>] tables; scheme.py is the part of a generic one
    door.py         the listener: reads, asks the provider, publishes
    everything else a provider

A provider is pure. What it cannot protect against, because its scheme does not sign it, its docstring says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.webhooks.atlassian import Atlassian
from agent.webhooks.generic import Generic
from agent.webhooks.github import GitHub
from agent.webhooks.hubspot import HubSpot
from agent.webhooks.shopify import Shopify
from agent.webhooks.slack import Slack
from agent.webhooks.standard import StandardWebhooks
from agent.webhooks.stripe import Stripe
from agent.webhooks.twilio import Twilio
from agent.webhooks.zendesk import Zendesk

if TYPE_CHECKING:
    from agent.webhooks.provider import Provider

PROVIDERS: dict[str, type[Provider]] = {
    "github": GitHub,
    "stripe": Stripe,
    "shopify": Shopify,
    "slack": Slack,
    "standard": StandardWebhooks,
    "hubspot": HubSpot,
    "twilio": Twilio,
    "zendesk": Zendesk,
    "atlassian": Atlassian,
    "generic": Generic,
}
