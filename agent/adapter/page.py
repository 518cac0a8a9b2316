"""What an adapter's developer hands the kit, and how the service's answers are named. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Page(NamedTuple):
    """One answer of the service.

    Attributes:
        items: As the service sent them, in the order in which they changed, where it tells one.
        cursor: Where to go on; any JSON value. None: at the beginning.
        more: Ask again at once, and not only after the interval. An async iterator has no need to say it.
        complete: With this page, all that exists was listed since the cursor was last None: what was not is deleted.
    """

    items: Sequence[Any]
    cursor: Any = None
    more: bool = False
    complete: bool = False


class Item(NamedTuple):
    """One thing of the service, as an event tells it.

    Attributes:
        key: Which thing: stable, unique below the adapter's source; also the event's `partitionkey`.
        data: The event's data, JSON values. An event is published when these, `subject` or `type` are others than last
            time; so leave out what changes without meaning anything, such as when the thing was last looked at.
        subject: The event's.
        time: When it changed, RFC 3339; when it was seen, where there is none.
        type: Instead of the adapter's.
        deleted: The service says so itself; a thing that was not known is no event.
    """

    key: str
    data: Any = None
    subject: str | None = None
    time: str | None = None
    type: str | None = None
    deleted: bool = False


class SlowDown(Exception):
    """Raise it in `poll` where the service says 429 or 503: it is left alone for so long, at least.

    Args:
        retry_after_s: Seconds; or the service's Retry-After as it stands in the header, None where it named none.
    """

    def __init__(self, retry_after_s: float | str | None = None) -> None:
        super().__init__(f"the service wants to be left alone, Retry-After {retry_after_s}")
        self.retry_after_s = retry_after_s


class StartOver(Exception):
    """Raise it in `poll` where the service takes the cursor no more (410 Gone): the next poll begins with None.

    What is as it was last time is no event, so nothing is published twice.
    """
