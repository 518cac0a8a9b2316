"""Our metrics under the names of OpenTelemetry's messaging conventions, for dashboards that know those.

Nothing is counted twice: each is worked out at a scrape of what is counted anyway, so an event costs no more. A message
is what NATS stores: a copy of an event in one view. Their histograms have the bounds that the conventions advise, which
are among ours.

Source: semantic conventions 1.44.0, messaging metrics (development).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mesh.telemetry import DEFAULT, Buckets, Counter, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
OTHER: Final = "_OTHER"

_SYSTEM: Final = {"messaging.system": "nats"}
_PUBLISH: Final = _SYSTEM | {"messaging.operation.name": "publish"}
_FETCH: Final = _SYSTEM | {"messaging.operation.name": "fetch"}
_PROCESS: Final = _SYSTEM | {"messaging.operation.name": "process"}
_DOORS: Final = ("intake", "webhooks")
_OK: Final = "2xx"


def _total(name: str) -> float:
    metric = DEFAULT.metrics.get(name)
    return metric.total() if isinstance(metric, Counter) else 0


def _spread(name: str) -> Iterator[tuple[dict[str, str], Buckets]]:
    metric = DEFAULT.metrics.get(name)
    if isinstance(metric, Histogram):
        yield from metric.series()


def coarser(found: Buckets, into: Buckets) -> None:
    """Add *found* to *into*, whose bounds are among those of *found*."""
    at = 0
    for bound, count in zip((*found.bounds, float("inf")), found.counts, strict=True):
        while at < len(into.bounds) and bound > into.bounds[at]:
            at += 1
        into.counts[at] += count
    into.total += found.total
    into.low, into.high = min(into.low, found.low), max(into.high, found.high)


def _sent() -> Iterator[tuple[dict[str, str], float]]:
    yield _PUBLISH, _total("mesh.agent.published")
    if lost := _total("mesh.agent.undurable"):
        yield _PUBLISH | {"error.type": OTHER}, lost


def _consumed() -> Iterator[tuple[dict[str, str], float]]:
    yield _FETCH, _total("mesh.pull.delivered")


def _operation() -> Iterator[tuple[dict[str, str], Buckets]]:
    made: dict[str, Buckets] = {}
    for attributes, buckets in _spread("mesh.agent.request.duration"):
        if attributes.get("door") in _DOORS:
            coarser(buckets, made.setdefault(attributes.get("status", ""), Buckets(BOUNDS_S)))
    for status, buckets in made.items():
        kind = {"messaging.operation.type": "send"}
        yield _PUBLISH | kind | ({} if status == _OK else {"error.type": status}), buckets


def _process() -> Iterator[tuple[dict[str, str], Buckets]]:
    for attributes, buckets in _spread("mesh.agent.push.duration"):
        made = Buckets(BOUNDS_S)
        coarser(buckets, made)
        yield _PROCESS | {"messaging.destination.subscription.name": attributes.get("subscription", "")}, made


DEFAULT.derived(
    "messaging.client.sent.messages", "{message}", "the conventions' name for mesh.agent.published", "counter", _sent
)
DEFAULT.derived(
    "messaging.client.consumed.messages", "{message}", "the same for mesh.pull.delivered", "counter", _consumed
)
DEFAULT.derived(
    "messaging.client.operation.duration", "s", "the same for mesh.agent.request.duration", "histogram", _operation
)
DEFAULT.derived(
    "messaging.process.duration", "s", "the same for mesh.agent.push.duration: what is pushed", "histogram", _process
)
