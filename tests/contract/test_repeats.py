"""A connection that is kept, against a real server: each request on it is judged as if it were the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from agent.intake import Intake
from agent.lifecycle import Sidecar
from tests.contract.agent_mesh import Answer, Streams, event, read_answer, sidecar, until, write_directory

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def streams(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Streams]:
    """The tenant's streams and bundle."""
    async with Streams.running(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture
async def door(streams: Streams, tmp_path: Path) -> AsyncIterator[Sidecar]:
    """One sidecar, which looks at its token file at each request and waits shortly for what is slow."""
    base = write_directory(tmp_path)
    async with sidecar(base, streams.server.url, file_check_s=0, header_timeout_s=0.3, max_event_bytes=4096) as running:
        await until(lambda: not running.agent.not_ready())
        yield running


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The path of each request that is read and checked from its first byte; the others are repeats."""
    paths: list[str] = []
    whole = Intake.route

    async def route(self: Intake, request: object) -> object:
        paths.append(request.path)  # type: ignore[attr-defined]
        return await whole(self, request)  # type: ignore[arg-type]

    monkeypatch.setattr(Intake, "route", route)
    return paths


@dataclass
class Kept:
    """A connection on which one event was accepted."""

    door: Sidecar
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def request(self, body: bytes, headers: Mapping[str, str] | None = None, *, line: str = "POST /v1/events") -> bytes:
        """The bytes of a request; the same head for the same arguments."""
        url, base = self.door.intake.url, self.door.agent.base
        fields = {
            "Host": url.removeprefix("http://"),
            "Authorization": f"Bearer {(base / 'token').read_text().strip()}",
            "Content-Type": "application/cloudevents+json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }
        lines = [f"{line} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        return "\r\n".join(lines).encode() + body

    async def send(self, request: bytes) -> Answer:
        """Its answer."""
        self.writer.write(request)
        return await read_answer(self.reader)


@asynccontextmanager
async def kept(door: Sidecar) -> AsyncIterator[Kept]:
    """Such a connection for the length of the block."""
    host, _, port = door.intake.url.removeprefix("http://").rpartition(":")
    connection = Kept(door, *await asyncio.open_connection(host, int(port)))
    try:
        assert (await connection.send(connection.request(msgspec.json.encode(event())))).status == 202
        yield connection
    finally:
        connection.writer.close()


async def test_a_head_that_was_read_is_not_read_again(door: Sidecar, streams: Streams, routed: list[str]) -> None:
    """Events of any length after the first are accepted without another look at the head, and each is stored."""
    async with kept(door) as connection:
        before = await streams.stored()
        for size in (1, 10, 1000):
            body = msgspec.json.encode(event() | {"data": {"country": "x" * size}})
            answer = await connection.send(connection.request(body))
            assert (answer.status, answer.headers["content-type"]) == (202, "application/json")
            assert answer.json["durable"] == "stream"
        assert await streams.stored() - before == 3 * len(answer.json["copies"])
    assert routed == ["/v1/events"]


async def test_a_batch_is_repeated_too(door: Sidecar, routed: list[str]) -> None:
    """As many receipts as events, each time."""
    kind = {"Content-Type": "application/cloudevents-batch+json"}
    async with kept(door) as connection:
        for count in (3, 1, 5):
            body = msgspec.json.encode([event() for _ in range(count)])
            answer = await connection.send(connection.request(body, kind))
            assert (answer.status, answer.json["accepted"], len(answer.json["events"])) == (202, count, count)
    assert len(routed) == 2


async def test_a_token_that_is_replaced_ends_for_kept_connections(door: Sidecar) -> None:
    """The next request with the old one gets 401, on a connection on which it was accepted; the new one works."""
    async with kept(door) as connection:
        body = msgspec.json.encode(event())
        old = connection.request(body)
        (door.agent.base / "token").write_text("n" * 43)
        answer = await connection.send(old)
        assert (answer.status, answer.json["code"], answer.headers["www-authenticate"]) == (
            401,
            "unauthorized",
            "Bearer",
        )
        assert (await connection.send(connection.request(body))).status == 202


@pytest.mark.parametrize(
    ("headers", "line", "status"),
    [
        ({"Authorization": "Bearer another"}, "POST /v1/events", 401),
        ({"Host": "attacker.example"}, "POST /v1/events", 421),
        ({"Origin": "https://attacker.example"}, "POST /v1/events", 403),
        ({"Nats-Msg-Id": "mine"}, "POST /v1/events", 400),
        ({"Content-Type": "text/plain"}, "POST /v1/events", 415),
        ({"Content-Encoding": "gzip"}, "POST /v1/events", 415),
        ({}, "POST /v1/other", 404),
        ({}, "PUT /v1/events", 405),
    ],
)
async def test_another_head_is_judged_by_itself(door: Sidecar, headers: dict[str, str], line: str, status: int) -> None:
    """What one head was allowed says nothing of another, before and after it."""
    async with kept(door) as connection:
        body = msgspec.json.encode(event())
        answer = await connection.send(connection.request(body, headers, line=line))
        assert answer.status == status
        assert (await connection.send(connection.request(body))).status == 202


async def test_what_is_wrong_with_a_body_is_said(door: Sidecar, routed: list[str]) -> None:
    """A repeat whose body is no JSON, denied, or too long gets its problem, and the connection goes on."""
    bodies = [b"{", msgspec.json.encode(event() | {"type": "billing.secret"}), b"x" * 5000]
    async with kept(door) as connection:
        answers = [await connection.send(connection.request(body)) for body in bodies]
        assert [answer.status for answer in answers] == [400, 403, 413]
        assert all(answer.headers["content-type"] == "application/problem+json" for answer in answers)
        assert (await connection.send(connection.request(msgspec.json.encode(event())))).status == 202
    assert len(routed) == 1


async def test_requests_on_the_heels_of_each_other_are_answered_in_order(door: Sidecar) -> None:
    """Sent without waiting, one whole and one in two parts, a wrong token among them: each gets its own answer."""
    async with kept(door) as connection:
        good = [connection.request(msgspec.json.encode(event() | {"id": name})) for name in ("a", "b", "c")]
        bad = connection.request(b"{}", {"Authorization": "Bearer another"})
        connection.writer.write(good[0])
        connection.writer.write(bad + good[1][:50])
        await connection.writer.drain()
        connection.writer.write(good[1][50:] + good[2])
        answers = [await read_answer(connection.reader) for _ in range(4)]
        assert [answer.status for answer in answers] == [202, 401, 202, 202]
        assert [answer.json["id"] for answer in answers if answer.status == 202] == ["a", "b", "c"]


async def test_a_known_head_in_the_middle_of_another_is_none(door: Sidecar) -> None:
    """Bytes that began another request are read to its end, though what follows looks like one that was accepted."""
    async with kept(door) as connection:
        request = connection.request(msgspec.json.encode(event()))
        connection.writer.write(b"PUT /v1/events HTTP/1.1\r\nX-Anything: ")
        assert door.intake.listener is not None
        (ours,) = door.intake.listener.connections
        await until(lambda: ours._header_timer is not None)
        assert (await connection.send(request)).status == 405


async def test_half_a_head_after_repeats_is_cut(door: Sidecar) -> None:
    """The deadline for a header holds for every request of a connection."""
    async with kept(door) as connection:
        request = connection.request(msgspec.json.encode(event()))
        assert (await connection.send(request)).status == 202
        assert (await connection.send(request[:40])).status == 408
        assert await connection.reader.read() == b""


async def test_draining_finishes_a_repeat(streams: Streams, tmp_path: Path) -> None:
    """One that is in progress gets its 202, and the next one is told that the agent drains."""
    async with sidecar(write_directory(tmp_path), streams.server.url) as door:
        await until(lambda: not door.agent.not_ready())
        async with kept(door) as connection:
            agent, going = door.agent, asyncio.Event()
            publish = agent.publish_drafts

            async def slowly(drafts: object) -> object:
                await going.wait()
                return await publish(drafts)  # type: ignore[arg-type]

            agent.publish_drafts = slowly  # type: ignore[assignment, method-assign]
            request = connection.request(msgspec.json.encode(event()))
            connection.writer.write(request)
            await until(lambda: door.intake.in_progress)
            drain = asyncio.create_task(door.drain())
            await until(lambda: agent.state()["draining"])
            going.set()
            assert (await read_answer(connection.reader)).status == 202
            refused = await connection.send(request)
            assert (refused.status, refused.json["code"], refused.headers["connection"]) == (503, "draining", "close")
            assert await connection.reader.read() == b""
            assert await drain is True
