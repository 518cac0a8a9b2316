"""The numbers that copies carry. Pure.

    sequence = <epoch>-<n>      n has twelve digits and counts from 1, for each source and view within an epoch
    epoch    = 16 characters: when it began, then chance; of an agent process, so no two count alike

A sequence is a string that orders as the numbers do. An epoch ends with its process, or once it counts very many
sources. Numbers are given when copies set out, so along each stream they rise. What became of numbers that no copy
stands under, the agent says in marks (`marks.py`).

Source: CloudEvents 1.0.2, sequence extension; Crockford base 32, as ULIDs use it.
"""

from __future__ import annotations

import re
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from mesh import native
from mesh.base64url import b64u
from mesh.jsontext import decode

if TYPE_CHECKING:
    from mesh.jetstream.outgoing import Outgoing

CHANCE_BYTES: Final = 4
DIGITS: Final = 12  # of a number: 30,000 a second for a year
EPOCH: Final = r"[0-9A-HJKMNP-TV-Z]{16}"

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # in ASCII order
_TIME_CHARS, _CHANCE_CHARS = 10, 6
_SEQUENCE = re.compile(rf"({EPOCH})-([0-9]{{{DIGITS}}})")
_KEY = b',"sequence":"'
_TAIL = (
    len(_KEY) + _TIME_CHARS + _CHANCE_CHARS + 1 + DIGITS + 2
)  # the key, the sequence, the end of the string and of the event
_EVENT_BYTES = 12


class Number(NamedTuple):
    """A sequence, read. `n` counts from 1."""

    epoch: str
    n: int


def new_epoch(at_ms: int, chance: bytes) -> str:
    """The name of an epoch that begins at *at_ms*, Unix milliseconds; *chance* is `CHANCE_BYTES` random bytes."""
    return _base32(at_ms, _TIME_CHARS) + _base32(int.from_bytes(chance), _CHANCE_CHARS)


def began_ms(epoch: str) -> int:
    """When a well-formed *epoch* began, by its agent's clock: Unix milliseconds."""
    value = 0
    for char in epoch[:_TIME_CHARS]:
        value = value * 32 + _ALPHABET.index(char)
    return value


def _base32(value: int, chars: int) -> str:
    digits = []
    for _ in range(chars):
        value, digit = divmod(value, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def read(sequence: object) -> Number | None:
    """The parts of a `sequence`, or None for what is none."""
    match = _SEQUENCE.fullmatch(sequence) if isinstance(sequence, str) else None
    return None if match is None or not int(match[2]) else Number(match[1], int(match[2]))


def member_of(epoch: str) -> bytes:
    """The member `sequence` of a number of *epoch*, up to the digits."""
    return _KEY + epoch.encode() + b"-"


@native.twin
def numbered(copies: list[Outgoing], at: int, member: bytes, n: int) -> int:
    """Number *copies* from place *at* on, as long as they are of one source and view: *n*, the next one, and so on.

    Args:
        copies: Each body an encoded event without a `sequence`; it gets one, as its last member.
        at: Where to begin.
        member: What `member_of` gives; the number follows it in `DIGITS` digits.
        n: Of the first.

    Returns:
        The place behind the last one that got a number.
    """
    first = None
    for copy in islice(copies, at, None):
        first = first or copy
        if copy.source != first.source or copy.view != first.view:
            break
        copy.body = b'%b%b%012d"}' % (copy.body[:-1], member, n)
        n += 1
        at += 1
    return at


def number_of(body: bytes) -> Number | None:
    """The sequence of a copy that this mesh made; None where it has none.

    Raises:
        InputError: The body is no JSON object.
    """
    tail = body[-_TAIL:]
    if tail.startswith(_KEY) and (number := read(tail[len(_KEY) : -2].decode(errors="replace"))):
        return number
    return read(decode(body).get("sequence"))


def event_name(event_id: str) -> str:
    """What a mark calls an event by: 16 characters, whatever its id is."""
    return b64u(sha256(event_id.encode()).digest()[:12])
