"""Push against a real server and a real application: what each answer leads to, and what nobody can make it do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from standardwebhooks import Webhook

from agent.push import addresses, pause, sender
from mesh.telemetry import DEFAULT
from tests.contract import push_flaky
from tests.contract.agent_mesh import until
from tests.contract.consumer_mesh import GRACE, Source
from tests.contract.push_mesh import Answer, App, Posted, pushing, status

pytestmark = pytest.mark.anyio

POLICIES = GRACE.replace("attempts: 1,", "attempts: 3, backoff: [100ms],")
BREAKS = POLICIES.replace("start: all,", "start: all, breaker: {failures: 2, open: 60s},")


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Source]:
    """A tenant with a publisher; the agent pushes to an application of the team support."""
    async with Source.running(tmp_path / "mesh", POLICIES) as source:
        yield source


def failing(times: int, code: int = 500, **headers: str) -> Answer:
    """Answer *code* so many times, then 204."""
    left = [times]

    def answer(_: Posted) -> web.Response:
        left[0] -= 1
        return status(204) if left[0] < 0 else status(code, **headers)

    return answer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that grow from a hundredth of a second on, for applications that ask for none."""
    monkeypatch.setattr(pause, "FIRST_PAUSE_S", 0.01)


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_a_2xx_is_the_end_of_it(source: Source, tmp_path: Path) -> None:
    """Each event is posted once, in the team's view, and acked."""
    await source.publish("1", "2", "3")
    async with App.running() as app, pushing(source, tmp_path / "agent", app.url, "concurrency = 1"):
        await until(source.settled)
        assert app.ids == ["1", "2", "3"]
        assert app.posted[0].headers["Content-Type"] == "application/cloudevents+json"
        assert app.posted[0].event["data"] == {"country": "DE"}
        assert app.connections == 1


async def test_a_5xx_is_tried_again_and_then_buried(source: Source, tmp_path: Path) -> None:
    """Three attempts, as the subscription says, each named; then a dead letter with its history."""
    await source.publish("1")
    async with App.running(lambda _: status(500)) as app, pushing(source, tmp_path / "agent", app.url):
        await until(source.settled)
        assert [posted.headers["Mesh-Attempt"] for posted in app.posted] == ["1", "2", "3"]
        assert await source.buried() == [("attempts-exhausted", 1)]


@pytest.mark.parametrize("code", [500, 502, 503, 408, 425, 301, 302, 307, 308])
async def test_what_fails_once_comes_again(source: Source, tmp_path: Path, code: int) -> None:
    """5xx, the two 4xx that blame nobody, and redirects, which are not followed."""
    await source.publish("1")
    async with App.running() as other:
        location = {"Location": other.url}
        async with (
            App.running(failing(1, code, **location)) as app,
            pushing(source, tmp_path / "agent", app.url),
        ):
            await until(source.settled)
            assert app.ids == ["1", "1"]
        assert other.posted == []


@pytest.mark.parametrize("code", [400, 401, 404, 410, 422])
async def test_any_other_4xx_is_a_dead_letter_at_once(source: Source, tmp_path: Path, code: int) -> None:
    """The application will not have this event: the status is the reason, and nobody asks twice."""
    await source.publish("1")
    async with App.running(lambda _: status(code)) as app, pushing(source, tmp_path / "agent", app.url):
        await until(source.settled)
        assert app.ids == ["1"]
        assert await source.buried() == [(f"http-{code}", 1)]


@pytest.mark.usefixtures("impatient")
async def test_later_uses_up_no_attempt(source: Source, tmp_path: Path) -> None:
    """Told to wait more often than there are attempts, the event is delivered all the same, and only once."""
    await source.publish("1")
    answer = failing(5, 429, **{"Retry-After": "0"})
    async with App.running(answer) as app, pushing(source, tmp_path / "agent", app.url):
        await until(source.settled)
        assert app.ids == ["1"] * 6
        assert {posted.headers["Mesh-Attempt"] for posted in app.posted} == {"1"}
        assert await source.buried() == []


async def test_later_pauses_the_whole_target(source: Source, tmp_path: Path) -> None:
    """While it waits nobody knocks, whatever else there is to hand over; and the state says why."""
    answer = failing(1, 429, **{"Retry-After": "600"})
    async with App.running(answer) as app, pushing(source, tmp_path / "agent", app.url, "max_pause_s = 600") as side:
        await source.publish("1")
        await until(lambda: side.state["state"] == "told-to-wait")
        assert side.state["because"] == "http-429"
        await source.publish("2", "3", "4")
        pulled = side.consuming._opened["contacts"].subscription
        await until(lambda: pulled.feed.pending == 4)
        assert app.ids == ["1"]


@pytest.mark.usefixtures("impatient")
async def test_a_503_with_retry_after_is_later_too(source: Source, tmp_path: Path) -> None:
    """As for 429; without the field it is a failure like any 5xx."""
    await source.publish("1")
    answer = failing(4, 503, **{"Retry-After": "0"})
    async with App.running(answer) as app, pushing(source, tmp_path / "agent", app.url):
        await until(source.settled)
        assert app.ids == ["1"] * 5


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("concurrency", [1, 16])
async def test_an_event_that_is_always_told_later_is_found(source: Source, tmp_path: Path, concurrency: int) -> None:
    """While the target takes others, ten times "later" are an attempt: else it would be in hand for ever."""
    await source.publish("bad")

    def answer(posted: Posted) -> web.Response:
        return status(429, **{"Retry-After": "0"}) if posted.id == "bad" else status(204)

    async def feed() -> None:
        number = 0
        while True:
            number += 1
            await source.publish(f"good-{number}")

    options = f"concurrency = {concurrency}"
    async with App.running(answer) as app, pushing(source, tmp_path / "agent", app.url, options):
        feeding = asyncio.create_task(feed())
        try:
            await until(lambda: len([id_ for id_ in app.ids if id_ == "bad"]) >= 10)
            await until(lambda: [p.headers["Mesh-Attempt"] for p in app.posted if p.id == "bad"][-1] == "2")
        finally:
            feeding.cancel()


async def test_a_target_that_is_down_costs_no_attempt(source: Source, tmp_path: Path) -> None:
    """Nobody listens: events stay in hand, the state says so, and all arrive once somebody does."""
    async with App.running() as app:
        port = app.port
    await source.publish("1", "2", "3")
    async with pushing(source, tmp_path / "agent", f"http://127.0.0.1:{port}/events") as side:
        await until(lambda: side.state["state"] == "unreachable")
        async with App.running(port=port) as app:
            await until(source.settled)
            assert sorted(app.ids) == ["1", "2", "3"]
            assert {posted.headers["Mesh-Attempt"] for posted in app.posted} == {"1"}
            assert side.state["state"] == "running"
    assert await source.buried() == []


async def test_an_answer_that_does_not_come_in_time_is_a_failure(source: Source, tmp_path: Path) -> None:
    """The request is given up after timeout_s; the event comes again."""
    await source.publish("1")
    forever = asyncio.Event()

    async def hang(posted: Posted) -> web.StreamResponse:
        if posted.headers["Mesh-Attempt"] == "1":
            await forever.wait()
        return status(204)

    async with App.running(hang) as app, pushing(source, tmp_path / "agent", app.url, "timeout_s = 2"):
        await until(source.settled)
        assert app.ids == ["1", "1"]


async def test_failures_in_a_row_open_the_breaker(tmp_path: Path) -> None:
    """The subscription's own breaker: two failures, then nobody knocks; what waits uses up no attempt."""
    async with Source.running(tmp_path / "mesh", BREAKS) as source, App.running(lambda _: status(500)) as app:
        await source.publish("1", "2", "3", "4")
        async with pushing(source, tmp_path / "agent", app.url, "concurrency = 1") as side:
            await until(lambda: side.state["state"] == "open")
            assert side.state["because"] == "http-500"
            assert len(app.posted) == 2


async def test_a_drain_ends_what_runs_and_hands_back_the_rest(source: Source, tmp_path: Path) -> None:
    """A request that is under way gets its answer and is acked; another agent gets what was not asked yet."""
    release, begun = asyncio.Event(), asyncio.Event()

    async def slow(_: Posted) -> web.StreamResponse:
        begun.set()
        await release.wait()
        return status(204)

    await source.publish("1", "2", "3")
    async with App.running(slow) as app, pushing(source, tmp_path / "agent", app.url, "concurrency = 1") as side:
        await begun.wait()
        draining = asyncio.create_task(side.targets.drain(10.0))
        await until(lambda: side.state["state"] == "draining")
        release.set()
        assert await draining
        assert app.ids == ["1"]
    async with App.running() as app, pushing(source, tmp_path / "agent", app.url):
        await until(source.settled)
        assert sorted(app.ids) == ["2", "3"]


async def test_a_subscription_that_comes_later_is_pushed_then(tmp_path: Path) -> None:
    """The agent starts before the policies have it; the bundle that brings it needs no restart."""
    without = POLICIES.partition("---\napiVersion: mesh/v1\nkind: Subscription")[0]
    async with Source.running(tmp_path / "mesh", without) as source, App.running() as app:
        await source.publish("1")
        async with pushing(source, tmp_path / "agent", app.url) as side:
            await until(lambda: side.state["state"] == "no-subscription")
            await source.streams.hand_out(policies=POLICIES)
            await until(source.settled)
            assert app.ids == ["1"]


# --- modes -----------------------------------------------------------------------------------------------------------


async def test_binary_mode(source: Source, tmp_path: Path) -> None:
    """Attributes as fields, the data as the body."""
    await source.publish("1")
    async with App.running() as app, pushing(source, tmp_path / "agent", app.url, 'mode = "binary"'):
        await until(source.settled)
        (posted,) = app.posted
        assert (posted.headers["ce-id"], posted.headers["ce-view"], posted.body) == (
            "1",
            "service",
            b'{"country":"DE"}',
        )
        assert posted.headers["Content-Type"] == "application/json"


async def test_standard_webhooks_are_signed_with_every_secret(source: Source, tmp_path: Path) -> None:
    """The official library accepts what arrives, with the old secret and with the new; a token goes along."""
    secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"]
    base = tmp_path / "agent"
    base.mkdir()
    for name, secret in zip("ab", secrets, strict=True):
        (base / name).write_text(secret + "\n")
    (base / "token").write_text("0123456789abcdef\n")
    options = 'mode = "standard-webhooks"\nsecret_files = ["a", "b"]\ntoken_file = "token"'
    await source.publish("1")
    async with App.running() as app, pushing(source, base, app.url, options):
        await until(source.settled)
        (posted,) = app.posted
        for secret in secrets:
            assert Webhook(secret).verify(posted.body, dict(posted.headers))["id"] == "1"
        assert posted.headers["Authorization"] == "Bearer 0123456789abcdef"


async def test_a_batch_that_is_not_taken_comes_again_one_by_one(source: Source, tmp_path: Path) -> None:
    """One bad event among good ones: the good are taken, the bad one alone is buried."""
    ids = [f"{n}" for n in range(20)]
    await source.publish(*ids)

    def answer(posted: Posted) -> web.Response:
        return status(422 if any(event["id"] == "7" for event in decode(posted)) else 204)

    async with App.running(answer) as app, pushing(source, tmp_path / "agent", app.url, BATCHES):
        await until(source.settled)
        taken = [event["id"] for posted in app.posted for event in decode(posted)]
        assert set(taken) == set(ids)
        assert max(len(decode(posted)) for posted in app.posted) > 1
        assert len(await source.buried()) == 1
        assert (await source.buried())[0][0] == "http-422"


BATCHES = 'mode = "batch"\nconcurrency = 1'


def decode(posted: Posted) -> list[dict[str, object]]:
    """The events of a batch."""
    events: object = posted.event
    assert isinstance(events, list)
    return events


async def test_a_unix_socket(source: Source, tmp_path: Path) -> None:
    """An application that listens on a socket beside the agent."""
    await source.publish("1")
    base = tmp_path / "a"
    base.mkdir()
    async with App.running(path=str(base / "s")) as app, pushing(source, base, app.url, 'socket = "s"'):
        await until(source.settled)
        assert app.ids == ["1"]
        assert app.posted[0].headers["Host"] == "localhost"


# --- what nobody can make it do --------------------------------------------------------------------------------------


async def test_a_name_that_stands_for_this_machine_is_not_connected_to(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host of push_hosts that somebody lets resolve to loopback (DNS rebinding): no byte is sent."""
    await source.publish("1")

    class Rebound(ThreadedResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            return await super().resolve("127.0.0.1", port, family)

    monkeypatch.setattr(sender, "Addresses", lambda: addresses.Addresses(Rebound))
    async with App.running() as app:
        url = f"http://hooks.example.org:{app.port}/"
        more = f'push_hosts = "hooks.example.org:{app.port}"'
        async with pushing(source, tmp_path / "agent", url, "allow_http = true", more) as side:
            await until(lambda: side.state["because"] == "address-refused")
            assert side.state["state"] == "unreachable"
        assert app.connections == 0


async def test_localhost_is_this_machine_whatever_dns_says(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name server is not asked."""
    await source.publish("1")

    async def never(*_: object, **__: object) -> None:
        raise AssertionError("asked a name server")

    monkeypatch.setattr(ThreadedResolver, "resolve", never)
    async with App.running() as app, pushing(source, tmp_path / "agent", f"http://localhost:{app.port}/"):
        await until(source.settled)
        assert app.ids == ["1"]


async def test_no_proxy_of_the_environment_is_used(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`http_proxy` sends no event anywhere."""
    async with App.running() as proxy, App.running() as app:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("no_proxy", "")
        await source.publish("1")
        async with pushing(source, tmp_path / "agent", app.url):
            await until(source.settled)
        assert (len(app.posted), len(proxy.posted)) == (1, 0)


async def test_no_cookie_comes_back(source: Source, tmp_path: Path) -> None:
    """What an application sets is forgotten."""
    await source.publish("1", "2")
    answer = lambda _: status(204, **{"Set-Cookie": "a=b"})  # noqa: E731 - an answer
    async with App.running(answer) as app, pushing(source, tmp_path / "agent", app.url, "concurrency = 1"):
        await until(source.settled)
        assert [posted.headers.get("Cookie") for posted in app.posted] == [None, None]


async def test_a_huge_answer_is_not_read(source: Source, tmp_path: Path) -> None:
    """The status counts, little of the body is read, and the connection goes."""
    sent = [0]
    await source.publish("1")

    async def huge(posted: Posted) -> web.StreamResponse:
        response = web.StreamResponse(status=200)
        response.enable_chunked_encoding()
        await response.prepare(posted.request)
        while True:
            await response.write(b"x" * 65_536)
            sent[0] += 1

    async with App.running(huge) as app, pushing(source, tmp_path / "agent", app.url):
        await until(source.settled)
        assert app.ids == ["1"]
        assert sent[0] < 1000


async def test_an_endless_answer_holds_nothing_up(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that comes byte by byte, for ever: the status was there, and it counts."""
    monkeypatch.setattr(sender, "ANSWER_S", 0.1)
    await source.publish("1")
    forever = asyncio.Event()

    async def slow(posted: Posted) -> web.StreamResponse:
        response = web.StreamResponse(status=200)
        await response.prepare(posted.request)
        await response.write(b"x")
        await forever.wait()
        return response

    async with App.running(slow) as app, pushing(source, tmp_path / "agent", app.url):
        await until(source.settled)
        assert app.ids == ["1"]


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 2oo OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"",
    ],
    ids=["no-http", "no-status", "long-field", "bad-length", "nothing"],
)
async def test_what_is_no_answer_is_a_failure(source: Source, tmp_path: Path, raw: bytes) -> None:
    """Whatever comes back, the event is tried again, and the agent goes on."""
    await source.publish("1")
    calls = [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        calls[0] += 1
        writer.write(raw if calls[0] == 1 else b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, pushing(source, tmp_path / "agent", f"http://127.0.0.1:{port}/"):
        await until(source.settled)
        assert calls[0] == 2
        assert await source.buried() == []


async def test_answers_are_counted_by_their_class(source: Source, tmp_path: Path) -> None:
    """By subscription and class; never by URL or event."""
    counted = sender.REQUESTS
    before = {answer: counted.at(subscription="contacts", answer=answer).value for answer in ("2xx", "5xx")}
    await source.publish("1")
    async with App.running(failing(1)) as app, pushing(source, tmp_path / "agent", app.url):
        await until(source.settled)
    after = {answer: counted.at(subscription="contacts", answer=answer).value for answer in ("2xx", "5xx")}
    assert {answer: after[answer] - before[answer] for answer in after} == {"2xx": 1, "5xx": 1}
    assert b"127.0.0.1" not in DEFAULT.render_prometheus()


async def test_a_slow_and_flaky_application_gets_everything_in_order(tmp_path: Path) -> None:
    """5 % answer 500, 5 % time out, bursts of 429: each arrives, has its effect once, and in order per key.

    `python -m tests.contract.push_flaky` does the same with ten thousand.
    """
    outcome = await push_flaky.run(tmp_path, events=250, keys=20, seed=7)
    assert outcome.good, outcome
    assert outcome.answers["500"]
    assert outcome.answers["timeout"]
