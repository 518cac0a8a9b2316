"""The agent's doors against a real server: what gets 202 is stored, what is refused is named and stores nothing."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.core import Agent
from agent.lifecycle import Sidecar
from agent.settings import load as load_settings
from mesh.errors import Denied, Disconnected, Draining, InputError
from mesh.jetstream import accounts
from mesh.jetstream.accounts import publish_imports
from mesh.jetstream.topology import desired
from mesh.policy.grants import PublishGrant
from mesh.subjects import Pattern
from tests.contract.agent_mesh import (
    DOMAINS,
    PATIENT,
    POLICIES,
    SMALL,
    Answer,
    Http,
    Streams,
    event,
    read_answer,
    sidecar,
    until,
    write_directory,
)
from tests.contract.operator_mode import SITE, OperatorMode

pytestmark = pytest.mark.anyio

ROWS: list[dict[str, Any]] = json.loads(Path(__file__).parent.parent.joinpath("tables/bad_requests.json").read_text())
BATCH = {"Content-Type": "application/cloudevents-batch+json"}


@pytest.fixture(scope="module")
async def streams(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Streams]:
    """The tenant's streams and bundle."""
    async with Streams.running(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture(scope="module")
async def doors(streams: Streams, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sidecar]:
    """One sidecar for the tests that leave it as it is."""
    base = write_directory(tmp_path_factory.mktemp("agent"))
    async with sidecar(base, streams.server.url, **PATIENT) as running:
        await until(lambda: not running.agent.not_ready())
        yield running


@pytest.fixture(scope="module")
def http(doors: Sidecar) -> Http:
    """The application at its door."""
    return client(doors)


def client(running: Sidecar) -> Http:
    """An application that holds the token."""
    return Http(running.intake.url, (running.agent.base / "token").read_text().strip())


# --- what is accepted ------------------------------------------------------------------------------------------------


async def test_a_202_names_every_copy_and_each_is_stored(http: Http, streams: Streams) -> None:
    """The receipt of a structured event leads to one stored copy a view, masked as the view says."""
    answer = await http.post(event(id="structured-1"))
    assert answer.status == 202, answer.body
    receipt = answer.json
    assert (receipt["id"], receipt["durable"], receipt["duplicate"]) == ("structured-1", "stream", False)
    copies = {copy["view"]: copy for copy in receipt["copies"]}
    assert sorted(copies) == ["clear", "service"]
    clear = await streams.message(copies["clear"]["stream"], copies["clear"]["seq"])
    service = await streams.message(copies["service"]["stream"], copies["service"]["seq"])
    assert clear["data"] == {"country": "DE", "email": "ada@example.org", "name": "Ada Lovelace"}
    assert service["data"]["country"] == "DE"
    assert "ada" not in json.dumps(service).lower()
    assert (service["tenant"], service["view"], service["policyrevision"]) == ("acme", "service", 1)


async def test_the_same_event_again_is_a_duplicate(http: Http, streams: Streams) -> None:
    """Posting one id twice stores nothing new, and says so with the same sequences."""
    sent = event()
    first = (await http.post(sent)).json
    before = await streams.stored()
    again = (await http.post(sent)).json
    assert (first["duplicate"], again["duplicate"]) == (False, True)
    assert first["copies"] == again["copies"]
    assert await streams.stored() == before


async def test_binary_mode_is_the_same_event(http: Http, streams: Streams) -> None:
    """An event in header fields is stored like one in JSON, percent-encoding undone."""
    headers: dict[str, str | None] = {
        "Content-Type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": "binary-1",
        "ce-source": "/crm",
        "ce-type": "crm.contact.created.v1",
        "ce-subject": "K%C3%B6ln",
    }
    answer = await http.post({"country": "DE"}, headers=headers)
    assert answer.status == 202, answer.body
    copy = next(c for c in answer.json["copies"] if c["view"] == "clear")
    stored = await streams.message(copy["stream"], copy["seq"])
    assert (stored["id"], stored["subject"], stored["data"]) == ("binary-1", "K\u00f6ln", {"country": "DE"})


async def test_a_batch_is_answered_in_order(http: Http) -> None:
    """A batch of 200 events gets one receipt an event, in the order of the request."""
    batch = [event(id=f"batch-{n}") for n in range(200)]
    answer = await http.post(batch, headers=BATCH)
    assert answer.status == 202, answer.body
    assert answer.json["accepted"] == 200
    assert [receipt["id"] for receipt in answer.json["events"]] == [e["id"] for e in batch]
    assert all(len(receipt["copies"]) == 2 for receipt in answer.json["events"])


async def test_an_event_that_nobody_reads_is_accepted_without_copies(http: Http) -> None:
    """An allowed type that no view shows to anybody gets 202 with no copies."""
    answer = await http.post(event(type="crm.lead.created.v1"))
    assert (answer.status, answer.json["copies"], answer.json["duplicate"]) == (202, [], False)


async def test_order_of_one_sender_is_kept(http: Http, streams: Streams) -> None:
    """Events of one batch rest in the stream in the order of the batch, view by view."""
    batch = [event(partitionkey="k") for _ in range(300)]
    receipts = (await http.post(batch, headers=BATCH)).json["events"]
    for view in ("clear", "service"):
        sequences = [c["seq"] for receipt in receipts for c in receipt["copies"] if c["view"] == view]
        assert sequences == sorted(sequences)


async def test_a_large_body_may_wait_for_100_continue(http: Http) -> None:
    """A client that asks before it sends is told to go on, and to stop where its token is wrong."""
    body = msgspec.json.encode(event())
    head = (
        f"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{http.port}\r\nContent-Type: application/cloudevents+json\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\nConnection: close\r\nAuthorization: Bearer "
    )
    for token, expected in ((http.token, [100, 202]), ("wrong", [401])):
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(f"{head}{token}\r\n\r\n".encode())
        statuses = [(await read_answer(reader)).status]
        if statuses == [100]:
            writer.write(body)
            statuses.append((await read_answer(reader)).status)
        writer.close()
        assert statuses == expected


# --- what is refused -------------------------------------------------------------------------------------------------


def request_of(row: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `Http.send` for a row of the table."""
    headers: dict[str, str | None] = {"Content-Type": "application/cloudevents+json", **row.get("headers", {})}
    sent = event(**row.get("event", {}))
    if "data_depth" in row:
        body = msgspec.json.encode(event(data=0))[:-2] + b"[" * row["data_depth"] + b"]" * row["data_depth"] + b"}"
    elif "body_hex" in row:
        body = bytes.fromhex(row["body_hex"])
    elif "body" in row:
        body = row["body"].encode()
    elif "batch" in row or "batch_times" in row:
        headers |= BATCH
        changes = row.get("batch") or [{}] * row["batch_times"]
        body = msgspec.json.encode([event(**change) for change in changes])
    else:
        body = msgspec.json.encode(sent | ({"data": "x" * row["data_fill"]} if "data_fill" in row else {}))
    if row.get("chunked"):
        headers |= {"Transfer-Encoding": "chunked", "Content-Length": None}
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in _parts(body)) + b"0\r\n\r\n"
    lines = [*row.get("lines", []), *(f"X-Many-{n}: x" for n in range(row.get("header_times", 0)))]
    return {
        "method": row.get("method", "POST"),
        "path": row.get("path", "/v1/events"),
        "headers": headers,
        "body": body,
        "lines": tuple(lines),
        "version": row.get("version", "HTTP/1.1"),
    }


def _parts(body: bytes) -> list[bytes]:
    return [body[start : start + 8192] for start in range(0, len(body), 8192)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
async def test_bad_input_is_named_and_stores_nothing(row: dict[str, Any], http: Http, streams: Streams) -> None:
    """Each bad request gets the status and code of its row as a problem document, and nothing of it is stored."""
    before = await streams.stored()
    answer = await http.send(**request_of(row))
    assert answer.status == row["status"], answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    if row.get("method") != "HEAD":
        problem = answer.json
        assert problem["code"] == row["code"], problem
        assert (problem["status"], problem["type"]) == (row["status"], f"urn:mesh:problem:{row['code']}")
        assert problem["detail"]
        assert problem.get("index") == row.get("index")
        assert "Lovelace" not in answer.body.decode()
    assert await streams.stored() == before


async def test_a_body_without_end_is_refused_at_the_limit(http: Http) -> None:
    """A chunked body that never ends gets 413 as soon as it passes the limit, and the rest is not waited for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    head = f"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{http.port}\r\nAuthorization: Bearer {http.token}\r\n"
    writer.write(f"{head}Content-Type: application/cloudevents+json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    for _ in range(33):
        writer.write(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
    answer = await read_answer(reader)
    writer.close()
    assert (answer.status, answer.json["limit"]) == (413, 262_144)


async def test_the_door_goes_on_after_all_that(http: Http, doors: Sidecar) -> None:
    """Nonsense on a connection hurts nobody else."""
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00", b"\x00" * 64, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        assert (await http.raw(nonsense + b"\r\n\r\n")).status == 400
    assert (await http.post(event())).status == 202
    assert not doors.agent.not_alive()


async def test_a_refused_caller_learns_what_to_do(http: Http) -> None:
    """Limits show both numbers, a wrong method what is allowed, a missing token how to ask, a denial its rule."""
    large = await http.post(event(data="x" * 300_000))
    assert large.json["limit"] == 262_144
    assert large.json["size"] > 300_000
    assert (await http.send("GET", "/v1/events", {})).headers["allow"] == "POST"
    assert (await http.post(event(), headers={"Authorization": None})).headers["www-authenticate"] == "Bearer"
    denied = await http.post(event(data={"account": "acme-test"}))
    assert (denied.status, denied.json["rule"], denied.json["reason"]) == (403, "no-tests", "rule")


# --- limits of connections and time ----------------------------------------------------------------------------------


async def test_slow_headers_and_bodies_are_cut(streams: Streams, tmp_path: Path) -> None:
    """Who sends a header or a body byte by byte gets 408; so does a second request on a kept connection."""
    base = write_directory(tmp_path)
    async with sidecar(base, streams.server.url, header_timeout_s=0.2, body_timeout_s=0.2) as running:
        await until(lambda: not running.agent.not_ready())
        http = client(running)
        host = f"Host: 127.0.0.1:{http.port}\r\n"
        document = f"GET /openapi.json HTTP/1.1\r\n{host}\r\n".encode()
        auth = f"Authorization: Bearer {http.token}\r\nContent-Type: application/cloudevents+json\r\n"
        slow_header = await http.raw(b"POST /v1/events HT")
        slow_body = await http.raw(f"POST /v1/events HTTP/1.1\r\n{host}{auth}Content-Length: 100\r\n\r\n{{".encode())
        silent = await http.raw(b"")
        assert [a.status for a in (slow_header, slow_body, silent)] == [408, 408, 408]
        assert slow_body.json["code"] == "request-timeout"
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(document)
        first = await read_answer(reader)
        writer.write(document[:30])
        second = await read_answer(reader)
        writer.close()
        assert (first.status, second.status) == (200, 408)


async def test_connections_are_bounded(streams: Streams, tmp_path: Path) -> None:
    """One connection too many gets 503 at once, and its place is free again when another ends."""
    async with sidecar(write_directory(tmp_path), streams.server.url, max_connections=2) as running:
        await until(lambda: not running.agent.not_ready())
        http = client(running)
        held = [await asyncio.open_connection("127.0.0.1", http.port) for _ in range(2)]
        listener = running.intake.listener
        assert listener is not None
        await until(lambda: listener.full)
        assert (await http.post(event())).json["code"] == "overloaded"
        for _, writer in held:
            writer.close()
        await until(lambda: not listener.connections)
        assert (await http.post(event())).status == 202


async def test_a_unix_socket_is_for_its_group(streams: Streams, tmp_path: Path) -> None:
    """On a Unix socket the door has mode 0660, takes `Host: localhost`, and is removed at the end."""
    path = tmp_path / "s"
    async with sidecar(write_directory(tmp_path / "agent"), streams.server.url, http_socket=str(path)) as running:
        await until(lambda: not running.agent.not_ready())
        assert path.stat().st_mode & 0o777 == 0o660
        for host, status in (("localhost", 200), ("127.0.0.1", 421)):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(f"GET /openapi.json HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert (await read_answer(reader)).status == status
            writer.close()
    assert not path.exists()


# --- webhooks --------------------------------------------------------------------------------------------------------


async def deliver(doors: Sidecar, body: bytes, **changes: str | None) -> Answer:
    """A delivery as GitHub makes it; changes are header fields with `_` for `-`, or the file of another `secret`."""
    key = (doors.agent.base / (changes.pop("secret", None) or "hook.secret")).read_text().strip().encode()
    headers: dict[str, str | None] = {
        "Content-Type": "application/json",
        "Authorization": None,
        "X-GitHub-Event": "issues",
        "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "X-Hub-Signature-256": "sha256=" + hmac.new(key, body, sha256).hexdigest(),
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    return await Http(doors.webhooks.url, "").send("POST", "/v1/webhooks/main", headers, body)


async def test_a_delivery_becomes_an_event(doors: Sidecar, streams: Streams) -> None:
    """A signed delivery is stored under its delivery id and source, its payload as it came; a retry is no news."""
    payload = {"action": "opened", "issue": {"number": 7, "title": "K\u00f6ln \u2603"}, "big": 12345678901234567890}
    body = json.dumps(payload).encode()
    answer = await deliver(doors, body)
    assert answer.status == 202, answer.body
    (copy,) = answer.json["copies"]
    stored = await streams.message("EV_local_github", copy["seq"])
    assert (stored["type"], stored["source"]) == ("github.issues.opened.v1", "/github/main")
    assert stored["id"] == answer.json["id"] == "72d3162e-cc78-11e3-81ab-4c9367dc0958"
    assert stored["data"] == payload
    assert (await deliver(doors, body, secret="hook.next")).json["duplicate"] is True


async def test_an_unsigned_ping_is_refused(doors: Sidecar, streams: Streams) -> None:
    """GitHub's ping is checked like every delivery: unsigned it gets 401, and nothing is stored."""
    before = await streams.stored("EV_local_github")
    unsigned = await deliver(doors, b'{"zen": "x"}', X_GitHub_Event="ping", X_Hub_Signature_256=None)
    assert (unsigned.status, unsigned.json["code"]) == (401, "bad-webhook-signature")
    assert await streams.stored("EV_local_github") == before


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"X_Hub_Signature_256": "sha256=" + "0" * 64}, 401, "bad-webhook-signature"),
        ({"Host": "hooks.example"}, 421, "wrong-host"),
        ({"Origin": "https://github.com"}, 403, "cross-origin"),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415, "unsupported-media-type"),
        ({"Content_Encoding": "gzip"}, 415, "unsupported-media-type"),
        ({"X_GitHub_Delivery": None}, 400, "bad-attribute"),
        ({"X_GitHub_Event": "%0d%0a"}, 400, "bad-attribute"),
    ],
)
async def test_a_bad_delivery_is_refused(
    doors: Sidecar, changes: dict[str, str | None], status: int, code: str
) -> None:
    """What does not verify, or does not say what it is, becomes no event."""
    answer = await deliver(doors, b"{}", **changes)
    assert (answer.status, answer.json["code"]) == (status, code)


async def test_nothing_is_parsed_before_the_signature(doors: Sidecar) -> None:
    """A body that is no JSON gets 401 unsigned and 400 signed: the signature is looked at first."""
    assert (await deliver(doors, b"{", X_Hub_Signature_256=None)).json["code"] == "bad-webhook-signature"
    assert (await deliver(doors, b"{")).json["code"] == "not-json"


async def test_strangers_at_the_webhooks_take_no_room_from_the_application(streams: Streams, tmp_path: Path) -> None:
    """What is announced and not sent costs nothing, and what is sent is taken from the webhooks' own memory."""
    limits = {"max_waiting_bytes": 4 << 20, "max_webhook_bytes": 256 << 10, "admit_wait_s": 0.1}
    async with sidecar(write_directory(tmp_path), streams.server.url, **limits) as running:
        await until(lambda: not running.agent.not_ready())
        port = int(running.webhooks.url.rpartition(":")[2])
        head = (
            f"POST /v1/webhooks/main HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {256 << 10}\r\n\r\n"
        )
        writers = []
        for _ in range(30):
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + b"x")
            writers.append(writer)
        await until(lambda: running.agent.webhook_bytes.used == 30)
        assert (await probe(running, "/readyz")).status == 200
        assert (await client(running).post(event())).status == 202
        writers[0].write(b"x" * (200 << 10))
        await until(lambda: running.agent.webhook_bytes.used == 30 + (200 << 10))
        big = await deliver(running, b"x" * (100 << 10))
        assert (big.status, big.json["code"]) == (503, "overloaded")
        assert (await probe(running, "/readyz")).status == 200
        assert (await client(running).post(event())).status == 202
        for writer in writers:
            writer.close()
        await until(lambda: running.agent.webhook_bytes.used == 0)
        assert (await deliver(running, b'{"action": "opened"}')).status == 202


async def test_the_doors_are_apart(doors: Sidecar, http: Http) -> None:
    """The webhooks' listener publishes no events, and the application's takes no webhooks."""
    assert (await Http(doors.webhooks.url, http.token).post(event())).status == 404
    assert (await http.post({}, path="/v1/webhooks/main")).status == 404
    assert (await Http(doors.webhooks.url, "").post({}, path="/v1/webhooks/other")).status == 404


# --- probes, bundle, drain -------------------------------------------------------------------------------------------


async def probe(running: Sidecar, path: str) -> Answer:
    """As the kubelet asks."""
    return await Http(running.health.url, "").send("GET", path, {"Host": "10.1.2.3:8482", "Authorization": None})


async def test_metrics_count_what_happened(streams: Streams, tmp_path: Path) -> None:
    """`/metrics` shows accepted, refused by code, copies by view, latency and the bundle's revision, and no values."""
    async with sidecar(write_directory(tmp_path), streams.server.url) as running:
        await until(lambda: not running.agent.not_ready())
        http = client(running)
        await http.post(event())
        await http.post(event(type="Crm"))
        text = (await probe(running, "/metrics")).body.decode()
    for sample in (
        "mesh_agent_accepted_total",
        'mesh_agent_refused_total{code="bad-type",door="intake"}',
        'mesh_agent_published_total{view="service"}',
        "mesh_agent_request_duration_seconds_bucket",
        "mesh_agent_in_flight 0.0",
        "mesh_agent_policy_revision 1.0",
        "mesh_agent_ready 1.0",
    ):
        assert sample in text, text
    assert "ada@" not in text


async def test_without_a_bundle_nothing_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first bundle everything gets 503 and the agent is alive, not ready; the notice opens the door."""
    monkeypatch.setattr("mesh.watch.POLL_S", 3600.0)
    async with (
        Streams.running(tmp_path / "nats", bundle=False) as streams,
        sidecar(write_directory(tmp_path / "agent"), streams.server.url) as running,
    ):
        http = client(running)
        await until(lambda: running.agent.state()["nats_connected"])
        refused = await http.post(event())
        assert (refused.status, refused.json["code"]) == (503, "no-valid-bundle")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await probe(running, "/livez")).status == 200
        assert (await probe(running, "/readyz")).json["because"] == ["no-valid-bundle"]
        await streams.hand_out()
        await until(lambda: not running.agent.not_ready())
        assert (await http.post(event())).status == 202


async def test_a_new_bundle_is_swapped_whole_and_an_older_one_refused(tmp_path: Path) -> None:
    """A higher revision decides from the notice on; a lower one, or a broken one, changes nothing."""
    async with (
        Streams.running(tmp_path / "nats") as streams,
        sidecar(write_directory(tmp_path / "agent"), streams.server.url) as running,
    ):
        http = client(running)
        await until(lambda: not running.agent.not_ready())
        assert (await http.post(event())).status == 202
        denied = "\n    - {id: none, who: {teams: [crm]}, publish: ['crm.contact.>'], when: \"data.country == 'DE'\"}\n"
        first = await streams.envelope()
        await streams.hand_out(policies=POLICIES.rstrip() + denied)
        await until(lambda: running.agent.state()["bundle_revision"] == 2)
        assert (await http.post(event())).status == 403
        for bad, code in ((first, "bundle-rollback"), (b"{}", "bundle-signature")):
            await streams.put(bad)
            await until(lambda code=code: refusal(running) == code)
            assert (await http.post(event())).status == 403
            assert running.agent.state()["bundle_revision"] == 2


async def test_a_missing_domain_key_is_named_and_waited_for(streams: Streams, tmp_path: Path) -> None:
    """An event masked in a domain without a key gets 503; others go on, `/readyz` names it, a key put there helps."""
    base = write_directory(tmp_path)
    key = (base / "domains" / "customer.key").read_text()
    (base / "domains" / "customer.key").unlink()
    async with sidecar(base, streams.server.url) as running:
        await until(lambda: not running.agent.not_ready())
        http = client(running)
        refused = await http.post(event())
        assert (refused.status, refused.json["code"], refused.json["domain"]) == (503, "no-domain-key", "customer")
        assert "retry-after" in refused.headers
        assert (await http.post([event(type="crm.deal.won.v1"), event()], headers=BATCH)).json["index"] == 1
        ready = await probe(running, "/readyz")
        assert (ready.status, ready.json["domains_lacking"]) == (200, ["customer"])
        assert (await http.post(event(type="crm.deal.won.v1"))).status == 202
        (base / "domains" / "customer.key").write_text(key)

        async def accepted() -> bool:
            return (await http.post(event())).status == 202

        await until(accepted)
        assert (await probe(running, "/readyz")).json["domains_lacking"] == []


@pytest.mark.parametrize("file", ["ports.json", "missing/ports.json", ""])
async def test_it_serves_where_the_ports_cannot_be_written(file: str, streams: Streams, tmp_path: Path) -> None:
    """Addresses that are not written down (no such directory, a read-only one, none wanted) stop nothing."""
    base = write_directory(tmp_path)
    (base / "ports.json").mkdir()
    async with sidecar(base, streams.server.url, ports_file=file) as running:
        await running._announce()
        assert (await client(running).post(event())).status == 202
    assert (base / "ports.json").is_dir()
    assert not list(base.glob(".ports.json*"))


def refusal(running: Sidecar) -> str | None:
    """The code of the last bundle that the agent refused."""
    refused = running.agent.state()["bundle_refused"]
    return refused and str(refused["code"])


async def test_without_a_spool_a_stream_that_is_away_gets_503_and_the_same_event_later_202(tmp_path: Path) -> None:
    """With the server gone the caller gets 503 and Retry-After; the same event is accepted when it is back."""
    async with (
        Streams.running(tmp_path / "nats") as streams,
        sidecar(write_directory(tmp_path / "agent"), streams.server.url, give_up_s=0.5, spool_file="") as running,
    ):
        http = client(running)
        await until(lambda: not running.agent.not_ready())
        streams.server.kill()
        sent = event()
        refused = await http.post(sent)
        assert (refused.status, refused.json["code"]) == (503, "stream-unavailable"), refused.body
        assert int(refused.headers["retry-after"]) >= 1
        batch = await http.post([event(), event()], headers=BATCH)
        assert (batch.status, batch.json["accepted"], batch.json["failed"]) == (503, 0, [0, 1])
        assert (await probe(running, "/readyz")).status == 200
        await streams.server.restart()

        async def accepted() -> bool:
            return (await http.post(sent)).status == 202

        await until(accepted)


async def test_an_agent_that_nats_refuses_says_so_at_once_until_it_is_let_in(tmp_path: Path) -> None:
    """Cut off, it is not ready and refuses with the reason; admitted it is ready, and so it stays with NATS away."""
    mode = await OperatorMode.start(tmp_path / "nats")
    try:
        await mode.apply(desired(SITE, DOMAINS, (), SMALL))
        streams = Streams(mode.server, mode.tenant)
        await streams.trust()
        await streams.hand_out()
        grants = [PublishGrant(view, Pattern.parse("crm.>")) for view in ("clear", "service")]
        imports = publish_imports(mode.tenant_account.public, SITE, grants)
        await mode.grant("crm-adapter", imports)
        account = mode.accounts["crm-adapter"]
        base = write_directory(tmp_path / "agent")
        creds = mode.creds(account, "crm-adapter", subscribe=accounts.workload_subscribe("crm-adapter"))
        (base / "nats.creds").write_bytes(creds)
        async with sidecar(base, mode.server.url, creds_file="nats.creds", give_up_s=0.5) as running:
            await until(lambda: not running.agent.not_ready())
            http = client(running)
            assert (await http.post(event())).json["durable"] == "stream"

            mode.iat += 1
            closed = accounts.account_jwt(mode.operator, account.public, "crm-adapter", closed=True, iat=mode.iat)
            await mode.push([closed])
            await until(running.agent.not_ready)
            ready = await probe(running, "/readyz")
            assert (ready.status, ready.json["because"]) == (503, ["nats-unreachable", "account-closed"])
            refused = await http.post(event())
            assert (refused.status, refused.json["code"]) == (503, "nats-unreachable"), refused.body
            assert refused.json["reason"] == "account-closed"
            assert "mesh trust list" in refused.json["next"]
            assert (await probe(running, "/livez")).status == 200
            with pytest.raises(Disconnected, match="account-closed"):
                await running.agent.publish(event())

            await mode.grant("crm-adapter", imports)
            await until(lambda: not running.agent.not_ready())
            assert (await http.post(event())).status == 202

            (base / "nats.creds").unlink()
            mode.server.kill()
            await until(running.agent.not_ready)
            refused = await http.post(event())
            assert (refused.status, refused.json["reason"]) == (503, "bad-config"), refused.body
            assert "mesh up" in refused.json["next"]
            (base / "nats.creds").write_bytes(creds)
            await until(lambda: not running.agent.not_ready())
            assert not running.agent.state()["nats_connected"]
            assert (await http.post(event())).json["durable"] == "spool"
    finally:
        await mode.stop()


async def test_draining_finishes_what_is_in_progress(streams: Streams, tmp_path: Path) -> None:
    """From the drain on new requests get 503 `draining`, the one in progress gets its 202, and `/livez` stays 200."""
    async with sidecar(write_directory(tmp_path), streams.server.url) as running:
        await until(lambda: not running.agent.not_ready())
        http = client(running)
        body = msgspec.json.encode(event())
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        head = (
            f"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{http.port}\r\nAuthorization: Bearer {http.token}\r\n"
            f"Content-Type: application/cloudevents+json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body[:10])
        await until(lambda: running.intake.in_progress)
        drain = asyncio.create_task(running.drain())
        await until(lambda: running.agent.state()["draining"])
        refused = await http.post(event())
        assert (refused.status, refused.json["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        assert (await probe(running, "/livez")).status == 200
        assert (await probe(running, "/readyz")).json["because"] == ["draining"]
        assert not drain.done()
        writer.write(body[10:])
        assert (await read_answer(reader)).status == 202
        writer.close()
        assert await drain is True


# --- embedded --------------------------------------------------------------------------------------------------------


async def test_an_embedded_agent_keeps_the_same_promises(streams: Streams, tmp_path: Path) -> None:
    """`Agent` publishes without HTTP: receipts for what is stored, an index for what is refused, and then the end."""
    base = write_directory(tmp_path)
    environ = {"MESH_AGENT_NATS_URL": streams.server.url}
    settings = load_settings((base / "agent.toml").read_text(), environ).settings
    async with Agent(settings, base) as agent:
        receipt = await agent.publish(event(id="embedded-1"))
        assert (receipt.id, receipt.durable, len(receipt.copies)) == ("embedded-1", "stream", 2)
        receipts = await agent.publish_many([event(id=f"many-{n}") for n in range(1000)])
        assert [r.id for r in receipts] == [f"many-{n}" for n in range(1000)]
        receipts = await agent.publish_many([msgspec.json.encode(event(id=f"many-{n}")) for n in range(999, 1001)])
        assert [(r.id, r.duplicate, len(r.copies)) for r in receipts] == [
            ("many-999", True, 2),
            ("many-1000", False, 2),
        ]
        before = await streams.stored()
        with pytest.raises(InputError) as malformed:
            await agent.publish_many([event(), event(type="Crm")])
        with pytest.raises(Denied) as denied:
            await agent.publish_many([event(), event(), event(source="/billing")])
        assert (malformed.value.details["index"], denied.value.details["index"]) == (1, 2)
        with pytest.raises(InputError) as unread:
            await agent.publish_many([msgspec.json.encode(event()), msgspec.json.encode(event()), b'{"id": NaN}'])
        with pytest.raises(Denied) as read_and_denied:
            await agent.publish_many([msgspec.json.encode(event()), msgspec.json.encode(event(source="/billing"))])
        assert (unread.value.details["index"], read_and_denied.value.details["index"]) == (2, 1)
        with pytest.raises(InputError) as alone:
            await agent.publish_many([b"{"])
        assert alone.value.details["index"] == 0
        assert await streams.stored() == before
    with pytest.raises(Draining):
        await agent.publish(event())


async def test_closing_ends_every_publish(tmp_path: Path) -> None:
    """Whoever waits for the window, a lane or room when the agent closes is told that nothing is durable."""
    base = write_directory(tmp_path / "agent")
    async with Streams.running(tmp_path / "nats") as streams:
        environ = {
            "MESH_AGENT_NATS_URL": streams.server.url,
            "MESH_AGENT_PUBLISH_WINDOW": "256",
            "MESH_AGENT_MAX_WAITING_EVENTS": "1000",
            "MESH_AGENT_GIVE_UP_S": "300",
            "MESH_AGENT_SPOOL_AFTER_S": "60",
            "MESH_AGENT_ADMIT_WAIT_S": "30",
        }
        agent = Agent(load_settings((base / "agent.toml").read_text(), environ).settings, base)
        await agent.start()
        await agent.wait_ready(20)
        streams.server.pause()
        try:
            waiting = [asyncio.create_task(agent.publish(event())) for _ in range(1200)]
            outbound, publisher = agent.outbound, agent._publisher
            assert outbound is not None
            assert publisher is not None
            await until(lambda: outbound.room.used == 1000 and publisher.in_flight == 256)
            assert not await agent.drain(0.01)
            await agent.close()
            async with asyncio.timeout(60):
                ended = await asyncio.gather(*waiting, return_exceptions=True)
        finally:
            streams.server.resume()
        assert {type(each) for each in ended} == {Disconnected}


async def test_a_right_that_ends_holds_until_then(tmp_path: Path) -> None:
    """A publish line with an end in the future lets events through; one that has ended does not."""
    for end, status in (("2099-01-01T00:00:00Z", 202), ("2001-01-01T00:00:00Z", 403)):
        line = 'publish: ["crm.>", "github.>"], sources: ["/github/*"]'
        policies = POLICIES.replace(line, f'{line}, expires: "{end}", reason: "a trial"')
        policies = policies.replace("view: clear}", 'view: clear, expires: "2099-01-01T00:00:00Z", reason: "a trial"}')
        assert policies.count("a trial") == 2
        async with Streams.running(tmp_path / end[:4] / "nats", bundle=False) as streams:
            await streams.hand_out(policies=policies)
            async with sidecar(write_directory(tmp_path / end[:4] / "agent"), streams.server.url) as running:
                await until(lambda running=running: not running.agent.not_ready())
                assert (await client(running).post(event())).status == status
