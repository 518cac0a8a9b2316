"""One event through decide, route, mask and address on its way out. Nothing here does I/O.

`outbound()` turns an accepted event into one unsealed copy per view that somebody may read, of the event itself and of
each new event that a route makes of it, and leaves numbering (`sequences.py`) and sending to the edge. The way in is
`mesh/inbound.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from mesh import native
from mesh.cutting import Address, Hashes, Stop, cut
from mesh.errors import Denied
from mesh.event import encode, text_from_structured
from mesh.jetstream.outgoing import Outgoing
from mesh.jsontext import extended
from mesh.keyed import Keyed
from mesh.policy.routes import routed
from mesh.statements import FIRST_GENERATION, MessageIds
from mesh.subjects import SLOTS, physical, slot_of, stream_name, versioned

if TYPE_CHECKING:
    from mesh.attributes import Limits
    from mesh.event import Draft
    from mesh.policy.decide import Decision, PublisherPlans, ViewPlan
    from mesh.policy.mask import MaskKeys
    from mesh.verbatim import Wanted

_PARTITION = b"mesh-partition"  # BLAKE2b personalisation: the same key never answers two questions alike
_SLOT = b"mesh-slot"
_DIGEST_BYTES = 16
MAX_ADDRESSES = 1024  # of a type in a view that are remembered, about 2 KB each


_Way: TypeAlias = "tuple[tuple[ViewPlan, ...], tuple[Stop, ...]]"
"""Views of a type, and a stop for each of them."""


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

    __slots__ = ("_addresses", "_hashes", "_known", "_marks", "_reads", "_site", "_ways", "keys", "plans")

    def __init__(
        self, plans: PublisherPlans, keys: MaskKeys, *, site: str, tenant: str, revision: int, dedupe_key: bytes
    ) -> None:
        self.plans = plans
        self.keys = keys
        self._site = site
        self._hashes = Hashes(
            slot=Keyed(dedupe_key, _DIGEST_BYTES, _SLOT),
            partition=Keyed(dedupe_key, _DIGEST_BYTES, _PARTITION),
            message_id=MessageIds(dedupe_key).keyed,
        )
        self._marks = {"tenant": tenant, "policyrevision": revision}
        self._addresses: dict[tuple[str, str], Address] = {}  # by type and view
        self._ways: dict[str, _Way] = {}  # by type, for the views of late; all their addresses are remembered
        self._reads = plans.reads
        self._known: tuple[str, Wanted] = ("", {})  # of the last event: the next one is most often of the same type

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

    def of_text(self, body: bytes, now_ms: int, limits: Limits) -> Outbound | None:
        """What `of` gives of the structured event *body*, cut out of its text; None where `of` has to be asked.

        So it is of every event that is refused, and of all where nothing is compiled.

        Args:
            body: As it came: nothing in it is believed yet.
            now_ms: Unix milliseconds.
            limits: What is too large.
        """
        plans = self.plans
        if native.compiled is None or plans.routing:  # what a route makes of an event has another text
            return None
        read = text_from_structured(
            body, now_ms, limits.max_batch_bytes, limits.max_depth, limits.max_event_bytes, self._known, self._reads
        )
        if read is None:
            return None
        text, more, fields, self._known = read
        decision = plans.decide(fields, now_ms=now_ms)
        if not decision.allowed:
            return None
        views = decision.views
        way = self._ways.get(fields["type"])
        if way is None or way[0] != views:
            way = self._way(fields["type"], views)
        copies = cut(text, more, fields, way[1], self._hashes, self.keys)
        return None if copies is None else Outbound(fields["id"], decision, copies)

    def _copies(self, fields: dict[str, Any], views: tuple[ViewPlan, ...], route: str) -> list[Outgoing]:
        """One copy of the event *fields* for each of *views* that shows it."""
        event_id, source, type_ = fields["id"], fields["source"], fields["type"]
        partition, trace = fields.get("partitionkey"), fields.get("traceparent")
        hashes = self._hashes
        place = slot_of(hashes.slot.digest(event_id if partition is None else partition))
        way = self._ways.get(type_)
        if way is None or way[0] != views:
            way = self._way(type_, views)
        token = None if partition is None else hashes.partition.token(partition)
        copies = []
        for masking, rows, address in way[1]:
            if rows is not None and not rows(fields):
                continue
            shown = masking.apply(fields, self.keys)
            if token is not None:
                shown["partitionkey"] = token
            body = extended(encode(shown), address.marks)
            subject = address.subjects[place]
            base_id = hashes.message_id.token(source, event_id, subject, FIRST_GENERATION)
            copies.append(
                Outgoing(
                    subject, address.stream, body, source, event_id,
                    traceparent=trace, base_id=base_id, view=address.view, type=type_, route=route,
                )
            )  # fmt: skip
        return copies

    def _way(self, type_: str, views: tuple[ViewPlan, ...]) -> _Way:
        """Where copies of a type in *views* go, worked out where it is not known."""
        known = self._addresses
        stops = []
        for view in views:
            address = known.get((type_, view.name))
            if address is None:
                address = known[type_, view.name] = self._address(type_, view.name)
            stops.append(Stop(view.masking, view.rows if view.filters else None, address))
        way = views, tuple(stops)
        if len(known) > MAX_ADDRESSES:
            known.clear()
            self._ways.clear()
        elif views:  # else there would be no limit to types without
            self._ways[type_] = way
        return way

    def _address(self, type_: str, view: str) -> Address:
        subjects = tuple(physical(self._site, view, place, type_) for place in range(SLOTS))
        marks = b"," + encode({**self._marks, "view": view})[1:]
        return Address(view, subjects, stream_name(self._site, type_.partition(".")[0]), marks)


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
