"""How long a trust statement is relied on while no newer one comes: what `spec.trust` of a Tenant says.

Statements are issued every 10 s. One that is older than `FRESH_S` is stale: newer ones are being withheld, or the
control plane is away, and a key that was revoked since would still be believed.

    grace    events go on, marked, until the statement is `grace_s` old; then delivery pauses
    strict   delivery pauses at once

Before the first statement nothing is known of anybody, so delivery waits for one, in either mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

FRESH_S = 60.0  # five statements may get lost
GRACE_S = 3600.0  # time to mend a control plane by day or by night; 24 h, a certificate's life, is the most allowed


class Ruling(Enum):
    """What becomes of events that are otherwise in order."""

    DELIVER = "deliver"
    MARK = "mark"  # delivered, and marked: who sealed it may have been revoked since
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Staleness:
    """What one tenant wants.

    Attributes:
        strict: Whether delivery pauses as soon as trust is stale.
        grace_s: Else: how old a statement may be, in seconds.
    """

    strict: bool = False
    grace_s: float = GRACE_S

    @property
    def limit_s(self) -> float:
        """How old a statement may be before delivery pauses, in seconds."""
        return FRESH_S if self.strict else max(FRESH_S, self.grace_s)

    def ruling(self, issued_ms: int | None, now_ms: int) -> Ruling:
        """What becomes of events while the newest statement is one issued at *issued_ms*; None is before the first.

        Args:
            issued_ms: By the control plane's clock, Unix milliseconds.
            now_ms: By ours.
        """
        if issued_ms is None or now_ms - issued_ms > self.limit_s * 1000:
            return Ruling.PAUSE
        return Ruling.DELIVER if now_ms <= fresh_until_ms(issued_ms) else Ruling.MARK


def fresh_until_ms(issued_ms: int) -> int:
    """Until when a statement is fresh, Unix milliseconds."""
    return issued_ms + int(FRESH_S * 1000)
