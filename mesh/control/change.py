"""A change of policies: what is asked for, what has to hold before anything happens, and what was done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mesh.control.reconcile import now_ms
from mesh.errors import PolicyError
from mesh.jetstream.accounts import MAX_SUBSCRIPTIONS
from mesh.jetstream.durables import durables, replays
from mesh.policy.bundle import FORMAT, Bundle, Past
from mesh.policy.compile import Plans
from mesh.policy.diff import compare
from mesh.policy.documents import PolicySet
from mesh.policy.history import lineage, since
from mesh.policy.load import load
from mesh.policy.suite import run as run_suite

if TYPE_CHECKING:
    from mesh.policy.grants import Grants
    from mesh.policy.model import AnyDocument
    from mesh.reports import Report

MAX_DURABLES = MAX_SUBSCRIPTIONS - 20  # beside what a connection hears of its own: inboxes, notices, other members

Progress = Callable[[str], None]
Audit = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The next revision, before it has a number.

    Attributes:
        documents: Its policies, as a bundle orders them.
        author, reason: Kept in the bundle.
        rollback_of: The revision whose policies these are; 0 where they come from files.
        skip_backlog: Teams that see less get durables that begin anew.
        expected: The revision that has to be in force; None for any.
    """

    documents: tuple[AnyDocument, ...]
    author: str = ""
    reason: str = ""
    rollback_of: int = 0
    skip_backlog: bool = False
    expected: int | None = None


@dataclass(slots=True)
class Applied:
    """What an apply or a rollback did.

    Attributes:
        revision: In force now.
        digest: Its SHA-256 in hex.
        unchanged: These policies were in force already; nothing was done.
        rollback_of: See `Change`.
        steps: What was done, in order, each with the milliseconds it took.
        behind: Instances that do not run it: workload, instance, the revision they run, and why where they said so.
        draining: Durables that still deliver an old view.
        restarted: Durables that begin anew.
    """

    revision: int
    digest: str
    unchanged: bool = False
    rollback_of: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    behind: list[dict[str, Any]] = field(default_factory=list)
    draining: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For the door."""
        return asdict(self)


class Steps:
    """What a change does, one step after the other, and how long each took.

    Attributes:
        done: The steps that have ended, each with the milliseconds it took.
        in_force: The change is: what fails from here on refuses nothing.
    """

    def __init__(self, progress: Progress) -> None:
        self.in_force = False
        self._progress = progress
        self._started = 0.0
        self._name = ""
        self.done: list[dict[str, Any]] = []

    def begin(self, name: str) -> None:
        """The next step; the one before has ended."""
        self.end()
        self._name, self._started = name, time.monotonic()
        self._progress(name)

    def end(self) -> None:
        """Nothing follows."""
        if self._name:
            self.done.append({"step": self._name, "ms": round((time.monotonic() - self._started) * 1000, 1)})
            self._name = ""


class Workloads(Protocol):
    """Whoever keeps the files and processes of agents and teams."""

    def check(self, plans: Plans) -> None:
        """Raises ConfigError where these policies cannot run here; nothing was changed."""

    async def prepare(self, grants: Grants) -> None:
        """Before the bundle: keys, credentials and certificates of everybody in it."""

    async def follow(self, grants: Grants) -> None:
        """After the bundle: start agents that are new, stop those that are gone. Raises nothing."""


class NoWorkloads:
    """For a tenant whose agents are run by others."""

    def check(self, plans: Plans) -> None:
        """Anything can run."""

    async def prepare(self, grants: Grants) -> None:
        """Nothing to do."""

    async def follow(self, grants: Grants) -> None:
        """Nothing to do."""


def checked(files: Mapping[str, str], fixtures: Mapping[str, bytes], tenant: str | None) -> PolicySet:
    """Load *files* and run their tests.

    Args:
        files: YAML by name.
        fixtures: The events of the tests, by name.
        tenant: Must be one of theirs; only its tests are run. None: all.

    Raises:
        PolicyErrors: They do not load.
        PolicyTestsFailed: A test fails.
        PolicyError: They hold nothing of *tenant*.
    """
    policies = load(files)
    if tenant is not None and tenant not in policies.tenants:
        raise PolicyError(
            f"the policies hold no document of tenant {tenant}",
            expected=f"a Tenant document named {tenant}",
            got=", ".join(policies.tenants),
            next="name the directory of this mesh's policies, or another tenant",
        )
    mine = policies if tenant is None else PolicySet(policies.of(tenant))
    run_suite(mine, fixtures, now_ms()).require()
    return policies


def check_durables(grants: Grants) -> None:
    """Whether one connection of each team can pull all that it is delivered, with its replays and redrives.

    Raises:
        PolicyError: A team's subscriptions have more durables than a connection may have subscriptions.
    """
    for team in grants.teams:
        mine = [grant for grant in grants.active if grant.team == team]
        count = sum(
            len(durables(grants.site, grants.domains, grant)) + len(replays(grants.site, grants.domains, grant)) + 1
            for grant in mine
        )
        if count > MAX_DURABLES:
            raise PolicyError(
                f"the subscriptions of team {team} come to {count} durables, limit {MAX_DURABLES}",
                expected="fewer subscriptions, streams or ordered ones: each of those has one in every slot and stream",
                got=", ".join(sorted(grant.name for grant in mine if grant.ordered))[:200] or "none that is ordered",
                next="split the team, let subscriptions name fewer domains, or leave `order_by` out",
                team=team,
            )


def next_bundle(  # noqa: PLR0917 - one fact each
    change: Change, current: Bundle | None, began_ms: int | None, tenant: str, site: str, trust_domain: str
) -> Bundle:
    """The bundle that comes after *current*.

    Args:
        change: What is to be in it.
        current: In force; None before the first.
        began_ms: The server's clock when *current* was stored; None where the store has lost it.
        tenant: Whose.
        site: See `Bundle`.
        trust_domain: See `Bundle`.
    """
    revision = 1
    past: tuple[Past, ...] = ()
    if current is not None:
        revision = current.revision + 1
        past = lineage(current, current.created_ms if began_ms is None else began_ms, now_ms())
    return Bundle(
        tenant=tenant,
        revision=revision,
        site=site,
        trust_domain=trust_domain,
        created_ms=now_ms(),
        policies=change.documents,
        previous="" if current is None else current.digest,
        lineage=past,
        since=since(current, change.documents, revision),
        rollback_of=change.rollback_of,
        author=change.author,
        reason=change.reason,
        format=FORMAT,
    )


def narrowed(current: Bundle, plans: Plans) -> list[str]:
    """The teams that see less under *plans* than under *current*, or something else."""
    return sorted(compare(Plans(current), plans, now_ms()).narrowed_teams)


def facts(bundle: Bundle) -> dict[str, Any]:
    """What a revision is, without its policies."""
    return {
        "revision": bundle.revision,
        "digest": bundle.digest,
        "created_ms": bundle.created_ms,
        "author": bundle.author,
        "reason": bundle.reason,
        "rollback_of": bundle.rollback_of,
    }


def behind(report: Report) -> dict[str, Any]:
    """An instance that did not follow."""
    code = "" if report.refused is None else report.refused.code
    return {"workload": report.workload, "instance": report.instance, "revision": report.revision, "code": code}
