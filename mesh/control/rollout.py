"""Who runs which revision: what the instances of agents and teams report, and waiting until they run a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio
import msgspec

from mesh import logs
from mesh.control.reconcile import now_ms
from mesh.errors import MeshError
from mesh.jetstream import manage
from mesh.reports import EVERY_S, Report, read_reports

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mesh.jetstream.connection import Connection
    from mesh.policy.bundle import Bundle

ADOPT_S = 30.0  # who has not said by then that it runs a new revision is waited for no longer
LOOK_S = 1.0  # between two looks whether those it waits for are still there
FORGET_S = 2.0  # to purge the reports of processes that ended; it takes a millisecond
LIVE_S = 2.5 * EVERY_S  # an instance silent for longer has ended, or is cut off

State = Literal["current", "behind", "refusing", "silent"]

log = logs.get("control")


@dataclass(frozen=True, slots=True)
class Running:
    """One instance and what policies it runs.

    Attributes:
        kind: `agent` or `team`.
        instance: Empty for an agent of the policies of which no instance ever reported.
        revision: 0 before the first bundle.
        age_s: Seconds since it last reported.
        code: Why it refuses the newer bundle, where it does.
    """

    kind: str
    name: str
    instance: str
    version: str
    revision: int
    age_s: float
    state: State
    code: str = ""


def running(reports: Iterable[Report], agents: Iterable[str], bundle: Bundle, *, at_ms: int) -> list[Running]:
    """What each instance runs, against the *bundle* in force.

    Args:
        reports: The last of each instance.
        agents: All agents of the policies: one without a live instance is silent.
        bundle: In force.
        at_ms: Unix milliseconds of now.
    """
    found = [_running(report, bundle, at_ms) for report in reports if not report.stopped]
    expected = set(agents)
    live = {one.name for one in found if one.kind == "agent" and one.state != "silent"}
    shown = [one for one in found if _matters(one, expected, live)]
    known = {one.name for one in shown if one.kind == "agent"}
    shown += [Running("agent", name, "", "", 0, 0.0, "silent") for name in expected - known]
    return sorted(shown, key=lambda one: (one.kind, one.name, one.instance))


def _matters(one: Running, agents: set[str], live: set[str]) -> bool:
    """What a restarted process or a removed agent left behind is no news, nor is a reader that went away."""
    if one.kind != "agent":
        return one.state != "silent"
    return one.name in agents and (one.state != "silent" or one.name not in live)


def _running(report: Report, bundle: Bundle, at_ms: int) -> Running:
    age_s = max(0.0, (at_ms - report.at_ms) / 1000)
    state: State
    if age_s > LIVE_S:
        state = "silent"
    elif report.revision == bundle.revision and report.digest == bundle.digest:
        state = "current"
    else:
        state = "behind" if report.refused is None else "refusing"
    code = report.refused.code if report.refused is not None and state == "refusing" else ""
    return Running(
        report.kind, report.name, report.instance, report.version, report.revision, round(age_s, 1), state, code
    )


async def wait_adopted(
    connection: Connection, revision: int, workloads: Iterable[str], *, timeout_s: float = ADOPT_S
) -> list[Report]:
    """Wait until every live instance runs *revision* or a newer one, has refused it, or has ended.

    Args:
        connection: The control plane's, in the tenant account.
        revision: What was handed out.
        workloads: Whose instances count: those that the policies know.
        timeout_s: No longer than this.

    Returns:
        The instances that do not run it; empty as a rule.

    Raises:
        RequestFailed, Unavailable: The reports cannot be read.
    """
    waiting = Waiting(revision, workloads)
    listener = connection.listen("report.>", waiting.on_report)  # before reading: no report falls in between
    try:
        waiting.read(await _live(connection))
        with anyio.move_on_after(timeout_s):
            async with anyio.create_task_group() as group:
                group.start_soon(_drop_ended, connection, waiting)
                await waiting.wait()
                group.cancel_scope.cancel()
    finally:
        listener.close()
    return waiting.late


class Waiting:
    """The instances that an apply still waits for, and those that refused.

    Args:
        revision: What was handed out.
        workloads: Whose instances count.
    """

    def __init__(self, revision: int, workloads: Iterable[str]) -> None:
        self._revision = revision
        self._names = set(workloads)
        self._refused: dict[tuple[str, str], Report] = {}
        self._done: set[tuple[str, str]] = set()
        self._came = anyio.Event()
        self.missing: dict[tuple[str, str], Report] = {}  # by workload and instance: the last report of each

    @property
    def late(self) -> list[Report]:
        """Who does not run the revision."""
        return [*self.missing.values(), *self._refused.values()]

    def read(self, reports: Iterable[Report]) -> None:
        """What the stream held; an instance that has said something since is not asked twice."""
        for report in reports:
            key = (report.workload, report.instance)
            if key not in self._done | set(self._refused) | set(self.missing):
                self._take(key, report)

    def on_report(self, subject: str, _reply: str, _headers: bytes | None, data: bytes) -> None:
        """A report as it is sent."""
        workload, _, instance = subject.removeprefix("report.").rpartition(".")
        try:
            self._take((workload, instance), msgspec.json.decode(data, type=Report))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        self._came.set()

    def drop(self, known: Mapping[tuple[str, str], Report], live: Iterable[Report]) -> None:
        """Who has been missing since *known*, and is not among the *live* ones any more, has ended."""
        there = {(report.workload, report.instance) for report in live}
        for key, report in known.items():
            if key not in there and self.missing.get(key) is report:
                del self.missing[key]
        self._came.set()

    async def wait(self) -> None:
        """Return once nobody is missing."""
        while self.missing:
            self._came = anyio.Event()
            await self._came.wait()

    def _take(self, key: tuple[str, str], report: Report) -> None:
        self.missing.pop(key, None)
        self._refused.pop(key, None)
        if key[0] not in self._names or report.stopped or report.revision >= self._revision:
            self._done.add(key)
        elif report.refused is not None and report.refused.revision in {0, self._revision}:
            self._refused[key] = report
        else:
            self.missing[key] = report


async def _drop_ended(connection: Connection, waiting: Waiting) -> None:
    """Look who is still there: an instance that was killed says nothing, its reports are purged. Until cancelled."""
    while True:
        known = dict(waiting.missing)
        await anyio.sleep(LOOK_S)
        try:
            waiting.drop(known, await _live(connection))
        except MeshError as error:  # the time for the whole wait goes on
            log.warning("reports_not_read", code=error.code, error=str(error))


async def _live(connection: Connection) -> list[Report]:
    since_ms = now_ms() - int(LIVE_S * 1000)
    return [report for report in await read_reports(connection) if report.at_ms >= since_ms]


async def forget(connection: Connection, workload: str) -> None:
    """Purge the reports of *workload*: no process of it runs. A failure is logged: they count until they are old."""
    try:
        with anyio.fail_after(FORGET_S):
            await manage.api(connection, "STREAM.PURGE.REPORTS", {"filter": f"report.{workload}.>"})
    except (MeshError, TimeoutError) as error:
        log.warning("reports_not_purged", workload=workload, error=type(error).__name__)
