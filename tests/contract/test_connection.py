"""The connection against a real server: it survives what publishers send, and comes back by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from mesh.control.nats_server import NatsServer
from mesh.errors import BadSubject, Closed, ConfigError, Disconnected, MeshError, TooLarge, Unavailable
from mesh.jetstream import keeper, listeners, wire
from mesh.jetstream.accounts import Nkey, account_jwt, creds_file, user_jwt
from mesh.jetstream.connection import Connection
from tests.contract.operator_mode import OperatorMode, nkey
from tests.contract.streams import DEADLINE_S, make_durable, make_stream, until, until_settled

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
def back_soon() -> None:
    """Here pauses between attempts are those of a process in production."""


Heard = tuple[str, str, bytes | None, bytes]


class RawClient:
    """A client that sends whatever bytes it is given, as a hostile publisher with a grant would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> RawClient:
        """Connected."""
        self = cls(*await asyncio.open_connection("127.0.0.1", port))
        await self.send(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
        return self

    async def send(self, frames: bytes) -> None:
        """Send, and wait until the server has processed it."""
        self._writer.write(frames + b"PING\r\n")
        async with asyncio.timeout(DEADLINE_S):
            await self._reader.readuntil(b"PONG\r\n")

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        await self._writer.wait_closed()


def pub(subject: bytes, data: bytes, *, reply: bytes = b"", headers: bytes | None = None) -> bytes:
    """A frame of exactly these bytes."""
    target = b" ".join([subject, reply] if reply else [subject])
    if headers is None:
        return b"PUB %b %d\r\n%b\r\n" % (target, len(data), data)
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (target, len(headers), len(headers) + len(data), headers, data)


@pytest.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    """Connected to a server of its own."""
    opened = await Connection.open(nats_server.url, name="test")
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def raw(nats_server: NatsServer) -> AsyncIterator[RawClient]:
    """A hostile publisher at the same server."""
    client = await RawClient.open(nats_server.port)
    try:
        yield client
    finally:
        await client.close()


class Ear:
    """Collects what a listener hears."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []

    def __call__(self, subject: str, reply: str, headers: bytes | None, data: bytes) -> None:
        """The callback of a listener."""
        self.heard.append((subject, reply, headers, data))

    @property
    def bodies(self) -> list[bytes]:
        """What came, in order."""
        return [data for *_, data in self.heard]


# --- hostile frames --------------------------------------------------------------------------------------------------

# security.md's six, and three more that a server accepts and nats-py's parser cannot cut.
MALFORMED = {
    "subject-not-utf8": pub(b"ev.\xff", b"x"),
    "reply-not-utf8": pub(b"ev.a", b"x", reply=b"r\xff"),
    "header-block-cut-short": pub(b"ev.a", b"x", headers=b"NATS/1.0"),
    "header-block-foreign": pub(b"ev.a", b"x", headers=b"XXXX"),
    "status-code-not-utf8": pub(b"ev.a", b"x", headers=b"NATS/1.0 4\xff4\r\n\r\n"),
    "status-text-not-utf8": pub(b"ev.a", b"x", headers=b"NATS/1.0 404 \xff\r\n\r\n"),
    "header-value-not-utf8": pub(b"ev.a", b"x", headers=b"NATS/1.0\r\na: \xff\r\n\r\n"),
}
ODD = {
    "vertical-tab": (pub(b"ev.a\x0b1", b"x"), "ev.a\x0b1"),
    "form-feed": (pub(b"ev.a\x0c1", b"x"), "ev.a\x0c1"),
    "nul": (pub(b"ev.a\x00b", b"x"), "ev.a\x00b"),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_live_frame_is_dropped_and_counted(name: str, connection: Connection, raw: RawClient) -> None:
    """What nats-py dies of is dropped and counted; the messages before and after it arrive on the same connection."""
    ear, before = Ear(), listeners.MALFORMED.at().value
    connection.listen("ev.>", ear)
    await connection.flush(DEADLINE_S)
    await raw.send(pub(b"ev.a", b"before") + MALFORMED[name] + pub(b"ev.a", b"after"))
    await until(lambda: len(ear.heard) == 2)
    assert ear.bodies == [b"before", b"after"]
    assert listeners.MALFORMED.at().value == before + 1
    assert connection.connected


@pytest.mark.parametrize("name", ODD)
async def test_an_odd_subject_reaches_its_own_listener_only(name: str, connection: Connection, raw: RawClient) -> None:
    """Whitespace that is no separator stays in the subject: it cannot move a message to another subscription."""
    frame, subject = ODD[name]
    first, ear = Ear(), Ear()
    connection.listen("other", first)
    connection.listen("ev.>", ear)
    await connection.flush(DEADLINE_S)
    await raw.send(frame + pub(b"ev.a", b"after"))
    await until(lambda: len(ear.heard) == 2)
    assert [subject for subject, *_ in ear.heard] == [subject, "ev.a"]
    assert first.heard == []


STORED = {
    "subject-not-utf8": pub(b"ev.\xff", b"x"),
    "header-block-cut-short": pub(b"ev.a", b"x", headers=b"NATS/1.0"),
    "header-block-foreign": pub(b"ev.a", b"x", headers=b"XXXX"),
    "header-value-not-utf8": pub(b"ev.a", b"x", headers=b"NATS/1.0\r\na: \xff\r\n\r\n"),
}


@pytest.mark.parametrize("name", STORED)
async def test_a_malformed_stored_event_is_terminated(name: str, connection: Connection, raw: RawClient) -> None:
    """A poison that a stream holds is ended at its first delivery, and what is stored behind it arrives."""
    await make_stream(connection, subjects=["ev.>"])
    await make_durable(connection)
    await raw.send(STORED[name] + pub(b"ev.a", b"good"))
    ear, inbox = Ear(), connection.new_inbox()
    connection.listen(inbox, ear)
    await connection.publish(
        "$JS.API.CONSUMER.MSG.NEXT.EV_local_crm.team--sub", b'{"batch":10,"expires":5000000000}', reply=inbox
    )
    await until(lambda: ear.heard)
    connection.write(wire.ack_frame(ear.heard[0][1], b"+ACK"))
    assert ear.bodies == [b"good"]
    info = await until_settled(connection, 2)
    assert info["delivered"]["consumer_seq"] == 2, "each was delivered once"


async def test_a_failing_callback_stops_nobody(connection: Connection) -> None:
    """An exception in one listener is counted; the next message and the other listeners are not affected."""
    before = listeners.CALLBACK_ERRORS.at().value
    good, seen = Ear(), []

    def bad(_subject: str, _reply: str, _headers: bytes | None, data: bytes) -> None:
        seen.append(data)
        raise ValueError(data)

    connection.listen("ev.a", bad)
    connection.listen("ev.>", good)
    for body in (b"1", b"2"):
        await connection.publish("ev.a", body)
    await until(lambda: len(good.heard) == 2)
    assert seen == [b"1", b"2"]
    assert listeners.CALLBACK_ERRORS.at().value == before + 2


class FakeServer:
    """Shakes hands like a server, then sends what it is told: for what a real one never sends."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.subs = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def start(self) -> FakeServer:
        """Listening on loopback."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"F","version":"2.15.1","headers":true,"max_payload":1048576}\r\n')
        self.writers.append(writer)
        with suppress(ConnectionError):
            while line := await reader.readline():
                if line == b"PING\r\n":
                    writer.write(b"PONG\r\n")
                elif line.startswith(b"SUB "):
                    self.subs.set()

    def send(self, data: bytes) -> None:
        """To the newest connection."""
        self.writers[-1].write(data)

    async def stop(self) -> None:
        """Hang up everywhere."""
        assert self._server is not None
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"MSG\r\n",
        b"MSG a 1 x\r\n",
        b"HMSG a 1 9 2\r\nhi\r\n",
        b"-ERR\r\n",
        b"-ERR '\xff'\r\n",
        b"INFO {broken\r\n",
        b"INFO []\r\n",
        b"HELLO\r\n",
        b"x" * 70_000,
    ],
)
async def test_a_broken_server_costs_one_connection(nonsense: bytes) -> None:
    """Bytes outside the protocol end the link loudly, and a new one is made: no reader dies in silence."""
    server = await FakeServer().start()
    connection = await Connection.open(server.url, name="test")
    try:
        await server.subs.wait()
        server.subs.clear()
        server.send(nonsense)
        await until(lambda: len(server.writers) == 2 and connection.connected)
        await connection.flush(DEADLINE_S)
        await server.subs.wait()
    finally:
        await connection.close()
        await server.stop()


@pytest.mark.parametrize(
    "harmless", [b"+OK\r\n", b"PING\r\n", b'INFO {"max_payload":512}\r\n', b"PONG\r\n", b"MSG a 99 1\r\nx\r\n"]
)
async def test_unexpected_but_legal_lines_are_no_error(harmless: bytes) -> None:
    """Answers nobody waits for and messages for closed subscriptions leave the link as it is."""
    server = await FakeServer().start()
    connection = await Connection.open(server.url, name="test")
    try:
        server.send(harmless)
        await connection.flush(DEADLINE_S)
        assert len(server.writers) == 1
    finally:
        await connection.close()
        await server.stop()


# --- coming back -----------------------------------------------------------------------------------------------------


async def test_listeners_survive_a_restart(nats_server: NatsServer) -> None:
    """After kill -9 and restart every listener hears again, and is subscribed before anybody is told."""
    states: list[bool] = []
    connection = await Connection.open(nats_server.url, name="test", on_state=states.append)
    try:
        ear, events = Ear(), []
        connection.listen("ev.a", ear)
        connection.on_connect(lambda: connection.write(wire.publish_frame("ev.a", b"from on_connect")))
        connection.on_connect(lambda: events.append("up"))
        connection.on_disconnect(lambda: events.append("down"))
        nats_server.kill()
        await until(lambda: not connection.connected)
        await nats_server.restart()
        await until(lambda: ear.heard)
        assert ear.bodies == [b"from on_connect"]
        assert events == ["down", "up"]
        assert states == [True, False, True]
    finally:
        await connection.close()


async def test_the_server_kicks_and_the_client_is_rebuilt(connection: Connection) -> None:
    """An error at which nats-py closes for good (as at expired credentials) is one more reconnect for us."""
    ear = Ear()
    connection.listen("ev.a", ear)
    link = connection._keeper.link
    assert link is not None
    await link._process_err("'user authentication expired'")
    await until(lambda: connection._keeper.link not in {None, link})
    await connection.publish("ev.a", b"again")
    await until(lambda: ear.heard)


async def test_nothing_written_while_disconnected_goes_out_later(
    nats_server: NatsServer, connection: Connection
) -> None:
    """Without a link a write raises, and the server that returns gets nothing of it."""
    ear = Ear()
    connection.listen("ev.>", ear)
    nats_server.kill()
    await until(lambda: not connection.connected)
    with pytest.raises(Disconnected):
        connection.write(wire.publish_frame("ev.lost", b"x"))
    with pytest.raises(Disconnected):
        await connection.publish("ev.lost", b"x")
    with pytest.raises(Disconnected):
        await connection.request("ev.lost", b"x")
    with pytest.raises(Disconnected):
        await connection.flush(1.0)
    await nats_server.restart()
    await until(lambda: connection.connected)
    await connection.publish("ev.kept", b"y")
    await until(lambda: ear.heard)
    assert [subject for subject, *_ in ear.heard] == ["ev.kept"]


async def test_what_a_hung_server_did_not_take_is_dropped_with_its_link(
    nats_server: NatsServer, connection: Connection
) -> None:
    """Bytes that only our side holds when a link is given up never reach the server."""
    ear = Ear()
    other = await Connection.open(nats_server.url, name="other")
    other.listen("ev.>", ear)
    await other.flush(DEADLINE_S)
    nats_server.pause()
    body = bytes(512 * 1024)
    while connection.unsent_bytes < 4 * len(body):
        connection.write(wire.publish_frame("ev.bulk", body))
        await asyncio.sleep(0)
    connection.write(wire.publish_frame("ev.last", b"stale"))
    await connection.rebuild()
    nats_server.resume()
    await until(lambda: connection.connected)
    await connection.publish("ev.new", b"fresh")
    await until(lambda: ear.heard and ear.heard[-1][0] == "ev.new")
    assert "ev.last" not in {subject for subject, *_ in ear.heard}
    await other.close()


async def test_a_silent_server_is_given_up(
    nats_server: NatsServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog ends a link on which nothing comes back, long before TCP would."""
    monkeypatch.setattr(keeper, "WATCH_INTERVAL_S", 0.1)
    monkeypatch.setattr(keeper, "RTT_LIMIT_S", 0.2)
    await connection.rebuild()
    await until(lambda: connection.connected and connection.rtt_s > 0)
    nats_server.pause()
    await until(lambda: not connection.connected)
    nats_server.resume()
    await until(lambda: connection.connected)


async def test_a_flush_that_gave_up_harms_nobody(nats_server: NatsServer, connection: Connection) -> None:
    """The answer to a ping that nobody waits for any more is passed over; the link goes on, the next flush works."""
    link = connection._keeper.link
    nats_server.pause()
    with pytest.raises(Unavailable):
        await connection.flush(0.05)
    nats_server.resume()
    await connection.flush(DEADLINE_S)
    await connection.flush(DEADLINE_S)
    assert connection._keeper.link is link


async def test_a_link_that_is_cut_at_once_is_not_made_in_a_rush(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes us and hangs up meets growing pauses, not a loop."""
    attempts: list[int] = []
    pause_s = keeper._pause_s

    def recorded(attempt: int) -> float:
        attempts.append(attempt)
        return pause_s(attempt) / 10

    monkeypatch.setattr(keeper, "_pause_s", recorded)
    server = await FakeServer().start()
    connection = await Connection.open(server.url, name="test")
    try:
        for _ in range(4):
            await server.subs.wait()
            server.subs.clear()
            server.writers[-1].transport.abort()
        await server.subs.wait()
        assert attempts == [0, 1, 2, 3]
        assert pause_s(3) >= 8 * keeper.RETRY_FIRST_S
    finally:
        await connection.close()
        await server.stop()


async def logged(caplog: pytest.LogCaptureFixture, reason: str) -> logging.LogRecord:
    """The record of a refusal for *reason*, once it is there."""

    def found() -> list[logging.LogRecord]:
        return [r for r in caplog.records if r.msg == "nats_refused" and fields(r)["reason"] == reason]

    await until(found)
    return found()[0]


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says beside its name."""
    return cast("dict[str, Any]", record.__dict__["mesh_fields"])


async def test_a_revoked_user_says_why_and_comes_back_with_new_credentials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut off, it goes on trying with the file as it is, and says what to do; a new file lets it in."""
    mode = await OperatorMode.start(tmp_path)
    file = tmp_path / "nats.creds"
    try:
        await mode.grant("desk", [])
        account = mode.accounts["desk"]
        user, next_user = nkey("user"), nkey("user")
        file.write_bytes(creds_of(account, user))
        connection = await Connection.open(mode.server.url, name="desk", creds=file.read_bytes)
        mode.connections.append(connection)
        ear = Ear()
        connection.listen("_INBOX_desk.x", ear)
        await mode.push(
            [
                account_jwt(
                    mode.operator, account.public, "desk", revocations={user.public: 1_800_000_000}, iat=1_800_000_000
                )
            ]
        )
        refusal = await logged(caplog, "credentials-refused")
        assert fields(refusal)["code"] == "nats-unreachable"
        assert "write a new one" in fields(refusal)["next"]
        assert not connection.connected
        file.write_bytes(creds_of(account, next_user))
        await until(lambda: connection.connected)
        await connection.publish("_INBOX_desk.x", b"back")
        await until(lambda: ear.heard)
        await mode.push([account_jwt(mode.operator, account.public, "desk", closed=True, iat=1_800_000_001)])
        refusal = await logged(caplog, "account-closed")
        assert "mesh trust list" in fields(refusal)["next"]
        file.unlink()
        await until(lambda: "No such file" in connection.last_error)
    finally:
        await mode.stop()


async def test_other_credentials_in_the_file_are_used_before_the_old_ones_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One new link, and none lost when the old user is cut off; a file that no server takes costs nothing."""
    monkeypatch.setattr(keeper, "WATCH_INTERVAL_S", 0.05)
    mode = await OperatorMode.start(tmp_path)
    file = tmp_path / "nats.creds"
    try:
        await mode.grant("desk", [])
        account, user = mode.accounts["desk"], nkey("user")
        file.write_bytes(creds_of(account, user))
        states: list[bool] = []
        connection = await Connection.open(mode.server.url, name="desk", creds=file.read_bytes, on_state=states.append)
        other = await Connection.open(mode.server.url, name="desk", creds=file.read_bytes())
        mode.connections += [connection, other]
        file.write_bytes(creds_of(nkey("account"), user))
        await logged(caplog, "credentials-refused")
        assert states == [True]
        file.write_bytes(creds_of(account, nkey("user")))
        await until(lambda: states == [True, False, True])
        revoked = {user.public: 1_800_000_000}
        await mode.push([account_jwt(mode.operator, account.public, "desk", revocations=revoked, iat=1_800_000_000)])
        await until(lambda: not other.connected)
        await connection.flush(5)
        assert states == [True, False, True]
    finally:
        await mode.stop()


def creds_of(account: Nkey, user: Nkey) -> bytes:
    """The creds file of a user of *account*."""
    return creds_file(user_jwt(account, user.public, "desk", iat=1_700_000_000), user.seed)


async def test_opening_for_a_server_that_refuses_says_what_to_do(tmp_path: Path) -> None:
    """When time is up the error has the reason of the refusal and its next step."""
    mode = await OperatorMode.start(tmp_path)
    try:
        await mode.grant("desk", [])
        stranger = creds_of(mode.accounts["desk"], nkey("user"))
        await mode.push(
            [account_jwt(mode.operator, mode.accounts["desk"].public, "desk", closed=True, iat=1_800_000_000)]
        )
        with pytest.raises(Disconnected) as refused:
            await Connection.open(mode.server.url, name="desk", creds=stranger, connect_timeout_s=2)
        assert refused.value.details["reason"] == "account-closed"
        assert "barred" in refused.value.next
        assert b"SU" not in refused.value.got.encode()
    finally:
        await mode.stop()


# --- requests --------------------------------------------------------------------------------------------------------


async def test_request_and_reply(connection: Connection) -> None:
    """An answer finds its request, with status, headers and data."""
    connection.listen(
        "svc", lambda _s, reply, _h, data: connection.write(wire.publish_frame(reply, data[::-1], headers={"x": "1"}))
    )
    replies = await asyncio.gather(*(connection.request("svc", f"{n:03}".encode()) for n in range(50)))
    assert [reply.data for reply in replies] == [f"{n:03}"[::-1].encode() for n in range(50)]
    assert replies[0].headers == {"x": "1"}
    assert replies[0].status is None


@pytest.mark.parametrize(
    ("subject", "within_s", "reason"), [("nobody", DEADLINE_S, "no-responders"), ("silent", 0.3, "timeout")]
)
async def test_a_request_without_answer(subject: str, within_s: float, reason: str, connection: Connection) -> None:
    """Nobody there and nobody answering are told apart."""
    connection.listen("silent", Ear())
    with pytest.raises(Unavailable) as caught:
        await connection.request(subject, b"", timeout_s=within_s)
    assert caught.value.details["reason"] == reason


async def test_a_lost_connection_ends_requests_at_once(nats_server: NatsServer, connection: Connection) -> None:
    """Whoever waits for an answer hears of the loss, not of a timeout much later."""
    connection.listen("silent", Ear())
    asking = asyncio.create_task(connection.request("silent", b"", timeout_s=600))
    await connection.flush(DEADLINE_S)
    nats_server.kill()
    with pytest.raises(Disconnected):
        await asyncio.wait_for(asking, DEADLINE_S)


async def test_a_cancelled_request_leaves_nothing(connection: Connection) -> None:
    """A request that nobody waits for any more is forgotten, and its late answer harms nobody."""
    replies: list[str] = []
    connection.listen("svc", lambda _s, reply, _h, _d: replies.append(reply))
    asking = asyncio.create_task(connection.request("svc", b""))
    await until(lambda: replies)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await connection.publish(replies[0], b"late")
    await connection.flush(DEADLINE_S)
    assert connection._requests._waiting == {}


@pytest.mark.parametrize(
    ("subject", "size", "error"),
    [("a b", 0, BadSubject), ("a\r\nPING", 0, BadSubject), ("a", 1_048_577, TooLarge)],
)
async def test_what_the_server_would_cut_us_off_for_is_refused(
    subject: str, size: int, error: type[MeshError], connection: Connection
) -> None:
    """Bad subjects and messages over max_payload never leave: at those the server ends the connection."""
    with pytest.raises(error):
        await connection.publish(subject, bytes(size))
    await connection.flush(DEADLINE_S)


# --- opening and closing ---------------------------------------------------------------------------------------------


async def test_opening_waits_for_a_server_that_is_late(nats_server: NatsServer) -> None:
    """The first connect is tried again until the server is there."""
    nats_server.kill()
    opening = asyncio.create_task(Connection.open(nats_server.url, name="test", connect_timeout_s=DEADLINE_S))
    await asyncio.sleep(0.1)
    assert not opening.done()
    await nats_server.restart()
    connection = await opening
    assert connection.connected
    await connection.close()


async def test_opening_without_a_server_says_why(nats_server: NatsServer) -> None:
    """When time is up the error carries the system's reason, and nothing of ours goes on trying."""
    nats_server.kill()
    with pytest.raises(Disconnected, match="within 1 s") as caught:
        await Connection.open(nats_server.url, name="test", connect_timeout_s=1)
    assert "refused" in caught.value.got.lower()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "nats-connection"] == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN NATS USER JWT-----\n",
        b"-----BEGIN NATS USER JWT-----\nx\n-----BEGIN USER NKEY SEED-----\nSUAB",
    ],
)
async def test_broken_credentials_are_refused_before_connecting(content: bytes) -> None:
    """A file that holds no user JWT and seed is a configuration error, which does not show the seed."""
    with pytest.raises(ConfigError) as caught:
        await Connection.open("nats://127.0.0.1:1", name="test", creds=content)
    assert "SUAB" not in str(caught.value.as_dict())
    assert caught.value.__cause__ is None


async def test_a_credentials_file_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    """What is wrong with a file of ours is said where the connection is opened, not ten tries later."""
    with pytest.raises(ConfigError, match="cannot be read"):
        await Connection.open("nats://127.0.0.1:1", name="test", creds=(tmp_path / "nats.creds").read_bytes)


async def test_the_inbox_cannot_be_guessed(nats_server: NatsServer) -> None:
    """Two connections of one name have inboxes below one prefix and with different random tokens."""
    first, second = [await Connection.open(nats_server.url, name="crm") for _ in range(2)]
    assert first.inbox.startswith("_INBOX_crm.")
    assert first.inbox != second.inbox
    assert len(first.inbox.rpartition(".")[2]) == 22
    assert first.new_inbox() != first.new_inbox()
    await first.close()
    await second.close()


async def test_closing_sends_what_was_written_and_ends_every_task(nats_server: NatsServer) -> None:
    """What was written before `close` arrives; afterwards nothing of the connection is left."""
    ear = Ear()
    hearing, speaking = [await Connection.open(nats_server.url, name=name) for name in ("a", "b")]
    hearing.listen("ev.>", ear)
    await hearing.flush(DEADLINE_S)
    before = asyncio.all_tasks()
    for n in range(1000):
        speaking.write(wire.publish_frame("ev.a", b"%d" % n))
    asking = asyncio.create_task(speaking.request("ev.b", b"", timeout_s=600))
    await asyncio.sleep(0)
    await speaking.close()
    await speaking.close()
    with pytest.raises(Closed):
        await asking
    await until(lambda: len(ear.heard) == 1001)
    assert asyncio.all_tasks() < before
    with pytest.raises(Disconnected):
        speaking.write(b"PING\r\n")
    await hearing.close()


async def test_a_closed_listener_hears_nothing(connection: Connection) -> None:
    """Closing ends it at once; draining lets through what the server had sent."""
    closed, drained = Ear(), Ear()
    first, second = connection.listen("ev.a", closed), connection.listen("ev.a", drained)
    await connection.publish("ev.a", b"1")
    first.close()
    first.close()
    await connection.drain(second, DEADLINE_S)
    await connection.publish("ev.a", b"2")
    await connection.flush(DEADLINE_S)
    assert closed.heard == []
    assert drained.bodies == [b"1"]
