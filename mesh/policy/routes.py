"""Routes: copies and moves of events to other types, by type, source and condition.

    copy    the event stays, and a new event of the type `to` is made of it
    move    the same, and the original is kept back; a condition that fails counts as true, as in a deny: nobody who
            reads the original's type is shown an event that may be one to take away

The new event has an id of its own, made of the original's source and id and the route's id: the same event again gives
the same copy again. It names the original as its cause, and is not routed again.

Source: design section 4, Routes.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

from mesh.policy.expressions import Condition, compile_condition
from mesh.policy.model import RouteLine
from mesh.policy.sources import sources_meet
from mesh.subjects import Glob, Pattern

ROOTS_ROUTE: Final = frozenset({"event", "data", "principal"})
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class RouteRule:
    """One route line, parsed.

    Attributes:
        patterns: The types of the events it is about.
        sources: Their sources; empty means every one.
        when: The condition, over the original event.
        to: The type of the copies, with its version.
    """

    id: str
    patterns: tuple[Pattern, ...]
    sources: tuple[Glob, ...]
    when: Condition | None
    effect: Literal["copy", "move"]
    to: str

    @classmethod
    def parse(cls, line: RouteLine) -> RouteRule:
        """Parse a checked *line*."""
        return cls(
            line.id,
            tuple(Pattern.parse(text) for text in line.match.types),
            tuple(Glob.source(text) for text in line.match.sources or ()),
            None if line.when is None else compile_condition(line.when, roots=ROOTS_ROUTE),
            line.effect,
            line.to,
        )

    def covers_type(self, type_: str) -> bool:
        """Whether the route is about events of the logical type *type_*."""
        return any(pattern.matches(type_) for pattern in self.patterns)

    def covers_source(self, source: str) -> bool:
        """Whether the route is about events from *source*."""
        return not self.sources or any(glob.matches(source) for glob in self.sources)

    def meets(self, other: RouteRule) -> Pattern | None:
        """Types that both are about, from sources that both may be about; None where there are none."""
        if self.sources and other.sources and not any(sources_meet(a, b) for a in self.sources for b in other.sources):
            return None
        both = (mine.intersection(theirs) for mine in self.patterns for theirs in other.patterns)
        return next((pattern for pattern in both if pattern is not None), None)


def routed(fields: Mapping[str, Any], route: RouteRule) -> dict[str, Any]:
    """The new event that *route* makes of the event *fields*, its data shared."""
    event_id = str(fields["id"])
    new = dict(fields)
    new["type"] = route.to
    new["id"] = routed_id(str(fields["source"]), event_id, route.id)
    new["causationid"] = event_id
    new.setdefault("correlationid", event_id)
    return new


def routed_id(source: str, event_id: str, route_id: str) -> str:
    """The id of the copy: unpadded base64url of BLAKE2b-128 over source, id and route id, joined by line feeds."""
    digest = blake2b(f"{source}\n{event_id}\n{route_id}".encode(), digest_size=_ID_BYTES).digest()
    return urlsafe_b64encode(digest)[:-2].decode()
