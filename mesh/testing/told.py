"""Why an expected event did not come, in words: what came instead, what failed, what policy says of what was sent.

Names, codes and counts alone: an event's values are not repeated in a failure that a CI may publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.control.deadletters import Letter
    from mesh.inbound import Admitted
    from mesh.policy.grants import SubscriptionGrant
    from mesh.policy.trial import Answer

MAX_LINES = 10  # of each kind: enough to see what happened


class Unmet(AssertionError):
    """What a test expected of the mesh is not so. The message says what is, as far as the mesh knows."""


@dataclass(frozen=True, slots=True)
class Sent:
    """An event that the test published, and what policy says of the team that waited for it."""

    type: str
    id: str
    source: str
    answer: Answer | None = None
    covered: bool = True  # whether the subscription's types cover it


@dataclass(frozen=True, slots=True)
class Refusal:
    """Events that an agent refused, as the audit trail has it."""

    agent: str
    type: str
    source: str
    reason: str
    rule: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What there is to tell.

    Attributes:
        grant: The subscription as policies have it; None where they have none of that name.
        came: What it was handed beside what was expected.
        letters: Its dead letters.
        sent: What the test published.
        refused: What agents refused.
        held: Events that another consumer of the subscription has in hand, or that wait for a retry.
    """

    grant: SubscriptionGrant | None
    came: Sequence[Admitted] = ()
    letters: Sequence[Letter] = ()
    sent: Sequence[Sent] = ()
    refused: Sequence[Refusal] = ()
    held: int = 0


def told(what: str, facts: Facts) -> str:
    """The message of a failure: *what* was expected, and everything that may explain it."""
    parts = [
        ("", [_subscription(facts.grant)]),
        ("came instead, or besides:", [f"{e.type} {e.id} from {e.source}, attempt {e.attempt}" for e in facts.came]),
        ("dead letters:", [_letter(letter) for letter in facts.letters]),
        ("refused by an agent:", [_refusal(refusal) for refusal in facts.refused]),
        ("published by this test:", [_sent(sent) for sent in facts.sent] or ["nothing, as far as the kit knows"]),
    ]
    if facts.held:
        parts.append(("not settled:", [f"{facts.held} events that another consumer has, or that wait for a retry"]))
    lines = [what]
    for title, said in parts:
        if title and said:
            lines.append(title)
        lines += [f"  {line}" for line in said[:MAX_LINES]]
        if len(said) > MAX_LINES:
            lines.append(f"  and {len(said) - MAX_LINES} more")
    return "\n".join(lines)


def _subscription(grant: SubscriptionGrant | None) -> str:
    if grant is None:
        return "the policies have no such subscription"
    types = " ".join(pattern.written for pattern in grant.filters) or "no types"
    state = "" if grant.active else f"; inactive: {grant.reason}"
    return f"{grant.team}/{grant.name} reads {types} in view {grant.view or '-'}{state}"


def _letter(letter: Letter) -> str:
    attempts = letter.record.attempts if letter.record is not None else 0
    error = f", {letter.record.error_class}" if letter.record is not None and letter.record.error_class else ""
    event = letter.event or {}
    return f"{letter.type} {event.get('id', '')}: {letter.reason} after {attempts} attempts{error}"


def _refusal(refusal: Refusal) -> str:
    rule = f" by {refusal.rule}" if refusal.rule else ""
    return f"{refusal.type} from {refusal.source} at {refusal.agent}: {refusal.reason}{rule}, {refusal.count} times"


def _sent(sent: Sent) -> str:
    about = f"{sent.type} {sent.id} from {sent.source}"
    if sent.answer is None:
        return about
    if not sent.covered:
        return f"{about}: not of the subscription's types"
    rule = f" by {sent.answer.rule}" if sent.answer.rule else ""
    if sent.answer.allowed:
        return f"{about}: the team may read it{rule}, in view {sent.answer.view}"
    return f"{about}: not for this team: {sent.answer.reason}{rule}"
