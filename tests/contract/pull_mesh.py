"""For the tests of pull: an agent of the team support with its doors, and a client of its pull door."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from agent.lifecycle import Sidecar
from agent.settings import load
from mesh.certificates import split_chain
from mesh.identity import SpiffeId, seed_from_pem
from tests.contract.agent_mesh import Answer, Http, now_ms, until, write_directory
from tests.contract.consumer_mesh import GRACE, TENANT, Source

RETRIES = GRACE.replace("attempts: 1, ack_wait: 30s", "attempts: 2, backoff: [10ms], ack_wait: 30s")
JSON = "application/json"


@dataclass
class Puller(Http):
    """A client of one subscription."""

    name: str = "contacts"

    @property
    def path(self) -> str:
        """Of the subscription."""
        return f"/v1/subscriptions/{self.name}"

    async def get(self, query: str = "wait_s=20", **headers: str) -> Answer:
        """Fetch; whatever comes back."""
        return await self.send("GET", f"{self.path}/events?{query}", headers)

    async def fetch(self, query: str = "wait_s=20") -> list[dict[str, Any]]:
        """The events of one answer, as it lists them."""
        answer = await self.get(query)
        assert answer.status == 200, answer.body
        listed: list[dict[str, Any]] = answer.json["events"]
        return listed

    async def say(self, verb: str, *leases: str, **more: object) -> Answer:
        """Settle; whatever comes back."""
        return await self.post({"leases": leases, **more}, path=f"{self.path}/{verb}", headers={"Content-Type": JSON})

    async def told(self, verb: str, *leases: str, **more: object) -> list[dict[str, Any]]:
        """The results."""
        answer = await self.say(verb, *leases, **more)
        assert answer.status == 200, answer.body
        results: list[dict[str, Any]] = answer.json["results"]
        return results

    @asynccontextmanager
    async def stream(self, query: str = "", **headers: str) -> AsyncIterator[asyncio.StreamReader]:
        """Server-sent events, from the first byte after the head."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        fields = {
            "Host": f"127.0.0.1:{self.port}",
            "Authorization": f"Bearer {self.token}",
            "Accept": "text/event-stream",
            **headers,
        }
        lines = [f"GET {self.path}/events?{query} HTTP/1.0", *(f"{name}: {value}" for name, value in fields.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        try:
            async with asyncio.timeout(60):
                head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head.split(b"\r\n")[0], head
            assert b"Content-Type: text/event-stream" in head
            yield reader
        finally:
            writer.close()


async def sent(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    """The next event of a stream: its lease, and itself. Comments are passed over."""
    lease = ""
    async with asyncio.timeout(60):
        while True:
            line = (await reader.readuntil(b"\n")).decode().rstrip("\n")
            if line.startswith("id: "):
                lease = line.removeprefix("id: ")
            elif line.startswith("data: "):
                return lease, msgspec.json.decode(line.removeprefix("data: "))


def ids(listed: list[dict[str, Any]]) -> list[str]:
    """Of the events."""
    return [one["event"]["id"] for one in listed]


def leases(listed: list[dict[str, Any]]) -> list[str]:
    """Of the events."""
    return [one["lease"] for one in listed]


def make(source: Source, base: Path, more: str = "", **settings: object) -> Sidecar:
    """A sidecar of the team support, not started; *more* is added to its agent.toml."""
    if not base.exists():
        write_directory(base)
        shutil.rmtree(base / "trust")
        shutil.copytree(source.directory / "trust", base / "trust")
        (base / "trust" / "enrol.pub").write_text("00" * 32)
        (base / "team.creds").touch()
        public = Ed25519PrivateKey.from_private_bytes(seed_from_pem((base / "event.key").read_bytes())).public_key()
        workload = SpiffeId.for_agent("mesh.local", TENANT, "crm-adapter")
        issued = source.ca.issue(workload, public.public_bytes_raw(), now_ms=now_ms(), lifetime_s=3600)
        chain = [load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in split_chain(issued)]
        (base / "event.crt").write_bytes(b"".join(chain))
    values = {"nats_url": source.streams.server.url, "team": "support", "team_creds_file": "team.creds", **settings}
    environ = {f"MESH_AGENT_{name.upper()}": str(value) for name, value in values.items()}
    made = Sidecar(load((base / "agent.toml").read_text() + more, environ).settings, base)
    assert made.consuming is not None
    made.consuming._creds = None  # type: ignore[assignment]  # the server has no accounts
    return made


@asynccontextmanager
async def serving(
    source: Source, base: Path, more: str = "", *, ready: bool = True, **settings: object
) -> AsyncIterator[Sidecar]:
    """The same, started, with its first bundle where it is to be *ready*; at the end nothing of it has died."""
    made = make(source, base, more, **settings)
    await made.start()
    consuming = made.consuming
    assert consuming is not None
    try:
        if ready:
            await consuming.start()
            await until(lambda: consuming.names)
        yield made
    finally:
        await made.close()
    assert made.pull is not None
    assert not made.pull.failed.is_set()


def client(of: Sidecar, name: str = "contacts") -> Puller:
    """A client that holds the token."""
    return Puller(of.intake.url, (of.agent.base / "token").read_text().strip(), name)
