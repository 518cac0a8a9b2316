"""`mesh.json` of a replica: for whoever runs commands where it runs, whether it leads or waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mesh import logs
from mesh.bundles import policy_key
from mesh.context import MeshFile, TenantAddress
from mesh.control.datadir import write_if_changed
from mesh.control.reconcile import now_ms
from mesh.control.workloads import team_address
from mesh.errors import MeshError
from mesh.policy.compile import Plans
from mesh.policy.envelope import open_bundle

if TYPE_CHECKING:
    from mesh.control.datadir import DataDirectory
    from mesh.jetstream.tls import TlsFiles

log = logs.get("control")


def write_mesh_file(data: DataDirectory, *, nats_url: str, site: str, tls: TlsFiles | None) -> None:
    """Write it from the bundles in force, as this directory has them; not before there are any: it says "ready".

    What fails is logged: nothing else needs it.

    Args:
        data: The data directory.
        nats_url: Of the servers.
        site: Of the mesh.
        tls: What we show to NATS, and operators with us; None for servers without TLS.
    """
    if not data.bundled:
        return
    try:
        file = MeshFile(
            nats_url=nats_url,
            data=str(data.root),
            site=site,
            tenants={tenant: _address(data, site, tenant) for tenant in data.bundled},
            tls_ca_file="" if tls is None else str(tls.ca.absolute()),
            operator_cert_file="" if tls is None else str(tls.cert.absolute()),
            operator_key_file="" if tls is None else str(tls.key.absolute()),
        )
        write_if_changed(data.mesh_file, msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n")
    except (MeshError, OSError) as error:
        log.error("mesh_file_not_written", error=type(error).__name__)


def _address(data: DataDirectory, site: str, tenant: str) -> TenantAddress:
    """Of one tenant; where its agents listen, whoever runs them knows."""
    bundle = open_bundle(data.bundle(tenant).read_bytes(), policy_key(data.trust))
    grants = Plans(bundle).grants(now_ms=now_ms())
    teams = {team: team_address(data.team(team), site, team, grants) for team in sorted(grants.teams)}
    return TenantAddress(agents={}, teams=teams)
