"""What a team has delivered, from when and in what order; how failures are retried, and when it pauses by itself."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from mesh.policy.model_words import Duration, Name, Rate, Spec, Start, TypePatterns

MAX_FAILURES = 1000  # in a row; a handler that fails more often than that has been failing for minutes
MIN_POISON_OF, MAX_POISON_OF = 10, 10_000  # of fewer a share says nothing; more are gone before anybody notices


class Retry(Spec, frozen=True):
    """How often and when an event is delivered again. Durations are text such as `500ms`, `30s`, `5m`, `1h`."""

    attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None
    backoff: Annotated[tuple[Duration, ...], Meta(min_length=1, max_length=32)] | None = None
    ack_wait: Duration | None = None


class Breaker(Spec, frozen=True):
    """A handler that failed `failures` times in a row (0: never mind) is left alone for `open`, such as `10s`."""

    failures: Annotated[int, Meta(ge=0, le=MAX_FAILURES)] | None = None
    open: Duration | None = None


class Poison(Spec, frozen=True):
    """More than this share of the last `of` events became dead letters: the subscription pauses. 1 never pauses."""

    share: float | None = None
    of: Annotated[int, Meta(ge=MIN_POISON_OF, le=MAX_POISON_OF)] | None = None


class Delivery(Spec, frozen=True):
    """What a tenant's subscriptions use where they say nothing."""

    retry: Retry = Retry()
    max_in_flight: Annotated[int, Meta(ge=1, le=100_000)] | None = None


class SubscriptionSpec(Spec, frozen=True):
    """What a team has delivered, from when, in what order, how failures are retried, and when it pauses by itself.

    `client` says who pulls: `mesh`, our library or agent, or `nats`, any NATS client. `rate` is text such as `200/s`.
    """

    types: TypePatterns
    view: Name | None = None
    start: Start = "new"
    retry: Retry = Retry()
    max_in_flight: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    order_by: Literal["partitionkey"] | None = None
    client: Literal["mesh", "nats"] = "mesh"
    rate: Rate | None = None
    breaker: Breaker = Breaker()
    poison: Poison = Poison()
