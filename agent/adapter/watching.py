"""What an adapter says of itself: its metrics, and log lines without values."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mesh import logs
from mesh.telemetry import counter, gauge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.adapter.line import Level, Row
    from agent.adapter.state import Taken

PROGRESS_S = 10.0  # between two lines about a listing that goes on: a first one may take hours
LEVEL_S = 10.0  # between two counts of what there is

POLLS = counter("mesh.adapter.polls", unit="{poll}", watch="outcome failed or slow rising: the log says what is wrong")
CHANGES = counter(
    "mesh.adapter.changes",
    unit="{item}",
    watch="created of everything: the state was lost; updated at each poll: `data` holds what always moves",
)
PUBLISHED = counter("mesh.adapter.published", unit="{event}", watch="flat while waiting is above 0: the agent is away")
REFUSED = counter(
    "mesh.adapter.refused",
    unit="{event}",
    watch="rising: the agent refuses events for good; `mesh-agent adapter parked STATE` says why",
)
SUPERSEDED = counter(
    "mesh.adapter.superseded",
    unit="{event}",
    watch="rising: refused events were never retried before a newer one of their item was accepted",
)
HELD = counter(
    "mesh.adapter.held",
    unit="{item}",
    watch="rising: a listing left out more than `most_deleted` allows, and nothing was deleted; ask the service why",
)
WAITING = gauge("mesh.adapter.waiting", unit="{event}", watch="above 0 for long: the agent does not take them")
PARKED = gauge("mesh.adapter.parked", unit="{event}", watch="above 0: refused events that nobody has looked at")
KNOWN = gauge("mesh.adapter.known", unit="{item}", watch="far from what the service has: a listing is incomplete")
LAG = gauge(
    "mesh.adapter.lag",
    unit="s",
    watch="far above the interval: the service was not read to its end for so long; see polls and waiting",
)

log = logs.get("adapter")


class Watching:
    """The figures of one adapter.

    Args:
        name: Its own.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._current_s = time.monotonic()
        self._said_s = self._current_s
        self._read = 0
        self._level_s = float("-inf")

    @contextmanager
    def lag(self) -> Iterator[None]:
        """Show the lag at every scrape for the length of the block."""
        self._current_s = time.monotonic()
        forget = LAG.read(lambda: time.monotonic() - self._current_s, adapter=self.name)
        try:
            yield
        finally:
            forget()

    def answered(self, current_s: float | None) -> None:
        """A poll succeeded; *current_s* is when it was made, where it read the service to its end."""
        POLLS.add(1, adapter=self.name, outcome="ok")
        if current_s is not None:
            self._current_s = current_s

    def failed(self, outcome: str) -> None:
        """A turn did not succeed."""
        POLLS.add(1, adapter=self.name, outcome=outcome)

    def kept(self, taken: Taken) -> None:
        """A page is in the file."""
        for change, count in taken.counts.items():
            CHANGES.add(count, adapter=self.name, change=change)
        if taken.held:
            HELD.add(taken.held, adapter=self.name)
            log.error("adapter_deletions_held", adapter=self.name, items=taken.held, next="see `most_deleted`")
        if taken.counts["bad"]:
            log.error("adapter_items_parked", adapter=self.name, items=taken.counts["bad"])
        self._read += taken.counts.total()
        if time.monotonic() - self._said_s >= PROGRESS_S:
            self._said_s = time.monotonic()
            log.info("adapter_progress", adapter=self.name, items=self._read)

    def published(self, count: int, superseded: int) -> None:
        """Events got their 202; parked ones came to nothing by that."""
        PUBLISHED.add(count, adapter=self.name)
        if superseded:
            SUPERSEDED.add(superseded, adapter=self.name)
            log.warning("adapter_events_superseded", adapter=self.name, events=superseded)

    def refused(self, row: Row, code: str) -> None:
        """An event was refused for good, and parked."""
        REFUSED.add(1, adapter=self.name, code=code)
        log.error("adapter_event_refused", adapter=self.name, seq=row.seq, id=row.fields["id"], code=code)

    def due(self) -> bool:
        """Whether it is time to count again: all items at each page would be a listing's time squared."""
        now_s = time.monotonic()
        due = now_s >= self._level_s
        if due:
            self._level_s = now_s + LEVEL_S
        return due

    def levels(self, level: Level, known: int) -> None:
        """How things stand."""
        WAITING.set(level.waiting, adapter=self.name)
        PARKED.set(level.parked, adapter=self.name)
        KNOWN.set(known, adapter=self.name)
