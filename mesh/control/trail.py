"""Reading the audit trail back, oldest first, page by page: nothing is consumed, and a long trail costs no memory."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from mesh.audit import STREAM, SUBJECT, lines
from mesh.audit_check import Stored
from mesh.errors import RequestFailed, Unavailable
from mesh.jetstream import wire
from mesh.jetstream.manage import stream_info

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesh.jetstream.connection import Connection

PAGE = 100  # messages a request, of at most 64 KB each
PAGE_S = 10.0  # for one page of answers
_END = (204, 404)  # Direct Get (ADR-31): the end of a batch; no message


async def last_sequence(connection: Connection) -> int:
    """The number of the newest message of the trail, whether it is still there or not; 0 before the first.

    Raises:
        RequestFailed: The server refused.
        Unavailable: Nobody answered.
    """
    return int((await stream_info(connection, STREAM))["state"]["last_seq"])


async def stored_trail(
    connection: Connection, *, name: str = "", since: str = "", first: int = 1, last: int = 0
) -> AsyncIterator[Stored]:
    """The lines of the trail as they are stored, oldest first.

    Args:
        connection: The control plane's.
        name: Only this workload's.
        since: RFC 3339 with an offset; only what was stored from then on.
        first: The number of the first message to read, where no *since* is given.
        last: That of the last; 0 for all that is stored now.

    Raises:
        ValueError: *since* is no such time.
        RequestFailed: The server refused.
        Unavailable: Nobody answered.
    """
    last = last or await last_sequence(connection)
    begin = datetime.fromisoformat(since) if since else None
    ask: dict[str, Any] = {"seq": first} if begin is None else {"start_time": begin.isoformat()}
    while last:
        page, pending = await _page(connection, ask | {"next_by_subj": SUBJECT + (name or ">"), "batch": PAGE})
        for message in page:
            if message.sequence > last:
                return
            if begin is None or message.stored_at >= begin:  # after the last message a start time finds the first
                for line in lines(message.body):
                    yield Stored(line, message.subject, message.sequence)
        if not page or not pending:
            return
        ask = {"seq": page[-1].sequence + 1}


class _Message(NamedTuple):
    subject: str
    sequence: int
    stored_at: datetime
    body: bytes


async def _page(connection: Connection, ask: dict[str, Any]) -> tuple[list[_Message], int]:
    """Up to `PAGE` messages; how many follow."""
    came: asyncio.Queue[tuple[dict[str, str], int | None, bytes]] = asyncio.Queue()

    def on_reply(_subject: str, _reply: str, headers: bytes | None, data: bytes) -> None:
        status = None if data else wire.status_of(headers)
        came.put_nowait((wire.parse_headers(headers), status and status.code, data))

    inbox = connection.new_inbox()
    listener = connection.listen(inbox, on_reply)
    page: list[_Message] = []
    pending = 0
    try:
        await connection.publish(f"$JS.API.DIRECT.GET.{STREAM}", msgspec.json.encode(ask), reply=inbox)
        async with asyncio.timeout(PAGE_S):
            while True:
                headers, status, data = await came.get()
                fields = {key.lower(): value for key, value in headers.items()}
                if status in _END:
                    return page, pending
                if status is not None:
                    raise RequestFailed(f"{STREAM} cannot be read", got=f"status {status}", err_code=0)
                pending = int(fields["nats-num-pending"])
                stored_at = datetime.fromisoformat(fields["nats-time-stamp"])
                page.append(_Message(fields["nats-subject"], int(fields["nats-sequence"]), stored_at, data))
    except TimeoutError:
        raise Unavailable(f"{STREAM} did not answer within {PAGE_S:g} s", reason="timeout") from None
    finally:
        listener.close()
