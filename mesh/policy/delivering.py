"""How a subscription is delivered: what its document says, else what its tenant says, else the defaults."""

from __future__ import annotations

from math import ceil
from typing import Literal, TypedDict

from mesh.limits import BreakerPolicy, PoisonPolicy, RateLimit
from mesh.policy.grants import DEFAULT_MAX_IN_FLIGHT
from mesh.policy.model_delivery import Breaker, Delivery, Poison, Retry, SubscriptionSpec
from mesh.policy.texts import per_second, seconds
from mesh.retry import RetryPolicy


class Delivered(TypedDict):
    """Attributes of a `SubscriptionGrant`."""

    retry: RetryPolicy
    max_in_flight: int
    ordered: bool
    client: Literal["mesh", "nats"]
    rate: RateLimit | None
    breaker: BreakerPolicy
    poison: PoisonPolicy


def delivery_of(tenants: Delivery, mine: SubscriptionSpec) -> Delivered:
    """How *mine* is delivered; what it leaves unsaid is as *tenants* has it."""
    return {
        "retry": _retry(mine.retry, tenants.retry),
        "max_in_flight": mine.max_in_flight or tenants.max_in_flight or DEFAULT_MAX_IN_FLIGHT,
        "ordered": mine.order_by is not None,
        "client": mine.client,
        "rate": _rate(mine.rate),
        "breaker": _breaker(mine.breaker),
        "poison": _poison(mine.poison),
    }


def _retry(mine: Retry, tenants: Retry) -> RetryPolicy:
    backoff = mine.backoff or tenants.backoff
    ack_wait = mine.ack_wait or tenants.ack_wait
    usual = RetryPolicy()
    return RetryPolicy(
        attempts=mine.attempts or tenants.attempts or usual.attempts,
        backoff_s=usual.backoff_s if backoff is None else tuple(seconds(text) for text in backoff),
        ack_wait_s=usual.ack_wait_s if ack_wait is None else seconds(ack_wait),
    )


def _rate(text: str | None) -> RateLimit | None:
    """A second's worth comes at once: a replica that was idle is handed no more than that before it has to wait."""
    if text is None:
        return None
    per_s = per_second(text)
    return RateLimit(per_s, max(1, ceil(per_s)))


def _breaker(said: Breaker) -> BreakerPolicy:
    usual = BreakerPolicy()
    return BreakerPolicy(
        failures=usual.failures if said.failures is None else said.failures,
        open_s=usual.open_s if said.open is None else seconds(said.open),
    )


def _poison(said: Poison) -> PoisonPolicy:
    usual = PoisonPolicy()
    return PoisonPolicy(
        share=usual.share if said.share is None else said.share, of=usual.of if said.of is None else said.of
    )
