"""A token bucket: how often something may happen in the long run, and how often at once. Time is handed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.limits import RateLimit

EPSILON = 1e-9  # of a token: a float that waited exactly long enough must not be told to wait again


class Bucket:
    """Holds up to `limit.burst` tokens, full at first; gains `limit.per_s` a second; each thing done takes one.

    Nothing here waits or looks at a clock. The times handed in are seconds of one monotonic clock; one that is earlier
    than the one before counts as that.

    Args:
        limit: Rate and burst, both above 0.
        now_s: The time it begins at.
    """

    __slots__ = ("_at_s", "_limit", "_tokens")

    def __init__(self, limit: RateLimit, now_s: float) -> None:
        self._limit = limit
        self._tokens = float(limit.burst)
        self._at_s = now_s

    @property
    def limit(self) -> RateLimit:
        """Rate and burst in force."""
        return self._limit

    def take(self, now_s: float, tokens: int = 1) -> float:
        """Take *tokens*, if they are there.

        More than a whole burst is let through where the bucket is full, and owed: the long run keeps to the rate, and
        a batch larger than the burst is late instead of impossible.

        Returns:
            0.0 where they were taken; else the seconds until they will be there, and nothing was taken.
        """
        wait_s = self.wait_s(now_s, tokens)
        if not wait_s:
            self._tokens -= tokens
        return wait_s

    def wait_s(self, now_s: float, tokens: int = 1) -> float:
        """Seconds until `take` would succeed; 0.0 where it would now."""
        self._fill(now_s)
        lacking = min(tokens, self._limit.burst) - self._tokens
        return lacking / self._limit.per_s if lacking > EPSILON else 0.0

    def give_back(self, tokens: int = 1) -> None:
        """Put back what was taken for something that did not happen."""
        self._tokens = min(self._tokens + tokens, float(self._limit.burst))

    def change(self, limit: RateLimit, now_s: float) -> None:
        """Another rate from *now_s* on; what was saved until then stays, as far as the new burst has room."""
        self._fill(now_s)
        self._limit = limit
        self._tokens = min(self._tokens, float(limit.burst))

    def full(self, now_s: float) -> bool:
        """Whether nothing was taken for so long that a fresh bucket would be the same: it may be forgotten."""
        self._fill(now_s)
        return self._tokens >= self._limit.burst

    def _fill(self, now_s: float) -> None:
        if now_s > self._at_s:
            gained = (now_s - self._at_s) * self._limit.per_s
            self._tokens = min(self._tokens + gained, float(self._limit.burst))
            self._at_s = now_s
