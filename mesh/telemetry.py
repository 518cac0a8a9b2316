"""Every metric: its name, its unit, and what to do when it moves.

    REJECTED = counter("mesh.inbound.rejected", unit="{event}", watch="rising with unknown-key: an old bundle runs")
    REJECTED.add(1, code=error.code)

The data model, the names and the exporters are OpenTelemetry's; the counting is ours, because an SDK instrument takes
8 to 12 us a call (measured, 1.45) and some of these are hit for every event. A metric here is numbers in a dict; a
scrape turns all of them into one OpenTelemetry `MetricsData`, which the Prometheus exporter renders and an OTLP
exporter can send as it is. Nothing of OpenTelemetry is imported before the first scrape.

Attributes are few and closed sets (codes, names of views, teams, subscriptions): each combination is a series.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.resources import Resource

LATENCY_BOUNDS_S = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
MAX_SERIES = 2000  # attribute combinations a metric keeps, the OTel SDK's own limit; beyond it they count as overflow

_OVERFLOW = (("otel.metric.overflow", "true"),)  # OTel metrics SDK specification, "Overflow attribute"

_Key = tuple[tuple[str, str], ...]
_M = TypeVar("_M", bound="Metric")


class Metric:
    """What every kind has: `name` (dotted, `mesh.*`), `unit` (UCUM, as OpenTelemetry writes it) and `watch`."""

    kind = ""

    def __init__(self, name: str, unit: str, watch: str) -> None:
        self.name = name
        self.unit = unit
        self.watch = watch


class Cell:
    """One series of a counter or gauge. Hot code keeps the cell and adds to `value` itself."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class _Cells(Metric):
    def __init__(self, name: str, unit: str, watch: str) -> None:
        super().__init__(name, unit, watch)
        self._cells: dict[_Key, Cell] = {}

    def at(self, **attributes: str) -> Cell:
        """The series with these attributes, made when it is first asked for."""
        key = tuple(sorted(attributes.items())) if len(attributes) > 1 else tuple(attributes.items())
        cell = self._cells.get(key)
        return self._new(key) if cell is None else cell

    def value(self, **attributes: str) -> float:
        """What the series stands at; 0 where nothing was counted."""
        cell = self._cells.get(tuple(sorted(attributes.items())))
        return 0 if cell is None else cell.value

    def total(self) -> float:
        """The sum over all series."""
        return sum(cell.value for cell in list(self._cells.values()))

    def forget(self, **attributes: str) -> None:
        """There is no such series any more: what it was of is gone, or another process has it."""
        self._cells.pop(tuple(sorted(attributes.items())), None)

    def series(self) -> Iterator[tuple[dict[str, str], float]]:
        """Attributes and value of each series."""
        for key, cell in list(self._cells.items()):
            yield dict(key), cell.value

    def _new(self, key: _Key) -> Cell:
        if len(self._cells) >= MAX_SERIES:
            key = _OVERFLOW
        return self._cells.setdefault(key, Cell())


class Counter(_Cells):
    """Only rises."""

    kind = "counter"

    def add(self, n: float = 1, **attributes: str) -> None:
        """Count *n* more."""
        self.at(**attributes).value += n


class Gauge(_Cells):
    """A level: set, or read from a function at each scrape."""

    kind = "gauge"

    def __init__(self, name: str, unit: str, watch: str) -> None:
        super().__init__(name, unit, watch)
        self._readers: dict[_Key, Callable[[], float]] = {}

    def set(self, value: float, **attributes: str) -> None:
        """The level is now *value*."""
        self.at(**attributes).value = value

    def read(self, reader: Callable[[], float], **attributes: str) -> Callable[[], None]:
        """Ask *reader* at every scrape. The result ends that; until then *reader* and all it holds stay alive."""
        key = tuple(sorted(attributes.items()))
        self._readers[key] = reader

        def forget() -> None:
            if self._readers.get(key) is reader:
                del self._readers[key]
                self._cells.pop(key, None)

        return forget

    def series(self) -> Iterator[tuple[dict[str, str], float]]:
        """Attributes and level of each series, the readers asked just now."""
        for key, reader in list(self._readers.items()):
            self.at(**dict(key)).value = reader()
        return super().series()


class Buckets:
    """One series of a histogram: how many values at or below each bound, their sum and extremes."""

    __slots__ = ("bounds", "counts", "high", "low", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.low = float("inf")
        self.high = float("-inf")

    def record(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1  # OTel data model: upper bounds are inclusive
        self.total += value
        self.low = min(self.low, value)
        self.high = max(self.high, value)


class Histogram(Metric):
    """A distribution over fixed bounds."""

    kind = "histogram"

    def __init__(self, name: str, unit: str, watch: str, bounds: tuple[float, ...]) -> None:
        super().__init__(name, unit, watch)
        self.bounds = bounds
        self._series: dict[_Key, Buckets] = {}

    def at(self, **attributes: str) -> Buckets:
        """The series with these attributes. Hot code keeps it."""
        key = tuple(sorted(attributes.items()))
        found = self._series.get(key)
        if found is None:
            key = key if len(self._series) < MAX_SERIES else _OVERFLOW
            found = self._series.setdefault(key, Buckets(self.bounds))
        return found

    def record(self, value: float, **attributes: str) -> None:
        """Count one value, in the metric's unit."""
        self.at(**attributes).record(value)

    def series(self) -> Iterator[tuple[dict[str, str], Buckets]]:
        """Attributes and buckets of each series."""
        for key, buckets in list(self._series.items()):
            yield dict(key), buckets


class Shown:
    """Series that are read from elsewhere, round by round: one that a round does not show is forgotten."""

    def __init__(self) -> None:
        self._before: set[tuple[Counter | Gauge, _Key]] = set()
        self._now: set[tuple[Counter | Gauge, _Key]] = set()

    def show(self, metric: Counter | Gauge, value: float, **attributes: str) -> None:
        """The series stands at *value*; a counter's rises by itself, elsewhere."""
        metric.at(**attributes).value = value
        self._now.add((metric, tuple(sorted(attributes.items()))))

    def sweep(self) -> None:
        """The round is over; two without anything shown forget all."""
        for metric, key in self._before - self._now:
            metric.forget(**dict(key))
        self._before, self._now = self._now, set()


class Derived(Metric):
    """Another view of metrics that are counted anyway, worked out at each scrape: hot code counts once.

    `kind` is `counter` or `histogram`; `source` gives attributes and value, or `Buckets`, of each series.
    """

    def __init__(
        self, name: str, unit: str, watch: str, kind: str, source: Callable[[], Iterable[tuple[dict[str, str], Any]]]
    ) -> None:
        super().__init__(name, unit, watch)
        self.kind = kind
        self.series = source


class Registry:
    """The metrics of one process. Modules define theirs in `DEFAULT` through the functions below."""

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}
        self._started_ns = time.time_ns()
        self._prometheus: Callable[[], bytes] | None = None

    def counter(self, name: str, unit: str, watch: str) -> Counter:
        """See the module's `counter`."""
        return self._define(Counter(name, unit, watch))

    def gauge(self, name: str, unit: str, watch: str) -> Gauge:
        """See the module's `gauge`."""
        return self._define(Gauge(name, unit, watch))

    def histogram(self, name: str, unit: str, watch: str, *, bounds: tuple[float, ...] = LATENCY_BOUNDS_S) -> Histogram:
        """See the module's `histogram`."""
        return self._define(Histogram(name, unit, watch, bounds))

    def derived(
        self, name: str, unit: str, watch: str, kind: str, source: Callable[[], Iterable[tuple[dict[str, str], Any]]]
    ) -> Derived:
        """A metric that is worked out of others: see `Derived`."""
        return self._define(Derived(name, unit, watch, kind, source))

    def _define(self, new: _M) -> _M:
        """A name defined twice is one metric; twice as different things is a mistake in our code."""
        old = self.metrics.setdefault(new.name, new)
        if type(old) is not type(new) or old.unit != new.unit:
            raise ValueError(f"{new.name} is a {old.kind} in {old.unit}, not a {new.kind} in {new.unit}")
        return old

    def snapshot(self, resource: Resource | None = None) -> MetricsData:
        """Every series as OpenTelemetry data: what `OTLPMetricExporter.export` takes.

        Args:
            resource: Of which process; a scrape knows that itself.
        """
        from mesh.telemetry_export import metrics_data

        metrics = tuple(self.metrics.values())
        return metrics_data(metrics, started_ns=self._started_ns, now_ns=time.time_ns(), resource=resource)

    def render_prometheus(self) -> bytes:
        """The text a Prometheus server scrapes (`text/plain; version=0.0.4`)."""
        if self._prometheus is None:
            from mesh.telemetry_export import prometheus_renderer

            self._prometheus = prometheus_renderer(self.snapshot)
        return self._prometheus()

    def markdown(self) -> str:
        """The table for the reference page: only metrics whose modules were imported."""
        rows = ["| metric | kind | unit | what to do when it moves |", "|---|---|---|---|"]
        for name in sorted(self.metrics):
            m = self.metrics[name]
            rows.append(f"| `{name}` | {m.kind} | `{m.unit}` | {m.watch} |")
        return "\n".join(rows)


DEFAULT = Registry()
PROMETHEUS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def counter(name: str, unit: str, watch: str) -> Counter:
    """Define a metric that only rises; again gives the same one. `watch` says what to do when it moves."""
    return DEFAULT.counter(name, unit, watch)


def gauge(name: str, unit: str, watch: str) -> Gauge:
    """Define a level; again gives the same one."""
    return DEFAULT.gauge(name, unit, watch)


def histogram(name: str, unit: str, watch: str, *, bounds: tuple[float, ...] = LATENCY_BOUNDS_S) -> Histogram:
    """Define a distribution (bounds in the metric's unit, ascending); again gives the same one."""
    return DEFAULT.histogram(name, unit, watch, bounds=bounds)


def render_prometheus() -> bytes:
    """Every metric of this process as Prometheus text."""
    return DEFAULT.render_prometheus()


def markdown() -> str:
    """The table of this process's metrics."""
    return DEFAULT.markdown()
