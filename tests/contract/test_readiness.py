"""The control plane notices a server without its streams: before it makes anything, and while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from mesh.control import readiness
from mesh.control.readiness import MISSING
from mesh.errors import NoBundle, StreamsMissing
from mesh.jetstream import manage
from mesh.policy.compile import Plans
from tests.contract.policy_mesh import CRM, PolicyMesh, reads
from tests.contract.streams import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[PolicyMesh]:
    """A tenant with policies in force."""
    async with PolicyMesh.running(tmp_path) as mesh:
        await mesh.apply(reads("masked"))
        yield mesh


async def check(mesh: PolicyMesh) -> None:
    """What a start asks first."""
    await readiness.check(mesh.control, mesh.store()._keep, mesh.authority.policy_public)


async def test_a_server_with_its_streams_is_ready(mesh: PolicyMesh) -> None:
    """Every stream that is expected is there; before a first start none is expected."""
    await check(mesh)
    await readiness.check(mesh.control, mesh.directory / "no.bundle", mesh.authority.policy_public)
    assert CRM in readiness.expected_streams(mesh.policies.plans)


async def test_a_stream_that_is_gone_stops_the_start(mesh: PolicyMesh) -> None:
    """A stream whose content cannot be made anew is named, with what to do; nothing is made in its place."""
    for stream in (CRM, "DLQ", "AUDIT", "KV_mesh_policy", "KV_mesh_trust"):
        config = (await manage.stream_info(mesh.control, stream))["config"]
        await manage.api(mesh.control, f"STREAM.DELETE.{stream}")
        with pytest.raises(StreamsMissing) as missing:
            await check(mesh)
        assert missing.value.details["streams"] == [stream]
        assert "the key it had" in missing.value.next
        assert stream not in (await manage.read_actual(mesh.control)).streams
        await manage.api(mesh.control, f"STREAM.CREATE.{stream}", config)
    await check(mesh)


async def test_what_fills_again_by_itself_stops_no_start(mesh: PolicyMesh) -> None:
    """Reports are made anew; where they are missing a start goes on, and a mesh that runs says so."""
    await manage.api(mesh.control, "STREAM.DELETE.REPORTS")
    await check(mesh)
    assert await readiness.missing_streams(mesh.control, mesh.policies.plans) == ["REPORTS"]


async def test_a_stream_that_goes_while_the_mesh_runs_is_seen(
    mesh: PolicyMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gauge rises when a stream goes, and falls when it is back; no bundle yet is no reason to end."""
    monkeypatch.setattr(readiness, "CHECK_S", 0.01)
    asked: list[None] = []

    def plans() -> Plans:
        asked.append(None)
        if len(asked) == 1:
            raise NoBundle("none yet")
        return mesh.policies.plans

    async with anyio.create_task_group() as group:
        group.start_soon(readiness.watch, "acme", mesh.control, plans)
        await until(lambda: len(asked) > 2)
        assert MISSING.value(tenant="acme") == 0
        config = (await manage.stream_info(mesh.control, CRM))["config"]
        await manage.api(mesh.control, f"STREAM.DELETE.{CRM}")
        await until(lambda: MISSING.value(tenant="acme") == 1)
        await manage.api(mesh.control, f"STREAM.CREATE.{CRM}", config)
        await until(lambda: MISSING.value(tenant="acme") == 0)
        group.cancel_scope.cancel()
