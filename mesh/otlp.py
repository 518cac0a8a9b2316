"""Spans and metrics to whoever collects them, by OTLP over HTTP. Off, and not imported, until the environment says so.

The variables are OpenTelemetry's: `OTEL_EXPORTER_OTLP_ENDPOINT` (or one for `_TRACES_` or `_METRICS_`), `_HEADERS`,
`_TIMEOUT`, `_COMPRESSION` and `_CERTIFICATE` beside it; `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`;
`OTEL_TRACES_SAMPLER` and `_ARG`; `OTEL_BSP_*`; `OTEL_METRIC_EXPORT_INTERVAL`; `OTEL_TRACES_EXPORTER` and
`OTEL_METRICS_EXPORTER` (`none`: not these); `OTEL_SDK_DISABLED`. Ours is `MESH_TRACES_PROCESS`: see `spans`.

Spans wait in a bounded queue, and a thread sends them: the event loop never waits for a collector. What finds the queue
full, or is not taken, is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from mesh import __version__, logs, spans, telemetry
from mesh.sampling import Sampling
from mesh.spans import Tracer
from mesh.telemetry import counter, gauge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import ReadableSpan

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
STOP_S: Final = 2.0  # for what waits to be sent, at the end of a process
QUEUE, BATCH, DELAY_MS = 2048, 512, 5000  # the SDK's own defaults of OTEL_BSP_*
INTERVAL_MS = 60_000  # and of OTEL_METRIC_EXPORT_INTERVAL
PARENT: Final = "parent"
_HTTP = "http/protobuf"

SENT = counter("mesh.telemetry.spans", unit="{span}", watch="flat while events flow: nothing is sampled")
DROPPED = counter(
    "mesh.telemetry.dropped",
    unit="{span}",
    watch="by reason: `queue-full` sample less, `not-taken` look at the collector",
)
WAITING = gauge("mesh.telemetry.waiting", unit="{span}", watch="at OTEL_BSP_MAX_QUEUE_SIZE: spans are dropped")
UNSENT = counter("mesh.telemetry.metrics_unsent", unit="{export}", watch="rising: the collector takes no metrics")

log = logs.get("telemetry")


class Batches(SpanProcessor):
    """Hands ended spans to an exporter, in a thread of its own.

    Args:
        exporter: Sends a batch, and may block.
        queue: Spans that may wait; beyond that the newest are dropped.
        batch: Spans sent at once.
        delay_s: Between two batches, unless there is a whole one.
    """

    def __init__(
        self, exporter: SpanExporter, *, queue: int = QUEUE, batch: int = BATCH, delay_s: float = DELAY_MS / 1000
    ) -> None:
        self._exporter = exporter
        self._queue: deque[ReadableSpan] = deque()
        self._limit, self._batch, self._delay_s = queue, min(batch, queue), delay_s
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="mesh-spans", daemon=True)
        self._thread.start()
        self._unread = WAITING.read(lambda: len(self._queue))

    def on_end(self, span: ReadableSpan) -> None:
        """Keep it, if there is room."""
        if self._ended or len(self._queue) >= self._limit:
            DROPPED.add(1, reason="queue-full")
            return
        self._queue.append(span)
        if len(self._queue) >= self._batch:
            self._wake.set()

    def shutdown(self) -> None:
        """Send what waits, for no longer than `STOP_S`; the rest is dropped."""
        self._ended = True
        self._wake.set()
        self._thread.join(STOP_S)
        self._unread()
        if left := len(self._queue):
            DROPPED.add(left, reason="ended")
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits; whether it was sent in time."""
        until = time.monotonic() + timeout_millis / 1000
        while self._queue and time.monotonic() < until:
            self._wake.set()
            time.sleep(0.01)
        return not self._queue

    def _run(self) -> None:
        while not self._ended:
            self._wake.wait(self._delay_s)
            self._wake.clear()
            self._send()

    def _send(self) -> None:
        until = time.monotonic() + STOP_S
        while self._queue and (not self._ended or time.monotonic() < until):
            batch = [self._queue[at] for at in range(min(self._batch, len(self._queue)))]
            taken = False
            with contextlib.suppress(Exception):  # whatever an exporter raises: the spans are lost, and counted
                taken = self._exporter.export(batch) is SpanExportResult.SUCCESS
            for _ in batch:
                self._queue.popleft()
            if taken:
                SENT.add(len(batch))
            else:
                DROPPED.add(len(batch), reason="not-taken")


class Export:
    """What one process sends. Made by `start`.

    Args:
        service: Its name, unless the environment has another.
        attributes: More of its resource.
        environ: The variables.
        common: Attributes of each span.
    """

    def __init__(
        self,
        service: str,
        attributes: Mapping[str, str],
        environ: Mapping[str, str],
        common: Mapping[str, str | int] | None = None,
    ) -> None:
        named = environ.get("OTEL_SERVICE_NAME") or service
        self._resource = Resource.create({"service.version": __version__, **attributes, "service.name": named})
        self._environ = environ
        self._provider: TracerProvider | None = None
        self._metrics: OTLPMetricExporter | None = None
        if self._asked("TRACES"):
            self._provider = self._traces(common)
        if self._asked("METRICS"):
            self._metrics = OTLPMetricExporter()
        log.info("telemetry_on", traces=self._provider is not None, metrics=self._metrics is not None)

    def _asked(self, signal: str) -> bool:
        """Whether somebody collects this kind, by the one protocol that we speak."""
        said = self._environ.get
        if not (said("OTEL_EXPORTER_OTLP_ENDPOINT") or said(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")):
            return False
        if (said(f"OTEL_{signal}_EXPORTER") or "otlp") != "otlp":
            return False
        protocol = said(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or said("OTEL_EXPORTER_OTLP_PROTOCOL") or _HTTP
        if protocol != _HTTP:
            log.error("telemetry_protocol_unknown", signal=signal.lower(), got=protocol, expected=_HTTP)
        return protocol == _HTTP

    def _traces(self, common: Mapping[str, str | int] | None) -> TracerProvider:
        processor = Batches(
            OTLPSpanExporter(),
            queue=self._number("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE),
            batch=self._number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH),
            delay_s=self._number("OTEL_BSP_SCHEDULE_DELAY", DELAY_MS) / 1000,
        )
        provider = TracerProvider(sampler=ALWAYS_ON, resource=self._resource, shutdown_on_exit=False)
        provider.add_span_processor(processor)
        below = self._environ.get("MESH_TRACES_PROCESS", "") == PARENT
        otel = provider.get_tracer("mesh", __version__, schema_url=SCHEMA)
        spans.use(Tracer(otel, sampling(self._environ), below=below, common=common))
        return provider

    def _number(self, name: str, default: int) -> int:
        text = self._environ.get(name, "")
        return int(text) if text.isdigit() and int(text) > 0 else default

    async def run(self) -> None:
        """Send metrics every `OTEL_METRIC_EXPORT_INTERVAL` until cancelled; spans need nobody to run."""
        interval_s = self._number("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL_MS) / 1000
        while True:
            await anyio.sleep(interval_s)
            await self._send_metrics()

    async def stop(self) -> None:
        """Make no more spans; send what waits, for no longer than `STOP_S` each."""
        spans.use(None)
        with anyio.move_on_after(STOP_S, shield=True):
            await self._send_metrics()
        if self._provider is not None:
            with anyio.move_on_after(STOP_S + 1.0, shield=True):
                await anyio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)

    async def _send_metrics(self) -> None:
        if self._metrics is None:
            return
        data = telemetry.DEFAULT.snapshot(self._resource)
        taken: Any = None
        with contextlib.suppress(Exception):  # as above
            taken = await anyio.to_thread.run_sync(self._metrics.export, data, abandon_on_cancel=True)
        if taken is not MetricExportResult.SUCCESS:
            UNSENT.add(1)


def sampling(environ: Mapping[str, str]) -> Sampling:
    """What `OTEL_TRACES_SAMPLER` says; the default where it says nothing that we know."""
    name = environ.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    follow, kind = name.startswith("parentbased_"), name.removeprefix("parentbased_")
    try:
        ratio = {"always_on": 1.0, "always_off": 0.0}.get(kind)
        if ratio is None and kind == "traceidratio":
            ratio = min(1.0, max(0.0, float(environ.get("OTEL_TRACES_SAMPLER_ARG") or 1.0)))
    except ValueError:
        ratio = None
    if ratio is None:
        log.error("sampler_unknown", expected="always_on, always_off, traceidratio, or these after parentbased_")
        return Sampling()
    return Sampling(ratio, follow=follow)


@contextlib.asynccontextmanager
async def exporting(service: str, attributes: Mapping[str, str], common: Mapping[str, str | int] | None = None) -> Any:
    """Send telemetry for the length of the block, if the environment asks for it."""
    export = Export(service, attributes, os.environ, common)
    sending = asyncio.create_task(export.run(), name="telemetry")
    try:
        yield
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        await export.stop()
