"""What policies have to come to: cases, one question and its answer each, and invariants of the whole matrix."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from mesh.policy.model_masks import Action
from mesh.policy.model_words import (
    MAX_FIELDS,
    MAX_LIST,
    Agent,
    Instant,
    Name,
    RuleId,
    Spec,
    TagPatterns,
    Teams,
    Text,
    TypeName,
    TypePatterns,
)


class Principal(Spec, frozen=True):
    """Who a case is about: a team that reads, or an agent that publishes; exactly one of them."""

    team: Name | None = None
    agent: Agent | None = None


class Expect(Spec, frozen=True):
    """What a case has to come to.

    `fields` maps a path to a JSON value, or to `absent`, `clear`, `redacted`, `{pseudonym: domain}`,
    `{encrypted: [teams]}`, `{equals: value}`.
    """

    decision: Literal["allow", "deny"]
    rule: RuleId | None = None
    reason: Text | None = None
    view: Name | None = None
    fields: Annotated[dict[Text, Any], Meta(max_length=MAX_FIELDS)] = field(default_factory=dict)


class Case(Spec, frozen=True):
    """One question to the policies and its answer.

    Exactly one of `subscribe` and `publish` holds the type. `event` is a fixture; `set` and `unset` change it by path.
    """

    principal: Principal = field(name="as")
    expect: Expect
    name: Text | None = None
    subscribe: TypeName | None = None
    publish: TypeName | None = None
    view: Name | None = None
    event: Text | None = None
    set: Annotated[dict[Text, Any], Meta(max_length=MAX_FIELDS)] = field(default_factory=dict)
    unset: Annotated[tuple[Text, ...], Meta(max_length=MAX_LIST)] = ()
    now: Instant | None = None


class Never(Spec, frozen=True):
    """Nobody (but `except`) sees fields with these tags under one of these actions, or can test guesses of them."""

    see: TagPatterns | None = None
    actions: Annotated[tuple[Action, ...], Meta(min_length=1, max_length=MAX_LIST)] = field(
        name="as", default=("clear",)
    )
    guess: TagPatterns | None = None
    exceptions: Teams | None = field(name="except", default=None)


class Only(Spec, frozen=True):
    """Only these teams may subscribe to, or publish, any of these types."""

    teams: Teams
    subscribe: TypePatterns | None = None
    publish: TypePatterns | None = None


class Invariant(Spec, frozen=True):
    """What holds of the whole matrix; exactly one of the two."""

    never: Never | None = None
    only: Only | None = None


class PolicyTestSpec(Spec, frozen=True):
    """Cases and invariants."""

    cases: Annotated[tuple[Case, ...], Meta(max_length=MAX_FIELDS)] = ()
    invariants: Annotated[tuple[Invariant, ...], Meta(max_length=MAX_LIST)] = ()
