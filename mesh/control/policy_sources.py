"""Policies that are kept elsewhere: as objects of a Kubernetes cluster, or as files of a directory that others fill.

Whoever leads follows them, and makes what they hold the policies in force, by the way that `mesh policy apply` takes. A
tenant has them from one place: from its objects as soon as the cluster has a Tenant for it, else from the directory.
Events for PolicyTests come from the directory. What changes is taken once nothing has changed for a second: people
apply a set one object after the other, and half of it does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from mesh import logs
from mesh.control.change import checked
from mesh.control.given import Given
from mesh.control.policy_set import HELD, Outcome, Policies, author, is_held, revision, take, unwritten
from mesh.control.policy_status import tell
from mesh.errors import MeshError, PolicyErrors
from mesh.kubernetes.conditions import Condition, State
from mesh.kubernetes.names import API_VERSION, PLURALS, TENANT
from mesh.kubernetes.objects import Placed, faults, place
from mesh.kubernetes.watch import Watch
from mesh.policy_files import PolicyFiles, read_policies
from mesh.telemetry import gauge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

    from mesh.kubernetes.api import Api

QUIET_S, LONGEST_S = 1.0, 10.0  # without a change before a set is taken; and at most, however many there are
LOOK_S = 5.0  # between two looks at the directory; a ConfigMap takes a minute to reach it
TENANT_KIND = "Tenant"  # whose object begins a tenant
AGAIN_S = 15.0  # between two looks without a change: what could not be taken or told is tried again

REFUSED = gauge("mesh.control.policies_refused", unit="{set}", watch="1: the tenant's objects or files do not hold")

log = logs.get("control")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """Where policies are kept.

    Attributes:
        api: Of the cluster whose objects count; None for none.
        directory: Of the files; None for none.
        replica: Our name, in Events.
    """

    api: Api | None = None
    directory: Path | None = None
    replica: str = ""


@dataclass(slots=True)
class _Taken:
    """What was made of a tenant's set last."""

    texts: Mapping[str, str]
    fixtures: Mapping[str, bytes]
    authors: Mapping[str, str]
    outcome: Outcome


@dataclass(slots=True)
class Sources:
    """Follows both, for every tenant that is served, and serves those that are new.

    Attributes:
        options: Where.
        tenants: The live policies of each tenant; those that begin are added.
        begin: Serves one more tenant, by its first policies; raises MeshError where it cannot.
    """

    options: SourceOptions
    tenants: dict[str, Policies]
    begin: Callable[[str, Given], Awaitable[Policies]]
    _changed: anyio.Event = field(default_factory=anyio.Event, init=False)
    _watches: list[Watch] = field(default_factory=list, init=False)
    _namespaces: Watch | None = field(default=None, init=False)
    _files: PolicyFiles | None = field(default=None, init=False)
    _taken: dict[str, _Taken] = field(default_factory=dict, init=False)
    _stood: dict[str, list[Placed]] = field(default_factory=dict, init=False)  # by namespace, before it began to end

    async def run(self) -> None:
        """Follow them until cancelled."""
        api = self.options.api
        async with anyio.create_task_group() as group:
            if api is not None:
                self._namespaces, *self._watches = _watches(api, self._note)
                for watch in (self._namespaces, *self._watches):
                    group.start_soon(watch.run)
            if self.options.directory is not None:
                group.start_soon(self._look, self.options.directory)
            while True:
                with anyio.move_on_after(AGAIN_S):  # also what was changed by hand shows in the status then
                    await self._changed.wait()
                await self._settle()
                if self._whole():
                    await self.take()

    def _note(self) -> None:
        self._changed.set()

    def _whole(self) -> bool:
        """Whether everything has been read once: half of what there is would take rights away."""
        watches = [] if self._namespaces is None else [self._namespaces, *self._watches]
        return all(watch.synced for watch in watches) and (self.options.directory is None or self._files is not None)

    async def _settle(self) -> None:
        """Wait until nothing changes any more, but not for ever."""
        with anyio.move_on_after(LONGEST_S):
            while True:
                self._changed = anyio.Event()
                with anyio.move_on_after(QUIET_S) as quiet:
                    await self._changed.wait()
                if quiet.cancelled_caught:
                    return
        self._changed = anyio.Event()

    async def _look(self, directory: Path) -> None:
        told = ""
        while True:
            try:
                found = await anyio.to_thread.run_sync(read_policies, directory)
            except MeshError as error:
                if str(error) != told:
                    log.error("policies_not_read", code=error.code, error=error.message, next=error.next)
                told = str(error)
            else:
                told = ""
                if found != self._files:
                    self._files = found
                    self._note()
            await anyio.sleep(LOOK_S)

    # --- one look at everything --------------------------------------------------------------------------------------

    async def take(self) -> None:
        """Take what there is now. What did not go through is tried again with the next look."""
        placed, ending = self._placed()
        states: list[tuple[Placed, State]] = []
        claimed = {one.tenant for one in placed if one.kind == TENANT_KIND and one.text}
        for tenant in sorted(claimed - self.tenants.keys() - ending):
            mine = [one for one in placed if one.tenant == tenant and one.text]
            outcome = await self._first(tenant, {one.file: one.text for one in mine}, mine)
            states += [(one, outcome.state(one, 0)) for one in mine if tenant not in self.tenants]
        if self._files is not None and self._files.yaml:
            await self._first("", self._files.yaml, (), claimed)
        for tenant, policies in self.tenants.items():
            if tenant in ending:
                log.warning("namespace_ends", tenant=tenant)
                REFUSED.set(1, tenant=tenant)
                continue
            mine = [one for one in placed if one.tenant == tenant and one.text]
            if any(one.kind == TENANT_KIND for one in mine):
                outcome = await self._objects(policies, mine)
                current = revision(policies)
                states += [(one, outcome.state(one, current)) for one in mine]
            elif self._files is not None and self._files.yaml:
                outcome = await self._directory(tenant, policies, self._files)
            else:
                REFUSED.forget(tenant=tenant)  # its objects went: nothing of it can be at fault any more
                continue
            REFUSED.set(outcome.error is not None, tenant=tenant)
        told = {one.file for one, _ in states}
        states += [(one, _outside(one)) for one in placed if one.file not in told and one.tenant not in ending]
        if self.options.api is not None:
            await tell(self.options.api, states, self.options.replica)

    async def _first(
        self, tenant: str, texts: Mapping[str, str], placed: Sequence[Placed], claimed: Collection[str] = ()
    ) -> Outcome:
        """Begin to serve *tenant*, whose policies these are; without a name each that files add, if not *claimed*."""
        fixtures = {} if self._files is None else self._files.fixtures
        last = self._taken.get(tenant)
        if last is not None and (last.texts, last.fixtures) == (texts, fixtures) and not last.outcome.again:
            return last.outcome
        by = author(placed, {}) if placed else "directory"
        outcome = Outcome()
        try:
            policies = await anyio.to_thread.run_sync(checked, texts, fixtures, tenant or None)
            for name in policies.tenants:
                if name not in self.tenants and name not in claimed:
                    self.tenants[name] = await self.begin(name, Given(texts, fixtures, policies, author=by))
        except MeshError as error:
            outcome = Outcome(error=error, faults=faults(error, placed))
        except OSError as error:
            outcome = Outcome(error=unwritten(error))
        self._taken[tenant] = _Taken(texts, fixtures, {one.file: one.author for one in placed}, outcome)
        if outcome.error is not None:
            _say(tenant, outcome, author=by)
            if tenant:
                REFUSED.set(1, tenant=tenant)
        elif tenant:  # from here on it is as any other
            del self._taken[tenant]
        return outcome

    def _placed(self) -> tuple[list[Placed], set[str]]:
        """Every object; and the tenants of which somebody deletes a namespace that we have not seen whole.

        Until it is gone its objects, which go in any order, count as they stood: half of them is no set.
        """
        if self._namespaces is None:
            return [], set()
        known = [item["metadata"] for item in self._namespaces.objects.values()]
        tenants = {m["name"]: (m.get("labels") or {}).get(TENANT, "") for m in known}
        found: dict[str, list[Placed]] = {name: [] for name in tenants}
        for one in _place_all(self._namespaces, self._watches):
            found.setdefault(one.namespace, []).append(one)
        ending = {metadata["name"] for metadata in known if metadata.get("deletionTimestamp")}
        found |= {name: self._stood[name] for name in ending & self._stood.keys()}
        unknown = ending - self._stood.keys()
        self._stood = {name: placed for name, placed in found.items() if name not in unknown}
        return [one for placed in found.values() for one in placed], {tenants[name] for name in unknown}

    async def _objects(self, policies: Policies, placed: Sequence[Placed]) -> Outcome:
        tenant, texts = placed[0].tenant, {one.file: one.text for one in placed}
        fixtures = {} if self._files is None else self._files.fixtures
        last = self._taken.get(tenant)
        if last is not None and (last.texts, last.fixtures) == (texts, fixtures) and not last.outcome.again:
            return last.outcome
        if last is None and is_held(policies, placed):
            return HELD
        name = author(placed, {} if last is None else last.authors)
        outcome = await take(policies, placed, fixtures, author=name)
        self._taken[tenant] = _Taken(texts, fixtures, {one.file: one.author for one in placed}, outcome)
        _say(tenant, outcome, author=name)
        return outcome

    async def _directory(self, tenant: str, policies: Policies, files: PolicyFiles) -> Outcome:
        last = self._taken.get(tenant)
        if last is not None and (last.texts, last.fixtures) == (files.yaml, files.fixtures) and not last.outcome.again:
            return last.outcome
        if last is None and is_held(policies, []):
            self._taken[tenant] = _Taken(files.yaml, files.fixtures, {}, HELD)
            return HELD
        try:
            apply = partial(policies.apply, files.yaml, files.fixtures, author="directory", reason="files changed")
            outcome = Outcome((await apply()).revision)
        except MeshError as error:
            outcome = Outcome(error=error)
        except OSError as error:
            outcome = Outcome(error=unwritten(error))
        self._taken[tenant] = _Taken(files.yaml, files.fixtures, {}, outcome)
        _say(tenant, outcome, author="directory")
        return outcome


async def read_cluster(api: Api) -> list[Placed]:
    """Every policy object of a cluster.

    Raises:
        MeshError: As `Watch.read`.
    """
    namespaces, *watches = _watches(api, lambda: None)
    for watch in (namespaces, *watches):
        await watch.read()
    return _place_all(namespaces, watches)


def _watches(api: Api, changed: Callable[[], None]) -> list[Watch]:
    """Of the namespaces, and of each kind."""
    paths = ["/api/v1/namespaces", *(f"/apis/{API_VERSION}/{plural}" for plural in PLURALS.values())]
    return [Watch(api, path, changed) for path in paths]


def _place_all(namespaces: Watch, watches: Iterable[Watch]) -> list[Placed]:
    labels = {item["metadata"]["name"]: item["metadata"].get("labels") or {} for item in namespaces.objects.values()}
    items = [item for watch in watches for item in watch.objects.values()]
    return [place(item, labels) for item in items if not item["metadata"].get("deletionTimestamp")]


def _outside(one: Placed) -> State:
    """Of an object that belongs to no set that is served."""
    if one.refusal is not None:
        reason, message = one.refusal
        refused = Condition(status=False, reason=reason, message=message)
        return State(refused, Condition(status=False, reason="Refused", message=message))
    message = f"tenant {one.tenant} has no Tenant object"
    accepted = Condition(status=True, reason="Placed", message=f"of tenant {one.tenant}")
    return State(accepted, Condition(status=False, reason="TenantNotServed", message=message))


def _say(tenant: str, outcome: Outcome, *, author: str) -> None:
    error = outcome.error
    if error is None:
        log.info("policies_taken", tenant=tenant, revision=outcome.revision, author=author)
    else:
        count = len(error.errors) if isinstance(error, PolicyErrors) else 1
        log.error("policies_refused", tenant=tenant, author=author, code=error.code, errors=count, error=str(error))
