"""Every name that the mesh has in a cluster. `DOMAIN` is the one to change where another is owned."""

from __future__ import annotations

from typing import Final

DOMAIN: Final = "mesh.dev"

# --- policies --------------------------------------------------------------------------------------------------------

GROUP: Final = f"policy.{DOMAIN}"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
PLURALS: Final = {
    "Tenant": "tenants", "Classification": "classifications", "View": "views", "Access": "accesses", "Route": "routes",
    "Subscription": "subscriptions", "PolicyTest": "policytests",
}  # fmt: skip

TENANT: Final = f"{DOMAIN}/tenant"  # label of a namespace: whose policies stand in it; of a pod: whose agent it has
TEAM: Final = f"{DOMAIN}/team"  # label of a team's namespace, or of a Subscription in the tenant's own
OWNER: Final = f"{DOMAIN}/owner"  # annotation of a policy: who must agree to a widening

ACCEPTED: Final = "Accepted"  # conditions of a policy object
APPLIED: Final = "Applied"

# --- pods ------------------------------------------------------------------------------------------------------------

INJECT: Final = f"{DOMAIN}/inject"  # label of a pod: "true" asks for the sidecar
INJECTED: Final = f"{DOMAIN}/injected"  # annotation that the injector sets: which sidecar this is

SIDECAR: Final = "mesh-agent"  # the container
TENANT_VARIABLE: Final = "MESH_AGENT_TENANT"  # of the sidecar
DOOR_VOLUME: Final = "mesh-door"  # the token of the door
CONFIG_VOLUME: Final = "mesh-config"  # the agent's settings, its team's own
TLS_VOLUME: Final = "mesh-tls"  # the certificate that is shown to NATS: a Secret, or an SVID
SHARED_VOLUMES: Final = frozenset((DOOR_VOLUME, "mesh-trust", CONFIG_VOLUME))  # all that an application may mount
STATE_VOLUME: Final = "mesh-state"  # the spool; a pod may bring a disk of its own
PLACEHOLDER: Final = "AGENT"  # in the sidecar's volumes: the pod's service account
