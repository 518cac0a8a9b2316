"""The bundle: one tenant's policies as one numbered, canonical piece of bytes that every agent runs.

The bytes are canonical JSON (sorted keys, no spaces, defaults left out), so equal policies give equal bytes and one
digest names them. `encode()` is the payload that a signature goes around, and `previous` the digest of the revision
before: both are checked where bundles are adopted, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

from mesh.errors import BadBundle, MeshError
from mesh.policy.model import AnyDocument, Tenant
from mesh.policy.rules import Tenancy
from mesh.subjects import check_name

if TYPE_CHECKING:  # the loader brings YAML, which no agent needs
    from mesh.policy.load import PolicySet

FORMAT: Final = "mesh.policy/1"  # raised when an older agent would misread the bundle
PAYLOAD_TYPE: Final = "application/vnd.mesh.policy.v1+json"  # what DSSE's PAE names when the bundle is signed
MAX_BUNDLE_BYTES = 900_000  # below NATS' max_payload of 1 MiB with room for the envelope around it


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One tenant's policies at one revision.

    Attributes:
        tenant: Whose.
        revision: From 1, rising by one with each apply.
        site: The first token after `ev` in subjects.
        trust_domain: Of the agents' SPIFFE ids.
        created_ms: Unix milliseconds at which it was compiled.
        policies: The tenant's documents, in the order of kind and name.
        previous: SHA-256 (hex) of the revision before; empty for the first.
        format: Of the bundle; another one is refused.
    """

    tenant: str
    revision: int
    site: str
    trust_domain: str
    created_ms: int
    policies: tuple[AnyDocument, ...]
    previous: str = ""
    format: str = msgspec.field(default="")

    def encode(self) -> bytes:
        """The canonical bytes.

        Raises:
            BadBundle: They are more than `MAX_BUNDLE_BYTES`.
        """
        stamped = self if self.format else msgspec.structs.replace(self, format=FORMAT)
        data = msgspec.json.encode(stamped, order="sorted")
        if len(data) > MAX_BUNDLE_BYTES:
            raise BadBundle(
                f"the bundle of `{self.tenant}` has {len(data)} bytes, limit {MAX_BUNDLE_BYTES}",
                next="split the tenant, or merge documents that repeat each other",
            )
        return data

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, in hex: the name of exactly these policies."""
        return sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, data: bytes) -> Bundle:
        """Read a bundle.

        Raises:
            BadBundle: Not a bundle, of another format, too large, or its policies do not parse.
        """
        if len(data) > MAX_BUNDLE_BYTES:
            raise BadBundle(
                f"the bundle has {len(data)} bytes, limit {MAX_BUNDLE_BYTES}", next="keep the last good one"
            )
        try:
            head = msgspec.json.decode(data, type=_Head)
            if head.format != FORMAT:
                raise BadBundle(
                    "the bundle is of a format this version does not know",
                    expected=FORMAT,
                    got=head.format[:80] or "none",
                    next="upgrade this agent, or the control plane if it is the older one",
                )
            bundle = msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadBundle(
                f"the bundle does not decode: {type(error).__name__}",
                next="keep the last good one, look at the control plane",
            ) from error
        _check(bundle)
        return bundle

    def tenancy(self) -> Tenancy:
        """The policies parsed.

        Raises:
            BadBundle: They do not parse, or hold no single Tenant.
        """
        try:
            return Tenancy(self.policies)
        except (MeshError, ValueError, LookupError) as error:
            raise BadBundle(
                f"a policy in the bundle of `{self.tenant}` does not parse: {error}", next="keep the last good one"
            ) from error


class _Head(msgspec.Struct):
    format: str = ""


def _check(bundle: Bundle) -> None:
    try:
        check_name(bundle.tenant)
        check_name(bundle.site)
    except MeshError as error:
        raise BadBundle(f"the bundle names no real tenant and site: {error}", next="keep the last good one") from error
    if bundle.revision < 1 or bundle.created_ms < 0:
        raise BadBundle("the bundle's revision does not count from 1", next="keep the last good one")
    strangers = {d.tenant for d in bundle.policies} - {bundle.tenant}
    if strangers or sum(isinstance(d, Tenant) for d in bundle.policies) != 1:
        raise BadBundle("the bundle does not hold exactly one tenant's policies", next="keep the last good one")


def compile_bundles(
    policies: PolicySet,
    *,
    revision: int,
    site: str,
    trust_domain: str,
    created_ms: int,
    previous: Mapping[str, str] | None = None,
) -> dict[str, Bundle]:
    """One bundle a tenant.

    Args:
        policies: Loaded, so checked.
        revision: The number of the new revision.
        site: See `Bundle`.
        trust_domain: See `Bundle`.
        created_ms: Unix milliseconds.
        previous: The digest of the bundle before, by tenant.

    Raises:
        BadBundle: A tenant's bundle would be too large.
    """
    bundles = {}
    for tenant in policies.tenants:
        bundle = Bundle(
            tenant=tenant,
            revision=revision,
            site=site,
            trust_domain=trust_domain,
            created_ms=created_ms,
            policies=tuple(sorted((d.value for d in policies.of(tenant)), key=_place)),
            previous=(previous or {}).get(tenant, ""),
            format=FORMAT,
        )
        bundle.encode()
        bundles[tenant] = bundle
    return bundles


def _place(document: AnyDocument) -> tuple[str, str, str]:
    return document.kind, getattr(document.metadata, "team", ""), document.metadata.name
