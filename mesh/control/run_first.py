"""Whether a replica that finds no state may make a mesh: not where the servers have one already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.control.cluster import ask_each, present
from mesh.control.reconcile import SYSTEM
from mesh.control.vault_files import CONTROL_ACCOUNT
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from mesh.control.reconcile import Operator
    from mesh.jetstream.connection import Connection

ANSWER_S = 5.0  # of all servers; it takes milliseconds


async def require_new(system: Connection, operator: Operator) -> None:
    """Nothing, where the servers know no account but our own two: a mesh may begin.

    Args:
        system: A connection of the system account.
        operator: Has the keys of the two.

    Raises:
        ConfigError: They know others: those of a mesh whose state was lost. Another one in its place would make other
            keys for everybody, and know nobody who is barred.
        Unavailable: A server does not answer.
    """
    servers = await present(system)
    lists = await ask_each(system, "$SYS.REQ.CLAIMS.LIST", {}, servers=len(servers), timeout_s=ANSWER_S)
    known = {account for answer in lists for account in answer["data"] or ()}
    others = known - {operator.public(SYSTEM), operator.public(CONTROL_ACCOUNT)}
    if others:
        raise ConfigError(
            "the servers have a mesh already, and neither they nor this directory have its state",
            expected="the state in the bucket, or a data directory that has a copy of it",
            got=f"{len(others)} accounts of workloads and tenants",
            next="start the replica with the highest number in admin/state.generation first: it puts its copy back;"
            " for a mesh that is new, empty the servers' resolver directories and stores",
        )
