"""TLS between everybody and the server: who gets in, what a rotation costs, and what is never said in the clear."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from mesh.ca import MeshCA
from mesh.certificates import split_chain
from mesh.control import tls_files
from mesh.control.datadir import DataDirectory, write_private
from mesh.control.nats_server import NatsServer, ServerTls, plain_config
from mesh.control.reconcile import now_ms
from mesh.control.tls_files import MeshTls
from mesh.control.trust import Authority
from mesh.errors import ConfigError, Disconnected
from mesh.identity import seed_to_pem
from mesh.jetstream import wire
from mesh.jetstream.connection import Connection
from mesh.jetstream.tls import Dates, TlsFiles, client_context
from mesh.keys import SpiffeId
from tests.contract.streams import until

pytestmark = pytest.mark.anyio

DOMAIN = "mesh.local"
AGENT = "spiffe://mesh.local/ns/acme/sa/crm-adapter"
NOW_MS = now_ms()
HALF_DAY_MS = 43_200_000
REFUSED_S = 2.0  # a refusal takes milliseconds; on a busy machine, too, one is heard
TRYING_S = 5.0  # who does not speak TLS is told so after 2 s


class World(NamedTuple):
    """A server with TLS, and who issues for it."""

    data: DataDirectory
    authority: Authority
    tls: MeshTls
    server: NatsServer

    async def connect(self, files: TlsFiles | None, *, timeout_s: float = 20.0) -> Connection:
        """A client with these files."""
        return await Connection.open(self.server.url, name="test", tls=files, connect_timeout_s=timeout_s)


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One server for the module."""
    data = DataDirectory.open(tmp_path_factory.mktemp("tls") / "data")
    authority = Authority(data.trust, data.admin, trust_domain=DOMAIN, now_ms=NOW_MS)
    tls = MeshTls(data, authority, DOMAIN)
    tls.open()
    tls.follow("acme", {data.agent("crm-adapter"): AGENT})
    config = plain_config(data.nats / "store", tls=tls.server)
    server = await NatsServer.start(config, data.nats, tls=ServerTls(tls.server, tls.control))
    try:
        yield World(data, authority, tls, server)
    finally:
        await server.stop()


@pytest.fixture
def agent(world: World) -> TlsFiles:
    """An agent's files."""
    return world.tls.of(world.data.agent("crm-adapter"))


def ssl_object(connection: Connection) -> ssl.SSLObject:
    """The TLS session below a connection."""
    link = connection._keeper.link
    assert link is not None
    found = link._transport._io_writer.get_extra_info("ssl_object")
    assert isinstance(found, ssl.SSLObject)
    return found


async def test_both_sides_show_a_certificate_over_tls_1_3(world: World, agent: TlsFiles) -> None:
    """A workload with its own files is in, at TLS 1.3, and hears what is said."""
    connection = await world.connect(agent)
    try:
        heard: list[bytes] = []
        connection.listen("ev.>", lambda _s, _r, _h, data: heard.append(data))
        connection.write(wire.publish_frame("ev.a", b"hello"))
        await until(lambda: heard)
        assert ssl_object(connection).version() == "TLSv1.3"
        context = ssl_object(connection).context
        assert (context.minimum_version, context.check_hostname) == (ssl.TLSVersion.TLSv1_3, True)
    finally:
        await connection.close()


async def test_older_tls_is_refused(world: World, agent: TlsFiles) -> None:
    """A client that can do no better than 1.2 gets no handshake, with the best of certificates."""
    context = client_context(agent)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        await asyncio.open_connection("127.0.0.1", world.server.port, ssl=context)


# --- who stays outside -----------------------------------------------------------------------------------------------


def _pair(directory: Path, chain: bytes, key: bytes) -> tuple[Path, Path]:
    (directory / "x.crt").write_bytes(chain)
    (directory / "x.key").write_bytes(key)
    return directory / "x.crt", directory / "x.key"


def _event_certificate(ca: MeshCA) -> tuple[bytes, bytes]:
    """An event key with its certificate, as an agent has one in memory."""
    seed = secrets.token_bytes(32)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    items = split_chain(ca.issue(AGENT, public, now_ms=NOW_MS))
    return "".join(map(ssl.DER_cert_to_PEM_cert, items)).encode(), seed_to_pem(seed)


def _expired(ca: MeshCA) -> tuple[bytes, bytes]:
    return ca.issue_tls_client(AGENT, now_ms=NOW_MS, lifetime_s=-30)


OUTSIDERS: dict[str, tuple[Callable[[MeshCA], tuple[bytes, bytes]], str]] = {
    "expired": (_expired, "certificate-expired"),
    "another mesh's": (
        lambda _: MeshCA.create(DOMAIN, now_ms=NOW_MS).issue_tls_client(AGENT, now_ms=NOW_MS),
        "certificate-refused",
    ),
    "an event key's": (_event_certificate, "certificate-refused"),
    "a server's": (lambda ca: ca.issue_tls_server(["127.0.0.1"], now_ms=NOW_MS), "certificate-refused"),
}


WITHOUT_TLS, ANOTHER_ROOT = "without TLS", "who believes another root"


@pytest.fixture(scope="module")
async def turned_away(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Disconnected]:
    """What each outsider was told in the end. They try side by side: each goes on until its time is up."""
    files: dict[str, TlsFiles | None] = {WITHOUT_TLS: None}
    for name, (make, _) in OUTSIDERS.items():
        directory = tmp_path_factory.mktemp("outsider")
        files[name] = TlsFiles(world.tls.ca_file, *_pair(directory, *make(world.authority.ca)))
    other = tmp_path_factory.mktemp("outsider") / "ca.crt"
    other.write_bytes(MeshCA.create(DOMAIN, now_ms=NOW_MS).root_pem)
    files[ANOTHER_ROOT] = world.tls.of(world.data.agent("crm-adapter"))._replace(ca=other)

    async def told(of: TlsFiles | None) -> Disconnected:
        with pytest.raises(Disconnected) as refused:
            await world.connect(of, timeout_s=TRYING_S)
        return refused.value

    return dict(zip(files, await asyncio.gather(*map(told, files.values())), strict=True))


@pytest.mark.parametrize("name", OUTSIDERS)
async def test_another_certificate_lets_nobody_in(name: str, turned_away: dict[str, Disconnected]) -> None:
    """No certificate stands for a TLS client's; whoever has one is told which it was, and what to do."""
    refused, (_, reason) = turned_away[name], OUTSIDERS[name]
    assert refused.details.get("reason") == reason, refused.got
    assert "read again" in refused.next


async def test_who_shows_no_certificate_stays_outside(world: World, agent: TlsFiles) -> None:
    """A handshake alone is not enough: without a certificate of the mesh the server says nothing and hangs up."""
    context = ssl.create_default_context(cafile=str(agent.ca))
    reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port, ssl=context)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        await reader.read(1)
    writer.close()


async def test_who_speaks_no_tls_is_told_so(turned_away: dict[str, Disconnected]) -> None:
    """A client without TLS hears nothing until the server gives up, and then why."""
    assert turned_away[WITHOUT_TLS].details["reason"] == "server-with-tls"


async def test_a_server_that_is_not_ours_is_not_believed(turned_away: dict[str, Disconnected]) -> None:
    """A server whose certificate leads to another root gets no word from us."""
    assert turned_away[ANOTHER_ROOT].details["reason"] == "server-not-trusted"


async def test_a_server_without_tls_hears_no_credentials(agent: TlsFiles) -> None:
    """Where TLS was expected, a server that greets in the clear gets a TLS hello and nothing else: no downgrade."""
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"F","version":"2.15.1","headers":true,"max_payload":1048576}\r\n')
        heard.extend(await reader.read(65_536))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with pytest.raises(Disconnected) as refused:
        await Connection.open(url, name="test", tls=agent, connect_timeout_s=REFUSED_S)
    server.close()
    assert refused.value.details["reason"] == "server-without-tls"
    assert heard.startswith(b"\x16\x03")
    assert b"CONNECT" not in heard


# --- rotation --------------------------------------------------------------------------------------------------------


async def test_rotating_every_file_drops_nobody(world: World, agent: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all files replaced and read again, events flow on over the same links, and new ones use the new files."""
    states: list[bool] = []
    heard: list[bytes] = []
    connection = await world.connect(agent)
    connection.on_connect(lambda: states.append(True))
    connection.on_disconnect(lambda: states.append(False))
    connection.listen("ev.>", lambda _s, _r, _h, data: heard.append(data))
    before = [file.read_bytes() for file in (*agent[1:], *world.tls.server[1:])]
    monkeypatch.setattr(tls_files, "RENEW_AT", 0.0)
    done = anyio.Event()

    async def publish() -> None:
        sent = 0
        while not done.is_set():
            await connection.publish("ev.a", b"%d" % sent)
            sent += 1
            await asyncio.sleep(0)
        await until(lambda: len(heard) == sent)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(publish)
            for _ in range(3):
                await world.tls.renew(world.server.reload)
            done.set()
        assert heard == [b"%d" % n for n in range(len(heard))]
        assert states == []
        assert not set(before) & {file.read_bytes() for file in (*agent[1:], *world.tls.server[1:])}
        await connection.rebuild()
        await until(lambda: states == [False, True])
        shown = ssl_object(connection).getpeercert(binary_form=True)
        assert shown == ssl.PEM_cert_to_DER_cert(
            world.tls.server.cert.read_text().split("-----END")[0] + ssl.PEM_FOOTER
        )
    finally:
        await connection.close()


async def test_a_file_the_server_cannot_read_changes_nothing(world: World, agent: TlsFiles) -> None:
    """A reload that fails is reported, and the server goes on with what it had."""
    kept = world.tls.server.key.read_bytes()
    write_private(world.tls.server.key, b"junk")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mesh.control.nats_server._RELOAD_TIMEOUT_S", 0.3)
            other, _ = world.authority.ca.issue_tls_server(["127.0.0.1"], now_ms=NOW_MS)
            patch.setattr("mesh.control.nats_server._first_certificate", lambda _: other)
            with pytest.raises(ConfigError, match="did not take"):
                await world.server.reload()
    finally:
        write_private(world.tls.server.key, kept)
    await (await world.connect(agent)).close()


def _made(directory: Path) -> tuple[MeshTls, TlsFiles, DataDirectory, Authority]:
    data = DataDirectory.open(directory / "data")
    authority = Authority(data.trust, data.admin, trust_domain=DOMAIN, now_ms=NOW_MS)
    tls = MeshTls(data, authority, DOMAIN)
    tls.follow("acme", {data.agent("a"): AGENT})
    return tls, tls.of(data.agent("a")), data, authority


@pytest.mark.parametrize(("passed_ms", "renewed"), [(0, False), (HALF_DAY_MS - 120_000, False), (HALF_DAY_MS, True)])
async def test_a_pair_lives_half_its_life(
    passed_ms: int, renewed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate of a day is replaced after half of it, not before; the key with it."""
    monkeypatch.setattr(tls_files, "now_ms", lambda: NOW_MS)
    tls, files, _, _ = _made(tmp_path)
    before = files.cert.read_bytes(), files.key.read_bytes()
    monkeypatch.setattr(tls_files, "now_ms", lambda: NOW_MS + passed_ms)
    await tls.renew(_nothing)
    after = files.cert.read_bytes(), files.key.read_bytes()
    assert [one != other for one, other in zip(before, after, strict=True)] == [renewed, renewed]
    assert {file.stat().st_mode & 0o777 for file in files[1:]} == {0o600}


async def test_another_mesh_ca_issues_all_anew(tmp_path: Path) -> None:
    """Under a new mesh CA nobody keeps a certificate of the old one."""
    tls, files, _, authority = _made(tmp_path)
    before = files.cert.read_bytes()
    authority.renew_ca(NOW_MS + 1, force=True)
    await tls.renew(_nothing)
    assert files.cert.read_bytes() != before
    assert files.cert.read_bytes().endswith(authority.ca.cert_pem)


def _lose(files: TlsFiles) -> None:
    files.key.unlink()


def _cut(files: TlsFiles) -> None:
    files.cert.write_bytes(files.cert.read_bytes()[:100])


def _mix(files: TlsFiles) -> None:
    key = load_pem_private_key(files.key.read_bytes(), None)
    other = MeshCA.create(DOMAIN, now_ms=NOW_MS).issue_tls_client(AGENT, now_ms=NOW_MS)[1]
    assert load_pem_private_key(other, None) != key
    files.key.write_bytes(other)


@pytest.mark.parametrize("damage", [_lose, _cut, _mix])
async def test_a_damaged_pair_is_replaced(damage: Callable[[TlsFiles], None], tmp_path: Path) -> None:
    """A file that is gone or cut, or a key beside another certificate, as a crash may leave it, is put right."""
    tls, files, _, _ = _made(tmp_path)
    damage(files)
    with pytest.raises(ConfigError):
        client_context(files)
    await tls.renew(_nothing)
    client_context(files)


async def test_a_workload_that_is_somebody_else_now_gets_another_certificate(tmp_path: Path) -> None:
    """The name in the certificate follows the policies."""
    tls, files, data, _ = _made(tmp_path)
    before = files.cert.read_bytes()
    tls.follow("acme", {data.agent("a"): AGENT})
    assert files.cert.read_bytes() == before
    tls.follow("acme", {data.agent("a"): SpiffeId.for_agent(DOMAIN, "acme", "b")})
    assert files.cert.read_bytes() != before


def test_a_key_with_a_passphrase_asks_nobody(tmp_path: Path) -> None:
    """It is refused with words, where OpenSSL would wait at a terminal for somebody to type."""
    tls, files, _, _ = _made(tmp_path)
    key = load_pem_private_key(files.key.read_bytes(), None)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    files.key.write_bytes(encrypted)
    with pytest.raises(ConfigError, match="passphrase"):
        client_context(tls.of(files.key.parent))


async def _nothing() -> None:
    pass


async def test_how_long_a_certificate_holds_is_shown(agent: TlsFiles, tmp_path: Path) -> None:
    """What is left and what it was made for; a file that cannot be read has nothing left."""
    file = tmp_path / "tls.crt"
    file.write_bytes(agent.cert.read_bytes())
    dates = Dates(file)
    assert 0 < dates.left_s() < dates.life_s()
    file.write_text("no certificate")
    assert (dates.left_s(), dates.life_s()) == (0, 0)
    file.unlink()
    assert dates.left_s() == 0
