"""From a tenant's grants to what NATS has to hold: pure mapping between the policy's words and the topology's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.jetstream import topology

if TYPE_CHECKING:
    from mesh.policy.grants import Grants, SubscriptionGrant


def publishing(grants: Grants) -> list[topology.PublishGrant]:
    """Which agent may publish which types into which view."""
    return [
        topology.PublishGrant(agent, grant.view, grant.pattern)
        for agent, found in grants.agents.items()
        for grant in found.publish
    ]


def active(grants: Grants) -> list[topology.SubscriptionGrant]:
    """The subscriptions that get a durable."""
    return [durable_grant(grant) for grant in grants.subscriptions.values() if grant.active]


def durable_grant(grant: SubscriptionGrant) -> topology.SubscriptionGrant:
    """One active subscription, as the topology needs it."""
    return topology.SubscriptionGrant(
        team=grant.team,
        subscription=grant.name,
        view=grant.view,
        filters=grant.filters,
        ack_wait_s=grant.retry.ack_wait_s,
        attempts=grant.retry.attempts,
        max_in_flight=grant.max_in_flight,
        start=grant.start,
    )
