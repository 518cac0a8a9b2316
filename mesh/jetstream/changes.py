"""From what the server has to what a mesh needs: the changes, in order, each with a sentence for people.

Only fields that a spec states are compared and changed: what a server or an operator set beside them survives. A change
that would lose events, or a reader's place among them, is listed and held back unless it is forced.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mesh.jetstream.durables import subscription_of
from mesh.jetstream.topology import Config, ConsumerSpec, StreamSpec, Topology
from mesh.subjects import stream_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Actual:
    """What the server has: configurations by stream, and by (stream, consumer)."""

    streams: Mapping[str, Config]
    consumers: Mapping[tuple[str, str], Config]


@dataclass(frozen=True, slots=True)
class Change:
    """One step from what is to what must be.

    Attributes:
        action: What to do.
        stream: On which stream.
        consumer: Its consumer, or empty when the stream itself changes.
        text: For people: what changes, from what to what.
        config: What to send for a create or an update.
        refused: It would lose events or a reader's place, and nobody forced it: `apply` leaves it out.
    """

    action: Literal["create", "update", "delete"]
    stream: str
    consumer: str
    text: str
    config: Config = field(default_factory=dict)
    refused: bool = False


# Fields whose smaller value (-1 and 0 mean without limit) makes the server delete what is stored. With `discard: new`
# a smaller max_bytes deletes nothing, measured.
_LIMITS = ("max_age", "max_msgs_per_subject")


def plan(desired: Topology, actual: Actual, *, force: bool = False) -> list[Change]:
    """The changes, in the order to make them; empty when nothing is to do.

    Args:
        desired: What must be.
        actual: What is. Streams of other names than ours, and their consumers, are left alone.
        force: Also make the changes that lose events or a reader's place.
    """
    changes: list[Change] = []
    for stream in desired.streams:
        changes += _stream_changes(stream, actual.streams.get(stream.name), force=force)
    for consumer in desired.consumers:
        changes += _consumer_changes(consumer, actual.consumers.get((consumer.stream, consumer.name)))
    return changes + _deletions(desired, actual, force=force)


def _stream_changes(spec: StreamSpec, actual: Config | None, *, force: bool) -> list[Change]:
    stated = spec.config()
    if actual is None:
        text = f"create stream {spec.name} on {', '.join(spec.subjects)}"
        return [Change("create", spec.name, "", text, stated)]
    differing = _differing(stated, actual)
    limits = _LIMITS if stated["discard"] == "new" else (*_LIMITS, "max_bytes")
    lossy = [key for key in differing if key in limits and _stricter(stated[key], actual.get(key))]
    safe = [key for key in differing if key not in lossy]
    changes = []
    if safe:
        merged = _merged(actual, {key: stated[key] for key in safe})
        changes.append(Change("update", spec.name, "", _says(f"stream {spec.name}", safe, stated, actual), merged))
    if lossy:
        text = _says(f"stream {spec.name}", lossy, stated, actual) + ": deletes stored messages beyond the new limit"
        merged = _merged(actual, {key: stated[key] for key in differing})
        changes.append(Change("update", spec.name, "", _held(text, force), merged, refused=not force))
    return changes


def _consumer_changes(spec: ConsumerSpec, actual: Config | None) -> list[Change]:
    stated = spec.config()
    if actual is None:
        text = f"create consumer {spec.name} on {spec.stream}, {', '.join(spec.filters)}, from {spec.start}"
        config = _merged({}, {**stated, **spec.start_config()})
        return [Change("create", spec.stream, spec.name, text, config)]
    differing = _differing(stated, actual)
    if not differing:
        return []
    text = _says(f"consumer {spec.name} on {spec.stream}", differing, stated, actual)
    return [Change("update", spec.stream, spec.name, text, _merged(actual, {key: stated[key] for key in stated}))]


def _deletions(desired: Topology, actual: Actual, *, force: bool) -> list[Change]:
    wanted = {(c.stream, c.name) for c in desired.consumers}
    kin = {(c.stream, subscription_of(c.name)) for c in desired.consumers}
    streams = {s.name for s in desired.streams}
    events = stream_name(desired.site, "")
    changes = []
    for stream, name in sorted(actual.consumers):
        if (stream, name) in wanted or (not force and (stream, subscription_of(name)) in kin):
            continue  # what stands beside a subscription's durables: see `durables.py` and `succession.py`
        if stream.startswith(events) and "--" in name:
            text = f"delete consumer {name} on {stream}: its place in the stream is lost"
            changes.append(Change("delete", stream, name, _held(text, force), refused=not force))
    for stream in sorted(actual.streams):
        if stream.startswith(events) and stream not in streams:
            text = f"delete stream {stream}: all its events are lost"
            changes.append(Change("delete", stream, "", _held(text, force), refused=not force))
    return changes


def _differing(stated: Config, actual: Config) -> list[str]:
    # The server leaves out what is false, zero or empty.
    return [key for key, value in stated.items() if (value or None) != (actual.get(key) or None)]


def _merged(actual: Config, stated: Config) -> Config:
    return {key: value for key, value in {**actual, **stated}.items() if value is not None}


def _stricter(new: int, old: int | None) -> bool:
    unlimited = old is None or old <= 0
    return new > 0 and (unlimited or new < (old or 0))


def _says(what: str, keys: Sequence[str], stated: Config, actual: Config) -> str:
    return f"update {what}: " + "; ".join(f"{k} {_shown(actual.get(k))} -> {_shown(stated[k])}" for k in keys)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return "none" if value is None else str(value)


def _held(text: str, force: bool) -> str:
    return text if force else f"{text}; not done without force"
