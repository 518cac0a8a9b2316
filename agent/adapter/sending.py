"""From the state to whoever publishes: an embedded agent takes batches, a door and a function one event at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from mesh.client import Mesh
from mesh.errors import MeshError
from mesh.outbox.relay import refused_for_good, through

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    Publish = Callable[[Mapping[str, Any]], Awaitable[object]]
    Send = Callable[[Sequence[Mapping[str, Any]]], Awaitable["Outcome"]]


@runtime_checkable
class Batches(Protocol):
    """Publishes events together, all or none of those that are at fault: `Agent`."""

    async def publish_many(self, events: Sequence[Mapping[str, Any]], /) -> object:
        """Returns once all are durable."""


class Outcome(NamedTuple):
    """What became of a batch.

    Attributes:
        taken: So many got their 202, the first ones.
        error: Why not all did.
        refused: Which one is at fault for that; None where none is, and the same may be sent again later.
    """

    taken: int
    error: MeshError | None = None
    refused: int | None = None


def sender(to: Batches | Mesh | Publish) -> Send:
    """What publishes through *to*: an `Agent`, a `mesh.connect(...)`, or a function that takes one event's fields."""
    if isinstance(to, Batches):
        return _together(to)
    return _singly(through(to) if isinstance(to, Mesh) else to)


def _together(agent: Batches) -> Send:
    async def send(events: Sequence[Mapping[str, Any]]) -> Outcome:
        try:
            await agent.publish_many(events)
        except MeshError as error:
            if not refused_for_good(error):
                return Outcome(0, error)
            index = 0 if len(events) == 1 else error.details.get("index")
            if not isinstance(index, int):  # it is about the batch; one event alone is taken or at fault
                return await send(events[:1])
            return Outcome(0, error, index)
        return Outcome(len(events))

    return send


def _singly(publish: Publish) -> Send:
    async def send(events: Sequence[Mapping[str, Any]]) -> Outcome:
        for index, event in enumerate(events):
            try:
                await publish(event)
            except MeshError as error:
                return Outcome(index, error, index if refused_for_good(error) else None)
        return Outcome(len(events))

    return send
