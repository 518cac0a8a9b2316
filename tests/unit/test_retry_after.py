"""`Retry-After`, whoever wrote it: seconds, or none that can be read; never an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.retry_after import parse

NOW_S = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("9" * 10, 9_999_999_999.0),
        ("9" * 11, None),
        ("-7", None),
        ("+7", None),
        ("7.5", None),
        ("1e9", None),
        ("inf", None),
        ("nan", None),
        ("\u0667", None),
        ("soon", None),
        (",", None),
        ("Wed, 21 Oct 2015 07:28:10 GMT", 10.0),
        ("Wednesday, 21-Oct-15 07:28:10 GMT", 10.0),
        ("Wed Oct 21 07:28:10 2015", 10.0),
        ("Wed, 21 Oct 2015 07:28:10 -0000", 10.0),
        ("Wed, 21 Oct 2015 08:28:10 +0100", 10.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0.0),
        ("Wed, 99 Oct 2015 07:28:10 GMT", None),
        ("Mon, 01 Jan 99999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", None),
        ("Wed, 21 Oct 2015 07:28:1\u0660 GMT", None),
    ],
)
def test_seconds_or_a_date(text: str | None, wait_s: float | None) -> None:
    """As RFC 9110 has it, with its three forms of a date, all in UTC; anything else is None."""
    assert parse(text, NOW_S) == wait_s


_PARTS = st.sampled_from(
    ["Mon", ",", " ", "01", "Jan", "2024", "99999", "00:00:00", "GMT", "+", "-", "9" * 30, ":", "\0"]
)


@given(st.text(max_size=30) | st.lists(_PARTS, max_size=12).map(" ".join))
def test_nothing_makes_it_raise(text: str) -> None:
    """It is read where an error would end more than one request: any text gives seconds or None."""
    wait_s = parse(text, NOW_S)
    assert wait_s is None or 0.0 <= wait_s < float("inf")
