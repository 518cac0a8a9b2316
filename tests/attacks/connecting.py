"""The handshake of NATS by hand: what the server says to a JWT, whoever made it. A client would hide half of it."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import nkeys

if TYPE_CHECKING:
    from tests.attacks.world import World

REFUSALS = ("-ERR 'Authorization Violation'", "-ERR 'maximum account active connections exceeded'")


def b64(data: bytes) -> str:
    """As in a JWT."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def jwt_of(creds: Path) -> str:
    """The user JWT of a creds file."""
    return creds.read_text().splitlines()[1]


def seed_of(creds: Path) -> str:
    """The user's seed of a creds file."""
    return creds.read_text().splitlines()[-2]


async def said(world: World, **options: Any) -> str:
    """What the server answers a CONNECT with these options: empty where it lets us in. As plain as it gets."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.mesh.server.port)
    try:
        async with asyncio.timeout(60):
            info = msgspec.json.decode((await reader.readuntil(b"\r\n")).removeprefix(b"INFO "))
            if (seed := options.pop("seed", None)) is not None:
                signature = nkeys.from_seed(bytearray(seed.encode())).sign(info["nonce"].encode())
                options["sig"] = b64(signature)
            connect = {"verbose": False, "pedantic": False, "lang": "python", "version": "1", "protocol": 1, **options}
            writer.write(b"CONNECT " + msgspec.json.encode(connect) + b"\r\nPING\r\n")
            answer = (await reader.readuntil(b"\r\n")).decode().strip()
            while answer.startswith("INFO"):
                answer = (await reader.readuntil(b"\r\n")).decode().strip()
    finally:
        writer.close()
        await writer.wait_closed()
    return "" if answer == "PONG" else answer


async def lets_in(world: World, token: str, seed: str) -> bool:
    """Whether the server accepts a JWT with a seed; what else it says than that is no refusal."""
    answer = await said(world, jwt=token, seed=seed)
    assert answer in {"", *REFUSALS}, answer
    return not answer


async def opens(world: World, creds: Path) -> bool:
    """Whether the server accepts a creds file."""
    return await lets_in(world, jwt_of(creds), seed_of(creds))
