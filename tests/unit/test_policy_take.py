"""What of a tenant's objects is taken where some of them do not hold: by the compiler itself, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mesh.control.change import Applied, Change, checked, next_bundle
from mesh.control.policy_set import Outcome, take
from mesh.control.policy_sources import REFUSED, SourceOptions, Sources
from mesh.errors import NoBundle
from mesh.kubernetes.names import API_VERSION, TEAM, TENANT
from mesh.kubernetes.objects import place
from mesh.policy import load
from mesh.policy.bundle import Bundle, ordered
from mesh.policy.compile import Plans
from mesh.policy.model import Subscription

pytestmark = pytest.mark.anyio

NAMESPACES = {
    "acme": {TENANT: "acme"},
    "acme-billing": {TENANT: "acme", TEAM: "billing"},
    "acme-desk": {TENANT: "acme", TEAM: "desk"},
}
PUBLISHES = {"id": "p", "who": {"teams": ["crm"]}, "publish": ["crm.>"]}
CLASSES = {"types": ["crm.>"], "fields": {"data.id": ["public"]}}
TEAMS = ("billing", "desk")

Item = dict[str, Any]


class Live:
    """The live policies of a tenant whose bundle goes nowhere."""

    def __init__(self) -> None:
        self.bundle: Bundle | None = None

    @property
    def plans(self) -> Plans:
        """In force."""
        if self.bundle is None:
            raise NoBundle("nothing is in force")
        return Plans(self.bundle)

    async def apply(
        self, files: Mapping[str, str], fixtures: Mapping[str, bytes], *, author: str, reason: str
    ) -> Applied:
        """As `Policies.apply` does it."""
        documents = ordered(document.value for document in checked(files, fixtures, "acme").of("acme"))
        change = Change(documents=documents, author=author, reason=reason)
        bundle = next_bundle(change, self.bundle, None, "acme", "local", "mesh.local")
        self.bundle = Bundle.decode(bundle.encode())
        return Applied(self.bundle.revision, self.bundle.digest)

    @property
    def subscriptions(self) -> dict[tuple[str, str], str | None]:
        """Those in force, each with its view."""
        found = [p for p in self.plans.bundle.policies if isinstance(p, Subscription)]
        return {(one.metadata.team, one.metadata.name): one.spec.view for one in found}


def item(kind: str, name: str, spec: Item, namespace: str = "acme") -> Item:
    """An object, of which nothing was said yet."""
    metadata = {"name": name, "namespace": namespace, "generation": 1}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def subscription(team: str, view: str = "v1", name: str = "contacts", types: tuple[str, ...] = ("crm.a.>",)) -> Item:
    """Of *team*, in its own namespace."""
    return item("Subscription", name, {"types": list(types), "view": view}, f"acme-{team}")


def security(*teams: str, view: str = "v1", views: tuple[str, ...] = ("v1", "v2")) -> list[Item]:
    """What security says: *teams* exist, and read *view*; *views* exist."""
    reads = [{"id": f"r-{t}", "who": {"teams": [t]}, "subscribe": ["crm.>"], "view": view} for t in teams]
    return [
        item("Tenant", "acme", {"teams": {"crm": {"agents": ["crm"]}, **{team: {} for team in teams}}}),
        item("Classification", "crm", CLASSES),
        item("Access", "crm", {"allow": [PUBLISHES, *reads]}),
        *(item("View", name, {"otherwise": "drop"}) for name in views),
    ]


async def taken(live: Live, *items: Item) -> Outcome:
    """What becomes of *items*."""
    return await take(live, [place(one, NAMESPACES) for one in items], {}, author="test")


async def test_a_view_may_go_though_a_subscription_names_it() -> None:
    """The Subscription is out, and is told why; what security changed is in force, and the other team goes on."""
    live = Live()
    ours, other = subscription("billing"), subscription("desk", "v2")
    assert (await taken(live, *security(*TEAMS), ours, other)).revision == 1
    done = await taken(live, *security(*TEAMS, view="v2", views=("v2",)), ours, other)
    assert (done.revision, done.error) == (2, None)
    assert live.subscriptions == {("desk", "contacts"): "v2"}
    assert "unknown view" in done.faults.by_file["kubernetes:acme-billing/Subscription/contacts"][0]


async def test_a_team_may_go_though_its_subscription_stays() -> None:
    """A team keeps nobody from taking it out of the tenant."""
    live = Live()
    assert (await taken(live, *security(*TEAMS), subscription("billing"), subscription("desk"))).revision == 1
    done = await taken(live, *security("desk"), subscription("billing"), subscription("desk"))
    assert done.revision == 2
    assert set(live.subscriptions) == {("desk", "contacts")}


async def test_an_edit_that_does_not_hold_stays_as_it_was() -> None:
    """While it holds as it is in force, that is what stands."""
    live = Live()
    assert (await taken(live, *security(*TEAMS), subscription("billing"))).revision == 1
    done = await taken(live, *security(*TEAMS), subscription("billing", "v9"), subscription("desk", "v2"))
    assert done.revision == 2
    assert live.subscriptions == {("billing", "contacts"): "v1", ("desk", "contacts"): "v2"}


async def test_a_name_that_is_taken_twice_blocks_nobody() -> None:
    """One in the tenant's namespace, one of the same team's in its own: one of them is left out."""
    twin = subscription("billing") | {
        "metadata": {"name": "contacts", "namespace": "acme", "labels": {TEAM: "billing"}}
    }
    live = Live()
    done = await taken(live, *security(*TEAMS), subscription("billing"), twin, subscription("desk"))
    assert done.revision == 1
    assert ("desk", "contacts") in live.subscriptions
    assert len(done.faults.by_file) >= 1


def long(number: int) -> tuple[str, ...]:
    """As many types as one Subscription may name, each as long as may be."""
    return tuple(f"crm.{number:02}{'x' * 60}.{'y' * 62}.{'z' * 62}.{'u' * 62}.{'w' * 55}{i:04}" for i in range(256))


async def test_a_team_that_fills_the_bundle_blocks_nobody() -> None:
    """Its new Subscriptions are out, and say so; security's change and the other team's are in force."""
    live = Live()
    assert (await taken(live, *security(*TEAMS), subscription("billing"))).revision == 1
    heap = [subscription("billing", "v1", f"s{n}", long(n)) for n in range(14)]
    done = await taken(live, *security(*TEAMS, "new"), *heap, subscription("desk"))
    assert (done.revision, done.error) == (2, None)
    assert set(live.subscriptions) == {("desk", "contacts")}
    assert {"no room" in told[0] for told in done.faults.by_file.values()} == {True}
    assert len(done.faults.by_file) == len(heap)


async def test_a_team_that_fills_the_set_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the number of documents."""
    monkeypatch.setattr(load, "MAX_FILES", 12)
    monkeypatch.setattr("mesh.control.policy_set.MAX_FILES", 12)
    live = Live()
    heap = [subscription("billing", name=f"s{n}") for n in range(9)]
    done = await taken(live, *security(*TEAMS), *heap, subscription("desk"))
    assert done.revision == 1
    assert set(live.subscriptions) == {("desk", "contacts")}


async def test_what_security_says_too_much_is_refused_whole() -> None:
    """Where no Subscription is new, nobody is left out for it."""
    live = Live()
    fault = [*security(*TEAMS), item("View", "v3", {"like": "none"}), subscription("desk")]
    done = await taken(live, *fault)
    assert (done.revision, live.bundle) == (0, None)
    assert set(done.faults.by_file) == {"kubernetes:acme/View/v3"}


async def test_a_tenant_whose_objects_went_is_refused_no_longer() -> None:
    """It has neither objects nor files: an alert about them would never end."""

    async def begin(_name: str, _given: object) -> Live:
        raise AssertionError

    REFUSED.set(1, tenant="acme")
    await Sources(SourceOptions(), {"acme": Live()}, begin).take()
    assert "acme" not in [attributes["tenant"] for attributes, _ in REFUSED.series()]
