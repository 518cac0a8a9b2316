"""What `mesh up` asks of policies before it starts anything: that it can run every agent in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.control.reconcile import TEAM_PREFIX
from mesh.errors import ConfigError
from mesh.identity import SpiffeId
from mesh.policy.compile import Plans

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.policy.bundle import Bundle


def check_agents(bundles: Mapping[str, Bundle], trust_domain: str) -> None:
    """Whether `mesh up` can run every agent of every tenant.

    Raises:
        ConfigError: See `check_tenant`.
    """
    taken: dict[str, str] = {}
    for tenant, bundle in bundles.items():
        plans = Plans(bundle)
        check_tenant(tenant, plans, trust_domain, taken)
        taken.update(dict.fromkeys(plans.tenancy.team_of, tenant))


def check_tenant(tenant: str, plans: Plans, trust_domain: str, taken: Mapping[str, str]) -> None:
    """Whether `mesh up` can run every agent of one tenant: one process and one directory each, called by its name.

    Args:
        tenant: Whose agents.
        plans: The tenant's.
        trust_domain: Of our CA.
        taken: Agents that are there, by name, and whose they are.

    Raises:
        ConfigError: Another tenant has an agent of that name, an agent is called like a team's account, belongs to
            another tenant, or has an identity that our CA cannot give it.
    """
    for agent in plans.tenancy.team_of:
        other = taken.get(agent, tenant)
        if "/" in agent:
            raise ConfigError(
                f"agent {agent} of tenant {tenant} is another tenant's, and cannot run here",
                expected="agents of the tenant itself: `mesh up` joins no tenants",
                got=agent,
                next=f"remove it from the Tenant document of {tenant}, or list an agent of {tenant}'s own",
            )
        if other != tenant or agent.startswith(TEAM_PREFIX):
            raise ConfigError(
                f"agent {agent} of tenant {tenant} cannot run here",
                expected=f"names that no other tenant's agent has, and none that begins with {TEAM_PREFIX}",
                got=f"also an agent of {other}" if other != tenant else agent,
                next="rename it in the Tenant document",
            )
        identity = plans.spiffe_id(agent)
        if SpiffeId.parse(identity).trust_domain != trust_domain:
            raise ConfigError(
                f"agent {agent} of tenant {tenant} has an identity of another trust domain",
                expected=f"spiffe://{trust_domain}/...: the mesh's own CA issues its certificate",
                got=identity,
                next="change it under `identities` in the Tenant document, or remove it there",
            )
