"""Who runs which revision: what the instances of agents and teams report, and waiting until they run a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio
import msgspec

from mesh import logs
from mesh.control.reconcile import now_ms
from mesh.reports import EVERY_S, Report, read_reports

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.jetstream.connection import Connection
    from mesh.policy.bundle import Bundle

ADOPT_S = 30.0  # who has not said by then that it runs a new revision is waited for no longer
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
    waiting: dict[tuple[str, str], Report] = {}
    refused: dict[tuple[str, str], Report] = {}
    done: set[tuple[str, str]] = set()
    names = set(workloads)
    came = anyio.Event()

    def take(workload: str, instance: str, report: Report) -> None:
        key = (workload, instance)
        waiting.pop(key, None)
        refused.pop(key, None)
        if workload not in names or report.stopped or report.revision >= revision:
            done.add(key)
        elif report.refused is not None and report.refused.revision in {0, revision}:
            refused[key] = report
        else:
            waiting[key] = report

    def on_report(subject: str, _reply: str, _headers: bytes | None, data: bytes) -> None:
        workload, _, instance = subject.removeprefix("report.").rpartition(".")
        try:
            take(workload, instance, msgspec.json.decode(data, type=Report))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        came.set()

    listener = connection.listen("report.>", on_report)  # before reading: no report falls in between
    try:
        since_ms = now_ms() - int(LIVE_S * 1000)
        for report in await read_reports(connection):
            key = (report.workload, report.instance)
            if report.at_ms >= since_ms and key not in done | set(refused) | set(waiting):
                take(*key, report)
        with anyio.move_on_after(timeout_s):
            while waiting:
                came = anyio.Event()
                await came.wait()
    finally:
        listener.close()
    return [*waiting.values(), *refused.values()]
