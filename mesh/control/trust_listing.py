"""What `mesh trust list` and `show` are told: keys, anchors and the statement, as plain data. Never a private key."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh.authorities import ca_kid, load_cas, to_ms
from mesh.certificates import split_chain
from mesh.keys import key_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mesh.control.standing import Standing
    from mesh.control.trust import Authority
    from mesh.control.truststore import TrustStore
    from mesh.keys import Certificate

PAGE_BYTES = 700_000  # below NATS' max_payload of 1 MiB, with room for what stands around it


def key_of(
    certificate: Certificate, agents: Mapping[str, str], revoked: Mapping[str, int], at_ms: int
) -> dict[str, Any]:
    """One event key.

    Args:
        certificate: Of the key.
        agents: The name of each agent by its SPIFFE id.
        revoked: As a trust statement has it.
        at_ms: Unix milliseconds of now.

    Returns:
        With `state`: `good`; `leaving`, revoked from a time that is still to come; `revoked`; or `ended`.
    """
    from_ms = revoked_from(certificate, revoked)
    if certificate.not_after_ms < at_ms:
        state = "ended"
    elif from_ms is None:
        state = "good"
    else:
        state = "revoked" if from_ms <= at_ms else "leaving"
    return {
        "kid": certificate.kid,
        "agent": agents.get(certificate.spiffe_id, ""),
        "spiffe_id": str(certificate.spiffe_id),
        "issuer_kid": certificate.issuer_kid,
        "not_before_ms": certificate.not_before_ms,
        "not_after_ms": certificate.not_after_ms,
        "revoked_from_ms": from_ms,
        "state": state,
    }


def other_of(kid: str, from_ms: int, at_ms: int) -> dict[str, Any]:
    """A revoked key without a certificate in the list: a mesh CA of before, or one that was pruned."""
    return {
        "kid": kid,
        "agent": "",
        "spiffe_id": "",
        "issuer_kid": "",
        "not_before_ms": None,
        "not_after_ms": None,
        "revoked_from_ms": from_ms,
        "state": "revoked" if from_ms <= at_ms else "leaving",
    }


def first_of(keys: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of *keys* as fit into an answer."""
    left, count = PAGE_BYTES, 0
    for key in keys:
        left -= len(msgspec.json.encode(key))
        if left < 0:
            break
        count += 1
    return list(keys[:count])


def revoked_from(certificate: Certificate, revoked: Mapping[str, int]) -> int | None:
    """From which stream time (Unix ms) events under this key are refused, for its own sake or its issuer's."""
    times = [revoked[kid] for kid in (certificate.kid, certificate.issuer_kid) if kid in revoked]
    return min(times, default=None)


def chain_of(certificate: Certificate) -> list[str]:
    """The certificate and its issuer, PEM."""
    items = [x509.load_der_x509_certificate(der) for der in split_chain(certificate.chain)]
    return [item.public_bytes(Encoding.PEM).decode() for item in items]


def anchors(authority: Authority) -> dict[str, Any]:
    """What everybody verifies by."""
    roots = [ca for pem in authority.roots for ca in load_cas(pem)]
    return {
        "trust_domain": authority.ca.trust_domain,
        "roots": [
            {
                "kid": ca_kid(root),
                "sha256": sha256(root.public_bytes(Encoding.DER)).hexdigest(),
                "not_after_ms": to_ms(root.not_valid_after_utc),
            }
            for root in roots
        ],
        "ca": ca_of(authority),
        "trust_key": key_id(authority.trust_public),
        "policy_key": key_id(authority.policy_public),
    }


def ca_of(authority: Authority) -> dict[str, Any]:
    """The intermediate that signs today."""
    ca = authority.ca
    return {"kid": ca.kid, "not_before_ms": ca.not_before_ms, "not_after_ms": ca.not_after_ms}


def statement_of(store: TrustStore) -> dict[str, Any]:
    """The trust statement in force; of the keys it revokes their number."""
    return {"epoch": store.epoch, "issued_ms": store.issued_ms, "revoked": len(store.revoked)}


def standing_of(standing: Standing) -> dict[str, Any]:
    """Who is barred, and how many NATS users of whom are revoked."""
    return {
        "barred": sorted(standing.barred),
        "revoked_users": {workload: len(users) for workload, users in sorted(standing.users.items())},
    }
