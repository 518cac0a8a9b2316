"""A durable that one client at a time pulls: how its pin is got, kept, handed over and lost. What `slot` builds on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest

from mesh.control.nats_server import NatsServer
from mesh.errors import RequestFailed
from mesh.jetstream import manage, pinned, wire
from mesh.jetstream.connection import Connection
from mesh.jetstream.pinned import PinnedPuller
from mesh.jetstream.topology import PIN_GROUP
from mesh.signing import Received
from tests.contract.streams import DEADLINE_S, STREAM, consumer, make_durable, make_stream, until
from tests.stalls import Stalls, undisturbed

pytestmark = pytest.mark.anyio

DURABLE = "team--sub--s00"
SHORT_S = 2.0  # of a pin that is to lapse
LONG_S = 60.0  # of one that no busy machine lets lapse


@pytest.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    """One that may do everything."""
    opened = await Connection.open(nats_server.url, name="control")
    yield opened
    await opened.close()


@pytest.fixture
async def control(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> Connection:
    """The same, with a durable whose pin lasts long."""
    await make_pinned(connection, LONG_S, monkeypatch)
    return connection


async def make_pinned(connection: Connection, pin_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stream and durable, with a pin that lasts for *pin_s*, as its holder's clock has it, too."""
    monkeypatch.setattr(pinned, "PIN_TIMEOUT_S", pin_s)
    await make_stream(connection)
    pinned_config: dict[str, Any] = {"priority_groups": [PIN_GROUP], "priority_policy": "pinned_client"}
    await make_durable(connection, DURABLE, **pinned_config, priority_timeout=int(pin_s * 1e9))


class Holder:
    """Wants the pin."""

    def __init__(self, connection: Connection, *, pin: str = "", max_in_flight: int = 100) -> None:
        self.events: list[Received] = []
        self.gaps: list[int] = []
        self.puller = PinnedPuller(
            connection,
            stream=STREAM,
            durable=DURABLE,
            on_event=self.events.append,
            on_gap=self.gaps.append,
            max_in_flight=max_in_flight,
            pin=pin,
        )

    @property
    def bodies(self) -> list[int]:
        """What came."""
        return [int(event.body) for event in self.events]


@asynccontextmanager
async def holder_at(url: str, *, pin: str = "", max_in_flight: int = 100) -> AsyncIterator[Holder]:
    """One that pulls, with a connection of its own."""
    connection = await Connection.open(url, name="team")
    holder = Holder(connection, pin=pin, max_in_flight=max_in_flight)
    running = asyncio.create_task(holder.puller.run())
    try:
        yield holder
    finally:
        running.cancel()
        await asyncio.wait([running])
        await connection.close()


async def publish(connection: Connection, *numbers: int) -> None:
    """Store numbers."""
    for number in numbers:
        connection.write(wire.publish_frame("ev.local.clear.s00.crm.contact.v1", b"%d" % number))
    await connection.flush(DEADLINE_S)


@contextmanager
def deaf(holder: Holder) -> Iterator[list[str]]:
    """What is delivered to the inbox of now gets lost; the ack subjects of that."""
    listener, lost = holder.puller._listener, list[str]()
    assert listener is not None
    before = listener.callback

    def lose(subject: str, reply: str, headers: bytes | None, data: bytes) -> None:
        if reply:
            lost.append(reply)
        else:
            before(subject, reply, headers, data)

    listener.callback = lose
    yield lost
    listener.callback = before


async def keep(holder: Holder, times: int) -> None:
    """Renew, as a slot does, and hear every answer."""
    for _ in range(times):
        holder.puller.renew()
        await until(lambda: not holder.puller._renewals)
        await asyncio.sleep(0.05)


async def test_a_pin_lasts_as_long_as_it_is_renewed(
    nats_server: NatsServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its holder takes nothing meanwhile; once it is silent, whoever waits has it, and the old id is refused."""

    async def scenario(stalls: Stalls) -> None:
        with suppress(RequestFailed):  # there is none at first
            await manage.api(connection, f"STREAM.DELETE.{STREAM}")
        await make_pinned(connection, SHORT_S, monkeypatch)
        async with stalls.watched(connection):
            await _kept_and_lost(nats_server.url, connection)

    await undisturbed(SHORT_S / 4, scenario)  # a renewal that is late loses it by right


async def _kept_and_lost(url: str, control: Connection) -> None:
    async with holder_at(url, max_in_flight=2) as first, holder_at(url) as second:
        await publish(control, 1, 2, 3)
        await until(lambda: len(first.events) + len(second.events) == 2 or second.events)
        holds, waits = (first, second) if first.events else (second, first)
        if holds is second:  # it takes all there is, so there has to be more for the other to want
            await publish(control, *range(4, 120))
        await until(lambda: holds.puller.holds)
        until_s = asyncio.get_running_loop().time() + 1.5 * SHORT_S
        while asyncio.get_running_loop().time() < until_s:
            await keep(holds, 1)
        assert (waits.bodies, holds.puller.holds) == ([], True)
        await until(lambda: waits.events)
        await until(lambda: waits.puller.holds)
        holds.puller.renew()
        await until(lambda: not holds.puller.pin)
        assert (holds.puller.holds, holds.gaps) == (False, [1])


async def test_a_renewal_takes_no_event(nats_server: NatsServer, control: Connection) -> None:
    """Neither where one waits nor where none does."""
    async with holder_at(nats_server.url, max_in_flight=1) as holder:
        await publish(control, 1, 2)
        await until(lambda: holder.bodies == [1])
        await keep(holder, 20)
        assert holder.bodies == [1]
        assert (await consumer(control, DURABLE))["num_ack_pending"] == 1
        holder.puller.ack(holder.events[0])
        await until(lambda: holder.bodies == [1, 2])
        holder.puller.ack(holder.events[1])
        await keep(holder, 20)
        assert holder.puller.holds
        assert (holder.bodies, holder.gaps) == ([1, 2], [1])


async def test_a_pin_can_be_handed_over(nats_server: NatsServer, control: Connection) -> None:
    """Whoever has its id goes on at once, and sees by the number that nobody was between."""
    async with holder_at(nats_server.url) as first:
        await publish(control, 1)
        await until(lambda: first.puller.holds)
        first.puller.ack(first.events[0])
        await first.puller.stop()
        assert await first.puller.confirm()
        left = first.puller.pin, first.puller.delivered
        async with holder_at(nats_server.url, pin=left[0]) as second:
            await until(lambda: second.puller.holds)
            await publish(control, 2)
            await until(lambda: second.bodies == [2])
            assert second.puller.pin == left[0]
            assert second.gaps == [left[1] + 1]


async def until_waiting(control: Connection, count: int) -> int:
    """Wait until so many pulls wait at the server, or more; how many do."""
    async with asyncio.timeout(DEADLINE_S):
        while (waiting := (await consumer(control, DURABLE))["num_waiting"]) < count:
            await asyncio.sleep(0.005)
    return int(waiting)


async def test_only_one_pull_waits_for_a_pin(nats_server: NatsServer, control: Connection) -> None:
    """Others would wait behind our own pin, and keep what may be in flight from being asked for."""
    async with holder_at(nats_server.url) as first:
        await publish(control, 1)
        await until(lambda: first.puller.holds)
        async with holder_at(nats_server.url, max_in_flight=8) as second:
            await until_waiting(control, 2)  # one of each
            puller = second.puller
            for _ in range(20):
                puller._credit.asked = 1  # as if credit had come free
                puller._pull(all_of_it=True)
            last = wire.publish_frame(puller._next, puller._ask(1), f"{puller._inbox}.last")
            puller._connection.write(last)  # what came before it on this connection, the server has looked at before it
            assert await until_waiting(control, 3) == 3


async def test_what_ends_with_an_inbox_costs_no_pin(nats_server: NatsServer, control: Connection) -> None:
    """The number of the first delivery to the next tells of it; whoever else waits gets nothing."""
    async with holder_at(nats_server.url) as holder:
        await publish(control, 1)
        await until(lambda: holder.puller.holds)
        pin = holder.puller.pin
        with deaf(holder) as lost:
            await publish(control, 2)
            await until(lambda: lost)
            holder.puller._restart()
        await holder.puller.flush()
        await publish(control, 3)
        await until(lambda: holder.bodies == [1, 3])
        assert (holder.gaps, holder.puller.pin) == ([1, 3], pin)


async def test_a_pull_of_before_that_takes_deliveries_is_ended(nats_server: NatsServer, control: Connection) -> None:
    """On a link that the server has not seen end: only without its pin it takes no more."""
    async with holder_at(nats_server.url) as holder:
        await publish(control, 1)
        await until(lambda: holder.puller.holds)
        with deaf(holder) as lost:
            await publish(control, 2)
            await until(lambda: lost)
        await publish(control, 3)
        await until(lambda: holder.bodies == [1, 3])
        assert (holder.gaps, holder.puller.pin) == ([1, 3], "")


async def test_a_loss_is_found_though_nothing_comes_after_it(
    nats_server: NatsServer, control: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last delivery is lost, and settled by an ack for the one before: it never comes again, and no other does."""
    monkeypatch.setattr(pinned, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(pinned, "OVERDUE_S", 0.3)
    async with holder_at(nats_server.url) as holder:
        await publish(control, 1, 2)
        await until(lambda: holder.puller.holds and holder.bodies == [1, 2])
        with deaf(holder) as lost:
            holder.puller.nak(holder.events[1])
            await until(lambda: lost)
        control.write(wire.publish_frame(holder.events[1].reply, b"+ACK"))
        holder.puller.ack(holder.events[0])
        async with asyncio.timeout(DEADLINE_S):
            while holder.gaps != [1, 4]:
                await keep(holder, 1)
        assert holder.bodies == [1, 2]


async def test_a_beat_that_agrees_ends_what_was_overdue(
    nats_server: NatsServer, control: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later one that is ahead of its delivery is the first of its kind: that delivery is on its way, and not lost."""
    monkeypatch.setattr(pinned, "OVERDUE_S", -1.0)  # every second one is late enough
    async with holder_at(nats_server.url) as holder:
        await publish(control, 1)
        await until(lambda: holder.puller.holds)
        for last in (2, 1, 2):
            holder.puller._on_beat(str(last))
        assert holder.gaps == [1]
        holder.puller._on_beat("2")
        assert holder.gaps == [1, 3]
