"""One event through decide, mask and address on its way out, and through admit on its way in. Nothing here does I/O.

`outbound()` turns an accepted event into one unsealed copy per view that somebody may read; `inbound()` decides whether
a verified copy may be handed to a team. Both return what to do next and leave the doing to the edge.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from mesh.errors import Denied
from mesh.event import encode
from mesh.subjects import physical, slot_of, stream_name, versioned

if TYPE_CHECKING:
    from mesh.event import Draft
    from mesh.policy.compile import Plans
    from mesh.policy.decide import Decision, PublisherPlans
    from mesh.policy.mask import MaskKeys
    from mesh.signing import Verified

_PARTITION = b"mesh-partition"  # BLAKE2b personalisation: the same key never answers two questions alike
_SLOT = b"mesh-slot"
_DIGEST_BYTES = 16
_subject = lru_cache(4096)(physical)  # subjects repeat: types x views x 16 slots


@dataclass(slots=True)
class Copy:
    """One view of one event: decided, masked and encoded, not yet sealed."""

    view: str
    subject: str
    stream: str
    body: bytes
    source: str
    event_id: str
    type: str
    traceparent: str | None


@dataclass(slots=True)
class Outbound:
    """What the policies make of one event: why, and the copies to publish (none where nobody may read it)."""

    event_id: str
    decision: Decision
    copies: list[Copy]


@dataclass(slots=True)
class Admitted:
    """A verified event that a team may see: what a handler gets.

    `data` is the event's data, `fields` every attribute and the data; both are in the view the team reads.
    """

    fields: dict[str, Any]
    view: str
    spiffe_id: str
    stream: str
    sequence: int
    stream_ms: int
    attempt: int
    rule: str | None

    @property
    def id(self) -> str:
        """The event's id: unique within its source."""
        return str(self.fields["id"])

    @property
    def source(self) -> str:
        """Where the event comes from: a URI reference below `/<team>`, or what the policy adds."""
        return str(self.fields["source"])

    @property
    def type(self) -> str:
        """The logical type, such as `crm.contact.updated.v1`."""
        return str(self.fields["type"])

    @property
    def data(self) -> Any:
        """The data as JSON values, or None where the event has none."""
        return self.fields.get("data")

    @property
    def correlationid(self) -> str:
        """The id that all events of one chain share; the event's own id where it began the chain."""
        return str(self.fields.get("correlationid", self.fields["id"]))

    @property
    def key(self) -> tuple[str, str]:
        """(source, id): what consumers deduplicate on. V1 has seen that both are strings."""
        fields = self.fields
        return fields["source"], fields["id"]


@dataclass(frozen=True, slots=True)
class Withheld:
    """A verified event that the team may not be handed now: acked, counted and never shown."""

    reason: str
    rule: str | None


def partition_token(dedupe_key: bytes, partitionkey: str) -> str:
    """A pseudonym of *partitionkey*: equal keys of one source give equal tokens, and nothing else shows."""
    digest = blake2b(partitionkey.encode(), digest_size=_DIGEST_BYTES, key=dedupe_key, person=_PARTITION).digest()
    return urlsafe_b64encode(digest)[:-2].decode()


def slot(dedupe_key: bytes, key: str) -> int:
    """The slot, 0 to 15, of a partition key (or of the id where there is none)."""
    return slot_of(blake2b(key.encode(), digest_size=_DIGEST_BYTES, key=dedupe_key, person=_SLOT).digest())


def outbound(
    draft: Draft,
    plans: PublisherPlans,
    keys: MaskKeys,
    *,
    site: str,
    tenant: str,
    revision: int,
    dedupe_key: bytes,
    now_ms: int | None = None,
) -> Outbound:
    """Decide, filter rows and mask *draft* for each view that somebody may read.

    Args:
        draft: The accepted event; it is not changed.
        plans: The publishing agent's plans, compiled from the bundle in force.
        keys: The pseudonym keys this agent holds.
        site: First part of the subject after `ev`.
        tenant: Written into every copy.
        revision: The bundle's, written into every copy as `policyrevision`.
        dedupe_key: 32 bytes, the source's; slots and partition tokens are keyed with it.
        now_ms: Unix milliseconds; without it, every right that can expire has.

    Raises:
        Denied: Policy refuses this publish; `rule` and `reason` say why.
    """
    fields = draft.fields
    decision = plans.decide(fields, now_ms=now_ms)
    if not decision.allowed:
        raise denial(decision, fields)
    event_id, source, type_ = fields["id"], fields["source"], fields["type"]
    partition = fields.get("partitionkey")
    place = slot(dedupe_key, event_id if partition is None else partition)
    stream = stream_name(site, type_.partition(".")[0])
    copies = []
    for view in decision.views:
        if not view.rows(fields):
            continue
        shown = view.mask(fields, keys)
        if partition is not None:
            shown["partitionkey"] = partition_token(dedupe_key, partition)
        shown["tenant"] = tenant
        shown["view"] = view.name
        shown["policyrevision"] = revision
        copies.append(
            Copy(
                view=view.name,
                subject=_subject(site, view.name, place, type_),
                stream=stream,
                body=encode(shown),
                source=source,
                event_id=event_id,
                type=type_,
                traceparent=fields.get("traceparent"),
            )
        )
    return Outbound(event_id, decision, copies)


def denial(decision: Decision, fields: dict[str, Any]) -> Denied:
    """The error for a refused publish, in the words of the one who has to act on it."""
    type_, source = fields["type"], fields["source"]
    next_step = {
        "source-not-allowed": "use a source below /<team>, or ask the security team to add it to the publish line",
        "rule": "the rule named here denies it; `mesh policy explain` shows why",
        "error-in-deny": "a condition of the deny rule failed on this event; check the types of the fields it reads",
    }.get(decision.reason, "ask the security team for a publish line that covers this type")
    return Denied(
        f"policy refuses to publish {type_} from {source}: {decision.reason}"
        + (f" ({decision.rule})" if decision.rule else ""),
        expected="an allow rule that covers type and source, and no deny",
        got=f"type {versioned(type_)}, source {source}",
        next=next_step,
        rule=decision.rule,
        reason=decision.reason,
    )


def inbound(verified: Verified, plans: Plans, team: str, *, now_ms: int) -> Admitted | Withheld:
    """Decide whether *team* may be handed this copy now, whatever it was allowed when the copy was made."""
    place = verified.place
    read = plans.reader(team, place.type, place.view, now_ms=now_ms)
    if not read.allowed:
        return Withheld(read.reason, read.rule)
    received = verified.received
    return Admitted(
        verified.fields,
        place.view,
        verified.spiffe_id,
        received.stream,
        received.sequence,
        received.stream_ms,
        received.deliveries,
        read.rule,
    )
