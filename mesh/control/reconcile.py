"""From policies to a running tenant: accounts, streams, durables, trust, bundle. What is already so is left alone.

The order of a change takes rights away first and hands the bundle out last: accounts, then streams and durables (a
filter added after an event would skip it), then trust, then the bundle, then the notice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from mesh import logs
from mesh.control.accounts_push import push
from mesh.control.nkeys import NkeyFiles
from mesh.errors import IdentityError
from mesh.identity import TrustStatement
from mesh.jetstream import accounts
from mesh.jetstream.changes import plan
from mesh.jetstream.manage import apply, read_actual
from mesh.jetstream.store import KeyValue
from mesh.jetstream.topology import desired
from mesh.policy.bundle import Bundle
from mesh.watch import BUNDLE_KEY, NOTICE_SUBJECT, POLICY_BUCKET, TRUST_BUCKET, TRUST_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.control.trust import Authority
    from mesh.jetstream.connection import Connection
    from mesh.policy.grants import Grants

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

    def tokens(self, tenant: str, site: str, grants: Grants) -> list[str]:
        """The account JWTs of one tenant: its own, and one for each agent and each team."""
        operator, owner = self.keys.get("operator", "operator"), self.keys.get("account", tenant)
        iat = now_ms() // 1000
        own = accounts.account_jwt(
            operator, owner.public, tenant, exports=accounts.TENANT_EXPORTS, jetstream=True, iat=iat
        )
        found = [own]
        for agent, held in grants.agents.items():
            imports = accounts.publish_imports(owner.public, site, held.publish)
            found.append(self._workload_token(owner.public, tenant, agent, imports, iat))
        for team in grants.teams:
            mine = [grant for grant in grants.active if grant.team == team]
            imports = accounts.subscription_imports(owner.public, site, grants.domains, mine)
            found.append(self._workload_token(owner.public, tenant, team_workload(team), imports, iat))
        current = {*grants.agents, *(team_workload(team) for team in grants.teams)}
        gone = [name for name in self.keys.accounts(tenant) if name not in current]
        return found + [self._closed_token(f"{tenant}/{name}", iat) for name in gone]

    def _closed_token(self, name: str, iat: int) -> str:
        """The account of a workload that the policies no longer know: nobody connects, who is connected is cut off."""
        operator, account = self.keys.get("operator", "operator"), self.keys.get("account", name)
        return accounts.account_jwt(operator, account.public, name, closed=True, iat=iat)

    def _workload_token(self, owner: str, tenant: str, workload: str, imports: list[accounts.Import], iat: int) -> str:
        name = f"{tenant}/{workload}"
        return accounts.account_jwt(
            self.keys.get("operator", "operator"),
            self.keys.get("account", name).public,
            name,
            imports=[*accounts.workload_imports(owner, workload), *imports],
            iat=iat,
        )

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
    """Brings one tenant to what its policies say."""

    def __init__(self, connection: Connection, authority: Authority) -> None:
        self._connection = connection
        self._authority = authority
        self._trust = KeyValue(connection, TRUST_BUCKET)
        self._policy = KeyValue(connection, POLICY_BUCKET)
        self._epoch = 0

    async def streams(self, site: str, grants: Grants) -> None:
        """Make the streams and durables; what would lose data is logged and left."""
        target = desired(site, grants.domains, grants.active)
        changes = plan(target, await read_actual(self._connection))
        for change in changes:
            log.info("topology_change", change=change.text, refused=change.refused)
        await apply(self._connection, changes)

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
        await self.notice("trust", self._epoch)

    async def bundle(self, candidate: Bundle) -> Bundle:
        """Hand *candidate* out unless the bundle in force says the same; returns the one in force."""
        entry = await self._policy.get(BUNDLE_KEY)
        if entry is not None:
            current = Bundle.decode(entry.value)
            if current.policies == candidate.policies and current.trust_domain == candidate.trust_domain:
                return current
            candidate = replace(candidate, revision=current.revision + 1, previous=current.digest)
        await self._policy.put(BUNDLE_KEY, candidate.encode(), entry.revision if entry else 0)
        await self.notice("bundle", candidate.revision)
        log.info("bundle_handed_out", tenant=candidate.tenant, revision=candidate.revision)
        return candidate

    async def notice(self, what: str, number: int) -> None:
        """Tell everybody to look again."""
        await self._connection.publish(NOTICE_SUBJECT, msgspec.json.encode({"kind": what, "revision": number}))

    async def _last_epoch(self) -> int:
        entry = await self._trust.get(TRUST_KEY)
        if entry is None:
            return 0
        try:
            return TrustStatement.open(entry.value, self._authority.trust_public).epoch
        except IdentityError as error:
            log.error("trust_statement_replaced", code=error.code)  # ours is the only trust key: what is there is not
            return 0


async def push_accounts(system: Connection, operator: Operator, tenant: str, site: str, grants: Grants) -> None:
    """Make the server's accounts of *tenant* be what *grants* say."""
    pushed = await push(system, operator.tokens(tenant, site, grants))
    log.info("accounts_pushed", tenant=tenant, changed=len(pushed))
