"""Who may do what with the mesh's objects, by the rules of the roles."""

from __future__ import annotations

import pytest

from mesh.kubernetes.names import GROUP, PLURALS
from tests.k8s.objects import of_kind
from tests.k8s.rendering import rendered

ROLES = {role["metadata"]["name"]: role["rules"] for role in of_kind(rendered("base"), "ClusterRole")}
READ = ("get", "list", "watch")
WRITE = ("create", "update", "patch", "delete")
POLICIES = set(PLURALS.values()) - {"subscriptions"}


def may(role: str, verb: str, resource: str, group: str = GROUP) -> bool:
    """Whether a rule of *role* lets its subjects."""
    return any(
        verb in rule["verbs"] and resource in rule["resources"] and group in rule["apiGroups"] for rule in ROLES[role]
    )


@pytest.mark.parametrize("verb", WRITE)
def test_security_edits_every_policy(verb: str) -> None:
    """And teams their Subscriptions alone; what stands in the status, neither says."""
    for plural in PLURALS.values():
        assert may("mesh-policy-editor", verb, plural)
        assert may("mesh-subscription-editor", verb, plural) == (plural == "subscriptions")
        assert not may("mesh-policy-editor", verb, f"{plural}/status")
        assert not may("mesh-subscription-editor", verb, f"{plural}/status")


@pytest.mark.parametrize("role", ["mesh-policy-editor", "mesh-subscription-editor"])
def test_nobody_who_edits_says_whose_a_namespace_is(role: str) -> None:
    """Its labels do; so who edits policies has no right on namespaces, or on anything but policies."""
    assert {group for rule in ROLES[role] for group in rule["apiGroups"]} == {GROUP}
    assert {resource for rule in ROLES[role] for resource in rule["resources"]} == set(PLURALS.values())
    assert all(may(role, verb, plural) for verb in READ for plural in PLURALS.values())


def test_the_control_plane_changes_no_policy() -> None:
    """It reads policies and namespaces, and writes status and Events: all that `tests/contract` sees it ask."""
    role = "mesh-control-policies"
    assert {verb for rule in ROLES[role] for verb in rule["verbs"]} == {*READ, "patch", "create"}
    for plural in PLURALS.values():
        assert all(may(role, verb, plural) for verb in READ)
        assert not any(may(role, verb, plural) for verb in WRITE)
        assert may(role, "patch", f"{plural}/status")
    assert all(may(role, verb, "namespaces", "") for verb in READ)
    assert not any(may(role, verb, "namespaces", "") for verb in WRITE)
    assert may(role, "create", "events", "")


def test_no_other_role_reaches_further() -> None:
    """What is bound to the control plane beside that is the review of tokens."""
    assert set(ROLES) == {
        "mesh-policy-editor", "mesh-subscription-editor", "mesh-control-policies", "mesh-control-attest",
    }  # fmt: skip
    assert ROLES["mesh-control-attest"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
