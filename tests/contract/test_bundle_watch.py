"""The policy bundle as every process keeps it: adopted whole, the last good one on disk, older ones where needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import msgspec
import pytest

from agent.core import Agent
from agent.settings import load as load_settings
from mesh import audit
from mesh.bundles import KEPT_PLANS, compiled, policy_key
from mesh.errors import BadBundle, BundleChain, ConfigError, Denied, RevisionNeeded
from mesh.jetstream.store import KeyValue
from mesh.policy.compile import Plans
from mesh.policy.envelope import open_bundle, seal_bundle
from mesh.reports import Report, read_reports
from mesh.watch import BundleWatch
from tests.contract.agent_mesh import POLICIES, POLICY_KEY, POLICY_SEED, Streams, event, until, write_directory

pytestmark = pytest.mark.anyio

DENIED = (
    POLICIES.rstrip()
    + "\n    - {id: none, who: {teams: [crm]}, publish: ['crm.contact.>'], when: \"data.country == 'DE'\"}\n"
)


@pytest.fixture
async def streams(tmp_path: Path) -> AsyncIterator[Streams]:
    """The tenant's streams and its first bundle."""
    async with Streams.running(tmp_path / "nats") as running:
        yield running


def watch(
    streams: Streams, *, file: Path | None = None, on_change: Callable[[Plans], None] | None = None
) -> BundleWatch:
    """One process's watch."""
    return BundleWatch(streams.connection, POLICY_KEY, tenant="acme", file=file, on_change=on_change)


async def test_each_new_revision_is_adopted_once_and_whole(streams: Streams) -> None:
    """`on_change` gets the plans of each; looking again at the same one changes nothing."""
    adopted: list[int] = []
    watching = watch(streams, on_change=lambda plans: adopted.append(plans.bundle.revision))
    for expected in (1, 2, 3):
        await watching.refresh()
        await watching.refresh()
        assert adopted == list(range(1, expected + 1))
        assert watching.plans is not None
        state = watching.state
        assert (state.revision, state.digest, state.refused) == (expected, watching.plans.bundle.digest, None)
        await streams.hand_out()


async def test_a_notice_brings_it_at_once(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running, it adopts what a notice tells of, long before the next poll."""
    monkeypatch.setattr("mesh.watch.POLL_S", 3600.0)
    watching = watch(streams)
    async with anyio.create_task_group() as group:
        group.start_soon(watching.run)
        await until(lambda: watching.state.revision == 1)
        await streams.hand_out()
        await until(lambda: watching.state.revision == 2)
        group.cancel_scope.cancel()


async def test_revisions_may_be_missed(streams: Streams) -> None:
    """Who was away finds the one it has among those that the newest names, and follows."""
    watching = watch(streams)
    await watching.refresh()
    for _ in range(3):
        await streams.hand_out()
    await watching.refresh()
    assert watching.state.revision == 4


def refusal(watching: BundleWatch) -> tuple[str, int] | None:
    """Code and revision of what was refused last."""
    refused = watching.state.refused
    return None if refused is None else (refused.code, refused.revision)


async def test_a_refused_bundle_leaves_the_good_one_and_a_good_one_ends_the_refusal(streams: Streams) -> None:
    """What was refused is said with its code and revision until a good one comes."""
    news: list[tuple[str, int] | None] = []
    watching = watch(streams)
    watching.on_news = lambda: news.append(refusal(watching))
    await watching.refresh()
    first = await streams.envelope()
    await streams.hand_out()
    await watching.refresh()
    before = watching.plans
    await streams.put(first)
    await watching.refresh()
    await watching.refresh()
    assert watching.plans is before
    assert refusal(watching) == ("bundle-rollback", 1)
    assert before is not None
    await streams.put(seal_bundle(before.bundle, POLICY_SEED))
    await watching.refresh()
    assert refusal(watching) is None
    assert news == [None, None, ("bundle-rollback", 1), None]


async def test_a_bundle_of_another_tenant_is_refused(streams: Streams) -> None:
    """Signed by the right key and still not ours."""
    watching = BundleWatch(streams.connection, POLICY_KEY, tenant="other")
    await watching.refresh()
    assert watching.plans is None
    assert refusal(watching) == ("bundle-chain", 1)


# --- on disk ---------------------------------------------------------------------------------------------------------


async def test_the_last_good_bundle_survives_a_restart(streams: Streams, tmp_path: Path) -> None:
    """A new process begins with it, and without NATS; the file is as private as a key."""
    file = tmp_path / "bundle.last"
    await streams.hand_out()
    await watch(streams, file=file).refresh()
    assert file.read_bytes() == await streams.envelope()
    assert file.stat().st_mode & 0o777 == 0o600
    again = watch(streams, file=file)
    plans = again.load()
    assert plans is not None
    assert (plans.bundle.revision, again.state.revision) == (2, 2)


async def test_an_older_bundle_is_refused_across_a_restart(streams: Streams, tmp_path: Path) -> None:
    """The store was set back while the process was away: what it had stays in force."""
    file = tmp_path / "bundle.last"
    first = await streams.envelope()
    await streams.hand_out()
    await watch(streams, file=file).refresh()
    await streams.put(first)
    again = watch(streams, file=file)
    again.load()
    await again.refresh()
    assert again.state.revision == 2
    assert refusal(again) == ("bundle-rollback", 1)
    assert open_bundle(file.read_bytes(), POLICY_KEY).revision == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"mesh-policy-1.x", b"\xff" * 100])
async def test_a_file_that_does_not_hold_up_is_left_aside(streams: Streams, tmp_path: Path, content: bytes) -> None:
    """It was changed, or half of it is missing: no bundle, and the one of the store replaces it."""
    file = tmp_path / "bundle.last"
    file.write_bytes(content)
    watching = watch(streams, file=file)
    assert watching.load() is None
    await watching.refresh()
    assert watching.state.revision == 1
    assert file.read_bytes() == await streams.envelope()


async def test_a_file_of_another_signer_is_left_aside(streams: Streams, tmp_path: Path) -> None:
    """Whoever can write our files cannot make us follow policies of his own."""
    file = tmp_path / "bundle.last"
    bundle = open_bundle(await streams.envelope(), POLICY_KEY)
    file.write_bytes(seal_bundle(bundle, bytes(32)))
    assert watch(streams, file=file).load() is None


async def test_where_no_file_can_be_written_all_goes_on(streams: Streams, tmp_path: Path) -> None:
    """A read-only mount: the bundle is adopted all the same."""
    for file in (tmp_path / "missing" / "bundle.last", tmp_path):
        watching = watch(streams, file=file)
        assert watching.load() is None
        await watching.refresh()
        assert watching.state.revision == 1


def test_the_policy_key_is_a_file_that_must_be_there(tmp_path: Path) -> None:
    """Without it no bundle could be believed, so nothing starts."""
    for content in (None, "", "ab", "z" * 64):
        if content is not None:
            (tmp_path / "policy.pub").write_text(content)
        with pytest.raises(ConfigError):
            policy_key(tmp_path)
    (tmp_path / "policy.pub").write_text(POLICY_KEY.hex() + "\n")
    assert policy_key(tmp_path) == POLICY_KEY


# --- older revisions -------------------------------------------------------------------------------------------------


async def test_older_revisions_are_read_where_they_are_needed(streams: Streams) -> None:
    """`past` asks for one that is not here; fetched, it is; the one in force needs no fetching."""
    for _ in range(2):
        await streams.hand_out()
    watching = watch(streams)
    await watching.refresh()
    assert watching.past(3) is watching.plans
    with pytest.raises(RevisionNeeded) as needed:
        watching.past(1)
    assert needed.value.details["revision"] == 1
    await watching.fetch_past(1)
    assert watching.past(1).bundle.revision == 1


async def test_the_one_that_was_in_force_is_kept(streams: Streams) -> None:
    """After a swap the copies of a moment ago need no fetching."""
    watching = watch(streams)
    await watching.refresh()
    before = watching.plans
    await streams.hand_out()
    await watching.refresh()
    assert watching.past(1) is before


async def test_a_bounded_number_of_them_is_held(streams: Streams) -> None:
    """A backlog over many revisions costs fetches, not memory."""
    for _ in range(KEPT_PLANS + 1):
        await streams.hand_out()
    watching = watch(streams)
    await watching.refresh()
    for revision in range(1, KEPT_PLANS + 2):
        await watching.fetch_past(revision)
    with pytest.raises(RevisionNeeded):
        watching.past(1)
    assert watching.past(2).bundle.revision == 2


async def test_an_older_revision_has_to_be_the_one_that_was_in_force(streams: Streams) -> None:
    """Its digest is in the bundle in force: nobody can put wider policies in the place of old ones."""
    first = open_bundle(await streams.envelope(), POLICY_KEY)
    await streams.hand_out()
    watching = watch(streams)
    await watching.refresh()
    store = KeyValue(streams.connection, "mesh_policy")
    forged = msgspec.structs.replace(first, author="somebody")
    for envelope, error in (
        (seal_bundle(forged, POLICY_SEED), BundleChain),
        (seal_bundle(first, bytes(32)), BadBundle),
        (b"", BadBundle),
    ):
        await store.put("bundle.1", envelope)
        with pytest.raises(error):
            await watching.fetch_past(1)
    await store.delete("bundle.1")
    with pytest.raises(BundleChain):
        await watching.fetch_past(1)
    with pytest.raises(RevisionNeeded):
        watching.past(1)


async def test_many_in_one_process_share_what_is_compiled(streams: Streams) -> None:
    """Agents side by side hold one object for one bundle, and let go of it together."""
    one, other = watch(streams), watch(streams)
    await one.refresh()
    await other.refresh()
    assert one.plans is not None
    assert one.plans is other.plans
    assert compiled(one.plans.bundle) is one.plans


async def test_the_revision_in_force_at_a_time_is_known(streams: Streams) -> None:
    """By the server's stamps: before the first nobody knows, between two the older one was in force."""
    watching = watch(streams)
    await watching.refresh()
    await streams.hand_out()
    await streams.hand_out()
    await watching.refresh()
    assert watching.plans is not None
    stamps = [past.at_ms for past in watching.plans.bundle.lineage]
    entry = await KeyValue(streams.connection, "mesh_policy").get("bundle")
    assert entry is not None
    at = watching._bundles.revision_at
    assert [at(stamps[0] - 1), at(stamps[0]), at(stamps[1]), at(entry.at_ms), at(entry.at_ms + 9)] == [None, 1, 2, 3, 3]
    assert at(entry.at_ms - 1) in {1, 2}


# --- an agent --------------------------------------------------------------------------------------------------------


def agent_at(base: Path, url: str) -> Agent:
    """An agent of this directory."""
    environ = {"MESH_AGENT_NATS_URL": url, "MESH_AGENT_GIVE_UP_S": "0.5"}
    return Agent(load_settings((base / "agent.toml").read_text(), environ).settings, base)


async def reports_of(streams: Streams) -> list[Report]:
    """What agents say."""
    return await read_reports(streams.connection)


async def test_an_agent_reports_what_it_runs_and_what_it_refused(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each adoption and each refusal is reported at once, and a refusal is in the audit trail too."""
    monkeypatch.setattr("mesh.watch.POLL_S", 3600.0)
    monkeypatch.setattr("mesh.reports.EVERY_S", 3600.0)
    async with agent_at(write_directory(tmp_path / "agent"), streams.server.url) as agent:

        async def says(revision: int, refused: str | None) -> bool:
            return [(r.name, r.kind, r.revision, r.refused and r.refused.code) for r in await reports_of(streams)] == [
                ("crm-adapter", "agent", revision, refused)
            ]

        await until(lambda: says(1, None))
        old = await streams.envelope()
        await streams.hand_out()
        await until(lambda: says(2, None))
        await streams.put(old)
        await until(lambda: says(2, "bundle-rollback"))
        assert agent.state()["bundle_refused"] == {"code": "bundle-rollback", "revision": 1}
        await until(lambda: streams.stored("AUDIT"))
        record = await streams.message("AUDIT", 1)
        assert (record["kind"], record["facts"]) == (audit.POLICY_REFUSED, {"code": "bundle-rollback", "revision": 1})
    assert await reports_of(streams) == []


async def test_an_agent_without_nats_starts_with_the_last_good_bundle(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ready, refuses what the policies refuse, and spools what they allow."""
    base = write_directory(tmp_path / "agent")
    await streams.hand_out(policies=DENIED)
    async with agent_at(base, streams.server.url):
        await until((base / "bundle.last").exists)
    monkeypatch.setattr("agent.policies.FIRST_CONNECT_S", 0.05)
    async with agent_at(base, "nats://127.0.0.1:1") as agent:
        assert agent.not_ready() == []
        assert agent.state()["bundle_revision"] == 2
        with pytest.raises(Denied) as denied:
            await agent.publish(event())
        assert denied.value.details["rule"] == "none"
        receipt = await agent.publish(event(type="github.push.v1", source="/github/main"))
        assert receipt.durable == "spool"


async def test_an_agent_without_nats_and_without_a_bundle_denies_all(tmp_path: Path) -> None:
    """No bundle means deny: it goes on trying, and says that it is not ready."""
    agent = agent_at(write_directory(tmp_path / "agent"), "nats://127.0.0.1:1")
    try:
        await agent.start()
        assert agent.not_ready() == ["nats-unreachable"]
    finally:
        await agent.close()
