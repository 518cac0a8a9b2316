"""Lanes, flights and room: how copies become batches, and acknowledgements receipts."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from agent.core import Agent
from agent.lanes import Lane
from agent.outbound import Room
from agent.receipts import CopyReceipt, Flight, Receipt
from mesh.errors import MeshError, Overloaded, SignerExpired, StreamUnavailable
from mesh.jetstream.acks import PubAck
from mesh.jetstream.outgoing import Outgoing
from mesh.journey import Outbound
from mesh.policy.decide import Decision

HOLD_S = 0.002


@dataclass
class Handle:
    """A call that has not happened."""

    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        """As the event loop's."""
        self.cancelled = True


@dataclass
class Clock:
    """Holds calls until a test lets time pass."""

    pending: list[Handle] = field(default_factory=list)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Handle:
        """As the event loop's."""
        assert delay_s == HOLD_S
        handle = Handle(callback)
        self.pending.append(handle)
        return handle

    def pass_time(self) -> None:
        """Let every pending call happen."""
        due, self.pending = self.pending, []
        for handle in due:
            if not handle.cancelled:
                handle.callback()


@dataclass
class Window:
    """What the lane hands over, in order."""

    room: int = 1000
    batches: list[list[Outgoing]] = field(default_factory=list)
    refuses: MeshError | None = None

    def submit(self, batch: Sequence[Outgoing]) -> None:
        """As the publisher's."""
        if self.refuses is not None:
            raise self.refuses
        self.room -= len(batch)
        self.batches.append(list(batch))

    @property
    def sizes(self) -> list[int]:
        """Copies of each batch so far."""
        return [len(batch) for batch in self.batches]


def outgoing(number: int, on_done: Callable[[Outgoing, PubAck | MeshError], None] | None = None) -> Outgoing:
    """One copy."""
    return Outgoing(
        subject="ev.local.clear.s00.crm.contact.v1",
        stream="EV_local_crm",
        body=b"{}",
        source="/crm",
        event_id=f"e-{number}",
        on_done=on_done or (lambda _outgoing, _result: None),
    )


def lane(window: Window, clock: Clock, *, batch: int = 4) -> Lane:
    """A lane with small batches."""
    return Lane(window, clock.call_later, batch=batch, hold_s=HOLD_S)


def fill(target: Lane, count: int, start: int = 0) -> None:
    """Queue copies, then let the lane send."""
    for number in range(start, start + count):
        target.put([outgoing(number)])
    target.pump()


def test_an_idle_lane_sends_at_once() -> None:
    """One copy on an idle lane is a batch of one and waits for nothing."""
    window, clock = Window(), Clock()
    fill(lane(window, clock), 1)
    assert window.sizes == [1]
    assert not clock.pending


def test_a_batch_is_what_queued_meanwhile() -> None:
    """What comes while a batch is in flight goes out together once that is acknowledged, in order."""
    window, clock = Window(), Clock()
    one = lane(window, clock)
    fill(one, 1)
    fill(one, 1, start=1)
    fill(one, 2, start=2)
    assert window.sizes == [1]
    one.in_flight -= 1
    one.pump()
    assert window.sizes == [1, 3]
    assert [o.event_id for o in window.batches[1]] == ["e-1", "e-2", "e-3"]


def test_a_full_batch_does_not_wait() -> None:
    """A full batch goes although another is in flight; the rest of a burst waits for it."""
    window, clock = Window(), Clock()
    one = lane(window, clock)
    fill(one, 11)
    assert window.sizes == [4, 4]
    assert len(one) == 3


def test_nothing_waits_longer_than_the_hold() -> None:
    """Copies behind a stream that does not acknowledge go when the hold ends."""
    window, clock = Window(), Clock()
    one = lane(window, clock)
    fill(one, 1)
    fill(one, 2, start=1)
    assert window.sizes == [1]
    clock.pass_time()
    assert window.sizes == [1, 2]


def test_a_full_window_keeps_the_queue_in_order() -> None:
    """What the window has no room for stays queued, in order, and goes when there is room."""
    window, clock = Window(room=2), Clock()
    one = lane(window, clock)
    fill(one, 5)
    assert window.sizes == [2]
    window.room = 10
    clock.pass_time()
    assert [o.event_id for batch in window.batches for o in batch] == [f"e-{n}" for n in range(5)]


def test_a_window_that_closes_meanwhile_loses_nothing() -> None:
    """A batch that the window refuses for lack of room is back in the queue."""
    window, clock = Window(refuses=Overloaded("full")), Clock()
    one = lane(window, clock)
    fill(one, 3)
    assert (len(one), one.in_flight) == (3, 0)
    window.refuses = None
    clock.pass_time()
    assert [o.event_id for batch in window.batches for o in batch] == ["e-0", "e-1", "e-2"]


def test_a_closed_lane_ends_what_is_queued() -> None:
    """Every copy that waited for the window ends with the reason, and no timer is left."""
    window, clock = Window(room=2), Clock()
    ended: list[tuple[str, object]] = []
    target = lane(window, clock)
    for number in range(5):
        target.put([outgoing(number, lambda one, result: ended.append((one.event_id, result)))])
    target.pump()
    reason = StreamUnavailable("the end")
    target.close(reason)
    assert ended == [(f"e-{number}", reason) for number in (2, 3, 4)]
    assert len(target) == 0
    assert all(handle.cancelled for handle in clock.pending)


def test_a_batch_that_cannot_be_sealed_is_given_up() -> None:
    """Where the publisher refuses a batch for good, each of its copies hears why."""
    window, clock = Window(refuses=SignerExpired("ended")), Clock()
    one = lane(window, clock)
    heard: list[object] = []

    def hear(_outgoing: Outgoing, result: object) -> None:
        heard.append(result)
        one.in_flight -= 1

    one.put([outgoing(0, hear)])
    one.pump()
    assert [type(result) for result in heard] == [SignerExpired]
    assert (len(one), one.in_flight) == (0, 0)


# --- flights ---------------------------------------------------------------------------------------------------------


def decided(event_id: str, *views: str) -> Outbound:
    """An event that is allowed, with a copy for each view."""
    copies = [
        Outgoing(
            view=view,
            subject=f"ev.local.{view}.s00.crm.contact.v1",
            stream="EV_local_crm",
            body=b"{}",
            source="/crm",
            event_id=event_id,
            type="crm.contact.v1",
            traceparent=None,
        )
        for view in views
    ]
    return Outbound(event_id, Decision(allowed=True, rule="r", reason="rule"), copies)


class Landing:
    """A flight and what it said."""

    def __init__(self, *events: Outbound) -> None:
        self.landings: list[Flight] = []
        self.views: list[tuple[str, int, int]] = []
        self.voids: list[tuple[str, PubAck | None]] = []
        self.flight = Flight(
            events,
            on_copies=lambda view, count, durable: self.views.append((view, count, durable)),
            on_landed=self.landings.append,
            on_void=lambda outgoing, ack: self.voids.append((outgoing.event_id, ack)),
        )
        self.outgoing = list(self.flight.outgoing)

    def answer(self, *results: PubAck | MeshError) -> None:
        """Answer the copies in order."""
        for one, result in zip(self.outgoing, results, strict=True):
            one.on_done(one, result)


def ack(sequence: int, *, duplicate: bool = False) -> PubAck:
    """A stream's answer."""
    return PubAck(stream="EV_local_crm", sequence=sequence, duplicate=duplicate)


def test_an_event_lands_with_its_last_copy() -> None:
    """The receipt names every copy, and comes only when all are acknowledged."""
    landing = Landing(decided("e", "clear", "service"))
    first, last = landing.outgoing
    first.on_done(first, ack(1))
    assert landing.landings == []
    last.on_done(last, ack(2))
    assert landing.landings == [landing.flight]
    copies = [CopyReceipt("clear", "EV_local_crm", 1), CopyReceipt("service", "EV_local_crm", 2)]
    assert landing.flight.receipts() == [Receipt("e", "stream", duplicate=False, copies=copies)]


@pytest.mark.parametrize(("first", "second", "duplicate"), [(True, True, True), (True, False, False)])
def test_a_duplicate_is_an_event_that_was_there_whole(first: bool, second: bool, duplicate: bool) -> None:
    """`duplicate` says that every copy was stored before; where one was missing, something new was stored."""
    landing = Landing(decided("e", "clear", "service"))
    landing.answer(ack(1, duplicate=first), ack(2, duplicate=second))
    assert landing.flight.receipts()[0].duplicate is duplicate


def test_an_event_that_nobody_reads_has_no_copies() -> None:
    """An allowed event without a reader is accepted with no copies, and is no duplicate."""
    landing = Landing(decided("e"))
    assert landing.flight.waiting == 0
    assert landing.flight.receipts() == [Receipt("e", "stream", duplicate=False, copies=[])]
    assert landing.flight.unread == 1


def test_one_copy_missing_fails_the_event() -> None:
    """Where one copy is given up the event has no receipt, and the error asks for the same event again."""
    landing = Landing(decided("e", "clear", "service"))
    landing.answer(ack(1), StreamUnavailable("no acknowledgement", stream="EV_local_crm"))
    with pytest.raises(StreamUnavailable) as caught:
        landing.flight.receipts()
    assert "same ids" in caught.value.next
    assert "failed" not in caught.value.details
    assert landing.flight.undurable == 1


def test_a_batch_that_is_durable_in_part_says_which() -> None:
    """Of a batch, `failed` lists the events to send again by index, and `accepted` counts the others."""
    landing = Landing(decided("a", "clear"), decided("b", "clear"), decided("c", "clear"))
    cause = StreamUnavailable("no acknowledgement")
    landing.answer(ack(1), cause, ack(2))
    with pytest.raises(StreamUnavailable) as caught:
        landing.flight.receipts()
    assert caught.value is not cause
    assert caught.value.details == {"accepted": 2, "failed": [1]}
    assert landing.views == [("clear", 1, 1), ("clear", 1, 0), ("clear", 1, 1)]


def test_copies_that_are_stored_together_are_told_together() -> None:
    """Acks that come together land a flight as each would have by itself, and are counted in one go."""
    landing = Landing(decided("a", "clear"), decided("b", "clear"), decided("c", "clear"))
    first, *others = landing.outgoing
    assert others[0].together is not None
    others[0].together.stored(others, [8, 9])
    assert landing.landings == []
    first.on_done(first, ack(7))
    assert landing.landings == [landing.flight]
    assert [receipt.copies[0].seq for receipt in landing.flight.receipts()] == [7, 8, 9]
    assert landing.views == [("clear", 2, 2), ("clear", 1, 1)]


def test_what_failed_is_let_go_of() -> None:
    """A flight that was refused goes with its caller, bodies and all: no collector looks for its copies."""

    def refused() -> weakref.ref[Callable[[Flight], None]]:
        def landed(flight: Flight) -> None:
            assert flight.undurable == 2

        events = decided("a", "clear"), decided("b", "clear")
        one = lane(Window(refuses=SignerExpired("ended")), Clock())
        flight = Flight(events, on_landed=landed, on_copies=lambda *_: None, on_void=lambda *_: None)
        one.put(flight.outgoing)
        flight.outgoing = []
        one.pump()
        assert not flight.waiting
        return weakref.ref(landed)

    assert refused()() is None


def test_a_list_of_bytes_is_the_callers_again() -> None:
    """Whoever fills its list with the next events, while these are published, changes nothing about these."""
    given = [b"{}"] * 3

    class Embedded:
        settings = SimpleNamespace(max_batch_events=3)

        def check_open(self) -> None:
            """It is open."""

        async def publish_drafts(self, events: list[bytes]) -> list[bytes]:
            given.clear()
            return events

    agent: Any = Embedded()
    published: list[Any] = asyncio.run(Agent.publish_many(agent, given))
    assert published == [b"{}"] * 3


# --- room ------------------------------------------------------------------------------------------------------------


def room(limit: int = 4, wait_s: float = 30) -> Room:
    """Room for a few."""
    return Room(limit, wait_s=wait_s, unit="events")


def run(work: Any) -> None:
    """Run *work* on a loop of its own."""
    asyncio.run(work)


def test_room_is_given_in_the_order_of_asking() -> None:
    """Who asks for much is not overtaken by those who ask for little after."""

    async def work() -> None:
        held = room()
        await held.enter(3)
        order: list[str] = []

        async def ask(name: str, amount: int) -> None:
            await held.enter(amount)
            order.append(name)

        tasks = [asyncio.create_task(ask("much", 4)), asyncio.create_task(ask("little", 1))]
        await asyncio.sleep(0)
        assert held.free == 0
        held.leave(3)
        await tasks[0]
        assert order == ["much"]
        held.leave(4)
        await tasks[1]
        assert (order, held.used) == (["much", "little"], 1)

    run(work())


def test_no_room_in_time_is_overload() -> None:
    """Who waited too long is told both numbers, and leaves the line to the next."""

    async def work() -> None:
        held = room(wait_s=0)
        await held.enter(4)
        with pytest.raises(Overloaded) as caught:
            await held.enter(1)
        assert "limit 4" in caught.value.message
        held.leave(4)
        await held.enter(4)

    run(work())


def test_a_caller_who_goes_away_leaves_the_line() -> None:
    """A cancelled wait takes nothing, and those behind go on."""

    async def work() -> None:
        held = room()
        await held.enter(4)
        gone, next_one = asyncio.create_task(held.enter(4)), asyncio.create_task(held.enter(1))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        held.leave(4)
        await next_one
        assert held.used == 1

    run(work())
