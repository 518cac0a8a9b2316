"""Reading the audit trail back, oldest first, line by line: nothing is consumed, and a long trail costs no memory."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from mesh.audit import STREAM, SUBJECT, lines
from mesh.audit_check import Stored
from mesh.control import stored_messages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesh.jetstream.connection import Connection


async def last_sequence(connection: Connection) -> int:
    """The number of the newest message of the trail, whether it is still there or not; 0 before the first.

    Raises:
        RequestFailed: The server refused.
        Unavailable: Nobody answered.
    """
    return await stored_messages.last_sequence(connection, STREAM)


async def stored_trail(
    connection: Connection, *, name: str = "", since: str = "", first: int = 1, last: int = 0
) -> AsyncIterator[Stored]:
    """The lines of the trail as they are stored, oldest first.

    Args:
        connection: The control plane's.
        name: Only this workload's.
        since: RFC 3339 with an offset; only what was stored from that millisecond on.
        first: The number of the first message to read, where no *since* is given.
        last: That of the last; 0 for all that is stored now.

    Raises:
        ValueError: *since* is no such time.
        RequestFailed: The server refused.
        Unavailable: Nobody answered.
    """
    since_ms = int(datetime.fromisoformat(since).timestamp() * 1000) if since else 0
    async for message in stored_messages.stored(
        connection, STREAM, SUBJECT + (name or ">"), first=1 if since else first, last=last, since_ms=since_ms
    ):
        for line in lines(message.body):
            yield Stored(line, message.subject, message.sequence, message.stored_ms)
