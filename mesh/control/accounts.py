"""One tenant's NATS accounts as the servers have them. What did not change costs nothing: no look-up, no signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh import logs
from mesh.control.accounts_push import push

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mesh.control.reconcile import Operator
    from mesh.jetstream.accounts import Import
    from mesh.jetstream.connection import Connection

log = logs.get("control")


class Accounts:
    """The accounts of one tenant: its own, and one for each agent and each team.

    Args:
        system: A connection of the system account.
        operator: Signs.
        tenant: Whose accounts.
    """

    def __init__(self, system: Connection, operator: Operator, tenant: str) -> None:
        self._system = system
        self._operator = operator
        self.tenant = tenant
        self.owner = operator.public(tenant)
        self._held: dict[str, frozenset[Import]] = {}
        self._closed: set[str] = set()

    def held(self, workload: str) -> frozenset[Import] | None:
        """What *workload* may do beyond what every workload may; None where we have not said it yet."""
        return self._held.get(workload)

    async def open(self) -> None:
        """Make the account that holds the streams. It comes before all that import from it.

        Raises:
            RequestFailed, Unavailable: See `push`.
        """
        await push(self._system, [self._operator.tenant_token(self.tenant)])

    async def set(self, wanted: Mapping[str, Iterable[Import]]) -> int:
        """Make these workloads' accounts import exactly this; others stay as they are. Returns how many changed.

        Raises:
            RequestFailed, Unavailable: See `push`; the next call tries those again that it concerns.
        """
        changed = {name: taken for name, imports in wanted.items() if (taken := frozenset(imports)) != self.held(name)}
        known = [name for name in changed if name in self._held]
        unknown = [name for name in changed if name not in self._held]
        pushed = 0
        for names, again in ((known, True), (unknown, False)):
            tokens = [self._operator.workload_token(self.tenant, name, changed[name]) for name in names]
            for name in names:
                self._held.pop(name, None)  # until the servers confirm, nobody knows
            pushed += len(await push(self._system, tokens, again=again))
            self._held.update({name: changed[name] for name in names})
            self._closed.difference_update(names)
        if pushed:
            log.info("accounts_pushed", tenant=self.tenant, changed=pushed)
        return pushed

    async def close_all_but(self, names: Iterable[str]) -> list[str]:
        """Close the account of every other workload that ever had one; returns those that were still open.

        Raises:
            RequestFailed, Unavailable: See `push`.
        """
        kept = set(names)
        gone = [n for n in self._operator.keys.accounts(self.tenant) if n not in kept and n not in self._closed]
        await push(self._system, [self._operator.closed_token(self.tenant, name) for name in gone])
        for name in gone:
            self._held.pop(name, None)
        self._closed.update(gone)
        return gone
