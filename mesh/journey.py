"""One event through decide, route, mask and address on its way out. Nothing here does I/O.

`outbound()` turns an accepted event into one unsealed copy per view that somebody may read, of the event itself and of
each new event that a route makes of it, and leaves numbering (`sequences.py`) and sending to the edge. The way in is
`mesh/inbound.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from mesh.errors import Denied
from mesh.event import encode
from mesh.jetstream.outgoing import Outgoing
from mesh.jsontext import extended
from mesh.keyed import Keyed
from mesh.policy.routes import routed
from mesh.statements import FIRST, MessageIds
from mesh.subjects import SLOTS, physical, slot_of, stream_name, versioned

if TYPE_CHECKING:
    from mesh.event import Draft
    from mesh.policy.decide import Decision, PublisherPlans, ViewPlan
    from mesh.policy.mask import MaskKeys

_PARTITION = b"mesh-partition"  # BLAKE2b personalisation: the same key never answers two questions alike
_SLOT = b"mesh-slot"
_DIGEST_BYTES = 16
MAX_ADDRESSES = 1024  # types whose views are remembered, about 2 KB a view


class _Address(NamedTuple):
    """Where the copies of a type in a view go, by slot, and in which stream they rest.

    `marks` ends every such copy: no event that was accepted has these members, so they need no look.
    """

    view: str
    subjects: tuple[str, ...]
    stream: str
    marks: bytes


class Outbound(msgspec.Struct, gc=False):
    """What the policies make of one event: why, and the copies to publish (none where nobody may read it).

    Copies whose `route` is set are of new events, which routes make; of a moved event there are no others.
    """

    event_id: str
    decision: Decision
    copies: list[Outgoing]


def partition_token(dedupe_key: bytes, partitionkey: str) -> str:
    """A pseudonym of *partitionkey*: equal keys of one source give equal tokens, and nothing else shows."""
    return Keyed(dedupe_key, _DIGEST_BYTES, _PARTITION).token(partitionkey)


def slot(dedupe_key: bytes, key: str) -> int:
    """The slot, 0 to 15, of a partition key (or of the id where there is none)."""
    return slot_of(Keyed(dedupe_key, _DIGEST_BYTES, _SLOT).digest(key))


class Departures:
    """The way out of one publisher's events: what is the same for all of them is worked out once.

    Args:
        plans: The publishing agent's plans, compiled from the bundle in force.
        keys: The pseudonym keys this agent holds.
        site: First part of the subject after `ev`.
        tenant: Written into every copy.
        revision: The bundle's, written into every copy as `policyrevision`.
        dedupe_key: 32 bytes, the source's; slots and partition tokens are keyed with it.
    """

    __slots__ = ("_addresses", "_marks", "_partition", "_site", "_slot_hash", "_token", "keys", "plans")

    def __init__(
        self, plans: PublisherPlans, keys: MaskKeys, *, site: str, tenant: str, revision: int, dedupe_key: bytes
    ) -> None:
        self.plans = plans
        self.keys = keys
        self._site = site
        self._token = MessageIds(dedupe_key).token
        self._partition = Keyed(dedupe_key, _DIGEST_BYTES, _PARTITION).token
        self._slot_hash = Keyed(dedupe_key, _DIGEST_BYTES, _SLOT).digest
        self._marks = {"tenant": tenant, "policyrevision": revision}
        self._addresses: dict[str, tuple[tuple[ViewPlan, ...], list[_Address]]] = {}  # by type, for the views of late

    def outbound(self, draft: Draft, now_ms: int | None = None) -> Outbound:
        """Decide and route *draft*, then filter rows and mask it for each view that somebody may read.

        Args:
            draft: The accepted event; it is not changed.
            now_ms: Unix milliseconds; without it, every right that can expire has.

        Raises:
            Denied: Policy refuses this publish; `rule` and `reason` say why.
        """
        return self.of(draft.fields, now_ms)

    def of(self, fields: dict[str, Any], now_ms: int | None = None) -> Outbound:
        """`outbound` of an event that is at hand as the fields of a draft."""
        plans = self.plans
        decision = plans.decide(fields, now_ms=now_ms)
        if not decision.allowed:
            raise denial(decision, fields)
        if not plans.routing:
            return Outbound(fields["id"], decision, self._copies(fields, decision.views, ""))
        matches = plans.routes(fields, now_ms=now_ms)
        copies: list[Outgoing] = []
        if not any(match.route.effect == "move" for match in matches):
            copies = self._copies(fields, decision.views, "")
        for match in matches:
            if match.views:
                copies += self._copies(routed(fields, match.route), match.views, match.route.id)
        return Outbound(fields["id"], decision, copies)

    def _copies(self, fields: dict[str, Any], views: tuple[ViewPlan, ...], route: str) -> list[Outgoing]:
        """One copy of the event *fields* for each of *views* that shows it."""
        event_id, source, type_ = fields["id"], fields["source"], fields["type"]
        partition, trace = fields.get("partitionkey"), fields.get("traceparent")
        place = slot_of(self._slot_hash(event_id if partition is None else partition))
        addresses = self._addresses.get(type_)
        if addresses is None or addresses[0] != views:
            addresses = self._address(type_, views)
        copies = []
        for view, (name, subjects, stream, marks) in zip(*addresses, strict=True):
            if view.filters and not view.rows(fields):
                continue
            shown = view.mask(fields, self.keys)
            if partition is not None:
                shown["partitionkey"] = self._partition(partition)
            body, subject = extended(encode(shown), marks), subjects[place]
            base_id = self._token(source, event_id, subject, FIRST)
            copies.append(Outgoing(subject, stream, body, source, event_id, trace, base_id, name, type_, route))
        return copies

    def _address(self, type_: str, views: tuple[ViewPlan, ...]) -> tuple[tuple[ViewPlan, ...], list[_Address]]:
        """Where copies of a type in *views* go; remembered for those views."""
        if len(self._addresses) >= MAX_ADDRESSES:
            self._addresses.clear()
        stream = stream_name(self._site, type_.partition(".")[0])
        found = []
        for name in [view.name for view in views]:
            subjects = tuple(physical(self._site, name, place, type_) for place in range(SLOTS))
            found.append(_Address(name, subjects, stream, b"," + encode({**self._marks, "view": name})[1:]))
        self._addresses[type_] = views, found
        return views, found


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
    """One event through `Departures`."""
    way = Departures(plans, keys, site=site, tenant=tenant, revision=revision, dedupe_key=dedupe_key)
    return way.outbound(draft, now_ms)


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
