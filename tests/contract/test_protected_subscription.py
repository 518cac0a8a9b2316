"""A subscription that protects its handler and itself, on a real durable: nothing is lost while it waits."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from mesh import protection
from mesh.delivery import CRASH_FACTOR, Reject
from mesh.inbound import Admitted
from mesh.inbox import SqliteInbox
from mesh.jetstream.wire import publish_frame
from mesh.poison import PoisonCap
from mesh.settler import DELIVERIES_EXHAUSTED
from mesh.subscription import Subscription
from tests.contract.consumer_mesh import DEADLINE_S, DURABLE, GRACE, STREAM, Source

IDS = [f"e-{number:02}" for number in range(12)]

pytestmark = pytest.mark.anyio


def policies(limits: str) -> str:
    """The policies of these tests, with more in the subscription's spec."""
    retry = "retry: {attempts: 1, ack_wait: 30s}"
    assert retry in GRACE
    return GRACE.replace(retry, f"retry: {{attempts: 5, backoff: [10ms], ack_wait: 30s}}, {limits}")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    with anyio.fail_after(DEADLINE_S):
        while not condition():
            await anyio.sleep(0.005)


@asynccontextmanager
async def handling(
    source: Source, handler: Callable[[Admitted], Awaitable[object]], *, concurrency: int = 1
) -> AsyncIterator[Subscription]:
    """The subscription, with a handler that is called with so many events at a time."""
    async with source.reader() as reader, reader.subscription() as reading, anyio.create_task_group() as group:
        group.start_soon(functools.partial(reading.run, handler, concurrency=concurrency))
        yield reading
        group.cancel_scope.cancel()


async def settled(source: Source) -> None:
    """Wait until the server has nothing left."""
    with anyio.fail_after(DEADLINE_S):
        while not await source.settled():
            await anyio.sleep(0.02)


async def test_an_open_breaker_calls_nobody_and_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After three failures in a row nothing is handed out for a second; then the handler works, and all events come."""
    caplog.set_level(logging.INFO, "mesh")
    calls: list[float] = []
    handled: list[str] = []

    async def handle(event: Admitted) -> None:
        calls.append(time.monotonic())
        if len(calls) <= 3:
            raise LookupError
        handled.append(event.id)

    async with Source.running(tmp_path, policies("breaker: {failures: 3, open: 1s}")) as source:
        await source.publish(*IDS)
        async with handling(source, handle) as reading:
            await until(lambda: len(handled) == len(IDS))
            assert reading.state == "running"
            await settled(source)
        assert sorted(handled) == IDS
        assert await source.buried() == []
    assert calls[3] - calls[2] >= 0.9  # a bound from below: however slow the machine is
    assert [name for name in caplog.messages if name.startswith("breaker")] == ["breaker_opened", "breaker_closed"]


async def test_too_many_dead_letters_pause_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that rejects everything buries ten events and then none; once it is repaired it gets the others."""
    monkeypatch.setattr(protection, "PoisonCap", functools.partial(PoisonCap, first_pause_s=1.0))
    caplog.set_level(logging.INFO, "mesh")
    calls: list[float] = []
    handled: list[str] = []

    async def handle(event: Admitted) -> None:
        calls.append(time.monotonic())
        if len(calls) <= 10:
            raise Reject("unknown currency")
        handled.append(event.id)

    async with Source.running(tmp_path, policies("poison: {share: 0.5, of: 10}")) as source:
        await source.publish(*IDS)
        async with handling(source, handle) as reading:
            await until(lambda: len(handled) == len(IDS) - 10)
            assert reading.state == "running"
            await settled(source)
        assert len(await source.buried()) == 10
        assert handled == IDS[10:]
    assert calls[10] - calls[9] >= 0.9
    paused = [name for name in caplog.messages if name in {"subscription_paused", "subscription_resumed"}]
    assert paused == ["subscription_paused", "subscription_resumed"]


@pytest.mark.parametrize("more", ["", ", rate: 1000/s"], ids=["calm", "rated"])
async def test_who_waited_for_an_event_when_it_opened_hands_it_back(
    tmp_path: Path, more: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The breaker opens while another worker waits for an event: the next one stays in hand until it may be handled."""
    calls: list[str] = []
    inside, fails = anyio.Event(), anyio.Event()

    async def handle(event: Admitted) -> None:
        calls.append(event.id)
        if len(calls) == 1:
            inside.set()
            await fails.wait()
            raise LookupError

    async with (
        Source.running(tmp_path, policies("breaker: {failures: 1, open: 1s}" + more)) as source,
        handling(source, handle, concurrency=2),
    ):
        await source.publish("first")
        with anyio.fail_after(DEADLINE_S):
            await inside.wait()
            await anyio.wait_all_tasks_blocked()
        fails.set()
        await until(lambda: "breaker_opened" in caplog.messages)
        await source.publish("second")
        await until(lambda: len(calls) >= 3)  # within the deadline, and so not because ack_wait was over
        await settled(source)
    assert sorted(calls) == ["first", "first", "second"]


async def test_a_rate_is_kept_until_policies_lift_it(tmp_path: Path) -> None:
    """One event a minute after the first; a policy without the rate frees the others, in their order."""
    handled: list[str] = []

    async def handle(event: Admitted) -> None:
        handled.append(event.id)

    async with Source.running(tmp_path, policies("rate: 1/min")) as source:
        await source.publish(*IDS)
        async with handling(source, handle) as reading:
            await until(lambda: bool(handled))
            assert not reading.protection.calm
            assert handled == IDS[:1]
            await source.streams.hand_out(policies=policies("max_in_flight: 100"))
            await until(lambda: len(handled) == len(IDS))
            await settled(source)
    assert handled == IDS


async def test_events_that_nobody_lives_to_settle_pause_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash loop that went on for long: ten of its events are buried unhandled, the others stay where they are."""
    monkeypatch.setattr(protection, "PoisonCap", functools.partial(PoisonCap, first_pause_s=1000))
    handled: list[str] = []

    async def handle(event: Admitted) -> None:
        handled.append(event.id)

    limits = GRACE.replace("ack_wait: 30s}", "ack_wait: 30s}, poison: {share: 0.5, of: 10}")
    async with Source.running(tmp_path, limits) as source:
        await source.publish(*IDS)
        await deliver_and_crash(source, CRASH_FACTOR)
        async with handling(source, handle) as reading:
            await until(lambda: reading.state == "paused")
            assert [reason for reason, _ in await source.buried()] == [DELIVERIES_EXHAUSTED] * 10
    assert handled == []


async def deliver_and_crash(source: Source, times: int) -> None:
    """Have every event delivered so often that one more delivery is too many for one attempt; nothing is settled."""
    connection, came = source.streams.connection, 0

    def on_message(_subject: str, reply: str, _headers: bytes | None, _data: bytes) -> None:
        nonlocal came
        if reply.startswith("$JS.ACK."):
            came += 1
            connection.write(publish_frame(reply, b"-NAK"))

    inbox = connection.new_inbox()
    listener = connection.listen(inbox, on_message)
    ask = msgspec.json.encode({"batch": len(IDS) * times})
    await connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{DURABLE}", ask, reply=inbox)
    await until(lambda: came == len(IDS) * times)
    await connection.flush(DEADLINE_S)
    listener.close()


async def test_another_ack_wait_is_kept_while_it_runs(tmp_path: Path) -> None:
    """An event in a handler is signalled as often as the policies of now take: else another replica would get it."""
    opened = anyio.Event()

    async def handle(_event: Admitted) -> None:
        await opened.wait()

    async with Source.running(tmp_path) as source, handling(source, handle) as reading:
        signals: list[bytes] = []
        heard = f"$JS.ACK.{STREAM}.{DURABLE}.>"
        listener = source.streams.connection.listen(heard, lambda _s, _r, _h, data: signals.append(data))
        await source.publish("held")
        await until(lambda: reading.feed.pending == 1)
        await source.streams.hand_out(policies=GRACE.replace("ack_wait: 30s", "ack_wait: 500ms"))
        await until(lambda: signals.count(b"+WPI") >= 6)
        opened.set()
        await settled(source)
        listener.close()


async def test_other_attempts_count_while_it_runs(tmp_path: Path) -> None:
    """One attempt before, three by the policies of now: the event becomes a dead letter after the third."""
    calls: list[str] = []

    async def handle(event: Admitted) -> None:
        calls.append(event.id)
        raise LookupError

    async with Source.running(tmp_path) as source, handling(source, handle) as reading:
        retried = GRACE.replace("attempts: 1", "attempts: 3, backoff: [10ms]")
        await source.streams.hand_out(policies=retried)
        await until(lambda: reading.protection._grant.retry.attempts == 3)
        await source.publish("a")
        await settled(source)
        assert await source.buried() == [("attempts-exhausted", 1)]
    assert calls == ["a"] * 3


async def test_committed_and_not_acked_is_one_effect(tmp_path: Path) -> None:
    """Every event is handed back after its commit, as a process that dies there would; each has one effect."""
    async with Source.running(tmp_path, GRACE) as source:
        await source.publish(*IDS)
        done: list[str] = []
        with SqliteInbox("contacts", tmp_path / "desk.db") as inbox:
            handle = inbox.once(lambda _, event: done.append(event.id))
            for ends in (False, True):
                async with source.reader() as reader, reader.subscription() as reading:
                    with anyio.fail_after(DEADLINE_S):
                        for _ in IDS:
                            delivery = await reading.next()
                            await handle(delivery.event)
                            if ends:
                                delivery.ack()
        await settled(source)
    assert done == IDS
