"""Taking trust away: from a key, from a mesh CA of before, or from a workload with all that it has."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import anyio

from mesh import audit
from mesh.control.reconcile import now_ms, team_workload
from mesh.control.trust_requests import cut_of
from mesh.errors import BadAttribute, BadSpiffeId, NotFound
from mesh.keys import SpiffeId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.control.accounts import Accounts
    from mesh.control.standing import Standing
    from mesh.control.trust import Authority
    from mesh.control.trust_requests import Asked, Policies
    from mesh.control.truststore import TrustStore


class Revoker:
    """Revokes in one tenant; a mesh CA in every tenant, since they share it.

    Args:
        policies, store: Of the tenant.
        stores: The trust stores of every tenant.
        standing, accounts: Of the tenant.
        authority: Of the mesh.
    """

    def __init__(  # noqa: PLR0917 - each of another type
        self,
        policies: Policies,
        store: TrustStore,
        stores: Callable[[], Iterable[TrustStore]],
        standing: Standing,
        accounts: Accounts,
        authority: Authority,
    ) -> None:
        self._policies = policies
        self._store = store
        self._stores = stores
        self._standing = standing
        self._accounts = accounts
        self._authority = authority

    async def revoke(self, asked: Asked) -> dict[str, Any]:
        """Refuse what a key seals from the cut on; or all keys of a workload, whose account is closed as well.

        Raises:
            BadAttribute: The request is none, or the cut lies where it cannot.
            NotFound: No such key or workload.
            ConfigError, RequestFailed, Unavailable: See `TrustStore.revoke`. The workload is barred all the same.
        """
        if sum(map(bool, (asked.kid, asked.agent, asked.team))) != 1:
            raise BadAttribute("say what is to be revoked", expected="one of a key, an agent, a team")
        began_ms = now_ms()
        cut_ms = cut_of(asked, began_ms)
        workload = "" if asked.kid else asked.agent or team_workload(asked.team)
        if asked.kid:
            kids = [asked.kid]
            for store in await self._holding(asked.kid, unknown=asked.unknown):
                await store.revoke({asked.kid: cut_ms})
            self._record(asked, "", kids, cut_ms)
        else:
            kids = await self._bar(asked, workload, cut_ms)
        return {
            "tenant": self._policies.tenant,
            "cut_ms": cut_ms,
            "keys": [{"kid": kid, "from_ms": self._store.revoked[kid]} for kid in kids],
            "barred": workload,
            "epoch": self._store.epoch,
            "took_ms": now_ms() - began_ms,
        }

    async def _bar(self, asked: Asked, workload: str, cut_ms: int) -> list[str]:
        """Bar a workload; returns the keys that were not revoked from as early a time before."""
        spiffe_id = self._agent(asked.agent) if asked.agent else self._team(asked.team)
        await anyio.to_thread.run_sync(self._standing.bar, workload)  # first: no key comes after those we see
        mine = [held.kid for held in self._store.present(now_ms()) if held.spiffe_id == spiffe_id]
        kids = [kid for kid in mine if self._store.revoked.get(kid, inf) > cut_ms]
        try:
            await self._store.revoke(dict.fromkeys(kids, cut_ms))
        finally:  # who is barred is recorded and cut off, whatever became of the statement
            self._record(asked, workload, kids, cut_ms)
            await self._accounts.refresh(workload)
        return kids

    def _record(self, asked: Asked, workload: str, kids: list[str], cut_ms: int) -> None:
        facts = {"workload": workload or None, "kids": kids, "from_ms": cut_ms, "epoch": self._store.epoch}
        self._policies.audit(audit.TRUST_REVOKED, **facts, **asked.said)

    async def _holding(self, kid: str, *, unknown: bool) -> list[TrustStore]:
        """The trust stores in which *kid* has to be revoked: ours, or every one where it is a mesh CA's."""
        if kid == self._authority.ca.kid:
            raise BadAttribute(
                "this is the mesh CA that signs today: revoked, it would certify nobody",
                expected="an event key, or an earlier mesh CA",
                got=kid,
                next="replace and revoke it in one: `mesh trust rotate --ca --revoke-old`",
            )
        if await self._store.certificate(kid) is not None:
            return [self._store]
        stores = [*self._stores()]
        issued = any(held.issuer_kid == kid for store in stores for held in store.present(now_ms()))
        if issued or unknown or kid in self._store.revoked:
            return stores
        raise no_key(kid)

    def _agent(self, agent: str) -> str:
        """Whose keys an agent's are; also of one that the policies do not name any more."""
        agents = self._policies.grants.agents
        if agent in agents:
            return agents[agent].spiffe_id
        try:
            former = SpiffeId.for_agent(self._authority.ca.trust_domain, self._policies.tenant, agent)
        except BadSpiffeId:
            former = None
        if former is not None and any(held.spiffe_id == former for held in self._store.present(now_ms())):
            return former
        raise NotFound(f"the policies know no agent {agent[:64]}", expected=", ".join(sorted(agents)), got=agent[:64])

    def _team(self, team: str) -> str:
        """No SPIFFE id: a team holds no event key. Raises NotFound where there is none of that name."""
        teams = self._policies.grants.teams
        if team not in teams:
            raise NotFound(f"the policies know no team {team[:64]}", expected=", ".join(sorted(teams)), got=team[:64])
        return ""


def no_key(kid: str) -> NotFound:
    """No certificate of ours is of this key, and none comes from it."""
    return NotFound(
        "there is no such key",
        got=kid,
        next="`mesh trust list --all` shows those there are; `revoke --unknown` takes a mesh CA of long ago",
    )
