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

TENANT: Final = f"{DOMAIN}/tenant"  # label of a namespace, annotation of a pod
TEAM: Final = f"{DOMAIN}/team"  # label of a team's namespace and of a Subscription elsewhere; annotation of a pod
OWNER: Final = f"{DOMAIN}/owner"  # annotation of a policy: who must agree to a widening

# --- pods ------------------------------------------------------------------------------------------------------------

INJECT: Final = f"{DOMAIN}/inject"  # label of a pod: "true" asks for the sidecar
AGENT: Final = f"{DOMAIN}/agent"  # annotation of a pod; its service account where it says nothing
CREDENTIALS: Final = f"{DOMAIN}/credentials"  # annotation of a pod: the agent's Secret
INJECTED: Final = f"{DOMAIN}/injected"  # annotation that the injector sets: which sidecar this is

SIDECAR: Final = "mesh-agent"  # the container
VOLUMES: Final = "mesh-"  # prefix of the volumes of the sidecar
RUN_VOLUME: Final = "mesh-run"  # the socket and the token of the door: all that an application mounts
CREDENTIALS_VOLUME: Final = "mesh-credentials"
