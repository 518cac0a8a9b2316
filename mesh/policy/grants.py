"""The structural part of a tenant's policies: what NATS enforces, and what the control plane builds from.

    per agent           which subjects it may publish (view and pattern), which keys it masks with
    per team            which views of which types it may read, which keys it opens encrypted values with
    per subscription    the filters of its durable, or why it is inactive
    domains             the first tokens of types, one stream each

A deny inside an allow becomes narrower patterns where the publish lines it meets name exact types; elsewhere NATS
cannot say it and agents alone enforce it: the part of the grant that holds it is marked `agent_only`.

`granting.py` works them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from mesh.limits import BreakerPolicy, PoisonPolicy, RateLimit
from mesh.retry import RetryPolicy
from mesh.subjects import Pattern

DEFAULT_MAX_IN_FLIGHT = 1000
ORDERED_ACK_WAIT_S = 3.0  # at most: whoever takes a slot over waits for what the one before left unacked


@dataclass(frozen=True, slots=True)
class PublishGrant:
    """An agent may publish copies of these types in this view."""

    view: str
    pattern: Pattern
    agent_only: bool = False


@dataclass(frozen=True, slots=True)
class AgentGrants:
    """What one agent may publish.

    Attributes:
        types: What its publish lines name, readers or not.
        publish: Its copies, those that routes make of its events included: only views that somebody may read.
        domains: Pseudonym domains it masks with, and so holds the keys of.
        ciphers: Names of the cipher keys it encrypts with.
    """

    agent: str
    team: str
    spiffe_id: str
    types: tuple[Pattern, ...]
    publish: tuple[PublishGrant, ...]
    domains: tuple[str, ...]
    ciphers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadGrant:
    """A team may read these types in this view, stored from `since_ms` on, until `expires_ms` where these are set."""

    view: str
    pattern: Pattern
    rule: str
    expires_ms: int | None = None
    agent_only: bool = False
    since_ms: int | None = None


@dataclass(frozen=True, slots=True)
class SubscriptionGrant:
    """One durable subscription, as the grants of now let it be.

    Attributes:
        view: The one it reads; empty where that is not clear.
        filters: Patterns of the types it is delivered, none inside another.
        active: Whether it is delivered anything.
        reason: Why not, in words; empty where it is active.
        agent_only: A deny inside its filters that NATS cannot enforce.
        start: `new`, `all`, or an RFC 3339 time. Counts when the durable is made, never again. Where every grant behind
            the filters says `since`, it is no earlier than the earliest of them.
        retry: Deliveries, their backoff, and how long a handler may be silent.
        max_in_flight: Events one replica handles at a time.
        ordered: Whether events of one source and partition key are handled in their order (`order_by: partitionkey`):
            then there is a durable for each slot.
        client: Who pulls: `mesh`, our library or agent, which counts attempts itself, or `nats`, a plain client, for
            whom the server ends deliveries after `retry.attempts`.
        rate: How many events a second one replica is handed; None for as many as it takes.
        breaker, poison: When it pauses by itself.
    """

    team: str
    name: str
    view: str
    filters: tuple[Pattern, ...]
    active: bool = True
    reason: str = ""
    agent_only: bool = False
    start: str = "new"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    ordered: bool = False
    client: Literal["mesh", "nats"] = "mesh"
    rate: RateLimit | None = None
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    poison: PoisonPolicy = field(default_factory=PoisonPolicy)

    @property
    def durable(self) -> str:
        """`<team>--<name>`, in the stream of each domain its filters reach; neither holds `--`.

        Where it is ordered, the names of its durables begin so: `topology.durables` has them.
        """
        return f"{self.team}--{self.name}"

    @property
    def ack_wait_s(self) -> float:
        """Seconds after which the server delivers again what nobody acked or signalled progress for."""
        return min(self.retry.ack_wait_s, ORDERED_ACK_WAIT_S) if self.ordered else self.retry.ack_wait_s


@dataclass(frozen=True, slots=True)
class Grants:
    """All of it, of one tenant.

    Attributes:
        streams: The stream of each domain.
        team_ciphers: By team, the names of the cipher keys whose `for` names it: its agents can open those values.
    """

    tenant: str
    site: str
    agents: Mapping[str, AgentGrants]
    teams: Mapping[str, tuple[ReadGrant, ...]]
    subscriptions: Mapping[tuple[str, str], SubscriptionGrant]
    streams: Mapping[str, str]
    team_ciphers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def domains(self) -> tuple[str, ...]:
        """The first tokens of all types that may be published."""
        return tuple(self.streams)

    @property
    def active(self) -> tuple[SubscriptionGrant, ...]:
        """The subscriptions that get durables."""
        return tuple(grant for grant in self.subscriptions.values() if grant.active)


def outermost(patterns: Iterable[Pattern]) -> list[Pattern]:
    """*patterns* without those that another one covers, sorted: the server refuses contained filters (10138)."""
    return list(_outermost(tuple(patterns)))


@lru_cache(1024)  # of a large tenant's agents many have the same rights, and an apply asks several times
def _outermost(patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    kept: list[Pattern] = []
    for pattern in sorted(dict.fromkeys(patterns)):
        if not any(other.covers(pattern) for other in kept):
            kept = [other for other in kept if not pattern.covers(other)]
            kept.append(pattern)
    return tuple(kept)
