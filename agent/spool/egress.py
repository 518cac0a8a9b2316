"""May this copy still be sent, and how much of it? Judged for each copy before it leaves the spool. No I/O.

A copy was decided and masked under the policies of its `policyrevision`. Under those of today (design section 4, Then
and now) it is sent as it is, or with whatever is stricter now applied, or not at all:

    event-expired           its `expirytime` is past
    publisher-not-allowed   this agent may not publish that type from that source any more (what V5 will say)
    no-reader               its view is gone, or nobody may read that type in it any more
    unknown-revision        nobody remembers the policies that it was made under
    row-filter              the view's rows of today leave it out

It keeps its `policyrevision`: readers judge by what they were granted then, and may tighten it further.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mesh.errors import RevisionNeeded
from mesh.event import encode, expired
from mesh.policy.bridge import Bridge
from mesh.subjects import parse_physical

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.spool.record import Copy
    from mesh.policy.compile import Plans

EXPIRED = "event-expired"
NOT_ALLOWED = "publisher-not-allowed"
NO_READER = "no-reader"
UNKNOWN_REVISION = "unknown-revision"
ROW_FILTER = "row-filter"


class _Head(msgspec.Struct):
    policyrevision: int = 0
    expirytime: str | None = None


_head = msgspec.json.Decoder(_Head)
_fields = msgspec.json.Decoder(dict[str, Any])


class Egress:
    """Judges the copies of one agent.

    Args:
        spiffe_id: The agent's.
        past: The plans of an older revision; raises `RevisionNeeded` where they are not here yet.
    """

    def __init__(self, spiffe_id: str, past: Callable[[int], Plans]) -> None:
        self._spiffe_id = spiffe_id
        self._past = past
        self._plans: Plans | None = None
        self._bridges: dict[tuple[int, str, str], Bridge] = {}

    def judge(self, copy: Copy, plans: Plans, now_ms: int) -> bytes | str:
        """The body to send, or why not to send it.

        Args:
            copy: As kept.
            plans: Of the bundle in force.
            now_ms: Unix milliseconds.

        Raises:
            RevisionNeeded: The plans of `revision` decide, and are not here: older ones, or newer than *plans*.
        """
        head = _head.decode(copy.body)
        if head.expirytime is not None and expired({"expirytime": head.expirytime}, now_ms):
            return EXPIRED
        revision = head.policyrevision
        if revision == plans.bundle.revision:
            return copy.body
        if revision > plans.bundle.revision:
            raise RevisionNeeded(f"the policies of revision {revision} are not here yet", revision=revision)
        place = parse_physical(copy.subject)
        if not plans.may_publish(self._spiffe_id, place.type, copy.source):
            return NOT_ALLOWED
        bridge = self._bridge(revision, place.view, place.type, plans, now_ms)
        if isinstance(bridge, str):
            return bridge
        fields = _fields.decode(copy.body)
        if not bridge.shows(fields):
            return ROW_FILTER
        tightened = bridge.tighten(fields)
        return copy.body if tightened is fields else encode(tightened)

    def _bridge(self, revision: int, view: str, type_: str, plans: Plans, now_ms: int) -> Bridge | str:
        if plans is not self._plans:
            self._plans = plans
            self._bridges.clear()
        read = (each for each in plans.views(type_) if each.plan.name == view)
        if not any(each.until_ms is None or now_ms < each.until_ms for each in read):
            return NO_READER
        known = self._bridges.get((revision, view, type_))
        if known is not None:
            return known
        lineage = plans.bundle.lineage
        if not lineage or revision < lineage[0].revision:
            return UNKNOWN_REVISION
        then = self._past(revision)
        if view not in then.tenancy.views:
            return UNKNOWN_REVISION
        bridge = self._bridges[revision, view, type_] = Bridge(then, view, plans, view, type_)
        return bridge
