"""The compiled grant in NATS' words: what a tenant's account exports, and what each workload's account imports.

A workload's account imports exact subjects and nothing else, so these imports *are* what it may do. Every pattern of
the mesh's grants stands in this file, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mesh.jetstream.durables import durables, redrive, replays
from mesh.policy.grants import outermost
from mesh.subjects import physical_pattern

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.policy.grants import PublishGrant, SubscriptionGrant
    from mesh.subjects import Pattern

NEXT_THRESHOLD_NS = 600 * 10**9  # 10 min: a pull silent for longer loses its way back (server default 2 min, measured)
TEAM_PREFIX = "team-"  # of a team's own account; no agent's name begins with it


@dataclass(frozen=True, slots=True, order=True)
class Export:
    """A family of subjects that other accounts of the operator may import."""

    subject: str
    kind: Literal["service", "stream"] = "service"
    many_answers: bool = False
    threshold_ns: int = 0

    def claims(self) -> dict[str, Any]:
        """As it stands in an account JWT."""
        claims: dict[str, Any] = {"name": self.subject, "subject": self.subject, "type": self.kind}
        if self.many_answers:
            claims["response_type"] = "Stream"
        if self.threshold_ns:
            claims["response_threshold"] = self.threshold_ns
        return claims


@dataclass(frozen=True, slots=True, order=True)
class Import:
    """One subject (wildcards allowed) of another account: for a service, the right to publish it there."""

    account: str
    subject: str
    kind: Literal["service", "stream"] = "service"

    def claims(self) -> dict[str, Any]:
        """As it stands in an account JWT."""
        return {"name": self.subject, "account": self.account, "subject": self.subject, "type": self.kind}


# What every tenant account exports, once. Which workload takes which part is decided by the workload's imports, and an
# import stands in a JWT that only the operator can sign.
TENANT_EXPORTS = (
    Export("ev.>"),
    Export("$JS.API.CONSUMER.MSG.NEXT.>", many_answers=True, threshold_ns=NEXT_THRESHOLD_NS),
    Export("$JS.ACK.>"),
    Export("dlq.>"),
    Export("audit.>"),
    Export("report.>"),
    Export("$JS.API.DIRECT.GET.>"),
    Export("ctl.enrol.>"),
    Export("ctl.notice", kind="stream"),
)


def workload_imports(tenant: str, name: str) -> list[Import]:
    """What every workload takes: its audit and report subjects, the tenant's bundles, the trust store, the notices.

    Each of its instances (one a process) reports on a subject of its own. The bundle in force, each revision that is
    still needed for older copies, and the candidate that is tried in the shadow have a key each. An agent also asks
    for its certificates, in its own name; a team's own account signs nothing.

    Args:
        tenant: Public key of the tenant account.
        name: Of the workload.
    """
    enrolment = () if name.startswith(TEAM_PREFIX) else (f"ctl.enrol.{name}",)
    services = (
        f"audit.{name}",
        f"report.{name}.*",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.bundle",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.bundle.*",
        "$JS.API.DIRECT.GET.KV_mesh_policy.$KV.mesh_policy.shadow",
        "$JS.API.DIRECT.GET.KV_mesh_trust.$KV.mesh_trust.>",
        f"$JS.API.DIRECT.GET.REPORTS.report.{name}.*",  # its time stamp is the server's clock
        *enrolment,
    )
    return [*(Import(tenant, subject) for subject in services), Import(tenant, "ctl.notice", kind="stream")]


def publish_imports(tenant: str, site: str, grants: Iterable[PublishGrant]) -> list[Import]:
    """The subjects that one agent's *grants* let it publish, contained ones dropped.

    Of two patterns that merely overlap both stay: a subject in both arrives twice, is stored once by its message id,
    and is answered twice, the second time with `duplicate` (measured).
    """
    by_view: dict[str, list[Pattern]] = {}
    for grant in grants:
        by_view.setdefault(grant.view, []).append(grant.pattern)
    return [
        Import(tenant, physical_pattern(site, view, pattern))
        for view, patterns in sorted(by_view.items())
        for pattern in outermost(patterns)
    ]


def subscription_imports(
    tenant: str, site: str, domains: Iterable[str], grants: Iterable[SubscriptionGrant]
) -> list[Import]:
    """The pulls, acks and dead letters of *grants*, by exact durable: an ack subject is also a read right (`+NXT`).

    The durables of its replays and redrives are granted beside the subscription's own, there or not.
    """
    domains, imports = tuple(domains), []
    for grant in grants:
        for durable in (*durables(site, domains, grant), *replays(site, domains, grant), redrive(grant)):
            imports += [
                Import(tenant, f"$JS.API.CONSUMER.MSG.NEXT.{durable.stream}.{durable.name}"),
                Import(tenant, f"$JS.ACK.{durable.stream}.{durable.name}.>"),
            ]
        imports.append(Import(tenant, f"dlq.{grant.team}.{grant.name}"))
    return imports
