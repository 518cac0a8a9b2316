"""A real server in operator mode with one tenant, for the tests: keys, accounts, control connections, workloads."""

from __future__ import annotations

import secrets
from pathlib import Path

from mesh.control import accounts_push
from mesh.control.nats_server import NatsServer, operator_config
from mesh.jetstream import accounts, changes, manage, topology
from mesh.jetstream.accounts import Import, Nkey
from mesh.jetstream.connection import Connection
from tests.ports import free_ports

SIZES = topology.Sizes(event_bytes=64 << 20, dlq_bytes=16 << 20, audit_bytes=16 << 20, small_bytes=16 << 20)
SITE = "local"


def nkey(kind: str) -> Nkey:
    """A new key of *kind*."""
    return Nkey.from_random(kind, secrets.token_bytes(32))  # type: ignore[arg-type]


class OperatorMode:
    """One server, one tenant `acme`, and workloads made on demand."""

    def __init__(self, server: NatsServer, operator: Nkey, system: Nkey, tenant: Nkey) -> None:
        self.server = server
        self.operator = operator
        self.system_account = system
        self.tenant_account = tenant
        self.accounts: dict[str, Nkey] = {}
        self.connections: list[Connection] = []
        self.system: Connection
        self.tenant: Connection
        self.iat = 1_700_000_000

    @classmethod
    async def start(cls, directory: Path) -> OperatorMode:
        """A running server with an empty tenant account."""
        operator, system, tenant = nkey("operator"), nkey("account"), nkey("account")
        config = operator_config(
            operator_jwt=accounts.operator_jwt(operator, "mesh", system_account=system.public, iat=1_700_000_000),
            system_account=system.public,
            system_jwt=accounts.account_jwt(operator, system.public, "SYS", iat=1_700_000_000),
            resolver_dir=directory / "accounts",
            store_dir=directory / "store",
        )
        mode = cls(await NatsServer.start(config, directory, port=free_ports(1)[0]), operator, system, tenant)
        try:
            mode.system = await mode.connect(system, "control")
            await mode.push_tenant()
            mode.tenant = await mode.connect(tenant, "control")
        except BaseException:
            await mode.stop()
            raise
        return mode

    async def stop(self) -> None:
        """Close every connection and the server."""
        for connection in self.connections:
            await connection.close()
        await self.server.stop()

    async def connect(self, account: Nkey, name: str, *, subscribe: tuple[str, ...] | None = None) -> Connection:
        """A connection of a new user of *account*."""
        creds = self.creds(account, name, subscribe=subscribe)
        connection = await Connection.open(self.server.url, name=name, creds=creds)
        self.connections.append(connection)
        return connection

    def creds(self, account: Nkey, name: str, *, subscribe: tuple[str, ...] | None = None) -> bytes:
        """The content of a creds file of a new user of *account*."""
        user = nkey("user")
        token = accounts.user_jwt(account, user.public, name, subscribe=subscribe, iat=self.iat)
        return accounts.creds_file(token, user.seed)

    async def push_tenant(self) -> None:
        """Push the tenant account with its exports."""
        token = accounts.account_jwt(
            self.operator,
            self.tenant_account.public,
            "acme",
            exports=accounts.TENANT_EXPORTS,
            jetstream=True,
            iat=self.iat,
        )
        await accounts_push.push(self.system, [token])

    async def grant(self, name: str, imports: list[Import]) -> list[str]:
        """Make the workload account *name* import exactly *imports* and what every workload has."""
        key = self.accounts.setdefault(name, nkey("account"))
        self.iat += 1
        imports = [*imports, *accounts.workload_imports(self.tenant_account.public, name)]
        token = accounts.account_jwt(self.operator, key.public, name, imports=imports, iat=self.iat)
        return await accounts_push.push(self.system, [token])

    async def push(self, tokens: list[str]) -> list[str]:
        """Push account JWTs as they are."""
        return await accounts_push.push(self.system, tokens)

    async def workload(self, name: str, imports: list[Import]) -> Connection:
        """Grant, and connect a user with a workload's permissions."""
        await self.grant(name, imports)
        return await self.connect(self.accounts[name], name, subscribe=accounts.workload_subscribe(name))

    async def apply(self, wanted: topology.Topology, *, force: bool = False) -> list[changes.Change]:
        """Plan and apply; the changes made."""
        plan = changes.plan(wanted, await manage.read_actual(self.tenant), force=force)
        return await manage.apply(self.tenant, plan)
