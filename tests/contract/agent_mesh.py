"""For the door tests: a real server with one tenant's streams and bundle, an agent's directory, a raw HTTP client."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate
from nacl.public import PrivateKey

from agent.lifecycle import Sidecar
from agent.settings import load as load_settings
from mesh.anchors import open_keyring
from mesh.ca import MeshCA
from mesh.certificates import split_chain
from mesh.control.attest import FileAttestor
from mesh.control.enrol import Enrolment
from mesh.control.nats_server import NatsServer, plain_config
from mesh.control.standing import Standing
from mesh.control.trust import Authority
from mesh.control.truststore import TrustStore
from mesh.errors import MeshError
from mesh.identity import SpiffeId, TrustStatement, seed_to_pem
from mesh.jetstream import manage
from mesh.jetstream.changes import plan
from mesh.jetstream.connection import Connection
from mesh.jetstream.puller import Puller
from mesh.jetstream.store import KeyValue
from mesh.jetstream.topology import Sizes, desired
from mesh.policy.bundle import Bundle, compile_bundles
from mesh.policy.envelope import open_bundle, seal_bundle
from mesh.policy.grants import AgentGrants
from mesh.policy.history import lineage, since
from mesh.policy.load import load
from mesh.signing import Received, Verified, Verifier
from mesh.trust_watch import TrustWatch
from tests.ports import free_ports

POLICIES = """
apiVersion: mesh/v1
kind: Tenant
metadata: {name: acme, owner: security}
spec: {teams: {crm: {agents: [crm-adapter]}, support: {agents: [desk]}}}
---
apiVersion: mesh/v1
kind: Classification
metadata: {name: crm, tenant: acme, owner: crm}
spec:
  types: ["crm.>", "github.>"]
  fields: {data.country: [public], data.email: [pii.contact.email], data.name: [pii.name]}
---
apiVersion: mesh/v1
kind: View
metadata: {name: clear, tenant: acme, owner: security}
spec: {otherwise: clear}
---
apiVersion: mesh/v1
kind: View
metadata: {name: service, tenant: acme, owner: security}
spec:
  mask:
    - {tags: [public], as: clear}
    - {tags: [pii.contact.email], as: pseudonym, with: {domain: customer}}
    - {tags: [pii.name], as: drop}
  otherwise: redact
---
apiVersion: mesh/v1
kind: Access
metadata: {name: crm, tenant: acme, owner: security}
spec:
  allow:
    - {id: crm-publishes, who: {teams: [crm]}, publish: ["crm.>", "github.>"], sources: ["/github/*"]}
    - {id: crm-reads, who: {teams: [crm]}, subscribe: ["crm.contact.>", "crm.deal.>", "github.>"], view: clear}
    - {id: support-reads, who: {teams: [support]}, subscribe: ["crm.contact.>"], view: service}
  deny:
    - id: no-tests
      who: {teams: [crm]}
      publish: ["crm.>"]
      when: "has(data.account) && data.account.endsWith('-test')"
"""
SMALL = Sizes(event_bytes=64 << 20, dlq_bytes=16 << 20, audit_bytes=16 << 20, small_bytes=16 << 20)
DOMAINS = ("crm", "github")
STREAM = "EV_local_crm"
POLICY_SEED = bytes(range(32))
POLICY_KEY = Ed25519PrivateKey.from_private_bytes(POLICY_SEED).public_key().public_bytes_raw()
TRUST_SEED = bytes(range(32, 64))
TRUST_KEY = Ed25519PrivateKey.from_private_bytes(TRUST_SEED).public_key().public_bytes_raw()
ENROL_KEY = bytes(range(64, 96))  # X25519, the private half
PATIENT = {"spool_after_s": 60, "give_up_s": 60}  # settings: a stream that is there is waited for on a busy machine
SETTINGS = """
name = "crm-adapter"
tenant = "acme"
team = "crm"
http_port = 0
webhooks_port = 0
health_port = 0
trust_dir = "trust"
creds_file = ""  # a server without authentication
event_key_file = "event.key"  # managed; tests of enrolment set both to nothing
event_cert_file = "event.crt"
[webhooks.main]
provider = "github"
secret_files = ["hook.secret", "hook.next"]
"""


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def event(**changes: Any) -> dict[str, Any]:
    """A good event; a change to None leaves the attribute out."""
    fields: dict[str, Any] = {
        "specversion": "1.0",
        "id": secrets.token_hex(8),
        "source": "/crm",
        "type": "crm.contact.created.v1",
        "data": {"country": "DE", "email": "ada@example.org", "name": "Ada Lovelace"},
    }
    fields.update(changes)
    return {name: value for name, value in fields.items() if value is not None}


def write_directory(base: Path) -> Path:
    """What an agent reads: trust anchors, keys, certificate, tokens, domain keys, webhook secrets."""
    base.mkdir(parents=True, exist_ok=True)
    seed = secrets.token_bytes(32)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    ca = MeshCA.create("mesh.local", now_ms=now_ms() - 60_000, lifetime_s=86_400)
    issued = ca.issue(SpiffeId.for_agent("mesh.local", "acme", "crm-adapter"), public, now_ms=now_ms(), lifetime_s=3600)
    for directory in ("trust", "domains"):
        (base / directory).mkdir(exist_ok=True)
    (base / "trust" / "ca.crt").write_bytes(ca.root_pem)
    enrol_key = bytes(PrivateKey(ENROL_KEY).public_key)
    for name, key in (("policy", POLICY_KEY), ("trust", TRUST_KEY), ("enrol", enrol_key)):
        (base / "trust" / f"{name}.pub").write_text(key.hex() + "\n")
    (base / "event.key").write_bytes(seed_to_pem(seed))
    chain = [load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in split_chain(issued)]
    (base / "event.crt").write_bytes(b"".join(chain))
    for name in ("dedupe.key", "domains/customer.key"):
        (base / name).write_text(secrets.token_hex(32) + "\n")
    for name in ("token", "enrol.token", "hook.secret", "hook.next"):
        (base / name).write_text(secrets.token_urlsafe(32) + "\n")
    (base / "agent.toml").write_text(SETTINGS)
    return base


@dataclass
class Streams:
    """The tenant's streams, as the control plane makes them."""

    server: NatsServer
    connection: Connection
    epoch: int = 0

    @classmethod
    @asynccontextmanager
    async def running(cls, directory: Path, *, bundle: bool = True) -> AsyncIterator[Streams]:
        """A server with the streams, a trust statement, and the bundle unless the test hands it out later."""
        (port,) = free_ports(1)  # it keeps it while it is down
        server = await NatsServer.start(plain_config(directory / "store"), directory, port=port)
        connection = await Connection.open(server.url, name="control", creds=None)
        try:
            wanted = plan(desired("local", DOMAINS, (), SMALL), await manage.read_actual(connection))
            await manage.apply(connection, wanted)
            streams = cls(server, connection)
            await streams.trust()
            if bundle:
                await streams.hand_out()
            yield streams
        finally:
            await connection.close()
            await server.stop()

    async def trust(self, revoked: Mapping[str, int] | None = None) -> None:
        """Issue the next trust statement, as the control plane does, and tell everybody."""
        self.epoch += 1
        statement = TrustStatement(tenant="acme", epoch=self.epoch, issued_ms=now_ms(), revoked=dict(revoked or {}))
        await KeyValue(self.connection, "mesh_trust").put("trust", statement.seal(TRUST_SEED))
        await self.connection.publish("ctl.notice", b'{"kind": "trust"}')

    async def hand_out(self, *, policies: str = POLICIES) -> Bundle:
        """Put the next revision, as the control plane does, and tell the agents."""
        store = KeyValue(self.connection, "mesh_policy")
        entry = await store.get("bundle")
        current = None if entry is None else open_bundle(entry.value, POLICY_KEY)
        bundle = self.next_bundle(policies, current, 0 if entry is None else entry.at_ms)
        sealed = seal_bundle(bundle, POLICY_SEED)
        await store.put(f"bundle.{bundle.revision}", sealed)
        await self.put(sealed)
        return bundle

    async def put(self, envelope: bytes) -> None:
        """Put any bytes in the bundle's place, and tell the agents."""
        await KeyValue(self.connection, "mesh_policy").put("bundle", envelope)
        await self.connection.publish("ctl.notice", b"{}")

    async def envelope(self) -> bytes:
        """The sealed bundle in force."""
        entry = await KeyValue(self.connection, "mesh_policy").get("bundle")
        return b"" if entry is None else entry.value

    @staticmethod
    def next_bundle(policies: str, current: Bundle | None, at_ms: int) -> Bundle:
        """The revision after *current*, which the server stored at *at_ms*."""
        made = compile_bundles(
            load({"policies.yaml": policies}),
            revision=1,
            site="local",
            trust_domain="mesh.local",
            created_ms=now_ms(),
        )["acme"]
        number = 1 if current is None else current.revision + 1
        return msgspec.structs.replace(
            made,
            revision=number,
            previous="" if current is None else current.digest,
            lineage=() if current is None else lineage(current, at_ms, now_ms()),
            since=since(current, made.policies, number),
        )

    async def stored(self, stream: str = "EV_local_crm") -> int:
        """Messages in a stream."""
        info = await manage.stream_info(self.connection, stream)
        return int(info["state"]["messages"])

    async def message(self, stream: str, sequence: int) -> dict[str, Any]:
        """The stored body."""
        request = msgspec.json.encode({"seq": sequence})
        reply = await self.connection.request(f"$JS.API.DIRECT.GET.{stream}", request)
        return dict(msgspec.json.decode(reply.data))


@dataclass
class Control:
    """What the control plane does for an agent's key: the real enrolment door and trust store, over `Streams`."""

    authority: Authority
    store: TrustStore
    standing: Standing
    attestor: FileAttestor
    enrolment: Enrolment
    told: list[dict[str, Any]]  # audited

    @classmethod
    async def of(cls, streams: Streams, base: Path, *, made_ms: int | None = None) -> Control:
        """One whose anchors and token are those in an agent's directory; `answering` lets it take requests."""
        admin = base / "admin"
        admin.mkdir(exist_ok=True)
        for name, key in (("policy", POLICY_SEED), ("trust", TRUST_SEED), ("enrol", ENROL_KEY)):
            (admin / f"{name}.key").write_text(key.hex() + "\n")
        (base / "trust" / "ca.crt").unlink()  # the authority makes its own
        authority = Authority(base / "trust", admin, trust_domain="mesh.local", now_ms=made_ms or now_ms())
        store = TrustStore(streams.connection, authority, "acme", admin / "trust" / "acme.statement")
        await store.open()
        standing, attestor = Standing(admin / "standing.json"), FileAttestor(admin / "tokens")
        spiffe_id = str(SpiffeId.for_agent("mesh.local", "acme", "crm-adapter"))
        attestor.hand_out("crm-adapter", spiffe_id, base / "enrol.token")
        agents = {"crm-adapter": AgentGrants("crm-adapter", "crm", spiffe_id, (), (), ())}
        told: list[dict[str, Any]] = []
        enrolment = Enrolment(
            streams.connection,
            authority,
            store,
            standing,
            attestor,
            agents=lambda: agents,
            told=lambda event, **facts: told.append({"event": event, **facts}),
        )
        return cls(authority, store, standing, attestor, enrolment, told)

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Take requests for the length of the block."""
        running = asyncio.create_task(self.enrolment.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running])


async def judged(streams: Streams, base: Path, *, view: str = "clear", after: int = 0) -> list[Verified | MeshError]:
    """Every copy of a view that was stored after a sequence, as a consumer's verifier judges it: in its order."""
    name = f"judge{secrets.token_hex(4)}"
    config: dict[str, Any] = {
        "durable_name": name,
        "ack_policy": "explicit",
        "max_ack_pending": 50_000,
        "filter_subject": f"ev.local.{view}.>",
    }
    config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1}
    body = msgspec.json.encode({"stream_name": STREAM, "config": config})
    await streams.connection.request(f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{name}", body)
    reply = await streams.connection.request(f"$JS.API.CONSUMER.INFO.{STREAM}.{name}", b"")
    count = int(msgspec.json.decode(reply.data)["num_pending"])
    got: list[Received] = []
    puller = Puller(streams.connection, stream=STREAM, durable=name, on_event=got.append, max_in_flight=50_000)
    running = asyncio.create_task(puller.run())
    try:
        await until(lambda: len(got) >= count)
    finally:
        running.cancel()
        await asyncio.wait([running])
    trust = TrustWatch(streams.connection, open_keyring(base / "trust", tenant="acme"))
    await trust.refresh()
    for kid in {received.signature.split(".")[1] for received in got if received.signature}:
        await trust.certificate(kid)
    verifier = Verifier(trust.keyring, lambda *_: True, tenant="acme")
    return [_verdict(verifier, received) for received in got]


def _verdict(verifier: Verifier, received: Received) -> Verified | MeshError:
    try:
        return verifier.verify(received)
    except MeshError as error:
        return error


@asynccontextmanager
async def sidecar(base: Path, nats_url: str, **settings: object) -> AsyncIterator[Sidecar]:
    """A sidecar in this process, started and closed; it is ready when the bundle is there. Patient unless told."""
    environ = {f"MESH_AGENT_{name.upper()}": str(value) for name, value in {**PATIENT, **settings}.items()}
    environ["MESH_AGENT_NATS_URL"] = nats_url
    text = (base / "agent.toml").read_text()
    running = Sidecar(load_settings(text, environ).settings, base)
    await running.start()
    try:
        yield running
    finally:
        await running.close()


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)


@dataclass
class Http:
    """Sends bytes as they are: a library would not let the bad requests through."""

    url: str
    token: str

    @property
    def port(self) -> int:
        """Of the door."""
        return int(self.url.rpartition(":")[2])

    async def post(
        self, body: object, *, path: str = "/v1/events", headers: Mapping[str, str | None] | None = None
    ) -> Answer:
        """A well-formed request with *body* as JSON, or as it is where it is bytes."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        fields = {"Content-Type": "application/cloudevents+json", **(headers or {})}
        return await self.send("POST", path, fields, content)

    async def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str | None],
        body: bytes = b"",
        *,
        lines: tuple[str, ...] = (),
        version: str = "HTTP/1.1",
    ) -> Answer:
        """Any request; a header that is None is left out, and *lines* go in raw."""
        fields: dict[str, str | None] = {
            "Host": f"127.0.0.1:{self.port}",
            "Authorization": f"Bearer {self.token}",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **headers,
        }
        known = {"{token}": self.token, "{port}": str(self.port)}
        text = [f"{method} {path} {version}"]
        text += [f"{name}: {value}" for name, value in fields.items() if value is not None]
        raw = "\r\n".join([*text, *lines, "", ""])
        for mark, value in known.items():
            raw = raw.replace(mark, value)
        return await self.raw(raw.encode() + body)

    async def raw(self, request: bytes) -> Answer:
        """Send *request*, read one answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            return await read_answer(reader)
        finally:
            writer.close()
            with suppress(ConnectionError):  # the door was first
                await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """One response, with the body that its Content-Length says."""
    async with asyncio.timeout(60):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        status = int(head[0].split(" ")[1])
        length = int(headers.get("content-length", "0"))
        try:
            body = await reader.readexactly(length)
        except asyncio.IncompleteReadError as short:
            body = short.partial  # an answer to HEAD
        return Answer(status, headers, body)


async def until(condition: Any, *, timeout_s: float = 60) -> None:
    """Poll until *condition* (a function, may be async) is true."""
    async with asyncio.timeout(timeout_s):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            await asyncio.sleep(0.01)
