"""Events that the door hands on unread: whatever it answers, stores, records and counts is what it does for drafts."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from agent import metrics
from agent.lifecycle import Sidecar
from agent.outbound import Outbound
from mesh import native, spans
from mesh.errors import NoDomainKey
from mesh.event import encode
from mesh.journey import Departures
from mesh.jsontext import MAX_DEPTH
from tests.contract.agent_mesh import POLICIES, Answer, Http, Streams, event, sidecar, until, write_directory
from tests.contract.test_agent_doors import ROWS, request_of
from tests.contract.test_repeats import kept

pytestmark = pytest.mark.anyio

BATCH = {"Content-Type": "application/cloudevents-batch+json"}
RUN = "ab" * 8  # in the place of what is different each time something is sent
MANY = 70  # more than are decided at once
SPANS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OF_HEADS = {"header_times", "headers", "lines", "method", "path", "version"}  # in rows: what is wrong is no body
COUNTERS = (metrics.ACCEPTED, metrics.UNREAD, metrics.DUPLICATES, metrics.UNDURABLE, metrics.REFUSED)
GIVEN_TIME = "2026-01-31T12:00:00Z"
OF_ITS_TIME = [
    (rb'("instance"|"sequence"|"time"):"(?!%b)[^"]*"' % GIVEN_TIME.encode(), rb"\1:0"),
    (rb'"seq":[0-9]+', b'"seq":0'),
]


def text(**changes: Any) -> bytes:
    """One event as we would write it."""
    return encode(event(**{"id": RUN, **changes}))


def batch(*events: bytes) -> bytes:
    """Of them."""
    return b"[%b]" % b",".join(events)


GOOD, BAD, BAD_TYPE = text(), b'{"id": ""}', text(type="Crm")
DENIED, EXPIRED = text(source="/billing"), text(expirytime="2020-01-01T00:00:00Z")
LONG = text(data={"emails": ["a"] * 20_000})  # once it is masked
BODIES: dict[str, bytes] = {
    "as we write it": GOOD,
    "with spaces": json.dumps(event(id=RUN, subject="x")).encode(),
    "with all attributes": text(
        time=GIVEN_TIME, partitionkey="k", correlationid="c", subject="s", number=7, traceparent=SPANS
    ),
    "with escapes": GOOD.replace(b"Ada", rb"\u0041da"),
    "with a name twice": GOOD.replace(b'"DE"', b'"FR","country":"DE"'),
    "with a number that we write otherwise": text(data={"country": "DE"}).replace(b'"DE"', b"1e3"),
    "with an attribute that is null": GOOD[:-1] + b',"subject":null}',
    "with a state and no trace": text(tracestate="a=b"),
    "without data": text(data=None),
    "with a list as data": text(data=[1, {"email": "x"}]),
    "with binary data": text(data=None, data_base64="AAEC"),
    "as deep as may be": text(data=0).replace(b'"data":0', b'"data":%b%b' % (b"[" * 63, b"]" * 63)),
    "that expires later": text(expirytime="2999-01-01T00:00:00Z"),
    "that nobody reads": text(type="crm.lead.created.v1"),
    "denied by source": DENIED,
    "denied by a rule": text(data={"account": "x-test"}),
    "expired": EXPIRED,
    "too long once it is masked": LONG,
    "too long": text(data="x" * 262_100),
    "no event": BAD,
    "no JSON": b"{",
    "too deep": text(data=0).replace(b'"data":0', b'"data":%b%b' % (b"[" * MAX_DEPTH, b"]" * MAX_DEPTH)),
}
ACCEPTED = [
    each.replace(RUN.encode(), b"%b-%d" % (RUN.encode(), number))
    for number, each in enumerate(list(BODIES.values())[:14])
]
BATCHES: dict[str, bytes] = {
    "of none": b" [ ] ",
    "of one": batch(GOOD),
    "of one that is none": batch(BAD),
    "of one that is denied": batch(DENIED),
    "of one that is expired": batch(EXPIRED),
    "of one that is too long once it is masked": batch(LONG),
    "of all that are accepted": batch(*ACCEPTED),
    "with one that is none behind": batch(GOOD, BAD_TYPE),
    "with two that are none": batch(GOOD, BAD_TYPE, BAD),
    "that is denied, and then none": batch(DENIED, GOOD, BAD),
    "that is expired, and then none": batch(GOOD, EXPIRED, GOOD, BAD_TYPE),
    "that is too long once it is masked, and then none": batch(LONG, BAD),
    "that is none, and then denied": batch(BAD_TYPE, DENIED),
    "that is denied, and then expired": batch(GOOD, DENIED, EXPIRED),
    "with numbers in it": batch(GOOD, b"1"),
    "that ends early": batch(GOOD)[:-1],
    "that is an object": GOOD,
    "of bad UTF-8": batch(GOOD, b'{"id":"\xff"}'),
    "of many": batch(*(text(id=f"{RUN}-{number}") for number in range(MANY))),
    "of many, the last none": batch(*[GOOD] * MANY, BAD),
    "of many, one denied": batch(*[GOOD] * 66, DENIED, *[GOOD] * 3),
    "of many, one denied and a later one none": batch(GOOD, GOOD, DENIED, *[GOOD] * MANY, BAD, BAD_TYPE),
    "of too many": batch(*[b"{}"] * 1001),
}  # fmt: skip


class Recorder:
    """In the place of the audit log."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def write(self, kind: str, **facts: object) -> None:
        """Keep it."""
        self.records.append((kind, facts))


class World(NamedTuple):
    """A door, and what is behind it."""

    door: Sidecar
    streams: Streams
    outbound: Outbound
    recorder: Recorder


class Seen(NamedTuple):
    """What came of a body, without what is different each time."""

    status: int
    headers: list[str]
    body: bytes
    stored: list[bytes]
    records: bytes
    counted: list[float]


@pytest.fixture(scope="module")
async def streams(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Streams]:
    """The tenant's streams and a bundle, in which a list of values is masked."""
    async with Streams.running(tmp_path_factory.mktemp("nats"), bundle=False) as running:
        policies = POLICIES.replace("{data.country:", '{"data.emails[*]": [pii.contact.email], data.country:')
        assert policies != POLICIES
        await running.hand_out(policies=policies)
        yield running


@pytest.fixture(scope="module")
async def door(streams: Streams, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sidecar]:
    """One sidecar, which nobody waits long for."""
    base = write_directory(tmp_path_factory.mktemp("agent"))
    async with sidecar(base, streams.server.url, admit_wait_s=0.05) as running:
        await until(lambda: not running.agent.not_ready())
        assert (await Http(running.intake.url, token(running)).post(event())).status == 202
        yield running


@pytest.fixture
def outbound(door: Sidecar) -> Outbound:
    """What its agent publishes through."""
    found = door.agent.outbound
    assert found is not None
    return found


@pytest.fixture
def world(door: Sidecar, streams: Streams, outbound: Outbound, monkeypatch: pytest.MonkeyPatch) -> World:
    """All of it; what the agent refuses is written to the recorder."""
    made = Recorder()
    monkeypatch.setattr(outbound, "_audit", made)
    return World(door, streams, outbound, made)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each event whose bytes got as far as the way out: whether it took the short one."""
    ways: list[bool] = []
    of_text = Departures.of_text

    def looked(way: Departures, *given: Any) -> Any:
        made = of_text(way, *given)
        ways.append(made is not None)
        return made

    monkeypatch.setattr(Departures, "of_text", looked)
    return ways


def token(door: Sidecar) -> str:
    """Of its application."""
    return (door.agent.base / "token").read_text().strip()


async def send(world: World, body: bytes, headers: dict[str, str], *, again: bool) -> Seen:
    """What comes of *body*, over a new connection or over one on which the same kind of request came *again*."""
    door, run = world.door, secrets.token_hex(8)
    sent = body.replace(RUN.encode(), run.encode())
    async with kept(door) as connection:
        if again:
            first = batch(GOOD) if "Content-Type" in headers else GOOD
            assert (await connection.send(connection.request(first, headers))).status == 202
        world.recorder.records.clear()
        counted = [counter.total() for counter in COUNTERS]
        if again:
            answer = await connection.send(connection.request(sent, headers))
        else:
            answer = await Http(door.intake.url, token(door)).post(sent, headers=headers)
    copies = [(each["stream"], each["seq"]) for receipt in receipts(answer) for each in receipt["copies"]]
    stored = [encode(await world.streams.message(*copy)) for copy in copies]
    return Seen(
        answer.status,
        sorted(answer.headers),
        plain(answer.body, run),
        [plain(each, run) for each in stored],
        plain(json.dumps(world.recorder.records).encode(), run),
        [counter.total() - before for counter, before in zip(COUNTERS, counted, strict=True)],
    )


def receipts(answer: Answer) -> list[Any]:
    """Of what was accepted."""
    if answer.status != 202:
        return []
    said: Any = answer.json
    return said.get("events", [said])  # type: ignore[no-any-return]


def plain(said: bytes, run: str) -> bytes:
    """*said*, without what is different each time."""
    said = said.replace(run.encode(), RUN.encode())
    for pattern, instead in OF_ITS_TIME:
        said = re.sub(pattern, instead, said)
    return said


async def check(world: World, kind: dict[str, str], bodies: list[bytes]) -> set[tuple[int, int | None]]:
    """Both ways answer, store, record and count the same for each body; the statuses and indexes there were."""
    door, outbound = world.door, world.outbound
    found = set()
    for body in bodies:
        for headers, again in (({}, False), ({"traceparent": SPANS}, False), ({}, True)):
            unread = await send(world, body, {**kind, **headers}, again=again)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(outbound, "decides_at_once", lambda _: False)
                read = await send(world, body, {**kind, **headers}, again=again)
            assert unread == read, body[:200]
            assert (outbound.room.used, door.agent._bytes.used) == (0, 0)
            found.add((unread.status, json.loads(unread.body).get("index")))
    return found


async def test_a_single_event_is_answered_the_same_unread(world: World) -> None:
    """Good and bad ones: receipt or problem, what is stored and what is recorded; an index would be of nothing."""
    rows = [request_of(row)["body"] for row in ROWS if not OF_HEADS & row.keys()]
    assert len(rows) > 40
    found = await check(world, {}, [*BODIES.values(), *rows])
    assert found == {(status, None) for status in (202, 400, 403, 413, 422)}


async def test_a_batch_is_answered_the_same_unread(world: World) -> None:
    """What is no event is told before what is refused, wherever each of them stands."""
    found = await check(world, BATCH, list(BATCHES.values()))
    assert found >= {(202, None), (400, None), (400, 0), (400, 1), (400, 70), (400, 73), (403, None), (403, 66)}


@pytest.mark.skipif(native.compiled is None, reason="nothing is compiled, so there is one way")
async def test_events_take_the_short_way_out(door: Sidecar, taken: list[bool]) -> None:
    """Single ones and those of batches, on a connection that is kept, too; none of a request that has a trace."""
    http = Http(door.intake.url, token(door))
    assert (await http.post(text())).status == 202
    assert taken == [True]
    assert (await http.post(batch(*[text()] * MANY), headers=BATCH)).status == 202
    assert taken == [True] * (1 + MANY)
    async with kept(door) as connection:
        assert (await connection.send(connection.request(text()))).status == 202
    assert taken == [True] * (3 + MANY)
    taken.clear()
    assert (await http.post(text(), headers={"traceparent": SPANS})).status == 202
    assert not taken


async def test_where_traces_are_recorded_events_are_read(
    door: Sidecar, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A span says what they are."""
    monkeypatch.setattr(spans, "tracer", SimpleNamespace(samples=lambda _: False))
    assert (await Http(door.intake.url, token(door)).post(text())).status == 202
    assert not taken


@pytest.mark.parametrize(("kind", "good", "bad"), [({}, GOOD, BAD), (BATCH, batch(GOOD), batch(GOOD, BAD))])
async def test_what_is_no_event_waits_for_no_room(
    door: Sidecar, outbound: Outbound, kind: dict[str, str], good: bytes, bad: bytes
) -> None:
    """Where there is none, a good one is told so, and a bad one what is wrong with it."""
    http, used = Http(door.intake.url, token(door)), outbound.room.free
    await outbound.room.enter(used)
    try:
        full, wrong = await http.post(good, headers=kind), await http.post(bad, headers=kind)
    finally:
        outbound.room.leave(used)
    assert (full.status, full.json["code"]) == (503, "overloaded")
    assert (wrong.status, wrong.json["code"]) == (400, "bad-attribute")


async def test_what_is_no_event_waits_for_no_other_request(door: Sidecar, outbound: Outbound) -> None:
    """Large batches are decided one after the other; one with a bad event is told at once."""
    async with outbound._turn, asyncio.timeout(30):
        answer = await Http(door.intake.url, token(door)).post(batch(*[GOOD] * MANY, BAD), headers=BATCH)
    assert (answer.status, answer.json["index"]) == (400, MANY)


async def test_what_is_no_event_is_told_before_a_key_that_is_missing(
    door: Sidecar, outbound: Outbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first event cannot be masked, and only sending again helps; the second is why that would be in vain."""

    def lacking(name: str) -> bytes:
        raise NoDomainKey(f"no key of {name}")

    masks = SimpleNamespace(domain=lacking, cipher=lacking)
    monkeypatch.setattr(outbound, "_keys", SimpleNamespace(masks=masks, dedupe=bytes(32)))
    http = Http(door.intake.url, token(door))
    missing = await http.post(batch(GOOD, GOOD), headers=BATCH)
    wrong = await http.post(batch(GOOD, BAD), headers=BATCH)
    assert [(each.status, each.json["index"]) for each in (missing, wrong)] == [(503, 0), (400, 1)]
