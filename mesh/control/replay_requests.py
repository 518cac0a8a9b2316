"""What the control plane's door answers about replays: `ctl.replay.start`, `list` and `cancel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from mesh.control.replay_reach import Point
from mesh.errors import BadAttribute

if TYPE_CHECKING:
    from mesh.control.door import Handler
    from mesh.control.replay import Replays

_Name = Annotated[str, Meta(min_length=1, max_length=40)]
_Text = Annotated[str, Meta(max_length=300)]
_Place = Annotated[int, Meta(ge=1, le=2**53)]  # a sequence or Unix milliseconds
_T = TypeVar("_T")


class _Start(msgspec.Struct, frozen=True):
    team: _Name
    subscription: _Name
    from_seq: _Place | None = None
    from_ms: _Place | None = None
    to_seq: _Place | None = None
    to_ms: _Place | None = None
    types: Annotated[tuple[str, ...], Meta(max_length=32)] = ()
    dry_run: bool = False
    author: _Text = ""
    reason: _Text = ""


class _Cancel(msgspec.Struct, frozen=True):
    run: str
    author: _Text = ""
    reason: _Text = ""


def handlers(replays: Replays) -> dict[str, Handler]:
    """`start`, `list` and `cancel` of one tenant, as requests."""

    async def start(request: dict[str, Any]) -> dict[str, Any]:
        asked = _read(request, _Start)
        return await replays.start(
            asked.team,
            asked.subscription,
            Point(asked.from_seq, asked.from_ms),
            Point(asked.to_seq, asked.to_ms),
            asked.types,
            author=asked.author,
            reason=asked.reason,
            dry_run=asked.dry_run,
        )

    async def list_(_request: dict[str, Any]) -> dict[str, Any]:
        return {"runs": await replays.runs()}

    async def cancel(request: dict[str, Any]) -> dict[str, Any]:
        asked = _read(request, _Cancel)
        return await replays.cancel(asked.run, author=asked.author, reason=asked.reason)

    return {"start": start, "list": list_, "cancel": cancel}


def _read(request: dict[str, Any], kind: type[_T]) -> _T:
    try:
        return msgspec.convert(request, kind)
    except msgspec.ValidationError as error:
        raise BadAttribute(f"the request is malformed: {error}", expected="what `mesh replay` sends") from error
