"""Who runs what: from the last report of each instance to what `mesh policy status` says."""

from __future__ import annotations

from typing import Any

import msgspec

from mesh.control.rollout import LIVE_S, Waiting, running
from mesh.reports import Refused, Report
from tests.unit.policy_world import bundle

BUNDLE = bundle()
NOW_MS = 1_000_000_000


def report(name: str = "desk", **fields: Any) -> Report:
    """A report of now that runs the bundle in force."""
    known = {"name": name, "instance": "aaaaaaaa", "kind": "agent", "revision": 1, "digest": BUNDLE.digest}
    return Report(**{**known, "at_ms": NOW_MS, **fields})


def states(*reports: Report, agents: tuple[str, ...] = ("desk",)) -> list[tuple[str, str, str]]:
    """(name, instance, state) of each instance that is shown."""
    return [(one.name, one.instance, one.state) for one in running(reports, agents, BUNDLE, at_ms=NOW_MS)]


def test_running_the_bundle_in_force_is_current() -> None:
    """Number and digest both agree."""
    assert states(report()) == [("desk", "aaaaaaaa", "current")]
    assert states(report(digest="0" * 64)) == [("desk", "aaaaaaaa", "behind")]
    assert states(report(revision=0, digest="")) == [("desk", "aaaaaaaa", "behind")]


def test_a_refusal_says_why() -> None:
    """Its code stands beside the state; one that was refused before counts no more once the bundle runs."""
    refused = report(revision=0, digest="", refused=Refused("bundle-signature", 1))
    (one,) = running([refused], ["desk"], BUNDLE, at_ms=NOW_MS)
    assert (one.state, one.code) == ("refusing", "bundle-signature")
    assert states(report(refused=Refused("bundle-rollback", 0))) == [("desk", "aaaaaaaa", "current")]


def test_an_agent_that_never_reported_is_silent() -> None:
    """Every agent of the policies is listed."""
    assert states(report(), agents=("desk", "lake")) == [("desk", "aaaaaaaa", "current"), ("lake", "", "silent")]


def test_what_a_restart_left_behind_is_not_shown() -> None:
    """An old instance matters only where its agent has no live one; a reader that went away never does."""
    old = report(instance="bbbbbbbb", at_ms=NOW_MS - int(LIVE_S * 1000) - 1)
    assert states(report(), old) == [("desk", "aaaaaaaa", "current")]
    assert states(old) == [("desk", "bbbbbbbb", "silent")]
    reader = report("crm", kind="team", at_ms=0)
    assert states(report(), reader, report("gone", at_ms=0)) == [("desk", "aaaaaaaa", "current")]


def test_an_agent_that_the_policies_no_longer_know_is_not_shown() -> None:
    """Its last report stays for a day; nobody waits for it."""
    assert states(report(), report("gone", revision=0)) == [("desk", "aaaaaaaa", "current")]


def test_an_instance_that_ended_in_order_is_gone() -> None:
    """Its last report says so."""
    assert states(report(stopped=True)) == [("desk", "", "silent")]


def waiting(*reports: Report) -> Waiting:
    """An apply of revision 2 that has read these."""
    made = Waiting(2, ["desk", "lake"])
    made.read(reports)
    return made


def test_an_apply_waits_for_who_runs_less() -> None:
    """Not for who runs it, has ended, has refused it, or is unknown to the policies; who refused it is late."""
    refused = report("lake", instance="cccccccc", refused=Refused("bundle-signature", 2))
    one = waiting(
        report(), report(instance="bbbbbbbb", revision=2), report("lake", stopped=True), report("gone"), refused
    )
    assert set(one.missing) == {("desk", "aaaaaaaa")}
    assert one.late == [report(), refused]
    one.on_report("report.desk.aaaaaaaa", "", None, msgspec.json.encode(report(revision=2)))
    assert (one.missing, one.late) == ({}, [refused])


def test_an_apply_does_not_wait_for_the_dead() -> None:
    """An instance that is no longer among the live ones has ended, unless it has said something since."""
    one = waiting(report(), report(instance="bbbbbbbb"), report("lake"))
    known = dict(one.missing)
    one.on_report("report.lake.aaaaaaaa", "", None, msgspec.json.encode(report("lake")))
    one.drop(known, [report(instance="bbbbbbbb")])
    assert set(one.missing) == {("desk", "bbbbbbbb"), ("lake", "aaaaaaaa")}
