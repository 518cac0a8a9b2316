"""A real server in operator mode with one tenant's live policies, and workloads that say what they run."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from mesh.control.accounts import Accounts
from mesh.control.bundles import BundleStore
from mesh.control.change import Applied
from mesh.control.datadir import write_private
from mesh.control.enforce import Enforcer
from mesh.control.nats_server import NatsServer, operator_config
from mesh.control.nkeys import NkeyFiles
from mesh.control.policies import Policies
from mesh.control.proof import HEADER, NONCE_BYTES, Proofs, prove
from mesh.control.reconcile import SYSTEM, Operator, now_ms, team_workload
from mesh.control.trust import Authority
from mesh.errors import MeshError
from mesh.jetstream import manage
from mesh.jetstream.connection import Connection
from mesh.jetstream.topology import Sizes
from mesh.jetstream.transition import filters_of
from mesh.policy.bundle import Bundle
from mesh.reports import Report
from tests.ports import free_ports

SIZES = Sizes(event_bytes=64 << 20, dlq_bytes=16 << 20, audit_bytes=16 << 20, small_bytes=32 << 20)
SITE = "local"
CRM = "EV_local_crm"
DURABLE = "support--contacts"
BEAT_NS = 150_000_000
NEXT = f"$JS.API.CONSUMER.MSG.NEXT.{CRM}.{DURABLE}"

BASE = """
apiVersion: mesh/v1
kind: Tenant
metadata: {name: acme, owner: security}
spec: {teams: {crm: {agents: [crm-adapter]}, support: {agents: [desk]}, analytics: {agents: [lake]}}}
---
apiVersion: mesh/v1
kind: View
metadata: {name: bare, tenant: acme, owner: security}
spec: {otherwise: drop}
---
apiVersion: mesh/v1
kind: View
metadata: {name: masked, tenant: acme, owner: security}
spec: {otherwise: redact}
"""
PUBLISHES = "{id: crm-publishes, who: {teams: [crm]}, publish: ['crm.>', 'hr.>']}"
SUBSCRIPTION = """
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: contacts, tenant: acme, team: support}
spec: {types: ["crm.contact.>"], start: all}
"""


def policies(*allow: str, deny: tuple[str, ...] = (), more: str = SUBSCRIPTION) -> dict[str, str]:
    """The base with these access lines and documents."""
    lines = [f"    - {line}" for line in (PUBLISHES, *allow)]
    refusals = ["  deny:", *(f"    - {line}" for line in deny)] if deny else []
    head = "---\napiVersion: mesh/v1\nkind: Access\nmetadata: {name: a, tenant: acme, owner: security}\nspec:\n  allow:"
    return {"p.yaml": "\n".join([BASE + head, *lines, *refusals]) + more}


def reads(view: str, types: str = "crm.>", **more: str) -> str:
    """A line that lets support read *types* in *view*."""
    rest = "".join(f", {name}: '{value}'" for name, value in more.items())
    return f"{{id: support-reads, who: {{teams: [support]}}, subscribe: ['{types}'], view: {view}{rest}}}"


class PolicyMesh:
    """One server, tenant `acme`, its live policies."""

    def __init__(self, directory: Path, server: NatsServer, operator: Operator, system: Connection) -> None:
        self.directory = directory
        self.server = server
        self.operator = operator
        self.system = system
        self.authority = Authority(directory / "trust", directory / "admin", trust_domain="mesh.local", now_ms=now_ms())
        self.accounts = Accounts(system, operator, "acme")
        self.audited: list[tuple[str, dict[str, Any]]] = []
        self.connections: list[Connection] = [system]
        self.control: Connection
        self.policies: Policies

    @classmethod
    @asynccontextmanager
    async def running(cls, directory: Path) -> AsyncIterator[PolicyMesh]:
        """A server whose tenant has no policies yet."""
        operator = Operator(NkeyFiles(directory / "keys"))
        operator_jwt, system_account, system_jwt = operator.server_identity()
        config = operator_config(
            operator_jwt=operator_jwt,
            system_account=system_account,
            system_jwt=system_jwt,
            resolver_dir=directory / "accounts",
            store_dir=directory / "store",
        )
        server = await NatsServer.start(config, directory / "nats", port=free_ports(1)[0])
        try:
            creds = operator.control_creds(SYSTEM)
            mesh = cls(directory, server, operator, await Connection.open(server.url, name="system", creds=creds))
            try:
                await mesh.accounts.open()
                mesh.control = await mesh.connect(operator.control_creds("acme"), "control")
                await mesh.control_plane()
                yield mesh
            finally:
                for connection in reversed(mesh.connections):
                    await connection.close()
        finally:
            await server.stop()

    async def control_plane(self) -> Bundle | None:
        """A control plane that starts now: it knows nothing but its files and what the server says."""
        self.accounts = Accounts(self.system, self.operator, "acme")
        self.policies = Policies(
            "acme",
            connection=self.control,
            enforcer=Enforcer(self.control, self.accounts, site=SITE, sizes=SIZES),
            store=self.store(),
            site=SITE,
            trust_domain="mesh.local",
            audit=lambda kind, **facts: self.audited.append((kind, facts)),
        )
        return await self.policies.open()

    def store(self) -> BundleStore:
        """Where the bundles lie."""
        return BundleStore(self.control, self.authority, self.directory / "admin" / "acme.bundle")

    def forget_copy(self) -> None:
        """Lose the control plane's own copy of the bundle in force."""
        (self.directory / "admin" / "acme.bundle").unlink(missing_ok=True)

    def keep_copy(self, envelope: bytes) -> None:
        """Give the control plane another own copy."""
        write_private(self.directory / "admin" / "acme.bundle", envelope)

    async def apply(self, *allow: str, **more: Any) -> Applied:
        """Apply the base with these access lines."""
        return await self.policies.apply(policies(*allow, **more), {}, author="ada")

    async def connect(self, creds: bytes, name: str) -> Connection:
        """A connection that is closed at the end."""
        connection = await Connection.open(self.server.url, name=name, creds=creds)
        self.connections.append(connection)
        return connection

    def proofs(self) -> Proofs:
        """What the control plane's door asks for."""
        return Proofs(self.authority.operator_key, "acme", since_ms=now_ms())

    async def ask(
        self, verb: str, body: bytes = b"{}", *, by: Connection | None = None, timeout_s: float = 20
    ) -> dict[str, Any]:
        """The answer of `ctl.<verb>` to an operator; *by* a connection of his."""
        operator = by or await self.connect(self.operator.control_creds("acme"), "operator")
        reply = await operator.request(f"ctl.{verb}", body, headers=self.proof(verb, body), timeout_s=timeout_s)
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        return answer

    def proof(self, verb: str, body: bytes, tenant: str = "acme") -> dict[str, str]:
        """The header of an operator's request."""
        key, nonce = self.authority.operator_key, secrets.token_bytes(NONCE_BYTES)
        return {HEADER: prove(key, tenant=tenant, subject=f"ctl.{verb}", body=body, at_ms=now_ms(), nonce=nonce)}

    async def workload(self, name: str) -> Connection:
        """A connection of an agent, or of a team's own account (`team-<team>`)."""
        return await self.connect(self.operator.workload_creds("acme", name), name)

    async def team(self, team: str) -> Connection:
        """A connection of a team."""
        return await self.workload(team_workload(team))

    async def store_event(self, view: str, type_: str, body: bytes = b"{}") -> int:
        """Store a copy as its publisher would; returns its sequence."""
        reply = await self.control.request(f"ev.{SITE}.{view}.s00.{type_}", body)
        return int(msgspec.json.decode(reply.data)["seq"])

    async def filters(self, durable: str = DURABLE, stream: str = CRM) -> set[str]:
        """What a durable delivers, as `<view> <types>`."""
        info = await manage.consumer_info(self.control, stream, durable)
        return {f"{text.split('.')[2]} {text.split('.', 4)[4]}" for text in filters_of(info["config"])}

    async def paused(self, durable: str = DURABLE, stream: str = CRM) -> bool:
        """Whether a durable delivers nothing at all."""
        return bool((await manage.consumer_info(self.control, stream, durable)).get("paused"))


class Instance:
    """One process of an agent that runs what it is told, and says so."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name
        self.revision = 0
        self.digest = ""

    @classmethod
    async def start(cls, mesh: PolicyMesh, name: str) -> Instance:
        """Connected; it runs no policies yet."""
        self = cls(await mesh.workload(name), name)
        await self.runs(0)
        return self

    async def runs(self, revision: int) -> None:
        """Say so."""
        self.revision = revision
        report = Report(
            name=self.name, instance="00000001", kind="agent", revision=revision, digest=self.digest, clock_ms=now_ms()
        )
        await self.connection.request(f"report.{self.name}.00000001", msgspec.json.encode(report))

    async def publish(self, view: str, type_: str) -> bool:
        """Publish a copy; False where NATS does not let us."""
        try:
            await self.connection.request(f"ev.{SITE}.{view}.s00.{type_}", b"{}", timeout_s=20)
        except MeshError:
            return False
        return True


async def pull(connection: Connection, *, count: int, expires_s: float = 60) -> list[tuple[str, str]]:
    """Pull so many events of support's durable as a plain client, or those of *expires_s*: subject, ack subject."""
    got: list[tuple[str, str]] = []
    ended = anyio.Event()

    def take(subject: str, reply: str, headers: bytes | None, data: bytes) -> None:
        if reply.startswith("$JS.ACK."):
            got.append((subject, reply))
            if len(got) == count:
                ended.set()
        elif not data and headers is not None:
            ended.set()

    inbox = connection.new_inbox()
    listener = connection.listen(inbox, take)
    request = msgspec.json.encode({"batch": count, "expires": int(expires_s * 1e9)})
    await connection.publish(NEXT, request, reply=inbox)
    with anyio.move_on_after(expires_s + 2):
        await ended.wait()
    await connection.drain(listener)
    return got


async def take(connection: Connection, name: str, stream: str = CRM, *, group: str = "") -> list[tuple[int, str, str]]:
    """All that a durable has for whoever holds *connection*: sequence, type, ack subject.

    The server beats for a pull once it has looked and found nothing more, however long it took to look.
    """
    got: list[tuple[int, str, str]] = []
    ended = anyio.Event()

    def on_message(subject: str, reply: str, headers: bytes | None, data: bytes) -> None:
        if reply.startswith("$JS.ACK."):
            got.append((int(reply.split(".")[5]), subject.split(".", 4)[4], reply))
        elif headers is not None and not data:
            ended.set()

    inbox = connection.new_inbox()
    listener = connection.listen(inbox, on_message)
    ask: dict[str, Any] = {"batch": 100, "expires": int(60e9), "idle_heartbeat": BEAT_NS}
    ask |= {"group": group} if group else {}
    await connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", msgspec.json.encode(ask), reply=inbox)
    with anyio.fail_after(60):
        await ended.wait()
    await connection.drain(listener)
    return got


async def ack(connection: Connection, pulled: list[tuple[str, str]]) -> None:
    """Acknowledge what was pulled, and wait until the server has it."""
    for _, reply in pulled:
        await connection.request(reply, b"+ACK")


async def until(condition: Any, *, timeout_s: float = 60) -> None:
    """Poll until *condition* (an async function) is true."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.02)
