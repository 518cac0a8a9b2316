"""The wire and the disk: a mesh with TLS and an encrypted store, as `mesh up --tls --encrypt` makes it.

A client shows a certificate of the mesh and a JWT; one of the two is not enough. Nothing is said before TLS.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import nkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh.ca import MeshCA
from mesh.certificates import split_chain
from mesh.identity import seed_to_pem
from mesh.jetstream.connection import Connection
from mesh.jetstream.tls import TlsFiles
from mesh.keys import SpiffeId
from tests.attacks.connecting import b64, jwt_of, seed_of
from tests.attacks.insider import contact, now_ms, sealed, until
from tests.attacks.keys import authority, public
from tests.attacks.world import World

pytestmark = pytest.mark.anyio

ADAPTER = SpiffeId.for_agent("mesh.local", "acme", "crm-adapter")


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A mesh with TLS and an encrypted store."""
    async with World.running(tmp_path_factory.mktemp("mesh"), tls=True, encrypt=True) as running:
        yield running


def context(world: World, files: TlsFiles | None = None) -> ssl.SSLContext:
    """A client's side of TLS that believes the mesh's roots, with a certificate or none."""
    made = ssl.create_default_context(cafile=str(world.data.trust / "ca.crt"))
    if files is not None:
        made.load_cert_chain(files.cert, files.key)
    return made


async def greeted(world: World, tls: ssl.SSLContext | None, creds: Path | None) -> str:
    """What a server says to a client with this certificate and these credentials: empty where it lets it in."""
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", world.mesh.server.port, ssl=tls, server_hostname=None if tls is None else "localhost"
        )
    except (ssl.SSLError, ConnectionError) as error:
        return f"tls: {error}"
    try:
        async with asyncio.timeout(60):
            info = msgspec.json.decode((await reader.readuntil(b"\r\n")).removeprefix(b"INFO "))
            options: dict[str, object] = {"verbose": False, "pedantic": False, "lang": "python", "version": "1"}
            if creds is not None:
                signature = nkeys.from_seed(bytearray(seed_of(creds).encode())).sign(info["nonce"].encode())
                options |= {"jwt": jwt_of(creds), "sig": b64(signature)}
            writer.write(b"CONNECT " + msgspec.json.encode(options) + b"\r\nPING\r\n")
            answer = (await reader.readuntil(b"\r\n")).decode().strip()
            while answer.startswith("INFO"):
                answer = (await reader.readuntil(b"\r\n")).decode().strip()
            return "" if answer == "PONG" else answer
    except (ssl.SSLError, ConnectionError, TimeoutError, asyncio.IncompleteReadError) as error:
        return f"tls: {type(error).__name__}"
    finally:
        writer.transport.abort()


def files(directory: Path, chain_pem: bytes, key_pem: bytes) -> TlsFiles:
    """A certificate of the attacker's as files."""
    name = secrets.token_hex(4)
    made = TlsFiles(directory / "none", directory / f"{name}.crt", directory / f"{name}.key")
    made.cert.write_bytes(chain_pem)
    made.key.write_bytes(key_pem)
    return made


async def test_credentials_without_a_certificate(world: World) -> None:
    """Connect with a stolen creds file from anywhere.

    Holds: team support's creds file. Tries: to connect without a client certificate. Stopped: the handshake ends;
    with the team's certificate the same credentials are let in.
    """
    creds = world.creds("team-support")
    assert await greeted(world, context(world, world.tls("team-support")), creds) == ""
    assert (await greeted(world, context(world), creds)).startswith("tls:")


async def test_a_certificate_without_credentials(world: World) -> None:
    """Connect with a stolen client certificate.

    Holds: team support's certificate and key, which name it. Tries: to connect without a JWT, and with another's.
    Stopped: no name in a certificate makes anybody a user (`verify_and_map` is off); the JWT needs its own key.
    """
    tls = context(world, world.tls("team-support"))
    assert await greeted(world, tls, world.creds("team-support")) == ""
    assert "Authorization Violation" in await greeted(world, tls, None)


async def test_a_certificate_of_another_ca(world: World, tmp_path: Path) -> None:
    """Connect with a certificate of one's own making.

    Holds: an agent's creds file, a CA with the mesh's name. Tries: a client certificate of that CA; a self-made chain
    that ends in ours. Stopped: the server believes the mesh's roots.
    """
    creds = world.creds("crm-adapter")
    good = files(tmp_path, *authority(world).ca.issue_tls_client(ADAPTER, now_ms=now_ms()))
    assert await greeted(world, context(world, good), creds) == ""
    rogue = MeshCA.create("mesh.local", now_ms=now_ms())
    chain, key = rogue.issue_tls_client(ADAPTER, now_ms=now_ms())
    ours = b"".join(_pems(good.cert.read_bytes())[1:])
    for pem in (chain, _pems(chain)[0] + ours):
        assert (await greeted(world, context(world, files(tmp_path, pem, key)), creds)).startswith("tls:")


def _pems(chain: bytes) -> list[bytes]:
    """Each certificate of a chain."""
    return [c.public_bytes(Encoding.PEM) for c in x509.load_pem_x509_certificates(chain)]


async def test_an_event_certificate_for_tls(world: World, tmp_path: Path) -> None:
    """Connect with a stolen event key.

    Holds: an event key with its certificate, and the creds file. Tries: it as a client certificate. Stopped: it has the
    private usage alone, and TLS asks for clientAuth.
    """
    seed = secrets.token_bytes(32)
    chain = authority(world).ca.issue(ADAPTER, public(seed), now_ms=now_ms())
    pem = b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in split_chain(chain))
    tls = context(world, files(tmp_path, pem, seed_to_pem(seed)))
    assert await greeted(world, context(world, world.tls("crm-adapter")), world.creds("crm-adapter")) == ""
    assert (await greeted(world, tls, world.creds("crm-adapter"))).startswith("tls:")


async def test_an_older_tls(world: World) -> None:
    """Talk the server down to a version with known holes.

    Holds: the network, and a client's files. Tries: TLS 1.2, and no TLS at all. Stopped: 1.3 is the least; before the
    handshake the server says nothing, not even its INFO with the nonce.
    """
    tls = context(world, world.tls("crm-adapter"))
    assert await greeted(world, tls, world.creds("crm-adapter")) == ""
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    assert (await greeted(world, tls, world.creds("crm-adapter"))).startswith("tls:")
    reader, writer = await asyncio.open_connection("127.0.0.1", world.mesh.server.port)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                assert await reader.read(10) == b""
        writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
        async with asyncio.timeout(60):
            assert b"PONG" not in await reader.read(200)
    finally:
        writer.transport.abort()


async def test_a_server_between(world: World, tmp_path: Path) -> None:
    """Stand between a client and the server.

    Holds: the network path of an agent, and a certificate of a CA of his own for the server's name. Tries: to have the
    client connect, send its JWT and sign a nonce. Stopped: the client ends the handshake; it has said nothing.
    """
    honest = await Connection.open(
        world.mesh.server.url, name="lake", creds=world.creds("lake").read_bytes(), tls=world.tls("lake")
    )
    await honest.close()
    rogue = MeshCA.create("mesh.local", now_ms=now_ms())
    mine = files(tmp_path, *rogue.issue_tls_server(["localhost", "127.0.0.1"], now_ms=now_ms()))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(mine.cert, mine.key)
    heard: list[bytes] = []
    tries: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.close()

    def protocol() -> asyncio.StreamReaderProtocol:
        tries.append(1)
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve)

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, ssl=tls)
    async with server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = await Connection.open(
            url, name="lake", creds=world.creds("lake").read_bytes(), tls=world.tls("lake"), wait=False
        )
        try:
            await until(lambda: len(tries) >= 2)
            assert not client.connected
        finally:
            await client.close()
    assert heard == []


async def test_the_disk_of_the_server(world: World) -> None:
    """Read events, subjects and policies from the server's disk.

    Holds: the disk, or a backup of it. Tries: to find what was published, its subject and the bundle. Stopped: the
    store is encrypted with a key that is not on it; the team reads the event as ever.
    """
    secret = "disk-secret-" + "y" * 40
    reader = await world.reader()
    wire = sealed(await world.signer("crm-adapter"), contact(data={"notes": secret}))
    assert await world.put(wire) == "delivered"
    assert reader.has(wire.id)
    store = world.data.nats / "store"
    seen = [file.read_bytes() for file in store.rglob("*") if file.is_file()]
    assert sum(map(len, seen)) > 1_000
    for text in (secret.encode(), b"crm.contact.updated", b"crm-publishes", b"Mesh-Signature"):
        assert not any(text in content for content in seen), text
    keys = [file for file in world.data.root.rglob("*") if file.is_file() and store not in file.parents]
    assert any(file.name.startswith("store") for file in keys)
