"""The demo's account: what was due to whom by inputs and policies, what arrived by the receipts, and what is missing.

The consumers write a receipt when a handler gets an event and another when it has succeeded; nothing here asks the mesh
how it thinks it did.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mesh.policy.compile import Plans

Key = tuple[str, str]  # (source, id)
_MISSING = object()


class Input(msgspec.Struct, frozen=True):
    """One event as it was sent and answered 202: whose door took it, when, and what the mesh should have understood."""

    agent: str
    fields: dict[str, Any]
    sent_ms: int
    duplicate: bool = False

    @property
    def key(self) -> Key:
        """What makes it one event, however often it is sent."""
        return self.fields["source"], self.fields["id"]


class Receipt(msgspec.Struct, frozen=True):
    """One line of a team's receipt file."""

    kind: Literal["delivered", "done", "dead"]
    team: str
    subscription: str
    source: str
    id: str
    view: str
    stream: str
    sequence: int
    attempt: int
    at_ms: int
    fields: dict[str, Any] = {}

    @property
    def key(self) -> Key:
        """The event's."""
        return self.source, self.id


@dataclass(frozen=True, slots=True)
class Account:
    """Figures of one run; the meanings of the keys are in `mesh demo --help`."""

    accepted: int
    stored: int
    delivered: dict[str, int]
    verified: int
    masked_fields: int
    redelivered: int
    dead_lettered: int
    duplicates: int
    lost: int
    latency_ms: dict[str, float]
    seconds: float
    missing: tuple[tuple[str, Key], ...] = field(default=(), compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        figures = {name: getattr(self, name) for name in self.__slots__ if name != "missing"}
        return {
            **figures,
            "latency_ms": {k: round(v, 2) for k, v in self.latency_ms.items()},
            "seconds": round(self.seconds, 1),
        }


def due(inputs: Iterable[Input], plans: Plans, *, now_ms: int) -> set[tuple[str, Key]]:
    """Every (team, event) that inputs and policies call for: a copy is made in a view that a subscription reads."""
    return {(team, sent.key) for sent in inputs for team, _ in readers(sent, plans, now_ms=now_ms)}


def readers(sent: Input, plans: Plans, *, now_ms: int) -> set[tuple[str, str]]:
    """Every (team, view) in which one event is due."""
    decision = plans.publisher(sent.agent).decide(sent.fields, now_ms=now_ms)
    views = {view.name for view in decision.views if view.rows(sent.fields)} if decision.allowed else set()
    type_ = sent.fields["type"]
    return {
        (subscription.team, subscription.view)
        for subscription in plans.grants(now_ms=now_ms).subscriptions.values()
        if subscription.active
        and subscription.view in views
        and any(pattern.matches(type_) for pattern in subscription.filters)
        and plans.reader(subscription.team, type_, subscription.view, now_ms=now_ms).allowed
    }


def missing(
    wanted: set[tuple[str, Key]], receipts: Iterable[Receipt], dead: set[tuple[str, Key]]
) -> set[tuple[str, Key]]:
    """What was due and is neither handled nor a dead letter."""
    return wanted - {(receipt.team, receipt.key) for receipt in receipts if receipt.kind == "done"} - dead


def masked_fields(inputs: Mapping[Key, Input], receipts: Iterable[Receipt]) -> int:
    """How many fields of the delivered copies did not show what the source had sent; each copy counts once."""
    copies = {(r.team, r.key, r.view): r for r in receipts if r.kind == "delivered"}
    return sum(len(hidden(inputs[key].fields, r.fields)) for (_, key, _), r in copies.items() if key in inputs)


def hidden(sent: Mapping[str, Any], seen: Mapping[str, Any]) -> list[str]:
    """Paths of *sent* whose value is absent or another in *seen*; attributes that the mesh sets do not count."""
    before, after = dict(_leaves(sent)), dict(_leaves(seen))
    return sorted(path for path, value in before.items() if after.get(path, _MISSING) != value)


def _leaves(value: object, path: str = "") -> Iterable[tuple[str, object]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def latencies(inputs: Mapping[Key, Input], receipts: Iterable[Receipt], *, skip: Mapping[str, int]) -> dict[str, float]:
    """p50 and p99, in milliseconds, from sending to the first time a handler got it.

    Args:
        inputs: By key.
        receipts: All.
        skip: Team -> Unix ms: leave out what a team got after this. Its consumer was killed then, and the wait for
            its restart is the demo's doing.
    """
    took = sorted(
        float(r.at_ms - inputs[r.key].sent_ms)
        for r in receipts
        if r.kind == "delivered" and r.attempt == 1 and r.key in inputs and r.at_ms < skip.get(r.team, r.at_ms + 1)
    )
    return {"p50": percentile(took, 0.5), "p99": percentile(took, 0.99)}


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    if not sorted_values:
        return 0.0
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]
