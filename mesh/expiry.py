"""When an event ends: `expirytime`, an RFC 3339 time after which nobody is to be handed it. Pure.

Source: CloudEvents 1.0.2, expirytime extension.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from mesh.errors import EventExpired

if TYPE_CHECKING:
    from collections.abc import Mapping

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def expired(fields: Mapping[str, Any], now_ms: int) -> bool:
    """Whether the event's `expirytime` is past at *now_ms*, Unix milliseconds. What is no time never ends."""
    until = fields.get("expirytime")
    return until is not None and _moment_ms(until) <= now_ms


def _moment_ms(text: object) -> float:
    """Unix milliseconds of an RFC 3339 time, infinite for what is none. A leap second is the one after :59."""
    if not isinstance(text, str):
        return math.inf
    leap_ms = 1000 if text[17:19] == "60" else 0
    try:
        moment = datetime.fromisoformat(f"{text[:17]}59{text[19:]}".upper() if leap_ms else text.upper())
        return (moment - _EPOCH) / timedelta(milliseconds=1) + leap_ms
    except (ValueError, TypeError, OverflowError):  # TypeError: it has no zone
        return math.inf


def refuse_expired(fields: Mapping[str, Any], now_ms: int) -> None:
    """Refuse an event that is past its `expirytime` at *now_ms*, Unix milliseconds.

    Raises:
        EventExpired: It is.
    """
    if expired(fields, now_ms):
        raise EventExpired(
            "the event expired before it came here",
            expected="an expirytime that is still to come",
            got="one that is past, by the agent's clock",
            next="send it earlier, or with a later expirytime or none; and compare the clocks",
        )
