"""The small texts in policies: durations, times, rates, tags, rule ids."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

DURATION_RE = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_DURATION_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
RFC3339_RE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
RATE_RE = re.compile(r"([0-9]{1,9})/(s|min)")
TAG_RE = re.compile(r"[a-z0-9_-]{1,64}(?:\.[a-z0-9_-]{1,64}){0,7}")
RULE_RE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
SPIFFE_RE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/[A-Za-z0-9._-]+)+")
MAX_RULE_ID_CHARS = 80


def seconds(text: str) -> float:
    """The duration *text* (`500ms`, `30s`, `5m`, `1h`, `7d`) in seconds.

    Raises:
        ValueError: It is none.
    """
    match = DURATION_RE.fullmatch(text)
    if match is None:
        raise ValueError("a duration is a whole number and ms, s, m, h or d")
    return int(match[1]) * _DURATION_S[match[2]]


def per_second(text: str) -> float:
    """The rate *text* (`200/s`, `30/min`) a second.

    Raises:
        ValueError: It is none.
    """
    match = RATE_RE.fullmatch(text)
    if match is None:
        raise ValueError("a rate is a count and /s or /min")
    return int(match[1]) / (1.0 if match[2] == "s" else 60.0)


def instant_ms(text: str) -> int:
    """The RFC 3339 time *text* in Unix milliseconds.

    Raises:
        ValueError: It is none, or names no real day.
    """
    if RFC3339_RE.fullmatch(text) is None:
        raise ValueError("a time is RFC 3339, such as 2026-12-01T00:00:00Z")
    at = datetime.fromisoformat(text.upper())
    since = at.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def instant_text(at_ms: int) -> str:
    """Unix milliseconds as an RFC 3339 time in UTC; the inverse of `instant_ms`."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_tag(text: str) -> bool:
    """Whether *text* is a tag: up to 8 tokens of `[a-z0-9_-]{1,64}` joined by dots."""
    return TAG_RE.fullmatch(text) is not None


def is_rule_id(text: str) -> bool:
    """Whether *text* can be a rule's id."""
    return len(text) <= MAX_RULE_ID_CHARS and RULE_RE.fullmatch(text) is not None
