"""From accepted drafts to receipts: admit, decide, mask, queue in lanes, publish, collect.

A request is decided whole before any copy of it goes out: one denied event refuses them all, and says which. Memory is
bounded twice, in events and in bytes; a caller who finds no room waits a moment, then gets `overloaded`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agent import metrics
from agent.keys import clock_ms
from agent.lanes import Lane
from agent.rates import SourceRates
from agent.receipts import Flight
from agent.room import Room
from mesh import audit, journey
from mesh.errors import Denied, EventExpired, InputError, NoBundle, NoDomainKey, TooLarge
from mesh.event import Limits, draft_from_structured, fields_from_structured, refuse_expired
from mesh.jetstream.topology import EVENT_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.keys import Keys
    from agent.lanes import Window
    from agent.receipts import Receipt
    from agent.sequences import Sequences
    from agent.settings import AgentSettings
    from agent.shadow import ShadowRun
    from agent.spool.spool import Spool
    from mesh.audit_log import AuditLog
    from mesh.errors import MeshError
    from mesh.event import Draft
    from mesh.jetstream.outgoing import Outgoing
    from mesh.policy.compile import Plans
    from mesh.policy.decide import PublisherPlans
    from mesh.telemetry import Cell

__all__ = ["MAX_COPY_BYTES", "Outbound", "Room"]

MAX_COPY_BYTES = EVENT_MESSAGE_BYTES - 4096  # what a stream takes, less our headers; masks can make an event longer
_DECIDED_AT_ONCE = 64  # events, about 1 ms: other requests get their turn between
_COMPARED_AT_ONCE = 16  # events compared with a candidate, about 1 ms


class Outbound:
    """Publishes drafts as the policies in force say.

    Args:
        settings: Window sizes and deadlines.
        keys: What masks and message ids are keyed with.
        window: The publisher.
        sequences: Numbers what sets out.
        spool: Where copies go whose stream is away; None for nowhere. The window, where there is one.
        audit: Where refusals are recorded.
        shadow: Compares a candidate bundle with the one in force; it changes nothing.
    """

    def __init__(
        self,
        settings: AgentSettings,
        keys: Keys,
        window: Window,
        sequences: Sequences,
        *,
        spool: Spool | None = None,
        audit: AuditLog | None = None,
        shadow: ShadowRun | None = None,
    ) -> None:
        self._settings = settings
        self._sequences = sequences
        self._limits = limits_of(settings)
        self._rates = SourceRates(settings.source_rate_per_s, settings.source_burst)
        self._keys = keys
        self._window = window
        self._spool = spool
        self._audit = audit
        self._shadow = shadow
        self._lanes: dict[str, Lane] = {}
        self._published: dict[str, Cell] = {}
        self._call_later = asyncio.get_running_loop().call_later
        self._plans: PublisherPlans | None = None
        self._way: journey.Departures | None = None
        self._turn = asyncio.Lock()  # large requests decided side by side set out at one moment, and then all wait
        self._revision = 0
        self._pumping = False
        self._closed: MeshError | None = None
        self._landed = asyncio.Event()
        self.domains: tuple[str, ...] = ()  # pseudonym domains that the bundle has us mask in
        self.ciphers: tuple[str, ...] = ()  # cipher keys that it has us encrypt with
        self.room = Room(settings.max_waiting_events, wait_s=settings.admit_wait_s, unit="events")

    @property
    def revision(self) -> int:
        """The revision of the bundle in force; 0 before the first."""
        return self._revision

    def decides_at_once(self, count: int) -> bool:
        """Whether so many events would be decided without waiting for others: then nobody has to read them before."""
        return count <= self.room.free and (count <= _DECIDED_AT_ONCE or not self._turn.locked())

    async def idle(self) -> None:
        """Wait until everything accepted has landed."""
        while self.room.used:
            self._landed.clear()
            await self._landed.wait()

    def close(self, error: MeshError) -> None:
        """End every `publish` that waits for a lane with *error*, and so those to come. Close the window after this."""
        self._closed = error
        for lane in self._lanes.values():
            lane.close(error)

    def adopt(self, plans: Plans) -> None:
        """Decide by *plans* from now on; what is decided already goes out as it is."""
        name = self._settings.name
        self._plans = plans.publisher(name)
        self._revision = plans.bundle.revision
        if self._shadow is not None:
            self._shadow.in_force(plans)
        grants = plans.agent_grants(name, now_ms=clock_ms())
        self.domains = grants.domains if grants is not None else ()
        self.ciphers = grants.ciphers if grants is not None else ()

    async def publish(self, events: Sequence[Draft | bytes]) -> list[Receipt]:
        """Publish *events*; returns when every copy of every one is durable.

        Args:
            events: Accepted ones, or the bytes of structured ones, which are read one by one as they are decided: so
                each is still near the processor when it is masked, and none waits in memory for its acknowledgement.
                What cannot be read is told before what is refused, wherever it stands: as for drafts.

        Raises:
            InputError: One of the bytes is no event, `index` says which; nothing was published.
            RateLimited: A source of theirs sends too fast.
            NoBundle: No valid bundle has arrived yet.
            Overloaded: No room in time.
            SpoolFull: A stream is away, and the spool has no room for all of them; nothing was published.
            EventExpired: One of them is past its `expirytime`; nothing was published.
            Denied: Policy refuses one of them, `index` says which; nothing was published.
            NoDomainKey: One of them is masked in a domain whose key we lack; nothing was published.
            Unavailable: Some copy is not durable, or `close` came first.
        """
        if self._rates.limited or (self._shadow is not None and self._shadow.running):
            events = self._read(events)
        count = len(events)
        self._rates.take(events)
        try:
            decided = await self._admit(events)
        except BaseException:
            self._rates.give_back(events)
            raise
        landed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def land(_: Flight) -> None:
            self.room.leave(count)
            self._landed.set()
            if not landed.done():  # the caller may have gone; its events are stored all the same
                landed.set_result(None)

        flight = Flight(decided, on_copies=self._copies_done, on_landed=land, on_void=self._sequences.void)
        self._sequences.stamp(flight.outgoing)  # no await from here to the lanes: numbers rise along each stream
        if not flight.waiting:
            land(flight)
        del decided  # the copies are the flight's now: few things live as long as an acknowledgement takes
        self._launch(flight)
        if self._shadow is not None and self._shadow.running:
            await self._compare(events, self._shadow)
        await landed
        metrics.landed(flight)
        return flight.receipts()

    def _read(self, events: Sequence[Draft | bytes], first: int = 0) -> list[Draft]:
        """*events* from the *first* on as drafts, for who has to look at them more than once, or before others."""
        drafts, now_ms = [], clock_ms()
        for event in events[first:]:
            try:
                drafts.append(
                    draft_from_structured(event, now_ms=now_ms, limits=self._limits)
                    if isinstance(event, bytes)
                    else event
                )
            except InputError as error:
                error.details["index"] = first + len(drafts)
                raise
        return drafts

    async def _admit(self, events: Sequence[Draft | bytes]) -> list[journey.Outbound]:
        """Decide *events* and keep room for them; after an error there is room for others."""
        await self.room.enter(len(events))
        try:
            decided = await self._decide(events)
            if self._closed is not None:
                raise self._closed
            if self._spool is not None:
                self._spool.check_room(decided)
        except BaseException:
            self.room.leave(len(events))
            raise
        return decided

    async def _decide(self, events: Sequence[Draft | bytes]) -> list[journey.Outbound]:
        decided: list[journey.Outbound] = []
        if len(events) <= _DECIDED_AT_ONCE:
            self._decide_some(events, *self._in_force(), decided)
            return decided
        async with self._turn:
            plans, revision = self._in_force()  # one bundle for the whole request
            while len(decided) < len(events):
                if decided:
                    await asyncio.sleep(0)
                self._decide_some(events, plans, revision, decided)
        return decided

    def _in_force(self) -> tuple[PublisherPlans, int]:
        if self._plans is None:
            raise no_bundle()
        return self._plans, self._revision

    def _decide_some(
        self, events: Sequence[Draft | bytes], plans: PublisherPlans, revision: int, decided: list[journey.Outbound]
    ) -> None:
        """Append to *decided* what becomes of the next ones of *events*, which are a request."""
        way, now_ms, limits = self._departures(plans, revision), clock_ms(), self._limits
        done = len(decided)
        for event in events[done : done + _DECIDED_AT_ONCE]:
            fields: dict[str, Any] = {}
            made: journey.Outbound | None = None
            try:
                if isinstance(event, bytes):
                    made = way.of_text(event, now_ms, limits)
                if made is None:
                    fields = fields_from_structured(event, now_ms, limits) if isinstance(event, bytes) else event.fields
                    if "expirytime" in fields:
                        refuse_expired(fields, now_ms)
                    made = way.of(fields, now_ms)
                for copy in made.copies:
                    if len(copy.body) > MAX_COPY_BYTES:
                        raise _too_large(copy)
            except (Denied, EventExpired, NoDomainKey, InputError) as error:
                if fields or made:  # it could be read; what cannot be is told before what is refused, wherever it is
                    self._read(events, len(decided) + 1)
                if isinstance(error, Denied):
                    self._refused(fields, error, revision)
                if decided or len(events) > 1 or not (fields or made):  # neither: it could not be read
                    error.details["index"] = len(decided)
                raise
            decided.append(made)

    def _departures(self, plans: PublisherPlans, revision: int) -> journey.Departures:
        """The way out under *plans*, with the keys that are held now."""
        known, masks = self._way, self._keys.masks
        if known is None or known.plans is not plans or known.keys is not masks:
            s = self._settings
            known = self._way = journey.Departures(
                plans, masks, site=s.site, tenant=s.tenant, revision=revision, dedupe_key=self._keys.dedupe
            )
        return known

    def _refused(self, fields: Mapping[str, Any], error: Denied, revision: int) -> None:
        """Record that an event was refused; the log makes one record a second of a flood, which counts them all."""
        if self._audit is not None:
            self._audit.write(
                audit.DENIED,
                event=fields["id"],
                type=fields["type"],
                source=fields["source"],
                principal=self._settings.name,
                reason=error.details.get("reason"),
                rule=error.details.get("rule"),
                revision=revision,
            )
        if self._shadow is not None:
            self._shadow.compare(fields, clock_ms())

    @staticmethod
    async def _compare(events: Sequence[Draft | bytes], shadow: ShadowRun) -> None:
        """Show a candidate what was published, while the acknowledgements are on their way."""
        now_ms = clock_ms()
        for index, event in enumerate(events):
            if index and index % _COMPARED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if not isinstance(event, bytes):  # else the candidate came after they were read: the next ones will do
                shadow.compare(event.fields, now_ms)

    def _launch(self, flight: Flight) -> None:
        outgoing, flight.outgoing = flight.outgoing, []
        views: dict[str, list[Outgoing]] = {}
        for copy in outgoing:
            views.setdefault(copy.view, []).append(copy)
        for view, copies in views.items():
            self._lane(view).put(copies)
        for view in views:
            self._lanes[view].pump()

    def _lane(self, view: str) -> Lane:
        lane = self._lanes.get(view)
        if lane is None:
            s = self._settings
            lane = Lane(self._window, self._call_later, batch=s.batch_events, hold_s=s.batch_hold_s)
            self._lanes[view] = lane
            self._published[view] = metrics.PUBLISHED.at(view=view)
        return lane

    def _copies_done(self, view: str, count: int, durable: int) -> None:
        self._lanes[view].in_flight -= count
        self._published[view].value += durable
        if not self._pumping:  # once a turn of the loop, however many acknowledgements came in it
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        for lane in self._lanes.values():
            if lane:
                lane.pump()


def limits_of(settings: AgentSettings) -> Limits:
    """What is too large for an agent with *settings*."""
    return Limits(
        max_event_bytes=settings.max_event_bytes,
        max_depth=settings.max_depth,
        max_batch_events=settings.max_batch_events,
        max_batch_bytes=settings.max_batch_bytes,
        max_headers=settings.max_headers,
    )


def no_bundle() -> NoBundle:
    """What a caller is told before the first bundle."""
    return NoBundle(
        "no valid policy bundle has arrived yet, and so nothing is allowed",
        expected="a bundle from the control plane",
        next="send the same again; if it stays so, `mesh status` shows whether the control plane runs",
    )


def _too_large(copy: Outgoing) -> TooLarge:
    return TooLarge(
        f"the event has {len(copy.body)} bytes once masked for the view {copy.view}, limit {MAX_COPY_BYTES}",
        expected=f"at most {MAX_COPY_BYTES} bytes in every view",
        got=f"{len(copy.body)} bytes",
        next="send fewer values that are masked as pseudonyms, which are longer than what they replace",
        limit=MAX_COPY_BYTES,
        size=len(copy.body),
    )
