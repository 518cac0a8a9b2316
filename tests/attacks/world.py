"""What the attacks run against: a whole mesh as `mesh up` starts it, and insiders who hold what it handed out.

The server, the control plane, the agents and their files are the product's own; nothing is granted by hand. An insider
is a plain nats-py client with a creds file that the control plane wrote: he is bound by NATS alone, not by our library.
The admin of a tenant is whoever runs or has broken the broker: he holds its account, and only verification is left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
from nats.aio.msg import Msg

from mesh.client import Mesh, connect
from mesh.context import Context
from mesh.control.datadir import DataDirectory
from mesh.control.door import pack
from mesh.control.tenant import Tenant
from mesh.control.up import Options, Running, running
from mesh.deadletters import DeadLetterRecord
from mesh.identity import Signer
from mesh.inbound import Admitted
from mesh.jetstream.tls import TlsFiles, client_context
from mesh.judging import WITHHELD
from mesh.unhandled import REJECTED
from tests.attacks.insider import CONTACT, CRM, DEADLINE_S, Insider, Wire, failed, now_ms, until
from tests.attacks.keys import enrol, found, proof

POLICIES = Path(__file__).parent / "policies.yaml"
SERVER_HEADERS = {"Nats-Stream", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"}


# --- who must not believe him ----------------------------------------------------------------------------------------


class Reader:
    """An honest consumer with our library: what it hands to its handler, by stream and sequence."""

    def __init__(self, tenant: str, team: str, subscription: str) -> None:
        self.tenant = tenant
        self.team = team
        self.subscription = subscription
        self.events: dict[tuple[str, int], Admitted] = {}
        self.mesh: Mesh
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()

    async def run(self, context: Context, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Handle until cancelled."""
        with self._scope:
            async with connect(context) as self.mesh, self.mesh.subscription(self.subscription) as deliveries:
                task_status.started()
                async for delivery in deliveries:
                    async with delivery as event:
                        self.events[event.stream, event.sequence] = event
        self._ended.set()

    async def leave(self) -> None:
        """End this process of the team."""
        self._scope.cancel()
        await self._ended.wait()

    async def refuses(self, kid: str) -> None:
        """Wait until it has heard that a key is revoked."""
        held = self.mesh._reader
        assert held is not None
        keyring = held.trust.keyring
        await until(lambda: keyring.revoked_from(kid) is not None)

    def has(self, event_id: str) -> Admitted | None:
        """The event of this id, where it was handed over."""
        return next((event for event in self.events.values() if event.id == event_id), None)


class World:
    """A running mesh of two tenants, and everything of it that leaks."""

    def __init__(self, mesh: Running, data: DataDirectory, stack: AsyncExitStack, group: anyio.abc.TaskGroup) -> None:
        self.mesh = mesh
        self.data = data
        self.letters: dict[tuple[str, str, int], DeadLetterRecord] = {}
        self._heard: set[str] = set()  # tenants whose dead letters we hear
        self._stack = stack
        self._group = group
        self._readers: dict[tuple[str, str], Reader] = {}
        self._clients: dict[str, Insider] = {}
        self._signers: dict[str, Signer] = {}
        self._doors: dict[str, Mesh] = {}

    @classmethod
    @asynccontextmanager
    async def running(cls, directory: Path, **more: Any) -> AsyncIterator[World]:
        """A mesh that is up and looked after, for the length of the block; *more* are options of `mesh up`."""
        given = directory / "policies"
        given.mkdir()
        (given / "policies.yaml").write_text(POLICIES.read_text())
        options = Options(data=directory / "data", policies=given, **more)
        found(options.data, at_ms=now_ms() - 86_400_000)  # a day old: keys may have leaked an hour ago
        async with running(options) as mesh, anyio.create_task_group() as group:
            group.start_soon(mesh.watch)
            async with AsyncExitStack() as stack:
                yield cls(mesh, DataDirectory(options.data.resolve()), stack, group)
            group.cancel_scope.cancel()

    # --- credentials -------------------------------------------------------------------------------------------------

    def creds(self, name: str) -> Path:
        """The creds file of an agent, of a team (`team-<team>`), or of the control plane in a tenant (`acme`)."""
        if name in {"acme", "globex"}:
            return self.data.admin_creds(name, ["acme", "globex"])
        return (self.data.team(name.removeprefix("team-")) if name.startswith("team-") else self.data.agent(name)) / (
            "nats.creds"
        )

    async def insider(self, name: str) -> Insider:
        """A client with the credentials of *name*, opened once."""
        if name not in self._clients or self._clients[name].nc.is_closed:
            self._clients[name] = await self.stranger(name, self.creds(name))
        return self._clients[name]

    def tls(self, name: str) -> TlsFiles:
        """The client certificate of an agent or a team, beside its creds file."""
        directory = self.creds(name).parent
        return TlsFiles(self.data.trust / "ca.crt", directory / "tls.crt", directory / "tls.key")

    async def stranger(self, name: str, creds: Path, **options: Any) -> Insider:
        """A client of its own with any creds file; closed at the end."""
        if self.mesh.file.tls_ca_file:
            options = {"tls": client_context(self.tls(name)), "tls_handshake_first": True, **options}
        client = await Insider(name).open(self.mesh.server.url, creds, **options)
        self._stack.push_async_callback(client.nc.close)
        return client

    async def admin(self, tenant: str = "acme") -> Insider:
        """Whoever holds the tenant's account: the control plane, or one who has broken the broker."""
        admin = await self.insider(tenant)
        if tenant not in self._heard:
            self._heard.add(tenant)
            await admin.nc.subscribe("dlq.>", cb=self._buried)
            await admin.nc.flush()
        return admin

    async def _buried(self, message: Msg) -> None:
        letter = msgspec.json.decode(message.data, type=DeadLetterRecord)
        self.letters[f"{letter.team}/{letter.subscription}", letter.stream, letter.sequence] = letter

    async def signer(self, agent: str) -> Signer:
        """An event key of *agent*, enrolled as its process enrols: what somebody has who broke into it."""
        if agent not in self._signers:
            self._signers[agent] = await enrol(self, agent)
        return self._signers[agent]

    async def apply(self, changes: Mapping[str, str], tenant: str = "acme") -> int:
        """Put policies with *changes* of text in force, through the control plane's door; the revision."""
        text = POLICIES.read_text()
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        applied = await self.asked("policy.apply", tenant, author="ada", files=pack({"policies.yaml": text}, {}))
        return int(applied["revision"])

    def control(self, tenant: str = "acme") -> Tenant:
        """The control plane's side of a tenant, for what no request does."""
        return next(held for held in self.mesh._tenants if held.name == tenant)

    async def asked(self, verb: str, tenant: str = "acme", **request: Any) -> dict[str, Any]:
        """An answer of `ctl.<noun>.<verb>`, for who may ask."""
        admin = await self.admin(tenant)
        body = msgspec.json.encode(request)
        headers = proof(self, f"ctl.{verb}", body, tenant)
        reply = await admin.nc.request(f"ctl.{verb}", body, timeout=60, headers=headers)
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        assert "error" not in answer, answer
        return answer

    # --- honest people -----------------------------------------------------------------------------------------------

    def context(self, *, tenant: str = "acme", team: str | None = None, agent: str | None = None) -> Context:
        """A context for the library."""
        return Context.load(self.data.root, tenant=tenant, team=team, agent=agent)

    async def publish(self, agent: str = "crm-adapter", type_: str = CONTACT, **more: Any) -> str:
        """Publish through the agent's door; the id, once every copy is durable."""
        tenant, team = where(agent)
        if agent not in self._doors:
            self._doors[agent] = await self._stack.enter_async_context(
                connect(self.context(tenant=tenant, agent=agent))
            )
        data = more.pop("data", {"country": "DE", "email": "ada@example.org", "iban": "DE02", "notes": "hello"})
        source = more.pop("source", f"/{team}")
        return (await self._doors[agent].publish(type_, data, source=source, **more)).id

    async def reader(self, team: str = "support", subscription: str = "contacts", tenant: str = "acme") -> Reader:
        """An honest consumer of a subscription, started once."""
        key = (team, subscription)
        if key not in self._readers:
            await self.admin(tenant)  # hears its dead letters
            reader = self._readers[key] = Reader(tenant, team, subscription)
            await self._group.start(
                lambda task_status: reader.run(self.context(tenant=tenant, team=team), task_status=task_status)
            )
        return self._readers[key]

    async def another(self, reader: Reader) -> Reader:
        """Another process of that team, in place of *reader*: it begins with what that left on disk."""
        del self._readers[reader.team, reader.subscription]
        await reader.leave()
        return await self.reader(reader.team, reader.subscription, reader.tenant)

    async def handed_over(self, event_id: str, reader: Reader | None = None) -> Admitted:
        """The event of this id, once the honest reader's handler has it."""
        reader = reader or await self.reader()
        await until(lambda: reader.has(event_id))
        found = reader.has(event_id)
        assert found is not None
        return found

    # --- the two together --------------------------------------------------------------------------------------------

    async def put(self, wire: Wire, by: Insider | None = None, reader: Reader | None = None) -> str:
        """Store *wire* and say what became of it: `delivered`, or who stopped it and how.

        `not stored` and `duplicate` are NATS' answers; a code is that of the honest consumer's verification;
        `withheld: <why>` is its policy's.
        """
        reader = reader or await self.reader()
        by = by or await self.admin()
        before = _counts()
        answer = await by.ask(wire.subject, wire.body, wire.headers)
        if answer is None or failed(answer):
            return "not stored"
        ack = msgspec.json.decode(answer.data)
        if ack.get("duplicate"):
            return "duplicate"
        verdict = await self.verdict(ack["stream"], ack["seq"], reader, before)
        if verdict == "unknown-key":  # else it would come again for seconds
            admin = await self.admin(reader.tenant)
            await admin.api(f"STREAM.MSG.DELETE.{ack['stream']}", {"seq": ack["seq"]})
        return verdict

    async def verdict(self, stream: str, sequence: int, reader: Reader, before: dict[str, float] | None = None) -> str:
        """What became of a stored event, as `put` says it; *before* is what the counters said then."""
        before = _counts() if before is None else before
        key = (f"{reader.team}/{reader.subscription}", stream, sequence)
        with anyio.fail_after(DEADLINE_S):
            while True:
                if (stream, sequence) in reader.events:
                    return "delivered"
                if key in self.letters:
                    return self.letters[key].reason
                rose = [name for name, value in _counts().items() if value > before.get(name, 0)]
                if rose:
                    return rose[0]
                await anyio.sleep(0.01)

    async def last(self, stream: str = CRM, tenant: str = "acme") -> int:
        """The number of the last message of a stream."""
        admin = await self.admin(tenant)
        return int((await admin.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"])

    async def stored(self, sequence: int, stream: str = CRM) -> Wire:
        """A message as the stream holds it."""
        admin = await self.admin()
        request = msgspec.json.encode({"seq": sequence})
        answer = await admin.nc.request(f"$JS.API.DIRECT.GET.{stream}", request, timeout=DEADLINE_S)
        headers = dict(answer.headers or {})
        subject = headers.pop("Nats-Subject")
        kept = {name: value for name, value in headers.items() if name not in SERVER_HEADERS}
        return Wire(subject, kept, answer.data)


def where(agent: str) -> tuple[str, str]:
    """Tenant and team of an agent of the policies."""
    return {
        "crm-adapter": ("acme", "crm"),
        "desk": ("acme", "support"),
        "lake": ("acme", "analytics"),
        "rival": ("globex", "sales"),
    }[agent]


def _counts() -> dict[str, float]:
    """What the honest consumers of this process withheld or wait for, by name."""
    withheld = {f"withheld: {labels['code']}": value for labels, value in WITHHELD.series()}
    return withheld | {"unknown-key": REJECTED.value(code="unknown-key")}
