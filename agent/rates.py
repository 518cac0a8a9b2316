"""How fast events of one source may come: a token bucket for each source, and 429 with Retry-After beyond it."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from mesh.errors import RateLimited
from mesh.limits import RateLimit
from mesh.rates import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesh.event import Draft

MAX_SOURCES = 4096  # buckets kept, about 1 MB; beyond that the source that was silent longest begins with a full one


class SourceRates:
    """Lets each source through at its rate.

    Args:
        per_s: Events a second of one source in the long run; 0 lets everything through.
        burst: Events of one source at once.
        clock_s: Seconds that never go back.
    """

    def __init__(self, per_s: float, burst: int, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._limit = RateLimit(per_s, burst) if per_s else None
        self._clock_s = clock_s
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    @property
    def limited(self) -> bool:
        """Whether there is a rate at all; if so, `take` has to be told of drafts."""
        return self._limit is not None

    def take(self, drafts: Sequence[Draft | bytes]) -> None:
        """Count *drafts*, which are published together or not at all.

        A request with more events than a burst is let through where its source was silent long enough, and the source
        then pauses for the rest: the long run keeps to the rate.

        Raises:
            RateLimited: A source of theirs is over its rate; nothing was counted, and `retry_after_s` says when it is
                not any more.
        """
        if self._limit is None:
            return
        now_s = self._clock_s()
        taken: list[tuple[Bucket, int]] = []
        for source, count in _counts(drafts).items():
            bucket = self._bucket(source, self._limit, now_s)
            wait_s = bucket.take(now_s, count)
            if wait_s:
                for other, given in taken:
                    other.give_back(given)
                raise _over(self._limit, wait_s)
            taken.append((bucket, count))

    def give_back(self, drafts: Sequence[Draft | bytes]) -> None:
        """Count *drafts* no more: they were taken, and are not published after all."""
        if self._limit is None:
            return
        for source, count in _counts(drafts).items():
            if (bucket := self._buckets.get(source)) is not None:
                bucket.give_back(count)

    def _bucket(self, source: str, limit: RateLimit, now_s: float) -> Bucket:
        bucket = self._buckets.get(source)
        if bucket is not None:
            self._buckets.move_to_end(source)
            return bucket
        bucket = self._buckets[source] = Bucket(limit, now_s)
        if len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return bucket


def _counts(drafts: Sequence[Draft | bytes]) -> Counter[str]:
    """How many of each source, in the order of their first."""
    return Counter(draft.source for draft in drafts if not isinstance(draft, bytes))


def _over(limit: RateLimit, wait_s: float) -> RateLimited:
    return RateLimited(
        f"a source sends more than {limit.per_s:g} events a second, {limit.burst} at once",
        expected=f"at most {limit.per_s:g} events a second of one source in the long run",
        got="more",
        next="send the same again after Retry-After; or raise source_rate_per_s if the source may be so fast",
        retry_after_s=math.ceil(wait_s),
    )
