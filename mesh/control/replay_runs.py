"""One replay as data: what it takes again, from where to where in each stream, and how that stands on its durables.

The metadata of the durables that a replay made is all there is of it: whoever leads next reads it there and goes on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from mesh.errors import NotFound
from mesh.jetstream.durables import REPLAY
from mesh.subjects import Pattern

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mesh.jetstream.topology import Config
    from mesh.policy.grants import SubscriptionGrant

METADATA = "mesh-replay"  # the key in a durable's metadata; its value is the run as JSON

State: TypeAlias = Literal["open", "paused", "finished", "cancelled"]


class Part(msgspec.Struct, frozen=True):
    """What a replay takes of one stream: the stored copies from `first` to `last` that match, `count` of them."""

    first: int
    last: int
    count: int


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A replay.

    Attributes:
        run: Its id: handlers see it as `event.replay`.
        team, subscription: Whose.
        parts: By stream.
        types: Patterns, as asked for; empty for all that the subscription reads.
        started_ms: Unix milliseconds.
        author, reason: As the control plane was told.
    """

    run: str
    team: str
    subscription: str
    parts: dict[str, Part]
    types: tuple[str, ...] = ()
    started_ms: int = 0
    author: str = ""
    reason: str = ""

    @property
    def durable(self) -> str:
        """The name of its durable, in each stream."""
        return f"{self.team}--{self.subscription}--{REPLAY}"

    @property
    def count(self) -> int:
        """Stored copies that it takes again."""
        return sum(part.count for part in self.parts.values())

    def metadata(self) -> Config:
        """For each of its durables."""
        return {"metadata": {METADATA: msgspec.json.encode(self).decode()}}

    def notice(self, streams: Iterable[str]) -> bytes:
        """What its subscription is told: *streams* are those in which there is something to pull."""
        to = {stream: part.last for stream, part in self.parts.items()}
        whose = {"team": self.team, "subscription": self.subscription}
        return msgspec.json.encode({"kind": REPLAY, **whose, "run": self.run, "to": to, "stream": list(streams)})

    def facts(self) -> dict[str, Any]:
        """For the audit trail: names, numbers and patterns."""
        told = {"run": self.run, "team": self.team, "subscription": self.subscription, "types": list(self.types)}
        streams = {stream: [part.first, part.last] for stream, part in self.parts.items()}
        return {**told, "streams": streams, "copies": self.count}

    def as_dict(self, state: State, left: Mapping[str, int]) -> dict[str, Any]:
        """For the door.

        Args:
            state: How it stands.
            left: By stream, how many copies are not settled, at most.
        """
        streams = {
            stream: {"first": part.first, "last": part.last, "count": part.count, "left": left.get(stream, 0)}
            for stream, part in sorted(self.parts.items())
        }
        return {
            "run": self.run,
            "team": self.team,
            "subscription": self.subscription,
            "state": state,
            "types": list(self.types),
            "durable": self.durable,
            "streams": streams,
            "count": self.count,
            "left": sum(left.values()),
            "started_ms": self.started_ms,
            "author": self.author,
            "reason": self.reason,
        }


def within(grant: SubscriptionGrant, types: tuple[str, ...]) -> SubscriptionGrant:
    """*grant* with what *types* leave of its filters.

    Raises:
        BadPattern: One is none.
        NotFound: The subscription reads nothing of them.
    """
    if not types:
        return grant
    wanted = [Pattern.parse(text) for text in types]
    both = (f.intersection(w) for f in grant.filters for w in wanted)
    parts = tuple(part for part in both if part is not None)
    if not parts:
        raise NotFound(
            f"{grant.team}/{grant.name} reads nothing of {', '.join(types)[:200]}",
            expected=", ".join(pattern.written for pattern in grant.filters),
            next="leave `--type` out, or name types that it reads",
        )
    return replace(grant, filters=parts)


def run_of(config: Config) -> Run | None:
    """The replay that a durable belongs to, from its configuration; None where it says none that we can read."""
    said = (config.get("metadata") or {}).get(METADATA)
    if said is None:
        return None
    try:
        return msgspec.json.decode(said, type=Run)
    except msgspec.MsgspecError:
        return None
