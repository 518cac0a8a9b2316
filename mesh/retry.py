"""How often and when an event is delivered again: a subscription's retry policy, its limits and its backoff."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.errors import ConfigError

MAX_DELAY_S = 86_400.0  # a day; to wait longer is a schedule, not a retry
JITTER = 0.2  # +-20 %: events that failed together do not come back together


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """A subscription's `retry`.

    Attributes:
        attempts: Deliveries in all, the first included.
        backoff_s: Seconds before the second, third, ... delivery; the last value repeats.
        ack_wait_s: Seconds that a handler may be silent before the server delivers again.
    """

    attempts: int = 8  # with the backoff below: half an hour of trying
    backoff_s: tuple[float, ...] = (1.0, 5.0, 30.0, 300.0)
    ack_wait_s: float = 30.0

    def __post_init__(self) -> None:
        fine = self.attempts >= 1 and bool(self.backoff_s) and 0 < self.ack_wait_s <= MAX_DELAY_S
        if not fine or not all(0 <= delay <= MAX_DELAY_S for delay in self.backoff_s):
            raise ConfigError(
                "a retry policy is outside its limits",
                expected=f"attempts >= 1, a backoff, ack_wait > 0 s, and no delay over {MAX_DELAY_S:g} s",
                got=f"attempts {self.attempts}, backoff {self.backoff_s}, ack_wait {self.ack_wait_s}",
            )

    def delay_s(self, attempt: int, jitter: float) -> float:
        """Seconds to wait after *attempt* (1 is the first), spread by *jitter* (0 to 1) over +-20 %."""
        base = self.backoff_s[min(max(attempt, 1), len(self.backoff_s)) - 1]
        return base * (1 + JITTER * (2 * jitter - 1))
