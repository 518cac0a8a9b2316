"""The bundle: one tenant's policies as one numbered, canonical piece of bytes that every agent runs.

The bytes are canonical JSON (sorted keys, no spaces, defaults left out), so equal policies give equal bytes and one
digest names them. `encode()` is the payload that a signature goes around (`envelope.py`). Each bundle names the
revisions before it by digest, without a gap; `history.py` makes that list.

What the header says beyond what we know is left aside, so that an agent one minor version older goes on working. In
the policies themselves every unknown word is refused: one that nobody understands might be a restriction. A change that
an older agent would misread raises `FORMAT`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

from mesh.errors import BadBundle, BundleChain, BundleFormat, MeshError
from mesh.policy.model import AnyDocument, PolicyTest, Tenant
from mesh.policy.rules import Tenancy
from mesh.subjects import check_name

if TYPE_CHECKING:  # the loader brings YAML, which no agent needs
    from mesh.policy.load import PolicySet

FORMAT: Final = "mesh.policy/1"  # raised when an older agent would misread the bundle
PAYLOAD_TYPE: Final = "application/vnd.mesh.policy.v1+json"  # what DSSE's PAE names when the bundle is signed
MAX_BUNDLE_BYTES = 900_000  # below NATS' max_payload of 1 MiB with room for the envelope around it


class Past(msgspec.Struct, frozen=True, array_like=True):
    """A revision that was in force: its number, the SHA-256 (hex) of its bundle, and since when.

    `at_ms` is the server's clock when the bundle was stored. It was in force until the `at_ms` of the next one.
    """

    revision: int
    digest: str
    at_ms: int


class Bundle(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, dict=True):
    """One tenant's policies at one revision.

    Attributes:
        tenant: Whose.
        revision: From 1, rising by one with each apply and each rollback.
        site: The first token after `ev` in subjects.
        trust_domain: Of the agents' SPIFFE ids.
        created_ms: Unix milliseconds at which it was handed out.
        policies: The tenant's documents, in the order of kind and name; no PolicyTest.
        previous: SHA-256 (hex) of the revision before; empty for the first.
        lineage: The revisions before, oldest first and without a gap up to `revision - 1`; as far back as the streams
            keep events. Whose copy is older than that cannot be read any more.
        since: For each team the revision since which everything that decides what it reads has been the same.
        rollback_of: The revision whose policies these are, where an older one was brought back; else 0.
        author: Who applied it, as the control plane was told.
        reason: Why, in the author's words.
        format: Of the bundle; another one is refused.
    """

    tenant: str
    revision: int
    site: str
    trust_domain: str
    created_ms: int
    policies: tuple[AnyDocument, ...]
    previous: str = ""
    lineage: tuple[Past, ...] = ()
    since: dict[str, int] = {}
    rollback_of: int = 0
    author: str = ""
    reason: str = ""
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

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the bytes it was read from, else of `encode()`: the name of exactly this bundle."""
        return sha256(self.encode()).hexdigest()

    def since_of(self, team: str) -> int:
        """The revision since which what *team* reads is decided the same way; this one where that is not known."""
        return self.since.get(team, self.revision)

    @classmethod
    def decode(cls, data: bytes) -> Bundle:
        """Read a bundle.

        Raises:
            BadBundle: Not a bundle, too large, or its policies do not parse.
            BundleFormat: Of another format.
            BundleChain: The revisions that it says came before it have a gap.
        """
        if len(data) > MAX_BUNDLE_BYTES:
            raise BadBundle(
                f"the bundle has {len(data)} bytes, limit {MAX_BUNDLE_BYTES}", next="keep the last good one"
            )
        try:
            head = msgspec.json.decode(data, type=_Head)
            if head.format != FORMAT:
                raise BundleFormat(
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
        bundle.__dict__["digest"] = sha256(
            data
        ).hexdigest()  # fills the cached property: parts we do not know count too
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
    _check_chain(bundle)


def _check_chain(bundle: Bundle) -> None:
    """The lineage ends right before the bundle, has no gap, and its last digest is `previous`."""
    first = bundle.revision - len(bundle.lineage)
    gapless = all(past.revision == first + place for place, past in enumerate(bundle.lineage))
    last = bundle.lineage[-1].digest if bundle.lineage else ""
    if not gapless or first < 1 or (bundle.revision > 1) != bool(last) or bundle.previous != last:
        raise BundleChain(
            f"bundle {bundle.revision} does not name the revisions before it without a gap",
            expected=f"revisions up to {bundle.revision - 1}, the last with the digest in `previous`",
            got=f"{len(bundle.lineage)} revisions",
            next="keep the last good one, look at the control plane",
        )


def compile_bundles(
    policies: PolicySet,
    *,
    site: str,
    trust_domain: str,
    created_ms: int,
    revision: int = 1,
    lineage: Mapping[str, tuple[Past, ...]] | None = None,
) -> dict[str, Bundle]:
    """One bundle a tenant.

    Args:
        policies: Loaded, so checked.
        site: See `Bundle`.
        trust_domain: See `Bundle`.
        created_ms: Unix milliseconds.
        revision: The number of the new revision.
        lineage: The revisions before, by tenant; needed from revision 2 on.

    Raises:
        BadBundle: A tenant's bundle would be too large.
    """
    bundles = {}
    for tenant in policies.tenants:
        past = (lineage or {}).get(tenant, ())
        bundle = Bundle(
            tenant=tenant,
            revision=revision,
            site=site,
            trust_domain=trust_domain,
            created_ms=created_ms,
            policies=ordered(d.value for d in policies.of(tenant)),
            previous=past[-1].digest if past else "",
            lineage=past,
            format=FORMAT,
        )
        bundle.encode()
        bundles[tenant] = bundle
    return bundles


def ordered(documents: Iterable[AnyDocument]) -> tuple[AnyDocument, ...]:
    """What a bundle holds of *documents*: all but the tests, in the order of kind and name."""
    return tuple(sorted((d for d in documents if not isinstance(d, PolicyTest)), key=_place))


def _place(document: AnyDocument) -> tuple[str, str, str]:
    return document.kind, getattr(document.metadata, "team", ""), document.metadata.name
