"""When NATS will not have us: whether that is of this workload, and what callers are told. Pure."""

from __future__ import annotations

from mesh.errors import ConfigError, Disconnected, MeshError

BARRED = frozenset({"account-closed", "credentials-revoked"})  # what a control plane does to a workload it revokes


def is_ours(refusal: MeshError) -> bool:
    """Whether a refusal is of this workload: it is barred, or lacks a file. Any other server may still have us."""
    return isinstance(refusal, ConfigError) or reason(refusal) in BARRED


def reason(refusal: MeshError) -> str:
    """The stable reason of a refusal."""
    return str(refusal.details.get("reason", refusal.code))


def refused(refusal: MeshError) -> Disconnected:
    """What a caller is told: nothing goes out until somebody has done what *refusal* asks for."""
    why = reason(refusal)
    return Disconnected(
        f"the agent is kept from NATS until somebody helps: {why}",
        expected="an agent that NATS takes with the files it has",
        got=refusal.got,
        next=refusal.next,
        reason=why,
    )
