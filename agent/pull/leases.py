"""Who has what, and until when. Pure: time and tokens are handed in.

A token is unguessable and names one lease of one subscription: it is looked up among that subscription's only. A lease
whose deadline has passed is gone, whether or not anybody has cleared it away yet.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Generic, TypeVar

Held = TypeVar("Held")
_SPARE = 64  # outdated deadlines that are kept before they are swept


@dataclass(slots=True)
class Lease(Generic[Held]):
    """One event in somebody's hands."""

    token: str
    held: Held
    lease_s: float
    deadline_s: float


class Leases(Generic[Held]):
    """The open leases of one subscription.

    Args:
        limit: Open at once, at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[str, Lease[Held]] = {}
        self._deadlines: list[tuple[float, str]] = []  # a heap; an extended or ended lease leaves an outdated entry

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, token: str) -> bool:
        return token in self._open

    @property
    def room(self) -> int:
        """How many more there may be."""
        return max(0, self._limit - len(self._open))

    def grant(self, held: Held, token: str, *, lease_s: float, now_s: float) -> Lease[Held]:
        """Lease *held* for *lease_s* seconds from *now_s* under *token*, which is new. There has to be room."""
        lease = self._open[token] = Lease(token, held, lease_s, now_s + lease_s)
        self._note(lease)
        return lease

    def end(self, token: str, *, now_s: float) -> Held | None:
        """End the lease and return what it was for; None where it is gone."""
        lease = self._open.get(token)
        if lease is None or lease.deadline_s <= now_s:
            return None
        del self._open[token]
        return lease.held

    def extend(self, token: str, *, lease_s: float | None, now_s: float) -> float | None:
        """Let it run for *lease_s* seconds from now, else as long as it was given last; how long that is.

        None where it is gone.
        """
        lease = self._open.get(token)
        if lease is None or lease.deadline_s <= now_s:
            return None
        lease.lease_s = lease.lease_s if lease_s is None else lease_s
        lease.deadline_s = now_s + lease.lease_s
        self._note(lease)
        return lease.lease_s

    def expired(self, *, now_s: float) -> list[Held]:
        """Clear away those whose deadline has passed; what they were for."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            deadline_s, token = heapq.heappop(self._deadlines)
            lease = self._open.get(token)
            if lease is not None and lease.deadline_s == deadline_s:
                del self._open[token]
                found.append(lease.held)
        return found

    def next_s(self) -> float | None:
        """When to look again: no lease ends before; None where none is open."""
        return self._deadlines[0][0] if self._deadlines else None

    def clear(self) -> list[Held]:
        """End all of them; what they were for."""
        found = [lease.held for lease in self._open.values()]
        self._open.clear()
        self._deadlines.clear()
        return found

    def _note(self, lease: Lease[Held]) -> None:
        heapq.heappush(self._deadlines, (lease.deadline_s, lease.token))
        if len(self._deadlines) > 2 * len(self._open) + _SPARE:
            self._deadlines = [(one.deadline_s, one.token) for one in self._open.values()]
            heapq.heapify(self._deadlines)
