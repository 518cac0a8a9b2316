"""The way out for metrics: our numbers as OpenTelemetry's data model, and that as Prometheus text.

Apart from `telemetry.py` because OpenTelemetry takes 0.1 s to import and only a process that is scraped needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import export as otel
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry, generate_latest

import mesh.telemetry_messaging  # noqa: F401 - defines metrics, which every export has
from mesh import __version__
from mesh.telemetry import Buckets, Counter, Derived, Gauge, Histogram, Metric

_SCOPE = InstrumentationScope("mesh", __version__)
_RESOURCE = Resource({"service.version": __version__})


def metrics_data(
    metrics: Iterable[Metric], *, started_ns: int, now_ns: int, resource: Resource | None = None
) -> otel.MetricsData:
    """One snapshot. Metrics nothing was counted for yet are left out, as an SDK does."""
    found = [m for m in (_metric(metric, started_ns, now_ns) for metric in list(metrics)) if m is not None]
    scope = otel.ScopeMetrics(scope=_SCOPE, metrics=found, schema_url="")
    whole = otel.ResourceMetrics(resource=resource or _RESOURCE, scope_metrics=[scope], schema_url="")
    return otel.MetricsData(resource_metrics=[whole])


def prometheus_renderer(snapshot: Callable[[], otel.MetricsData]) -> Callable[[], bytes]:
    """A function that renders a fresh snapshot through the exporter, with a registry of its own."""
    registry = CollectorRegistry(auto_describe=False)
    reader = PrometheusMetricReader(registry=registry, disable_target_info=True, scope_info_enabled=False)

    def collect(_reader: otel.MetricReader, **_timeout: float) -> otel.MetricsData:
        return snapshot()

    # Where a MeterProvider would register its own collection; the version range in pyproject.toml is narrow for this.
    reader._set_collect_callback(cast("Any", collect))  # noqa: SLF001
    return lambda: generate_latest(registry)


def _metric(metric: Metric, started_ns: int, now_ns: int) -> otel.Metric | None:
    data: Any
    cumulative = otel.AggregationTemporality.CUMULATIVE
    if not isinstance(metric, Counter | Gauge | Histogram | Derived):
        raise TypeError(f"{metric.name} is a {type(metric).__name__}, which has no export")
    series: Iterable[tuple[dict[str, str], Any]] = metric.series()
    match metric.kind:
        case "counter":
            points = [_number(a, v, started_ns, now_ns) for a, v in series]
            data = otel.Sum(data_points=points, aggregation_temporality=cumulative, is_monotonic=True)
        case "gauge":
            data = otel.Gauge(data_points=[_number(a, v, started_ns, now_ns) for a, v in series])
        case _:
            spread = [_distribution(a, b, started_ns, now_ns) for a, b in series]
            data = otel.Histogram(data_points=spread, aggregation_temporality=cumulative)
    if not data.data_points:
        return None
    return otel.Metric(name=metric.name, description=metric.watch, unit=metric.unit, data=data)


def _number(attributes: dict[str, str], value: float, started_ns: int, now_ns: int) -> otel.NumberDataPoint:
    value = int(value) if isinstance(value, bool) else value  # OTLP's encoder takes no truth for a number
    return otel.NumberDataPoint(
        attributes=attributes, start_time_unix_nano=started_ns, time_unix_nano=now_ns, value=value
    )


def _distribution(attributes: dict[str, str], b: Buckets, started_ns: int, now_ns: int) -> otel.HistogramDataPoint:
    return otel.HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=started_ns,
        time_unix_nano=now_ns,
        count=sum(b.counts),
        sum=b.total,
        bucket_counts=list(b.counts),
        explicit_bounds=b.bounds,
        min=b.low,
        max=b.high,
    )
