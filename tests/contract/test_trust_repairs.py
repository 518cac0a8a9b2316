"""Revocations that reach back, and ones that were cut short: nothing of a thief's is left, against a real server."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nacl.bindings import crypto_sign_seed_keypair

from mesh import audit
from mesh.control import rotation
from mesh.control.attest import FileAttestor
from mesh.control.datadir import DataDirectory
from mesh.control.reconcile import now_ms
from mesh.control.trust_requests import LEAD_MS
from mesh.control.truststore import TrustStore
from mesh.errors import ConfigError, NotFound, Unavailable, WorkloadBarred
from mesh.jetstream.link import Credentials
from tests.contract.policy_mesh import PolicyMesh, policies, reads
from tests.contract.test_tenant import tenant_of
from tests.contract.test_trust_service import IDS, World

pytestmark = pytest.mark.anyio

FILES = policies(reads("masked"))
LAKE = "spiffe://mesh.local/lakehouse"  # the id of `lake` today; the usual one of before is another
IDENTITIES = f"identities: {{lake: '{LAKE}', crm-adapter: 'spiffe://mesh.local/crm', desk: '{IDS['crm-adapter']}'}}, "


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One control plane for all tests of this file; `desk` has the id that `crm-adapter` would have."""
    async with PolicyMesh.running(tmp_path_factory.mktemp("trust-repairs")) as mesh:
        world = World(mesh)
        await world.start()
        given = {name: text.replace("{teams: {crm", f"{{{IDENTITIES}teams: {{crm") for name, text in FILES.items()}
        await world.policies.apply(given, {})
        assert world.policies.grants.agents["lake"].spiffe_id == LAKE
        yield world


@pytest.fixture
async def world(shared: World) -> AsyncIterator[World]:
    """The same; whoever was barred is admitted again afterwards. No agent runs, so no rotation waits."""
    shared.audited.clear()
    yield shared
    for workload in shared.standing.barred:
        team = workload.removeprefix("team-")
        await shared.ask("admit", **({"agent": workload} if team == workload else {"team": team}))


async def key_of(world: World, spiffe_id: str, *, ended_ms: int = 0) -> str:
    """A key of *spiffe_id*; its certificate ended so long ago, and nothing but the bucket has it any more."""
    public, _ = crypto_sign_seed_keypair(secrets.token_bytes(32))
    at_ms = now_ms() - ended_ms - 1000 * bool(ended_ms)
    lifetime_s = 1 if ended_ms else 86_400
    kid = await world.store.publish(
        world.mesh.authority.ca.issue(spiffe_id, public, now_ms=at_ms, lifetime_s=lifetime_s)
    )
    await world.store.prune(now_ms())
    assert (kid in {held.kid for held in world.store.present(0)}) is not bool(ended_ms)
    return kid


# --- a cut in the past -----------------------------------------------------------------------------------------------


async def test_a_past_cut_takes_keys_that_have_ended_since(world: World) -> None:
    """What they sealed lies in streams for days and is judged by them: a thief's of yesterday goes with today's."""
    today, ended = await key_of(world, LAKE), await key_of(world, LAKE, ended_ms=20_000)
    before, others = await key_of(world, LAKE, ended_ms=50_000), await key_of(world, IDS["desk"], ended_ms=20_000)
    said = await world.ask("revoke", agent="lake", from_ms=now_ms() - 35_000)
    kids = {key["kid"] for key in said["keys"]}
    assert {today, ended} <= kids
    assert not {before, others} & kids
    revoked = await world.revoked()
    assert revoked[today] == revoked[ended] == said["cut_ms"]
    assert not {before, others} & revoked.keys()
    assert set(world.facts(audit.TRUST_REVOKED)["kids"]) == kids


async def test_an_agent_loses_the_keys_of_its_usual_id_too(world: World) -> None:
    """The one it had before the Tenant document gave it another; unless that is another agent's today."""
    former, today = await key_of(world, IDS["lake"]), await key_of(world, LAKE)
    said = await world.ask("revoke", agent="lake")
    assert {former, today} <= {key["kid"] for key in said["keys"]}
    mine, of_desk = await key_of(world, "spiffe://mesh.local/crm"), await key_of(world, IDS["crm-adapter"])
    said = await world.ask("revoke", agent="crm-adapter")
    assert [key["kid"] for key in said["keys"]] == [mine]
    assert of_desk not in await world.revoked()


async def test_a_former_agent_whose_keys_have_ended_is_found_by_a_past_cut(world: World) -> None:
    """With a cut ahead there is nothing of it to revoke, and that is said."""
    kid = await key_of(world, "spiffe://mesh.local/ns/acme/sa/former", ended_ms=20_000)
    with pytest.raises(NotFound):
        await world.ask("revoke", agent="former")
    said = await world.ask("revoke", agent="former", from_ms=now_ms() - 35_000)
    assert [key["kid"] for key in said["keys"]] == [kid]


async def test_keys_that_run_are_revoked_though_the_bucket_cannot_be_listed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which ones ended is asked of the broker; today's we know without it. The trail says what was done."""
    kid = await key_of(world, LAKE)

    async def away() -> list[Any]:
        raise Unavailable("no leader")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "certificates", away)
        with pytest.raises(Unavailable):
            await world.ask("revoke", agent="lake", from_ms=now_ms() - 35_000)
    assert kid in await world.revoked()
    assert world.standing.barred == {"lake"}
    assert world.facts(audit.TRUST_REVOKED)["kids"].count(kid) == 1


# --- a server whose clock is another -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "asked", "lead_ms"),
    [
        ("revoke", {"agent": "lake"}, LEAD_MS),
        ("revoke", {"agent": "lake", "now": True}, 0),
        ("rotate", {"agents": ["lake"]}, rotation.LEAD_MS),
    ],
)
async def test_a_cut_lies_in_the_server_s_time(
    world: World, verb: str, asked: dict[str, Any], lead_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That clock stamps events: by ours, what a thief seals in the difference would pass, or honest events not."""
    monkeypatch.setattr(TrustStore, "offset_ms", property(lambda _store: -40_000))
    kid, before_ms = await key_of(world, LAKE), now_ms()
    said = await world.ask(verb, **asked)
    assert before_ms - 40_000 + lead_ms <= said["cut_ms"] <= now_ms() - 40_000 + lead_ms
    assert (await world.revoked())[kid] == said["cut_ms"]


# --- a mesh CA that a tenant's store did not hear of -----------------------------------------------------------------


@pytest.fixture
def deaf(world: World, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The first store that is told does not answer; undone, it does."""

    async def away(_kids: object) -> None:
        raise Unavailable("no leader")

    monkeypatch.setattr(world.other, "revoke", away)
    return monkeypatch


async def test_a_rotation_cut_short_and_repeated_revokes_the_stolen_ca_everywhere(
    world: World, deaf: pytest.MonkeyPatch
) -> None:
    """The CA of the second attempt is not the stolen one any more: every CA of before is revoked, in every tenant."""
    stolen = world.mesh.authority.ca.kid
    await key_of(world, LAKE)
    with pytest.raises(Unavailable):
        await world.ask("rotate", ca=True, revoke_old=True)
    assert stolen in await world.revoked()  # the failure of one store keeps no other from it
    assert world.facts(audit.TRUST_ROTATED)["revoked_cas"] == [stolen]
    between = world.mesh.authority.ca.kid
    deaf.undo()
    said = await world.ask("rotate", ca=True, revoke_old=True)
    assert {stolen, between} <= set(said["revoked_cas"])
    for store in (world.store, world.other):
        assert {stolen, between} <= store.revoked.keys()
        assert world.mesh.authority.ca.kid not in store.revoked


async def test_a_rotation_that_was_killed_after_the_next_ca_is_made_good_by_another(world: World) -> None:
    """Nothing was revoked by then, and the CA of before is on no record but in the certificates it made."""
    stolen = world.mesh.authority.ca.kid
    await key_of(world, LAKE)
    world.mesh.authority.renew_ca(now_ms(), force=True)
    said = await world.ask("rotate", ca=True, revoke_old=True)
    assert stolen in said["revoked_cas"]
    assert world.store.revoked[stolen] == world.other.revoked[stolen] == said["cut_ms"]


async def test_a_mesh_ca_is_revoked_in_every_store_that_answers(world: World, deaf: pytest.MonkeyPatch) -> None:
    """And the trail says so, though the command fails; repeated, it reaches the rest."""
    old = world.mesh.authority.ca.kid
    await key_of(world, LAKE)
    await world.ask("rotate", ca=True)
    with pytest.raises(Unavailable):
        await world.ask("revoke", kid=old)
    assert old in await world.revoked()
    assert old not in world.other.revoked
    assert world.facts(audit.TRUST_REVOKED)["kids"] == [old]
    deaf.undo()
    await world.ask("revoke", kid=old)
    assert old in world.other.revoked


# --- what is on record -----------------------------------------------------------------------------------------------


async def test_a_repeated_revocation_is_recorded_with_the_cut_that_holds(world: World) -> None:
    """The earlier one, as the answer has it; an agent that has no key left to revoke is recorded without one."""
    kid = await key_of(world, LAKE)
    first = await world.ask("revoke", kid=kid, now=True)
    again = await world.ask("revoke", kid=kid)
    assert again["cut_ms"] > first["cut_ms"]
    assert world.facts(audit.TRUST_REVOKED)["from_ms"] == again["keys"][0]["from_ms"] == first["cut_ms"]
    for key in await key_of(world, LAKE), None:
        said = await world.ask("revoke", agent="lake")
        facts = world.facts(audit.TRUST_REVOKED)
        assert (key in facts["kids"], facts["from_ms"]) == ((True, said["cut_ms"]) if key else (False, None))


# --- admitting who is not barred -------------------------------------------------------------------------------------

NOTHING: dict[str, str] = {}
SEED = "../../../keys/acme/lake.user.nk"  # of the NATS user, the control plane's own
LOST: list[tuple[str, dict[str, bytes | None], dict[str, str]]] = [
    ("lake", {"enrol.token": None}, {"enrol.token": "new token"}),
    ("lake", {"enrol.token": b"of another mesh\n"}, {"enrol.token": "new token"}),
    ("lake", {"nats.creds": None}, {"nats.creds": "same user"}),
    ("lake", {"nats.creds": b"half"}, {"nats.creds": "same user"}),
    ("lake", {SEED: None}, {"nats.creds": "new user"}),
    ("lake", {"nats.creds": None, "enrol.token": None}, {"nats.creds": "same user", "enrol.token": "new token"}),
    ("team-support", {"nats.creds": None}, {"nats.creds": "same user"}),
]


@pytest.mark.parametrize(("workload", "lost", "written"), LOST)
async def test_files_that_were_lost_come_back(
    world: World, workload: str, lost: dict[str, bytes | None], written: dict[str, str]
) -> None:
    """Without a restart, and no more than was lost; it connects and would enrol. Asked again, nothing is missing."""
    team = workload.removeprefix("team-")
    asked = {"agent": workload} if team == workload else {"team": team}
    path = world.files.credentials(workload).parent
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    for name, instead in lost.items():
        (path / name).unlink() if instead is None else (path / name).write_bytes(instead)
    said = await world.ask("admit", **asked, author="ada")
    assert (said["admitted"], said["written"]) == (False, written)
    assert world.facts(audit.TRUST_ADMITTED) == {
        "workload": workload, "written": written, "author": "ada", "reason": None,
    }  # fmt: skip
    after = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    assert {name: after[name] for name in before if name not in written} == {
        name: content for name, content in before.items() if name not in written
    }
    users = {Credentials.parse(files["nats.creds"]).seed for files in (before, after)}
    assert len(users) == (2 if written.get("nats.creds") == "new user" else 1)
    assert (await world.connect(workload)).connected
    if "agent" in asked:
        for attestor in (world.attestor, FileAttestor(world.data.enrolment("acme"))):  # of the next start, too
            assert (await attestor.attest(world.token(workload))).spiffe_id == LAKE
    world.audited.clear()
    assert (await world.ask("admit", **asked))["written"] == NOTHING
    assert world.audited == []


@pytest.mark.parametrize(("asked", "names"), [({"agent": "nobody"}, "lake"), ({"team": "nobody"}, "support")])
async def test_nobody_is_admitted_under_a_name_that_is_none(world: World, asked: dict[str, str], names: str) -> None:
    """A slip of the pen is no success: the names there are are told, and nothing was written."""
    with pytest.raises(NotFound) as refused:
        await world.ask("admit", **asked)
    assert names in refused.value.expected
    assert not world.data.agent("nobody").exists()
    assert not world.data.team("nobody").exists()
    assert world.audited == []


# --- rotating past who is barred -------------------------------------------------------------------------------------


async def test_a_rotation_of_all_names_whom_it_left_out(world: World) -> None:
    """Barred agents; a barred team is not asked for by `--all`. Among agents that are named none is left out."""
    await world.ask("revoke", agent="desk")
    await world.ask("revoke", team="support")
    assert (await world.ask("rotate", everybody=True))["skipped"] == ["desk"]
    assert (await world.ask("rotate", agents=["lake"]))["skipped"] == []


@pytest.mark.parametrize(
    ("who", "asked", "admit"),
    [
        ({"agent": "desk"}, {"agents": ["desk"]}, "admit desk"),
        ({"team": "support"}, {"teams": ["support"]}, "admit --team support"),
    ],
)
async def test_who_is_barred_is_told_how_it_comes_back(
    world: World, who: dict[str, str], asked: dict[str, list[str]], admit: str
) -> None:
    """A command that works when it is copied."""
    await world.ask("revoke", **who)
    with pytest.raises(WorkloadBarred) as refused:
        await world.ask("rotate", **asked)
    assert refused.value.next == f"`mesh trust {admit}`"


# --- who is barred, lost ---------------------------------------------------------------------------------------------


async def test_a_mesh_that_lost_who_is_barred_does_not_start(tmp_path: Path) -> None:
    """Every barred workload would be back. The file is there from the first start on, whoever is barred or not."""
    data = DataDirectory.open(tmp_path / "data")
    data.lock_file.touch()
    async with tenant_of(data):
        pass
    file = data.standing("acme")
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        async with tenant_of(data):
            pass
    assert not file.exists()
    file.write_bytes(kept)
    async with tenant_of(data):
        pass
