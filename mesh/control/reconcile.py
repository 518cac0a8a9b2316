"""What the parts of a control plane share: the operator that signs accounts and credentials, the clock, the notices.

What the policies let workloads do is in `enforce.py`, and the policies themselves in `policies.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from mesh.control.nkeys import NkeyFiles
from mesh.jetstream import accounts
from mesh.watch import NOTICE_SUBJECT

if TYPE_CHECKING:
    from mesh.jetstream.connection import Connection

SYSTEM = "system"
TEAM_PREFIX = "team-"  # of a team's own account; no agent's name begins with it
CONTROL = "control"  # the control plane's user in each tenant account


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


async def notice(connection: Connection, what: str, number: int) -> None:
    """Tell everybody in the tenant to look again."""
    await connection.publish(NOTICE_SUBJECT, msgspec.json.encode({"kind": what, "revision": number}))
