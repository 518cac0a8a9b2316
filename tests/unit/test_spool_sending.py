"""The way out of the spool: one probe, then the others in order; what comes back stands where it stood."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.spool import sending as module
from agent.spool.database import Row
from agent.spool.record import Copy, RefusedRow, Sent
from agent.spool.resent import READ_AHEAD_BYTES, ReadAhead
from agent.spool.sending import PROBE_BYTES, Sending, flight_bytes
from agent.spool.tools import Tools
from mesh.errors import Disconnected, MeshError, RequestFailed, SubjectRefused
from mesh.jetstream.acks import PubAck
from mesh.jetstream.outgoing import Outgoing

pytestmark = pytest.mark.anyio


class Bench:
    """A sending with everything around it, and what happened: all in memory, and at once."""

    def __init__(self, count: int) -> None:
        self.rows = [
            Row(n, "EV", n, Copy("ev.l.v.s00.a.b.v1", "/a", f"e-{n}", None, b"%d" % n)) for n in range(1, count + 1)
        ]
        self.sent: list[Outgoing] = []
        self.known: dict[int, Sent] = {}
        self.gone: list[int] = []
        self.reads: list[int] = []
        self.aside: list[tuple[int, str]] = []
        self.kept_aside: list[int] = []
        self.asides = 0  # calls of the store for that
        self.verdicts: dict[int, str] = {}
        self.fails: MeshError | None = None
        self.publisher = SimpleNamespace(blocked="", room=4096, max_body=1000, submit=self._submit)
        self.clock = 100.0
        self.read_ahead = ReadAhead()
        self.store = store = SimpleNamespace(
            read=self._read, mark_sent=self._mark, delete=self._delete, refuse=self._refuse, drop=self._drop
        )
        tools = SimpleNamespace(
            store=store,
            publisher=self.publisher,
            egress=SimpleNamespace(judge=lambda copy, *_: self.verdicts.get(int(copy.body), copy.body)),
            policies=SimpleNamespace(today=self._today),
            next_sent=lambda sent: sent if sent.first_signed_ms else Sent(0, 7, ("k",)),
            now_ms=lambda: 7,
            drained=lambda *_: None,
            read_ahead=self.read_ahead,
            refused=lambda rows, reason, _forgotten: self.aside.extend((row.id, reason) for row in rows),
        )
        self.sending = Sending(
            "EV",
            cast("Tools", tools),
            unread=count,
            on_gone=lambda rows: self.gone.extend(row.id for row in rows),
            on_news=lambda: None,
        )
        self.sending._loop = cast("asyncio.AbstractEventLoop", SimpleNamespace(time=lambda: self.clock))

    @staticmethod
    async def _today() -> None:
        return None

    def _read(self, _stream: str, after: int, *, limit: int, max_bytes: int) -> asyncio.Future[list[Row]]:
        assert max_bytes > 0
        self.reads.append(max_bytes)
        return _done([row for row in self.rows if row.id > after][:limit])

    def _mark(self, sent: Sequence[tuple[int, Sent]]) -> asyncio.Future[None]:
        self.known.update(sent)
        return _done(None)

    def _delete(self, _ids: Sequence[int], done: Any) -> None:
        done(None)

    def _refuse(self, rows: Sequence[Row], _reason: str, _now_ms: int) -> asyncio.Future[list[RefusedRow]]:
        self.kept_aside += [row.id for row in rows]
        self.asides += 1
        return _done([])

    def _drop(self, _ids: Sequence[int]) -> asyncio.Future[None]:
        self.asides += 1
        return _done(None)

    def _submit(self, items: Sequence[Outgoing]) -> None:
        if self.fails is not None:
            raise self.fails
        for item in items:
            number = int(item.body)
            assert self.known[number].first_signed_ms == item.first_signed_ms, "it is remembered before it is sent"
        self.sent += items

    async def advance(self) -> list[int]:
        """As far as it goes; what was sent."""
        before = len(self.sent)
        while await self.sending.advance():
            pass
        return [int(item.body) for item in self.sent[before:]]

    async def drain(self) -> list[int]:
        """Flight after flight, each taken by the stream; what was sent."""
        sent: list[int] = []
        while flight := await self.advance():
            for number in flight:
                self.answer(number, ACK)
            sent += flight
        return sent

    def answer(self, number: int, result: PubAck | MeshError) -> None:
        """What became of the last sending of a copy."""
        item = next(item for item in reversed(self.sent) if int(item.body) == number)
        item.on_done(item, result)


def _done(value: Any) -> asyncio.Future[Any]:
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


ACK = PubAck("EV", 1)


async def test_the_oldest_goes_ahead_alone() -> None:
    """Nothing else is sent before the stream took the probe; then all the others are, in their order."""
    bench = Bench(600)
    assert await bench.advance() == [1]
    assert await bench.advance() == []
    bench.answer(1, ACK)
    assert await bench.drain() == list(range(2, 601))
    assert bench.gone == list(range(1, 601))


async def test_a_flight_sets_out_once_the_one_before_it_has_landed() -> None:
    """What the stream lost of a flight is sent again before anything behind it ever was."""
    bench = Bench(600)
    await bench.advance()
    bench.answer(1, ACK)
    flight = await bench.advance()
    assert flight == list(range(2, 50)), "48 KiB"
    for number in flight[:-1]:
        bench.answer(number, ACK)
    assert await bench.advance() == []
    bench.answer(flight[-1], Disconnected("gone"))
    bench.sending.not_before = 0.0
    assert (await bench.advance())[0] == flight[-1]


async def test_the_next_flight_is_made_ready_meanwhile() -> None:
    """Once the flight under way has landed, nothing has to be read or remembered before the next one."""
    bench = Bench(400)
    await bench.advance()
    bench.answer(1, ACK)
    await bench.advance()
    assert await bench.advance() == []
    assert set(bench.known) == set(range(1, 401))


async def test_a_copy_is_made_ready_once() -> None:
    """However many acks of the flight before it come one by one: how it is sent is looked at then, and when it goes."""
    bench = Bench(400)
    next_sent, looks = bench.sending._tools.next_sent, 0

    def counted(sent: Sent) -> Sent:
        nonlocal looks
        looks += 1
        return next_sent(sent)

    bench.sending._tools.next_sent = counted  # type: ignore[method-assign]
    bench.answer((await bench.advance())[0], ACK)
    while flight := await bench.advance():
        for number in flight:
            bench.answer(number, ACK)
            if number != flight[-1]:
                assert await bench.advance() == []
    assert len(bench.gone) == 400
    assert looks <= 2 * 400


async def _drain_far(bench: Bench, ack_s: float, count: int) -> float:
    """Copies a second where every ack takes that long."""
    began = bench.clock
    while flight := await bench.advance():
        bench.clock += ack_s
        for number in flight:
            bench.answer(number, ACK)
    assert len(bench.gone) == count
    return count / (bench.clock - began)


@pytest.mark.parametrize("ack_s", [0.01, 0.03, 0.08])
async def test_a_far_stream_is_drained_as_fast(ack_s: float) -> None:
    """The longer an ack takes, the larger the flights: over 2,000 copies a second, so that the spool gets empty."""
    bench = Bench(5000)
    bench.sending._tools.egress.judge = lambda copy, *_: copy.body.ljust(1000)  # type: ignore[method-assign]
    bench.publisher.max_body = 2000
    assert await _drain_far(bench, ack_s, 5000) > 2000


async def test_after_a_loss_flights_are_as_small_as_can_be() -> None:
    """How long an ack took that had to be asked for again says nothing of the way, but that leaders change."""
    bench = Bench(600)
    (probe,) = await bench.advance()
    bench.clock += 1.0
    bench.sent[-1].sends = 3
    bench.answer(probe, ACK)
    assert await bench.advance() == list(range(2, 50)), "48 KiB"


def test_a_flight_has_its_limits() -> None:
    """Below what a server reads at once near by, and bounded however slow a stream is."""
    assert [flight_bytes(ack_s) for ack_s in (0.0, 0.01, 0.03, 60.0)] == [49152, 49152, 147456, 1024 * 1024]


async def test_what_comes_back_stands_where_it_stood() -> None:
    """A probe is sent again as it was; of many that come back in any order the oldest is the next probe."""
    bench = Bench(10)
    await bench.advance()
    bench.answer(1, Disconnected("gone"))
    bench.sending.not_before = 0
    assert await bench.advance() == [1]
    bench.answer(1, ACK)
    await bench.advance()
    bench.sending.healthy = False
    for number in (5, 3, 4, 2, 10, 9, 8, 7, 6):
        bench.answer(number, Disconnected("gone"))
    assert await bench.advance() == [2]
    bench.answer(2, ACK)
    assert await bench.advance() == list(range(3, 11))


async def test_what_cannot_be_submitted_comes_back() -> None:
    """No key, no room: the error is the caller's to wait out, and nothing is lost."""
    bench = Bench(3)
    bench.fails = Disconnected("closed")
    with pytest.raises(Disconnected):
        await bench.advance()
    bench.fails = None
    assert await bench.advance() == [1]


async def test_what_may_not_be_sent_is_put_aside_and_others_go_on() -> None:
    """By reason; copies before and behind it are sent in order."""
    bench = Bench(8)
    bench.verdicts = {1: "no-reader", 2: "event-expired", 5: "no-reader", 6: "no-reader"}
    assert await bench.advance() == [3]
    bench.answer(3, ACK)
    assert await bench.advance() == [4, 7, 8], "in one flight"
    assert sorted(bench.aside) == [(1, "no-reader"), (2, "event-expired"), (5, "no-reader"), (6, "no-reader")]


async def test_what_expired_is_not_kept() -> None:
    """Nobody wants more of it than to know that it did; what policy refuses is kept for people."""
    bench = Bench(3)
    bench.verdicts = {1: "event-expired", 2: "no-reader"}
    await bench.advance()
    assert bench.aside == [(1, "event-expired"), (2, "no-reader")]
    assert bench.kept_aside == [2]
    assert bench.gone == [1, 2]


async def test_what_may_not_be_sent_goes_together_though_the_stream_does_not_answer() -> None:
    """Not one copy for each turn of the disk: the probe behind them is what others wait for."""
    bench = Bench(600)
    bench.verdicts = dict.fromkeys(range(1, 600), "no-reader")
    assert await bench.advance() == [600]
    assert bench.asides == 3
    assert bench.kept_aside == list(range(1, 600))


async def test_what_is_acknowledged_is_deleted_at_the_end_too() -> None:
    """Closed while the disk is at a deletion: what was acknowledged meanwhile is deleted as well."""
    bench = Bench(600)
    deleted: list[int] = []
    pending: list[Any] = []

    def slow(ids: Sequence[int], done: Any) -> None:
        deleted.extend(ids)
        pending.append(done)

    bench.store.delete = slow
    await bench.advance()
    bench.answer(1, ACK)
    await bench.drain()
    assert deleted == [1]
    bench.sending.close()
    assert deleted == list(range(1, 601))
    for done in pending:
        done(None)
    assert bench.gone == deleted


async def test_memory_is_bounded() -> None:
    """Little is read while the stream does not answer; then no more than all streams together may hold."""
    bench = Bench(600)
    bench.read_ahead.used = READ_AHEAD_BYTES
    assert await bench.advance() == [1]
    assert set(bench.reads) == {PROBE_BYTES}
    bench.answer(1, ACK)
    flight = await bench.advance()
    assert len(bench.reads) == 1, "others hold it all"
    bench.read_ahead.used -= READ_AHEAD_BYTES
    for number in flight:
        bench.answer(number, ACK)
    assert await bench.drain() == list(range(flight[-1] + 1, 601))
    assert bench.read_ahead.used == 0


async def test_a_copy_that_no_time_makes_fit_is_put_aside() -> None:
    """Too large for this server, or for the stream."""
    bench = Bench(3)
    bench.publisher.max_body = 0
    assert await bench.advance() == []
    assert bench.aside == [(1, "too-large"), (2, "too-large"), (3, "too-large")]
    bench = Bench(2)
    await bench.advance()
    bench.answer(1, RequestFailed("message size exceeds maximum allowed", err_code=10054))
    assert await bench.advance() == [2]
    assert bench.aside == [(1, "too-large")]


async def test_a_subject_that_nats_refuses_is_tried_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import may lag: a minute of tries, one at a time; then it is put aside, for others wait behind it."""
    bench = Bench(2)
    for _ in range(3):
        assert await bench.advance() == [1]
        bench.answer(1, SubjectRefused("no"))
        assert bench.sending.not_before > bench.clock
    assert bench.aside == []
    monkeypatch.setattr(module, "SUBJECT_LIMIT_S", 0.0)
    await bench.advance()
    bench.answer(1, SubjectRefused("no"))
    assert await bench.advance() == [2]
    assert bench.aside == [(1, "subject-refused")]


async def test_another_error_of_the_stream_puts_nothing_aside() -> None:
    """Whatever it means, it may pass: the copy stays the next one."""
    bench = Bench(2)
    await bench.advance()
    bench.answer(1, RequestFailed("JetStream not enabled for account", err_code=10039))
    assert await bench.advance() == [1]
    assert bench.aside == []
