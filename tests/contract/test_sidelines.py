"""What is asked for again beside what is live: replays and redrives of a running subscription, and what is too late."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest

from mesh import deadletters, redriven, sidelines
from mesh.inbound import Admitted
from mesh.jetstream import manage
from mesh.jetstream.durables import REDRIVE_STREAM
from mesh.subscription import Subscription
from tests.contract.agent_mesh import until
from tests.contract.consumer_mesh import GRACE, STREAM, Source, take
from tests.contract.ordered_mesh import OrderedSource

pytestmark = pytest.mark.anyio


async def until_taken(
    source: OrderedSource, reading: Subscription, count: int, kind: str, stream: str
) -> list[Admitted]:
    """Say that a run is open until *count* events of it were taken and acked."""
    got: list[Admitted] = []
    async with anyio.create_task_group() as group:

        async def say() -> None:
            while True:
                await source.notice(kind, "run-1", stream, **{stream: 2})
                await anyio.sleep(0.1)

        group.start_soon(say)
        got = await take(reading, count)
        group.cancel_scope.cancel()
    return got


async def test_a_replay_brings_handled_events_again_up_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marked, in order, and not dropped as duplicates; silence ends it, and what is live goes on."""
    monkeypatch.setattr(sidelines, "OVER_S", 1.0)
    async with (
        OrderedSource.ordered(tmp_path, GRACE) as source,
        source.reader() as reader,
        reader.subscription() as reading,
    ):
        await source.publish("e1", "e2", "e3")
        assert [event.replayed for event in await take(reading, 3)] == [False] * 3
        stream = await source.replay()
        again = await until_taken(source, reading, 2, "replay", stream)
        assert [(event.id, event.replay) for event in again] == [("e1", "run-1"), ("e2", "run-1")]
        info = await manage.consumer_info(source.streams.connection, STREAM, "support--contacts--replay")
        with anyio.fail_after(60):
            while info["num_pending"] + info["num_ack_pending"]:  # e3 came after the end: acked unseen
                await anyio.sleep(0.05)
                info = await manage.consumer_info(source.streams.connection, STREAM, "support--contacts--replay")
        await until(lambda: not reading.feed._sidelines.replays)
        await source.publish("e4")
        assert [event.id for event in await take(reading, 1)] == ["e4"]


async def test_a_redriven_letter_is_verified_and_handled_as_its_event(tmp_path: Path) -> None:
    """It comes by the stream REDRIVE, passes every check with its old signature, and names its run."""
    async with OrderedSource.ordered(tmp_path, GRACE) as source, source.reader() as reader:
        async with reader.subscription() as reading:
            await source.publish("e1")
            delivery = await reading.next()
            await delivery.reject("no customer")
            letter = (await manage.api(source.streams.connection, "STREAM.MSG.GET.DLQ", {"seq": 1}))["message"]
            record = msgspec.json.decode(msgspec.json.encode(letter["data"]), type=bytes)
            assert deadletters.read(record).reason == "no customer"
            await source.redrive(redriven.wrap("run-1", 1, record), b"no letter")
            (event,) = await until_taken(source, reading, 1, "redrive", REDRIVE_STREAM)
            assert (event.id, event.redrive, event.stream, event.sequence) == ("e1", "run-1", STREAM, 1)
            with anyio.fail_after(60):
                while len(await source.buried()) < 2:
                    await anyio.sleep(0.05)
        assert [reason for reason, _ in await source.buried()] == ["no customer", "bad-envelope"]


async def test_an_event_past_its_expirytime_is_acked_and_not_handed_out(tmp_path: Path) -> None:
    """Also one that expires while it waits here."""
    async with OrderedSource.ordered(tmp_path, GRACE) as source, source.reader() as reader:
        await source.publish_keys([("k", 1)], expirytime="2020-01-01T00:00:00Z")
        await source.publish_keys([("k", 2)], expirytime="2999-01-01T00:00:00Z")
        async with reader.subscription() as reading:
            (event,) = await take(reading, 1)
            assert event.data["country"] == "2"
            with anyio.fail_after(60):
                while not await Source.settled(source):
                    await anyio.sleep(0.05)
