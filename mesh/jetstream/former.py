"""What this process knows of events it has sent before: the same event submitted again goes on from there.

An event that was given up may be stored later all the same, by a server that hung, under a signature too old to be
believed; and a caller who posts it again would have that copy's `duplicate` for an ack (measured). So the age of the
first signature outlives the event that carried it, and so do the keys that sealed it, which may be revoked. An entry
has no time to live, only the number of entries is bounded: a frozen server may store what is in its socket buffer at
any time.

A copy in the agent's spool has the same knowledge beside it on disk, so a process that ends while the server is frozen
tells its successor. What stays open is a copy that was sent and never spooled, for whose event nobody got a 202: killed
within the seconds before the spool takes over, the process tells nobody, and if its caller repeats the event to the
next one, that takes the `duplicate` of a copy over 100 s old for an ack. To distrust every `duplicate` after a restart
would close that and store each repeated event of an ordinary crash twice (measured: 460 copies over 20 kills), worse.

Pure: time comes in as Unix milliseconds.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.jetstream.outgoing import Outgoing

_T = TypeVar("_T")

MAX_FORMER = 16_384  # of each kind: four views of the 4,096 events an agent holds; about 3 MB


class _GivenUp(NamedTuple):
    """The last generation of an event that was sent, and what is known of the signatures under it."""

    generation: int
    first_signed_ms: int
    kids: tuple[str, ...]


class Former:
    """Events by the message id of their generation 0: those given up, and those stored under a later generation.

    Args:
        limit: Entries of each kind; the oldest goes.
    """

    def __init__(self, *, limit: int = MAX_FORMER) -> None:
        self._limit = limit
        self._given_up: OrderedDict[str, _GivenUp] = OrderedDict()
        self._stored: OrderedDict[str, int] = OrderedDict()  # the generation whose ack counted

    def __len__(self) -> int:
        return len(self._given_up) + len(self._stored)

    def resume(self, item: Outgoing) -> None:
        """Let *item*, whose `base_id` is set, go on where the same event stood before."""
        generation = self._stored.get(item.base_id)
        if generation is not None:
            if generation != item.generation:
                item.generation, item.first_signed_ms, item.kids = generation, 0, ()
        elif item.base_id in self._given_up:
            known = self._given_up[item.base_id]
            if known.generation > item.generation or not item.first_signed_ms:
                item.generation, item.first_signed_ms, item.kids = known
            elif known.generation == item.generation:
                item.first_signed_ms = min(item.first_signed_ms, known.first_signed_ms)
                item.kids = tuple({*item.kids, *known.kids})

    def stored(self, item: Outgoing) -> None:
        """The ack of *item* counted."""
        self._given_up.pop(item.base_id, None)
        if item.generation:
            self._keep(self._stored, item.base_id, item.generation)

    def stored_all(self, items: Sequence[Outgoing]) -> None:
        """`stored` for each of *items*, most of which are the first generation of events that nothing is known of."""
        for item in items if self else [item for item in items if item.generation]:
            self.stored(item)

    def given_up(self, item: Outgoing) -> None:
        """*item* ended without an ack; what was sent of it may be stored at any time."""
        if not item.first_signed_ms or item.base_id in self._stored:
            return
        first_ms, kids = item.first_signed_ms, item.kids
        known = self._given_up.get(item.base_id)
        if known is not None and known.generation >= item.generation:
            if known.generation > item.generation:
                return
            first_ms, kids = min(known.first_signed_ms, first_ms), tuple({*known.kids, *kids})
        self._keep(self._given_up, item.base_id, _GivenUp(item.generation, first_ms, kids))

    def _keep(self, entries: OrderedDict[str, _T], key: str, value: _T) -> None:
        entries.pop(key, None)
        entries[key] = value
        if len(entries) > self._limit:
            entries.popitem(last=False)
