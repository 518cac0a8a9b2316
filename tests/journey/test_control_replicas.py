"""A control plane of replicas, real processes on a real server. The tests follow one another, as its leaders do."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from mesh.control.door import pack
from mesh.control.run_status import status as replica_status
from mesh.control.trust_audit import unpack
from mesh.control.vault_files import read_state
from tests.contract.policy_mesh import policies, reads
from tests.journey.replicas import Replicas, replicas

pytestmark = pytest.mark.anyio

BARRED, OTHER = "lake", "desk"
WAIT_S = 60.0
MISUSE = 2


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Two replicas with policies: one leads, one waits. The third has not been started."""
    directory = tmp_path_factory.mktemp("replicas")
    directory.chmod(0o700)
    given = directory / "policies"
    given.mkdir()
    for name, text in policies(reads("masked")).items():
        (given / name).write_text(text)
    with replicas(directory, given, "cp-1", "cp-2", "cp-3") as mesh:
        for replica in mesh.all[:2]:
            mesh.start(replica)
        mesh.leader()
        until(lambda: all(replica.states for replica in mesh.all[:2]))
        yield mesh


def until(true: Callable[[], bool]) -> None:
    """Wait for it."""
    limit = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.05)


def made_once(root: Path) -> dict[str, bytes]:
    """The state that no leader makes anew."""
    found = read_state(root)
    return {name: found[name] for name in found if not name.endswith(".statement") and name != "admin/nats.creds"}


def keys(root: Path) -> dict[str, bytes]:
    """What ids, tokens and accounts are made with: of that only the first leader may make any."""
    kinds = ("/dedupe.key", "/token", ".account.nk", "admin/ca.key")
    return {name: content for name, content in read_state(root).items() if name.endswith(kinds)}


async def test_a_leader_that_was_stopped_changes_nothing_when_it_goes_on(mesh: Replicas) -> None:
    """Meanwhile another one leads and answers. The first finds it out and waits, and knows all that was done."""
    first = mesh.leader()
    waited = first.states.count("waits")
    first.signal(signal.SIGSTOP)
    second = mesh.leader(but=first)
    files = {path.name: path.read_text() for path in mesh.policies.iterdir()}
    changed = {"p.yaml": files["p.yaml"].replace("view: masked", "view: bare")}
    applied = await mesh.ask(second, "policy", "apply", files=pack(changed, {}), author="test", reason="other")
    assert applied["revision"] == 2
    await mesh.ask(second, "trust", "revoke", agent=OTHER, reason="test")
    first.signal(signal.SIGCONT)
    until(lambda: first.states.count("waits") > waited or first.states[-1] == "waits")
    until(lambda: made_once(first.data.root) == made_once(second.data.root))
    assert (await mesh.ask(first, "policy", "status"))["revision"] == 2  # asked where no leader is
    report = unpack(await mesh.ask(second, "trust", "audit"))
    assert report["holds"], report["flags"]


async def test_what_was_answered_outlives_a_leader_that_is_killed(mesh: Replicas) -> None:
    """Keys, tokens, who is barred, and the audit record of it; and statements go on with higher numbers."""
    first = mesh.leader()
    await mesh.ask(first, "trust", "revoke", agent=BARRED, reason="test")
    told = await mesh.ask(first, "trust", "list")
    first.signal(signal.SIGKILL)
    second = mesh.leader()
    assert second is not first
    said = await mesh.ask(second, "trust", "list")
    assert said["barred"] == told["barred"] == sorted((BARRED, OTHER))
    assert said["statement"]["epoch"] > told["statement"]["epoch"]
    assert (await mesh.ask(second, "policy", "status"))["revision"] == 2
    assert BARRED in [record.facts["workload"] for record in await mesh.audited(second, "trust-revoked")]
    assert keys(second.data.root)
    assert keys(second.data.root) == keys(first.data.root)


async def test_who_leads_is_shown_and_a_replica_whose_clock_is_wrong_never_does(mesh: Replicas) -> None:
    """Not even alone: its statements would be none to the agents."""
    last = mesh.leader()
    (wrong,) = [replica for replica in mesh.all[:2] if not replica.alive]
    mesh.start(wrong, ahead_s=3600.0)
    until(lambda: wrong.states == ["waits"])
    with anyio.fail_after(WAIT_S):
        while not (said := await replica_status(last.data, mesh.url, None)).leads:
            await anyio.sleep(0.1)
    assert said.lease is not None
    assert said.lease.holder == last.name
    assert said.head is not None
    assert said.head.term == said.lease.term  # the state is this leader's
    last.signal(signal.SIGTERM)
    until(lambda: wrong.logged("clock_wrong"))
    assert wrong.alive
    assert "leads" not in wrong.states
    assert not (await replica_status(last.data, mesh.url, None)).leads


async def test_a_state_that_was_lost_is_put_back_and_no_other_mesh_made_in_its_place(mesh: Replicas) -> None:
    """A replica that never saw it ends, and says what to do; one that has a copy leads with all that it knew."""
    *started, fresh = mesh.all
    seen = max(started, key=lambda one: int((one.data.admin / "state.generation").read_text()))
    for replica in mesh.all:
        replica.kill()
    await mesh.lose_state()
    mesh.start(fresh)
    assert fresh.ended() == MISUSE
    assert "admin/state.generation" in fresh.said.read_text() + fresh.log.read_text()
    assert '"leads"' not in fresh.said.read_text()
    before = keys(seen.data.root)
    mesh.start(seen)
    mesh.leader()
    assert (await mesh.ask(seen, "trust", "list"))["barred"] == sorted((BARRED, OTHER))
    assert keys(seen.data.root) == before
