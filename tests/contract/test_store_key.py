"""JetStream's files under a key: nothing in the clear, and another key without losing an event or a position."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mesh.control import store_key
from mesh.control.datadir import write_private
from mesh.control.nats_server import NatsServer, plain_config
from mesh.control.store_key import VARIABLE, StoreKey
from mesh.errors import ConfigError
from mesh.jetstream import manage, wire
from mesh.jetstream.connection import Connection
from tests.contract.streams import STREAM, consumer, make_durable, make_stream, until

pytestmark = pytest.mark.anyio

MARKER = b"a-value-that-must-not-lie-on-disk-in-the-clear"
SUBJECT = "ev.local.clear.s00.crm.contact.v1"
EVENTS = 60
PULLED = 20
ACKED = (1, 2, 3, 4, 5, 7, 11)  # with holes: the floor is 5, and 7 and 11 are settled beyond it


class Store(NamedTuple):
    """A directory with a store and its key."""

    directory: Path
    key: StoreKey

    @classmethod
    def at(cls, directory: Path) -> Store:
        """A new one."""
        return cls(directory, StoreKey(directory / "admin" / "store.key", directory / "store"))

    @asynccontextmanager
    async def server(self, config: str | None = None, **environment: str) -> AsyncIterator[Connection]:
        """A connection to a server on it, with its key unless told otherwise."""
        config = config or plain_config(self.directory / "store", encrypted=True)
        server = await NatsServer.start(
            config, self.directory / "nats", environment=environment or self.key.environment()
        )
        connection = await Connection.open(server.url, name="test")
        try:
            yield connection
        finally:
            await connection.close()
            await server.stop()


async def fill(connection: Connection) -> None:
    """Events of which one durable has pulled some and settled a few, and another none."""
    await make_stream(connection)
    await make_durable(connection, "team--half")
    await make_durable(connection, "team--none")
    for number in range(EVENTS):
        await connection.publish(SUBJECT, b"%b %d" % (MARKER, number))
    acks: list[str] = []
    inbox = connection.new_inbox()
    listener = connection.listen(inbox, lambda _s, reply, _h, _d: acks.append(reply))
    pull = b'{"batch":%d,"expires":20000000000}' % PULLED
    await connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.team--half", pull, reply=inbox)
    await until(lambda: len(acks) >= PULLED)
    listener.close()
    for sequence in ACKED:
        connection.write(wire.ack_frame(acks[sequence - 1], b"+ACK"))
    async with asyncio.timeout(60):
        while (await consumer(connection, "team--half"))["num_ack_pending"] != PULLED - len(ACKED):
            await asyncio.sleep(0.01)


async def state(connection: Connection) -> dict[str, Any]:
    """What a rotation has to keep: events, and where each durable stands."""
    found: dict[str, Any] = {}
    for stream, durable in sorted((await manage.read_actual(connection)).consumers):
        info = await manage.consumer_info(connection, stream, durable)
        found[durable] = (info["ack_floor"]["stream_seq"], info["num_ack_pending"], info["num_pending"])
    stored = await manage.stream_info(connection, STREAM)
    last = await manage.api(connection, f"STREAM.MSG.GET.{STREAM}", {"seq": EVENTS})
    return {**found, "messages": stored["state"]["messages"], "last": last["message"]["data"]}


async def names(connection: Connection) -> list[str]:
    """The streams that are there."""
    return sorted((await manage.read_actual(connection)).streams)


@pytest.fixture
async def store(tmp_path: Path) -> tuple[Store, dict[str, Any]]:
    """A store with events, closed; and its state."""
    made = Store.at(tmp_path)
    async with made.server() as connection:
        await fill(connection)
        before = await state(connection)
    assert before["team--half"] == (5, PULLED - len(ACKED), EVENTS - PULLED)
    assert before["team--none"] == (0, 0, EVENTS)
    return made, before


def lies_in_the_clear(directory: Path, what: bytes) -> bool:
    """Whether any file below has it."""
    return subprocess.run(["grep", "-rqaF", what.decode(), str(directory)], check=False).returncode == 0


async def test_nothing_of_an_event_lies_in_the_clear(tmp_path: Path) -> None:
    """Neither bodies nor subjects nor names of durables are found in the store's files; without a key all are."""
    for encrypted in (False, True):
        made = Store.at(tmp_path / str(encrypted))
        config = plain_config(made.directory / "store", encrypted=encrypted)
        async with made.server(config, **(made.key.environment() if encrypted else {"UNUSED": ""})) as connection:
            await fill(connection)
        for what in (MARKER, SUBJECT.encode(), b"ev.local.*.*.crm."):
            assert lies_in_the_clear(made.directory / "store", what) is not encrypted, what


async def test_the_key_is_in_no_argument_configuration_or_log(tmp_path: Path) -> None:
    """Who sees the process list or reads the server's configuration and log learns nothing."""
    made = Store.at(tmp_path)
    environment = made.key.environment()
    key = environment[VARIABLE].strip('"')
    server = await NatsServer.start(
        plain_config(tmp_path / "store", encrypted=True), tmp_path / "nats", environment=environment
    )
    await server.stop()
    assert not lies_in_the_clear(tmp_path / "nats", key.encode())
    assert not lies_in_the_clear(tmp_path / "store", key.encode())
    assert (tmp_path / "admin" / "store.key").stat().st_mode & 0o777 == 0o600


async def test_a_key_that_looks_like_a_number_is_a_key(tmp_path: Path) -> None:
    """A key of digits alone starts the server, which would otherwise read a number, and print it as out of range."""
    made = Store.at(tmp_path)
    write_private(tmp_path / "admin" / "store.key", b"12" * 32)
    async with made.server() as connection:
        await make_stream(connection)


async def test_another_key_keeps_every_event_and_position(store: tuple[Store, dict[str, Any]]) -> None:
    """After two rotations all is there, holes in the acks included; the keys before open nothing any more."""
    made, before = store
    old = made.key.environment()
    for _ in range(2):
        made.key.rotate()
        async with made.server() as connection:
            assert await state(connection) == before
    assert made.key.environment() != old
    async with made.server(**old) as connection:
        assert await names(connection) == []
    async with made.server() as connection:
        assert await state(connection) == before
        await connection.publish(SUBJECT, b"after")
        await connection.flush(2.0)


async def test_a_rotation_cut_short_is_finished_by_the_next_start(
    store: tuple[Store, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after any number of files loses nothing: the next start goes on from there."""
    made, before = store
    keys = len(list((made.directory / "store").rglob("*.key")))
    for survived in range(keys):
        left = [survived]

        def crash(path: Path, content: bytes, left: list[int] = left) -> None:
            if path.name != "store.next.key":
                if not left[0]:
                    raise OSError("power")
                left[0] -= 1
            write_private(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(store_key, "write_private", crash)
            with pytest.raises(OSError, match="power"):
                made.key.rotate()
        made.key.environment()
    admin = made.directory / "admin"
    old = (admin / "store.key").read_bytes()
    made.key.rotate()
    (admin / "store.key").rename(admin / "store.next.key")  # all is written, and the power fails
    write_private(admin / "store.key", old)
    async with made.server() as connection:
        assert await state(connection) == before


@pytest.mark.parametrize("damage", ["another store's key", "a file of another kind"])
async def test_what_does_not_open_stops_the_rotation(damage: str, store: tuple[Store, dict[str, Any]]) -> None:
    """A data key that the store's key does not open is never written over, and nothing else is changed either."""
    made, before = store
    file = made.directory / "admin" / "store.key"
    kept = file.read_bytes()
    if damage == "another store's key":
        write_private(file, b"00" * 32)
    else:
        (made.directory / "store" / "jetstream" / "$G" / "stray.key").write_bytes(bytes(64))
    content = {path: path.read_bytes() for path in (made.directory / "store").rglob("*.key")}
    with pytest.raises(ConfigError, match="does not open"):
        made.key.rotate()
    assert {path: path.read_bytes() for path in content} == content
    write_private(file, kept)
    async with made.server() as connection:
        assert await state(connection) == before


async def test_a_store_in_the_clear_can_be_encrypted(tmp_path: Path) -> None:
    """A store of a mesh without encryption is taken over as it is, and nothing stays in the clear."""
    made = Store.at(tmp_path)
    async with made.server(plain_config(tmp_path / "store"), UNUSED="") as connection:
        await fill(connection)
        before = await state(connection)
    async with made.server() as connection:
        assert await state(connection) == before
    assert not lies_in_the_clear(tmp_path / "store", MARKER)
    made.key.rotate()
    async with made.server() as connection:
        assert await state(connection) == before


async def test_the_servers_own_rotation_loses_every_durable(store: tuple[Store, dict[str, Any]]) -> None:
    """Why we wrap the keys ourselves: `prev_key` of nats-server 2.15 keeps events and drops all consumers.

    When an upgrade makes this fail, `StoreKey.rotate` may become a start with both keys.
    """
    made, before = store
    old = made.key.environment()[VARIABLE]
    config = plain_config(made.directory / "store", encrypted=True)
    both = config.replace(f"${VARIABLE}", f"${VARIABLE}, prev_key: $OLD")
    async with made.server(both, **{VARIABLE: '"another"', "OLD": old}) as connection:
        actual = await manage.read_actual(connection)
        assert (await manage.stream_info(connection, STREAM))["state"]["messages"] == before["messages"]
        assert actual.consumers == {}
