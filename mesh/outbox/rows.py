"""What a row of an outbox holds, alike in every database. Nothing here touches one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from mesh import composing
from mesh.event import rfc3339
from mesh.typed import described

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.client import Typed
    from mesh.errors import MeshError
    from mesh.inbound import Admitted

TABLE = "mesh_outbox"
TOLD = (
    "code",
    "rule",
    "reason",
    "detail",
    "message",
    "expected",
    "got",
    "next",
)  # of a problem: never an event's value


class Row(NamedTuple):
    """An event that waits: its place in the line, and its attributes and data as JSON text."""

    seq: int
    source: str
    event: str

    def fields(self) -> dict[str, Any]:
        """The event."""
        return msgspec.json.decode(self.event, type=dict[str, Any])


class Refused(NamedTuple):
    """An event that was set aside.

    Attributes:
        seq: What `again` and `drop` take.
        problem: Why: the agent's problem document, as far as it is about the refusal.
    """

    seq: int
    source: str
    id: str
    type: str
    problem: dict[str, Any]


class Level(NamedTuple):
    """How full an outbox is: events waiting and set aside, and when the oldest that waits was added."""

    waiting: int
    refused: int
    oldest_ms: int | None


def compose(
    type: str | Typed,
    data: object,
    *,
    source: str,
    id: str,
    now_ms: int,
    subject: str | None,
    time: str | None,
    partitionkey: str | None,
    extensions: Mapping[str, str | int | bool] | None,
    cause: Admitted | None,
) -> str:
    """An event as JSON text, as `Mesh.publish` makes it from the same arguments; its time is that of the transaction.

    Raises:
        TypeError: The data is not made of JSON values, or the class of an instance was not declared.
        DataMismatch: An instance holds what its own class does not allow.
    """
    type_, data = (type, data) if isinstance(type, str) else described(type)
    said = {"id": id, "source": source, "type": type_, "subject": subject, "time": time or rfc3339(now_ms)}
    attributes = said | {"partitionkey": partitionkey, "data": data}
    return composing.compose(attributes, extensions, cause).decode()


def refused(seq: int, event: str, problem: str) -> Refused:
    """A row that was set aside."""
    fields = Row(seq, "", event).fields()
    told = msgspec.json.decode(problem, type=dict[str, Any])
    return Refused(seq, str(fields["source"]), str(fields["id"]), str(fields["type"]), told)


def problem_of(error: MeshError) -> str:
    """Why an event was refused, as JSON text."""
    known = error.as_dict()
    document = known.get("problem", known)  # the agent's own words, where it said something
    return msgspec.json.encode({name: document[name] for name in TOLD if document.get(name)}).decode()


def created(number: str, serial: str) -> tuple[str, str]:
    """The statements that make the table and its index, where they are missing.

    Args:
        number: The database's type for milliseconds.
        serial: Its type for a key that counts up by itself.
    """
    columns = f"seq {serial}, source TEXT NOT NULL, event TEXT NOT NULL, at_ms {number} NOT NULL, problem TEXT"
    return (
        f"CREATE TABLE IF NOT EXISTS {TABLE} ({columns})",
        f"CREATE INDEX IF NOT EXISTS {TABLE}_refused ON {TABLE} (seq) WHERE problem IS NOT NULL",
    )
