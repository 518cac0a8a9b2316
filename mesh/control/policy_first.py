"""What the objects of a cluster hold when a replica takes the lead: for tenants that have no policies yet.

`--policies` says the same with files. A tenant whose objects do not hold is left out, and they are told why.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio.to_thread

from mesh import logs
from mesh.control.change import checked
from mesh.control.policy_set import Outcome
from mesh.control.policy_sources import SourceOptions, read_cluster
from mesh.control.policy_status import tell
from mesh.errors import MeshError, Unavailable
from mesh.kubernetes.objects import faults
from mesh.policy.documents import PolicySet
from mesh.policy_files import read_policies

if TYPE_CHECKING:
    from collections.abc import Collection

    from mesh.control.given import Given

log = logs.get("control")


async def with_cluster(given: Given, options: SourceOptions | None, known: Collection[str]) -> Given:
    """*given*, and what the cluster holds for tenants that are neither in it nor *known*.

    Args:
        given: Of files; counts where both have a tenant.
        options: Where policies are kept.
        known: Tenants that have policies in force.

    Raises:
        Unavailable: Nobody has any policies, or the API server does not answer; a later lead may find some.
    """
    if options is None or options.api is None:
        return given
    try:
        placed = await read_cluster(options.api)
    except MeshError as error:
        if known:  # they are up, whatever the API server does
            log.warning("cluster_not_read", code=error.code, error=error.message, got=error.got)
            return given
        raise Unavailable(error.message, expected=error.expected, got=error.got, next=error.next) from error
    fixtures = {} if options.directory is None else read_policies(options.directory).fixtures
    for tenant in sorted({one.tenant for one in placed if one.kind == "Tenant" and one.text}):
        if tenant in known or tenant in given.tenants:
            continue
        mine = [one for one in placed if one.tenant == tenant and one.text]
        texts = {one.file: one.text for one in mine}
        try:
            policies = await anyio.to_thread.run_sync(checked, texts, fixtures, tenant)
        except MeshError as error:
            outcome = Outcome(error=error, faults=faults(error, mine))
            await tell(options.api, [(one, outcome.state(one, 0)) for one in mine], options.replica)
            log.error("policies_refused", tenant=tenant, code=error.code, error=str(error))
            continue
        given = replace(
            given,
            yaml={**given.yaml, **texts},
            fixtures={**fixtures, **given.fixtures},
            policies=PolicySet((*given.policies.documents, *policies.documents)),
            author="kubernetes",
        )
    if given.fault is not None:  # of files that nobody needs where there are objects; a mount may be empty
        log.warning("given_policies_refused", code=given.fault.code, error=given.fault.message)
        given = replace(given, fault=None)
    if not known and not given.tenants:
        raise Unavailable(
            "no tenant has policies that hold", expected="a Tenant object", next="apply one; this is tried again"
        )
    return given
