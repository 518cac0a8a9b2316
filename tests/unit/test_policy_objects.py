"""Objects as policy documents, what an error says of each, and what stands in their status."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mesh.control.policy_set import Outcome, author
from mesh.errors import ConfigError, PolicyErrors, PolicyTestsFailed, Unavailable
from mesh.kubernetes.conditions import Condition, State, event, in_force, observed, status
from mesh.kubernetes.names import API_VERSION, OWNER, TEAM, TENANT
from mesh.kubernetes.objects import Placed, faults, place, where
from mesh.policy.documents import finding
from mesh.policy.load import load

NAMESPACES = {
    "acme": {TENANT: "acme"},
    "billing": {TENANT: "acme", TEAM: "billing"},
    "plain": {"kubernetes.io/metadata.name": "plain"},
}
GOOD = State(
    Condition(status=True, reason="Valid", message="m"), Condition(status=True, reason="InForce", message="r"), 7
)


def item(kind: str = "View", namespace: str = "acme", **metadata: Any) -> dict[str, Any]:
    """An object."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": "x", "namespace": namespace, "generation": 2, **metadata},
        "spec": {"otherwise": "redact"},
    }


# --- where an object belongs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "metadata"),
    [
        (item(), {"name": "x", "tenant": "acme"}),
        (item(annotations={OWNER: "security"}), {"name": "x", "tenant": "acme", "owner": "security"}),
        (item("Tenant", name="acme"), {"name": "acme"}),
        (item("Subscription", "billing"), {"name": "x", "tenant": "acme", "team": "billing"}),
        (item("Subscription", labels={TEAM: "crm"}), {"name": "x", "tenant": "acme", "team": "crm"}),
        (item("Subscription", "billing", labels={TEAM: "crm"}), {"name": "x", "tenant": "acme", "team": "billing"}),
        (item("Subscription", "billing", annotations={OWNER: "x"}), {"name": "x", "tenant": "acme", "team": "billing"}),
    ],
)
def test_the_namespace_says_whose_an_object_is(made: dict[str, Any], metadata: dict[str, str]) -> None:
    """And nothing that its author can write, but for the owner and, in the tenant's own namespace, the team."""
    placed = place(made, NAMESPACES)
    assert placed.refusal is None
    assert yaml.safe_load(placed.text)["metadata"] == metadata


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (item(namespace="plain"), "NoTenant"),
        (item(namespace="nowhere"), "NoTenant"),
        (item("Subscription", "plain", labels={TEAM: "billing", TENANT: "acme"}), "NoTenant"),
        *((item(kind, "billing"), "TeamNamespace") for kind in ("Tenant", "View", "Access", "Route", "PolicyTest")),
        (item("Tenant"), "OtherTenant"),
        (item("Subscription"), "NoTeam"),
    ],
)
def test_an_object_elsewhere_counts_for_nothing(made: dict[str, Any], reason: str) -> None:
    """With the reason."""
    placed = place(made, NAMESPACES)
    assert (placed.text, placed.refusal and placed.refusal[0]) == ("", reason)


# --- what is wrong with it -------------------------------------------------------------------------------------------


def test_an_error_names_the_place_in_the_object() -> None:
    """Not a line of a file that nobody has; what concerns no object, the tenant is told."""
    access = item("Access")
    access["spec"] = {"allow": [{"id": "a", "who": {"teams": ["t"]}, "subscribe": ["crm.>"]}, {"id": "B b"}]}
    placed = place(access, NAMESPACES)
    with pytest.raises(PolicyErrors) as refused:
        load({placed.file: placed.text})
    found = faults(refused.value, [placed])
    assert [told.partition(": ")[0] for told in found.by_file[placed.file]] == ["spec.allow[1]"]
    other = faults(PolicyErrors([finding("policies", 1, "too many", "split them")]), [placed])
    assert (other.by_file, other.of_all) == ({}, ["too many. Fix: split them"])


def test_every_line_has_a_path() -> None:
    """Also within lists of lists, and texts that look like members."""
    text = place({**item(), "spec": {"a": [{"b": ['x": y', 2]}, {"c": {"d": []}}], "e": {}}}, NAMESPACES).text
    rows = text.splitlines()
    for part, path in (
        ("2", "spec.a[0].b[1]"),
        ('"c": {', "spec.a[1].c"),
        ('"d": []', "spec.a[1].c.d"),
        ('"e": {}', "spec.e"),
    ):
        (line,) = [number for number, row in enumerate(rows, 1) if row.strip().rstrip(",") == part]
        assert where(text, line) == path
    assert where(text, 1) == "the object"


def test_a_failed_test_is_its_object_s() -> None:
    """With what was expected and what came."""
    placed = place(item("PolicyTest"), NAMESPACES)
    error = PolicyTestsFailed(
        f"1 of 2 policy tests fail:\n  {placed.file}:9: reads: data.x: expected clear, got absent"
    )
    found = faults(error, [placed])
    assert found.reason == "TestsFailed"
    assert found.by_file == {placed.file: ["the test fails: reads: data.x: expected clear, got absent"]}


@pytest.mark.parametrize("error", [Unavailable("away"), ConfigError("not here", next="put it right")])
def test_another_error_is_the_tenant_s(error: Unavailable | ConfigError) -> None:
    """No object is blamed for what none can put right."""
    found = faults(error, [place(item(), NAMESPACES)])
    assert (found.by_file, len(found.of_all), found.reason) == ({}, 1, "Refused")


# --- status ----------------------------------------------------------------------------------------------------------


def told(made: dict[str, Any], state: State, now_ms: int = 1_000_000) -> dict[str, Any]:
    """*made* with its new status."""
    wanted = status(made, state, now_ms=now_ms)
    assert wanted is not None
    return {**made, "status": wanted}


def test_a_status_is_written_once() -> None:
    """What says so already is not said again, so that our own writes wake nobody."""
    once = told(item(), GOOD)
    assert status(once, GOOD, now_ms=2_000_000) is None
    assert in_force(once)
    assert observed(once)
    assert not in_force({**once, "metadata": {**once["metadata"], "generation": 3}})
    assert not observed(item())


def test_a_condition_says_since_when() -> None:
    """The time moves when the status does, not when the message does; other people's conditions stay."""
    once = told(item(), GOOD)
    once["status"]["conditions"].append({"type": "Reviewed", "status": "True"})
    other = State(GOOD.accepted, Condition(status=True, reason="InForce", message="revision 8"), 8)
    again = told(once, other, 5_000_000)["status"]
    assert [c["lastTransitionTime"] for c in again["conditions"][:2]] == ["1970-01-01T00:16:40Z"] * 2
    assert again["conditions"][2] == {"type": "Reviewed", "status": "True"}
    refused = State(Condition(status=False, reason="Invalid", message="x" * 9999), GOOD.applied)
    bad = told(once, refused, 5_000_000)["status"]
    assert bad["conditions"][0]["lastTransitionTime"] == "1970-01-01T01:23:20Z"
    assert len(bad["conditions"][0]["message"]) == 4096
    assert bad["revision"] == 7  # of what is in force still


def test_an_event_names_its_object() -> None:
    """As `kubectl describe` looks for it; a fault is a warning, and no message is longer than the API takes."""
    made = event(item(uid="u"), Condition(status=False, reason="Invalid", message="x" * 2000), instance="c-0", now_ms=0)
    assert made["involvedObject"] | {"resourceVersion": ""} == {
        "apiVersion": API_VERSION, "kind": "View", "namespace": "acme", "name": "x", "uid": "u", "resourceVersion": "",
    }  # fmt: skip
    assert (made["type"], made["reason"], len(made["message"])) == ("Warning", "Invalid", 1024)
    assert (made["firstTimestamp"], made["metadata"]["namespace"]) == ("1970-01-01T00:00:00Z", "acme")


# --- sets ------------------------------------------------------------------------------------------------------------


def placed_as(name: str, *, known: bool = False) -> Placed:
    """An object of a set; *known*: it is in force as it stands."""
    made = item(name=name)
    return place(told(made, GOOD) if known else made, NAMESPACES)


def test_the_author_is_what_changed() -> None:
    """The objects that changed or went, few by name; nothing in an object says who really did."""
    old, new = placed_as("old", known=True), placed_as("new")
    assert author([old, new], {}) == "kubernetes:acme/new"
    assert author([old], {"kubernetes:acme/View/gone": "kubernetes:acme/gone"}) == "kubernetes:acme/gone"
    assert author([old], {}) == "kubernetes"
    many = author([placed_as(f"v{n}") for n in range(9)], {})
    assert many.startswith("kubernetes:acme/v0, kubernetes:acme/v1,")
    assert many.endswith("and 4 more")


@pytest.mark.parametrize(
    ("error", "again"), [(Unavailable("away"), True), (ConfigError("no room here"), True), (PolicyErrors([]), False)]
)
def test_what_nobody_has_to_change_is_tried_again(error: Unavailable, again: bool) -> None:
    """A set that does not hold waits for a change instead."""
    assert Outcome(error=error).again is again
