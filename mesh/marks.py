"""What an agent says of the numbers it gave: how far it counted, and which numbers no copy need stand under. Pure.

A number can be *void*. The agent says so in a mark, and why:

    17                  given up or refused; whoever sent the event was told so, or an operator finds it in the spool
    17-30               several of those
    17@S:991:<event>    the stream S had this event already, as its message 991: published before, or sent twice
    17~4000:12          some of these numbers, at most 12: there were too many to name each

A mark is one audit record, signed with the event key. Its rows say for an epoch, a source and a view which number was
the last, and which are void. The marks of a process are numbered, so one that is withheld shows.

    signed = Ed25519 over DSSE PAE("application/vnd.mesh.sequence-mark.v1", canonical JSON of the facts and `spiffe_id`)
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import msgspec

from mesh.sequences import EPOCH
from mesh.statements import pae

MARK_TYPE: Final = "application/vnd.mesh.sequence-mark.v1"

_EPOCH = re.compile(EPOCH)
_VOID = re.compile(
    r"(?P<first>[1-9][0-9]{0,11})"
    r"(?:-(?P<last>[1-9][0-9]{0,11})"
    r"|~(?P<upto>[1-9][0-9]{0,11}):(?P<meant>[1-9][0-9]{0,11})"
    r"|@(?P<stream>[A-Za-z0-9_-]{1,128}):(?P<at>[1-9][0-9]{0,18}):(?P<event>[A-Za-z0-9_-]{16}))?"
)
_encode = msgspec.json.Encoder(order="sorted").encode


class Void(NamedTuple):
    """A number, or several, under which no copy may stand. See the table above.

    `meant` is how many of the numbers from `first` to `last` are; `stream`, `at` and `event` say where the stream had
    the event already.
    """

    first: int
    last: int
    meant: int
    stream: str = ""
    at: int = 0
    event: str = ""

    def __str__(self) -> str:
        if self.stream:
            return f"{self.first}@{self.stream}:{self.at}:{self.event}"
        if self.meant <= self.last - self.first:
            return f"{self.first}~{self.last}:{self.meant}"
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @classmethod
    def parse(cls, text: object) -> Void:
        """Read one.

        Raises:
            ValueError: It is outside the grammar.
        """
        match = _VOID.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError("no void numbers")
        first = int(match["first"])
        last = int(match["last"] or match["upto"] or first)
        if last < first:
            raise ValueError("void numbers that end before they begin")
        meant = int(match["meant"] or last - first + 1)
        return cls(first, last, meant, match["stream"] or "", int(match["at"] or 0), match["event"] or "")


class Row(NamedTuple):
    """What one mark says of one source and view in one epoch. `last` is 0 where it only names void numbers."""

    epoch: str
    source: str
    view: str
    last: int
    voids: tuple[Void, ...]

    def plain(self) -> list[str | int]:
        """As an audit record holds it."""
        return [self.epoch, self.source, self.view, self.last, *map(str, self.voids)]

    @classmethod
    def parse(cls, items: object) -> Row:
        """Read one.

        Raises:
            ValueError: It is malformed.
        """
        match items:
            case [str(epoch), str(source), str(view), int(last), *voids] if _EPOCH.fullmatch(epoch):
                return cls(epoch, source, view, last, tuple(map(Void.parse, voids)))
        raise ValueError("no row of a mark")


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What a process says it has counted.

    Attributes:
        epoch: Of the process; rows may be of others, whose spooled copies it drains.
        index: Of the marks of this epoch, from 1.
        rows: See `Row`; those that moved since the mark before.
        waiting: Copies in the agent's spool at that moment: numbers that may yet come.
        ends: Whether it is the epoch's last: no number is given in it any more.
        kid: Of the key that signed it.
        signed_ms: By the agent's clock.
    """

    epoch: str
    index: int
    rows: tuple[Row, ...]
    waiting: int
    ends: bool
    kid: str
    signed_ms: int

    def facts(self) -> dict[str, Any]:
        """As an audit record holds it, without the signature."""
        fields: dict[str, Any] = msgspec.structs.asdict(self)
        return fields | {"rows": [row.plain() for row in self.rows]}

    def signed(self, spiffe_id: str) -> bytes:
        """The bytes that the signature of *spiffe_id* is over."""
        return pae(MARK_TYPE, _encode(self.facts() | {"spiffe_id": str(spiffe_id)}))

    @classmethod
    def parse(cls, facts: dict[str, Any]) -> tuple[Mark, str]:
        """The mark and the signature of a record's *facts*.

        Raises:
            ValueError: They are none.
        """
        match facts:
            case {
                "epoch": str(epoch),
                "index": int(index),
                "rows": list(rows),
                "waiting": int(waiting),
                "ends": bool(ends),
                "kid": str(kid),
                "signed_ms": int(signed_ms),
                "signature": str(signature),
            } if _EPOCH.fullmatch(epoch):
                said = tuple(map(Row.parse, rows))
                mark = cls(
                    epoch=epoch,
                    index=index,
                    rows=said,
                    waiting=waiting,
                    ends=ends,
                    kid=kid,
                    signed_ms=signed_ms,
                )
                return mark, signature
        raise ValueError("no mark")
