"""Pull over HTTP against a real mesh: what is fetched, leased, settled and refused."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.lifecycle import Sidecar
from agent.pull.door import POLLS
from agent.pull.handing import OPEN
from mesh.jetstream import manage
from tests.contract.agent_mesh import POLICIES, until
from tests.contract.consumer_mesh import DURABLE, GRACE, STREAM, Source
from tests.contract.ordered_mesh import OrderedSource
from tests.contract.pull_mesh import RETRIES, Puller, client, ids, leases, sent, serving
from tests.stalls import Stalls, undisturbed

pytestmark = pytest.mark.anyio


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Source]:
    """A tenant with a publisher; an event of `contacts` has two attempts."""
    async with Source.running(tmp_path / "mesh", RETRIES) as source:
        yield source


@pytest.fixture
async def puller(source: Source, tmp_path: Path) -> AsyncIterator[Puller]:
    """A client of an agent of the team support."""
    async with serving(source, tmp_path / "agent") as agent:
        yield client(agent)


async def test_a_batch_is_fetched_and_acked(source: Source, puller: Puller) -> None:
    """What is there comes in one answer, in its order and in the team's view; acked, it is settled for good."""
    await source.publish("1", "2", "3")
    got = await everything(puller, 3)
    assert ids(got) == ["1", "2", "3"]
    assert [one["attempt"] for one in got] == [1, 1, 1]
    assert got[0]["event"]["view"] == "service"
    assert got[0]["expires_s"] == 30
    assert await puller.told("ack", *leases(got)) == [{"lease": lease, "ok": True} for lease in leases(got)]
    await until(source.settled)
    assert await puller.fetch("wait_s=0") == []


async def test_a_long_poll_wakes(source: Source, puller: Puller) -> None:
    """An event that comes while a client waits is its answer; with none in time the list is empty."""
    assert await puller.fetch("wait_s=0.05") == []
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(puller.fetch("wait_s=30"))
        await source.publish("1")
    assert ids(waiting.result()) == ["1"]


async def test_no_more_than_asked_for(source: Source, puller: Puller) -> None:
    """`max` bounds an answer; the rest is for the next."""
    await source.publish("1", "2", "3")
    assert [ids(await puller.fetch("max=1&wait_s=20")) for _ in range(3)] == [["1"], ["2"], ["3"]]


async def test_two_clients_share(source: Source, puller: Puller) -> None:
    """What one client has leased no other is handed."""
    other = Puller(puller.url, puller.token)
    await source.publish("1", "2")
    one, two = await asyncio.gather(puller.fetch("max=1&wait_s=20"), other.fetch("max=1&wait_s=20"))
    assert sorted(ids(one) + ids(two)) == ["1", "2"]
    assert await other.fetch("wait_s=0.05") == []


async def test_retried_it_comes_again_and_at_last_is_a_dead_letter(source: Source, puller: Puller) -> None:
    """Each retry is an attempt; after the last one the event is in the dead letters."""
    await source.publish("1")
    first = await puller.fetch()
    assert (await puller.told("retry", *leases(first)))[0]["ok"]
    second = await puller.fetch()
    assert (ids(second), second[0]["attempt"]) == (["1"], 2)
    assert (await puller.told("retry", *leases(second), delay_s=0))[0]["ok"]
    assert await source.buried() == [("attempts-exhausted", 1)]


async def test_a_retry_waits_as_long_as_it_says(source: Source, puller: Puller) -> None:
    """With `delay_s` the event is not there at once, though nothing else is in its way."""
    await source.publish("1")
    await puller.told("retry", *leases(await puller.fetch()), delay_s=3600)
    await source.publish("2")
    assert ids(await puller.fetch()) == ["2"]


async def test_a_rejected_event_is_a_dead_letter_before_the_answer(source: Source, puller: Puller) -> None:
    """Stored with the reason once 200 is there, and never delivered again."""
    await source.publish("1")
    got = await puller.fetch()
    assert await puller.told("reject", *leases(got), reason="no such country") == [
        {"lease": leases(got)[0], "ok": True}
    ]
    assert await source.buried() == [("no such country", 1)]
    await until(source.settled)


async def test_a_lease_that_runs_out_is_an_attempt(source: Source, puller: Puller) -> None:
    """An event that ends everybody who fetches it becomes a dead letter after the last attempt."""
    await source.publish("1")
    first = await puller.fetch("wait_s=20&lease_s=0.1")
    second = await puller.fetch("wait_s=20&lease_s=0.1")
    assert (ids(first), ids(second)) == (["1"], ["1"])
    assert leases(first) != leases(second)

    async def buried() -> bool:
        return await source.buried() == [("attempts-exhausted", 1)]

    await until(buried)
    answer = await puller.say("ack", *leases(first))
    assert (answer.status, answer.json["code"]) == (409, "lease-gone")


async def test_an_extended_lease_outlives_its_first_deadline(source: Source, puller: Puller) -> None:
    """Extended in time, it can be acked after another one that was leased with it has run out."""
    await source.publish("1", "2")
    one = await puller.fetch("max=1&wait_s=20&lease_s=3")
    two = await puller.fetch("max=1&wait_s=20&lease_s=3")
    assert await puller.told("extend", *leases(one), lease_s=60) == [
        {"lease": leases(one)[0], "ok": True, "expires_s": 60.0}
    ]
    assert ids(await puller.fetch("max=1&wait_s=20")) == ids(two)
    assert await puller.told("ack", *leases(one), *leases(two)) == [
        {"lease": leases(one)[0], "ok": True},
        {"lease": leases(two)[0], "ok": False, "code": "lease-gone"},
    ]


async def test_a_lease_outlives_the_servers_patience(tmp_path: Path) -> None:
    """While it runs the server is told that its event is in hand: ack_wait passes, and it is not delivered again."""

    async def scenario(stalls: Stalls) -> None:
        policies, base = RETRIES.replace("ack_wait: 30s", "ack_wait: 2s"), tmp_path / secrets.token_hex(4)
        async with (
            Source.running(base / "mesh", policies) as source,
            serving(source, base / "agent") as agent,
            stalls.watched(source.streams.connection),
        ):
            info = await manage.consumer_info(source.streams.connection, STREAM, DURABLE)
            config = info["config"] | {"ack_wait": 2_000_000_000}
            body = {"stream_name": STREAM, "config": config, "action": ""}
            await manage.api(source.streams.connection, f"CONSUMER.CREATE.{STREAM}.{DURABLE}", body)
            await source.publish("1")
            got = await client(agent).fetch("wait_s=20&lease_s=60")
            assert await client(agent).fetch("wait_s=5") == []
            info = await manage.consumer_info(source.streams.connection, STREAM, DURABLE)
            assert (info["num_ack_pending"], info["num_redelivered"]) == (1, 0)
            await client(agent).told("ack", *leases(got))
            await until(source.settled)

    await undisturbed(0.5, scenario)  # the agent says so in time, where it and the server run


async def test_what_nobody_fetches_goes_to_other_agents(source: Source, tmp_path: Path) -> None:
    """An agent pulls ahead of its clients; once they are gone it holds nothing back, and begins anew with the next."""
    async with serving(source, tmp_path / "one", pull_idle_s=0.2) as one, serving(source, tmp_path / "two") as two:
        await source.publish("1")
        got = await client(one).fetch()
        await source.publish("2", "3")
        await until(lambda: reading(one))
        await client(one).told("ack", *leases(got))
        await until(lambda: not reading(one))
        got = await client(two).fetch("max=1") + await client(two).fetch("max=1")
        assert sorted(ids(got)) == ["2", "3"]
        await client(two).told("ack", *leases(got))
        await two.close()
        await source.publish("4")
        assert ids(await client(one).fetch()) == ["4"]


async def test_an_answer_that_cannot_be_written_is_handed_back(source: Source, tmp_path: Path) -> None:
    """A client that goes while its answer is being written leaves no lease, and no attempt is counted."""
    names = [str(number) for number in range(20)]
    await source.publish(*names, pad=200_000)
    async with serving(source, tmp_path / "agent") as agent:
        puller, consuming = client(agent), agent.consuming
        assert consuming is not None
        feed = (await consuming.subscription("contacts")).feed
        await until(lambda: len(feed._ready) == len(names))  # else an answer is so short that the system takes it all
        _, writer = await deaf(puller, "wait_s=20")
        await until(lambda: puller_leases(puller) == len(names))
        writer.transport.abort()
        await until(lambda: puller_leases(puller) == 0)
        assert sorted(ids(await everything(puller, len(names))), key=int) == names
    assert await source.buried() == []


async def test_an_answer_that_nobody_reads_is_handed_back(source: Source, tmp_path: Path) -> None:
    """A client whose connection is open and takes nothing for half a lease: its events and its place go to others."""
    names = [str(number) for number in range(20)]
    await source.publish(*names, pad=200_000)
    async with serving(source, tmp_path / "agent", max_pulls=1) as agent:
        puller, consuming = client(agent), agent.consuming
        assert consuming is not None
        feed = (await consuming.subscription("contacts")).feed
        await until(lambda: len(feed._ready) == len(names))  # else an answer is so short that the system takes it all
        before = lost()
        _, writer = await deaf(puller, "wait_s=20&lease_s=2")
        await until(lambda: lost() > before)
        assert sorted(ids(await everything(puller, len(names))), key=int) == names
        writer.transport.abort()
    assert await source.buried() == []


async def test_a_stream_that_nobody_reads_is_left(source: Source, puller: Puller) -> None:
    """A client whose connection is open and takes nothing for half a lease: its events come again."""
    names = [str(number) for number in range(20)]
    await source.publish(*names, pad=200_000)
    _, writer = await deaf(puller, "lease_s=1", "Accept: text/event-stream\r\n")
    await until(lambda: puller_leases(puller) > 0)
    assert sorted(ids(await everything(puller, len(names))), key=int) == names
    writer.transport.abort()


async def everything(puller: Puller, count: int) -> list[dict[str, Any]]:
    """Fetch until there are so many."""
    got: list[dict[str, Any]] = []
    while len(got) < count:
        got += await puller.fetch()
    return got


def reading(agent: Sidecar) -> dict[str, str]:
    """What the agent has open."""
    return {} if agent.consuming is None else agent.consuming.subscriptions()


async def deaf(puller: Puller, query: str, more: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that asks, and reads nothing of the answer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", puller.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=1)
    head = f"GET {puller.path}/events?{query} HTTP/1.1\r\nHost: localhost:{puller.port}\r\n{more}"
    writer.write(f"{head}Authorization: Bearer {puller.token}\r\n\r\n".encode())
    await writer.drain()
    return reader, writer


def lost() -> float:
    """Answers that could not be written, so far."""
    return sum(value for labels, value in POLLS.series() if labels["end"] == "lost")


def puller_leases(puller: Puller) -> int:
    """Open leases, as the metric says."""
    return int(sum(value for labels, value in OPEN.series() if labels["subscription"] == puller.name))


async def test_who_goes_while_waiting_takes_nothing_along(source: Source, puller: Puller) -> None:
    """A client that hangs up in its long poll leaves no lease: the event is there for the next, the first time."""
    assert await puller.fetch("wait_s=0") == []
    _, writer = await asyncio.open_connection("127.0.0.1", puller.port)
    head = f"GET {puller.path}/events?wait_s=30 HTTP/1.1\r\nHost: localhost:{puller.port}\r\n"
    writer.write(f"{head}Authorization: Bearer {puller.token}\r\n\r\n".encode())
    await writer.drain()
    writer.transport.abort()
    await source.publish("1")
    got = await puller.fetch("wait_s=20")
    assert (ids(got), got[0]["attempt"]) == (["1"], 1)


async def test_events_that_nobody_acked_come_again_after_a_restart(source: Source, tmp_path: Path) -> None:
    """Leases end with the agent: it hands their events back, and the next one hands them out; the old are gone."""
    await source.publish("1")
    async with serving(source, tmp_path / "agent", drain_s=0.1) as agent:
        old = await client(agent).fetch()
        assert await agent.drain()
        answer = await client(agent).get()
        assert (answer.status, answer.json["code"], "retry-after" in answer.headers) == (503, "draining", True)
    async with serving(source, tmp_path / "agent") as agent:
        new = await client(agent).fetch()
        assert ids(new) == ["1"]
        assert (await client(agent).say("ack", *leases(old))).status == 409
        assert (await client(agent).say("ack", *leases(new))).status == 200


async def test_the_drain_lets_what_is_leased_be_settled(source: Source, tmp_path: Path) -> None:
    """Polls that wait end at once, empty; an ack still counts, and with the last one the drain is over."""
    await source.publish("1")
    async with serving(source, tmp_path / "agent", drain_s=60) as agent:
        puller = client(agent)
        got = await puller.fetch()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(puller.fetch("wait_s=30"))
            await until(lambda: agent.intake.in_progress == 1)
            draining = group.create_task(agent.drain())
            assert await waiting == []
            assert not draining.done()
            await puller.told("ack", *leases(got))
        assert draining.result()
    await until(source.settled)


async def test_leases_are_bounded(source: Source, tmp_path: Path) -> None:
    """At `max_leases` nobody is handed more until one is settled."""
    await source.publish("1", "2", "3")
    async with serving(source, tmp_path / "agent", max_leases=2) as agent:
        puller = client(agent)
        got = await puller.fetch("max=1&wait_s=20") + await puller.fetch("max=1&wait_s=20")
        assert await puller.fetch("wait_s=0.05") == []
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(puller.fetch("wait_s=30"))
            await puller.told("ack", *leases(got)[:1])
        assert ids(waiting.result()) == ["3"]


async def test_polls_are_bounded(source: Source, tmp_path: Path) -> None:
    """One long poll more than `max_pulls` is told to come back; settling is not held up by them."""
    await source.publish("1")
    async with serving(source, tmp_path / "agent", max_pulls=1) as agent:
        puller = client(agent)
        got = await puller.fetch()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(puller.fetch("wait_s=30"))
            await until(lambda: agent.intake.in_progress == 1)
            answer = await puller.get()
            assert (answer.status, answer.json["code"]) == (503, "overloaded")
            await puller.told("ack", *leases(got))
            await source.publish("2")
        assert ids(waiting.result()) == ["2"]


async def test_a_pushed_subscription_is_not_pulled(source: Source, tmp_path: Path) -> None:
    """409 names the conflict: with both, events would go to whoever asks first."""
    more = '\n[push.contacts]\nurl = "http://127.0.0.1:9/"\n'
    async with serving(source, tmp_path / "agent", more) as agent:
        answer = await client(agent).get()
        assert (answer.status, answer.json["code"]) == (409, "subscription-pushed")
        assert (await client(agent).say("ack", "t")).json["code"] == "subscription-pushed"


async def test_a_subscription_that_the_team_has_not(source: Source, puller: Puller) -> None:
    """404 for another name; one that a bundle takes away while it is pulled is 404 from then on."""
    nobodys = Puller(puller.url, puller.token, "nobodys")
    assert (await nobodys.get()).status == 404
    assert (await nobodys.say("ack", "t")).status == 404
    assert (await puller.get("wait_s=0")).status == 200
    await source.streams.hand_out(policies=POLICIES)

    async def gone() -> bool:
        return (await puller.get("wait_s=0")).status == 404

    await until(gone)


async def test_without_a_bundle_the_door_says_come_back(tmp_path: Path) -> None:
    """503 `no-valid-bundle` with Retry-After once the wait is over; a bundle that comes meanwhile is waited for."""
    async with Source.running(tmp_path / "mesh", GRACE) as source:
        envelope = await source.streams.envelope()
        await source.streams.put(b"none")
        async with serving(source, tmp_path / "agent", ready=False) as agent:
            answer = await client(agent).get("wait_s=0")
            assert (answer.status, answer.json["code"]) == (503, "no-valid-bundle")
            assert "retry-after" in answer.headers
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(client(agent).fetch("wait_s=30"))
                await source.publish("1")
                await source.streams.put(envelope)
            assert ids(waiting.result()) == ["1"]


async def test_while_nats_is_away_a_poll_says_so(source: Source, puller: Puller) -> None:
    """503 and Retry-After instead of an empty list: nobody should think that there is nothing."""
    assert await puller.fetch("wait_s=0") == []
    await source.streams.server.stop()

    async def away() -> bool:
        answer = await puller.get("wait_s=0")
        return answer.status == 503 and answer.json["code"] == "nats-unreachable" and "retry-after" in answer.headers

    await until(away)


async def test_an_ordered_subscription_hands_out_one_event_of_a_key(tmp_path: Path) -> None:
    """The next one of a key comes when the one before is settled, whichever client asks; other keys go on."""
    async with OrderedSource.ordered(tmp_path / "mesh") as source, serving(source, tmp_path / "agent") as agent:
        await source.publish_keys([("a", 1), ("a", 2), ("b", 1)])
        one, two = client(agent), client(agent)
        got = await everything(one, 2)
        assert sorted(map(told_by, got)) == ["a1", "b1"]
        assert await two.fetch("wait_s=0.2") == []
        first = next(lease["lease"] for lease in got if told_by(lease) == "a1")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(two.fetch())
            await one.told("ack", first)
        assert list(map(told_by, waiting.result())) == ["a2"]


def told_by(lease: dict[str, Any]) -> str:
    """Key and number of its event."""
    event = lease["event"]
    return f"{event['partitionkey']}{event['data']['country']}"


# --- attacks ---------------------------------------------------------------------------------------------------------


async def test_a_lease_is_of_one_subscription(tmp_path: Path) -> None:
    """Named at another subscription's door, or made up, it settles nothing."""
    second = GRACE[len(POLICIES) :].replace("name: contacts", "name: second")
    async with (
        Source.running(tmp_path / "mesh", RETRIES + second) as source,
        serving(source, tmp_path / "agent") as agent,
    ):
        await source.publish("1")
        puller = client(agent)
        (got,) = await puller.fetch()
        for name, lease in (("second", got["lease"]), ("contacts", "A" * 24), ("contacts", got["lease"][:-1])):
            for verb in ("ack", "retry", "reject", "extend"):
                answer = await client(agent, name).say(verb, lease)
                assert (answer.status, answer.json["code"]) == (409, "lease-gone")
        assert (await puller.told("ack", got["lease"]))[0]["ok"]
        assert await source.buried() == []


REFUSED: list[tuple[str, str, dict[str, str | None], bytes, int]] = [
    ("GET", "events", {"Authorization": None}, b"", 401),
    ("GET", "events", {"Authorization": "Bearer " + "A" * 43}, b"", 401),
    ("POST", "ack", {"Authorization": None}, b'{"leases":["t"]}', 401),
    ("GET", "events", {"Origin": "https://example.org"}, b"", 403),
    ("POST", "reject", {"Sec-Fetch-Site": "cross-site"}, b'{"leases":["t"]}', 403),
    ("GET", "events", {"Host": "evil.example"}, b"", 421),
    ("GET", "ack", {}, b"", 405),
    ("POST", "events", {}, b"", 405),
    ("GET", "nothing", {}, b"", 404),
    ("GET", "events/", {}, b"", 404),
    ("GET", "../other/events", {}, b"", 404),
    ("GET", "%65vents", {}, b"", 404),
    ("POST", "ack", {}, b'{"leases":["' + b"t" * 200_000 + b'"]}', 413),
    ("POST", "ack", {"Content-Type": "text/plain"}, b'{"leases":["t"]}', 415),
    ("POST", "ack", {"Content-Encoding": "gzip"}, b'{"leases":["t"]}', 415),
    ("POST", "ack", {}, b"{", 400),
    ("GET", "events?max=0", {}, b"", 400),
    ("GET", "events?max=5&max=6", {}, b"", 400),
    ("POST", "ack", {}, b'{"leases":["t"]}', 409),
]


async def test_what_is_refused(source: Source, puller: Puller) -> None:
    """Each attack gets its status and a problem document; the event that waits is untouched."""
    for method, path, headers, body, status in REFUSED:
        fields: dict[str, str | None] = {"Content-Type": "application/json", **headers}
        answer = await puller.send(method, f"{puller.path}/{path}", fields, body)
        assert answer.status == status, (method, path, headers, answer.body)
        assert answer.headers["content-type"] == "application/problem+json"
    await source.publish("1")
    assert ids(await puller.fetch()) == ["1"]


# --- server-sent events ----------------------------------------------------------------------------------------------


async def test_a_stream_tails(source: Source, puller: Puller) -> None:
    """Events come as they are published, each with its lease, and are acked by it."""
    async with puller.stream() as reader:
        for name in ("1", "2"):
            await source.publish(name)
            lease, event = await sent(reader)
            assert event["id"] == name
            assert (await puller.told("ack", lease))[0]["ok"]
    await until(source.settled)


async def test_a_stream_acks_by_itself(source: Source, puller: Puller) -> None:
    """With `ack=auto` what was written is settled, and its lease is gone."""
    await source.publish("1")
    async with puller.stream("ack=auto") as reader:
        lease, event = await sent(reader)
        assert event["id"] == "1"
        await until(source.settled)
        assert (await puller.say("ack", lease)).status == 409


async def test_a_stream_waits_for_acks(source: Source, puller: Puller) -> None:
    """No more than `max` are out at once: the next comes when one was settled."""
    await source.publish("1", "2")
    async with puller.stream("max=1") as reader:
        lease, event = await sent(reader)
        assert event["id"] == "1"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.readuntil(b"data: ")
        await puller.told("ack", lease)
        assert (await sent(reader))[1]["id"] == "2"


async def test_a_stream_leaves_the_rest_to_others(source: Source, puller: Puller) -> None:
    """What it may not have out yet any other client is handed."""
    names = [f"e{number:05}" for number in range(40)]
    await source.publish(*names)
    async with puller.stream("max=10&lease_s=60"):

        async def ten() -> bool:
            return (await source_pending(source)) == (0, 40)

        await until(ten)
        await until(lambda: puller_leases(puller) == 10)
        others = await puller.fetch("max=1000&wait_s=20")
        assert len(others) == 30


async def source_pending(source: Source) -> tuple[int, int]:
    """Of the durable: what was not delivered yet, and what was and is not acked."""
    info = await manage.consumer_info(source.streams.connection, STREAM, DURABLE)
    return int(info["num_pending"]), int(info["num_ack_pending"])


async def test_a_stream_ends_with_the_agent(source: Source, tmp_path: Path) -> None:
    """The drain ends it with a comment that says so, not with a torn connection."""
    async with serving(source, tmp_path / "agent") as agent, client(agent).stream() as reader:
        async with asyncio.TaskGroup() as group:
            draining = group.create_task(agent.drain())
            rest = await reader.read()
        assert rest.endswith(b": draining\n\n")
        assert draining.result()
