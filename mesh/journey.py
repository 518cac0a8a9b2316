"""One event through decide, route, mask and address on its way out. Nothing here does I/O.

`outbound()` turns an accepted event into one unsealed copy per view that somebody may read, of the event itself and of
each new event that a route makes of it, and leaves numbering (`sequences.py`) and sending to the edge. The way in is
`mesh/inbound.py`.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from mesh.errors import Denied
from mesh.event import encode
from mesh.policy.routes import routed
from mesh.subjects import physical, slot_of, stream_name, versioned

if TYPE_CHECKING:
    from mesh.event import Draft
    from mesh.policy.decide import Decision, PublisherPlans, ViewPlan
    from mesh.policy.mask import MaskKeys

_PARTITION = b"mesh-partition"  # BLAKE2b personalisation: the same key never answers two questions alike
_SLOT = b"mesh-slot"
_DIGEST_BYTES = 16
_subject = lru_cache(4096)(physical)  # subjects repeat: types x views x 16 slots


@dataclass(slots=True)
class Copy:
    """One view of one event: decided, masked and encoded, not yet sealed. `route` is the one that made the event."""

    view: str
    subject: str
    stream: str
    body: bytes
    source: str
    event_id: str
    type: str
    traceparent: str | None
    route: str = ""


@dataclass(slots=True)
class Outbound:
    """What the policies make of one event: why, and the copies to publish (none where nobody may read it).

    Copies whose `route` is set are of new events, which routes make; of a moved event there are no others.
    """

    event_id: str
    decision: Decision
    copies: list[Copy]


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
    """Decide and route *draft*, then filter rows and mask it for each view that somebody may read.

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
    matches = plans.routes(fields, now_ms=now_ms) if plans.routing else ()
    marks = {"tenant": tenant, "policyrevision": revision}
    copies: list[Copy] = []
    if not any(match.route.effect == "move" for match in matches):
        copies = _copies(fields, decision.views, "", keys, site, dedupe_key, marks)
    for match in matches:
        if match.views:
            new = routed(fields, match.route)
            copies += _copies(new, match.views, match.route.id, keys, site, dedupe_key, marks)
    return Outbound(fields["id"], decision, copies)


def _copies(  # noqa: PLR0917 - called for every event
    fields: dict[str, Any],
    views: tuple[ViewPlan, ...],
    route: str,
    keys: MaskKeys,
    site: str,
    dedupe_key: bytes,
    marks: dict[str, Any],
) -> list[Copy]:
    """One copy of the event *fields* for each of *views* that shows it, with *marks* among its attributes."""
    event_id, source, type_ = fields["id"], fields["source"], fields["type"]
    partition = fields.get("partitionkey")
    place = slot(dedupe_key, event_id if partition is None else partition)
    stream = stream_name(site, type_.partition(".")[0])
    copies = []
    for view in views:
        if not view.rows(fields):
            continue
        shown = view.mask(fields, keys)
        if partition is not None:
            shown["partitionkey"] = partition_token(dedupe_key, partition)
        shown |= marks
        shown["view"] = view.name
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
                route=route,
            )
        )
    return copies


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
