"""The pullers of one subscription: one for each stream that its durables are in, as the bundle in force has them.

Policies give a subscription new domains, and so new streams, while it runs, and take others away. What is new is pulled
from at once. What is gone is not asked any more; what had come from there is handled and settled as ever.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from mesh import logs
from mesh.errors import Unavailable
from mesh.jetstream.puller import Puller
from mesh.jetstream.topology import durables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyio.abc import TaskGroup

    from mesh.jetstream.connection import Connection
    from mesh.policy.grants import SubscriptionGrant
    from mesh.signing import Received

Place = tuple[str, str]  # stream and durable

log = logs.get("feed")


def places_of(grant: SubscriptionGrant, site: str) -> tuple[Place, ...]:
    """Where a subscription pulls: its durable in the stream of each domain; nowhere while it is inactive."""
    if not grant.active:
        return ()
    domains = {pattern.domain for pattern in grant.filters if pattern.domain is not None}
    return tuple((durable.stream, durable.name) for durable in durables(site, domains, grant))


class Source(Protocol):
    """What a feed's events come from."""

    @property
    def in_flight(self) -> int:
        """Events delivered and not settled."""

    @property
    def silent_s(self) -> float:
        """The longest that the server has not answered a pull."""

    def start(self, tasks: TaskGroup) -> None:
        """Pull, as tasks of this group, from now on."""

    def follow(self, places: Iterable[Place]) -> tuple[list[str], list[str]]:
        """Pull from exactly these places; returns the streams that are new, and those that were left."""

    async def stop(self) -> None:
        """Pull nothing more; what is there can still be settled."""

    async def flush(self) -> None:
        """Wait until the server has what was settled; not for long."""


class Pullers:
    """Pulls from a set of places that may change.

    Args:
        connection: The team's.
        on_event: Gets each event and the puller it came by, in the read loop.
        on_run: See `Puller`; gets the puller, too.
        max_in_flight: Events of all places together. A place that is added later gets its share on top.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        on_event: Callable[[Received, Puller], None],
        on_run: Callable[[list[Received], Puller], None] | None = None,
        max_in_flight: int,
    ) -> None:
        self._connection = connection
        self._on_event = on_event
        self._on_run = on_run
        self._max_in_flight = max_in_flight
        self._tasks: TaskGroup | None = None
        self._stopped = False
        self._pulling: dict[Place, Puller] = {}
        self._leaving: list[Puller] = []  # not asked any more, and not settled yet

    @property
    def in_flight(self) -> int:
        """Events delivered and not settled."""
        return sum(puller.in_flight for puller in self._all())

    @property
    def silent_s(self) -> float:
        """The longest that the server has not answered a pull."""
        return max((puller.silent_s for puller in self._pulling.values()), default=0.0)

    def start(self, tasks: TaskGroup) -> None:
        """Pull, as tasks of this group, from now on."""
        self._tasks = tasks
        for place in self._pulling:
            tasks.start_soon(self._run, place, self._pulling[place])

    def follow(self, places: Iterable[Place]) -> tuple[list[str], list[str]]:
        """Pull from exactly these places; returns the streams that are new, and those that were left."""
        wanted = [] if self._stopped else list(places)
        gone = [place for place in self._pulling if place not in wanted]
        new = [place for place in wanted if place not in self._pulling]
        self._leaving = [puller for puller in self._leaving if puller.in_flight]
        for place in gone:
            puller = self._pulling.pop(place)
            self._leaving.append(puller)
            if self._tasks is not None:
                self._tasks.start_soon(puller.stop)
        for place in new:
            puller = self._pulling[place] = self._puller(place, max(1, self._max_in_flight // len(wanted)))
            if self._tasks is not None:
                self._tasks.start_soon(self._run, place, puller)
        return [stream for stream, _ in new], [stream for stream, _ in gone]

    async def stop(self) -> None:
        """Pull nothing more; what is there can still be settled."""
        self._stopped = True
        for puller in self._all():
            await puller.stop()

    async def flush(self) -> None:
        """Wait until the server has what was settled; not for long."""
        for puller in self._all():
            with suppress(Unavailable):  # no connection, or a slow one: the server delivers again after ack_wait
                await puller.flush()

    def _all(self) -> list[Puller]:
        return [*self._pulling.values(), *self._leaving]

    def _puller(self, place: Place, max_in_flight: int) -> Puller:
        on_run = self._on_run
        puller = Puller(
            self._connection,
            stream=place[0],
            durable=place[1],
            on_event=lambda received: self._on_event(received, puller),
            on_run=None if on_run is None else lambda events: on_run(events, puller),
            max_in_flight=max_in_flight,
        )
        return puller

    async def _run(self, place: Place, puller: Puller) -> None:
        if self._pulling.get(place) is puller and not self._stopped:  # else it was left before it began
            await puller.run()
