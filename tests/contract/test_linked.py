"""Two events and one ack, against a real server: each event is stored once and in order, and its receipt is right."""

from __future__ import annotations

import asyncio
import math
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from mesh.control.nats_server import NatsServer, plain_config
from mesh.errors import MeshError, StreamUnavailable, SubjectRefused, Unavailable
from mesh.jetstream import answers as of_answers
from mesh.jetstream import links, wire
from mesh.jetstream.connection import Connection
from mesh.jetstream.publisher import Outgoing, PubAck
from tests.contract.desks import OTHER, SUBJECT, Desk, desk_at, more_acks, pass_time, stopped, two_accounts, under_load
from tests.contract.streams import DEADLINE_S, STREAM, Stored, api, make_stream, stored, until
from tests.faults.proxy import Proxy
from tests.ports import free_ports

pytestmark = pytest.mark.anyio

AFTER = "Nats-Expected-Last-Msg-Id"
BEHIND = "Nats-Expected-Last-Sequence"
MSG_ID = "Nats-Msg-Id"
NO_MATCH = (b'"err_code":10070', b'"err_code":10071')  # the stream's last message has another id, or another place
PATIENT = {"ack_deadline_s": 30.0, "give_up_s": 60.0}  # what is to be noticed is noticed without a deadline


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a test takes from an ack to the next batch, it may be linked."""
    monkeypatch.setattr(links, "FRESH_S", math.inf)


@pytest.fixture
async def control(nats_server: NatsServer) -> AsyncIterator[Connection]:
    """A connection that may do everything, with the stream made."""
    connection = await Connection.open(nats_server.url, name="control")
    await make_stream(connection)
    yield connection
    await connection.close()


async def heard(control: Connection, desk: Desk) -> list[bytes]:
    """Everything that is answered to *desk* from now on."""
    answers: list[bytes] = []
    inbox = desk.publisher._sending._inbox
    control.listen(f"{inbox}>", lambda _s, _r, headers, data: answers.append((headers or b"") + data))
    await control.flush(DEADLINE_S)
    return answers


@contextmanager
def held(desk: Desk) -> Iterator[list[bytes]]:
    """What is written meanwhile, frame by frame, on its way to nobody."""
    found: list[bytes] = []
    write = desk.publisher._connection.write
    desk.publisher._connection.write = lambda frames: found.extend(_split(frames))  # type: ignore[method-assign]
    try:
        yield found
    finally:
        desk.publisher._connection.write = write  # type: ignore[method-assign]


def _split(frames: bytes) -> Iterator[bytes]:
    while frames:
        line = frames.index(b"\r\n") + 2
        end = line + int(frames[:line].split()[-1]) + 2
        yield frames[:end]
        frames = frames[end:]


def quiet(frames: list[bytes]) -> list[bool]:
    """Of each frame, whether it asks for no ack."""
    return [len(frame[: frame.index(b"\r\n")].split()) == 4 for frame in frames]


async def begun(desk: Desk) -> list[Outgoing]:
    """One event, from whose ack on *desk* links events: it then knows how far the stream is."""
    first = [desk.event(event_id="begun")]
    desk.publisher.submit(first)
    await desk.finished(*first)
    return first


def ties(kept: list[Stored]) -> list[tuple[str, str] | None]:
    """After which event, and behind which place, each stored event had to come."""
    return [(each.headers[AFTER], each.headers[BEHIND]) if AFTER in each.headers else None for each in kept]


def chain(kept: list[Stored], place: int) -> list[tuple[str, str] | None]:
    """What `ties` says of *kept* from *place* on, where each of these is linked to the one before it."""
    return [(kept[at - 1].headers[MSG_ID], str(at)) for at in range(place - 1, len(kept))]


def ours(kept: list[Stored]) -> list[bytes]:
    """The bodies of what was not published by somebody else."""
    return [each.body for each in kept if each.body != b"{}"]


def check_receipts(desk: Desk, items: list[Outgoing], kept: list[Stored]) -> None:
    """Each of *items* is where its ack says."""
    for item in items:
        ack = desk.results[item]
        assert isinstance(ack, PubAck), ack
        assert ack.stream == STREAM
        assert ack.sequence > 0
        assert kept[ack.sequence - 1].headers.get(MSG_ID) == f"{item.event_id}.{item.generation}"


async def test_every_second_event_of_a_batch_has_an_ack(nats_server: NatsServer, control: Connection) -> None:
    """Each of 64 says after which it comes and behind which place; 32 answers give each result its own place."""
    async with desk_at(nats_server.url) as desk:
        first = await begun(desk)
        answers = await heard(control, desk)
        items = desk.submit(64)
        assert await desk.finished(*items) == [PubAck(STREAM, n) for n in range(2, 66)]
        await control.flush(DEADLINE_S)
        assert len(answers) == 32
    kept = await stored(control)
    assert ours(kept) == [item.body for item in (*first, *items)]
    assert ties(kept) == [None, *chain(kept, 2)]


@pytest.mark.parametrize("count", [links.FEWEST, links.FEWEST + 1, 64])
async def test_half_of_the_frames_ask_for_no_ack(count: int, nats_server: NatsServer, control: Connection) -> None:
    """The first of every two; one that is left over asks for its own."""
    async with desk_at(nats_server.url, **PATIENT) as desk:
        await begun(desk)
        with held(desk) as frames:
            items = desk.submit(count)
        assert quiet(frames) == ([True, False] * count)[: count - count % 2] + [False] * (count % 2)
        desk.publisher._connection.write(b"".join(frames))
        await desk.finished(*items)


async def test_a_batch_comes_after_the_one_on_its_way(nats_server: NatsServer, control: Connection) -> None:
    """While a linked batch has no ack, the next is linked to it, and so is a single event, which has its own ack."""
    async with desk_at(nats_server.url) as desk:
        await begun(desk)
        answers = await heard(control, desk)
        items = desk.submit(8) + desk.submit(8) + desk.submit(1)
        assert await desk.finished(*items) == [PubAck(STREAM, n) for n in range(2, 19)]
        await control.flush(DEADLINE_S)
        assert len(answers) == 4 + 4 + 1
    kept = await stored(control)
    assert ties(kept) == [None, *chain(kept, 2)]


@pytest.mark.parametrize("count", [1, links.FEWEST - 1])
async def test_few_events_have_an_ack_each(count: int, nats_server: NatsServer, control: Connection) -> None:
    """At a low rate nothing is linked."""
    async with desk_at(nats_server.url) as desk:
        answers = await heard(control, desk)
        for n in range(6):
            items = desk.submit(count)
            assert await desk.finished(*items) == [PubAck(STREAM, n * count + at) for at in range(1, count + 1)]
        await control.flush(DEADLINE_S)
        assert len(answers) == 6 * count
    assert not any(ties(await stored(control)))


async def test_links_begin_soon_after_an_ack_only(
    nats_server: NatsServer, control: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing was acknowledged for a while, others may have published since: the next batch goes unlinked."""
    monkeypatch.setattr(links, "FRESH_S", 0.1)
    async with desk_at(nats_server.url, **PATIENT) as desk:
        with stopped(desk):
            await begun(desk)
            pass_time(desk, 0.2)
            await desk.finished(*desk.submit(8))
            await desk.finished(*desk.submit(8))
    kept = await stored(control)
    assert ties(kept) == [None] * 9 + chain(kept, 10)


async def test_what_could_not_be_sealed_is_linked_to_nothing_when_it_comes_again(
    nats_server: NatsServer, control: Connection
) -> None:
    """There was no key for a moment, and another event went since; no link of then stands in a frame."""
    async with desk_at(nats_server.url, **PATIENT) as desk:
        await begun(desk)
        seal, desk.publisher._sealer._seal = desk.publisher._sealer._seal, _no_key
        items = [desk.event() for _ in range(8)]
        with pytest.raises(StreamUnavailable):
            desk.publisher.submit(items)
        desk.publisher._sealer._seal = seal
        await desk.finished(*desk.submit(1))
        with held(desk) as frames:
            for item in items:
                desk.publisher.submit([item])
        assert not any(AFTER.encode() in frame for frame in frames)
        assert not any(quiet(frames))
        desk.publisher._connection.write(b"".join(frames))
        await desk.finished(*items)
    check_receipts(desk, items, await stored(control))


def _no_key(_batch: list[tuple[str, str, bytes]]) -> list[str]:
    raise StreamUnavailable("no key")


# --- somebody else publishes -----------------------------------------------------------------------------------------


async def _between(control: Connection, desk: Desk, items: int, place: int, headers: dict[str, str]) -> list[Outgoing]:
    """Have somebody else's event stored before number *place* of a second linked batch."""
    first = desk.submit(items)  # its ack is not read before this one awaits
    with held(desk) as frames:
        second = desk.submit(items)
    assert all(AFTER.encode() in frame for frame in frames)
    desk.publisher._connection.write(b"".join(frames[:place]))
    await desk.publisher._connection.flush(DEADLINE_S)
    await control.request(SUBJECT, b"{}", headers=headers, timeout_s=DEADLINE_S)
    desk.publisher._connection.write(b"".join(frames[place:]))
    await desk.finished(*first, *second)
    return first + second


@pytest.mark.parametrize("headers", [{}, {MSG_ID: "theirs"}], ids=["without id", "with id"])
@pytest.mark.parametrize("place", [0, 1, 4, 7])
async def test_somebody_elses_event_between_costs_nothing_but_a_round(
    place: int, headers: dict[str, str], nats_server: NatsServer, control: Connection
) -> None:
    """The stream refuses what is behind it; that is sent again, without links, and stored once and in order.

    It is counted once.
    """
    broken = of_answers.LINKS_BROKEN.total()
    async with desk_at(nats_server.url, **PATIENT) as desk:
        items = await begun(desk)
        items += await _between(control, desk, 8, place, headers)
        kept = await stored(control)
        assert ours(kept) == [item.body for item in items]
        assert kept[9 + place].body == b"{}"
        check_receipts(desk, items, kept)
        assert not any(desk.results[item].duplicate for item in items), "nobody submitted anything twice"  # type: ignore[union-attr]
        assert ties(kept)[10 + place :] == [None] * (8 - place)
    assert of_answers.LINKS_BROKEN.total() - broken == 1


async def test_after_a_broken_link_events_go_unlinked_for_a_while(nats_server: NatsServer, control: Connection) -> None:
    """For longer the second time; then they are linked again."""

    async def linked(desk: Desk) -> bool:
        await desk.finished(*desk.submit(8))
        kept = await stored(control)
        assert ties(kept)[-8:] in ([None] * 8, chain(kept, len(kept) - 7))
        return any(ties(kept)[-8:])

    async with desk_at(nats_server.url, **PATIENT) as desk:
        with stopped(desk):
            await begun(desk)
            assert await linked(desk)
            await _between(control, desk, 8, 4, {})
            assert not await linked(desk)
            pass_time(desk, 0.9 * links.APART_FIRST_S)
            assert not await linked(desk)
            pass_time(desk, 0.2 * links.APART_FIRST_S)
            assert await linked(desk)
            await _between(control, desk, 8, 4, {})
            pass_time(desk, 1.1 * links.APART_FIRST_S)
            assert not await linked(desk)
            pass_time(desk, links.APART_LAST_S)
            assert await linked(desk)


def _no_match(answer: bytes) -> bool:
    return any(code in answer for code in NO_MATCH)


async def test_two_who_publish_all_the_time_lose_nothing(
    nats_server: NatsServer, control: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event of both is stored once, and each publisher's in its order, however often they break links."""
    monkeypatch.setattr(links, "APART_FIRST_S", 0.01)
    monkeypatch.setattr(links, "APART_LAST_S", 0.02)
    async with desk_at(nats_server.url, **PATIENT) as one, desk_at(nats_server.url, **PATIENT) as two:
        two.made = 1_000_000
        refusals = [await heard(control, desk) for desk in (one, two)]
        stop = asyncio.Event()
        loads = [asyncio.create_task(under_load(desk, stop)) for desk in (one, two)]
        for answers in refusals:
            await until(lambda answers=answers: sum(map(_no_match, answers)) > 3)  # type: ignore[misc]
        stop.set()
        sent = [await load for load in loads]
        assert await one.publisher.drain(DEADLINE_S)
        assert await two.publisher.drain(DEADLINE_S)
    kept = await stored(control)
    assert len(kept) == len(sent[0]) + len(sent[1])
    for desk, items in zip((one, two), sent, strict=True):
        mine = {item.body for item in items}
        assert [each.body for each in kept if each.body in mine] == [item.body for item in items]
        check_receipts(desk, items, kept)


async def test_two_who_publish_the_same_events(
    nats_server: NatsServer, control: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that both publish all of it: each event is stored once, in order, and both hear where."""
    monkeypatch.setattr(links, "APART_FIRST_S", 0.01)
    monkeypatch.setattr(links, "APART_LAST_S", 0.02)
    async with desk_at(nats_server.url, **PATIENT) as one, desk_at(nats_server.url, **PATIENT) as two:
        refusals = [await heard(control, desk) for desk in (one, two)]
        stop = asyncio.Event()
        loads = [asyncio.create_task(under_load(desk, stop)) for desk in (one, two)]
        await until(lambda: sum(map(_no_match, refusals[0] + refusals[1])) > 6)
        stop.set()
        sent = [await load for load in loads]
        assert await one.publisher.drain(DEADLINE_S)
        assert await two.publisher.drain(DEADLINE_S)
    kept = await stored(control)
    assert [int(each.body) for each in kept] == list(range(1, max(len(items) for items in sent) + 1))
    for desk, items in zip((one, two), sent, strict=True):
        check_receipts(desk, items, kept)


# --- the same event twice --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one after another"])
@pytest.mark.parametrize(
    "batches",
    [
        ["abcadefg"],
        ["abcdea"],
        ["abcdd"],
        ["aabcde"],
        ["abccde"],
        ["abccccde"],
        ["aaaaaa"],
        ["abababab"],
        ["abcdefgh", "abcdefgh"],
        ["abcdefgh", "abcdefgh", "abcdefgh"],
        ["abcd", "defg"],
        ["abcd", "ddefg"],
        ["abcd", "defd", "dghi"],
        ["abcd", "cdef"],
        ["abcd", "efga", "hijk"],
        ["a", "abcd"],
        ["a", "bcda"],
        ["abcd", "d", "efgh"],
    ],
    ids="-".join,
)
async def test_an_event_that_comes_again_is_stored_once(
    batches: list[str], *, at_once: bool, nats_server: NatsServer, control: Connection
) -> None:
    """Within a batch, and in the next one: each submission is answered, with the place where the event is."""
    items: list[Outgoing] = []
    async with desk_at(nats_server.url, give_up_s=60.0) as desk:
        items += await begun(desk)
        for ids in batches:
            batch = [desk.event(event_id=name) for name in ids]
            desk.publisher.submit(batch)
            items += batch
            if not at_once:
                await desk.finished(*items)
        await desk.finished(*items)
    kept = await stored(control)
    firsts = ["begun", *dict.fromkeys("".join(batches))]
    assert [each.headers[MSG_ID] for each in kept] == [f"{name}.0" for name in firsts]
    check_receipts(desk, items, kept)


@pytest.mark.parametrize("known", range(1, 9))
async def test_an_event_that_the_stream_has_already(known: int, nats_server: NatsServer, control: Connection) -> None:
    """From another process, as the first or the second of two: it stays where it is, and the others come in order."""
    await control.request(SUBJECT, b"%d" % known, headers={MSG_ID: f"{known}.0"}, timeout_s=DEADLINE_S)
    async with desk_at(nats_server.url, **PATIENT) as desk:
        await begun(desk)
        items = [desk.event(event_id=str(n)) for n in range(1, 9)]
        desk.publisher.submit(items)
        assert [item.quiet for item in items] == [True, False] * 4
        await desk.finished(*items)
    kept = await stored(control)
    others = [item for item in items if item.event_id != str(known)]
    assert [each.headers[MSG_ID] for each in kept] == [
        f"{n}.0" for n in (known, "begun", *(i.event_id for i in others))
    ]
    check_receipts(desk, items, kept)
    assert [item.event_id for item in items if desk.results[item].duplicate] == [str(known)]  # type: ignore[union-attr]


@pytest.mark.parametrize("lost", [range(1), range(3), range(7), range(2, 3), range(6, 7), range(0)], ids=str)
async def test_a_duplicate_says_nothing_of_the_events_before(
    lost: range, nats_server: NatsServer, control: Connection
) -> None:
    """The last of a batch was stored before, so the stream answers it as always; what is lost goes out again."""
    await control.request(SUBJECT, b"8", headers={MSG_ID: "8.0"}, timeout_s=DEADLINE_S)
    async with desk_at(nats_server.url, give_up_s=60.0) as desk:
        first = await begun(desk)
        with held(desk) as frames:
            items = [desk.event(event_id=str(n)) for n in range(1, 9)]
            desk.publisher.submit(items)
        assert all(AFTER.encode() in frame for frame in frames[1:])
        desk.publisher._connection.write(b"".join(frame for n, frame in enumerate(frames) if n not in lost))
        await desk.finished(*items)
    kept = await stored(control)
    assert [each.body for each in kept] == [b"8", *(item.body for item in (*first, *items[:-1]))]
    check_receipts(desk, items, kept)
    assert not any(desk.results[item].duplicate for item in items[:-1])  # type: ignore[union-attr]
    assert desk.results[items[-1]] == PubAck(STREAM, 1, duplicate=True)


async def test_somebody_elses_copy_says_nothing_of_the_events_before(
    nats_server: NatsServer, control: Connection
) -> None:
    """Another process publishes the second event of a linked batch first: the link of the third holds, to that one."""
    async with desk_at(nats_server.url, **PATIENT) as desk:
        items = await begun(desk) + desk.submit(4)
        with held(desk) as frames:
            items += desk.submit(4)
        await desk.publisher._connection.flush(DEADLINE_S)
        await control.request(SUBJECT, b"7", headers={MSG_ID: "7.0"}, timeout_s=DEADLINE_S)
        desk.publisher._connection.write(b"".join(frames))
        await desk.finished(*items)
    kept = await stored(control)
    assert sorted(each.headers[MSG_ID] for each in kept) == sorted(f"{item.event_id}.0" for item in items)
    check_receipts(desk, items, kept)


async def test_a_repeat_says_nothing_of_a_refused_event_before(nats_server: NatsServer) -> None:
    """The stream's last event is submitted again, behind one that the stream refuses, which ends with its error."""
    control = await Connection.open(nats_server.url, name="control")
    await make_stream(control, max_msg_size=4096)
    async with desk_at(nats_server.url, give_up_s=60.0) as desk:
        first = await begun(desk)
        refused, *others = [desk.event(body=bytes(9000)), desk.event(event_id="begun"), *(desk.event() for _ in "abc")]
        desk.publisher.submit([refused, *others])
        assert not isinstance((await desk.finished(refused))[0], PubAck)
        await desk.finished(*others)
    kept = await stored(control)
    assert ours(kept) == [item.body for item in (*first, *others[1:])]
    check_receipts(desk, others, kept)
    await control.close()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"max_msg_size": 4096}, {"max_bytes": 8192}], ids=str)
@pytest.mark.parametrize("places", [{5}, {0}, {11}, {4, 5}, {3, 11}], ids=str)
async def test_an_event_that_the_stream_refuses_ends_alone(
    places: set[int], limit: dict[str, Any], nats_server: NatsServer
) -> None:
    """Too large for the stream: it ends with the error, and the others of its batch are stored in order."""
    control = await Connection.open(nats_server.url, name="control")
    await make_stream(control, **limit)
    async with desk_at(nats_server.url, give_up_s=60.0) as desk:
        first = await begun(desk)
        items = [desk.event(body=bytes(9000) if n in places else b"%d" % n) for n in range(12)]
        desk.publisher.submit(items)
        behind = desk.submit(4)
        refused = [items[n] for n in sorted(places)]
        results = await desk.finished(*refused)
        assert all(isinstance(result, MeshError) for result in results), results
        if "max_bytes" in limit:
            assert {type(result) for result in results} == {StreamUnavailable}
        others = [*first, *(item for item in items if item not in refused), *behind]
        await desk.finished(*others)
    kept = await stored(control)
    assert ours(kept) == [item.body for item in others]
    check_receipts(desk, others, kept)
    await control.close()


@pytest.mark.parametrize("places", [{5}, {11}, {0}, {4, 5}, {3, 11}, {0, 1, 2}], ids=str)
async def test_a_refused_subject_in_a_batch_ends_alone(places: set[int], tmp_path: Path) -> None:
    """What our account does not import ends as SubjectRefused; the others of its batch are stored in order."""
    server = await NatsServer.start(two_accounts(tmp_path), tmp_path)
    control = await Connection.open(server.url.replace("//", "//mesh:mesh@"), name="control")
    try:
        await make_stream(control)
        async with desk_at(server.url.replace("//", "//crm:crm@"), give_up_s=60.0) as desk:
            before = await begun(desk) + desk.submit(8)
            await desk.finished(*before)
            items = [desk.event(OTHER if n in places else SUBJECT) for n in range(12)]
            desk.publisher.submit(items)
            refused = [items[n] for n in sorted(places)]
            others = [*before, *(item for item in items if item not in refused), *desk.submit(4)]
            assert {type(result) for result in await desk.finished(*refused)} == {SubjectRefused}
            await desk.finished(*others)
        kept = await stored(control)
        assert ties(kept)[1:9] == chain(kept[:9], 2), "through an account of one's own too"
        assert ours(kept) == [item.body for item in others]
        check_receipts(desk, others, kept)
    finally:
        await control.close()
        await server.stop()


# --- servers ---------------------------------------------------------------------------------------------------------


async def test_kill_nine_with_linked_batches_in_flight(nats_server: NatsServer, control: Connection) -> None:
    """Through five kill -9 nothing is lost, nothing is stored twice, and the order is that of submitting."""
    async with desk_at(nats_server.url, window=1024, give_up_s=60.0) as desk:
        stop = asyncio.Event()
        load = asyncio.create_task(under_load(desk, stop))
        for _ in range(5):
            await more_acks(desk, 700)
            await until(lambda: desk.publisher.in_flight > 100)
            nats_server.kill()
            await nats_server.restart()
        await more_acks(desk, 500)
        stop.set()
        items = await load
        assert await desk.publisher.drain(DEADLINE_S)
    await until(lambda: control.connected)
    kept = await stored(control)
    assert ours(kept) == [item.body for item in items]
    check_receipts(desk, items, kept)
    assert sum(tie is not None for tie in ties(kept)) > len(kept) // 4, "many were linked"


@pytest.mark.parametrize("count", [8, 9, 64, 1024])
async def test_killed_with_every_event_on_its_way(count: int, nats_server: NatsServer, control: Connection) -> None:
    """Nobody reads an ack before the server is gone, which has none, some or all; each is stored once in the end."""
    async with desk_at(nats_server.url, give_up_s=60.0) as desk:
        items = await begun(desk)
        for _ in range(max(1, count // 64)):
            items += desk.submit(min(count, 64))
        assert all(item.after for item in items[1:])
        nats_server.kill()
        await nats_server.restart()
        await desk.finished(*items)
    await until(lambda: control.connected)
    kept = await stored(control)
    assert ours(kept) == [item.body for item in items]
    check_receipts(desk, items, kept)


@asynccontextmanager
async def _proxied(server: NatsServer) -> AsyncIterator[Proxy]:
    """A proxy in front of *server*."""
    async with anyio.create_task_group() as group:
        proxy = Proxy(int(server.url.rpartition(":")[2]))
        await group.start(proxy.run)
        yield proxy
        group.cancel_scope.cancel()


@pytest.mark.parametrize("cut", ["line", "headers", "body"])
@pytest.mark.parametrize("whole", [0, 1, 2, 3, 7])
async def test_a_connection_that_ends_within_a_frame(
    whole: int, cut: str, nats_server: NatsServer, control: Connection
) -> None:
    """Some frames came whole, one in part, the rest not at all: each event is stored once and in order."""
    async with _proxied(nats_server) as proxy, desk_at(proxy.url, **PATIENT) as desk:
        items = await begun(desk)
        with held(desk) as frames:
            items += [desk.event(body=b'"%d"' % n) for n in range(8)]
            desk.publisher.submit(items[1:])
        assert quiet(frames) == [True, False] * 4
        part = frames[whole]
        end = {"line": 6, "headers": part.index(AFTER.encode()) + len(AFTER) + 9, "body": len(part) - 4}[cut]
        desk.publisher._connection.write(b"".join(frames[:whole]) + part[:end])
        await _holds(control, 1 + whole)
        proxy.cut()
        await desk.finished(*items)
        kept = await stored(control)
    assert ours(kept) == [item.body for item in items]
    check_receipts(desk, items, kept)


async def _holds(control: Connection, count: int) -> None:
    """Wait until so many events are stored."""
    async with asyncio.timeout(DEADLINE_S):
        while (await api(control, f"STREAM.INFO.{STREAM}"))["state"]["messages"] < count:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def _cluster(directory: Path) -> AsyncIterator[str]:
    """Three servers; where clients connect."""
    ports = free_ports(6)
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[:3])
    async with AsyncExitStack() as stack:
        servers = []
        for n in range(3):
            place = directory / f"n{n}"
            config = plain_config(place / "store")
            config += f'\ncluster {{ name: mesh, listen: "127.0.0.1:{ports[n]}", routes: [{routes}] }}\n'
            servers.append(await NatsServer.start(config, place, port=ports[3 + n], name=f"n{n}"))
            stack.push_async_callback(servers[-1].stop)
        yield ",".join(server.url for server in servers)


async def _made(control: Connection, replicas: int) -> None:
    """The stream, once the servers have chosen who makes streams, and know each other; until then nobody answers."""
    async with asyncio.timeout(3 * DEADLINE_S):
        while True:
            with suppress(Unavailable, AssertionError):
                await control.request("$JS.API.INFO", b"", timeout_s=0.2)
                return await make_stream(control, num_replicas=replicas)
            await asyncio.sleep(0.05)


async def _one(control: Connection, place: int) -> Stored:
    """What stands there: of a cluster, whose servers hear of a new consumer in their own time."""
    found = (await api(control, f"STREAM.MSG.GET.{STREAM}", {"seq": place}))["message"]
    headers = wire.parse_headers(b64decode(found["hdrs"])) if "hdrs" in found else {}
    return Stored(found["subject"], headers, b64decode(found.get("data", "")))


@pytest.mark.parametrize("replicas", [3, 1])
async def test_in_a_cluster_nothing_is_linked(replicas: int, tmp_path: Path) -> None:
    """Each event has an ack of its own: a leader would refuse a message id for minutes whose link did not hold."""
    async with _cluster(tmp_path) as urls:
        control = await Connection.open(urls, name="control")
        await _made(control, replicas)
        async with desk_at(urls, give_up_s=60.0) as desk:
            first = desk.submit(1)
            await desk.finished(*first)
            items = [*first, *desk.submit(64), *desk.submit(64)]
            await desk.finished(*items)
        kept = [await _one(control, place) for place in range(1, 130)]
        assert ours(kept) == [item.body for item in items]
        assert not any(ties(kept))
        check_receipts(desk, items, kept)
        await control.close()
