"""One thing that a change of the policies changes, in the words that `diff` tells it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mesh.policy.wider import Kind

What: TypeAlias = Literal["read", "field", "closed", "rows", "grant", "publish", "route", "agent", "trust", "owner"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was.

    Attributes:
        what: `read`: whether a team reads types at all; `field`: how it sees a path; `closed`: how it sees what is in a
            container that is no longer looked into; `rows`: which events; `grant`: for how long, or from when on;
            `publish`: what an agent may publish; `route`: copies and moves; `agent`: which workload acts for which
            team; `trust`: how long consumers rely on an old trust statement; `owner`: who agrees to changes of a
            document.
        who: The team, the agent, the route, the tenant, or the document.
        types: Patterns, as they are shown.
        path: Of a field.
        before, after: In words.
        owners: Who must agree where it is not narrower.
        told: The types for a person: those within others are left out, those that are not meant are excepted.
    """

    kind: Kind
    what: What
    who: str
    types: tuple[str, ...]
    path: str
    before: str
    after: str
    owners: tuple[str, ...] = ()
    told: tuple[str, ...] = ()

    @property
    def reads(self) -> bool:
        """Whether it is about what a team sees."""
        return self.what in ("read", "field", "closed", "rows", "grant")

    @property
    def widens(self) -> bool:
        """Whether somebody may get more than before."""
        return self.kind != "narrowed"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A subscription, `<team>/<name>`, that is delivered otherwise; nobody sees more or less by it."""

    subscription: str
    before: str
    after: str


def listed(words: Iterable[str]) -> str:
    """*words*, each once."""
    return " | ".join(sorted(set(words)))
