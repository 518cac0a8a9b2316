"""The letters of stream `DLQ` as operators look for them: by owner, reason, type, time, event, or number.

A letter's owner is who its subject names, which is all that a workload's rights let it choose. What the record says of
itself is the writer's word: it is shown, so much of it as one of ours needs, and judged again before anything is made
of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import msgspec

from mesh import deadletters
from mesh.control import stored_messages
from mesh.errors import BadAttribute, InputError
from mesh.subjects import Pattern, check_name, parse_physical

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesh.control.stored_messages import Message
    from mesh.deadletters import DeadLetterRecord
    from mesh.jetstream.connection import Connection

UNREADABLE = "unreadable"  # the reason of a letter that is none
MAX_NUMBERS = 1000  # of letters named one by one
MAX_TOLD = 256  # characters of a text of the writer's in a list
_OWNER_TOKENS = 3  # of `dlq.<team>.<subscription>`
_LITERAL = str.maketrans({"[": "[[]", "?": "[?]"})  # for fnmatch: `*` alone stands for others


class Filter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which letters are meant: those that match all that is said; empty and 0 say nothing.

    Attributes:
        team, subscription: Whose.
        because: The reason, as listed; `*` stands for any characters.
        type: Of the event; a pattern, as in NATS.
        since_ms, until_ms: Stored from then on, and before then: Unix milliseconds of the server's clock.
        id: Of the event.
        run: Of the redrive that brought the event: these failed again.
        letters: Their numbers.
    """

    team: str = ""
    subscription: str = ""
    because: str = ""
    type: str = ""
    since_ms: int = 0
    until_ms: int = 0
    id: str = ""
    run: str = ""
    letters: tuple[int, ...] = ()

    def check(self) -> None:
        """Raise unless this can match anything.

        Raises:
            InputError: A name, a pattern or a number is none.
        """
        for name in filter(None, (self.team, self.subscription)):
            check_name(name)
        if self.type:
            Pattern.parse(self.type)
        if len(self.letters) > MAX_NUMBERS or any(number < 1 for number in self.letters):
            raise BadAttribute(
                "these are no numbers of letters",
                expected=f"up to {MAX_NUMBERS} numbers from 1, as `mesh dlq list` shows",
            )

    @property
    def facts(self) -> dict[str, Any]:
        """What is said, for the audit trail."""
        return {f"for_{name}": value for name, value in msgspec.to_builtins(self).items()}

    @property
    def subject(self) -> str:
        """What of `DLQ` has to be read."""
        return f"dlq.{self.team or '*'}.{self.subscription or '*'}"


@dataclass(frozen=True, slots=True)
class Letter:
    """One stored letter.

    Attributes:
        number: In `DLQ`; never given twice.
        team, subscription: Whose, by the subject it is stored on.
        stored_ms: When, Unix milliseconds of the server's clock.
        record: What it says; None where it is no dead letter.
        body: As stored.
    """

    number: int
    team: str
    subscription: str
    stored_ms: int
    record: DeadLetterRecord | None
    body: bytes

    @classmethod
    def of(cls, message: Message) -> Letter:
        """The letter of a message of `DLQ`."""
        tokens = message.subject.split(".")
        _, team, subscription = tokens if len(tokens) == _OWNER_TOKENS else ("", "", "")
        try:
            record = deadletters.read(message.body)
        except ValueError:
            record = None
        return cls(message.sequence, team, subscription, message.stored_ms, record, message.body)

    @property
    def type(self) -> str:
        """The event's logical type; empty where nobody knows."""
        try:
            return "" if self.record is None else parse_physical(self.record.subject).type
        except InputError:
            return ""

    @property
    def reason(self) -> str:
        """Why it was buried, as far as a label goes."""
        return UNREADABLE if self.record is None else deadletters.one_line(self.record.reason, MAX_TOLD)

    def matches(self, chosen: Filter) -> bool:
        """Whether it is one of those that are meant."""
        if (chosen.team or self.team, chosen.subscription or self.subscription) != (self.team, self.subscription):
            return False
        if chosen.letters and self.number not in chosen.letters:
            return False
        if chosen.since_ms > self.stored_ms or (chosen.until_ms and self.stored_ms >= chosen.until_ms):
            return False
        if chosen.because and not fnmatchcase(self.reason, chosen.because.translate(_LITERAL)):
            return False
        if chosen.run and (self.record is None or self.record.redrive != chosen.run):
            return False
        if chosen.type and not (self.type and Pattern.parse(chosen.type).matches(self.type)):
            return False
        return not chosen.id or (self.event or {}).get("id") == chosen.id

    @property
    def event(self) -> dict[str, Any] | None:
        """The event's fields; None where the letter has none."""
        try:
            return None if self.record is None else self.record.fields
        except (msgspec.MsgspecError, RecursionError):
            return None

    def summary(self) -> dict[str, Any]:
        """What a list says of it, in 6 KB at most: no value of the event beyond its id, type and source."""
        record, event = self.record, self.event or {}
        told = {
            "letter": self.number,
            "team": self.team,
            "subscription": self.subscription,
            "at_ms": self.stored_ms,
            "reason": self.reason,
            "type": self.type,
            "id": _told(event.get("id")),
            "source": _told(event.get("source")),
            "event": bool(event),
        }
        if record is None:
            return told
        return told | {
            "class": _told(record.error_class),
            "attempts": record.attempts,
            "stream": _told(record.stream),
            "sequence": record.sequence,
            "redriven": record.redriven,
        }


def _told(text: object) -> str:
    return text[:MAX_TOLD] if isinstance(text, str) else ""


async def letters(connection: Connection, chosen: Filter, *, after: int, last: int) -> AsyncIterator[Letter]:
    """The letters that may be meant, oldest first: look at each with `matches`.

    Args:
        connection: The control plane's.
        chosen: Which.
        after: Only those with higher numbers.
        last: The number of the last.

    Raises:
        RequestFailed, Unavailable: NATS refused or did not answer.
    """
    if chosen.letters:
        for number in sorted(set(chosen.letters)):
            if after < number <= last and (found := await letter(connection, number)) is not None:
                yield found
        return
    async for message in stored_messages.stored(
        connection, deadletters.STREAM, chosen.subject, first=after + 1, last=last
    ):
        yield Letter.of(message)


async def letter(connection: Connection, number: int) -> Letter | None:
    """One letter; None where it is not there (any more).

    Raises:
        RequestFailed, Unavailable: NATS refused or did not answer.
    """
    found = await stored_messages.message(connection, deadletters.STREAM, number)
    return None if found is None else Letter.of(found)
