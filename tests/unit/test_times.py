"""Times on the command line: what is read, and how it is shown."""

from __future__ import annotations

import time

import pytest

from mesh.cli.times import length, moment_ms, shown
from mesh.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("2026-11-22T08:00:00Z", 1_795_334_400_000),
        ("2026-11-22T09:00:00+01:00", 1_795_334_400_000),
        ("2026-11-22T08:00:00", 1_795_334_400_000),  # UTC where it names no zone
        ("2026-11-22T08:00:00.250Z", 1_795_334_400_250),
    ],
)
def test_a_time_is_read(text: str, at_ms: int) -> None:
    """RFC 3339, to the millisecond."""
    assert moment_ms(text) == at_ms


@pytest.mark.parametrize(("text", "ago_s"), [("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800)])
def test_a_length_is_so_long_ago(text: str, ago_s: int) -> None:
    """Counted back from when the command is read."""
    before = time.time()
    assert before - 1 <= moment_ms(text) / 1000 + ago_s <= time.time() + 1


@pytest.mark.parametrize("text", ["", "yesterday", "5 minutes", "-3h", "2026-13-01", "1e9d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """A cut that nobody meant would refuse what is good, or let pass what is not."""
    with pytest.raises(ConfigError, match="no time"):
        moment_ms(text)


def test_times_are_shown_in_utc() -> None:
    """Whatever the zone of the machine."""
    assert shown(1_795_334_400_250) == "2026-11-22T08:00:00Z"
    assert shown(1_795_334_400_250, timespec="milliseconds") == "2026-11-22T08:00:00.250Z"


@pytest.mark.parametrize("at_ms", [10**16, -(10**16), 2**63 - 1])
def test_a_moment_that_no_calendar_has_is_no_error(at_ms: int) -> None:
    """A letter says what its writer says."""
    assert shown(at_ms) == "?"


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 s"), (-119_000, "119 s"), (180_000, "3 min"), (7_200_000, "2 h"), (172_800_000, "2 d"), (10**10, "116 d")],
)
def test_lengths_are_shown_roughly(ms: int, text: str) -> None:
    """In the unit that says most."""
    assert length(ms) == text
