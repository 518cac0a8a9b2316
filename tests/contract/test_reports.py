"""Reports against a real server: what an instance says is what the control plane reads, under the server's stamp."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from mesh import __version__, reports
from mesh.errors import RequestFailed, Unavailable
from mesh.reports import PolicyState, Refused, Reporter, read_reports
from tests.contract.agent_mesh import Streams, now_ms, until

pytestmark = pytest.mark.anyio

SLACK_MS = 5_000


@pytest.fixture
async def streams(tmp_path: Path) -> AsyncIterator[Streams]:
    """The tenant's streams, empty."""
    async with Streams.running(tmp_path, bundle=False) as running:
        yield running


def reporter(streams: Streams, name: str, state: PolicyState | None = None, **more: object) -> Reporter:
    """One instance."""
    given = state or PolicyState()
    return Reporter(streams.connection, name, state=lambda: given, **{"kind": "agent", **more})  # type: ignore[arg-type]


async def test_nothing_reported_is_no_reports(streams: Streams) -> None:
    """An empty stream reads as an empty list."""
    assert await read_reports(streams.connection) == []


async def test_a_report_is_read_back_whole(streams: Streams) -> None:
    """Revision, digest, refusal and findings arrive; the stamp is the server's, and teams are told from agents."""
    refused = Refused("bundle-rollback", 3)
    state = PolicyState(revision=4, digest="ab" * 32, adopted_ms=17, refused=refused)
    desk = reporter(streams, "desk", state, shadow=lambda: {"would_deny": 2}, clock_ms=lambda: 5)
    team = reporter(streams, "desk", kind="team")
    await desk.send()
    await team.send()
    one, other = await read_reports(streams.connection)
    assert (one.name, one.kind, one.instance, one.version, one.clock_ms) == (
        "desk", "agent", desk.instance, __version__, 5,
    )  # fmt: skip
    assert (one.revision, one.digest, one.adopted_ms, one.refused) == (4, "ab" * 32, 17, refused)
    assert one.shadow == {"would_deny": 2}
    assert abs(one.at_ms - now_ms()) < SLACK_MS
    assert (other.name, other.kind, other.workload, other.revision) == ("desk", "team", "team-desk", 0)


async def test_each_instance_has_its_last_report(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are and however often they reported, over as many pages as it takes."""
    monkeypatch.setattr(reports, "PAGE", 4)
    instances = [reporter(streams, f"agent-{n}") for n in range(10)]
    for one in instances:
        await one.send()
    for one in instances[:3]:
        await one.send()
    read = await read_reports(streams.connection)
    assert [(r.name, r.instance) for r in read] == [(one.name, one.instance) for one in instances]


async def test_a_report_counts_under_its_subject(streams: Streams) -> None:
    """What the body says of name and instance does not count: NATS lets a workload use its own subject alone."""
    liar = reporter(streams, "desk")
    body = liar.body().replace(b'"desk"', b'"lake"')
    await streams.connection.request("report.crm-adapter.0a0b0c0d", body)
    (read,) = await read_reports(streams.connection)
    assert (read.name, read.instance) == ("crm-adapter", "0a0b0c0d")


async def test_what_is_no_report_is_left_out(streams: Streams) -> None:
    """One workload's nonsense does not hide the others."""
    await streams.connection.request("report.lake.00000000", b"\xff{")
    await streams.connection.request("report.desk", b"{}")
    await reporter(streams, "desk").send()
    assert [r.name for r in await read_reports(streams.connection)] == ["desk"]


async def test_an_instance_that_stopped_is_not_waited_for(streams: Streams) -> None:
    """Its last report says so, and it is no longer among those who run anything."""
    desk, lake = reporter(streams, "desk"), reporter(streams, "lake")
    await desk.send()
    await lake.send()
    await desk.send(stopped=True)
    assert [r.name for r in await read_reports(streams.connection)] == ["lake"]


async def test_a_reporter_reports_when_there_is_news(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and again when woken, long before the next report is due."""
    monkeypatch.setattr(reports, "EVERY_S", 3600.0)
    state = PolicyState(revision=1)
    desk = Reporter(streams.connection, "desk", kind="team", state=lambda: state)

    async def says(revision: int) -> bool:
        return [r.revision for r in await read_reports(streams.connection)] == [revision]

    async with anyio.create_task_group() as group:
        group.start_soon(desk.run)
        await until(lambda: says(1))
        state = PolicyState(revision=2)
        desk.wake()
        await until(lambda: says(2))
        group.cancel_scope.cancel()


async def test_a_report_that_is_not_stored_is_an_error(streams: Streams) -> None:
    """Somebody else's acknowledgement is none, nor is no answer."""
    desk = reporter(streams, "desk")
    desk.subject = "audit.desk"
    with pytest.raises(RequestFailed):
        await desk.send()
    desk.subject = "nobody.listens"
    with pytest.raises(Unavailable):
        await desk.send()
