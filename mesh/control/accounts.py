"""One tenant's NATS accounts as the servers have them. What did not change costs nothing: no look-up, no signature.

A workload's account is what its grants and its standing make it: its imports, none where it is barred, and the users
whose credentials were replaced. `run` says it all again to a server that comes back with old files.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.control import cluster
from mesh.control.accounts_push import push_to
from mesh.control.reconcile import now_ms
from mesh.errors import Disconnected, MeshError
from mesh.jetstream.accounts import TENANT_EXPORTS, Account
from mesh.jetstream.imports import workload_imports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from mesh.control.reconcile import Operator
    from mesh.control.standing import Standing
    from mesh.jetstream.accounts import Import
    from mesh.jetstream.connection import Connection

LOOK_S = 10.0  # no longer between two looks at who is there: a message that a server is new can be lost
RETRY_S = 1.0  # after a server that came back did not take everything

log = logs.get("control")


class Accounts:
    """The accounts of one tenant: its own, and one for each agent and each team.

    Args:
        system: A connection of the system account.
        operator: Signs.
        tenant: Whose accounts.
        standing: Who is barred, and which users are revoked; nobody unless given.
        term: Of the leader, where several control planes may lead: see `accounts_push`.
        save: Puts who is barred where the next leader finds it; None where there is only one control plane.
    """

    def __init__(
        self,
        system: Connection,
        operator: Operator,
        tenant: str,
        standing: Standing | None = None,
        *,
        term: int = 0,
        save: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._term = term
        self._save = save
        self._system = system
        self._operator = operator
        self._standing = standing
        self._signer = operator.keys.get("operator", "operator")
        self._lock = anyio.Lock()
        self.tenant = tenant
        self.owner = operator.public(tenant)
        self._held: dict[str, frozenset[Import]] = {}
        self._unsure: set[str] = set()  # whose push was not confirmed
        self._closed: set[str] = set()
        self._said: dict[str, Account] = {}  # by public key: as it was pushed last
        self._told: set[str] = set()  # ids of the servers that have everything
        self._news = anyio.Event()

    def held(self, workload: str) -> frozenset[Import] | None:
        """What *workload* may do beyond what every workload may; None where we have not said it yet."""
        return None if workload in self._unsure else self._held.get(workload)

    def wanted(self, workload: str, imports: Iterable[Import] | None) -> Account:
        """The account of *workload* as it has to be.

        Args:
            workload: An agent, or `team-<team>`.
            imports: What the policies give it beyond what every workload has; None where they do not know it.
        """
        name = f"{self.tenant}/{workload}"
        bare = Account(self._operator.public(name), name)
        barred = self._standing is not None and workload in self._standing.barred
        if imports is None or barred:
            return replace(bare, closed=True)
        users = {} if self._standing is None else self._standing.users.get(workload, {})
        every = workload_imports(self.owner, workload)
        return replace(bare, imports=frozenset((*every, *imports)), revocations=dict(users))

    def wanted_tenant(self) -> Account:
        """The account that holds the streams, as it has to be."""
        return Account(self.owner, self.tenant, exports=TENANT_EXPORTS, jetstream=True)

    async def open(self) -> None:
        """Make the account that holds the streams. It comes before all that import from it.

        Raises:
            RequestFailed, Unavailable: See `push_to`.
        """
        async with self._lock:
            await self._push([self.wanted_tenant()])

    async def set(self, wanted: Mapping[str, Iterable[Import]]) -> int:
        """Make these workloads' accounts import exactly this; others stay as they are. Returns how many changed.

        Raises:
            TooLarge: An account is over what a server takes; nothing was pushed.
            RequestFailed, Unavailable: See `push_to`; the next call tries those again that it concerns.
        """
        async with self._lock:
            given = {name: frozenset(imports) for name, imports in wanted.items()}
            changed = {name: imports for name, imports in given.items() if imports != self.held(name)}
            accounts = [self.wanted(name, imports) for name, imports in changed.items()]
            self._held.update(changed)
            self._unsure.update(changed)  # until the servers confirm, nobody knows
            pushed = await self._push(accounts)
            self._unsure.difference_update(changed)
            self._closed.difference_update(changed)
        if pushed:
            log.info("accounts_pushed", tenant=self.tenant, changed=pushed)
        return pushed

    async def keep(self) -> None:
        """Have who is barred, and whose user is revoked, where the next leader finds it: before any of it goes out.

        Raises:
            RequestFailed, Unavailable: The next leader could not find it.
        """
        if self._save is not None:
            await self._save()

    async def refresh(self, workload: str) -> bool:
        """Bring one account to what the workload's standing has become: barred, admitted, with a user revoked.

        It is kept first (see `keep`). Where that fails the account is brought to it all the same.

        Returns:
            Whether it changed. A workload that the policies do not know is closed, and stays so.

        Raises:
            RequestFailed, Unavailable: See `push_to` and `keep`.
        """
        try:
            await self.keep()
        finally:
            changed = await self._refresh(workload)
        return changed

    async def _refresh(self, workload: str) -> bool:
        async with self._lock:
            if workload not in self._held and workload not in self._operator.keys.accounts(self.tenant):
                return False
            return bool(await self._push([self.wanted(workload, self._held.get(workload))]))

    async def close_all_but(self, names: Iterable[str]) -> list[str]:
        """Close the account of every other workload that ever had one; returns those that were still open.

        Raises:
            RequestFailed, Unavailable: See `push_to`.
        """
        async with self._lock:
            kept = set(names)
            gone = [n for n in self._operator.keys.accounts(self.tenant) if n not in kept and n not in self._closed]
            await self._push([self.wanted(name, None) for name in gone])
            for name in gone:
                self._held.pop(name, None)
            self._unsure.difference_update(gone)
            self._closed.update(gone)
            return gone

    # --- pushing -----------------------------------------------------------------------------------------------------

    async def _push(self, accounts: list[Account]) -> int:
        """Make every server that answers have *accounts* so; returns how many were not."""
        if not accounts:
            return 0
        tokens = self._tokens(accounts)
        servers = await cluster.present(self._system)
        told = self._told & set(servers) if self._said else set(servers)
        self._told = set()  # whoever does not confirm is told everything later, and so is who does not answer now
        self._said.update({account.public: account for account in accounts})
        pushed = await push_to(self._system, tokens, servers, resign=self._resign)
        self._told = told & pushed.servers
        return len(pushed.accounts)

    def _tokens(self, accounts: Iterable[Account]) -> list[str]:
        iat = now_ms() // 1000
        return [replace(account, term=self._term).token(self._signer, iat=iat) for account in accounts]

    def _resign(self, public: str, at_least_s: int) -> str:
        return replace(self._said[public], term=self._term).token(self._signer, iat=at_least_s)

    # --- servers that come back --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring every server that is new, or back, to what all the others have; until cancelled."""
        listener = self._system.listen(cluster.STATISTICS, lambda subject, *_: self._heard(subject))
        forget = self._system.on_connect(self._wake)
        try:
            while True:
                self._news = anyio.Event()
                try:
                    with suppress(Disconnected):  # the next link wakes us
                        await self._repeat()
                except MeshError as error:
                    log.warning("accounts_not_repeated", tenant=self.tenant, code=error.code, error=str(error))
                    await anyio.sleep(RETRY_S)
                    continue
                with anyio.move_on_after(LOOK_S):
                    await self._news.wait()
        finally:
            forget()
            listener.close()

    def _heard(self, subject: str) -> None:
        if subject.split(".")[2] not in self._told:
            self._wake()

    def _wake(self) -> None:
        self._news.set()

    async def _repeat(self) -> None:
        async with self._lock:
            servers = await cluster.present(self._system)
            new = {name for key, name in servers.items() if key not in self._told}
            if not new:
                return
            tokens = self._tokens(self._said.values())
            pushed = await push_to(self._system, tokens, servers, resign=self._resign)
            self._told = set(pushed.servers)
        if pushed.accounts:
            log.info("accounts_repeated", tenant=self.tenant, servers=sorted(new), changed=len(pushed.accounts))
