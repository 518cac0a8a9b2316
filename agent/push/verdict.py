"""What the answer to a pushed event means.

    2xx                             Taken: the event is handled
    429, 503 with Retry-After       Later: the target pauses, the event stays in hand, and no attempt is counted
    no connection                   Later: as above, with pauses that grow
    408, 425, 5xx, time-outs        Failed: an attempt; again after the subscription's backoff
    3xx                             Failed: no redirect is followed; somebody configured another address than meant
    any other 4xx                   Refused: a dead letter at once, the status is its reason

`Retry-After` is seconds or a date. A date is compared with our clock, so an application whose clock is wrong is asked
too early or too late, never later than `cap_s`.

Source: RFC 9110, 10.2.3 and 15; design section 8.
"""

from __future__ import annotations

from typing import NamedTuple

from mesh import retry_after as field

_AGAIN = frozenset({408, 425})  # of the 4xx: the request came too slowly, or too early; the event is not to blame
TOO_MANY, UNAVAILABLE = 429, 503


class Taken(NamedTuple):
    """The application has handled it."""

    reason: str = "taken"


class Later(NamedTuple):
    """Not now, whatever the event: ask again after `delay_s`; None leaves that to us."""

    reason: str
    delay_s: float | None = None
    unreachable: bool = False


class Refused(NamedTuple):
    """Never: the application will not have this event."""

    reason: str


class Failed(NamedTuple):
    """It went wrong: try the event again."""

    reason: str


Verdict = Taken | Later | Refused | Failed


def judge(status: int, retry_after: str | None, *, now_s: float, cap_s: float) -> Verdict:
    """What an answer means.

    Args:
        status: Of the answer.
        retry_after: Its header field, where it has one.
        now_s: Unix seconds, for a date in it.
        cap_s: The longest wait that it may ask for.
    """
    reason = f"http-{status}"
    if 200 <= status < 300:  # noqa: PLR2004 - HTTP's own class
        return Taken(reason)
    if status in (TOO_MANY, UNAVAILABLE):
        delay_s = field.parse(retry_after, now_s)
        if status == TOO_MANY or delay_s is not None:
            return Later(reason, None if delay_s is None else min(delay_s, cap_s))
    if 400 <= status < 500 and status not in _AGAIN:  # noqa: PLR2004 - HTTP's own class
        return Refused(reason)
    return Failed(reason)
