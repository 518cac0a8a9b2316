"""The copies of one event, cut out of its text: what most events take on their way out (see `mesh.journey`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from mesh import native
from mesh.jetstream.outgoing import Outgoing
from mesh.statements import FIRST_GENERATION
from mesh.subjects import slot_of

if TYPE_CHECKING:
    from mesh.keyed import Keyed
    from mesh.policy.mask import Masking, MaskKeys


class Address(NamedTuple):
    """Where the copies of a type in a view go, by slot, and in which stream they rest.

    `marks` ends every such copy: no event that was accepted has these members, so they need no look.
    """

    view: str
    subjects: tuple[str, ...]
    stream: str
    marks: bytes


class Stop(NamedTuple):
    """One view of a type: how it shows an event, and where the copy goes. `rows` says whether it does, where set."""

    masking: Masking
    rows: Callable[[dict[str, Any]], bool] | None
    address: Address


class Hashes(NamedTuple):
    """What a source's events are hashed with: for their slot, their partition token, their message ids."""

    slot: Keyed
    partition: Keyed
    message_id: Keyed


@native.twin
def cut(  # noqa: PLR0917 - called once for each event: names would take longer
    text: bytes, more: bytes, fields: dict[str, Any], stops: tuple[Stop, ...], hashes: Hashes, keys: MaskKeys
) -> list[Outgoing] | None:
    """One copy of an event for each of *stops* that shows it.

    Args:
        text: Of the event, as `mesh.verbatim.verbatim` gave it.
        more: Members that go behind those in *text*.
        fields: Its attributes, and of its data what the stops' `rows` read.
        stops: The views that somebody may read.
        hashes: The source's.
        keys: The pseudonym keys that are held.

    Returns:
        None where one of them cannot be cut out of the text: `Masking.apply` has to be asked.
    """
    event_id, source, type_ = fields["id"], fields["source"], fields["type"]
    partition, trace = fields.get("partitionkey"), fields.get("traceparent")
    place = slot_of(hashes.slot.digest(event_id if partition is None else partition))
    token = None if partition is None else hashes.partition.token(partition)
    copies = []
    for masking, rows, address in stops:
        if rows is not None and not rows(fields):
            continue
        body = masking.splice(text, more + address.marks, token, fields, keys)
        if body is None:
            return None
        subject = address.subjects[place]
        base_id = hashes.message_id.token(source, event_id, subject, FIRST_GENERATION)
        copies.append(
            Outgoing(
                subject, address.stream, body, source, event_id,
                traceparent=trace, base_id=base_id, view=address.view, type=type_,
            )
        )  # fmt: skip
    return copies
