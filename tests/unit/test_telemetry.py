"""Numbers that an operator can trust, in the formats of OpenTelemetry and Prometheus."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from prometheus_client.parser import text_string_to_metric_families

from mesh import telemetry
from mesh.telemetry import LATENCY_BOUNDS_S, MAX_SERIES, Buckets, Registry, Shown
from mesh.telemetry_messaging import BOUNDS_S, coarser


@pytest.fixture
def registry() -> Registry:
    """Metrics of this test alone."""
    return Registry()


def _scrape(registry: Registry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a Prometheus server would read, by its own parser."""
    text = registry.render_prometheus().decode()
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_counter_reaches_the_scrape(registry: Registry) -> None:
    """A counter is one series per combination of attributes, whatever their order, and ends in `_total`."""
    rejected = registry.counter("mesh.test.rejected", unit="{event}", watch="rising: look")
    rejected.add(1, code="bad-signature", step="V9")
    rejected.add(2, step="V9", code="bad-signature")
    rejected.add(1, code="unknown-key", step="V3")
    assert _scrape(registry) == {
        ("mesh_test_rejected_total", (("code", "bad-signature"), ("step", "V9"))): 3,
        ("mesh_test_rejected_total", (("code", "unknown-key"), ("step", "V3"))): 1,
    }
    assert rejected.value(code="unknown-key", step="V3") == 1
    assert rejected.value(code="never") == 0
    assert rejected.total() == 4


def test_two_scrapes_show_the_same_numbers(registry: Registry) -> None:
    """Reading does not change what is read."""
    registry.counter("mesh.test.accepted", unit="{event}", watch="w").add(5)
    first = _scrape(registry)
    assert first == _scrape(registry)
    assert list(first.values()) == [5]


def test_gauge_is_set_or_read(registry: Registry) -> None:
    """A level is what was set last, or what its reader says at the scrape; a reader can be taken back."""
    depth = registry.gauge("mesh.test.spool", unit="By", watch="rising: NATS is away")
    depth.set(7, agent="a")
    depth.set(3, agent="a")
    level = [10.0]
    forget = depth.read(lambda: level[0], agent="b")
    level[0] = 11
    assert _scrape(registry) == {
        ("mesh_test_spool_bytes", (("agent", "a"),)): 3,
        ("mesh_test_spool_bytes", (("agent", "b"),)): 11,
    }
    forget()
    assert list(_scrape(registry)) == [("mesh_test_spool_bytes", (("agent", "a"),))]


def test_taking_back_a_replaced_reader_leaves_the_new_one(registry: Registry) -> None:
    """A restarted part registers again before the old one is gone."""
    depth = registry.gauge("mesh.test.spool", unit="By", watch="w")
    forget_old = depth.read(lambda: 1)
    depth.read(lambda: 2)
    forget_old()
    assert list(_scrape(registry).values()) == [2]


@given(st.lists(st.floats(min_value=0, max_value=100, allow_nan=False), min_size=1, max_size=50))
def test_histogram_counts_every_value_once(values: list[float]) -> None:
    """Each bucket holds the values at or below its bound, whatever is recorded."""
    registry = Registry()
    latency = registry.histogram("mesh.test.latency", unit="s", watch="w", bounds=(0.5, 1.0, 10.0))
    for value in values:
        latency.record(value, door="events")
    found = _scrape(registry)
    for bound, text in ((0.5, "0.5"), (1.0, "1.0"), (10.0, "10.0"), (float("inf"), "+Inf")):
        key = ("mesh_test_latency_seconds_bucket", (("door", "events"), ("le", text)))
        assert found[key] == sum(v <= bound for v in values)
    assert found[("mesh_test_latency_seconds_count", (("door", "events"),))] == len(values)
    assert found[("mesh_test_latency_seconds_sum", (("door", "events"),))] == pytest.approx(sum(values))


def test_defining_twice_is_safe(registry: Registry) -> None:
    """The same name, kind and unit is the same metric; anything else is refused."""
    a = registry.counter("mesh.test.x", unit="{event}", watch="w")
    assert registry.counter("mesh.test.x", unit="{event}", watch="w") is a
    with pytest.raises(ValueError, match=r"mesh\.test\.x is a counter in \{event\}, not a gauge in By"):
        registry.gauge("mesh.test.x", unit="By", watch="w")
    with pytest.raises(ValueError, match=r"not a gauge in \{event\}"):
        registry.gauge("mesh.test.x", unit="{event}", watch="w")
    with pytest.raises(ValueError, match=r"not a counter in By"):
        registry.counter("mesh.test.x", unit="By", watch="w")


def test_series_are_bounded(registry: Registry) -> None:
    """An attribute that turns out not to be a small set costs bounded memory, and nothing goes uncounted."""
    counter = registry.counter("mesh.test.x", unit="{event}", watch="w")
    histogram = registry.histogram("mesh.test.y", unit="s", watch="w")
    for i in range(MAX_SERIES + 50):
        counter.add(1, key=str(i))
        histogram.record(1, key=str(i))
    assert len(list(counter.series())) == MAX_SERIES + 1
    assert counter.total() == MAX_SERIES + 50
    assert len(list(histogram.series())) == MAX_SERIES + 1


def test_snapshot_is_what_an_otlp_exporter_takes(registry: Registry) -> None:
    """The snapshot encodes to OTLP: names, units and values as OpenTelemetry has them."""
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

    registry.counter("mesh.test.accepted", unit="{event}", watch="w").add(5, door="events")
    registry.histogram("mesh.test.latency", unit="s", watch="w").record(0.003)
    encoded = encode_metrics(registry.snapshot()).resource_metrics[0].scope_metrics[0].metrics
    by_name = {m.name: m for m in encoded}
    assert by_name["mesh.test.accepted"].sum.data_points[0].as_int == 5
    assert by_name["mesh.test.accepted"].sum.is_monotonic
    assert by_name["mesh.test.latency"].unit == "s"
    assert by_name["mesh.test.latency"].histogram.data_points[0].count == 1


def test_metric_without_a_series_is_not_exported(registry: Registry) -> None:
    """A page lists what happened, not what might."""
    registry.counter("mesh.test.x", unit="{event}", watch="w")
    assert registry.render_prometheus() == b""


def test_table_lists_every_metric(registry: Registry) -> None:
    """The reference page names each metric with its unit and what to do when it moves."""
    registry.counter("mesh.test.b", unit="{event}", watch="rising: look at B")
    registry.gauge("mesh.test.a", unit="By", watch="falling: look at A")
    assert registry.markdown().splitlines()[2:] == [
        "| `mesh.test.a` | gauge | `By` | falling: look at A |",
        "| `mesh.test.b` | counter | `{event}` | rising: look at B |",
    ]


def test_importing_is_light() -> None:
    """Defining metrics does not load OpenTelemetry, which takes longer than everything else at start."""
    code = "import sys, mesh, mesh.telemetry; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_module_functions_share_one_registry() -> None:
    """What modules define is what the agent's door shows."""
    name = "mesh.test.module_functions"
    telemetry.counter(name, unit="{event}", watch="w").add(2)
    assert telemetry.DEFAULT.metrics[name].name == name
    assert b"mesh_test_module_functions_total" in telemetry.render_prometheus()
    assert name in telemetry.markdown()


def test_every_kind_can_be_sent(registry: Registry) -> None:
    """OTLP's encoder takes counters, levels (truth among them), distributions without a value, and derived ones."""
    registry.counter("mesh.test.a", unit="{event}", watch="w").add(1)
    registry.gauge("mesh.test.b", unit="1", watch="w").read(lambda: True)
    empty = registry.histogram("mesh.test.c", unit="s", watch="w").at(door="intake")
    registry.derived("mesh.test.d", "s", "w", "histogram", lambda: [({}, empty)])
    sent = encode_metrics(registry.snapshot()).resource_metrics[0].scope_metrics[0].metrics
    assert [metric.name for metric in sent] == ["mesh.test.a", "mesh.test.b", "mesh.test.c", "mesh.test.d"]
    assert sent[1].gauge.data_points[0].as_int == 1
    assert sent[2].histogram.data_points[0].count == 0


def test_a_coarser_distribution_has_the_same_values() -> None:
    """Every value stands at or below the same bound as if it had been counted there."""
    fine, expected, coarse = Buckets(LATENCY_BOUNDS_S), Buckets(BOUNDS_S), Buckets(BOUNDS_S)
    for value in (0.0001, 0.005, 0.0051, 0.074, 0.075, 0.6, 7.5, 9.0, 10.0, 11.0):
        fine.record(value)
        expected.record(value)
    coarser(fine, coarse)
    assert coarse.counts == expected.counts
    assert (coarse.total, coarse.low, coarse.high) == (expected.total, expected.low, expected.high)


def test_series_that_are_not_shown_any_more_are_forgotten(registry: Registry) -> None:
    """A subscription that is gone has no lag; a round that shows nothing leaves nothing."""
    lag = registry.gauge("mesh.test.lag", unit="{event}", watch="w")
    shown = Shown()
    shown.show(lag, 3, subscription="a")
    shown.show(lag, 4, subscription="b")
    shown.sweep()
    shown.show(lag, 5, subscription="b")
    shown.sweep()
    assert list(lag.series()) == [({"subscription": "b"}, 5)]
    shown.sweep()
    assert list(lag.series()) == []
