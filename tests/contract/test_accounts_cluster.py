"""One tenant's accounts on a cluster of three real servers: all confirm, and whoever comes back is told everything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import anyio
import pytest

from mesh.control import accounts as control_accounts
from mesh.control import accounts_push, cluster
from mesh.control.accounts import Accounts
from mesh.control.identities import identities
from mesh.control.live import read_live
from mesh.control.nats_server import NatsServer, operator_config
from mesh.control.nkeys import NkeyFiles
from mesh.control.reconcile import SYSTEM, Operator, now_ms
from mesh.control.standing import Standing
from mesh.control.trust_audit import TrustAudit
from mesh.errors import Disconnected, MeshError, Unavailable
from mesh.jetstream.accounts import claims_of
from mesh.jetstream.changes import Actual
from mesh.jetstream.connection import Connection
from mesh.jetstream.imports import Import, publish_imports
from mesh.policy.grants import AgentGrants, Grants, PublishGrant
from mesh.subjects import Pattern
from tests.ports import free_ports

if TYPE_CHECKING:
    from mesh.control.policies import Policies

pytestmark = pytest.mark.anyio

SUBJECT = "ev.local.clear.s00.crm.contact.updated.v1"
REFUSED_S = 0.3  # several attempts: each is refused within milliseconds
SECRET = "ev.local.clear.s00.hr.person.hired.v1"


class Cluster:
    """Three servers, a tenant that answers every event, and its accounts."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self.directory = directory
        self.stack = stack
        self.operator = Operator(NkeyFiles(directory / "keys"))
        self.standing = Standing(directory / "standing.json")
        self.servers: list[NatsServer] = []
        self.system: Connection
        self.accounts: Accounts
        self.workloads = 0

    async def start(self) -> None:
        """All three, and the tenant."""
        ports = free_ports(6)
        operator_jwt, system_account, system_jwt = self.operator.server_identity()
        for number, port in enumerate(ports[:3]):
            place = self.directory / f"n{number}"
            config = operator_config(
                operator_jwt=operator_jwt,
                system_account=system_account,
                system_jwt=system_jwt,
                resolver_dir=place / "accounts",
                store_dir=place / "store",
            )
            # What the servers tell each other is put off, so that only what the control plane says counts.
            config = config.replace('interval: "5s"', 'interval: "1h"')
            routes = ", ".join(f'"nats://127.0.0.1:{other}"' for other in ports[:3])
            config += f'cluster {{ name: mesh, listen: "127.0.0.1:{port}", routes: [{routes}] }}\n'
            self.servers.append(await NatsServer.start(config, place, port=ports[3 + number], name=f"n{number}"))
            self.stack.push_async_callback(self.servers[-1].stop)
        urls = ",".join(server.url for server in self.servers)
        creds = self.operator.control_creds(SYSTEM)
        self.system = await self.connect(creds, "system", self.servers[0].url)  # no test stops this one
        await until(self.complete)
        self.accounts = self.control_plane()
        await self.accounts.open()
        tenant = await self.connect(self.operator.control_creds("acme"), "control", urls)
        tenant.listen("ev.>", lambda _s, reply, _h, _d: tenant._write_one(reply, b"stored", "", None))
        await tenant.flush(5)

    def control_plane(self) -> Accounts:
        """The accounts as a control plane has them that starts now."""
        return Accounts(self.system, self.operator, "acme", self.standing)

    async def complete(self) -> bool:
        """Whether all three answer."""
        return len(await cluster.present(self.system)) == 3

    async def connect(self, creds: bytes, name: str, urls: str, *, timeout_s: float = 10.0) -> Connection:
        """A connection that is closed at the end."""
        connection = await Connection.open(urls, name=name, creds=creds, connect_timeout_s=timeout_s)
        self.stack.push_async_callback(connection.close)
        return connection

    def name(self) -> str:
        """A workload that no other test has."""
        self.workloads += 1
        return f"agent-{self.workloads}"

    async def workload(self, name: str, *, server: int = 0, timeout_s: float = 10.0) -> Connection:
        """A connection of a workload, to one of the servers."""
        creds = self.operator.workload_creds("acme", name)
        return await self.connect(creds, name, self.servers[server].url, timeout_s=timeout_s)

    def imports(self, *subjects: str) -> list[Import]:
        """Of the tenant."""
        return [Import(self.accounts.owner, subject) for subject in subjects]

    async def held(self, name: str) -> list[str]:
        """What each server has for a workload."""
        return await accounts_push.lookup(self.system, self.operator.public(f"acme/{name}"), servers=3)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """The control plane watches for servers that come back."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.accounts.run)
            yield
            group.cancel_scope.cancel()


async def until(condition: Callable[[], Awaitable[object]], *, timeout_s: float = 60) -> None:
    """Poll until *condition* is true."""
    with anyio.fail_after(timeout_s):
        while True:
            with suppress(Unavailable):
                if await condition():
                    return
            await anyio.sleep(0.01)


async def answered(connection: Connection, subject: str) -> bool:
    """Whether *connection* may publish *subject*."""
    try:
        return (await connection.request(subject, b"{}", timeout_s=5)).data == b"stored"
    except Unavailable as error:
        if error.details.get("reason") != "no-responders":
            raise
        return False


@pytest.fixture(scope="module")
async def three(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """The cluster, for all tests of this file; each has workloads of its own and leaves all three servers up."""
    async with AsyncExitStack() as stack:
        self = Cluster(tmp_path_factory.mktemp("cluster"), stack)
        await self.start()
        yield self


def same(tokens: Iterable[str]) -> bool:
    """Whether there are three, all alike."""
    found = list(tokens)
    return len(found) == 3 and len(set(found)) == 1


# --- every server ----------------------------------------------------------------------------------------------------


async def test_a_push_is_live_on_every_server(three: Cluster) -> None:
    """Whichever server a workload is connected to, it may what it was granted, and no more, when `set` returns."""
    name = three.name()
    await three.accounts.set({name: three.imports(SUBJECT)})
    assert same(await three.held(name))
    for server in range(3):
        agent = await three.workload(name, server=server)
        await until(lambda agent=agent: answered(agent, SUBJECT))  # type: ignore[misc]
        assert not await answered(agent, SECRET)


async def test_a_server_that_differs_is_noticed_by_a_control_plane_that_starts(three: Cluster) -> None:
    """Nothing is pushed where all are as they have to be; one server out of three is enough to push again."""
    name = three.name()
    wanted = {name: three.imports(SUBJECT)}
    assert await three.accounts.set(wanted) == 1
    assert await three.control_plane().set(wanted) == 0
    file = three.directory / "n1" / "accounts" / f"{three.operator.public(f'acme/{name}')}.jwt"
    file.unlink()
    assert len(await three.held(name)) == 2
    assert await three.control_plane().set(wanted) == 1
    assert same(await three.held(name))


async def test_a_jwt_is_always_later_than_what_it_replaces(three: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one second, after a restart and with a clock set back: servers that compare keep the later one."""
    name = three.name()
    times: list[int] = []

    async def pushed(accounts: Accounts, *subjects: str) -> None:
        assert await accounts.set({name: three.imports(*subjects)}) == 1
        held = await three.held(name)
        assert same(held)
        times.append(claims_of(held[0])["iat"])

    await pushed(three.accounts, SUBJECT)
    await pushed(three.accounts, SUBJECT, SECRET)
    await pushed(three.control_plane(), SUBJECT)
    monkeypatch.setattr(control_accounts, "now_ms", lambda: 1_700_000_000_000)
    await pushed(three.control_plane(), SECRET)
    assert times == sorted(set(times))
    assert times[0] > 1_700_000_000 + 86_400
    monkeypatch.undo()
    await three.accounts.set({name: []})


async def test_the_audit_reads_every_server(three: Cluster) -> None:
    """Who is connected anywhere, and a JWT that one server alone still has: narrow on two of three is not narrow."""
    name = three.name()
    compiled = (PublishGrant("clear", Pattern.parse("crm.contact.updated.v1")),)
    granted = publish_imports(three.accounts.owner, "local", compiled)
    await three.accounts.set({name: [*granted, *three.imports(SECRET)]})
    agents = [await three.workload(name, server=server) for server in range(3)]
    (wide, *_) = await three.held(name)
    await three.accounts.set({name: granted})
    public = three.operator.public(f"acme/{name}")
    file = three.directory / "n2" / "accounts" / f"{public}.jwt"
    narrow = file.read_text()
    file.write_text(wide)
    live = await read_live(three.system)
    assert len(live.servers) == 3
    assert sorted(live.tokens[public]) == sorted([wide, narrow, narrow])
    assert sum(one["account"] == public for one in live.connections) == len(agents)
    agent = AgentGrants(name, "crm", "", types=(), publish=compiled, domains=())
    grants = Grants("acme", "local", {name: agent}, {}, {}, {})
    everybody = identities(three.operator, three.accounts, three.standing, grants)
    audit = TrustAudit(three.system, three.operator, three.accounts, cast("Policies", None))
    found = audit._account_flags(live, everybody, three.operator.keys.names(), Actual({}, {}))
    codes = {flag.code for flag in found if flag.where == f"agent {name}"}
    assert codes == {"servers-differ", "extra-import"}
    file.write_text(narrow)
    await three.accounts.set({name: []})


# --- standing --------------------------------------------------------------------------------------------------------


async def test_a_barred_workload_is_cut_off_everywhere(three: Cluster) -> None:
    """Its connections end on every server and none takes it back, also under new grants; admitted, it is back."""
    name = three.name()
    await three.accounts.set({name: three.imports(SUBJECT)})
    agents = [await three.workload(name, server=server) for server in range(3)]
    for agent in agents:
        await until(lambda agent=agent: answered(agent, SUBJECT))  # type: ignore[misc]
    three.standing.bar(name)
    assert await three.accounts.refresh(name)
    await until(lambda: _all_lost(agents))
    await three.accounts.set({name: three.imports(SUBJECT, SECRET)})
    for server in range(3):
        with pytest.raises(Disconnected):
            await three.workload(name, server=server, timeout_s=REFUSED_S)
    three.standing.admit(name)
    assert await three.accounts.refresh(name)
    agent = await three.workload(name, server=2)
    await until(lambda: answered(agent, SECRET))


async def test_a_replaced_user_is_cut_off_and_its_successor_is_not(three: Cluster) -> None:
    """The old credentials end on every server; those of the new key open the same account with the same rights."""
    name = three.name()
    await three.accounts.set({name: three.imports(SUBJECT)})
    stolen = three.operator.workload_creds("acme", name)
    thief = await three.connect(stolen, name, three.servers[1].url)
    await until(lambda: answered(thief, SUBJECT))
    key = three.operator.keys.find("user", f"acme/{name}")
    assert key is not None
    three.standing.revoke_user(name, key.public, now_ms() // 1000)
    three.operator.keys.renew("user", f"acme/{name}")
    assert await three.accounts.refresh(name)
    await until(lambda: _all_lost([thief]))
    for server in three.servers:
        with pytest.raises(Disconnected):
            await three.connect(stolen, name, server.url, timeout_s=REFUSED_S)
        honest = await three.connect(three.operator.workload_creds("acme", name), name, server.url)
        await until(lambda honest=honest: answered(honest, SUBJECT))  # type: ignore[misc]


async def test_refreshing_changes_nothing_that_standing_does_not_say(three: Cluster) -> None:
    """A workload in good standing keeps its rights; one nobody knows gets neither an account nor a key."""
    name = three.name()
    await three.accounts.set({name: three.imports(SUBJECT)})
    assert not await three.accounts.refresh(name)
    assert not await three.accounts.refresh("nobody")
    assert three.operator.keys.find("account", "acme/nobody") is None


# --- servers come and go ---------------------------------------------------------------------------------------------


async def test_a_server_that_comes_back_is_told_what_it_missed(three: Cluster) -> None:
    """Rights taken away, a workload barred and a user revoked while it was down: all hold there too."""
    narrowed, barred, replaced = three.name(), three.name(), three.name()
    wide = three.imports(SUBJECT, SECRET)
    async with three.watched():
        await three.accounts.set({narrowed: wide, barred: wide, replaced: wide})
        stolen = three.operator.workload_creds("acme", replaced)
        three.servers[2].kill()
        await three.accounts.set({narrowed: three.imports(SUBJECT)})
        three.standing.bar(barred)
        await three.accounts.refresh(barred)
        old = three.operator.keys.get("user", f"acme/{replaced}").public
        three.standing.revoke_user(replaced, old, now_ms() // 1000)
        three.operator.keys.renew("user", f"acme/{replaced}")
        await three.accounts.refresh(replaced)
        assert len(await cluster.present(three.system)) == 2
        await three.servers[2].restart()
        for name in (narrowed, barred, replaced):
            await until(lambda name=name: _all_same(three, name))  # type: ignore[misc]
    agent = await three.workload(narrowed, server=2)
    await until(lambda: answered(agent, SUBJECT))  # the servers tell each other who listens
    assert not await answered(agent, SECRET)
    with pytest.raises(Disconnected):
        await three.workload(barred, server=2, timeout_s=REFUSED_S)
    with pytest.raises(Disconnected):
        await three.connect(stolen, replaced, three.servers[2].url, timeout_s=REFUSED_S)


async def test_nobody_tells_it_unless_the_control_plane_watches(three: Cluster) -> None:
    """The control to the test above: a server that was down would serve what it had."""
    name = three.name()
    await three.accounts.set({name: three.imports(SUBJECT, SECRET)})
    three.servers[2].kill()
    await three.accounts.set({name: three.imports(SUBJECT)})
    await three.servers[2].restart()
    await until(three.complete)
    agent = await three.workload(name, server=2)
    await until(lambda: answered(agent, SECRET))
    async with three.watched():
        await until(lambda: _all_same(three, name))
    assert not await answered(agent, SECRET)


async def test_a_silent_server_holds_nothing_up_and_is_told_later(three: Cluster) -> None:
    """A server that hangs does not keep rights from being taken away elsewhere; it has them once it goes on."""
    name = three.name()
    await three.accounts.set({name: three.imports(SUBJECT, SECRET)})
    agent = await three.workload(name, server=0)
    async with three.watched():
        three.servers[1].pause()
        try:
            await three.accounts.set({name: three.imports(SUBJECT)})
            assert not await answered(agent, SECRET)
        finally:
            three.servers[1].resume()
        await until(lambda: _all_same(three, name))
    agent = await three.workload(name, server=1)
    await until(lambda: answered(agent, SUBJECT))
    assert not await answered(agent, SECRET)


async def _all_lost(connections: list[Connection]) -> bool:
    return not any(connection.connected for connection in connections)


async def _all_same(three: Cluster, name: str) -> bool:
    try:
        return same(await three.held(name))
    except MeshError:
        return False
