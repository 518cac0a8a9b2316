"""Streams and consumers as data: what a mesh needs, from its grants.

`desired()` says what must be, `manage.read_actual()` what is, `changes.plan()` what lies between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mesh.policy.grants import outermost
from mesh.subjects import Pattern, physical_pattern, stream_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.policy.grants import SubscriptionGrant

Config = dict[str, Any]  # as in the JetStream API: durations in ns

DAY_S = 86_400.0
MIB = 1024 * 1024
EVENT_AGE_S = 7 * DAY_S
EVENT_MESSAGE_BYTES = 320 * 1024  # an event of 256 KiB, its headers, and 60 KiB for what attributes and masks add
DLQ_MESSAGE_BYTES = 640 * 1024  # a dead letter carries the event as JSON in its own JSON, its history and its errors
DUPLICATE_WINDOW_S = 180.0  # the publisher counts an ack for 100 s, V7 for 120 s; each id costs 185 B of server memory
NO_BOUND = -1
MIN_ACK_PENDING = 20_000  # delayed naks occupy it: 5 of 15 s at a limit of 5 stopped everything else, measured
ACK_PENDING_PER_IN_FLIGHT = 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each stream may hold. Full means refused: agents spool, `AUDIT` and `DLQ` raise an alarm."""

    event_bytes: int = 1024 * MIB
    dlq_bytes: int = 512 * MIB
    audit_bytes: int = 1024 * MIB
    small_bytes: int = 256 * MIB  # advisories, reports, each KV bucket: 1,000 bundles of 250 KB
    replicas: int = 1


# --- what grants ask for ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Durable:
    """Where a subscription pulls in one stream."""

    stream: str
    name: str
    filters: tuple[str, ...]


def durables(site: str, domains: Iterable[str], grant: SubscriptionGrant) -> tuple[Durable, ...]:
    """The durables of one subscription: one in the stream of each domain that a filter reaches.

    Args:
        site: The site of the streams.
        domains: Every domain that has a stream.
        grant: With its filters; one without a literal first token reaches every domain.
    """
    found = []
    for domain in sorted(set(domains)):
        whole = Pattern.parse(f"{domain}.>")
        parts = [part for pattern in grant.filters if (part := pattern.intersection(whole)) is not None]
        if parts:
            filters = tuple(physical_pattern(site, grant.view, p) for p in outermost(parts))
            found.append(Durable(stream_name(site, domain), grant.durable, filters))
    return tuple(found)


# --- what must be ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream. No spec enables rollups outside KV, schedules or TTLs: each lets a publisher delete or redirect."""

    name: str
    subjects: tuple[str, ...]
    max_bytes: int
    max_age_s: float = 0.0
    max_message_bytes: int = MIB
    max_per_subject: int = -1
    full: Literal["new", "old"] = "new"  # which message gives way: `new` is a refusal the publisher sees
    append_only: bool = False
    rollup: bool = False
    replicas: int = 1

    def config(self) -> Config:
        """What we state, in the API's names and units."""
        return {
            "name": self.name,
            "subjects": list(self.subjects),
            "retention": "limits",
            "storage": "file",
            "num_replicas": self.replicas,
            "max_age": _ns(self.max_age_s),
            "max_bytes": self.max_bytes,
            "max_msg_size": self.max_message_bytes,
            "max_msgs_per_subject": self.max_per_subject,
            "discard": self.full,
            "duplicate_window": _ns(DUPLICATE_WINDOW_S),
            "allow_direct": True,
            "deny_delete": self.append_only,
            "deny_purge": self.append_only,
            "allow_rollup_hdrs": self.rollup,
            "allow_msg_schedules": False,
            "allow_msg_ttl": False,
        }


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """One durable pull consumer."""

    stream: str
    name: str
    filters: tuple[str, ...]
    ack_wait_s: float
    attempts: int
    max_in_flight: int
    start: str
    replicas: int = 1

    def config(self) -> Config:
        """What we state. None: the field must be absent.

        `max_deliver` has no bound: the server counts every prefetch, crash and hand-back as a delivery and drops an
        event at the bound without a word (measured: five killed consumers lost all they had prefetched). Our library
        counts what it handed to a handler and dead-letters at `attempts`; a plain client decides when to `+TERM`.
        The server's own `backoff` is not used: it ignores naks, so the library naks with a delay.
        """
        single = len(self.filters) == 1
        return {
            "durable_name": self.name,
            "name": self.name,
            "ack_policy": "explicit",
            "replay_policy": "instant",
            "ack_wait": _ns(self.ack_wait_s),
            "max_deliver": NO_BOUND,
            "max_ack_pending": max(MIN_ACK_PENDING, ACK_PENDING_PER_IN_FLIGHT * self.max_in_flight),
            "filter_subject": self.filters[0] if single else None,
            "filter_subjects": None if single else list(self.filters),
        }

    def start_config(self) -> Config:
        """Where delivery begins; the server takes it when the consumer is made and never again."""
        if self.start in {"new", "all"}:
            return {"deliver_policy": self.start}
        return {"deliver_policy": "by_start_time", "opt_start_time": self.start}


@dataclass(frozen=True, slots=True)
class Topology:
    """Every stream and consumer of one tenant at one site."""

    site: str
    streams: tuple[StreamSpec, ...]
    consumers: tuple[ConsumerSpec, ...]


def desired(
    site: str, domains: Iterable[str], subscriptions: Iterable[SubscriptionGrant], sizes: Sizes | None = None
) -> Topology:
    """What the grants ask for.

    Args:
        site: The site.
        domains: First tokens of the types anybody may publish or subscribe; each has its stream.
        subscriptions: The active ones.
        sizes: How much each stream may hold.
    """
    sizes = sizes or Sizes()
    domains = sorted(set(domains))
    consumers = [
        ConsumerSpec(
            stream=durable.stream,
            name=durable.name,
            filters=durable.filters,
            ack_wait_s=grant.retry.ack_wait_s,
            attempts=grant.retry.attempts,
            max_in_flight=grant.max_in_flight,
            start=grant.start,
            replicas=sizes.replicas,
        )
        for grant in subscriptions
        for durable in durables(site, domains, grant)
    ]
    streams = [*(_event_stream(site, domain, sizes) for domain in domains), *_fixed_streams(sizes)]
    return Topology(site, tuple(streams), tuple(sorted(consumers, key=lambda c: (c.stream, c.name))))


def _event_stream(site: str, domain: str, sizes: Sizes) -> StreamSpec:
    return StreamSpec(
        name=stream_name(site, domain),
        subjects=(f"ev.{site}.*.*.{domain}.>",),
        max_bytes=sizes.event_bytes,
        max_age_s=EVENT_AGE_S,
        max_message_bytes=EVENT_MESSAGE_BYTES,
        replicas=sizes.replicas,
    )


def _fixed_streams(sizes: Sizes) -> tuple[StreamSpec, ...]:
    def small(name: str, *subjects: str, **more: Any) -> StreamSpec:
        return StreamSpec(name, subjects, sizes.small_bytes, replicas=sizes.replicas, **more)

    def bucket(name: str) -> StreamSpec:
        # A KV put may carry `Nats-Rollup: all` and wipe its bucket: nobody but the control plane may put.
        return small(f"KV_{name}", f"$KV.{name}.>", max_per_subject=1, rollup=True)

    return (
        StreamSpec(
            "DLQ", ("dlq.>",), sizes.dlq_bytes, 30 * DAY_S, max_message_bytes=DLQ_MESSAGE_BYTES, replicas=sizes.replicas
        ),
        StreamSpec("AUDIT", ("audit.>",), sizes.audit_bytes, append_only=True, replicas=sizes.replicas),
        small(  # core advisories are lost while nobody listens
            "ADVISORY",
            "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>",
            "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>",
            max_age_s=EVENT_AGE_S,
            full="old",
        ),
        # an instance reports every minute; one that has been silent for a day is gone
        small("REPORTS", "report.>", max_age_s=DAY_S, max_per_subject=1, full="old"),
        bucket("mesh_policy"),  # a key for each revision that older copies still need
        bucket("mesh_trust"),
        bucket("mesh_agents"),
    )


def _ns(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
