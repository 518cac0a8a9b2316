"""Revoking, rotating and admitting through the control plane's door, against a real server in operator mode."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
import msgspec
import pytest
from anyio.abc import TaskStatus
from nacl.bindings import crypto_sign_seed_keypair

from mesh import audit
from mesh.ca import MeshCA
from mesh.control import rotation, trust_listing, trust_service
from mesh.control.accounts import Accounts
from mesh.control.attest import FileAttestor
from mesh.control.datadir import DataDirectory
from mesh.control.door import ControlDoor, Handler
from mesh.control.enforce import Enforcer
from mesh.control.policies import Policies
from mesh.control.reconcile import now_ms, team_workload
from mesh.control.renewal import Renewal
from mesh.control.standing import Standing
from mesh.control.trust_requests import LEAD_MS, MAX_BACK_MS
from mesh.control.truststore import TrustStore
from mesh.control.workload_files import WorkloadFiles
from mesh.errors import BadAttribute, ConfigError, MeshError, NotAttested, NotFound, Unavailable, WorkloadBarred
from mesh.identity import Keyring
from mesh.jetstream.accounts import Account
from mesh.jetstream.connection import Connection
from mesh.jetstream.store import KeyValue
from mesh.watch import NOTICE_SUBJECT, TRUST_BUCKET, TRUST_KEY
from tests.contract.policy_mesh import SITE, SIZES, Instance, PolicyMesh, policies, reads
from tests.contract.streams import DEADLINE_S

pytestmark = pytest.mark.anyio

IDS = {name: f"spiffe://mesh.local/ns/acme/sa/{name}" for name in ("crm-adapter", "desk", "lake")}
KID = "AAAAAAAAAAAAAAAAAAAAAA"
REFUSED_S = 0.4  # several attempts: each is refused within milliseconds


class World:
    """One tenant's control plane with its trust door."""

    def __init__(self, mesh: PolicyMesh) -> None:
        self.mesh = mesh
        self.data = DataDirectory(mesh.directory / "data")
        self.standing = Standing(self.data.standing("acme"))
        self.accounts = Accounts(mesh.system, mesh.operator, "acme", self.standing)
        self.attestor = FileAttestor(self.data.enrolment("acme"))
        self.files = WorkloadFiles(
            "acme", self.data, mesh.operator, self.attestor,
            nats_url=mesh.server.url, site=SITE, trust_domain="mesh.local", ports=None, tls=None,
        )  # fmt: skip
        self.renewal = Renewal(mesh.operator.keys, self.files, self.standing)
        self.policies = Policies(
            "acme",
            connection=mesh.control,
            enforcer=Enforcer(mesh.control, self.accounts, site=SITE, sizes=SIZES),
            store=mesh.store(),
            site=SITE,
            trust_domain="mesh.local",
            audit=lambda kind, **facts: self.audited.append((kind, facts)),
        )
        self.audited: list[tuple[str, dict[str, Any]]] = []
        self.store = TrustStore(mesh.control, mesh.authority, "acme", self.data.statement("acme"))
        # its statements go into the same bucket here, so those of ours have to come after
        self.other = TrustStore(mesh.control, mesh.authority, "other", self.data.statement("other"))
        self.stores_renewed = 0
        self.encrypted = True
        self.fault: Exception | None = None

    async def start(self) -> None:
        """Policies in force, everybody's files written, the first statement out."""
        await self.policies.apply(policies(reads("masked")), {})
        self.files.write(self.policies.grants)
        await self.store.open()

    async def _renew_store(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.stores_renewed += 1

    def handlers(self) -> dict[str, Handler]:
        """What the door answers."""
        return trust_service.handlers(
            self.policies,
            store=self.store,
            standing=self.standing,
            accounts=self.accounts,
            authority=self.mesh.authority,
            renewal=self.renewal,
            stores=lambda: (self.other, self.store),
            renew_store=self._renew_store if self.encrypted else None,
        )

    async def ask(self, verb: str, **asked: Any) -> dict[str, Any]:
        """As the door would answer."""
        return await self.handlers()[verb](asked)

    async def enrol(self, agent: str, *, at_ms: int = 0, ca: MeshCA | None = None) -> str:
        """Another key for *agent*; returns its id."""
        public, _ = crypto_sign_seed_keypair(secrets.token_bytes(32))
        issuer = ca or self.mesh.authority.ca
        return await self.store.publish(issuer.issue(IDS[agent], public, now_ms=at_ms or now_ms()))

    async def revoked(self) -> dict[str, int]:
        """As a reader finds it."""
        entry = await KeyValue(self.mesh.control, TRUST_BUCKET).get(TRUST_KEY)
        assert entry is not None
        return Keyring((), self.mesh.authority.trust_public, tenant="acme").apply(entry.value).revoked

    async def connect(self, workload: str, within_s: float = DEADLINE_S) -> Connection:
        """A client with the credentials that lie in the workload's directory."""
        return await self.dial(self.files.credentials(workload).read_bytes(), workload, within_s)

    async def dial(self, creds: bytes, name: str, within_s: float = DEADLINE_S) -> Connection:
        """A client with these credentials."""
        opened = await Connection.open(self.mesh.server.url, name=name, creds=creds, connect_timeout_s=within_s)
        self.mesh.connections.append(opened)
        return opened

    def token(self, agent: str) -> bytes:
        """What *agent* enrols with."""
        return (self.data.agent(agent) / "enrol.token").read_bytes().strip()

    def facts(self, kind: str) -> dict[str, Any]:
        """Of the last audit record, which is of this kind."""
        assert kind in audit.KINDS
        assert self.audited[-1][0] == kind
        return self.audited[-1][1]


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One control plane for all tests of this file."""
    async with PolicyMesh.running(tmp_path_factory.mktemp("trust-service")) as mesh:
        world = World(mesh)
        await world.start()
        yield world


@pytest.fixture
async def world(shared: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """The same; whoever was barred is admitted again afterwards. A rotation waits for half a second."""
    monkeypatch.setattr(rotation, "WAIT_S", 0.5)
    shared.audited.clear()
    yield shared
    for workload in shared.standing.barred:
        team = workload.removeprefix("team-")
        await shared.ask("admit", **({"agent": workload} if team == workload else {"team": team}))
    shared.encrypted, shared.fault = True, None


async def cut_off(connection: Connection) -> None:
    """Wait until the server has closed it for good: it does not come back either."""
    with anyio.fail_after(DEADLINE_S):
        while connection.connected:
            await anyio.sleep(0.01)


# --- revoking --------------------------------------------------------------------------------------------------------


async def test_a_revoked_key_has_a_cut_just_ahead(world: World) -> None:
    """The statement is out before the cut, which is a second away; other keys of the agent stay good."""
    kid, other = [await world.enrol("crm-adapter") for _ in range(2)]
    before_ms = now_ms()
    said = await world.ask("revoke", kid=kid, author="ada", reason="INC-4711")
    assert before_ms + LEAD_MS <= said["cut_ms"] <= now_ms() + LEAD_MS
    assert world.store.issued_ms < said["cut_ms"]
    assert (said["keys"], said["barred"]) == ([{"kid": kid, "from_ms": said["cut_ms"]}], "")
    revoked = await world.revoked()
    assert revoked[kid] == said["cut_ms"]
    assert other not in revoked
    facts = world.facts(audit.TRUST_REVOKED)
    assert facts["workload"] is None
    assert (facts["kids"], facts["from_ms"], facts["author"], facts["reason"]) == (
        [kid], said["cut_ms"], "ada", "INC-4711",
    )  # fmt: skip


@pytest.mark.parametrize("asked", [{"now": True}, {"from_ms": -3_600_000}])
async def test_a_cut_may_lie_behind(world: World, asked: dict[str, Any]) -> None:
    """Now, or as long ago as the theft may be; a second request cannot move it ahead again."""
    kid, at_ms = await world.enrol("crm-adapter"), now_ms()
    back_ms = asked.get("from_ms", 0)
    said = await world.ask("revoke", kid=kid, **({"from_ms": at_ms + back_ms} if back_ms else asked))
    assert at_ms + back_ms <= said["cut_ms"] <= now_ms() + back_ms
    again = await world.ask("revoke", kid=kid)
    assert again["keys"] == said["keys"]


async def test_a_revoked_agent_is_cut_off_and_comes_back_with_other_credentials(world: World) -> None:
    """Every key it has is revoked, its connections end; admitted, it has another user and another token."""
    kids = {await world.enrol("crm-adapter") for _ in range(3)}
    others = await world.enrol("desk")
    creds, token = world.files.credentials("crm-adapter").read_bytes(), world.token("crm-adapter")
    connection = await world.connect("crm-adapter")
    desk = await world.connect("desk")
    assert (await world.attestor.attest(token)).spiffe_id == IDS["crm-adapter"]

    said = await world.ask("revoke", agent="crm-adapter", now=True)
    assert (said["barred"], kids <= {key["kid"] for key in said["keys"]}) == ("crm-adapter", True)
    assert others not in await world.revoked()
    assert (await world.ask("revoke", agent="crm-adapter"))["keys"] == []  # they were revoked from earlier on
    await cut_off(connection)
    with pytest.raises(MeshError):
        await world.connect("crm-adapter", REFUSED_S)
    assert desk.connected

    said = await world.ask("admit", agent="crm-adapter", author="ada", reason="rebuilt")
    assert (said["admitted"], world.standing.barred) == (True, frozenset())
    assert (await world.connect("crm-adapter")).connected
    with pytest.raises(MeshError):
        await world.dial(creds, "crm-adapter", REFUSED_S)
    with pytest.raises(NotAttested):
        await world.attestor.attest(token)
    assert (await world.attestor.attest(world.token("crm-adapter"))).spiffe_id == IDS["crm-adapter"]
    assert kids <= set(await world.revoked())
    assert world.facts(audit.TRUST_ADMITTED) == {"workload": "crm-adapter", "author": "ada", "reason": "rebuilt"}


async def test_a_revoked_team_is_cut_off_and_comes_back(world: World) -> None:
    """A team holds no event key; its NATS account is closed until it is admitted, with other credentials."""
    workload = team_workload("support")
    creds, before = world.files.credentials(workload).read_bytes(), await world.revoked()
    connection = await world.connect(workload)
    said = await world.ask("revoke", team="support")
    assert (said["barred"], said["keys"], await world.revoked()) == (workload, [], before)
    await cut_off(connection)
    with pytest.raises(MeshError):
        await world.dial(creds, workload, REFUSED_S)
    assert (await world.ask("admit", team="support"))["admitted"]
    with pytest.raises(MeshError):
        await world.dial(creds, workload, REFUSED_S)
    assert (await world.connect(workload)).connected


async def test_who_is_not_barred_is_not_admitted(world: World) -> None:
    """Nothing is changed: credentials and token go on."""
    creds, token = world.files.credentials("desk").read_bytes(), world.token("desk")
    assert (await world.ask("admit", agent="desk"))["admitted"] is False
    assert (world.files.credentials("desk").read_bytes(), world.token("desk")) == (creds, token)


async def test_keys_of_a_former_agent_can_be_revoked(world: World) -> None:
    """One that the policies do not name any more, whose certificate has not ended."""
    IDS["former"] = "spiffe://mesh.local/ns/acme/sa/former"
    kid = await world.enrol("former")
    said = await world.ask("revoke", agent="former")
    assert [key["kid"] for key in said["keys"]] == [kid]
    with suppress(NotFound):
        await world.ask("admit", agent="former")


REFUSED: list[tuple[str, dict[str, Any], type[MeshError]]] = [
    ("revoke", {}, BadAttribute),
    ("revoke", {"kid": KID, "agent": "desk"}, BadAttribute),
    ("revoke", {"kid": KID}, NotFound),
    ("revoke", {"kid": 7}, BadAttribute),
    ("revoke", {"kid": "no-key-id"}, BadAttribute),
    ("revoke", {"kid": "no-key-id", "unknown": True}, BadAttribute),
    ("revoke", {"agent": "nobody"}, NotFound),
    ("revoke", {"agent": "../desk"}, NotFound),
    ("revoke", {"team": "nobody"}, NotFound),
    ("admit", {}, BadAttribute),
    ("admit", {"agent": "desk", "team": "crm"}, BadAttribute),
    ("rotate", {}, BadAttribute),
    ("rotate", {"revoke_old": True, "everybody": True}, BadAttribute),
    ("rotate", {"agents": ["nobody"]}, NotFound),
    ("rotate", {"agents": ["team-support"]}, NotFound),
    ("rotate", {"teams": ["nobody"]}, NotFound),
    ("show", {"kid": KID}, NotFound),
]


@pytest.mark.parametrize(("verb", "asked", "error"), REFUSED)
async def test_what_cannot_be_meant_is_refused(
    world: World, verb: str, asked: dict[str, Any], error: type[MeshError]
) -> None:
    """And nothing happens: no statement, nobody barred, no record."""
    epoch, barred = world.store.epoch, world.standing.barred
    with pytest.raises(error):
        await world.ask(verb, **asked)
    assert (world.store.epoch, world.standing.barred, world.audited) == (epoch, barred, [])


@pytest.mark.parametrize("ahead_ms", [60_000, -MAX_BACK_MS - 60_000])
async def test_a_cut_lies_neither_in_the_future_nor_before_all_keys(world: World, ahead_ms: int) -> None:
    """A cut far ahead would leave a thief his time; one before every certificate is a slip of the pen."""
    kid = await world.enrol("desk")
    with pytest.raises(BadAttribute):
        await world.ask("revoke", kid=kid, from_ms=now_ms() + ahead_ms)
    assert kid not in world.store.revoked


async def test_a_mesh_ca_of_long_ago_can_be_revoked(world: World) -> None:
    """No certificate names it any more, and a thief of its key could make one: it goes, in every tenant."""
    unknown = MeshCA.create("mesh.local", now_ms=now_ms()).kid
    said = await world.ask("revoke", kid=unknown, unknown=True)
    revoked = await world.revoked()
    assert revoked[unknown] == world.other.revoked[unknown] == said["cut_ms"]


async def test_the_mesh_ca_of_today_is_replaced_and_not_just_revoked(world: World) -> None:
    """Its key id alone would leave nobody who certifies; an earlier mesh CA may be revoked."""
    old = world.mesh.authority.ca.kid
    await world.enrol("desk")
    with pytest.raises(BadAttribute, match="mesh CA"):
        await world.ask("revoke", kid=old)
    await world.ask("rotate", ca=True)
    said = await world.ask("revoke", kid=old)
    assert said["keys"] == [{"kid": old, "from_ms": said["cut_ms"]}]
    assert world.other.revoked[old] == said["cut_ms"]


# --- rotating --------------------------------------------------------------------------------------------------------


async def enrolling(
    world: World, agent: str, enrol: Callable[[], Any], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """An agent that takes another key when a trust statement names the one it has; started once it has one."""
    held = await world.enrol(agent)
    told = anyio.Event()
    listener = world.mesh.control.listen(NOTICE_SUBJECT, lambda *_: told.set())
    task_status.started()
    try:
        while held not in world.store.revoked:
            await told.wait()
            told = anyio.Event()
        await enrol()
    finally:
        listener.close()


async def test_a_rotation_waits_for_agents_and_names_who_is_late(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that run enrol before the cut; one that does not is late, one that does not run is not waited for."""
    monkeypatch.setattr(rotation, "WAIT_S", 3.0)  # for the one that enrols, however busy the machine is
    running = {name: await Instance.start(world.mesh, name) for name in ("crm-adapter", "desk")}
    silent = await world.enrol("lake")
    late = await world.enrol("desk")
    async with anyio.create_task_group() as group:
        await group.start(enrolling, world, "crm-adapter", lambda: world.enrol("crm-adapter"))
        before_ms = now_ms()
        said = await world.ask("rotate", everybody=True, author="ada")
    states = {one["agent"]: one["state"] for one in said["agents"]}
    assert states == {"crm-adapter": "renewed", "desk": "late", "lake": "silent"}
    assert before_ms + rotation.LEAD_MS <= said["cut_ms"] <= now_ms() + rotation.LEAD_MS
    revoked = await world.revoked()
    assert revoked[silent] == revoked[late] == said["cut_ms"]
    assert {one["agent"]: one["enrolled"] for one in said["agents"]} == {"crm-adapter": 1, "desk": 0, "lake": 0}
    facts = world.facts(audit.TRUST_ROTATED)
    assert (facts["agents"], facts["late"], facts["from_ms"]) == (sorted(states), ["desk"], said["cut_ms"])
    assert (facts["ca"], facts["credentials"], facts["author"]) == (None, None, "ada")
    for instance in running.values():
        await instance.connection.close()


async def test_one_rotation_is_over_when_its_agent_has_another_key(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits out the time; each step is told to the inbox that was named."""
    monkeypatch.setattr(rotation, "WAIT_S", 60)
    instance = await Instance.start(world.mesh, "desk")
    inbox, told = world.mesh.control.new_inbox(), list[bytes]()
    listener = world.mesh.control.listen(inbox, lambda _s, _r, _h, data: told.append(data))
    async with anyio.create_task_group() as group:
        await group.start(enrolling, world, "desk", lambda: world.enrol("desk"))
        with anyio.fail_after(DEADLINE_S):
            said = await world.ask("rotate", agents=["desk"], progress=inbox)
    assert [(one["agent"], one["state"]) for one in said["agents"]] == [("desk", "renewed")]
    with anyio.fail_after(DEADLINE_S):
        while len(told) < 2:
            await anyio.sleep(0.01)
    assert told == [b"keys", b"agents"]
    listener.close()
    await instance.connection.close()


async def test_rotated_credentials_replace_a_user(world: World) -> None:
    """The new file connects, who is connected with the one before is cut off, and it connects no more."""
    for workload, asked in (("lake", {"agents": ["lake"], "credentials": True}), ("team-crm", {"teams": ["crm"]})):
        creds = world.files.credentials(workload).read_bytes()
        connection = await world.dial(creds, workload)
        said = await world.ask("rotate", **asked)
        assert said["credentials"] == world.facts(audit.TRUST_ROTATED)["credentials"] == [workload]
        await cut_off(connection)
        with pytest.raises(MeshError):
            await world.dial(creds, workload, REFUSED_S)
        assert (await world.connect(workload)).connected


async def test_replaced_credentials_may_work_beside_the_new_ones_for_a_while(world: World) -> None:
    """Whoever is connected stays, and comes back; once the time is over the old ones are refused, the new ones not."""
    creds = world.files.credentials("lake").read_bytes()
    connection = await world.dial(creds, "lake")
    said = await world.ask("rotate", agents=["lake"], credentials=True, overlap_s=600.0)
    assert (said["credentials"], said["overlap_s"]) == (["lake"], 600.0)
    assert world.renewal.end(now_ms() / 1000 + 590) == []
    new = await world.connect("lake")
    assert (await world.dial(creds, "lake")).connected
    await connection.flush(DEADLINE_S)  # it was not cut off
    assert world.renewal.end(now_ms() / 1000 + 610) == ["lake"]
    await world.accounts.refresh("lake")
    await cut_off(connection)
    with pytest.raises(MeshError):
        await world.dial(creds, "lake", REFUSED_S)
    await new.flush(DEADLINE_S)
    assert (await world.connect("lake")).connected


async def test_an_overlap_ends_where_somebody_else_may_have_the_credentials(world: World) -> None:
    """A rotation at once refuses what one before left good, too."""
    creds = world.files.credentials("lake").read_bytes()
    await world.ask("rotate", agents=["lake"], credentials=True, overlap_s=600.0)
    await world.ask("rotate", agents=["lake"], credentials=True, overlap_s=0.0)
    with pytest.raises(MeshError):
        await world.dial(creds, "lake", REFUSED_S)
    assert dict(world.standing.ending) == {}


async def test_a_rotation_that_was_cut_short_costs_nobody_the_credentials_he_has(world: World) -> None:
    """Marked as replaced and never replaced: they stay good when the time is over."""
    held = world.mesh.operator.keys.find("user", "acme/lake")
    assert held is not None
    world.standing.end_user("lake", held.public, now_ms() // 1000)
    assert world.renewal.end(now_ms() / 1000 + 1) == []
    assert dict(world.standing.ending) == {}
    assert held.public not in world.standing.users.get("lake", {})


@pytest.mark.parametrize("overlap_s", [-1.0, 90_000.0])
async def test_an_overlap_has_its_bounds(world: World, overlap_s: float) -> None:
    """A user that is replaced ends."""
    with pytest.raises(BadAttribute):
        await world.ask("rotate", agents=["lake"], credentials=True, overlap_s=overlap_s)


@pytest.mark.parametrize(
    ("verb", "asked"),
    [
        ("revoke", {"agent": "desk"}),
        ("revoke", {"team": "support"}),
        ("rotate", {"agents": ["desk"], "credentials": True}),
        ("admit", {"agent": "desk"}),
    ],
)
async def test_the_next_leader_can_find_it_before_any_of_it_goes_out(
    world: World, monkeypatch: pytest.MonkeyPatch, verb: str, asked: dict[str, Any]
) -> None:
    """Who is barred, and whose user is another: a leader that dies in the middle does not take it back with it."""
    key = await world.enrol("desk")
    if verb == "admit":
        await world.ask("revoke", agent="desk")
    file = world.data.standing("acme")
    kept, out = b"", list[str]()

    async def save() -> None:
        nonlocal kept
        kept = file.read_bytes()

    async def pushed(accounts: list[Account]) -> int:
        out.append("account" if kept == file.read_bytes() else "account too early")
        return await push(accounts)

    async def issued(store: TrustStore, kids: Mapping[str, int]) -> None:
        out.append("statement" if verb == "rotate" or kept == file.read_bytes() else "statement too early")
        await revoke(store, kids)

    push, revoke = world.accounts._push, TrustStore.revoke
    monkeypatch.setattr(world.accounts, "_save", save)
    monkeypatch.setattr(world.accounts, "_push", pushed)
    monkeypatch.setattr(TrustStore, "revoke", issued)
    await world.ask(verb, **asked)
    assert out[-1:] == ["account"]
    assert set(out) <= {"account", "statement"}
    assert (key in await world.revoked()) is (asked != {"team": "support"})


async def test_a_workload_is_cut_off_although_its_revocation_cannot_be_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever asked is told, so that it is asked again."""
    key = await world.enrol("desk")
    connection = await world.connect("desk")

    async def fails() -> None:
        raise Unavailable("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(world.accounts, "_save", fails)
        with pytest.raises(Unavailable):
            await world.ask("revoke", agent="desk", now=True)
    await cut_off(connection)
    assert key in await world.revoked()


async def test_a_barred_agent_is_not_rotated(world: World) -> None:
    """By name it is an error, among all it is left out: it gets no key until it is admitted."""
    await world.ask("revoke", agent="desk")
    with pytest.raises(WorkloadBarred):
        await world.ask("rotate", agents=["desk"])
    said = await world.ask("rotate", everybody=True)
    assert {one["agent"] for one in said["agents"]} == {"crm-adapter", "lake"}


async def test_another_mesh_ca(world: World) -> None:
    """The one before stays good; with `revoke_old` it certifies nobody any more, in any tenant that shares it."""
    first = world.mesh.authority.ca.kid
    said = await world.ask("rotate", ca=True)
    second = world.mesh.authority.ca.kid
    assert said["ca"] == {"old": first, "new": second, "old_revoked": False}
    assert (said["agents"], said["cut_ms"]) == ([], None)
    assert first not in world.store.revoked
    kid = await world.enrol("lake")
    said = await world.ask("rotate", ca=True, revoke_old=True)
    assert said["ca"] == {"old": second, "new": world.mesh.authority.ca.kid, "old_revoked": True}
    revoked = await world.revoked()
    assert revoked[second] == world.other.revoked[second] == said["cut_ms"]
    assert kid not in revoked  # its issuer is
    listed = {key["kid"]: key for key in (await world.ask("list"))["keys"]}
    assert (listed[kid]["state"], listed[kid]["revoked_from_ms"]) == ("leaving", said["cut_ms"])
    assert {one["agent"] for one in said["agents"]} == set(world.policies.grants.agents)


async def test_without_the_root_key_there_is_no_other_mesh_ca(world: World) -> None:
    """An operator who took the key away is told so, and nothing was revoked or replaced."""
    key = world.mesh.directory / "admin" / "root.key"
    aside = key.rename(key.with_name("aside"))
    epoch, ca = world.store.epoch, world.mesh.authority.ca.kid
    with pytest.raises(ConfigError, match="root"):
        await world.ask("rotate", ca=True, revoke_old=True)
    assert (world.store.epoch, world.mesh.authority.ca.kid, world.audited) == (epoch, ca, [])
    aside.rename(key)


async def test_another_key_of_the_store(world: World) -> None:
    """It is answered before the server restarts, and its outcome is told to whoever comes back for it."""
    ask = world.handlers()
    assert (await ask["store-status"]({}))["state"] == "none"
    assert (await ask["rotate"]({"store": True, "author": "ada"}))["store"] is True
    assert (await ask["store-status"]({}), world.stores_renewed) == ({"state": "running", "error": None}, 0)
    with pytest.raises(Unavailable, match="already"):
        await ask["rotate"]({"store": True})
    assert await outcome(ask) == {"state": "done", "error": None}
    assert world.stores_renewed == 1
    assert world.facts(audit.TRUST_ROTATED) == {"store": True, "author": "ada", "reason": None}
    assert len(world.audited) == 1


@pytest.mark.parametrize(
    ("fault", "code"), [(ConfigError("does not open"), "bad-config"), (ValueError("secret"), "mesh-error")]
)
async def test_a_store_that_keeps_its_key_says_why(world: World, fault: Exception, code: str) -> None:
    """The outcome is the error; what is no error of ours says nothing of itself."""
    world.fault = fault
    ask = world.handlers()
    await ask["rotate"]({"store": True})
    found = await outcome(ask)
    assert (found["state"], found["error"]["code"]) == ("failed", code)
    assert "secret" not in str(found)


async def test_a_store_without_encryption_has_no_key_to_replace(world: World) -> None:
    """An error that says how it would have one, before anything else is done."""
    world.encrypted = False
    with pytest.raises(ConfigError, match="not encrypted"):
        await world.ask("rotate", store=True, teams=["crm"])
    assert world.audited == []


async def outcome(ask: dict[str, Handler]) -> dict[str, Any]:
    """Wait until a rotation of the store has ended."""
    with anyio.fail_after(DEADLINE_S):
        while (found := await ask["store-status"]({}))["state"] == "running":
            await anyio.sleep(0.02)
    return found


async def test_what_was_done_before_a_failure_is_on_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that do not confirm end a command with an error, and the trail says what had happened by then."""

    async def fails(_workload: str) -> bool:
        raise Unavailable("no server confirms")

    monkeypatch.setattr(world.accounts, "refresh", fails)
    with pytest.raises(Unavailable):
        await world.ask("rotate", agents=["lake"], credentials=True)
    assert world.facts(audit.TRUST_ROTATED)["credentials"] == ["lake"]
    kid = await world.enrol("lake")
    with pytest.raises(Unavailable):
        await world.ask("revoke", agent="lake")
    facts = world.facts(audit.TRUST_REVOKED)
    assert (facts["workload"], kid in facts["kids"], kid in await world.revoked()) == ("lake", True, True)
    assert world.standing.barred == {"lake"}
    monkeypatch.undo()
    await world.ask("admit", agent="lake")


# --- looking ---------------------------------------------------------------------------------------------------------


async def test_list_and_show_say_what_holds(world: World) -> None:
    """Good, leaving, revoked and ended keys; whose they are; and their certificates."""
    good, leaving, revoked = [await world.enrol("crm-adapter") for _ in range(3)]
    await world.ask("revoke", kid=leaving)
    await world.ask("revoke", kid=revoked, now=True)
    await world.ask("revoke", team="analytics")
    listed = await world.ask("list")
    keys = {key["kid"]: key for key in listed["keys"]}
    assert [keys[kid]["state"] for kid in (good, leaving, revoked)] == ["good", "leaving", "revoked"]
    assert (keys[good]["agent"], keys[good]["spiffe_id"]) == ("crm-adapter", IDS["crm-adapter"])
    assert (listed["tenant"], listed["barred"]) == ("acme", ["team-analytics"])
    assert listed["statement"]["epoch"] == world.store.epoch
    assert listed["statement"]["revoked"] == len(await world.revoked())
    everything = await world.ask("list", ended=True)
    assert {key["kid"] for key in everything["keys"]} >= {*keys, *await world.revoked()}

    shown = await world.ask("show", kid=good)
    assert {name: shown[name] for name in keys[good]} == keys[good]
    assert [pem.startswith("-----BEGIN CERTIFICATE") for pem in shown["chain"]] == [True, True]
    anchors = await world.ask("show")
    assert anchors["ca"]["kid"] == world.mesh.authority.ca.kid
    assert [len(root["sha256"]) for root in anchors["roots"]] == [64]
    assert "PRIVATE" not in msgspec.json.encode([listed, shown, anchors]).decode()


async def test_a_long_list_comes_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is a message, which has a limit: what does not fit is asked for next, and nothing is told twice."""
    kids = {await world.enrol("crm-adapter") for _ in range(8)}
    monkeypatch.setattr(trust_listing, "PAGE_BYTES", 1000)
    ask = world.handlers()["list"]
    pages = [await ask({})]
    while (told := sum(len(page["keys"]) for page in pages)) < pages[0]["total"]:
        pages.append(await ask({"skip": told}))
        assert 0 < len(pages[-1]["keys"]) <= 4
    listed = [key["kid"] for page in pages for key in page["keys"]]
    assert len(pages) > 2
    assert len(listed) == len(set(listed)) == pages[0]["total"]
    assert kids <= set(listed)


async def test_no_workload_reaches_the_door(world: World) -> None:
    """The control plane's own credentials get an answer; an agent's and a team's do not."""
    answers = {"list": lambda _asked: world.ask("list")}
    operator = await world.mesh.connect(world.mesh.operator.control_creds("acme"), "operator")
    workloads = [await world.connect(name) for name in ("desk", "team-support")]
    async with anyio.create_task_group() as group:
        group.start_soon(ControlDoor(world.mesh.control, answers, world.mesh.proofs(), noun="trust").run)
        await anyio.lowlevel.checkpoint()
        await world.mesh.control.flush(5)
        assert (await world.mesh.ask("trust.list", by=operator))["tenant"] == "acme"
        for connection in workloads:
            with pytest.raises(Unavailable):
                await connection.request("ctl.trust.list", b"{}", timeout_s=0.5)
        group.cancel_scope.cancel()
