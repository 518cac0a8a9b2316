"""Whether the server has every stream that the policies in force need.

A server that cannot decrypt its store, or has another one, starts without a word and without the streams (measured):
publishers get no answer, and whoever makes streams where they are lacking would begin an empty mesh beside the old one.
So nothing is made before the control plane's own copy of the bundle has been held against what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from mesh import logs
from mesh.control.reconcile import now_ms
from mesh.errors import BadBundle, MeshError, StreamsMissing, Unavailable
from mesh.jetstream.manage import api
from mesh.jetstream.topology import desired
from mesh.policy.compile import Plans
from mesh.policy.envelope import open_bundle
from mesh.telemetry import gauge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mesh.jetstream.connection import Connection

CHECK_S = 10.0
NEXT = (
    "start it with the store and the key it had; to give up what is stored and begin anew, remove"
    " admin/bundles/<tenant>.bundle"
)

# Streams that fill again by themselves: a start makes them where they are lacking. A stream that a later version adds
# belongs here for as long as meshes are upgraded to it.
REMADE = frozenset(("ADVISORY", "REPORTS", "REDRIVE", "KV_mesh_agents"))

MISSING = gauge("mesh.control.streams_missing", unit="{stream}", watch="above 0: another store, or the wrong key")

log = logs.get("control")


def expected_streams(plans: Plans) -> frozenset[str]:
    """The streams that policies need."""
    grants = plans.grants(now_ms=now_ms())
    return frozenset(spec.name for spec in desired(plans.bundle.site, grants.domains, ()).streams)


async def missing_streams(connection: Connection, plans: Plans) -> list[str]:
    """Those of them that the server does not have, sorted.

    Args:
        connection: The control plane's, in the tenant account.
        plans: In force.

    Raises:
        RequestFailed, Unavailable: NATS refused or did not answer.
    """
    found: set[str] = set()
    while True:
        page = await api(connection, "STREAM.NAMES", {"offset": len(found)})
        found.update(page["streams"] or ())
        if not page["streams"] or len(found) >= page["total"]:
            return sorted(expected_streams(plans) - found)


async def check(connection: Connection, copy: Path, policy_public: bytes) -> None:
    """Hold the server against our own copy of the bundle in force, before anybody makes what is lacking.

    Args:
        connection: The control plane's, in the tenant account.
        copy: Of the envelope; absent before a first start, when nothing is expected.
        policy_public: What opens it.

    Raises:
        StreamsMissing: The server lacks streams whose content cannot be made anew.
        RequestFailed, Unavailable: NATS refused or did not answer.
    """
    try:
        plans = Plans(open_bundle(await anyio.Path(copy).read_bytes(), policy_public))
    except FileNotFoundError:
        return
    except BadBundle as error:
        log.error("kept_bundle_refused", code=error.code, error=str(error))
        return  # the store's own bundle decides, as `BundleStore` has it
    kept = expected_streams(plans) - REMADE
    require(plans.bundle.tenant, [name for name in await missing_streams(connection, plans) if name in kept])


def require(tenant: str, missing: list[str]) -> None:
    """Nothing, where nothing is missing.

    Raises:
        StreamsMissing: Something is.
    """
    if missing:
        raise StreamsMissing(
            f"the server lacks {len(missing)} streams of tenant {tenant}",
            expected="every stream of the policies in force",
            got=f"without {', '.join(missing)}",
            next=NEXT,
            tenant=tenant,
            streams=missing,
        )


async def watch(tenant: str, connection: Connection, plans: Callable[[], Plans]) -> None:
    """Say when streams are missing while the mesh runs, until cancelled.

    Args:
        tenant: Whose.
        connection: The control plane's, in the tenant account.
        plans: Those in force; raises NoBundle before the first.
    """
    before: list[str] = []
    while True:
        await anyio.sleep(CHECK_S)
        try:
            missing = await missing_streams(connection, plans())
        except Unavailable:
            continue  # a server that is away is said elsewhere, and is not without streams
        except MeshError as error:
            log.warning("streams_not_checked", tenant=tenant, code=error.code, error=str(error))
            continue
        MISSING.set(len(missing), tenant=tenant)
        if missing:
            log.error("streams_missing", tenant=tenant, code=StreamsMissing.code, streams=missing)
        elif before:
            log.info("streams_back", tenant=tenant)
        before = missing
