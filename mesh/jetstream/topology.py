"""Streams and consumers as data: what a mesh needs, from its grants.

`desired()` says what must be, `manage.read_actual()` what is, `changes.plan()` what lies between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mesh.jetstream.durables import REDRIVE_STREAM, Durable, durables
from mesh.subjects import stream_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.policy.grants import SubscriptionGrant

__all__ = ["Config", "ConsumerSpec", "Durable", "Sizes", "StreamSpec", "Topology", "consumer", "desired", "durables"]

Config = dict[str, Any]  # as in the JetStream API: durations in ns

DAY_S = 86_400.0
MIB = 1024 * 1024
EVENT_AGE_S = 7 * DAY_S
EVENT_MESSAGE_BYTES = 320 * 1024  # an event of 256 KiB, its headers, and 60 KiB for what attributes and masks add
DLQ_MESSAGE_BYTES = 640 * 1024  # a dead letter carries the event as JSON in its own JSON, its history and its errors
REDRIVE_MESSAGE_BYTES = DLQ_MESSAGE_BYTES + 4 * 1024  # a dead letter, and by which run it comes again
DUPLICATE_WINDOW_S = 180.0  # the publisher counts an ack for 100 s, V7 for 120 s; each id costs 185 B of server memory
NO_BOUND = -1
NOT_BEFORE = "mesh-not-before"  # in a durable's metadata: Unix milliseconds
PIN_TIMEOUT_S = 3.0  # a replica that asked for nothing so long loses its slot; one that lives asks every second
PIN_GROUP = "ordered"  # what pulls of a slot name as their group
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
    emptied: bool = False  # by the control plane, as its messages are done with: what is missing in it is no sign
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
    """One durable pull consumer.

    Attributes:
        attempts: Deliveries after which the server drops an event and says so in `ADVISORY`; `NO_BOUND` where our
            library counts them.
        pinned: Pulled by one client at a time.
        after: Begin behind this sequence, whatever `start` says; None where `start` decides.
        not_before_ms: Nothing that was stored before is to be delivered again, by a replay either; 0 for no bound.
    """

    stream: str
    name: str
    filters: tuple[str, ...]
    ack_wait_s: float
    attempts: int
    max_in_flight: int
    start: str
    replicas: int = 1
    pinned: bool = False
    after: int | None = None
    not_before_ms: int = 0

    def config(self) -> Config:
        """What we state. None: the field must be absent.

        `max_deliver` has no bound where our library pulls: the server counts every prefetch, crash and hand-back as a
        delivery and drops an event at the bound (measured: five killed consumers lost all they had prefetched). Our
        library counts what it handed to a handler and dead-letters at `retry.attempts`. For a plain client nobody else
        counts, and what it drops becomes a dead letter by the server's advisory.
        The server's own `backoff` is not used: it ignores naks, so the library naks with a delay.
        """
        single = len(self.filters) == 1
        return {
            "durable_name": self.name,
            "name": self.name,
            "ack_policy": "explicit",
            "replay_policy": "instant",
            "ack_wait": _ns(self.ack_wait_s),
            "max_deliver": self.attempts,
            "max_ack_pending": max(MIN_ACK_PENDING, ACK_PENDING_PER_IN_FLIGHT * self.max_in_flight),
            "filter_subject": self.filters[0] if single else None,
            "filter_subjects": None if single else list(self.filters),
            "priority_groups": [PIN_GROUP] if self.pinned else None,
            "priority_policy": "pinned_client" if self.pinned else None,
            "priority_timeout": _ns(PIN_TIMEOUT_S) if self.pinned else None,
        }

    def start_config(self) -> Config:
        """Where delivery begins; the server takes it when the consumer is made and never again."""
        bound: Config = {"metadata": {NOT_BEFORE: str(self.not_before_ms)}} if self.not_before_ms else {}
        if self.after is not None:
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": self.after + 1, **bound}
        if self.start in {"new", "all"}:
            return {"deliver_policy": self.start, **bound}
        return {"deliver_policy": "by_start_time", "opt_start_time": self.start, **bound}


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
        consumer(durable, grant, replicas=sizes.replicas, pinned=grant.ordered)
        for grant in subscriptions
        for durable in durables(site, domains, grant)
    ]
    streams = [*(_event_stream(site, domain, sizes) for domain in domains), *_fixed_streams(sizes)]
    return Topology(site, tuple(streams), tuple(sorted(consumers, key=lambda c: (c.stream, c.name))))


def consumer(
    durable: Durable, grant: SubscriptionGrant, *, replicas: int = 1, pinned: bool = False, start: str = ""
) -> ConsumerSpec:
    """A durable of a subscription, or beside it, as the subscription is delivered.

    Args:
        durable: Which.
        grant: Of the subscription.
        replicas: Of the consumer's state.
        pinned: Pulled by one client at a time.
        start: `new`, `all`, or an RFC 3339 time; the subscription's unless given.
    """
    return ConsumerSpec(
        stream=durable.stream,
        name=durable.name,
        filters=durable.filters,
        ack_wait_s=grant.ack_wait_s,
        attempts=grant.retry.attempts if grant.client == "nats" else NO_BOUND,
        max_in_flight=grant.max_in_flight,
        start=start or grant.start,
        replicas=replicas,
        pinned=pinned,
    )


def not_before_ms(config: Config) -> int:
    """The bound that a durable's metadata says, as the server states it: see `ConsumerSpec`; 0 for none."""
    return int((config.get("metadata") or {}).get(NOT_BEFORE, 0))


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
            "DLQ",
            ("dlq.>",),
            sizes.dlq_bytes,
            30 * DAY_S,
            max_message_bytes=DLQ_MESSAGE_BYTES,
            emptied=True,
            replicas=sizes.replicas,
        ),
        StreamSpec(  # dead letters on their way back to a handler; `DLQ` keeps each until it is settled there
            REDRIVE_STREAM,
            ("redrive.>",),
            sizes.dlq_bytes,
            EVENT_AGE_S,
            max_message_bytes=REDRIVE_MESSAGE_BYTES,
            emptied=True,
            replicas=sizes.replicas,
        ),
        StreamSpec("AUDIT", ("audit.>",), sizes.audit_bytes, append_only=True, replicas=sizes.replicas),
        small(  # core advisories are lost while nobody listens
            "ADVISORY",
            "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>",
            "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>",
            max_age_s=EVENT_AGE_S,
            full="old",
            emptied=True,
        ),
        # an instance reports every minute; one that has been silent for a day is gone
        small("REPORTS", "report.>", max_age_s=DAY_S, max_per_subject=1, full="old"),
        bucket("mesh_policy"),  # a key for each revision that older copies still need
        bucket("mesh_trust"),
        bucket("mesh_agents"),
    )


def _ns(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
