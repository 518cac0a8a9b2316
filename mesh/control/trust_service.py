"""Revoking, replacing and admitting again, as the control plane's door is asked: `ctl.trust.<verb>`.

    list, show   which keys there are, what everybody verifies by
    revoke       a key or an intermediate; or all that a workload has, which is then barred
    issue        a certificate for a key that an operator made, and keeps in files
    rotate       other event keys, NATS users, another mesh CA, another key of the server's store
    admit        a barred workload comes back, with credentials of its own anew

A cut lies a moment ahead unless somebody wants it otherwise: the signed statement is out before it, so nobody accepts
what is stored from the cut on, and an honest agent has another key by then, so nothing of it is lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import anyio

from mesh import audit
from mesh.control import rotation, trust_listing
from mesh.control.door import Told
from mesh.control.issuing import Issuer, IssueService
from mesh.control.reconcile import now_ms, team_workload
from mesh.control.revocation import Revoker, no_key, revoke_in_all
from mesh.control.store_rotation import StoreRotation
from mesh.control.trust_requests import Asked, Policies, reading
from mesh.errors import BadAttribute

if TYPE_CHECKING:
    from mesh.control.accounts import Accounts
    from mesh.control.door import Handler
    from mesh.control.renewal import Renewal
    from mesh.control.rotation import Wanted
    from mesh.control.standing import Standing
    from mesh.control.trust import Authority
    from mesh.control.truststore import TrustStore
    from mesh.keys import Certificate


def handlers(
    policies: Policies,
    *,
    store: TrustStore,
    standing: Standing,
    accounts: Accounts,
    authority: Authority,
    renewal: Renewal,
    stores: Callable[[], Iterable[TrustStore]] | None = None,
    renew_store: Callable[[], Awaitable[None]] | None = None,
    overlap_s: float = 0.0,
) -> dict[str, Handler]:
    """What the door answers, by verb. Make them once: they know what is under way.

    Args:
        policies: Of the tenant.
        store: Its trust store.
        standing: Its barred workloads and revoked users.
        accounts: Its NATS accounts.
        authority: Of the mesh.
        renewal: Makes the tenant's credentials anew.
        stores: The trust stores of every tenant: they share the mesh CA. This tenant's alone unless given.
        renew_store: Gives the server's store another encryption key; None where it is not encrypted.
        overlap_s: How long a NATS user that is replaced is good beside the new one, unless a request says.
    """
    every = stores or (lambda: (store,))
    service = TrustService(
        policies,
        store,
        standing,
        accounts,
        authority,
        renewal=renewal,
        stores=every,
        renew_store=renew_store,
        overlap_s=overlap_s,
    )
    verbs = {
        "list": service.listed,
        "show": service.shown,
        "revoke": Revoker(policies, store, every, standing, accounts, authority).revoke,
        "issue": IssueService(policies, Issuer(authority, store, standing)).issue,
        "rotate": service.rotate,
        "store-status": service.store_status,
        "admit": service.admit,
    }
    return {verb: reading(handle) for verb, handle in verbs.items()}


class TrustService:
    """Looking, replacing and admitting, of one tenant. See `handlers`, which makes it."""

    def __init__(
        self,
        policies: Policies,
        store: TrustStore,
        standing: Standing,
        accounts: Accounts,
        authority: Authority,
        *,
        renewal: Renewal,
        stores: Callable[[], Iterable[TrustStore]],
        renew_store: Callable[[], Awaitable[None]] | None,
        overlap_s: float,
    ) -> None:
        self._policies = policies
        self._store = store
        self._standing = standing
        self._accounts = accounts
        self._authority = authority
        self._renewal = renewal
        self._stores = stores
        self._overlap_s = overlap_s
        self._listed: list[dict[str, Any]] = []  # what was listed last: its later pages are not read again
        self._store_key = StoreRotation(policies.connection, renew_store)

    # --- looking -----------------------------------------------------------------------------------------------------

    async def listed(self, asked: Asked) -> dict[str, Any]:
        """Event keys that have not ended and revoked mesh CAs behind them; with `ended` all there are and were.

        Returns:
            With as many `keys` as fit; `total` says how many there are, and `skip` asks for those that follow.
        """
        if asked.skip == 0 or asked.skip > len(self._listed):
            self._listed = await self._rows(ended=asked.ended)
        return {
            "tenant": self._policies.tenant,
            "statement": trust_listing.statement_of(self._store),
            "ca": trust_listing.ca_of(self._authority),
            "keys": trust_listing.first_of(self._listed[asked.skip :]),
            "total": len(self._listed),
            **trust_listing.standing_of(self._standing),
        }

    async def _rows(self, *, ended: bool) -> list[dict[str, Any]]:
        at_ms = now_ms()
        held = await self._store.certificates() if ended else self._store.present(at_ms)
        known, issuers = {one.kid for one in held}, {one.issuer_kid for one in held}
        others = [
            trust_listing.other_of(kid, from_ms, at_ms)
            for kid, from_ms in self._store.revoked.items()
            if kid not in known and (ended or kid in issuers)
        ]
        rows = [*self._keys(held, at_ms), *others]
        return sorted(rows, key=lambda key: (key["agent"], key["spiffe_id"], key["not_before_ms"] or 0, key["kid"]))

    async def shown(self, asked: Asked) -> dict[str, Any]:
        """One key with its certificate; without a key id what everybody verifies by.

        Raises:
            NotFound: No such key.
        """
        if not asked.kid:
            return {
                "tenant": self._policies.tenant,
                **trust_listing.anchors(self._authority),
                "statement": trust_listing.statement_of(self._store),
            }
        certificate = await self._store.certificate(asked.kid)
        if certificate is None:
            raise no_key(asked.kid)
        return {
            "tenant": self._policies.tenant,
            **self._keys([certificate], now_ms())[0],
            "chain": trust_listing.chain_of(certificate),
        }

    def _keys(self, certificates: Iterable[Certificate], at_ms: int) -> list[dict[str, Any]]:
        agents = {agent.spiffe_id: name for name, agent in self._policies.grants.agents.items()}
        return [trust_listing.key_of(one, agents, self._store.revoked, at_ms) for one in certificates]

    # --- replacing ---------------------------------------------------------------------------------------------------

    async def rotate(self, asked: Asked) -> dict[str, Any]:
        """Replace what is asked for, wait until the agents have other keys, and say who has not.

        With `store` true the server restarts after the answer, and `store-status` says how that ended.

        Raises:
            BadAttribute: The request asks for nothing, or for what does not go together.
            NotFound: No such agent or team.
            ConfigError: There is no root key to make a mesh CA with, or no encryption to make a key for.
            WorkloadBarred: An agent that is named gets no key.
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        began_ms = now_ms()
        told = Told(self._policies.connection, asked.progress)
        wanted = rotation.Wanted.of(asked, self._policies.grants, self._standing.barred)
        overlap_s = self._overlap_s if asked.overlap_s is None else asked.overlap_s
        if not 0.0 <= overlap_s <= rotation.MAX_OVERLAP_S:
            raise BadAttribute("that is no overlap", expected=f"0 to {rotation.MAX_OVERLAP_S:.0f} seconds")
        if wanted.store:
            self._store_key.check()
        done: dict[str, Any] = {"agents": [], "cut_ms": None, "ca": None, "credentials": [], "store": False}
        done["revoked_cas"], done["overlap_s"] = [], overlap_s if wanted.workloads else 0.0
        done["skipped"] = list(wanted.skipped)
        try:
            await self._rotate_keys(wanted, told, done)
            await self._rotate_rest(asked, wanted, told, done)
        finally:
            self._record(asked, done)
        return {
            "tenant": self._policies.tenant,
            **done,
            "epoch": self._store.epoch,
            "took_ms": now_ms() - began_ms,
        }

    async def _rotate_keys(self, wanted: Wanted, told: Told, done: dict[str, Any]) -> None:
        old = self._authority.ca.kid
        if wanted.ca:
            told("ca")
            await anyio.to_thread.run_sync(lambda: self._authority.renew_ca(now_ms(), force=True))
            done["ca"] = {"old": old, "new": self._authority.ca.kid, "old_revoked": wanted.revoke_old}
        if not (wanted.agents or wanted.revoke_old):
            return
        told("keys")
        done["cut_ms"] = cut_ms = now_ms() + self._store.offset_ms + rotation.LEAD_MS
        if wanted.revoke_old:
            done["revoked_cas"] = self._cas_before(old)
            await revoke_in_all(self._stores(), dict.fromkeys(done["revoked_cas"], cut_ms))
        rotating = rotation.Rotation(self._policies.connection, self._store, wanted.agents)
        await rotating.revoke(cut_ms, done["revoked_cas"])
        told("agents")
        done["agents"] = await rotating.wait()

    def _cas_before(self, old: str) -> list[str]:
        """*old*, and every other mesh CA but today's that certified a key which has not ended, in any tenant.

        There are others after a rotation that was cut short, or that left its mesh CA good.
        """
        at_ms = now_ms()
        issuers = {held.issuer_kid for store in self._stores() for held in store.present(at_ms)}
        return sorted((issuers | {old}) - {self._authority.ca.kid})

    async def _rotate_rest(self, asked: Asked, wanted: Wanted, told: Told, done: dict[str, Any]) -> None:
        if wanted.workloads:
            told("credentials")
        for workload in wanted.workloads:
            await anyio.to_thread.run_sync(self._renewal.user, workload, done["overlap_s"])
            done["credentials"].append(workload)
            await self._accounts.refresh(workload)
        if wanted.store:
            told("store")
            self._store_key.begin(lambda: self._policies.audit(audit.TRUST_ROTATED, store=True, **asked.said))
            done["store"] = True

    async def store_status(self, _asked: Asked) -> dict[str, Any]:
        """What became of the last rotation of the store's key: `none`, `running`, `done` or `failed`."""
        return self._store_key.status()

    def _record(self, asked: Asked, done: dict[str, Any]) -> None:
        """What was done, also before a failure. That the store has another key is recorded when it has."""
        facts = {
            "agents": [one["agent"] for one in done["agents"]] or None,
            "late": [one["agent"] for one in done["agents"] if one["state"] == "late"] or None,
            "from_ms": done["cut_ms"],
            "ca": done["ca"] and done["ca"]["new"],
            "revoked_cas": done["revoked_cas"] or None,
            "credentials": done["credentials"] or None,
        }
        if any(facts.values()):
            self._policies.audit(audit.TRUST_ROTATED, **facts, **asked.said)

    # --- coming back -------------------------------------------------------------------------------------------------

    async def admit(self, asked: Asked) -> dict[str, Any]:
        """Let a barred workload back, with a new NATS user and a new enrolment token. Its revoked keys stay revoked.

        Returns:
            With `admitted` False where it was not barred; then `written` says what it had lost of its files and has
            again (see `Renewal.lost`), and nothing else was changed.

        Raises:
            BadAttribute: The request names no workload.
            NotFound: It is not barred, and the policies know none of this name.
            ConfigError: A file of ours cannot be written; it stays barred.
            RequestFailed, Unavailable: NATS refused or did not answer; the account opens with the next push.
        """
        if bool(asked.agent) == bool(asked.team):
            raise BadAttribute("say who is to be admitted", expected="one of an agent, a team")
        workload = asked.agent or team_workload(asked.team)
        if workload not in self._standing.barred:
            return await self._write_again(asked, workload)
        grants = self._policies.grants
        if asked.agent in grants.agents or asked.team in grants.teams:
            await anyio.to_thread.run_sync(self._renewal.user, workload)
        if asked.agent in grants.agents:
            await anyio.to_thread.run_sync(self._renewal.token, asked.agent, grants.agents[asked.agent].spiffe_id)
        await anyio.to_thread.run_sync(self._standing.admit, workload)  # last: what it had before opens nothing
        self._policies.audit(audit.TRUST_ADMITTED, workload=workload, **asked.said)
        await self._accounts.refresh(workload)
        return {"tenant": self._policies.tenant, "workload": workload, "admitted": True}

    async def _write_again(self, asked: Asked, workload: str) -> dict[str, Any]:
        grants = self._policies.grants
        rotation.check_known("agent", filter(None, [asked.agent]), grants.agents)
        rotation.check_known("team", filter(None, [asked.team]), grants.teams)
        spiffe_id = grants.agents[asked.agent].spiffe_id if asked.agent else ""
        written = await anyio.to_thread.run_sync(self._renewal.lost, workload, spiffe_id)
        if written:
            self._policies.audit(audit.TRUST_ADMITTED, workload=workload, written=written, **asked.said)
        return {"tenant": self._policies.tenant, "workload": workload, "admitted": False, "written": written}
