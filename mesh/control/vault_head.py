"""The one record that says which parts in the bucket are the state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mesh.errors import RequestFailed

if TYPE_CHECKING:
    from mesh.jetstream.store import Entry

HEAD = "head"


class Head(msgspec.Struct, frozen=True):
    """Which parts are the state.

    Attributes:
        generation: Counts every save.
        term: Of the leader that saved it.
        id: Of its parts.
        parts: How many.
    """

    generation: int
    term: int
    id: str
    parts: int


def read_head(entry: Entry) -> Head:
    """What stands under `head`.

    Raises:
        RequestFailed: It is no head.
    """
    try:
        return msgspec.json.decode(entry.value, type=Head)
    except msgspec.MsgspecError as error:
        raise RequestFailed("what stands under `head` is none", err_code=0, got=f"{len(entry.value)} bytes") from error
