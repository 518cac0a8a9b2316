"""One replica of an ordered subscription: retries, stuck keys, links that end, and handing over in order."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mesh import slot as slot_module
from mesh.delivery import Reject
from mesh.inbound import Admitted
from mesh.jetstream.topology import PIN_GROUP
from mesh.jetstream.wire import publish_frame
from mesh.ordered import OrderedFeed
from mesh.slots import Slots
from mesh.subscription import Subscription
from tests.contract.agent_mesh import until
from tests.contract.consumer_mesh import Reader
from tests.contract.ordered_mesh import ACK_WAIT_S, ORDERED, OrderedSource, slot_of
from tests.stalls import Stalls, undisturbed

pytestmark = pytest.mark.anyio

SAME_SLOT = [key for key in map(str, range(200)) if slot_of(key) == 3][:4]
FIRST, SECOND, *_ = SAME_SLOT


class Desk:
    """What a handler was called with, by key, and what it does."""

    def __init__(self, how: Callable[[str, int, int], Awaitable[None]] | None = None) -> None:
        self.calls: dict[str, list[int]] = defaultdict(list)
        self.events: list[Admitted] = []
        self._how = how

    async def handle(self, event: Admitted) -> None:
        """Write it down, then behave as told: by key, number and how often it was called with it."""
        key, number = event.fields["partitionkey"], int(event.data["country"])
        self.calls[key].append(number)
        self.events.append(event)
        if self._how is not None:
            await self._how(key, number, self.calls[key].count(number))


def numbered(key: str, *numbers: int) -> list[tuple[str, int]]:
    """Events of one key."""
    return [(key, number) for number in numbers]


def slots_of(reading: Subscription) -> Slots:
    """Of its feed."""
    assert isinstance(reading.feed, OrderedFeed)
    return reading.feed.slots


@asynccontextmanager
async def running(source: OrderedSource, desk: Desk, **options: Any) -> AsyncIterator[tuple[Reader, Subscription]]:
    """The subscription in this process."""
    async with (
        source.reader() as reader,
        reader.subscription(**options) as reading,
        anyio.create_task_group() as group,
    ):
        group.start_soon(reading.run, desk.handle)
        yield reader, reading
        group.cancel_scope.cancel()


async def test_a_key_waits_for_its_retries_and_others_do_not(tmp_path: Path) -> None:
    """A failing event is tried again before the next of its key; a rejected one does not hold its key up."""

    async def how(key: str, number: int, call: int) -> None:
        if (key, number) == (FIRST, 1) and call < 3:
            raise ValueError("not yet")
        if (key, number) == (FIRST, 2):
            raise Reject("never")

    desk = Desk(how)
    async with OrderedSource.ordered(tmp_path) as source:
        await source.publish_keys(numbered(FIRST, 1, 2, 3) + numbered(SECOND, 1, 2))
        async with running(source, desk):
            await until(lambda: desk.calls[FIRST][-1:] == [3])
            assert desk.calls == {FIRST: [1, 1, 1, 2, 3], SECOND: [1, 2]}
            assert [event.attempt for event in desk.events if event.fields["partitionkey"] == FIRST][:3] == [1, 2, 3]
            await until_settled(source)
        assert [reason for reason, _ in await source.buried()] == ["never"]


async def until_settled(source: OrderedSource) -> None:
    """Wait until nothing is outstanding."""
    with anyio.fail_after(60):
        while await source.outstanding():
            await anyio.sleep(0.05)


async def test_what_a_stuck_key_piles_up_leaves_room_for_others(tmp_path: Path) -> None:
    """Far more events of a stuck key than may be in flight: another key of its slot goes on, then it does, in order."""
    open_ = anyio.Event()

    async def how(key: str, _number: int, _call: int) -> None:
        if key == FIRST:
            await open_.wait()

    desk, pile = Desk(how), list(range(1, 201))
    async with OrderedSource.ordered(tmp_path) as source:
        await source.publish_keys(numbered(FIRST, *pile))
        async with running(source, desk, max_in_flight=8):
            await until(lambda: desk.calls[FIRST])
            await source.publish_keys(numbered(SECOND, *range(1, 21)))
            await until(lambda: len(desk.calls[SECOND]) == 20)
            assert desk.calls[FIRST] == [1]
            open_.set()
            await until(lambda: desk.calls[FIRST][-1] == len(pile))
            await until_settled(source)
    assert desk.calls == {FIRST: pile, SECOND: list(range(1, 21))}


async def test_what_is_laid_aside_comes_back_whatever_is_behind_it(tmp_path: Path) -> None:
    """Bodies behind it could take all the room there is, and wait for it: then no key would ever move again."""
    desk = Desk()
    async with OrderedSource.ordered(tmp_path) as source, running(source, desk, max_in_flight=8) as (_, reading):
        await source.publish_keys(numbered(FIRST, 1))
        await until(lambda: desk.events)
        (slot,) = [slot for slot in slots_of(reading).all() if slot.place[1].endswith("s03")]
        slot._wait(1e6)
        await until(lambda: slot.resting)
        await source.publish_keys([(key, number) for number in range(2, 12) for key in SAME_SLOT])
        await until(lambda: len(slot._order) >= 4)
        for entry in slot._order.lay_all_aside():  # as when a pin is lost
            slot.lay_aside(entry.reply)
        slot._open_at = time.monotonic()
        await until_settled(source)
    assert desk.calls == {key: list(range(2 - (key == FIRST), 12)) for key in SAME_SLOT}


async def test_what_is_laid_aside_may_be_settled_by_somebody_else(tmp_path: Path) -> None:
    """A handler of whoever had the pin before acks it late: asked back, it never comes, and its key goes on."""
    desk = Desk()
    async with OrderedSource.ordered(tmp_path) as source, running(source, desk) as (_, reading):
        await source.publish_keys(numbered(FIRST, 1))
        await until(lambda: desk.calls[FIRST] == [1])
        (slot,) = [slot for slot in slots_of(reading).all() if slot.place[1].endswith("s03")]
        slot._wait(1e6)
        await source.publish_keys(numbered(FIRST, 2, 3, 4))
        await until(lambda: len(slot._order) == 3)
        second, *rest = slot._order.lay_all_aside()[::-1]
        source.streams.connection.write(publish_frame(second.reply, b"+ACK"))
        await source.streams.connection.flush(5)
        for entry in (second, *rest):
            slot.lay_aside(entry.reply)
        slot._open_at = time.monotonic()
        await until(lambda: desk.calls[FIRST] == [1, 3, 4])
        await until_settled(source)


async def test_what_got_lost_with_its_link_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries that never arrived come again late; nothing behind them is handed out before they do."""
    desk = Desk()
    async with OrderedSource.ordered(tmp_path) as source, running(source, desk) as (reader, reading):
        await source.publish_keys(numbered(FIRST, 1))
        await until(lambda: desk.calls[FIRST] == [1])
        (slot,) = [slot for slot in slots_of(reading).all() if slot.place[1].endswith("s03")]
        listener, lost = slot._listener, list[str]()
        assert listener is not None
        monkeypatch.setattr(listener, "callback", lambda _subject, reply, *_rest: lost.append(reply))
        await source.publish_keys(numbered(FIRST, 2, 3))
        await until(lambda: len([reply for reply in lost if reply]) == 2)
        await reader.connection.rebuild()
        await until(lambda: reader.connection.connected)
        await source.publish_keys(numbered(FIRST, 4))
        await until(lambda: len(desk.calls[FIRST]) == 4)
    assert desk.calls == {FIRST: [1, 2, 3, 4]}


async def test_a_handler_that_outlives_a_take_over_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event comes again and is the first of its key, so that no later one is handled beside it."""
    monkeypatch.setattr(slot_module, "PIN_TIMEOUT_S", 0.0)  # nobody else believes in the pin
    monkeypatch.setattr("mesh.feed.IN_FLIGHT_RETRY_S", 0.1)
    opened, busy, beside = anyio.Event(), set[int](), list[int]()

    async def how(_key: str, number: int, _call: int) -> None:
        beside.extend(busy)
        busy.add(number)
        if number == 1:
            await opened.wait()
        busy.discard(number)

    desk, policies = Desk(how), ORDERED.replace(f"ack_wait: {ACK_WAIT_S:g}s", "ack_wait: 1s")
    async with (
        OrderedSource.ordered(tmp_path, policies=policies) as source,
        running(source, desk) as (_, reading),
    ):
        await source.publish_keys(numbered(FIRST, 1, 2))
        await until(lambda: desk.calls[FIRST] == [1])
        (slot,) = [slot for slot in slots_of(reading).all() if slot.place[1].endswith("s03")]
        await until(lambda: len(slot._order) == 2)
        before = slot._order
        await source.streams.connection.request(
            f"$JS.API.CONSUMER.UNPIN.{slot.place[0]}.{slot.place[1]}", b'{"group":"%b"}' % PIN_GROUP.encode()
        )
        slot._last -= 1  # as if a delivery had been lost with the pin
        await source.publish_keys(numbered(FIRST, 3))
        await until(lambda: (slot._order is not before and slot.settled_in and len(slot._order) == 3) or beside)
        opened.set()
        await until_settled(source)
    assert (desk.calls[FIRST], beside) == ([1, 2, 3], [])


async def test_a_slot_is_handed_over_in_order_and_without_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the one that leaves had not handled comes to the next, in order; whoever waited would wait for ever here."""
    monkeypatch.setattr(slot_module, "SLACK_S", 1e6)

    async def hold(_key: str, _number: int, _call: int) -> None:
        await anyio.sleep_forever()

    leaves, stays, over = Desk(hold), Desk(), anyio.Event()
    share: list[Subscription] = []

    async def stay(source: OrderedSource) -> None:
        async with running(source, stays) as (_, reading):
            share.append(reading)
            await over.wait()

    async with OrderedSource.ordered(tmp_path) as source, anyio.create_task_group() as group:
        await source.publish_keys(numbered(FIRST, *range(1, 41)))
        async with running(source, leaves, max_in_flight=8):
            await until(lambda: leaves.calls[FIRST] == [1])
            group.start_soon(stay, source)
            await until(lambda: share and len(slots_of(share[0]).all()) >= 7)  # they know of each other
        await until(lambda: stays.calls[FIRST][-1:] == [40])
        await until_settled(source)
        over.set()
    assert stays.calls[FIRST] == list(range(1, 41))


async def test_a_replay_is_in_order_too(tmp_path: Path) -> None:
    """Through a durable of its own, marked, up to its end, without touching what is live."""

    async def scenario(stalls: Stalls) -> None:
        desk, directory = Desk(), tmp_path / secrets.token_hex(4)
        async with (
            OrderedSource.ordered(directory) as source,
            running(source, desk),
            stalls.watched(source.streams.connection),
        ):
            await source.publish_keys([(key, number) for number in range(1, 11) for key in SAME_SLOT])
            await until(lambda: len(desk.events) == 40)
            await source.publish_keys(numbered(FIRST, 11))
            await until(lambda: len(desk.events) == 41)
            stream = await source.replay()
            with anyio.fail_after(60):
                while len(desk.events) < 81:
                    await source.notice("replay", "r1", stream, **{stream: 40})
                    await anyio.sleep(0.1)
            await until_settled(source)
        replayed = [event for event in desk.events if event.replay == "r1"]
        assert desk.events[41:] == replayed
        for key in SAME_SLOT:
            assert [int(e.data["country"]) for e in replayed if e.fields["partitionkey"] == key] == list(range(1, 11))

    await undisturbed(ACK_WAIT_S / 4, scenario)  # a replay hands out again what its ack was late for


async def test_another_ack_wait_is_kept_while_it_runs(tmp_path: Path) -> None:
    """What waits behind its key is signalled as often as the policies of now take, without beginning anew."""
    opened = anyio.Event()

    async def how(_key: str, _number: int, _call: int) -> None:
        await opened.wait()

    desk, rare = Desk(how), f"ack_wait: {ACK_WAIT_S:g}s"
    async with OrderedSource.ordered(tmp_path, policies=ORDERED.replace(rare, "ack_wait: 5s")) as source:
        signals: list[str] = []  # sequences

        def on_ack(subject: str, _reply: str, _headers: bytes | None, data: bytes) -> None:
            if data == b"+WPI":
                signals.append(subject.split(".")[5])

        listener = source.streams.connection.listen("$JS.ACK.>", on_ack)
        await source.publish_keys(numbered(FIRST, 1, 2))
        async with running(source, desk) as (_, reading):
            feed = reading.feed
            await until(lambda: feed.pending == 2)
            await source.streams.hand_out(policies=ORDERED.replace(rare, "ack_wait: 250ms"))
            await until(lambda: signals.count("2") >= 25)  # it would take 48 s with the ack_wait of before
            assert reading.feed is feed
            opened.set()
            await until_settled(source)
        listener.close()
    assert desk.calls[FIRST] == [1, 2]


async def test_who_waits_to_take_over_waits_as_long_as_policies_say_by_then(tmp_path: Path) -> None:
    """What the last holder had in hand comes again by the ack_wait of now; a slot that is open stays so."""
    desk = Desk()
    async with OrderedSource.ordered(tmp_path) as source, running(source, desk) as (_, reading):
        await source.publish_keys(numbered(FIRST, 1))
        await until(lambda: desk.calls[FIRST] == [1])
        (slot,) = [slot for slot in slots_of(reading).all() if slot.place[1].endswith("s03")]
        opened = slot._open_at
        slot.pace(60)
        assert slot._open_at == opened
        slot._open_at = time.monotonic() + 1e6
        before = time.monotonic()
        slot.pace(90)
        assert before <= slot._open_at - slot._taking_over_s <= time.monotonic()


async def test_a_subscription_that_becomes_ordered_goes_on(tmp_path: Path) -> None:
    """While it runs: the events in between come by the other durables, and nothing is lost."""
    desk = Desk()
    plain = ORDERED.replace("  order_by: partitionkey\n", "")
    async with OrderedSource.ordered(tmp_path, policies=plain) as source, running(source, desk) as (_, reading):
        await source.publish_keys(numbered(FIRST, 1, 2))
        await until(lambda: len(desk.events) == 2)
        assert not isinstance(reading.feed, OrderedFeed)
        await source.streams.hand_out(policies=ORDERED)
        await source.durable()
        await until(lambda: isinstance(reading.feed, OrderedFeed))
        await source.publish_keys(numbered(FIRST, 3, 4))
        await until(lambda: set(desk.calls[FIRST]) == {1, 2, 3, 4})
        desk.calls.clear()
        await source.publish_keys(numbered(FIRST, 5, 6, 7))
        await until(lambda: desk.calls[FIRST] == [5, 6, 7])
