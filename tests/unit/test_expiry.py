"""When an event ends."""

from __future__ import annotations

import pytest

from mesh.errors import EventExpired
from mesh.event import expired, refuse_expired

NOW_MS = 1_769_860_800_000  # 2026-01-31T12:00:00Z


@pytest.mark.parametrize(
    ("until", "past"),
    [
        ("2026-01-31T12:00:00Z", True),
        ("2026-01-31T11:59:59.999Z", True),
        ("2026-01-31T12:00:00.001Z", False),
        ("2026-01-31T12:00:00.000000001Z", True),  # less than our clock can tell
        ("2026-01-31t13:00:00+01:00", True),
        ("2026-01-31T12:00:00-00:01", False),
        ("2026-01-31T11:59:60Z", True),
        ("2026-01-31T11:59:60.5Z", False),
        ("2026-01-31t12:00:60z", False),
        ("1999-12-31T23:59:60Z", True),
        ("9999-12-31T23:59:59Z", False),
        ("0000-01-01T00:00:00Z", False),  # no time that we know
        ("soon", False),
        ("2026-01-31T12:00:00", False),
        (7, False),
        (None, False),
    ],
)
def test_an_event_ends_at_its_expirytime(until: object, past: bool) -> None:
    """From that moment on; what is no time never ends an event."""
    assert expired({"id": "1", "expirytime": until}, NOW_MS) is past


def test_an_event_without_one_never_ends() -> None:
    """Most have none."""
    assert not expired({"id": "1"}, NOW_MS)
    refuse_expired({"id": "1"}, NOW_MS)


def test_an_expired_event_is_refused_with_what_to_do() -> None:
    """422, and nothing of the event in it."""
    with pytest.raises(EventExpired) as caught:
        refuse_expired({"expirytime": "2026-01-31T11:00:00Z"}, NOW_MS)
    assert caught.value.status == 422
    assert "clocks" in caught.value.next
    assert "11:00" not in str(caught.value.as_dict())
