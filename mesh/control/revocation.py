"""Taking trust away: from a key, from a mesh CA of before, or from a workload with all that it has."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

import anyio

from mesh import audit, logs
from mesh.control.reconcile import now_ms, team_workload
from mesh.control.trust_requests import cut_of
from mesh.errors import BadAttribute, BadSpiffeId, MeshError, NotFound
from mesh.keys import SpiffeId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mesh.control.accounts import Accounts
    from mesh.control.standing import Standing
    from mesh.control.trust import Authority
    from mesh.control.trust_requests import Asked, Policies
    from mesh.control.truststore import TrustStore
    from mesh.keys import Certificate

log = logs.get("trust")


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
        cut_ms = cut_of(asked, began_ms, offset_ms=self._store.offset_ms)
        workload = "" if asked.kid else asked.agent or team_workload(asked.team)
        if asked.kid:
            kids = [asked.kid]
            stores = await self._holding(asked.kid, unknown=asked.unknown)
            try:
                await revoke_in_all(stores, {asked.kid: cut_ms})
            finally:  # one store may have it where another does not answer
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
        past = asked.from_ms is not None
        ids = await self._agent(asked.agent, past=past) if asked.agent else self._team(asked.team)
        await anyio.to_thread.run_sync(self._standing.bar, workload)  # first: no key comes after those we see
        kids: list[str] = []
        try:
            try:
                await self._accounts.keep()  # a leader after us finds it, whatever became of us
            finally:
                known = self._store.present(cut_ms)  # without the broker
                await self._refuse(known, ids, cut_ms, kids)
            if past:
                await self._refuse(await self._store.certificates(), ids, cut_ms, kids)
        finally:  # who is barred is recorded and cut off, whatever became of the statement
            self._record(asked, workload, kids, cut_ms)
            await self._accounts.refresh(workload)
        return kids

    async def _refuse(self, held: Iterable[Certificate], ids: frozenset[str], cut_ms: int, told: list[str]) -> None:
        """Revoke the keys among *held* that are of *ids* and may have sealed something since the cut.

        One whose certificate ended since is among them: what it sealed before that is still judged by it.

        Args:
            held: Certificates of anybody.
            ids: SPIFFE ids.
            cut_ms: Unix milliseconds.
            told: Gets the keys that were not revoked from as early a time before.
        """
        mine = [one.kid for one in held if one.spiffe_id in ids and one.not_after_ms >= cut_ms]
        kids = [kid for kid in mine if self._store.revoked.get(kid, inf) > cut_ms]
        told += kids
        await self._store.revoke(dict.fromkeys(kids, cut_ms))

    def _record(self, asked: Asked, workload: str, kids: list[str], cut_ms: int) -> None:
        """With the cut that holds: a key that was revoked from an earlier time stays so."""
        from_ms = min((self._store.revoked.get(kid, cut_ms) for kid in kids), default=None)
        facts = {"workload": workload or None, "kids": kids, "from_ms": from_ms, "epoch": self._store.epoch}
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

    async def _agent(self, agent: str, *, past: bool) -> frozenset[str]:
        """Whose keys an agent's are: the SPIFFE id it has, and the usual one, unless that is another agent's today.

        Also of an agent that the policies do not name any more; *past*: one whose certificates have all ended, too.
        """
        agents = self._policies.grants.agents
        ids = {agents[agent].spiffe_id} if agent in agents else set()
        with suppress(BadSpiffeId):  # what is no agent's name has none
            ids.add(SpiffeId.for_agent(self._authority.ca.trust_domain, self._policies.tenant, agent))
        ids -= {other.spiffe_id for name, other in agents.items() if name != agent}
        if agent not in agents:
            held = await self._store.certificates() if past else self._store.present(now_ms())
            if not any(one.spiffe_id in ids for one in held):
                known = ", ".join(sorted(agents))
                raise NotFound(f"the policies know no agent {agent[:64]}", expected=known, got=agent[:64])
        return frozenset(ids)

    def _team(self, team: str) -> frozenset[str]:
        """No SPIFFE id: a team holds no event key. Raises NotFound where there is none of that name."""
        teams = self._policies.grants.teams
        if team not in teams:
            raise NotFound(f"the policies know no team {team[:64]}", expected=", ".join(sorted(teams)), got=team[:64])
        return frozenset()


async def revoke_in_all(stores: Iterable[TrustStore], kids: Mapping[str, int]) -> None:
    """Revoke *kids* in every one of *stores*: one that fails keeps none of the others from it.

    Raises:
        MeshError: Of the first that failed; see `TrustStore.revoke`. Each failure is in the log.
    """
    failed: list[MeshError] = []
    for store in tuple(stores):
        try:
            await store.revoke(kids)
        except MeshError as error:
            log.error("revocation_failed", tenant=store.tenant, code=error.code, error=error.message)
            failed.append(error)
    if failed:
        raise failed[0]


def no_key(kid: str) -> NotFound:
    """No certificate of ours is of this key, and none comes from it."""
    return NotFound(
        "there is no such key",
        got=kid,
        next="`mesh trust list --all` shows those there are; `revoke --unknown` takes a mesh CA of long ago",
    )
