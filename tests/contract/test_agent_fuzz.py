"""Fuzz runs against the running door: whatever comes, the answer is no 5xx, and the agent stays up."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.lifecycle import Sidecar
from tests.contract.agent_mesh import Http, Streams, event, sidecar, until, write_directory

pytestmark = pytest.mark.anyio

EXAMPLES = settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["specversion", "id", "source", "type", "time", "data", "data_base64", "view", "any"]) | (
    st.sampled_from(["subject", "datacontenttype", "dataschema", "partitionkey", "expirytime", "traceparent"])
)
FIELDS = st.text(alphabet=st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=40)


@pytest.fixture(scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sidecar]:
    """A sidecar to shoot at."""
    base = write_directory(tmp_path_factory.mktemp("agent"))
    async with (
        Streams.running(tmp_path_factory.mktemp("nats")) as streams,
        sidecar(base, streams.server.url, body_timeout_s=0.5, header_timeout_s=0.5) as running,
    ):
        await until(lambda: not running.agent.not_ready())
        yield running


@pytest.fixture
def http(door: Sidecar) -> Http:
    """The application at its door."""
    return Http(door.intake.url, (door.agent.base / "token").read_text().strip())


def exchange(http: Http, request: bytes) -> bytes:
    """Send bytes, half-close, read all that comes back. Blocking: Hypothesis runs in a thread."""
    with socket.create_connection(("127.0.0.1", http.port), timeout=10) as connection:
        answer = b""
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                answer += part
        except ConnectionError:
            pass  # refused while we were still sending
        return answer


def request_with(http: Http, headers: list[str], body: bytes) -> bytes:
    """A request that gets as far as the body."""
    fixed = [f"Host: 127.0.0.1:{http.port}", f"Authorization: Bearer {http.token}", f"Content-Length: {len(body)}"]
    lines = ["POST /v1/events HTTP/1.1", *fixed, "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace") + body


def check_answer(answer: bytes) -> None:
    """No answer (the connection was cut) or one below 500."""
    assert not answer or answer.startswith(b"HTTP/")
    assert not answer or int(answer[9:12]) < 500, answer


async def test_any_json_is_answered(door: Sidecar, http: Http) -> None:
    """Events whose attributes and data are anything at all, alone and in batches, get an answer below 500."""

    @settings(EXAMPLES)
    @given(changes=st.dictionaries(NAMES, JSON, max_size=4), batch=st.booleans(), keep=st.booleans())
    def check(changes: dict[str, object], batch: bool, keep: bool) -> None:
        fields = {**event(), **changes} if keep else changes
        kind = "application/cloudevents-batch+json" if batch else "application/cloudevents+json"
        body = msgspec.json.encode([event(), fields] if batch else fields)
        check_answer(exchange(http, request_with(http, [f"Content-Type: {kind}"], body)))

    await anyio.to_thread.run_sync(check)
    assert (await http.post(event())).status == 202
    assert not door.agent.not_alive()


async def test_any_bytes_are_answered(door: Sidecar, http: Http) -> None:
    """Bodies of any bytes, in any mode, with any header fields, get an answer below 500."""
    kinds = ["application/cloudevents+json", "application/cloudevents-batch+json", "application/json", "text/plain"]

    @settings(EXAMPLES)
    @given(
        body=st.binary(max_size=300),
        kind=st.sampled_from(kinds) | FIELDS,
        fields=st.dictionaries(
            st.sampled_from(["ce-id", "ce-type", "ce-specversion", "ce-source", "ce-x", "X"]), FIELDS
        ),
    )
    def check(body: bytes, kind: str, fields: dict[str, str]) -> None:
        lines = [f"Content-Type: {kind}", *(f"{name}: {value}" for name, value in fields.items())]
        check_answer(exchange(http, request_with(http, lines, body)))

    await anyio.to_thread.run_sync(check)
    assert (await http.post(event())).status == 202
    assert not door.agent.not_alive()


async def test_any_stream_of_bytes_is_survived(door: Sidecar, http: Http) -> None:
    """A connection that sends anything, also a good request with bytes changed or cut, hurts nobody."""
    good = request_with(http, ["Content-Type: application/cloudevents+json"], msgspec.json.encode(event()))
    cuts = st.integers(min_value=0, max_value=len(good))

    @settings(EXAMPLES)
    @given(at=cuts, width=st.integers(0, 8), noise=st.binary(max_size=12), alone=st.booleans())
    def check(at: int, width: int, noise: bytes, alone: bool) -> None:
        check_answer(exchange(http, noise if alone else good[:at] + noise + good[at + width :]))

    await anyio.to_thread.run_sync(check)
    assert (await http.post(event())).status == 202
    assert not door.agent.not_alive()
