"""What the servers of a mesh say about themselves: the account JWTs that each holds, and who is connected to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from mesh.control.accounts_push import AT_ONCE, lookup
from mesh.control.cluster import ask_each, present

if TYPE_CHECKING:
    from mesh.jetstream.connection import Connection

ANSWER_S = 5.0  # for each server; it takes milliseconds
CONNECTIONS = 256  # asked for at a time: with their JWTs 300 KB


@dataclass(frozen=True, slots=True)
class Live:
    """All of it, at one time.

    Attributes:
        servers: The `varz` of each.
        tokens: By public key of an account, the JWT of each server that has one.
        connections: Of clients, as in `connz`: `account`, `authorized_user`, `jwt`, `ip`, `tls_version`.
    """

    servers: list[dict[str, Any]]
    tokens: dict[str, list[str]]
    connections: list[dict[str, Any]]


async def read_live(system: Connection) -> Live:
    """Ask every server, through a user of the system account.

    Raises:
        Unavailable: One did not answer: half of it would look like all.
    """
    servers = await present(system)
    varz = await ask_each(system, "$SYS.REQ.SERVER.PING.VARZ", {}, servers=len(servers), timeout_s=ANSWER_S)
    lists = await ask_each(system, "$SYS.REQ.CLAIMS.LIST", {}, servers=len(servers), timeout_s=ANSWER_S)
    tokens: dict[str, list[str]] = {account: [] for answer in lists for account in answer["data"] or ()}
    gate = anyio.CapacityLimiter(AT_ONCE)

    async def look(account: str) -> None:
        async with gate:
            tokens[account] = await lookup(system, account, servers=len(servers))

    async with anyio.create_task_group() as group:
        for account in tokens:
            group.start_soon(look, account)
    connections = [one for server in servers for one in await _connections(system, server)]
    return Live([answer["data"] for answer in varz], tokens, connections)


async def _connections(system: Connection, server: str) -> list[dict[str, Any]]:
    """Those of one server, with the JWTs of their users."""
    found: list[dict[str, Any]] = []
    while True:
        asked = {"auth": True, "limit": CONNECTIONS, "offset": len(found)}
        subject = f"$SYS.REQ.SERVER.{server}.CONNZ"
        (answer,) = await ask_each(system, subject, asked, servers=1, timeout_s=ANSWER_S)
        page = answer["data"].get("connections") or []
        found += page
        if not page or len(found) >= answer["data"]["total"]:
            return found
