"""What half an hour of figures says: percentiles of latencies, and whether memory and latency stayed put."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
WARM_UP = 1 / 3  # of a run: caches, the duplicate window and the heap fill, which is growth that ends
GROWTH = 0.05  # of what a process had: what a heap wanders
GROWTH_MB = 4.0  # an arena or two of the allocator, whatever the process has
DRIFT = 1.5  # times the latency of the first third: machines are shared
DRIFT_MS = 5.0  # and a scheduler's turn, which is many times a latency of a millisecond


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """`PERCENTILES` and the highest of *values*, by nearest rank; nothing of nothing."""
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in PERCENTILES.items()}
    return {**ranks, "max": ordered[-1]}


@dataclass(frozen=True, slots=True)
class Growth:
    """How a process's memory went after its warm-up: a line through its samples.

    Attributes:
        per_hour_mb: The slope of the line.
        over_run_mb: What the line rose from the end of the warm-up to the end.
        mean_mb: Of the samples.
        flat: Whether the rise is no more than a heap wanders.
    """

    per_hour_mb: float
    over_run_mb: float
    mean_mb: float
    flat: bool


def growth(samples: Sequence[tuple[float, float]]) -> Growth:
    """The line through *samples*, (seconds, MB) in order of time, without the first `WARM_UP` of them.

    Raises:
        ValueError: Too few to say anything.
    """
    late = samples[int(len(samples) * WARM_UP) :]
    if len(late) < 3:
        raise ValueError(f"{len(samples)} samples of memory are too few: run longer")
    slope = statistics.linear_regression([at for at, _ in late], [mb for _, mb in late]).slope
    mean = statistics.fmean(mb for _, mb in late)
    rise = slope * (late[-1][0] - late[0][0])
    return Growth(slope * 3600, rise, mean, flat=rise <= max(GROWTH_MB, GROWTH * mean))


def drifted(values: Sequence[float]) -> bool:
    """Whether latencies (ms, one a window, in order) ended higher than they began: the medians of the outer thirds."""
    third = max(1, len(values) // 3)
    first, last = statistics.median(values[:third]), statistics.median(values[-third:])
    return last > max(first * DRIFT, first + DRIFT_MS)
