"""Policies that are objects of a cluster, or files of a directory, followed into a real server's streams and accounts.

The cluster is a stand-in that lists, watches, and keeps status as the real one was recorded to do.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import anyio
import msgspec
import pytest
import yaml

from mesh.context import MeshFile
from mesh.control import change, lease, policy_sources, rollout
from mesh.control.given import Given
from mesh.control.init import initialise
from mesh.control.nats_config import plain_config
from mesh.control.nats_server import NatsServer
from mesh.control.policies import Policies
from mesh.control.policy_first import with_cluster
from mesh.control.policy_sources import SourceOptions, Sources
from mesh.control.policy_status import UNTOLD
from mesh.control.run import ReplicaOptions, run
from mesh.errors import PolicyError, Unavailable
from mesh.kubernetes import watch
from mesh.kubernetes.api import Api
from mesh.kubernetes.names import API_VERSION
from mesh.kubernetes.objects import as_object
from tests.contract.policy_mesh import DURABLE, SUBSCRIPTION, PolicyMesh, policies, reads
from tests.kube_server import Cluster, tls

pytestmark = pytest.mark.anyio

SECURITY, TEAM = "acme", "acme-support"
Item = dict[str, Any]


def objects(text: str, namespace: str = SECURITY) -> dict[str, Item]:
    """The documents of *text* as objects, by `Kind/name`."""
    found = [as_object(document, namespace, API_VERSION) for document in yaml.safe_load_all(text)]
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in found}


def rights(*allow: str) -> dict[str, Item]:
    """The tenant with these rights, and no Subscription."""
    return objects(policies(*allow, more="")["p.yaml"])


CONTACTS = objects(SUBSCRIPTION.removeprefix("\n---"), TEAM)["Subscription/contacts"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_sources, "QUIET_S", 0.05)
    monkeypatch.setattr(policy_sources, "AGAIN_S", 0.2)
    monkeypatch.setattr(policy_sources, "LOOK_S", 0.02)
    monkeypatch.setattr(watch, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(rollout.wait_adopted, "__kwdefaults__", {"timeout_s": 0.05})


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[PolicyMesh]:
    """A tenant without policies."""
    (tmp_path / "mesh").mkdir()
    async with PolicyMesh.running(tmp_path / "mesh") as running:
        yield running


async def nobody_begins(tenant: str, given: Given) -> NoReturn:
    """For those that serve one tenant."""
    raise AssertionError(tenant, given)


@dataclass
class World:
    """A cluster, and a leader that follows it."""

    mesh: PolicyMesh
    api: Api
    directory: Path | None = None
    cluster: Cluster = field(default_factory=Cluster)

    @asynccontextmanager
    async def led(self) -> AsyncIterator[None]:
        """For as long as some replica leads."""
        options = SourceOptions(api=self.api, directory=self.directory, replica="control-0")
        async with anyio.create_task_group() as group:
            group.start_soon(Sources(options, {"acme": self.mesh.policies}, nobody_begins).run)
            yield
            group.cancel_scope.cancel()

    def apply(self, *items: Item) -> None:
        """As kubectl does, one after the other."""
        for item in items:
            self.cluster.apply(item)

    async def becomes(self, item: Item, name: str, reason: str) -> str:
        """Wait until a condition has *reason* for the object as it stands; its message."""
        with anyio.fail_after(60):
            while True:
                condition, found = self.cluster.condition(item, name), self.cluster.get(item)
                generation = None if found is None else found["metadata"]["generation"]
                if (condition.get("reason"), condition.get("observedGeneration")) == (reason, generation):
                    return str(condition["message"])
                await anyio.sleep(0.01)

    @property
    def revision(self) -> int:
        """In force."""
        return self.mesh.policies.plans.bundle.revision

    def said(self, reason: str) -> list[Item]:
        """The Events with that reason."""
        return [event for event in self.cluster.events if event["reason"] == reason]


@pytest.fixture
async def world(mesh: PolicyMesh, tmp_path: Path) -> AsyncIterator[World]:
    """A cluster with the namespaces of security and of one team."""
    (tmp_path / "api").mkdir()
    cluster = Cluster()
    cluster.namespace(SECURITY, tenant="acme")
    cluster.namespace(TEAM, tenant="acme", team="support")
    cluster.namespace("elsewhere")
    async with tls(tmp_path / "api", cluster.app()) as api:
        yield World(mesh, api, None, cluster)


async def durables(mesh: PolicyMesh) -> set[str]:
    """The durables of the event stream that the server has."""
    return {name for name in await mesh.policies._enforcer.subscriptions() if "--" in name}


async def until(done: Callable[[], bool]) -> None:
    """Wait for *done*."""
    with anyio.fail_after(60):
        while not done():
            await anyio.sleep(0.01)


@contextmanager
def unchanged(world: World) -> Iterator[None]:
    """Nothing that happens in the block makes another revision."""
    before = world.revision
    yield
    assert world.revision == before


# --- what is applied -------------------------------------------------------------------------------------------------


async def test_objects_become_the_policies_in_force(world: World) -> None:
    """All that came close together is one revision; a change is the next, by the object that changed."""
    items = rights(reads("masked"))
    world.apply(*items.values(), CONTACTS)
    async with world.led():
        for item in (*items.values(), CONTACTS):
            assert await world.becomes(item, "Applied", "InForce") == "revision 1"
            assert world.cluster.condition(item, "Accepted")["status"] == "True"
        assert (world.cluster.get(CONTACTS) or {})["status"]["revision"] == 1
        assert DURABLE in await durables(world.mesh)
        await until(lambda: bool(world.said("InForce")))
        assert [e["involvedObject"]["kind"] for e in world.said("InForce")] == ["Tenant"]
        access = rights(reads("bare"))["Access/a"]
        world.apply(access)
        assert await world.becomes(access, "Applied", "InForce") == "revision 2"
        assert world.mesh.policies.plans.bundle.author == f"kubernetes:{SECURITY}/a"
        await world.becomes(items["Tenant/acme"], "Applied", "InForce")
        world.cluster.delete(CONTACTS)
        await until(lambda: world.revision == 3)
        bundle = world.mesh.policies.plans.bundle
        assert bundle.author == f"kubernetes:{TEAM}/contacts"
        assert not [policy for policy in bundle.policies if policy.kind == "Subscription"]


async def test_a_set_that_does_not_hold_changes_nothing_and_says_why(world: World) -> None:
    """The object at fault says place and fix; the others stay in force, and an edit of theirs waits."""
    items = rights(reads("masked"))
    world.apply(*items.values())
    async with world.led():
        await world.becomes(items["Access/a"], "Applied", "InForce")
        with unchanged(world):
            wrong = {
                **items["View/masked"],
                "spec": {"otherwise": "redact", "mask": [{"tags": ["pii.x"], "as": "drop"}]},
            }
            other = {**items["View/bare"], "spec": {"otherwise": "redact"}}
            world.apply(wrong, other)
            told = await world.becomes(wrong, "Accepted", "Invalid")
            assert told.startswith("spec.mask[0].tags[0]: unknown tag `pii.x`. Fix: ")
            assert await world.becomes(wrong, "Applied", "Refused") == "what was in force before stays in force"
            waiting = await world.becomes(other, "Applied", "SetRefused")
            assert f"{SECURITY}/View/masked" in waiting
            assert world.cluster.condition(other, "Accepted")["status"] == "True"
            assert world.cluster.condition(items["Access/a"], "Applied")["status"] == "True"
            await until(lambda: bool(world.said("Invalid")))
        (event,) = world.said("Invalid")
        assert (event["type"], event["involvedObject"]["name"]) == ("Warning", "masked")
        assert event["message"] == told
        assert ("policy-refused", f"kubernetes:{SECURITY}/bare, kubernetes:{SECURITY}/masked") in [
            (kind, facts["author"]) for kind, facts in world.mesh.audited
        ]
        world.apply({**wrong, "spec": {"otherwise": "drop"}})
        for item in (wrong, other):
            assert await world.becomes(item, "Applied", "InForce") == "revision 2"


async def test_a_team_does_not_block_another(world: World) -> None:
    """Its Subscription stays as it was, or out; what security changes meanwhile is applied."""
    items = rights(reads("masked"))
    world.apply(*items.values(), CONTACTS)
    async with world.led():
        await world.becomes(CONTACTS, "Applied", "InForce")
        broken = {**CONTACTS, "spec": {"types": ["crm.contact.>"], "view": "nobody"}}
        new = {**broken, "metadata": {**CONTACTS["metadata"], "name": "new"}}
        access = rights(reads("bare"))["Access/a"]
        world.apply(broken, new, access)
        assert await world.becomes(access, "Applied", "InForce") == "revision 2"
        for item in (broken, new):
            assert "unknown view `nobody`" in await world.becomes(item, "Accepted", "Invalid")
        assert DURABLE in await durables(world.mesh)
        mine = world.mesh.policies.plans.bundle.policies
        assert [p.metadata.name for p in mine if p.kind == "Subscription"] == ["contacts"]


async def test_an_object_counts_where_its_author_may_speak(world: World) -> None:
    """A team's namespace takes Subscriptions of that team, whatever they say; one without a tenant takes nothing."""
    items = rights(reads("masked"))
    stolen = {**rights(reads("bare"))["Access/a"], "metadata": {"name": "mine", "namespace": TEAM}}
    lost = {**items["View/bare"], "metadata": {"name": "lost", "namespace": "elsewhere"}}
    forged = {**CONTACTS, "metadata": {**CONTACTS["metadata"], "labels": {"mesh.dev/team": "analytics"}}}
    other = {**items["Tenant/acme"], "metadata": {"name": "globex", "namespace": SECURITY}}
    nobody = {**CONTACTS, "metadata": {"name": "nobody", "namespace": SECURITY}}
    world.apply(*items.values(), stolen, lost, forged, other, nobody)
    async with world.led():
        for item, reason in ((stolen, "TeamNamespace"), (lost, "NoTenant"), (other, "OtherTenant"), (nobody, "NoTeam")):
            assert await world.becomes(item, "Accepted", reason)
        assert await world.becomes(forged, "Applied", "InForce")
        assert DURABLE in await durables(world.mesh)  # support's, not analytics'
        world.cluster.namespace(TEAM)  # a namespace that is the mesh's no more
        await world.becomes(forged, "Accepted", "NoTenant")
        assert world.revision == 2


async def test_tests_of_the_policies_are_kept(world: World, tmp_path: Path) -> None:
    """A change that breaks one is refused, with the PolicyTest that broke; events come from the directory."""
    world.directory = tmp_path / "files"
    world.directory.mkdir()
    event = {
        "specversion": "1.0", "id": "1", "source": "/crm", "type": "crm.contact.created.v1",
        "datacontenttype": "application/json", "data": {"name": "x"},
    }  # fmt: skip
    (world.directory / "contact.json").write_text(json.dumps(event))
    case = {
        "as": {"team": "support"}, "subscribe": "crm.contact.created.v1", "event": "contact.json",
        "expect": {"decision": "allow", "fields": {"data": "redacted"}},
    }  # fmt: skip
    test = {
        "apiVersion": API_VERSION,
        "kind": "PolicyTest",
        "metadata": {"name": "contacts", "namespace": SECURITY},
        "spec": {"cases": [case]},
    }
    world.apply(*rights(reads("masked")).values(), test)
    async with world.led():
        await world.becomes(test, "Applied", "InForce")
        with unchanged(world):
            access = rights(reads("bare"))["Access/a"]
            world.apply(access)
            assert "the test fails: team support subscribes" in await world.becomes(test, "Accepted", "TestsFailed")
            assert "PolicyTest/contacts" in await world.becomes(access, "Applied", "SetRefused")


# --- what happens to a cluster ---------------------------------------------------------------------------------------


async def test_what_changed_while_nobody_watched_is_seen(world: World) -> None:
    """Watches that end, versions that are forgotten: what went meanwhile goes, and nothing is applied twice."""
    items = rights(reads("masked"))
    world.apply(*items.values(), CONTACTS)
    async with world.led():
        await world.becomes(CONTACTS, "Applied", "InForce")
        watched = world.cluster.watching["subscriptions"]
        with unchanged(world):
            world.cluster.cut()
            await until(lambda: world.cluster.watching["subscriptions"] > watched)
        lists = world.cluster.lists
        world.cluster.delete(CONTACTS)
        world.cluster.forget()
        await until(lambda: [f["revision"] for k, f in world.mesh.audited if k == "policy-applied"] == [1, 2])
        assert world.cluster.lists > lists


async def test_a_namespace_that_is_deleted_takes_no_rights(world: World) -> None:
    """Its objects go one after the other, and count as they stood until it is gone; what others change is followed."""
    items = rights(reads("masked"))
    world.apply(*items.values(), CONTACTS)
    async with world.led():
        await world.becomes(CONTACTS, "Applied", "InForce")
        world.cluster.end(SECURITY)
        for item in items.values():
            if item["kind"] != "Tenant":
                world.cluster.delete(item)
        edited = {**CONTACTS, "spec": {**CONTACTS["spec"], "max_in_flight": 7}}
        world.apply(edited)
        assert await world.becomes(edited, "Applied", "InForce") == "revision 2"
        kinds = {document.kind for document in world.mesh.policies.plans.bundle.policies}
        assert {item["kind"] for item in items.values()} <= kinds
        world.cluster.delete(items["Tenant/acme"])
        world.cluster.namespace(SECURITY)  # gone, and made anew without its labels
        await world.becomes(edited, "Applied", "TenantNotServed")
        assert world.revision == 2


async def test_a_leader_that_finds_a_namespace_ending_waits(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It knows not what stood there: what is left of it is no set, and somebody has to look."""
    items = rights(reads("masked"))
    world.apply(*items.values(), CONTACTS)
    async with world.led():
        await world.becomes(CONTACTS, "Applied", "InForce")
    world.cluster.end(SECURITY)
    world.cluster.delete(items["Access/a"])
    async with world.led():
        await until(lambda: "namespace_ends" in caplog.messages)
        assert policy_sources.REFUSED.value(tenant="acme") == 1
        assert world.revision == 1


async def test_a_team_with_too_much_does_not_block_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its connection could not pull is refused to it alone."""
    items = rights(reads("masked"))
    world.apply(*items.values(), CONTACTS)
    async with world.led():
        await world.becomes(CONTACTS, "Applied", "InForce")
        monkeypatch.setattr(change, "MAX_DURABLES", 3)
        more = {**CONTACTS, "metadata": {**CONTACTS["metadata"], "name": "more"}}
        access = rights(reads("bare"))["Access/a"]
        world.apply(more, access)
        assert await world.becomes(access, "Applied", "InForce") == "revision 2"
        assert "come to" in await world.becomes(more, "Accepted", "Invalid")
        mine = [p.metadata.name for p in world.mesh.policies.plans.bundle.policies if p.kind == "Subscription"]
        assert mine == ["contacts"]


async def test_a_status_that_cannot_be_written_is_written_later(world: World) -> None:
    """The policies are in force all the same; a role that is bound later is enough."""
    items = rights(reads("masked"))
    world.cluster.refuse_status = 403
    world.apply(*items.values())
    before = UNTOLD.value()
    async with world.led():
        await until(lambda: UNTOLD.value() > before)
        assert world.revision == 1
        world.cluster.refuse_status = 0
        await world.becomes(items["Access/a"], "Applied", "InForce")
    assert world.revision == 1


async def test_a_rollback_by_hand_stands_until_an_object_changes(world: World) -> None:
    """Also through a change of leader: who rolled back in a hurry is not undone by a restart."""
    items = rights(reads("masked"))
    world.apply(*items.values())
    async with world.led():
        await world.becomes(items["Access/a"], "Applied", "InForce")
        world.apply(access := rights(reads("bare"))["Access/a"])
        await world.becomes(access, "Applied", "InForce")
        await world.mesh.policies.rollback(author="alice")
        assert "revision 3 is in force instead" in await world.becomes(access, "Applied", "Overridden")
    async with world.led():
        label = {**items["View/bare"], "metadata": {**items["View/bare"]["metadata"], "labels": {"x": "y"}}}
        world.apply(label)  # seen by the new leader, and no change of a policy
        lists = world.cluster.lists
        world.cluster.forget()
        await until(lambda: world.cluster.lists >= lists + 8)
        assert world.revision == 3
        world.apply(access := rights(reads("masked", "crm.contact.>"))["Access/a"])
        assert await world.becomes(access, "Applied", "InForce") == "revision 4"


async def test_a_server_that_is_away_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The set holds, so nobody has to change it."""
    items = rights(reads("masked"))
    world.apply(*items.values())
    away = True
    real = world.mesh.policies.apply

    async def apply(*args: Any, **more: Any) -> Any:
        if away:
            raise Unavailable("NATS is away")
        return await real(*args, **more)

    monkeypatch.setattr(world.mesh.policies, "apply", apply)
    async with world.led():
        assert "it is tried again" in await world.becomes(items["Access/a"], "Applied", "NotReached")
        assert world.cluster.condition(items["Access/a"], "Accepted")["status"] == "True"
        away = False
        assert await world.becomes(items["Access/a"], "Applied", "InForce") == "revision 1"


# --- files, and the first start --------------------------------------------------------------------------------------


async def test_a_directory_is_followed_too(mesh: PolicyMesh, tmp_path: Path) -> None:
    """A change is applied, a fault changes nothing; what is put right is applied again. One more tenant begins."""
    directory = tmp_path / "policies"
    directory.mkdir()
    begun: list[str] = []

    async def begin(tenant: str, given: Given) -> Policies:
        assert tenant in given.tenants
        begun.append(tenant)
        return mesh.policies  # which hold nothing of it

    def write(view: str) -> None:
        (directory / "p.yaml").write_text(policies(reads(view))["p.yaml"])

    write("masked")
    sources = Sources(SourceOptions(directory=directory), {"acme": mesh.policies}, begin)
    async with anyio.create_task_group() as group:
        group.start_soon(sources.run)
        await until(lambda: mesh.policies._plans is not None)
        assert mesh.policies.plans.bundle.author == "directory"
        write("nobody")
        await until(lambda: any(kind == "policy-refused" for kind, _ in mesh.audited))
        assert mesh.policies.plans.bundle.revision == 1
        write("bare")
        await until(lambda: mesh.policies.plans.bundle.revision == 2)
        assert begun == []
        (directory / "more.yaml").write_text(another_tenant_s()["p.yaml"])
        await until(lambda: begun == ["above"])
        group.cancel_scope.cancel()


async def test_a_mesh_may_begin_with_objects(world: World) -> None:
    """A leader of a new mesh takes the tenants that hold, and tells the others why not; without one it tries again."""
    options = SourceOptions(api=world.api, replica="control-0")
    empty = Given(fault=PolicyError("there is no policy document"))  # what `--policies` of an empty mount comes to
    with pytest.raises(Unavailable, match="no tenant has policies that hold"):
        await with_cluster(empty, options, ())
    items = rights(reads("nobody"))
    world.apply(*items.values(), CONTACTS)
    with pytest.raises(Unavailable, match="no tenant has policies that hold"):
        await with_cluster(Given(), options, ())
    assert "unknown view" in await world.becomes(items["Access/a"], "Accepted", "Invalid")
    world.apply(rights(reads("masked"))["Access/a"])
    given = await with_cluster(empty, options, ())
    assert (given.tenants, given.fault) == (("acme",), None)
    await world.mesh.policies.apply(given.yaml, given.fixtures, author=given.author)
    async with world.led():
        assert await world.becomes(CONTACTS, "Applied", "InForce") == "revision 1"
    assert await with_cluster(Given(), options, ["acme"]) == Given()


# --- replicas --------------------------------------------------------------------------------------------------------


def another_tenant() -> list[Item]:
    """Its objects."""
    return list(objects(another_tenant_s()["p.yaml"], "above").values())


def another_tenant_s() -> dict[str, str]:
    """Policies of tenant `above`, which a mesh begins to serve while it runs; its name comes before the first's."""
    text = policies(reads("masked"), more="")["p.yaml"].replace("acme", "above")
    for agent in ("crm-adapter", "desk", "lake"):
        text = text.replace(agent, f"above-{agent}")
    return {"p.yaml": text}


async def test_only_who_leads_follows_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh begins with nothing but objects, then has one more tenant; another leader takes what changes next."""
    for name in ("TTL_S", "HOLD_S", "RENEW_S", "AGAIN_S", "LOOK_S"):
        monkeypatch.setattr(lease, name, getattr(lease, name) * 0.2)
    made = initialise(tmp_path / "keys", trust_domain="mesh.local", resolver_dir=str(tmp_path / "accounts"))
    config = plain_config(tmp_path / "store") + made.server_part.read_text()
    cluster, said = Cluster(), dict[str, list[str]]()
    cluster.namespace(SECURITY, tenant="acme")
    (tmp_path / "api").mkdir()
    server = await NatsServer.start(config, tmp_path / "server")
    try:
        async with tls(tmp_path / "api", cluster.app()) as api, anyio.create_task_group() as group:

            async def replica(name: str, scope: anyio.CancelScope) -> None:
                options = ReplicaOptions(
                    data=tmp_path / name,
                    nats_url=server.url,
                    replica=name,
                    keys=tmp_path / "keys",
                    sources=SourceOptions(api=api, replica=name),
                )
                with scope:
                    await run(options, said=said.setdefault(name, []).append)

            scopes = {name: anyio.CancelScope() for name in ("control-0", "control-1")}
            for name, scope in scopes.items():
                group.start_soon(replica, name, scope)
            for item in rights(reads("masked")).values():
                cluster.apply(item)

            def told() -> list[tuple[str, str]]:
                said = [e for e in cluster.events if e["involvedObject"]["name"] == "acme"]
                return [(e["reportingInstance"], e["message"]) for e in said]

            await until(lambda: len(told()) == 1)
            cluster.namespace("above", tenant="above")
            tenant, *_, access = another_tenant()
            bad = another_tenant()[-1]
            bad["spec"]["allow"][-1]["view"] = "nobody"
            for item in (tenant, bad, *_):
                cluster.apply(item)
            await until(lambda: cluster.condition(bad, "Accepted").get("reason") == "Invalid")
            cluster.apply(access)
            await until(lambda: cluster.condition(access, "Applied").get("reason") == "InForce")

            def leading() -> list[str]:
                return [name for name, states in said.items() if states[-1] == "leads"]

            await until(lambda: len(leading()) == 1)
            (first,) = leading()  # as a rule who told it, but a machine that stands still loses its short lease
            scopes[first].cancel()
            (other,) = scopes.keys() - {first}
            await until(lambda: said[other][-1] == "leads")
            cluster.apply(rights(reads("bare"))["Access/a"])
            await until(lambda: len(told()) == 2)
            assert [what for _, what in told()] == ["revision 1", "revision 2"]
            assert told()[1][0] == other
            file = msgspec.json.decode((tmp_path / other / "mesh.json").read_bytes(), type=MeshFile)
            assert set(file.tenants) == {"above", "acme"}
            group.cancel_scope.cancel()
    finally:
        await server.stop()
