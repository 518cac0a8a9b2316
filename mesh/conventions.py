"""What OpenTelemetry's messaging conventions say of events: the attributes and the name of a span. Pure.

No value of an event's data is among them. `messaging.destination.template` is the event's type: policies list types,
and after `MAX_NAMES` different ones the rest are `OTHER`. `messaging.destination.name` is the stream, as the
conventions for NATS allow: an event has one subject a view, and a stream's name tells nobody what its type does not.

Source: semantic conventions 1.44.0, messaging spans and NATS (development); the names of `messaging.nats.*` are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mesh.inbound import Admitted

MAX_NAMES: Final = 512  # event types in span names; a mesh has tens
OTHER: Final = "_OTHER"  # the conventions' word for what would be too many


class Conventions:
    """Names and attributes for the spans of one process.

    Args:
        common: Attributes of every span.
    """

    def __init__(self, common: Mapping[str, str | int] | None = None) -> None:
        self._common = {"messaging.system": "nats", **(common or {})}
        self._names: set[str] = set()

    def named(self, verb: str, events: Sequence[Mapping[str, Any]], attributes: dict[str, Any]) -> str:
        """The span's name: the verb, and the type where all are of one; then the attributes have it too."""
        names = {self._name(event["type"]) for event in events}
        if len(names) != 1:
            return verb
        attributes["messaging.destination.template"] = name = names.pop()
        return f"{verb} {name}"

    def of(
        self, events: Sequence[Mapping[str, Any]], operation: str, kind: str, *, batch: bool = False
    ) -> dict[str, Any]:
        """What there is to say of one message, or of so many.

        Args:
            events: The attributes of each.
            operation: The operation as NATS, or the mesh, calls it.
            kind: As the conventions do: send, receive, process, settle.
            batch: Whether it is one for many, of which this once there may be one.
        """
        found: dict[str, Any] = {
            **self._common,
            "messaging.operation.name": operation,
            "messaging.operation.type": kind,
        }
        if batch or len(events) != 1:
            return found | {"messaging.batch.message_count": len(events)}
        event = events[0]
        found |= {f"cloudevents.event_{key}": event[key] for key in ("id", "source", "type")}
        found["cloudevents.event_spec_version"] = event.get("specversion", "1.0")
        found["messaging.message.id"] = event["id"]
        if correlation := event.get("correlationid"):
            found["messaging.message.conversation_id"] = correlation
        return found

    def consumed(
        self,
        events: Sequence[Admitted],
        team: str,
        durable: str,
        *,
        operation: str,
        kind: str,
        batch: bool = False,
    ) -> dict[str, Any]:
        """The same of what a durable of *team* delivered."""
        found = self.of([event.fields for event in events], operation, kind, batch=batch)
        found |= {"messaging.consumer.group.name": team, "messaging.destination.subscription.name": durable}
        streams = {event.stream for event in events}
        if len(streams) == 1:
            found["messaging.destination.name"] = found["messaging.nats.stream"] = streams.pop()
        if len(events) == 1 and not batch:
            found["messaging.nats.sequence"] = events[0].sequence
            found["messaging.nats.delivery_count"] = events[0].attempt
        return found

    def _name(self, type_: str) -> str:
        if type_ in self._names or len(self._names) < MAX_NAMES:
            self._names.add(type_)
            return type_
        return OTHER
