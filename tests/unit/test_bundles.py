"""Whose publish rights count at which time: the policies in force then, and those a late agent still had."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from nacl.signing import SigningKey

from mesh.bundles import ADOPTION_MS, Bundles
from mesh.policy.bundle import Past
from mesh.policy.envelope import seal_bundle
from tests.unit.policy_world import BASE, bundle

SEED = bytes(range(32))
PUBLIC = bytes(SigningKey(SEED).verify_key)
AGENT = "spiffe://mesh.test/ns/acme/sa/crm-adapter"
OPEN = {"access.yaml": BASE["access.yaml"].replace('publish: ["crm.>"]', 'publish: ["crm.>"], sources: ["/sap/**"]')}
HANDED_OUT_MS = 1_000_000


@pytest.mark.parametrize(
    ("stream_ms", "believed"),
    [
        (HANDED_OUT_MS - 1, True),
        (HANDED_OUT_MS, True),
        (HANDED_OUT_MS + ADOPTION_MS - 1, True),
        (HANDED_OUT_MS + ADOPTION_MS, False),
    ],
)
def test_a_source_that_was_withdrawn_counts_until_every_agent_must_know(stream_ms: int, believed: bool) -> None:
    """What an agent accepted before it had the newer bundle is believed; what came later is not."""
    first = bundle(base={**BASE, **OPEN})
    second = replace(bundle(), revision=2, previous=first.digest, lineage=(Past(1, first.digest, 0),))
    bundles = Bundles(PUBLIC)
    bundles.offer(seal_bundle(first, SEED), at_ms=1, now_ms=1)
    bundles.offer(seal_bundle(second, SEED), at_ms=HANDED_OUT_MS, now_ms=HANDED_OUT_MS)
    assert bundles.plans is not None
    assert not bundles.plans.may_publish(AGENT, "crm.contact.updated.v1", "/sap/1")
    assert bundles.might_publish(AGENT, "crm.contact.updated.v1", "/sap/1", stream_ms) is believed
