"""Whom everybody in a mesh believes: its CA, and the keys that sign trust statements and policies, from files.

`trust/` holds what everybody may read and has to trust: the roots (`ca.crt`), and the public keys of trust statements,
policies and enrolment. What makes them lies in `admin/` and never leaves the control plane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.public import PrivateKey

from mesh import logs
from mesh.control.datadir import hex_key, private_directory, write_if_changed
from mesh.control.hierarchy import Hierarchy
from mesh.control.proof import KEY_FILE
from mesh.control.reconcile import now_ms
from mesh.enrolment import open_request
from mesh.errors import MeshError
from mesh.identity import TrustStatement
from mesh.policy.candidate import seal_candidate
from mesh.policy.envelope import seal_bundle

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mesh.ca import MeshCA
    from mesh.enrolment import Request
    from mesh.policy.bundle import Bundle
    from mesh.policy.candidate import Candidate


RENEW_EVERY_S = 86_400.0  # between two looks at the mesh CA's age

log = logs.get("control")


async def keep_ca(authority: Authority) -> None:
    """Renew the mesh CA when half its life is over, until cancelled; each day on which that fails is an error."""
    while True:
        await anyio.sleep(RENEW_EVERY_S)
        try:
            await anyio.to_thread.run_sync(authority.renew_ca, now_ms())
        except (MeshError, OSError) as error:
            log.error("mesh_ca_renewal_failed", error=str(error))


class Authority:
    """The CA, the trust key, the enrolment key and the policy key of a data directory; made on first use.

    Args:
        trust: The directory of what everybody may read.
        admin: The directory of what nobody else may.
        trust_domain: Of the certificates.
        now_ms: Unix milliseconds.

    Raises:
        ConfigError: A key or a certificate of ours is missing or damaged.
    """

    def __init__(self, trust: Path, admin: Path, *, trust_domain: str, now_ms: int) -> None:
        if (trust / "trust.key").exists() and not (admin / "trust.key").exists():  # where it lay before
            (trust / "trust.key").replace(private_directory(admin) / "trust.key")
        self._hierarchy = Hierarchy(trust, admin, trust_domain=trust_domain, now_ms=now_ms)
        self._trust_seed = hex_key(admin / "trust.key")
        self._policy_seed = hex_key(admin / "policy.key")
        self._enrol_key = hex_key(admin / "enrol.key")
        self.operator_key = hex_key(admin / KEY_FILE)  # shows that an operator of ours asks something
        self.trust_public = _public(self._trust_seed)
        self.policy_public = _public(self._policy_seed)
        self.enrol_public = bytes(PrivateKey(self._enrol_key).public_key)
        for name, key in (("trust", self.trust_public), ("policy", self.policy_public), ("enrol", self.enrol_public)):
            write_if_changed(trust / f"{name}.pub", key.hex().encode() + b"\n")

    @property
    def ca(self) -> MeshCA:
        """The mesh CA that signs today; another one after `renew_ca`."""
        return self._hierarchy.ca

    @property
    def roots(self) -> tuple[bytes, ...]:
        """Every root that certificates may come from, PEM."""
        return self._hierarchy.roots

    def renew_ca(self, now_ms: int, *, force: bool = False) -> bool:
        """See `Hierarchy.renew`."""
        return self._hierarchy.renew(now_ms, force=force)

    def statement(self, *, tenant: str, epoch: int, now_ms: int, revoked: Mapping[str, int]) -> bytes:
        """The signed statement of which keys *tenant* refuses, each from which time on (Unix milliseconds)."""
        return TrustStatement(tenant=tenant, epoch=epoch, issued_ms=now_ms, revoked=dict(revoked)).seal(
            self._trust_seed
        )

    def open_request(self, data: bytes) -> Request:
        """A request for a certificate, which only we can read.

        Raises:
            BadEnrolment: It was not sealed for us, or is none.
        """
        return open_request(data, self._enrol_key)

    def seal(self, bundle: Bundle) -> bytes:
        """*bundle* in its envelope, signed with the policy key.

        Raises:
            BadBundle: It is too large.
        """
        return seal_bundle(bundle, self._policy_seed)

    def seal_candidate(self, candidate: Candidate) -> bytes:
        """*candidate* in its envelope, signed with the policy key as what it is.

        Raises:
            BadBundle: It is too large.
        """
        return seal_candidate(candidate, self._policy_seed)


def _public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
