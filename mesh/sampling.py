"""Which events have a trace that is recorded: decided once, where it begins."""

from __future__ import annotations

import random

from mesh.tracing import sampled


class Sampling:
    """Which events are recorded: as whoever began the trace says, else one in so many.

    Args:
        ratio: Of the traces that begin here, 0 to 1.
        follow: Whether the decision of whoever began a trace counts.
    """

    def __init__(self, ratio: float = 1.0, *, follow: bool = True) -> None:
        self._ratio = ratio
        self._follow = follow

    def __call__(self, parent: str | None) -> bool:
        """Whether to record an event whose trace is *parent*, a valid `traceparent`, or begins here."""
        if parent is not None and self._follow:
            return sampled(parent)
        return self._ratio >= 1.0 or random.random() < self._ratio  # noqa: S311 - no secret
