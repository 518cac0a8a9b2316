"""What is in force in one tenant, kept so in NATS: grants that end are taken away, old views drain off the durables.

Nothing here changes the policies, and who only asks takes an `InForce`; `policies.py` hands out the next revision.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import anyio

from mesh.control.change import NoWorkloads, Workloads, facts
from mesh.control.drain import Drain
from mesh.control.expiry import Expiry
from mesh.control.opening import bounded_starts, opened_ms
from mesh.control.reconcile import now_ms
from mesh.control.rollout import running
from mesh.errors import MeshError, NoBundle, NotFound
from mesh.policy.compile import Plans
from mesh.reports import read_reports

if TYPE_CHECKING:
    from mesh.control.bundles import BundleStore
    from mesh.control.enforce import Enforcer
    from mesh.jetstream.connection import Connection
    from mesh.policy.bundle import Bundle
    from mesh.policy.grants import Grants, SubscriptionGrant

HISTORY = 20  # revisions shown unless asked for more


class InForce:
    """The policies of one tenant as they are.

    Args:
        tenant: Whose.
        connection: The control plane's, in the tenant account.
        enforcer: Brings NATS to what the policies say.
        store: Where the bundles lie.
        workloads: Files and processes of agents and teams; None where others run them.
    """

    def __init__(
        self,
        tenant: str,
        *,
        connection: Connection,
        enforcer: Enforcer,
        store: BundleStore,
        workloads: Workloads | None = None,
    ) -> None:
        self.tenant = tenant
        self.connection = connection
        self.store = store
        self._enforcer = enforcer
        self._workloads = workloads or NoWorkloads()
        self._lock = anyio.Lock()
        self._plans: Plans | None = None
        self._drain = Drain(enforcer, self._lock)
        self._expiry = Expiry(enforcer, self._drain, self._lock)

    @property
    def plans(self) -> Plans:
        """Of the bundle in force.

        Raises:
            NoBundle: Nothing was applied yet.
        """
        if self._plans is None:
            raise NoBundle("no policies are in force", expected="a bundle", next="run `mesh policy apply`")
        return self._plans

    @property
    def grants(self) -> Grants:
        """What NATS enforces now."""
        return self.plans.grants(now_ms=now_ms())

    @property
    def changing(self) -> anyio.Lock:
        """Held while rights change: what somebody finds and makes under it fits together."""
        return self._lock

    @property
    def draining(self) -> list[str]:
        """Durables that still deliver an old view."""
        return self._drain.durables

    async def open(self) -> Bundle | None:
        """Take up the bundle in force, and bring NATS to what it says now; None where there is none yet.

        Raises:
            RequestFailed, Unavailable: NATS refused or did not answer.
        """
        await self._enforcer.foundation()
        bundle = await self.store.in_force()
        if bundle is None:
            return None
        plans, at_ms = Plans(bundle), now_ms()
        grants = await self._bounded(plans.grants(now_ms=at_ms), bundle, bundle)
        await self._enforcer.withdraw(plans, grants)
        await self._workloads.prepare(grants)
        await self._enforcer.extend(grants)
        await self._enforcer.narrow(grants)
        self._adopt(plans, at_ms)
        await self._drain.begin(grants)
        return bundle

    async def run(self) -> None:
        """Take ended grants away and drain old views, until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._drain.run)
            group.start_soon(self._expiry.run)

    async def _bounded(self, grants: Grants, bundle: Bundle, current: Bundle | None) -> Grants:
        """*grants* of *bundle*, whose new durables begin no earlier than their teams' rights."""

        async def past(revision: int) -> Bundle:
            if current is None:
                raise NotFound(f"there is no bundle of revision {revision}")
            return await self.store.past(current, revision)

        existing = await self._enforcer.subscriptions()
        return await bounded_starts(grants, bundle, past, existing=existing)

    def _adopt(self, plans: Plans, at_ms: int) -> None:
        self._plans = plans
        self._expiry.follow(plans, at_ms)

    # --- questions ---------------------------------------------------------------------------------------------------

    async def opened_ms(self, grant: SubscriptionGrant) -> int:
        """Since when stored copies of what *grant* reads are open to its team: see `opening.opened_ms`.

        Raises:
            RequestFailed, Unavailable: The store does not answer.
        """
        bundle, entry = self.plans.bundle, await self.store.entry()
        began_ms = bundle.created_ms if entry is None else entry.at_ms

        async def past(revision: int) -> Bundle:
            return await self.store.past(bundle, revision)

        return await opened_ms(grant, self.grants, bundle, past, began_ms=began_ms)

    async def status(self) -> dict[str, Any]:
        """What is in force, and who runs it.

        Raises:
            RequestFailed, Unavailable: The reports cannot be read.
        """
        bundle = self.plans.bundle
        instances = running(await read_reports(self.connection), self.grants.agents, bundle, at_ms=now_ms())
        told = [asdict(one) for one in instances]
        return {"tenant": self.tenant, **facts(bundle), "instances": told, "draining": self.draining}

    async def history(self, limit: int = HISTORY) -> list[dict[str, Any]]:
        """The last *limit* revisions, newest first; one that the store has lost has an `error` instead of an author.

        Raises:
            RequestFailed, Unavailable: The store does not answer.
        """
        bundle = self.plans.bundle
        found = [{**facts(bundle), "in_force": True}]
        for past in bundle.lineage[::-1][: max(0, limit - 1)]:
            try:
                told = facts(await self.store.past(bundle, past.revision))
            except MeshError as error:
                told = {"revision": past.revision, "digest": past.digest, "error": error.code}
            found.append({**told, "in_force": False})
        return found
