"""The policies of one tenant, live: apply and rollback, beside what `in_force.py` says of them. One object a tenant.

A revision is handed out in an order that loses no event and lends nobody a right (design section 4):

    1. its own tests pass, else nothing happens          4. the bundle: signed, numbered, chained; then the notice
    2. rights that are gone are taken away (`Enforcer`)     filters that are gone leave the durables
    3. what it needs is added: keys, streams, filters    5. once everybody runs it: exact subjects; old views drain
                                                            off the durables (`Drain`)

Revisions only rise. A rollback is a new revision with the policies of an older one, grants included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio
from msgspec.structs import replace

from mesh import logs
from mesh.control.change import (
    Applied,
    Audit,
    Change,
    Progress,
    Steps,
    Workloads,
    behind,
    check_durables,
    checked,
    narrowed,
    next_bundle,
)
from mesh.control.in_force import InForce
from mesh.control.reconcile import notice, now_ms, team_workload
from mesh.control.rollout import wait_adopted
from mesh.errors import BundleChain, MeshError
from mesh.policy.bundle import Bundle, ordered
from mesh.policy.compile import Plans

if TYPE_CHECKING:
    from mesh.control.bundles import BundleStore
    from mesh.control.enforce import Enforcer
    from mesh.jetstream.connection import Connection
    from mesh.policy.grants import Grants

log = logs.get("control")


class Policies(InForce):
    """The live policies of one tenant, and how they change.

    Args:
        tenant: As `InForce`.
        connection: As `InForce`.
        enforcer: As `InForce`.
        store: As `InForce`.
        site, trust_domain: Of every bundle.
        workloads: As `InForce`.
        audit: Told each change of policies: a kind and facts, never a value.
    """

    def __init__(
        self,
        tenant: str,
        *,
        connection: Connection,
        enforcer: Enforcer,
        store: BundleStore,
        site: str,
        trust_domain: str,
        workloads: Workloads | None = None,
        audit: Audit = lambda *_, **__: None,
    ) -> None:
        super().__init__(tenant, connection=connection, enforcer=enforcer, store=store, workloads=workloads)
        self.audit = audit
        self._site = site
        self._trust_domain = trust_domain

    async def apply(
        self,
        files: Mapping[str, str],
        fixtures: Mapping[str, bytes],
        *,
        author: str = "",
        reason: str = "",
        skip_backlog: bool = False,
        expected: int | None = None,
        progress: Progress = lambda _: None,
    ) -> Applied:
        """Make *files* the policies in force.

        Args:
            files: YAML by name; the documents of other tenants are checked and left aside.
            fixtures: The events of the tests, by name.
            author: Who; kept in the bundle.
            reason: Why; kept in the bundle.
            skip_backlog: Durables of teams that see less than before begin with what is stored once everybody runs the
                new revision: what a plain NATS client could still have pulled lies before that.
            expected: Refuse unless this revision is in force: the one that somebody compared with.
            progress: Told each step as it begins.

        Raises:
            PolicyErrors: They do not load.
            PolicyTestsFailed: One of their own tests fails.
            ConfigError: They cannot run here.
            PolicyError: See `check_durables`.
            BundleChain: Another revision is in force than *expected*.
            RequestFailed, Unavailable: NATS refused or did not answer; what had been taken away was given back.
        """
        steps = Steps(progress)
        try:
            steps.begin("tests")
            policies = await anyio.to_thread.run_sync(checked, files, fixtures, self.tenant)
            change = Change(
                documents=ordered(d.value for d in policies.of(self.tenant)),
                author=author,
                reason=reason,
                skip_backlog=skip_backlog,
                expected=expected,
            )
            return await self._change(change, steps)
        except MeshError as error:
            if not steps.in_force:
                in_force = 0 if self._plans is None else self._plans.bundle.revision
                self.audit("policy-refused", code=error.code, author=author, revision=in_force)
            raise

    async def rollback(
        self,
        revision: int | None = None,
        *,
        author: str = "",
        reason: str = "",
        skip_backlog: bool = False,
        progress: Progress = lambda _: None,
    ) -> Applied:
        """Bring the policies of an older revision back, as a new revision.

        Args:
            revision: Which; the one before the one in force unless given.
            author: As in `apply`.
            reason: As in `apply`.
            skip_backlog: As in `apply`.
            progress: As in `apply`.

        Raises:
            NotFound: There is no such revision any more.
            ConfigError, RequestFailed, Unavailable: As `apply`.
        """
        steps = Steps(progress)
        steps.begin("read")
        current = self.plans.bundle
        wanted = current.revision - 1 if revision is None else revision
        bundle = await self.store.past(current, wanted)
        change = Change(
            documents=bundle.policies,
            author=author,
            reason=reason,
            rollback_of=wanted,
            skip_backlog=skip_backlog,
            expected=current.revision,
        )
        return await self._change(change, steps)

    async def _change(self, change: Change, steps: Steps) -> Applied:
        async with self._lock:
            current = None if self._plans is None else self._plans.bundle
            if current is not None and change.expected not in {None, current.revision}:
                raise BundleChain(
                    f"revision {current.revision} is in force, not {change.expected}: somebody applied in between",
                    expected=f"revision {change.expected}",
                    got=f"revision {current.revision}",
                    next="look at the difference again, then apply again",
                )
            if current is not None and self._same(current, change):
                return Applied(current.revision, current.digest, unchanged=True)
            plans = await self._hand_out(change, current, steps)
            anew: list[str] = []
            if change.skip_backlog and current is not None:
                anew = await anyio.to_thread.run_sync(narrowed, current, plans)
            if anew:
                await self._enforcer.pause(plans.grants(now_ms=now_ms()), anew)
        bundle = plans.bundle
        applied = Applied(bundle.revision, bundle.digest, rollback_of=change.rollback_of, steps=steps.done)
        await self._finish(plans, applied, steps, anew)
        return applied

    def _same(self, current: Bundle, change: Change) -> bool:
        place = (current.site, current.trust_domain)
        return current.policies == change.documents and place == (self._site, self._trust_domain)

    async def _hand_out(self, change: Change, current: Bundle | None, steps: Steps) -> Plans:
        """Steps 2 to 4."""
        entry = await self.store.entry() if current is not None else None
        began_ms = None if entry is None else entry.at_ms
        candidate = next_bundle(change, current, began_ms, self.tenant, self._site, self._trust_domain)
        plans, at_ms = await anyio.to_thread.run_sync(Plans, candidate), now_ms()
        self._workloads.check(plans)
        candidate.encode()  # too large a bundle is refused before anything changes
        grants = await self._bounded(plans.grants(now_ms=at_ms), candidate, current)
        check_durables(grants)
        try:
            steps.begin("withdraw")
            self._drain.forget()
            await self._enforcer.withdraw(plans, grants)
            steps.begin("extend")
            await self._workloads.prepare(grants)
            await self._enforcer.extend(grants)
            steps.begin("bundle")
            plans.bundle = replace(candidate, created_ms=now_ms())  # of the same policies, so the plans stay true
            await self.store.put(plans.bundle, 0 if entry is None else entry.revision)
        except (MeshError, OSError):
            if not await self._stored(plans.bundle):
                await self._give_back()
                raise
        self._adopt(plans, at_ms)
        steps.in_force = True
        self._tell(plans.bundle)  # at once: a control plane that stops at the next step leaves it in force, on record
        await notice(self.connection, "bundle", candidate.revision)
        try:
            await self._enforcer.narrow(grants)
        except MeshError as error:  # it is in force all the same; `_finish` narrows again
            log.error("durables_not_narrowed", code=error.code, error=str(error))
        if current is not None:
            await self.store.forget(past.revision for past in current.lineage if past not in candidate.lineage)
        return plans

    def _tell(self, bundle: Bundle) -> None:
        log.info("bundle_handed_out", tenant=self.tenant, revision=bundle.revision, rollback_of=bundle.rollback_of)
        told = {"revision": bundle.revision, "digest": bundle.digest, "author": bundle.author}
        if bundle.rollback_of:
            self.audit("policy-rolled-back", **told, rollback_of=bundle.rollback_of)
        else:
            self.audit("policy-applied", **told)

    async def _stored(self, bundle: Bundle) -> bool:
        """Whether *bundle* is in force: storing it may succeed although nobody answers."""
        try:
            found = await self.store.in_force()
        except (MeshError, OSError) as error:
            log.error("store_not_read", error=type(error).__name__)
            return False
        return found is not None and found.digest == bundle.digest

    async def _give_back(self) -> None:
        """A change failed half way: the old bundle is in force, so are its rights."""
        if self._plans is None:
            return
        try:
            await self._enforcer.extend(self.grants)
            await self._enforcer.narrow(self.grants)  # what only the new one would have added; the paused ones go on
            await self._drain.begin(self.grants)
        except MeshError as error:
            log.error("rights_not_given_back", code=error.code, error=str(error))

    async def _finish(self, plans: Plans, applied: Applied, steps: Steps, anew: list[str]) -> None:
        """Step 5. Where another change came meanwhile, that one does it in our place."""
        grants = plans.grants(now_ms=now_ms())
        steps.begin("agents")
        async with anyio.create_task_group() as group:
            group.start_soon(self._workloads.follow, grants)
            group.start_soon(self._await_agents, plans.bundle.revision, grants, applied)
        steps.begin("settle")
        async with self._lock:
            if self._plans is plans:
                grants = plans.grants(now_ms=now_ms())
                await self._enforcer.narrow(grants)
                await self._enforcer.settle(grants)
                applied.restarted = await self._enforcer.restart_after_last(grants, anew) if anew else []
                await self._drain.begin(grants)
                applied.draining = self.draining
        steps.end()

    async def _await_agents(self, revision: int, grants: Grants, applied: Applied) -> None:
        names = [*grants.agents, *(team_workload(team) for team in grants.teams)]
        try:
            late = await wait_adopted(self.connection, revision, names)
        except MeshError as error:  # the bundle is handed out all the same
            log.error("reports_not_read", code=error.code, error=str(error))
            applied.behind = [{"workload": name, "instance": "", "revision": 0, "code": error.code} for name in names]
            return
        applied.behind = [behind(report) for report in late]
        for report in late:
            log.warning("revision_not_adopted", workload=report.workload, instance=report.instance)
