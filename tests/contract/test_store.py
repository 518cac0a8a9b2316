"""A key-value bucket against the real server: what is put is read back by Direct Get."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.control.nats_server import NatsServer, plain_config
from mesh.errors import BadSubject, RequestFailed, Unavailable
from mesh.jetstream import manage
from mesh.jetstream.changes import plan
from mesh.jetstream.connection import Connection
from mesh.jetstream.requests import Reply
from mesh.jetstream.store import WRONG_LAST_SEQUENCE, KeyValue
from mesh.jetstream.topology import Sizes, desired

pytestmark = pytest.mark.anyio

SMALL = Sizes(event_bytes=16 << 20, dlq_bytes=16 << 20, audit_bytes=16 << 20, small_bytes=16 << 20)


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Connection]:
    """A connection to a server with the fixed streams."""
    server = await NatsServer.start(plain_config(tmp_path / "store"), tmp_path)
    try:
        opened = await Connection.open(server.url, name="control", creds=None)
        try:
            changes = plan(desired("local", (), (), SMALL), await manage.read_actual(opened))
            await manage.apply(opened, changes)
            yield opened
        finally:
            await opened.close()
    finally:
        await server.stop()


async def test_put_then_get(connection: Connection) -> None:
    """A value is read back byte for byte under the revision that put returned; another key stays absent."""
    store = KeyValue(connection, "mesh_trust")
    value = bytes(range(256)) * 3
    revision = await store.put("cert.Ab-_9", value)
    entry = await store.get("cert.Ab-_9")
    assert entry is not None
    assert (entry.value, entry.revision) == (value, revision)
    assert await store.get("cert.other") is None


async def test_the_last_put_wins(connection: Connection) -> None:
    """The newest value is read, and an empty value is a value."""
    store = KeyValue(connection, "mesh_policy")
    await store.put("bundle", b"one")
    revision = await store.put("bundle", b"")
    entry = await store.get("bundle")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"", revision)


async def test_expected_revision(connection: Connection) -> None:
    """A put with an expected revision succeeds once; the loser learns the error code."""
    store = KeyValue(connection, "mesh_policy")
    first = await store.put("bundle", b"one", expected_revision=0)
    await store.put("bundle", b"two", expected_revision=first)
    for stale in (first, 0):
        with pytest.raises(RequestFailed) as refusal:
            await store.put("bundle", b"three", expected_revision=stale)
        assert refusal.value.details["err_code"] == WRONG_LAST_SEQUENCE
    entry = await store.get("bundle")
    assert entry is not None
    assert entry.value == b"two"


async def test_a_deleted_key_is_absent(connection: Connection) -> None:
    """A delete marker, as any KV client writes it, reads as no value."""
    store = KeyValue(connection, "mesh_trust")
    await store.put("trust", b"x")
    await connection.request("$KV.mesh_trust.trust", b"", headers={"KV-Operation": "DEL"})
    assert await store.get("trust") is None


async def test_a_bucket_keeps_one_value_a_key(connection: Connection) -> None:
    """The last value of each key stays in the stream; older revisions of the policies have keys of their own."""
    for bucket in ("mesh_policy", "mesh_trust"):
        store = KeyValue(connection, bucket)
        for number in range(5):
            await store.put("bundle", b"%d" % number)
        state = (await manage.stream_info(connection, f"KV_{bucket}"))["state"]
        assert state["messages"] == 1


async def test_an_entry_says_when_it_was_put(connection: Connection) -> None:
    """The server's clock in milliseconds: it never goes back from one put to the next, and is today's."""
    store = KeyValue(connection, "mesh_policy")
    stamps = []
    for number in range(3):
        await store.put("bundle", b"%d" % number)
        entry = await store.get("bundle")
        assert entry is not None
        stamps.append(entry.at_ms)
    assert stamps == sorted(stamps)
    assert abs(stamps[0] / 1000 - time.time()) < 60


async def test_delete_leaves_nothing_to_read(connection: Connection) -> None:
    """A deleted key reads as no value, and may be put again."""
    store = KeyValue(connection, "mesh_policy")
    await store.put("shadow", b"x")
    await store.delete("shadow")
    assert await store.get("shadow") is None
    await store.put("shadow", b"y")
    entry = await store.get("shadow")
    assert entry is not None
    assert entry.value == b"y"


@pytest.mark.parametrize("key", ["", ">", "*", "a.>", "a.*", ".a", "a.", "a..b", "a b", "a\r\nPUB x 0", "a/b"])
async def test_a_malformed_key_is_refused(connection: Connection, key: str) -> None:
    """No wildcard, space or line break reaches a subject."""
    store = KeyValue(connection, "mesh_trust")
    with pytest.raises(BadSubject):
        await store.get(key)
    with pytest.raises(BadSubject):
        await store.put(key, b"")


async def test_a_bucket_that_is_not_there(connection: Connection) -> None:
    """Without its stream a bucket is unavailable, which a retry may cure; it is not an absent key."""
    with pytest.raises(Unavailable):
        await KeyValue(connection, "nowhere").get("key")


# --- what a broker may answer ----------------------------------------------------------------------------------------


class Broker:
    """A connection in whose place somebody answers."""

    def __init__(self, headers: dict[str, str], data: bytes = b"") -> None:
        self._reply = Reply(None, headers, data)

    async def request(self, _subject: str, _payload: bytes, **_options: object) -> Reply:
        """What it says to everything."""
        return self._reply


@pytest.mark.parametrize("revision", [None, "", "x", "-1", "0", "1.5", "\u0661", "9" * 5000])
async def test_a_value_without_a_revision_is_refused(revision: str | None) -> None:
    """Nobody goes on with it, and nobody falls over it; what stood there is said in part."""
    headers = {"Nats-Subject": "$KV.mesh_trust.trust"} | ({} if revision is None else {"Nats-Sequence": revision})
    broker: Any = Broker(headers, b"x")
    with pytest.raises(RequestFailed) as refusal:
        await KeyValue(broker, "mesh_trust").get("trust")
    assert len(str(refusal.value.as_dict())) < 400


@pytest.mark.parametrize("stamp", ["", "yesterday", "0001-01-01T00:00:00", "9999-12-31T23:59:59-14:00", "9" * 5000])
async def test_a_value_whose_time_cannot_be_read_has_none(stamp: str) -> None:
    """A time before or after all times included."""
    broker: Any = Broker({"Nats-Subject": "$KV.mesh_trust.trust", "Nats-Sequence": "7", "Nats-Time-Stamp": stamp}, b"x")
    entry = await KeyValue(broker, "mesh_trust").get("trust")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"x", 7)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff not json",
        b"[]",
        b'{"seq": "x"}',
        b'{"seq": 1e400}',
        b'{"error": 1}',
        b"[" * 100_000,
        b'{"stream": "\xff"}',
    ],
)
async def test_an_answer_that_is_no_ack_is_refused(data: bytes) -> None:
    """Of a put and of a delete."""
    broker: Any = Broker({}, data)
    store = KeyValue(broker, "mesh_trust")
    with pytest.raises(RequestFailed):
        await store.put("trust", b"x")
    with pytest.raises(RequestFailed):
        await store.delete("trust")
