"""When a service is asked next. Pure: times and chance are handed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh import retry_after as field
from mesh.rates import Bucket
from mesh.retry import JITTER, MAX_DELAY_S, RetryPolicy

if TYPE_CHECKING:
    from mesh.limits import RateLimit

BACKOFF = RetryPolicy(backoff_s=(1.0, 5.0, 30.0, 300.0))  # a service that is down is not asked more often than that


def seconds(retry_after: float | str | None, unix_s: float) -> float:
    """How long a service wants to be left alone, a number or its `Retry-After`: at most a day, 0.0 for nonsense."""
    wait_s = retry_after if isinstance(retry_after, float | int) else field.parse(retry_after, unix_s) or 0.0
    return min(wait_s, MAX_DELAY_S) if wait_s > 0 else 0.0


class Pace:
    """The next poll: at once while there is more, after the interval when there is not, later where it failed.

    Args:
        interval_s: Seconds from one poll to the next, +-20 %: adapters that started together drift apart.
        limit: How often the service is asked in the long run and at once; None: as often as there is more.
        now_s: Monotonic seconds; the first poll may be made then.
    """

    def __init__(self, interval_s: float, limit: RateLimit | None, now_s: float) -> None:
        self._interval_s = interval_s
        self._bucket = None if limit is None else Bucket(limit, now_s)
        self._next_s = now_s
        self._failures = 0

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next poll; 0.0 where it may be made now."""
        rate_s = 0.0 if self._bucket is None else self._bucket.wait_s(now_s)
        return max(0.0, self._next_s - now_s, rate_s)

    def asked(self, now_s: float) -> None:
        """The service is asked now."""
        if self._bucket is not None:
            self._bucket.take(now_s)

    def answered(self, now_s: float, *, more: bool, jitter: float) -> None:
        """It answered; *jitter* is chance, 0 to 1."""
        self._failures = 0
        self._next_s = now_s if more else now_s + self._interval_s * (1 + JITTER * (2 * jitter - 1))

    def failed(self, now_s: float, *, jitter: float, at_least_s: float = 0.0) -> float:
        """It did not, or what it said could not be published; returns the seconds until the next try."""
        self._failures += 1
        wait_s = max(at_least_s, BACKOFF.delay_s(self._failures, jitter))
        self._next_s = now_s + wait_s
        return wait_s
