"""What a check of a source's record says: what was asked, what was found, what cannot be shown. Pure.

Findings, by name:

    missing        a number that was given is not stored, and no mark says that it is void
    pending        the same, and it may still come: from the agent's spool, or the next mark says that it is void
    misplaced      void because its stream had the event already; but the event is not where the stream said
    reordered      a copy stands behind a higher number in its stream
    stored-again   one message, number and id alike, stands in a stream twice
    forked         two events under one number
    foreign        an epoch that two identities count in
    beyond-end     a number above the last of an epoch that has ended
    not-verified   a message that names this source and fails V1 to V9: it was brought in, or changed
    mark-missing   marks of an agent are not there
    mark-refused   a record that says it is a mark, and is not signed as one
"""

from __future__ import annotations

from typing import Literal

import msgspec

from mesh.sequences import Number
from mesh.tracks import FAR_MS

What = Literal[
    "missing", "pending", "misplaced", "reordered", "stored-again", "forked", "foreign", "beyond-end", "not-verified",
    "mark-missing", "mark-refused",
]  # fmt: skip


class Range(msgspec.Struct, frozen=True):
    """What is asked about: from when to when, stream time in Unix milliseconds, both included."""

    from_ms: int = 0
    to_ms: int = FAR_MS

    def meets(self, first_ms: int, last_ms: int) -> bool:
        """Whether something between these two times may lie within."""
        return first_ms <= self.to_ms and last_ms >= self.from_ms

    def holds(self, at_ms: int) -> bool:
        """Whether this moment lies within."""
        return self.from_ms <= at_ms <= self.to_ms


class Copy(msgspec.Struct, frozen=True, gc=False):
    """What is compared of one message. `message` is its message id; `number` is None where it has none."""

    stream: str
    seq: int
    stream_ms: int
    view: str
    signer: str
    event_id: str
    message: str
    number: Number | None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One place where the record of a source does not hold.

    Attributes:
        what: As the table of this module.
        because: In words; never a value of an event.
        view: And `epoch`: whose numbers; empty where they cannot be read.
        first: And `last`: the numbers, 0 where there are none.
        stream: And `seq`: the message that shows it, where one does.
    """

    what: What
    because: str
    view: str = ""
    epoch: str = ""
    first: int = 0
    last: int = 0
    stream: str = ""
    seq: int = 0


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch in one view, as far as it was found.

    Attributes:
        stored: Copies.
        void: Numbers without one that need none.
        first: The lowest number stored.
        last: The highest that is known.
        marked: The highest that a mark names.
        ended: Whether its agent said that no more come.
    """

    view: str
    epoch: str
    signer: str
    stored: int
    void: int
    first: int
    last: int
    marked: int
    ended: bool


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and what cannot be shown either way. `copies` are those within what was asked."""

    source: str
    copies: int
    counted: list[Counted]
    findings: list[Finding]
    unproven: list[str]
