"""How much of a subscription goes through, and when it pauses by itself. Pure numbers; `protection.py` keeps them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket: `per_s` events a second in the long run, `burst` at once."""

    per_s: float
    burst: int


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a handler that keeps failing is left alone for a while.

    Attributes:
        failures: In a row, until the breaker opens. 0: it never does.
        open_s: Seconds until one event is tried again; doubled after each try that fails, up to ten times as long.
    """

    failures: int = 20
    open_s: float = 10.0


@dataclass(frozen=True, slots=True)
class PoisonPolicy:
    """How much of a subscription may become dead letters before it pauses and says so.

    Attributes:
        share: Of the last `of` settled events, 0 to 1; 1 never pauses.
        of: Events looked at; nothing pauses before so many were settled.
    """

    share: float = 0.5
    of: int = 100
