"""The publisher against a real server: what it says is stored is stored, once and in order, whatever happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh.control.nats_server import NatsServer, plain_config
from mesh.errors import BadSubject, Disconnected, MeshError, Overloaded, StreamUnavailable, SubjectRefused, TooLarge
from mesh.jetstream import answers, sending, wire
from mesh.jetstream.acks import ack_prefix
from mesh.jetstream.connection import Connection
from mesh.jetstream.publisher import Outgoing, PubAck, Publisher
from mesh.jetstream.window import Rules
from tests.contract.streams import DEADLINE_S, STREAM, api, make_stream, stored, until

pytestmark = pytest.mark.anyio

SUBJECT = "ev.local.clear.s00.crm.contact.v1"
OTHER = "ev.local.clear.s00.crm.order.v1"
START_MS = 1_795_300_000_000


class Desk:
    """A publisher with a fake seal, a clock of its own, and a record of how each event ended."""

    def __init__(self, connection: Connection, **options: Any) -> None:
        self.now_ms = START_MS
        self.batches = 0
        self.kid = "k1"
        self.made = 0
        self.results: dict[Outgoing, PubAck | MeshError] = {}
        self.order: list[Outgoing] = []
        self.publisher = Publisher(
            connection,
            seal=self._seal,
            message_id=lambda item: f"{item.event_id}.{item.generation}",
            clock_ms=lambda: self.now_ms,
            **options,
        )

    def _seal(self, items: Sequence[tuple[str, str, bytes]]) -> list[str]:
        self.batches += 1
        return [f"1.{self.kid}.{self.now_ms}.{self.batches}.{i}" for i in range(len(items))]

    def event(self, subject: str = SUBJECT, event_id: str = "", **fields: Any) -> Outgoing:
        """The next event; its body is its number."""
        self.made += 1
        return Outgoing(
            subject=subject,
            stream=f"EV_local_{subject.split('.')[4]}",
            body=fields.pop("body", b"%d" % self.made),
            source="/crm",
            event_id=event_id or str(self.made),
            on_done=self._done,
            **fields,
        )

    def _done(self, item: Outgoing, result: PubAck | MeshError) -> None:
        assert item not in self.results, "an event is done once"
        self.results[item] = result
        self.order.append(item)

    def submit(self, count: int = 1, subject: str = SUBJECT) -> list[Outgoing]:
        """One batch."""
        items = [self.event(subject) for _ in range(count)]
        self.publisher.submit(items)
        return items

    async def finished(self, *items: Outgoing) -> list[PubAck | MeshError]:
        """How they ended, once they have."""
        await until(lambda: all(item in self.results for item in items))
        return [self.results[item] for item in items]


@asynccontextmanager
async def desk_at(url: str, **options: Any) -> AsyncIterator[Desk]:
    """A desk with its own connection and running publisher."""
    connection = await Connection.open(url, name="crm-adapter")
    desk = Desk(connection, **options)
    running = asyncio.create_task(desk.publisher.run())
    try:
        yield desk
    finally:
        running.cancel()
        await asyncio.wait([running])
        desk.publisher.close()
        await connection.close()
        assert desk.publisher.in_flight == 0


def give_up_after(desk: Desk, seconds: float) -> None:
    """Events that are submitted from now on are given up after so long."""
    sends = desk.publisher._sending
    sends.rules = sends.rules._replace(give_up_s=seconds)
    for lane in sends.lanes.values():
        lane._rules = sends.rules


@pytest.fixture
async def control(nats_server: NatsServer) -> AsyncIterator[Connection]:
    """A connection that may do everything, with the stream made."""
    connection = await Connection.open(nats_server.url, name="control")
    await make_stream(connection)
    yield connection
    await connection.close()


async def test_the_server_writes_plain_acks_as_the_quick_path_reads_them(control: Connection) -> None:
    """An ack in other words would still be understood, at several times the cost: this says so first."""
    answer = await control.request(SUBJECT, b"{}", timeout_s=DEADLINE_S)
    assert answer.data == ack_prefix(STREAM) + b"1}"


async def test_events_are_stored_as_they_were_sealed(nats_server: NatsServer, control: Connection) -> None:
    """Each event is acknowledged with its place; subject, headers and body are stored in the order of submitting."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    async with desk_at(nats_server.url) as desk:
        items = [desk.event(), desk.event(OTHER, traceparent=trace), desk.event()]
        desk.publisher.submit(items)
        assert await desk.finished(*items) == [PubAck(STREAM, n, duplicate=False) for n in (1, 2, 3)]
    kept = await stored(control)
    assert [(each.subject, each.body) for each in kept] == [(SUBJECT, b"1"), (OTHER, b"2"), (SUBJECT, b"3")]
    assert kept[0].headers == {
        "Content-Type": "application/cloudevents+json",
        "Nats-Msg-Id": "1.0",
        "Mesh-Signature": f"1.k1.{START_MS}.1.0",
    }
    assert kept[1].headers["traceparent"] == trace


async def test_ten_thousand_events_cost_no_task_each(nats_server: NatsServer, control: Connection) -> None:
    """Full windows pass through two streams without a task per event, and room comes back as acks come in."""
    await make_stream(control, "EV_local_hr")
    async with desk_at(nats_server.url, window=1024) as desk:
        tasks = len(asyncio.all_tasks())
        for n in range(80):
            await desk.publisher.wait_for_room(128)
            desk.submit(128, SUBJECT if n % 2 else "ev.local.clear.s01.hr.hire.v1")
            assert len(asyncio.all_tasks()) == tasks
            assert desk.publisher.in_flight <= 1024
        assert await desk.publisher.drain(DEADLINE_S)
        assert desk.publisher.room == 1024
        assert {type(result) for result in desk.results.values()} == {PubAck}
    for stream, first in ((STREAM, 129), ("EV_local_hr", 1)):
        bodies = [int(each.body) for each in await stored(control, stream)]
        assert len(bodies) == 5120
        assert bodies == sorted(bodies)
        assert bodies[0] == first


async def test_the_same_id_twice_is_stored_once(nats_server: NatsServer, control: Connection) -> None:
    """A second submission under the same message id is acknowledged as a duplicate, with the first one's place."""
    async with desk_at(nats_server.url) as desk:
        first, second = desk.event(event_id="a"), desk.event(event_id="a")
        desk.publisher.submit([first])
        desk.publisher.submit([second])
        acks = await desk.finished(first, second)
    assert acks == [PubAck(STREAM, 1), PubAck(STREAM, 1, duplicate=True)]
    assert [each.body for each in await stored(control)] == [b"1"]


# --- a leader leaves -------------------------------------------------------------------------------------------------


@contextmanager
def vanishing(desk: Desk) -> Iterator[None]:
    """What is written meanwhile is lost without a word, as by a server that forwards to a leader that has left."""
    write = desk.publisher._connection.write
    desk.publisher._connection.write = lambda frames: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        desk.publisher._connection.write = write  # type: ignore[method-assign]


def pass_time(desk: Desk, seconds: float) -> None:
    """Let the publisher believe that so much more time has passed, and do what is due."""
    now = desk.publisher._sending.now
    desk.publisher._sending.now = lambda: now() + seconds
    desk.publisher._sending._wake.set()


@contextmanager
def stopped(desk: Desk, at: float | None = None) -> Iterator[None]:
    """The publisher's time stands still."""
    now = desk.publisher._sending.now
    moment = now() if at is None else at
    desk.publisher._sending.now = lambda: moment
    try:
        yield
    finally:
        desk.publisher._sending.now = now


async def test_nothing_overtakes_what_was_lost_before_it(nats_server: NatsServer, control: Connection) -> None:
    """The next leader answers before anybody misses what the last one lost; what is new waits for it all the same."""
    async with desk_at(nats_server.url, give_up_s=60.0, ack_deadline_s=30.0) as desk:
        await desk.finished(*desk.submit(2))
        with vanishing(desk):
            desk.submit(3)
        pass_time(desk, 2 * Rules().hold_s)
        for _ in range(2):
            desk.submit(3)
        await desk.publisher._connection.flush(DEADLINE_S)
        assert len(await stored(control)) == 2
        pass_time(desk, 30.0)
        assert await desk.publisher.drain(DEADLINE_S)
    assert [int(each.body) for each in await stored(control)] == list(range(1, 12))


async def test_what_waited_behind_a_silence_goes_once_it_ends(nats_server: NatsServer, control: Connection) -> None:
    """A stream that was only slow costs nobody a deadline: with the last ack that was due, what waits sets out."""
    async with desk_at(nats_server.url, give_up_s=1e6, ack_deadline_s=1e5) as desk:
        nats_server.pause()
        desk.submit(3)
        pass_time(desk, 2 * Rules().hold_s)
        waiting = desk.submit(3)
        assert [item.sends for item in waiting] == [0, 0, 0]
        nats_server.resume()
        assert await desk.publisher.drain(DEADLINE_S)
        assert [item.sends for item in waiting] == [1, 1, 1]
    assert [int(each.body) for each in await stored(control)] == list(range(1, 7))


async def test_an_ack_out_of_turn_stops_sending_and_is_counted(nats_server: NatsServer, control: Connection) -> None:
    """What followed the lost event at once is in the stream before anybody can know: two copies, and no third."""
    overtaken = answers.OVERTAKEN.total()
    async with desk_at(nats_server.url, give_up_s=1e6, ack_deadline_s=1e5) as desk:
        with vanishing(desk), stopped(desk):
            lost = desk.submit(2)
        with stopped(desk, lost[0].sent_at):
            following = desk.submit(1)
        await desk.finished(*following)
        assert await desk.publisher.drain(DEADLINE_S), "without waiting for a deadline"
        desk.submit(1)
        assert await desk.publisher.drain(DEADLINE_S)
    assert [int(each.body) for each in await stored(control)] == [3, 1, 2, 4]
    assert answers.OVERTAKEN.total() - overtaken == 2


# --- the server goes away --------------------------------------------------------------------------------------------


async def _under_load(desk: Desk, stop: asyncio.Event) -> list[Outgoing]:
    items: list[Outgoing] = []
    while not stop.is_set():
        await desk.publisher.wait_for_room(64)
        items += desk.submit(64)
        await asyncio.sleep(0.001)
    return items


async def _more_acks(desk: Desk, count: int) -> None:
    acked = len(desk.results)
    await until(lambda: len(desk.results) > acked + count)


async def test_kill_nine_under_load_loses_nothing_and_keeps_order(nats_server: NatsServer, control: Connection) -> None:
    """Through three kill -9 every event is acknowledged, stored once, and in the order of submitting."""
    async with desk_at(nats_server.url, window=1024, give_up_s=60.0) as desk:
        stop = asyncio.Event()
        load = asyncio.create_task(_under_load(desk, stop))
        for _ in range(3):
            await _more_acks(desk, 2000)
            nats_server.kill()
            await asyncio.sleep(0.05)
            await nats_server.restart()
        await _more_acks(desk, 500)
        stop.set()
        items = await load
        assert await desk.publisher.drain(DEADLINE_S)
    acks = [desk.results[item] for item in items]
    await until(lambda: control.connected)
    kept = await stored(control)
    assert [each.body for each in kept] == [item.body for item in items]
    assert [ack.sequence if isinstance(ack, PubAck) else ack for ack in acks] == list(range(1, len(items) + 1))


async def test_a_hang_past_the_deadline_stores_nothing_twice(nats_server: NatsServer, control: Connection) -> None:
    """A server that is stopped for longer than the deadline, and goes on, has each event once and in order."""
    async with desk_at(nats_server.url, ack_deadline_s=0.2, give_up_s=60.0) as desk:
        items = desk.submit(100)
        await desk.finished(*items)
        nats_server.pause()
        resent = sending.RESENT.at().value
        items += desk.submit(100)
        await until(lambda: sending.RESENT.at().value > resent + 2)
        items += desk.submit(100)
        assert desk.publisher.in_flight == 200
        nats_server.resume()
        acks = await desk.finished(*items)
    assert [ack.sequence if isinstance(ack, PubAck) else ack for ack in acks] == list(range(1, 301))
    assert [each.body for each in await stored(control)] == [item.body for item in items]


async def test_a_stale_copy_is_followed_by_a_fresh_one(nats_server: NatsServer, control: Connection) -> None:
    """What hung for over 100 s may be stored as sealed then; only the ack of the next generation counts."""
    async with desk_at(nats_server.url, ack_deadline_s=0.2, give_up_s=60.0) as desk:
        nats_server.pause()
        [item] = desk.submit()
        desk.now_ms += 100_001
        await until(lambda: item.generation == 1)
        nats_server.resume()
        [ack] = await desk.finished(item)
    kept = await stored(control)
    assert [each.headers["Nats-Msg-Id"] for each in kept] == ["1.0", "1.1"]
    assert kept[1].headers["Mesh-Signature"].startswith(f"1.k1.{START_MS + 100_001}.")
    assert isinstance(ack, PubAck)
    assert (ack.sequence, ack.duplicate) == (2, False)


async def test_an_ack_that_comes_too_late_does_not_count(nats_server: NatsServer, control: Connection) -> None:
    """Without any resend in between: an ack after 100 s is no proof, and the event goes out as a new generation."""
    async with desk_at(nats_server.url, ack_deadline_s=60.0, give_up_s=120.0) as desk:
        nats_server.pause()
        [item] = desk.submit()
        desk.now_ms += 100_001
        nats_server.resume()
        [ack] = await desk.finished(item)
    assert item.generation == 1
    assert isinstance(ack, PubAck)
    assert ack.sequence == 2
    assert [each.headers["Nats-Msg-Id"] for each in await stored(control)] == ["1.0", "1.1"]


async def test_giving_up_and_submitting_again_makes_nothing_younger(
    nats_server: NatsServer, control: Connection
) -> None:
    """A caller who posts on while the server hangs gets no ack for the stale copy that is stored in the end."""
    async with desk_at(nats_server.url, ack_deadline_s=0.05, give_up_s=60.0) as desk:
        await desk.finished(*desk.submit())
        nats_server.pause()
        given_up = desk.event(event_id="frozen")
        give_up_after(desk, 0.3)
        desk.publisher.submit([given_up])
        [error] = await desk.finished(given_up)
        assert isinstance(error, StreamUnavailable)
        give_up_after(desk, 60.0)
        desk.now_ms += 127_000
        nats_server.resume()
        await until(lambda: desk.publisher._connection.connected)
        again = desk.event(event_id="frozen")
        desk.publisher.submit([again])
        [ack] = await desk.finished(again)
    kept = await stored(control)
    assert [each.headers["Nats-Msg-Id"] for each in kept] == ["1.0", "frozen.0", "frozen.1"]
    assert ack == PubAck(STREAM, 3, duplicate=False)


async def test_a_successor_stores_nothing_twice(nats_server: NatsServer, control: Connection) -> None:
    """What a process sent before it ended is the same event under the same id when its successor sends it again."""
    async with desk_at(nats_server.url) as before:
        items = [before.event(event_id=str(n)) for n in range(20)]
        before.publisher.submit(items)
        await before.finished(*items)
    async with desk_at(nats_server.url) as desk:
        items = [desk.event(event_id=str(n)) for n in range(20)]
        desk.publisher.submit(items)
        assert await desk.finished(*items) == [PubAck(STREAM, n, duplicate=True) for n in range(1, 21)]
    assert [each.headers["Nats-Msg-Id"] for each in await stored(control)] == [f"{n}.0" for n in range(20)]


async def test_a_closed_publisher_takes_nothing(nats_server: NatsServer) -> None:
    """What is in flight at the close ends with its error, and a later batch is refused with the same."""
    async with desk_at(nats_server.url) as desk:
        nats_server.pause()
        [item] = desk.submit()
        closed = Disconnected("the end")
        desk.publisher.close(closed)
        assert desk.results[item] is closed
        with pytest.raises(Disconnected, match="the end"):
            desk.submit()
        assert desk.publisher.in_flight == 0
        nats_server.resume()


async def test_a_resend_after_thirty_seconds_is_sealed_anew(nats_server: NatsServer, control: Connection) -> None:
    """The event keeps its id, so it is stored once, under a signature that is fresh when it is stored."""
    async with desk_at(nats_server.url, give_up_s=60.0) as desk:
        nats_server.kill()
        await until(lambda: not desk.publisher._connection.connected)
        items = desk.submit(3)
        await nats_server.restart()
        await desk.finished(*items)
        nats_server.pause()
        late = desk.submit(3)
        desk.now_ms += 30_001
        nats_server.kill()
        await nats_server.restart()
        acks = await desk.finished(*late)
    await until(lambda: control.connected)
    kept = await stored(control)
    assert [each.headers["Nats-Msg-Id"] for each in kept] == [f"{n}.0" for n in range(1, 7)]
    assert all(isinstance(ack, PubAck) for ack in acks)
    assert {each.headers["Mesh-Signature"].split(".")[2] for each in kept[3:]} == {str(START_MS + 30_001)}


async def test_events_are_given_up_after_their_time(nats_server: NatsServer, control: Connection) -> None:
    """With the server gone each event ends with StreamUnavailable after `give_up_s`, in order, and room comes back."""
    async with desk_at(nats_server.url, give_up_s=60.0, window=10) as desk:
        await desk.finished(*desk.submit())
        give_up_after(desk, 0.5)
        nats_server.kill()
        await until(lambda: not desk.publisher._connection.connected)
        items = desk.submit(10)
        assert desk.batches == 1, "what cannot be sent is not sealed"
        with pytest.raises(Overloaded):
            desk.submit()
        results = await desk.finished(*items)
        assert {type(result) for result in results} == {StreamUnavailable}
        assert desk.order[1:] == items
        assert desk.publisher.room == 10


# --- held, and keys that are cut -------------------------------------------------------------------------------------


async def test_held_nothing_is_sent_until_the_release(nats_server: NatsServer, control: Connection) -> None:
    """Whoever made it so releases it after each connect; what waited is sealed and sent then, in order."""
    async with desk_at(nats_server.url, held="not yet", give_up_s=60.0) as desk:
        items = desk.submit(3)
        await desk.publisher._connection.flush(DEADLINE_S)
        assert (desk.batches, desk.publisher.in_flight) == (0, 3)
        desk.publisher.release()
        await desk.finished(*items)
        sealed = desk.batches
        nats_server.kill()
        await until(lambda: not desk.publisher._connection.connected)
        desk.publisher.release()  # there is no link to send over, and the next one is held anew
        await nats_server.restart()
        await until(lambda: desk.publisher._connection.connected)
        items += desk.submit(3)
        await desk.publisher._connection.flush(DEADLINE_S)
        assert (desk.batches, desk.publisher.in_flight) == (sealed, 3)
        desk.publisher.release()
        await desk.finished(*items)
    await until(lambda: control.connected)
    assert [each.body for each in await stored(control)] == [item.body for item in items]


async def test_a_hold_under_load_loses_nothing_and_keeps_order(nats_server: NatsServer, control: Connection) -> None:
    """Held and released again and again: each event is stored once, in the order of submitting."""
    async with desk_at(nats_server.url, window=1024, give_up_s=60.0) as desk:
        stop = asyncio.Event()
        load = asyncio.create_task(_under_load(desk, stop))
        for n in range(5):
            await _more_acks(desk, 500)
            desk.publisher.hold(f"hold {n}")
            await until(lambda: desk.publisher.room < 64)
            desk.publisher.release()
        stop.set()
        items = await load
        assert await desk.publisher.drain(DEADLINE_S)
    assert [each.body for each in await stored(control)] == [item.body for item in items]


async def test_at_a_cut_what_is_in_flight_goes_out_anew(nats_server: NatsServer, control: Connection) -> None:
    """The late ack of a copy under a revoked key ends nothing: only that of the next generation does."""
    async with desk_at(nats_server.url, ack_deadline_s=60.0, give_up_s=120.0) as desk:
        await desk.finished(*desk.submit(2))
        nats_server.pause()
        items = desk.submit(2)
        desk.kid = "k2"
        items += desk.submit(1)
        assert desk.publisher.distrust("k1") == 2
        nats_server.resume()
        acks = await desk.finished(*items)
    kept = {each.headers["Nats-Msg-Id"]: each.headers["Mesh-Signature"].split(".")[1] for each in await stored(control)}
    assert kept == {"1.0": "k1", "2.0": "k1", "3.0": "k1", "4.0": "k1", "5.0": "k2", "3.1": "k2", "4.1": "k2"}
    assert {type(ack) for ack in acks} == {PubAck}


async def test_acks_that_come_together_mean_what_they_mean_one_by_one(
    nats_server: NatsServer, control: Connection
) -> None:
    """The first ends a recovery, by which the second event goes out under a new id: its late ack ends nothing."""
    async with desk_at(nats_server.url, ack_deadline_s=60.0, give_up_s=120.0) as desk:
        with vanishing(desk):
            first, second = desk.submit(2)
            late, desk.kid = second.token, "k2"
            desk.publisher.distrust("k1")
            desk.publisher._sending._step()  # the first goes out anew, and shows whether the stream is there
            read = desk.publisher._connection._listeners.run
            found = b"".join(_plain_ack(desk, token, n) for n, token in enumerate((first.token, late), 1))
            assert read(found, 0) == len(found)
        assert desk.order == [first]
        assert second.generation == 1
        pass_time(desk, 61)
        await desk.finished(second)
    assert [each.headers["Nats-Msg-Id"] for each in await stored(control)] == ["2.1"]


def _plain_ack(desk: Desk, token: int, sequence: int) -> bytes:
    body = ack_prefix(STREAM) + b"%d}" % sequence
    subject = f"{desk.publisher._sending._inbox}{token}".encode()
    return b"MSG %b %d %d\r\n%b\r\n" % (subject, desk.publisher._listener.sid, len(body), body)


# --- 503: no leader, no such stream, no right ------------------------------------------------------------------------


async def test_a_stream_that_appears_late_gets_everything_in_order(nats_server: NatsServer) -> None:
    """While nobody answers the subject events wait; once the stream is there they follow in order."""
    control = await Connection.open(nats_server.url, name="control")
    async with desk_at(nats_server.url, give_up_s=60.0) as desk:
        items = desk.submit(50)
        resent = sending.RESENT.at().value
        await until(lambda: sending.RESENT.at().value > resent + 3)
        items += desk.submit(50)
        await make_stream(control)
        acks = await desk.finished(*items)
    assert {type(ack) for ack in acks} == {PubAck}
    assert [each.body for each in await stored(control)] == [item.body for item in items]
    await control.close()


async def test_no_stream_at_all_is_not_a_refused_subject(nats_server: NatsServer) -> None:
    """When no other subject answers either, events end as StreamUnavailable."""
    async with desk_at(nats_server.url, give_up_s=1.5) as desk:
        items = desk.submit(3) + desk.submit(3, OTHER)
        results = await desk.finished(*items)
        assert {type(result) for result in results} == {StreamUnavailable}


def _two_accounts(directory: Path) -> str:
    """An account with the streams, and one of a workload that may publish one of the two subjects."""
    return f"""{plain_config(directory / "store")}
        accounts {{
          MESH {{ jetstream: enabled, users: [ {{user: mesh, password: mesh}} ], exports: [ {{service: "ev.>"}} ] }}
          CRM {{
            users: [ {{user: crm, password: crm}} ]
            imports: [ {{service: {{account: MESH, subject: "{SUBJECT}"}} }} ]
          }}
        }}"""


async def test_a_refused_subject_stops_nobody_else(tmp_path: Path) -> None:
    """Events on a subject we may not use end as SubjectRefused; all others are stored in order, and nothing beside."""
    server = await NatsServer.start(_two_accounts(tmp_path), tmp_path)
    control = await Connection.open(server.url.replace("//", "//mesh:mesh@"), name="control")
    try:
        await make_stream(control)
        async with desk_at(server.url.replace("//", "//crm:crm@"), give_up_s=30.0) as desk:
            await desk.finished(*desk.submit())
            mixed = [desk.event(OTHER if n % 3 == 0 else SUBJECT) for n in range(60)]
            desk.publisher.submit(mixed)
            refused = [item for item in mixed if item.subject == OTHER]
            allowed = [item for item in mixed if item.subject == SUBJECT]
            assert {type(result) for result in await desk.finished(*refused)} == {SubjectRefused}
            assert {type(result) for result in await desk.finished(*allowed)} == {PubAck}
            [again] = desk.submit(1, OTHER)
            assert isinstance(refusal := desk.results[again], SubjectRefused), "at once, unsent"
            assert refusal.details["subject"] == OTHER
            allowed += desk.submit(5)
            await desk.finished(*allowed)
        assert [each.body for each in await stored(control)] == [b"1", *(item.body for item in allowed)]
    finally:
        await control.close()
        await server.stop()


# --- answers that are no acks ----------------------------------------------------------------------------------------


async def test_a_full_stream_hands_the_event_back_at_once(nats_server: NatsServer, control: Connection) -> None:
    """A stream at its limit ends the event as StreamUnavailable with the server's code; with space it goes on."""
    limited = {"name": STREAM, "subjects": ["ev.local.*.*.crm.>"], "discard": "new", "max_msgs": 2}
    await api(control, f"STREAM.UPDATE.{STREAM}", limited)
    async with desk_at(nats_server.url, give_up_s=60.0) as desk:
        items = desk.submit(4)
        results = await desk.finished(*items)
        assert [type(result) for result in results] == [PubAck, PubAck, StreamUnavailable, StreamUnavailable]
        full = results[2]
        assert isinstance(full, StreamUnavailable)
        assert full.details["err_code"] == 10077
        await api(control, f"STREAM.PURGE.{STREAM}")
        [ack] = await desk.finished(*desk.submit())
        assert isinstance(ack, PubAck)


async def test_an_ack_of_another_stream_is_no_ack(nats_server: NatsServer) -> None:
    """Whoever answers in the name of another stream is counted and not believed."""
    liar = await Connection.open(nats_server.url, name="liar")

    def lie(_subject: str, reply: str, _headers: bytes | None, _data: bytes) -> None:
        for answer in (b'{"stream":"EV_other", "seq":1}', b"+OK", b""):
            liar.write(wire.publish_frame(reply, answer))

    liar.listen("ev.>", lie)
    await liar.flush(DEADLINE_S)
    before = answers.FOREIGN_ACKS.at().value
    async with desk_at(nats_server.url, give_up_s=0.5) as desk:
        [result] = await desk.finished(*desk.submit())
        assert isinstance(result, StreamUnavailable)
        assert answers.FOREIGN_ACKS.at().value >= before + 3
    await liar.close()


async def test_forged_acks_for_unknown_tokens_do_nothing(nats_server: NatsServer, control: Connection) -> None:
    """Acks for what is not in flight, and bytes that are no acks, leave the publisher as it was."""
    async with desk_at(nats_server.url) as desk:
        inbox = desk.publisher._sending._inbox
        for token in ("999", "w1", "x"):
            for answer in (b'{"stream":"EV_local_crm", "seq":1}', b"", b"\xff", json.dumps({"error": {}}).encode()):
                await control.publish(f"{inbox}{token}", answer)
        await control.flush(DEADLINE_S)
        [ack] = await desk.finished(*desk.submit())
        assert ack == PubAck(STREAM, 1)


# --- the window and its callers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"subject": f"{SUBJECT} x"}, BadSubject), ({"body": bytes(1_048_576)}, TooLarge)],
)
async def test_a_batch_with_a_bad_event_is_refused_whole(
    fields: dict[str, Any], error: type[MeshError], nats_server: NatsServer, control: Connection
) -> None:
    """All or nothing: none of the batch is in flight, and the connection is as it was."""
    async with desk_at(nats_server.url) as desk:
        with pytest.raises(error):
            desk.publisher.submit([desk.event(), desk.event(**fields)])
        assert desk.publisher.in_flight == 0
        await desk.finished(*desk.submit())
    assert len(await stored(control)) == 1


async def test_the_window_is_bounded_in_bytes(nats_server: NatsServer, control: Connection) -> None:
    """Bodies in flight stop the room before their number does, and give it back when acknowledged."""
    async with desk_at(nats_server.url, window_bytes=100_000) as desk:
        nats_server.pause()
        desk.publisher.submit([desk.event(body=bytes(100_000))])
        assert desk.publisher.room == 0
        with pytest.raises(Overloaded):
            desk.submit()
        waiting = asyncio.create_task(desk.publisher.wait_for_room(1))
        nats_server.resume()
        await asyncio.wait_for(waiting, DEADLINE_S)
        await desk.finished(*desk.submit())


async def test_a_failing_callback_harms_no_other_event(nats_server: NatsServer, control: Connection) -> None:
    """`on_done` may raise, and may submit the next event; both leave the others alone."""
    async with desk_at(nats_server.url) as desk:
        chain: list[Outgoing] = []

        def follow(item: Outgoing, result: PubAck | MeshError) -> None:
            chain.append(item)
            if len(chain) < 5:
                following = desk.event()
                following.on_done = follow
                desk.publisher.submit([following])
            raise RuntimeError(result)

        first, beside = desk.event(), desk.event()
        first.on_done = follow
        desk.publisher.submit([first, beside])
        await desk.finished(beside)
        await until(lambda: len(chain) == 5)
        assert desk.publisher.in_flight == 0
    assert len(await stored(control)) == 6


async def test_closing_hands_back_what_is_in_flight(nats_server: NatsServer, control: Connection) -> None:
    """Each event in flight is done with an error, once; its late ack finds nobody."""
    async with desk_at(nats_server.url) as desk:
        nats_server.pause()
        items = desk.submit(5)
        assert not await desk.publisher.drain(0.05)
        desk.publisher.close()
        assert {type(desk.results[item]) for item in items} == {Disconnected}
        nats_server.resume()
