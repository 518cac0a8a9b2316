"""What `mesh up` refuses before it starts anything."""

from __future__ import annotations

import pytest

from mesh.control.preflight import check_agents
from mesh.errors import ConfigError
from tests.unit.policy_world import BASE, bundle

TRUST_DOMAIN = "mesh.test"


def check(tenant: str) -> None:
    """Check the base with *tenant* for its Tenant document."""
    check_agents({"acme": bundle(base=BASE | {"tenant.yaml": tenant})}, TRUST_DOMAIN)


def test_the_base_can_run() -> None:
    """Agents of one tenant with names and identities of their own, in the mesh's trust domain."""
    check(BASE["tenant.yaml"])
    check(BASE["tenant.yaml"] + f"  identities: {{desk: spiffe://{TRUST_DOMAIN}/k8s/desk}}\n")


@pytest.mark.parametrize(
    ("tenant", "message", "way_out"),
    [
        (
            BASE["tenant.yaml"] + "    fund: {agents: [fund/feed-in]}\n",
            "fund/feed-in of tenant acme is another tenant's",
            "remove it",
        ),
        (BASE["tenant.yaml"] + "    x: {agents: [team-x]}\n", "team-x of tenant acme cannot run here", "rename it"),
        (
            BASE["tenant.yaml"] + "  identities: {desk: spiffe://elsewhere/desk}\n",
            "desk of tenant acme has an identity of another trust domain",
            "`identities`",
        ),
    ],
)
def test_an_agent_that_cannot_run_here_is_refused(tenant: str, message: str, way_out: str) -> None:
    """The error names agent and tenant, and says what to do."""
    with pytest.raises(ConfigError, match=message) as refused:
        check(tenant)
    assert way_out in refused.value.next


def test_two_tenants_share_no_agent_name() -> None:
    """Agents have one directory each, by name."""
    with pytest.raises(ConfigError, match="crm-adapter of tenant other cannot run here"):
        check_agents({"acme": bundle(), "other": bundle()}, TRUST_DOMAIN)
