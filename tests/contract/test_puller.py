"""The puller against a real server: every event arrives, within its credit, whatever happens to server and network."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import pytest

from mesh.control.nats_server import NatsServer
from mesh.errors import RequestFailed
from mesh.jetstream import listeners, manage, wire
from mesh.jetstream import puller as puller_module
from mesh.jetstream.connection import Connection
from mesh.jetstream.puller import Puller
from mesh.signing import Received
from tests.contract.streams import DEADLINE_S, STREAM, api, consumer, make_durable, make_stream, until, until_settled
from tests.stalls import Stalls, undisturbed

pytestmark = pytest.mark.anyio

SUBJECT = "ev.local.clear.s00.crm.contact.v1"
DURABLE = "team--sub"


class Desk:
    """A puller, and what it handed over; acks at once if asked to."""

    def __init__(self, connection: Connection, *, acks: bool = True, **options: Any) -> None:
        self.connection = connection
        self.events: list[Received] = []
        self.most = 0
        self._acks = acks
        options = {"stream": STREAM, "durable": DURABLE} | options
        self.puller = Puller(connection, on_event=self._on_event, **options)

    def _on_event(self, received: Received) -> None:
        self.events.append(received)
        self.most = max(self.most, self.puller.in_flight)
        if self._acks:
            self.puller.ack(received)

    @property
    def bodies(self) -> list[int]:
        """The numbers that arrived, in order."""
        return [int(event.body) for event in self.events]


@asynccontextmanager
async def desk_at(url: str, **options: Any) -> AsyncIterator[Desk]:
    """A running puller with its own connection."""
    connection = await Connection.open(url, name="team")
    desk = Desk(connection, **options)
    running = asyncio.create_task(desk.puller.run())
    try:
        yield desk
    finally:
        running.cancel()
        await asyncio.wait([running])
        await connection.close()


@pytest.fixture
async def control(nats_server: NatsServer) -> AsyncIterator[Connection]:
    """A connection that may do everything, with stream and durable made."""
    connection = await Connection.open(nats_server.url, name="control")
    await make_stream(connection)
    await make_durable(connection)
    yield connection
    await connection.close()


async def publish(connection: Connection, count: int, *, start: int = 1, headers: dict[str, str] | None = None) -> None:
    """Store *count* numbers."""
    for n in range(start, start + count):
        connection.write(wire.publish_frame(SUBJECT, b"%d" % n, headers=headers))
    await connection.flush(DEADLINE_S)


async def test_an_event_arrives_as_it_is_stored(nats_server: NatsServer, control: Connection) -> None:
    """Subject, body, ids, signature and the server's word on where it stands are handed over; nothing is believed."""
    await publish(control, 1, headers={"Nats-Msg-Id": "k", "Mesh-Signature": "1.s", "Status": "404"})
    async with desk_at(nats_server.url) as desk:
        await until(lambda: desk.events)
        [event] = desk.events
        stored_ms = _ms((await api(control, f"STREAM.MSG.GET.{STREAM}", {"seq": 1}))["message"]["time"])
        assert abs(event.stream_ms - stored_ms) <= 1
        assert event == Received(
            subject=SUBJECT,
            body=b"1",
            msg_ids=("k",),
            signature="1.s",
            stream=STREAM,
            sequence=1,
            stream_ms=event.stream_ms,
            deliveries=1,
            reply=event.reply,
        )
        await until_settled(control, 1)


def _ms(time: str) -> int:
    seconds, _, fraction = time.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{seconds}Z").timestamp() * 1000) + int(f"{fraction:0<3}"[:3])


@pytest.mark.parametrize(
    ("frame", "note"),
    [
        (b"HPUB %b 16 16\r\nNATS/1.0 404\r\n\r\n\r\n", "a stored status line"),
        (b"HPUB %b 16 16\r\nNATS/1.0 100\r\n\r\n\r\n", "a stored heartbeat"),
        (b"HPUB %b 25 25\r\nNATS/1.0\r\nStatus: 408\r\n\r\n\r\n", "an application's Status header"),
        (b"PUB %b 0\r\n\r\n", "an empty event"),
    ],
)
async def test_an_event_that_looks_like_a_status_is_an_event(
    frame: bytes, note: str, nats_server: NatsServer, control: Connection
) -> None:
    """What has an ack subject of ours is an event, whatever its headers say; it is handed over and can be settled."""
    control.write(frame % SUBJECT.encode())
    async with desk_at(nats_server.url) as desk:
        await until(lambda: desk.events)
        assert desk.events[0].body == b""
        await until_settled(control, 1)


async def test_a_backlog_arrives_in_order_and_once(nats_server: NatsServer, control: Connection) -> None:
    """Overlapping pulls deliver ten thousand events in stream order, each once."""
    await publish(control, 10_000)
    async with desk_at(nats_server.url, max_in_flight=500) as desk:
        await until(lambda: len(desk.events) >= 10_000)
        info = await until_settled(control, 10_000)
        assert desk.bodies == list(range(1, 10_001))
        assert info["num_redelivered"] == 0
        assert desk.puller.in_flight == 0


async def test_events_that_come_while_it_waits_arrive(nats_server: NatsServer, control: Connection) -> None:
    """A pull that waits is served as soon as something is stored."""
    async with desk_at(nats_server.url, max_in_flight=4) as desk:
        for n in range(1, 41):
            await publish(control, 1, start=n)
        await until(lambda: len(desk.events) >= 40)
        assert desk.bodies == list(range(1, 41))


@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_no_more_than_max_in_flight_is_delivered(
    limit: int, nats_server: NatsServer, control: Connection
) -> None:
    """Without acks delivery stops at the limit; each settlement lets one more through."""
    await publish(control, 300)
    async with desk_at(nats_server.url, acks=False, max_in_flight=limit) as desk:
        settled = 0
        while settled < 150:
            await until(lambda: desk.puller.in_flight == limit)
            await desk.puller.flush(DEADLINE_S)
            assert (await consumer(control))["num_ack_pending"] <= limit
            for event in desk.events[settled : settled + limit // 2 + 1]:
                desk.puller.ack(event)
                settled += 1
        assert desk.most == limit


async def test_a_small_rest_of_credit_is_used_soon(nats_server: NatsServer, control: Connection) -> None:
    """One free place beside seven slow events is asked for in a moment, not at the next heartbeat."""
    await publish(control, 9)
    async with desk_at(nats_server.url, acks=False, max_in_flight=8, heartbeat_s=60, expires_s=300) as desk:
        await until(lambda: len(desk.events) == 8)
        desk.puller.ack(desk.events[0])
        await until(lambda: len(desk.events) == 9)


async def test_settling_twice_counts_once(nats_server: NatsServer, control: Connection) -> None:
    """A second settlement of an event, of any kind, does nothing: not at the server, not to the credit."""
    await publish(control, 3)
    async with desk_at(nats_server.url, acks=False, max_in_flight=2) as desk:
        await until(lambda: len(desk.events) == 2)
        first = desk.events[0]
        desk.puller.ack(first)
        desk.puller.ack(first)
        desk.puller.nak(first)
        desk.puller.term(first, "x")
        desk.puller.progress(first)
        await until(lambda: len(desk.events) == 3)
        await desk.puller.flush(DEADLINE_S)
        assert desk.puller.in_flight == 2
        assert [event.deliveries for event in desk.events] == [1, 1, 1]


# --- settlements -----------------------------------------------------------------------------------------------------


async def test_a_nak_comes_again_after_its_delay(nats_server: NatsServer, control: Connection) -> None:
    """Delivered again with the count raised: at once, or not before the delay; others go on meanwhile."""
    await publish(control, 2)
    async with desk_at(nats_server.url, acks=False, max_in_flight=1) as desk:
        await until(lambda: len(desk.events) == 1)
        desk.puller.nak(desk.events[0], 0.3)
        delayed_at = asyncio.get_running_loop().time()
        await until(lambda: len(desk.events) == 2)
        assert desk.bodies == [1, 2]
        desk.puller.nak(desk.events[1])
        await until(lambda: len(desk.events) == 3)
        assert (desk.bodies[2], desk.events[2].deliveries) == (2, 2)
        desk.puller.ack(desk.events[2])
        await until(lambda: len(desk.events) == 4)
        assert asyncio.get_running_loop().time() - delayed_at >= 0.3
        assert (desk.bodies[3], desk.events[3].deliveries) == (1, 2)
        desk.puller.ack(desk.events[3])
        await until_settled(control, 2)


async def test_term_ends_an_event_with_its_reason(nats_server: NatsServer, control: Connection) -> None:
    """It never comes again, and the server's advisory carries the reason, on one line whatever it is."""
    advisories: list[dict[str, Any]] = []
    control.listen(
        "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>", lambda _s, _r, _h, data: advisories.append(json.loads(data))
    )
    await publish(control, 1)
    async with desk_at(nats_server.url, acks=False) as desk:
        await until(lambda: desk.events)
        desk.puller.term(desk.events[0], "bad-signature\r\nPUB x 0")
        await until_settled(control, 1)
        await until(lambda: advisories)
    assert advisories[0]["reason"] == "bad-signature??PUB x 0"


async def test_progress_keeps_an_event(nats_server: NatsServer) -> None:
    """While progress is told more often than ack_wait, the event is not delivered again."""
    ack_wait_s = 2.0
    control = await Connection.open(nats_server.url, name="control")

    async def scenario(stalls: Stalls) -> None:
        with suppress(RequestFailed):  # there is none at first
            await manage.api(control, f"STREAM.DELETE.{STREAM}")
        await make_stream(control)
        await make_durable(control, ack_wait=ack_wait_s)
        async with stalls.watched(control), desk_at(nats_server.url, acks=False) as desk:
            await publish(control, 1)
            await until(lambda: desk.events)
            until_s = asyncio.get_running_loop().time() + 1.5 * ack_wait_s
            while asyncio.get_running_loop().time() < until_s:
                desk.puller.progress(desk.events[0])
                await asyncio.sleep(0.05)
            assert len(desk.events) == 1
            await until(lambda: len(desk.events) == 2)
            assert desk.events[1].deliveries == 2

    await undisturbed(ack_wait_s / 4, scenario)
    await control.close()


async def test_a_failing_handler_leaves_its_event_unsettled(nats_server: NatsServer, control: Connection) -> None:
    """An exception in `on_event` is counted; the event counts as in flight, and the next ones arrive."""
    await publish(control, 2)
    before = listeners.CALLBACK_ERRORS.at().value
    async with desk_at(nats_server.url) as desk:
        good = desk.puller._on_event

        def fail_once(received: Received) -> None:
            desk.puller._on_event = good
            raise ValueError(received.sequence)

        desk.puller._on_event = fail_once
        await until(lambda: desk.events)
        assert desk.bodies == [2]
        assert desk.puller.in_flight == 1
        assert listeners.CALLBACK_ERRORS.at().value == before + 1


# --- what must not be believed ---------------------------------------------------------------------------------------


async def test_a_poison_event_is_terminated_and_costs_no_credit(nats_server: NatsServer, control: Connection) -> None:
    """Stored frames that kill nats-py's reader are ended; a limit of one still lets the next event through."""
    for _ in range(3):
        control.write(b"HPUB %b 8 9\r\nNATS/1.0x\r\n" % SUBJECT.encode())
    await publish(control, 1)
    before = listeners.MALFORMED.at().value
    async with desk_at(nats_server.url, max_in_flight=1) as desk:
        await until(lambda: desk.events)
        assert desk.bodies == [1]
        await until_settled(control, 4)
        assert listeners.MALFORMED.at().value == before + 3


@pytest.mark.parametrize(
    ("reply", "headers"),
    [
        (f"$JS.ACK.{STREAM}.team--victim.1.1.1.1795300000000000000.0", None),
        (f"$JS.ACK.{STREAM}.team--victim.1.1.1.1795300000000000000.0", b"NATS/1.0x"),
        (f"$JS.ACK.{STREAM}.{DURABLE}.1.x.1.1795300000000000000.0", None),
        ("_INBOX.other", None),
        ("", None),
        ("", b"NATS/1.0x"),
    ],
)
async def test_a_message_to_our_inbox_is_no_delivery(
    reply: str, headers: bytes | None, nats_server: NatsServer, control: Connection
) -> None:
    """Whatever it says, it is neither handed over nor acked nor terminated: an ack would settle a victim's event.

    The server refuses `$JS.ACK` replies of clients, so what a hole in that would let through is put in by hand.
    """
    async with desk_at(nats_server.url) as desk:
        await until(lambda: desk.puller._listener)
        listener = desk.puller._listener
        assert listener is not None
        heard: list[str] = []
        control.listen(">", lambda subject, _r, _h, _d: heard.append(subject))
        await control.flush(DEADLINE_S)
        target = f"{desk.puller._inbox}.1".encode()
        desk.connection._listeners.deliver(listener.sid, target, reply.encode(), headers, b"x")
        await desk.puller.flush(DEADLINE_S)
        await control.flush(DEADLINE_S)
        assert [subject for subject in heard if subject.startswith("$JS.ACK")] == []
        assert desk.events == []
        assert desk.puller.in_flight == 0


async def test_a_delivery_with_a_status_line_is_an_event(nats_server: NatsServer, control: Connection) -> None:
    """Today's server strips a stored status line; if one got through, its ack subject would still make it an event."""
    async with desk_at(nats_server.url) as desk:
        await until(lambda: desk.puller._listener)
        listener = desk.puller._listener
        assert listener is not None
        reply = f"$JS.ACK.{STREAM}.{DURABLE}.1.7.7.1795300000000000000.0".encode()
        desk.connection._listeners.deliver(listener.sid, SUBJECT.encode(), reply, b"NATS/1.0 404\r\n\r\n", b"")
        assert [(event.sequence, event.stream_ms) for event in desk.events] == [(7, 1_795_300_000_000)]


# --- what may happen to it -------------------------------------------------------------------------------------------


async def _arrived(desk: Desk, count: int) -> None:
    await until(lambda: len(desk.events) > count)


async def test_kill_nine_under_load_delivers_everything(nats_server: NatsServer) -> None:
    """Through two kill -9 every event arrives; what comes twice is what the server did not know as acked."""
    control = await Connection.open(nats_server.url, name="control")
    await make_stream(control)
    await make_durable(control, ack_wait=2)
    await publish(control, 6000)
    async with desk_at(nats_server.url, max_in_flight=200) as desk:
        for at in (1500, 3500):
            await _arrived(desk, at)
            nats_server.kill()
            await nats_server.restart()
        await until(lambda: len(set(desk.bodies)) == 6000)
        await until(lambda: control.connected)
        await until_settled(control, 6000)
        assert desk.most <= 200
    await control.close()


async def test_settlements_made_while_disconnected_are_sent_later(nats_server: NatsServer, control: Connection) -> None:
    """An ack given without a connection counts after the reconnect: the event is not delivered again."""
    await publish(control, 5)
    async with desk_at(nats_server.url, acks=False) as desk:
        await until(lambda: len(desk.events) == 5)
        await desk.connection.rebuild()
        assert not desk.connection.connected
        for event in desk.events:
            desk.puller.ack(event)
        info = await until_settled(control, 5)
        assert info["num_redelivered"] == 0
        assert len(desk.events) == 5
        await publish(control, 1, start=6)
        await until(lambda: len(desk.events) == 6)


async def test_a_hang_is_noticed_by_its_missing_heartbeats(nats_server: NatsServer) -> None:
    """A server that hangs for several beats costs a pull, not the subscription."""
    control = await Connection.open(nats_server.url, name="control")
    await make_stream(control)
    await make_durable(control, ack_wait=2)  # where it hung for so long that the link is cut, with the event on its way
    async with desk_at(nats_server.url, heartbeat_s=0.1, expires_s=5.0) as desk:
        await publish(control, 1)
        await until(lambda: desk.events)
        before = puller_module.MISSED.at().value
        nats_server.pause()
        await until(lambda: puller_module.MISSED.at().value > before)
        nats_server.resume()
        await until(lambda: desk.connection.connected and control.connected)
        await publish(control, 1, start=2)
        await until(lambda: 2 in desk.bodies)
    await control.close()


async def test_what_is_sent_while_pulls_are_given_up_arrives(
    nats_server: NatsServer, control: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that comes after the PONG that proved our pulls lost is handed over, not left for its ack_wait."""
    async with desk_at(nats_server.url, heartbeat_s=60, expires_s=300) as desk:
        await until(lambda: desk.puller._credit.asked)
        await desk.puller.flush(DEADLINE_S)
        flush, lately = desk.connection.flush, [1]

        async def and_then_it_comes(timeout_s: float) -> None:
            await flush(timeout_s)
            if lately:
                control.write(wire.publish_frame(SUBJECT, b"%d" % lately.pop()))
                control._keeper.link._write_out()  # type: ignore[union-attr]
                _until_it_waits_to_be_read(desk.connection, SUBJECT.encode())

        monkeypatch.setattr(desk.connection, "flush", and_then_it_comes)
        await desk.puller._recover()
        await publish(control, 1, start=2)
        await until(lambda: len(desk.events) == 2)
        assert [(event.body, event.deliveries) for event in desk.events] == [(b"1", 1), (b"2", 1)]


def _until_it_waits_to_be_read(connection: Connection, what: bytes) -> None:
    """Hold the loop until the kernel has *what* for us."""
    ours = connection._keeper.link._socket().get_extra_info("socket")  # type: ignore[union-attr]
    with socket.socket(fileno=os.dup(ours.fileno())) as same:
        until_s = time.monotonic() + DEADLINE_S
        while not (select.select([same], [], [], DEADLINE_S)[0] and what in same.recv(65_536, socket.MSG_PEEK)):
            assert time.monotonic() < until_s


async def test_a_pull_that_got_lost_is_sent_again(nats_server: NatsServer, control: Connection) -> None:
    """When the server forgot our pulls though the connection is fine, two missing beats bring new ones."""
    async with desk_at(nats_server.url, heartbeat_s=0.1, expires_s=60.0) as desk:
        await until(lambda: desk.puller._credit.asked)
        await desk.puller.flush(DEADLINE_S)
        info = await api(control, f"CONSUMER.INFO.{STREAM}.{DURABLE}")
        config = info["config"]
        await api(control, f"CONSUMER.DELETE.{STREAM}.{DURABLE}")
        await until(lambda: desk.puller.status.startswith("409"))
        await api(control, f"CONSUMER.CREATE.{STREAM}.{DURABLE}", {"stream_name": STREAM, "config": config})
        await publish(control, 1)
        await until(lambda: desk.events)
        assert desk.puller.status == ""


async def test_no_durable_is_reported_and_waited_for(nats_server: NatsServer) -> None:
    """Without the durable pulls are refused, at growing pauses; `status` says so until it is there."""
    control = await Connection.open(nats_server.url, name="control")
    await make_stream(control)
    await publish(control, 1)
    async with desk_at(nats_server.url) as desk:
        await until(lambda: desk.puller.status.startswith("503"))
        await make_durable(control)
        await until(lambda: desk.events)
        assert desk.puller.status == ""
    await control.close()


async def test_short_pulls_are_renewed(nats_server: NatsServer, control: Connection) -> None:
    """After a pull expired the next one is sent, again and again."""
    before = puller_module.STATUSES.at(code="408").value
    async with desk_at(nats_server.url, heartbeat_s=0.05, expires_s=0.2) as desk:
        await until(lambda: puller_module.STATUSES.at(code="408").value >= before + 5)
        await publish(control, 1)
        await until(lambda: desk.events)


async def test_stopping_pulls_nothing_more_and_settles_what_came(nats_server: NatsServer, control: Connection) -> None:
    """After `stop` nothing new is delivered, `run` has ended, and what was delivered can be acked."""
    connection = await Connection.open(nats_server.url, name="team")
    desk = Desk(connection, acks=False, max_in_flight=10)
    running = asyncio.create_task(desk.puller.run())
    await publish(control, 5)
    await until(lambda: len(desk.events) == 5)
    await desk.puller.stop()
    await asyncio.wait_for(running, DEADLINE_S)
    await publish(control, 5, start=6)
    for event in desk.events:
        desk.puller.ack(event)
    await desk.puller.flush(DEADLINE_S)
    info = await until_settled(control, 5)
    assert (info["delivered"]["stream_seq"], info["num_waiting"]) == (5, 0)
    again = asyncio.create_task(desk.puller.run())
    await until(lambda: len(desk.events) == 10)
    again.cancel()
    await asyncio.wait([again])
    await connection.close()
