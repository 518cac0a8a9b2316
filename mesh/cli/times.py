"""Times as people type and read them: RFC 3339, or a length of time ago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from mesh.errors import ConfigError
from mesh.policy.texts import seconds


def moment_ms(text: str) -> int:
    """Unix milliseconds of *text*: an RFC 3339 time (UTC where it names no zone), or how long ago.

    Raises:
        ConfigError: It is neither.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = _ago(text)
    return round((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _ago(text: str) -> datetime:
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds(text))
    except (ValueError, OverflowError):
        raise ConfigError(
            "that is no time", expected="RFC 3339, or a length such as 90s, 15m, 24h, 7d", got=text[:40]
        ) from None


def shown(at_ms: int, *, timespec: str = "seconds") -> str:
    """Unix milliseconds as RFC 3339 in UTC; `?` for a moment that no calendar has: whoever says it may say anything."""
    try:
        moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return "?"
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")


def length(ms: int) -> str:
    """How long *ms* is, roughly: `12 s`, `3 min`, `11 h`, `40 d`."""
    s = abs(ms) / 1000
    for unit_s, name, upto_s in ((1, "s", 120), (60, "min", 7200), (3600, "h", 172_800)):
        if s < upto_s:
            return f"{s / unit_s:.0f} {name}"
    return f"{s / 86_400:.0f} d"
