"""One verified copy on its way in: may this reader be handed it now, and how much of it? Nothing here does I/O.

`Reading.admit` returns what to do next, `Admitted` or `Withheld`, and leaves the doing to the edge. Almost every copy
was made under policies that decide what this reader sees just as those of now do: comparing two revisions says so. The
others are judged twice, `then` and `now`:

    then    the copy is in the view that the reader had at the copy's `policyrevision`
    now     the reader has some view of that type; whatever that shows less of is tightened in the copy

so a change of view neither doubles an event nor skips one, and a new grant opens no history, unless it says `since`.

Source: design section 4, Then and now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from mesh.policy.bridge import Bridge

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.policy.compile import Plans, ReadGrantNow
    from mesh.policy.decide import ReadDecision
    from mesh.signing import Verified

MAX_ANSWERS = 4096  # in each of a reading's caches; full means emptied, then filled again

OTHER_VIEW = "other-view"  # the copy is in a view that the subscription does not read
NOT_GRANTED_THEN = "not-granted-then"  # the reader had another view, or none, when the copy was made
UNKNOWN_REVISION = "unknown-revision"  # nobody remembers the policies that the copy was made under
NO_ALLOW = "no-allow-matched"
ROW_FILTER = "row-filter"


class Admitted(msgspec.Struct):
    """A verified event that a team may see: what a handler gets.

    `data` is the event's data, `fields` every attribute and the data; both are in the view the team reads.
    `stale_trust` marks an event that came while no newer trust statement did: its key may have been revoked since.
    `replay` and `redrive` name the run of `mesh replay` or `mesh dlq redrive` that brought it again; empty for others.
    """

    fields: dict[str, Any]
    view: str
    spiffe_id: str
    stream: str
    sequence: int
    stream_ms: int
    attempt: int
    rule: str | None
    stale_trust: bool = False
    replay: str = ""
    redrive: str = ""

    @property
    def replayed(self) -> bool:
        """Whether it comes because somebody asked for a replay: it may well have been handled before."""
        return bool(self.replay)

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


@dataclass(frozen=True, slots=True)
class _Passage:
    """How copies of one type and view, made under one revision, reach a reader.

    Attributes:
        rule: By which they are handed over now.
        held: Whether the reader had that view then.
        since_ms: Where it had none: the stream time from which the grant of now opens what is stored; None for never.
        bridge: From then to now.
    """

    rule: str
    held: bool
    since_ms: int | None
    bridge: Bridge


class Reading:
    """What one reader may be handed while one bundle is in force. Made anew for each bundle.

    Args:
        plans: Of the bundle in force.
        team: The reader.
        subscription: Its subscription, which reads one view; None for a look at whatever the team may see.
        past: The plans of an older revision; raises `RevisionNeeded` where they are not here yet.

    Attributes:
        plans: As given.
        expiring: The rules that hand copies over for a limited time, and when each ends: uses of them are recorded.
    """

    __slots__ = (
        "_answers", "_first", "_passages", "_past", "_since", "_subscription", "_team", "_view", "expiring", "plans",
    )  # fmt: skip

    def __init__(
        self, plans: Plans, team: str, subscription: str | None = None, *, past: Callable[[int], Plans]
    ) -> None:
        bundle = plans.bundle
        self.plans = plans
        self._team = team
        self._subscription = subscription
        self._past = past
        self._since = bundle.since_of(team)
        self._first = bundle.lineage[0].revision if bundle.lineage else bundle.revision
        self._view = None if subscription is None else view_of(plans, team, subscription)
        self._answers: dict[str, ReadDecision] = {}
        self._passages: dict[tuple[int, str, str], _Passage | Withheld] = {}
        self.expiring = _expiring(plans, team)

    def admit(self, verified: Verified, *, now_ms: int) -> Admitted | Withheld:
        """Decide whether the reader may be handed this copy now, whatever it was allowed when the copy was made.

        Args:
            verified: The copy.
            now_ms: Unix milliseconds.

        Raises:
            RevisionNeeded: An older bundle decides; ask again when it is here.
        """
        place, fields = verified.place, verified.fields
        revision = fields.get("policyrevision")
        if type(revision) is not int or revision < self._since:
            return self._then_and_now(verified, revision if type(revision) is int else 0, now_ms)
        if self._view is None and self._subscription is None:
            read = self.plans.reader(self._team, place.type, place.view, now_ms=now_ms)
        elif place.view != self._view:
            return Withheld(OTHER_VIEW, None)
        else:
            read = self._answers.get(place.type) or self._answer(place.type, place.view, now_ms)
        if not read.allowed:
            return Withheld(read.reason, read.rule)
        return _admitted(verified, fields, read.rule)

    def _answer(self, type_: str, view: str, now_ms: int) -> ReadDecision:
        """What the grants of now say about a type; kept where time does not change it."""
        read = self.plans.reader(self._team, type_, view, now_ms=now_ms)
        if read.allowed and read.rule not in self.expiring:
            if len(self._answers) >= MAX_ANSWERS:
                self._answers.clear()
            self._answers[type_] = read
        return read

    # --- then and now ------------------------------------------------------------------------------------------------

    def _then_and_now(self, verified: Verified, revision: int, now_ms: int) -> Admitted | Withheld:
        place, stream_ms = verified.place, verified.received.stream_ms
        key = (revision, place.type, place.view)
        passage = self._passages.get(key)
        if passage is None:
            if not self._first <= revision <= self.plans.bundle.revision:
                return Withheld(UNKNOWN_REVISION, None)
            then = self._past(revision)
            passage = self._passage(then, place.type, place.view, stream_ms, now_ms)
            if not self.expiring and not _expiring(then, self._team):  # else time decides too
                if len(self._passages) >= MAX_ANSWERS:
                    self._passages.clear()
                self._passages[key] = passage
        if isinstance(passage, Withheld):
            return passage
        if not passage.held and (passage.since_ms is None or stream_ms < passage.since_ms):
            return Withheld(NOT_GRANTED_THEN, passage.rule)
        if not passage.bridge.shows(verified.fields):
            return Withheld(ROW_FILTER, passage.rule)
        return _admitted(verified, passage.bridge.tighten(verified.fields), passage.rule)

    def _passage(self, then: Plans, type_: str, copy_view: str, stream_ms: int, now_ms: int) -> _Passage | Withheld:
        """How copies of *type_* in *copy_view*, made under *then*, reach the reader now; why not, where none does."""
        found = self._now(type_, copy_view, now_ms)
        if found is None:
            read = self.plans.reader(self._team, type_, self._view or copy_view, now_ms=now_ms)
            return Withheld(NO_ALLOW if read.allowed else read.reason, read.rule)
        view, grant = found
        had = self._had(then, type_, copy_view, view, stream_ms)
        opens = had is None and copy_view == view
        if copy_view not in then.tenancy.views:
            return Withheld(NOT_GRANTED_THEN, grant.rule)
        bridge = Bridge(then, copy_view, self.plans, view, type_)
        return _Passage(grant.rule, had == copy_view, grant.since_ms if opens else None, bridge)

    def _now(self, type_: str, copy_view: str, now_ms: int) -> tuple[str, ReadGrantNow] | None:
        """The view that the reader has of *type_* now, and by what grant. Among several, that of the copy."""
        views = [self._view] if self._subscription is not None else [copy_view, *self._granted(self.plans, type_)]
        for view in views:
            grant = None if view is None else self.plans.grant(self._team, type_, view, now_ms)
            if view is not None and grant is not None:
                return view, grant
        return None

    def _had(self, then: Plans, type_: str, copy_view: str, view_now: str, stream_ms: int) -> str | None:
        """The view in which the reader had *type_* then: its subscription's, else one the team was granted."""

        def granted(view: str | None) -> bool:
            return view is not None and then.reader(self._team, type_, view, now_ms=stream_ms).allowed

        if self._subscription is not None:
            read = view_of(then, self._team, self._subscription)
            for view in (read, view_now):
                if granted(view):
                    return view
        if granted(copy_view):
            return copy_view
        return next((view for view in self._granted(then, type_) if granted(view)), None)

    def _granted(self, plans: Plans, type_: str) -> list[str]:
        """The views in which some grant of the team shows *type_*, by name."""
        return sorted({rule.view for rule in plans.tenancy.reading(self._team) if rule.covers_type(type_)})


def view_of(plans: Plans, team: str, subscription: str) -> str | None:
    """The view that a subscription reads while it is active, whether its grants have expired or not; None for none."""
    for document in plans.tenancy.subscriptions:
        if (document.metadata.team, document.metadata.name) == (team, subscription):
            return document.spec.view or plans.subscription_view(team, subscription)
    return None


def _expiring(plans: Plans, team: str) -> dict[str | None, int]:
    return {rule.id: rule.expires_ms for rule in plans.tenancy.reading(team) if rule.expires_ms is not None}


def _admitted(verified: Verified, fields: dict[str, Any], rule: str | None) -> Admitted:
    received = verified.received
    return Admitted(
        fields,
        verified.place.view,
        verified.spiffe_id,
        received.stream,
        received.sequence,
        received.stream_ms,
        received.deliveries,
        rule,
        replay=received.replay,
        redrive=received.redrive,
    )
