"""Telemetry of a whole mesh, as a collector gets it: one trace from a request to the handlers, and metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.contract.agent_mesh import until
from tests.contract.push_mesh import App
from tests.journey.meshes import RunningMesh, mesh_up, restart_agent
from tests.journey.test_lifecycle import AGENT, POLICIES
from tests.otlp_sink import Sink, attributes, collecting

pytestmark = pytest.mark.anyio

TYPE = "crm.contact.updated.v1"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ONE_MORE = """
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: pushed, tenant: acme, team: crm}
spec: {types: ["crm.contact.>"], start: all}
---
apiVersion: mesh/v1
kind: Subscription
metadata: {name: joined, tenant: acme, team: crm}
spec: {types: ["crm.contact.>"], start: all}
"""
HANDLER = """\
import sys, anyio, mesh
from mesh import logs
async def main():
    name = sys.argv[2]
    async with mesh.connect(sys.argv[1], team="crm", agent="crm-adapter") as m, m.subscription(name) as subscription:
        logs.setup(name, json=True)
        async for delivery in subscription:
            async with delivery as event:
                if (name, event.type) == ("contacts", "crm.contact.updated.v1"):
                    logs.get("consumer").info("handling")
                    await m.publish("crm.contact.checked.v1", {"id": 2}, source="/crm")
anyio.run(main)
"""


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    """The collector."""
    with collecting() as sink:
        yield sink


@pytest.fixture(scope="module")
def mesh(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """One team that publishes and reads; its agent sends telemetry."""
    directory = tmp_path_factory.mktemp("mesh")
    (directory / "policies").mkdir()
    (directory / "policies" / "p.yaml").write_text(POLICIES + ONE_MORE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
        patch.delenv("MESH_TRACES_PROCESS", raising=False)
        with mesh_up(directory, directory / "policies") as running:
            yield running


def post(mesh: RunningMesh) -> None:
    """One contact, by a caller who records a trace."""
    door = mesh.file.tenants["acme"].agents[AGENT]
    event = {"specversion": "1.0", "id": "c-1", "source": "/crm", "type": TYPE, "data": {"id": 1}}
    headers = {
        "Authorization": f"Bearer {Path(door.token_file).read_text().strip()}",
        "Content-Type": "application/cloudevents+json",
        "traceparent": f"00-{TRACE}-{CALLER}-01",
    }
    request = urllib.request.Request(f"{door.url}/v1/events", json.dumps(event).encode(), headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the same
        assert answer.status == 202


def span_of(sink: Sink, name: str, service: str) -> Span:
    """The one span of that name that a service sent."""
    (found,) = (span for who, span in sink.spans if (who, span.name) == (service, name))
    return found


def leads_to(sink: Sink, span: Span) -> set[str]:
    """The spans that one comes from: its parent and what it is linked to, and theirs in turn, across traces."""
    spans = {found.span_id: found for _, found in sink.spans}
    come: set[bytes] = set()
    follow = [span]
    while follow:
        one = follow.pop()
        before = {one.parent_span_id, *(link.span_id for link in one.links)} - {b""} - come
        come |= before
        follow += [spans[key] for key in before if key in spans]
    return {key.hex() for key in come}


@contextmanager
def consuming(mesh: RunningMesh, name: str, log: Path, **environ: str) -> Iterator[None]:
    """A process that handles a subscription for the length of the block, and sends its spans under its name."""
    command = [sys.executable, "-c", HANDLER, str(mesh.data), name]
    with log.open("wb") as out:
        consumer = subprocess.Popen(command, stderr=out, env={**os.environ, "OTEL_SERVICE_NAME": name, **environ})
        try:
            yield
        finally:
            consumer.send_signal(signal.SIGKILL)
            consumer.wait()


async def test_one_trace_from_a_request_to_its_handlers(mesh: RunningMesh, sink: Sink, tmp_path: Path) -> None:
    """Across processes: by the link from handler to creation, the conventions' default; and by one trace id, if asked.

    The caller's span, the agent's publish, the process of the library and of the push, and what follows from these.
    """
    file = mesh.data / "agents" / AGENT / "agent.toml"
    log = tmp_path / "contacts.log"
    async with App.running() as app:
        file.write_text(file.read_text() + f'\n[push.pushed]\nurl = "{app.url}"\n')
        await restart_agent(mesh, AGENT)
        with consuming(mesh, "contacts", log), consuming(mesh, "joined", tmp_path / "j", MESH_TRACES_PROCESS="parent"):
            await anyio.to_thread.run_sync(post, mesh)
            for name in ("process", "ack"):  # two events, three subscriptions
                await until(lambda name=name: len(sink.named(name)) == 6, timeout_s=60)
            for name in (f"publish {TYPE}", "publish crm.contact.checked.v1"):
                await until(lambda name=name: sink.named(name), timeout_s=60)
        published = span_of(sink, f"publish {TYPE}", "mesh-agent")
        linked = span_of(sink, f"process {TYPE}", "contacts")
        joined = span_of(sink, f"process {TYPE}", "joined")
        pushed = span_of(sink, f"process {TYPE}", "mesh-agent")
        follows = span_of(sink, "publish crm.contact.checked.v1", "mesh-agent")
        settled = span_of(sink, f"ack {TYPE}", "contacts")
        again = span_of(sink, "process crm.contact.checked.v1", "joined")
        assert (published.trace_id.hex(), published.parent_span_id.hex()) == (TRACE, CALLER)
        assert (joined.trace_id, joined.parent_span_id) == (published.trace_id, published.span_id)
        assert all([link.span_id for link in span.links] == [published.span_id] for span in (linked, joined, pushed))
        assert linked.parent_span_id == pushed.parent_span_id == b""
        assert follows.parent_span_id == settled.parent_span_id == linked.span_id
        assert {linked.span_id.hex(), published.span_id.hex(), CALLER} <= leads_to(sink, again)
        assert (published.kind, linked.kind) == (Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER)
        (request,) = [posted for posted in app.posted if posted.id == "c-1"]
    assert request.headers["traceparent"][:52] == f"00-{pushed.trace_id.hex()}-{pushed.span_id.hex()}"
    assert request.event["traceparent"][:52] == f"00-{TRACE}-{published.span_id.hex()}"
    assert attributes(published.attributes)["server.address"] == "127.0.0.1"
    (line,) = [json.loads(line) for line in log.read_text().splitlines() if '"handling"' in line]
    assert (line["trace_id"], line["span_id"]) == (linked.trace_id.hex(), linked.span_id.hex())


async def test_metrics_go_to_the_collector(mesh: RunningMesh, sink: Sink) -> None:
    """Ours and those of the conventions, with whose process it is; the latter's buckets are the advised ones."""
    assert mesh.pid
    await until(lambda: "messaging.process.duration" in sink.metrics, timeout_s=60)
    duration = sink.metrics["messaging.process.duration"].histogram.data_points[0]
    assert list(duration.explicit_bounds) == [
        *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
    ]
    assert sum(duration.bucket_counts) == duration.count >= 1
    (sent,) = sink.metrics["messaging.client.sent.messages"].sum.data_points
    assert attributes(sent.attributes) == {"messaging.system": "nats", "messaging.operation.name": "publish"}
    assert "mesh.agent.policy.revision" in sink.metrics
    who = {"service.name": "mesh-agent", "mesh.tenant": "acme", "mesh.agent": AGENT}
    assert any(who.items() <= resource.items() for resource in sink.resources)
