"""What routes make, against the real server: the publisher's account may store it, its readers' durable takes it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mesh.errors import MeshError
from mesh.event import draft_from_fields
from mesh.jetstream import manage
from mesh.journey import outbound
from tests.contract.policy_mesh import SITE, PolicyMesh, policies
from tests.unit.policy_world import Keys

pytestmark = pytest.mark.anyio

TO = "risk.review.contact.v1"
STREAM = "EV_local_risk"
ROUTE = f"""
---
apiVersion: mesh/v1
kind: Route
metadata: {{name: r, tenant: acme, owner: security}}
spec:
  routes:
    - {{id: review, match: {{types: ["crm.contact.>"]}}, when: "data.score > 5", effect: EFFECT, to: {TO}}}
---
apiVersion: mesh/v1
kind: Subscription
metadata: {{name: reviews, tenant: acme, team: support}}
spec: {{types: ["risk.>"], start: all}}
"""
READS = (
    "{id: s, who: {teams: [support]}, subscribe: ['risk.>'], view: masked}",
    "{id: a, who: {teams: [analytics]}, subscribe: ['crm.>'], view: bare}",
)


@pytest.mark.parametrize(("effect", "views"), [("copy", ["bare", "masked"]), ("move", ["masked"])])
async def test_a_routed_copy_is_stored_where_its_readers_find_it(tmp_path: Path, effect: str, views: list[str]) -> None:
    """The publisher has no line for the type, yet its account may store what the route makes; another may not."""
    async with PolicyMesh.running(tmp_path) as mesh:
        files = policies(*READS, more=ROUTE.replace("EFFECT", effect))
        await mesh.policies.apply(files, {}, author="ada")
        plans = mesh.policies.plans
        assert plans is not None
        fields = {"specversion": "1.0", "id": "e-1", "source": "/crm", "type": "crm.contact.updated.v1"}
        draft = draft_from_fields(fields | {"data": {"score": 7}}, now_ms=0)
        made = outbound(
            draft, plans.publisher("crm-adapter"), Keys(), site=SITE, tenant="acme", revision=1, dedupe_key=bytes(32)
        )
        assert sorted(copy.view for copy in made.copies) == views
        crm, lake = await mesh.workload("crm-adapter"), await mesh.workload("lake")
        for copy in made.copies:
            stored = msgspec.json.decode((await crm.request(copy.subject, copy.body)).data)
            assert stored["stream"] == copy.stream
            with pytest.raises(MeshError):
                await lake.request(copy.subject, copy.body, timeout_s=0.5)
        assert await mesh.filters("support--reviews", STREAM) == {"masked risk.>"}
        info = await manage.consumer_info(mesh.control, STREAM, "support--reviews")
        assert info["num_pending"] == 1
        reply = await mesh.control.request(f"$JS.API.DIRECT.GET.{STREAM}", b'{"seq": 1}')
        body = msgspec.json.decode(reply.data)
        assert (body["type"], body["causationid"], body["data"]) == (TO, "e-1", None)
