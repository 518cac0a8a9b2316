"""`Retry-After`: how long a service wants to be left alone, as seconds or as a date. Pure: the time is handed in.

Source: RFC 9110, 10.2.3; its dates are in UTC, also in the form that names no zone (5.6.7).
"""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

_seconds = re.compile(r"[0-9]{1,10}").fullmatch


def parse(text: str | None, unix_s: float) -> float | None:
    """The seconds that *text* asks for, 0.0 where its date is past; None where it says nothing that can be read.

    Args:
        text: The header field, where there is one. Anybody may have written it.
        unix_s: Now, to compare a date with.
    """
    text = (text or "").strip()
    if _seconds(text):
        return float(text)
    if not text.isascii():
        return None  # there are other digits than ours, and `int` takes them
    try:
        at = parsedate_to_datetime(text)
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return max(0.0, at.timestamp() - unix_s)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
