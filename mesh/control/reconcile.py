"""Whom a mesh believes: the operator that signs accounts and credentials, and each tenant's trust store.

What the policies let workloads do is in `enforce.py`, and the policies themselves in `policies.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from mesh import logs
from mesh.control.nkeys import NkeyFiles
from mesh.errors import IdentityError
from mesh.identity import TrustStatement
from mesh.jetstream import accounts
from mesh.jetstream.store import KeyValue
from mesh.watch import NOTICE_SUBJECT, TRUST_BUCKET, TRUST_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mesh.control.trust import Authority
    from mesh.jetstream.connection import Connection

SYSTEM = "system"
TEAM_PREFIX = "team-"  # of a team's own account; no agent's name begins with it
CONTROL = "control"  # the control plane's user in each tenant account

log = logs.get("control")


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Operator:
    """The accounts of one mesh: who signs, and the credentials of everybody in it."""

    keys: NkeyFiles

    def server_identity(self) -> tuple[str, str, str]:
        """(operator JWT, system account's public key, system account's JWT) for the server's configuration."""
        operator, system = self.keys.get("operator", "operator"), self.keys.get("account", SYSTEM)
        iat = now_ms() // 1000
        return (
            accounts.operator_jwt(operator, "mesh", system_account=system.public, iat=iat),
            system.public,
            accounts.account_jwt(operator, system.public, SYSTEM, iat=iat),
        )

    def control_creds(self, account: str) -> bytes:
        """Credentials of the control plane in *account*: `system`, or a tenant."""
        return self._creds(account, f"{account}/{CONTROL}" if account != SYSTEM else SYSTEM, CONTROL, subscribe=None)

    def workload_creds(self, tenant: str, workload: str) -> bytes:
        """Credentials of an agent or a team."""
        name = f"{tenant}/{workload}"
        return self._creds(name, name, workload, subscribe=accounts.workload_subscribe(workload))

    def tenant_token(self, tenant: str) -> str:
        """The JWT of the account that holds a tenant's streams and exports its subjects."""
        owner = self.keys.get("account", tenant)
        return accounts.account_jwt(
            self.keys.get("operator", "operator"),
            owner.public,
            tenant,
            exports=accounts.TENANT_EXPORTS,
            jetstream=True,
            iat=now_ms() // 1000,
        )

    def workload_token(self, tenant: str, workload: str, imports: Iterable[accounts.Import]) -> str:
        """The JWT of the account of an agent or a team: *imports*, and what every workload takes."""
        name = f"{tenant}/{workload}"
        every = accounts.workload_imports(self.public(tenant), workload)
        return accounts.account_jwt(
            self.keys.get("operator", "operator"),
            self.keys.get("account", name).public,
            name,
            imports=[*every, *imports],
            iat=now_ms() // 1000,
        )

    def closed_token(self, tenant: str, workload: str) -> str:
        """The account of a workload that the policies no longer know: nobody connects, who is connected is cut off."""
        name = f"{tenant}/{workload}"
        operator, account = self.keys.get("operator", "operator"), self.keys.get("account", name)
        return accounts.account_jwt(operator, account.public, name, closed=True, iat=now_ms() // 1000)

    def public(self, account: str) -> str:
        """The public key of an account."""
        return self.keys.get("account", account).public

    def _creds(self, account: str, user: str, name: str, *, subscribe: tuple[str, ...] | None) -> bytes:
        key = self.keys.get("user", user)
        token = accounts.user_jwt(
            self.keys.get("account", account), key.public, name, subscribe=subscribe, iat=now_ms() // 1000
        )
        return accounts.creds_file(token, key.seed)


def team_workload(team: str) -> str:
    """The workload name of a team's own account: teams and agents may share a name."""
    return f"{TEAM_PREFIX}{team}"


class Reconciler:
    """Keeps what everybody in one tenant verifies by: certificates, the trust statement, and the notices of news."""

    def __init__(self, connection: Connection, authority: Authority) -> None:
        self._connection = connection
        self._authority = authority
        self._trust = KeyValue(connection, TRUST_BUCKET)
        self._epoch = 0

    async def certificates(self, held: Mapping[str, bytes]) -> None:
        """Publish certificates (DER) by key id, where they are not there yet."""
        for kid, der in held.items():
            entry = await self._trust.get(f"cert.{kid}")
            if entry is None or entry.value != der:
                await self._trust.put(f"cert.{kid}", der)

    async def statement(self) -> None:
        """Issue the trust statement again, with the next epoch."""
        if not self._epoch:
            self._epoch = await self._last_epoch()
        self._epoch += 1
        await self._trust.put(TRUST_KEY, self._authority.statement(epoch=self._epoch, now_ms=now_ms()))
        await notice(self._connection, "trust", self._epoch)

    async def _last_epoch(self) -> int:
        entry = await self._trust.get(TRUST_KEY)
        if entry is None:
            return 0
        try:
            return TrustStatement.open(entry.value, self._authority.trust_public).epoch
        except IdentityError as error:
            log.error("trust_statement_replaced", code=error.code)  # ours is the only trust key: what is there is not
            return 0


async def notice(connection: Connection, what: str, number: int) -> None:
    """Tell everybody in the tenant to look again."""
    await connection.publish(NOTICE_SUBJECT, msgspec.json.encode({"kind": what, "revision": number}))
