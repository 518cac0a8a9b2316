"""Stored events as the operator reads them: through a temporary consumer that vanishes, so no subscription notices.

Only the control plane's credentials can make a consumer. Whoever asks says whose view is meant: nobody looks without
one.
"""

from __future__ import annotations

import secrets
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Self

import anyio
from anyio.lowlevel import checkpoint

from mesh.errors import MeshError
from mesh.jetstream.manage import api
from mesh.jetstream.puller import Puller
from mesh.policy.grants import outermost
from mesh.subjects import Pattern, physical_pattern

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from mesh.jetstream.connection import Connection
    from mesh.policy.compile import Plans
    from mesh.signing import Received

ANY_VIEW = "*"
IDLE_NS = 300_000_000_000  # the server removes the consumer this long after the last pull: a reader died, or stalls
ACK_WAIT_NS = 30_000_000_000  # what was on its way when a connection ended comes again after this
DELETE_S = 2.0  # for the server to remove the consumer when we leave; else it does so by itself
IN_FLIGHT = 500  # events of one stream that the reader has not taken: at most 160 MB of the largest, 1 MB of usual ones
REMEMBERED = 10_000  # events taken last, by stream and sequence: an ack and a redelivery can cross; 1.5 MB


def view_filters(plans: Plans, team: str, pattern: Pattern, *, now_ms: int) -> dict[str, list[str]]:
    """What *team* may look at within *pattern*: subject filters by stream, in the view of each of its grants.

    Where its rights have changed since the oldest copies, those may be in views that it reads no more: then every view
    is read, and what the team is shown is for `mesh.inbound` to say.
    """
    changed = any(past.revision < plans.bundle.since_of(team) for past in plans.bundle.lineage)
    grants = plans.grants(now_ms=now_ms)
    found: dict[str, list[str]] = {}
    for domain in grants.domains:
        reach = pattern.intersection(Pattern.parse(f"{domain}.>"))
        if reach is None:
            continue
        by_view: dict[str, list[Pattern]] = {}
        for grant in grants.teams.get(team, ()):
            seen = grant.pattern.intersection(reach)
            if seen is not None:
                by_view.setdefault(ANY_VIEW if changed else grant.view, []).append(seen)
        filters = [physical_pattern(grants.site, v, p) for v, patterns in by_view.items() for p in outermost(patterns)]
        if filters:
            found[grants.streams[domain]] = filters
    return found


class Events:
    """What was pulled and not taken yet; an event is acked when it is taken, so `IN_FLIGHT` bounds what waits."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Received, Puller]] = deque()
        self._known: dict[tuple[str, int], None] = {}  # stream and sequence of what came last, oldest first
        self._came = anyio.Event()

    def __len__(self) -> int:
        """Events that wait to be taken."""
        return len(self._waiting)

    def __aiter__(self) -> Self:
        """Itself: it never ends."""
        return self

    async def __anext__(self) -> Received:
        """The next event."""
        return await self.receive()

    async def receive(self) -> Received:
        """Take the next event; waits until there is one."""
        await checkpoint()  # a long backlog lets others work too
        while not self._waiting:
            await self._came.wait()
        received, puller = self._waiting.popleft()
        puller.ack(received)
        if not self._waiting:
            self._came = anyio.Event()
        return received

    def add(self, received: Received, puller: Puller) -> None:
        """Let *received* wait. Where the reader takes longer than the ack wait it comes again, and is dropped."""
        place = (received.stream, received.sequence)
        if place in self._known:
            puller.ack(received)
            return
        self._known[place] = None
        if len(self._known) > REMEMBERED + len(self._waiting):
            del self._known[next(iter(self._known))]
        self._waiting.append((received, puller))
        self._came.set()


@asynccontextmanager
async def reading(
    connection: Connection,
    filters: dict[str, list[str]],
    *,
    new_only: bool,
    first: Mapping[str, int] | None = None,
    since: str = "",
) -> AsyncIterator[tuple[int, Events]]:
    """Read events that match *filters* by stream.

    Args:
        connection: With the control plane's credentials in the tenant's account.
        filters: Stream -> subject filters, none contained in another.
        new_only: Begin with what is stored from now on, else with the oldest.
        first: By stream the sequence to begin with, instead of the oldest.
        since: RFC 3339; begin with what was stored then, instead of the oldest.

    Yields:
        How many are stored now, and the events in the order of each stream; they go on with new ones for ever.
    """
    events = Events()
    stored = 0
    consumers: dict[str, str] = {}
    try:
        for stream, subjects in filters.items():
            name = f"read-{secrets.token_hex(8)}"
            start = (first or {}).get(stream, 0)
            request = _request(stream, name, subjects, new_only=new_only, first=start, since=since)
            info = await api(connection, f"CONSUMER.CREATE.{stream}.{name}", request)
            consumers[stream] = name
            stored += info["num_pending"]
        pullers = [_puller(connection, stream, name, events) for stream, name in consumers.items()]
        async with anyio.create_task_group() as group:
            for puller in pullers:
                group.start_soon(puller.run)
            try:
                yield stored, events
            finally:
                for puller in pullers:
                    await puller.stop()
                group.cancel_scope.cancel()
    finally:
        with anyio.move_on_after(DELETE_S, shield=True), suppress(MeshError):
            for stream, name in consumers.items():
                await api(connection, f"CONSUMER.DELETE.{stream}.{name}")


def _puller(connection: Connection, stream: str, name: str, events: Events) -> Puller:
    def take(received: Received) -> None:
        events.add(received, puller)

    puller = Puller(connection, stream=stream, durable=name, on_event=take, max_in_flight=IN_FLIGHT)
    return puller


def _request(
    stream: str, name: str, subjects: Sequence[str], *, new_only: bool, first: int, since: str
) -> dict[str, object]:
    config: dict[str, object] = {
        "name": name,
        "deliver_policy": "new" if new_only else "all",
        "ack_policy": "explicit",
        "ack_wait": ACK_WAIT_NS,
        "inactive_threshold": IDLE_NS,
        "mem_storage": True,
        "num_replicas": 1,
    }
    if first:
        config.update({"deliver_policy": "by_start_sequence", "opt_start_seq": first})
    elif since:
        config.update({"deliver_policy": "by_start_time", "opt_start_time": since})
    config.update({"filter_subject": subjects[0]} if len(subjects) == 1 else {"filter_subjects": list(subjects)})
    return {"stream_name": stream, "config": config, "action": "create"}
