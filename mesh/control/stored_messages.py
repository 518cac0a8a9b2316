"""Stored messages of one stream read back, oldest first, page by page: nothing is consumed, and it costs no memory.

With the control plane's credentials alone: Direct Get of a whole stream reads what everybody wrote.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from mesh.errors import RequestFailed, Unavailable
from mesh.jetstream import wire
from mesh.jetstream.manage import api, stream_info
from mesh.signing import Received

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesh.jetstream.connection import Connection

PAGE = 200  # messages a request
PAGE_BYTES = 8 * 1024 * 1024  # of a page: a dozen of the largest dead letters
PAGE_S = 10.0  # for one page of answers
NO_MESSAGE = 10037  # err_code: no such sequence in the stream
_END = (204, 404)  # Direct Get (ADR-31): the end of a batch; no message


class Message(NamedTuple):
    """One stored message: `headers` is its block, `stored_ms` when the server took it (Unix milliseconds)."""

    subject: str
    sequence: int
    stored_ms: int
    headers: bytes | None
    body: bytes

    def received(self, stream: str, *, deliveries: int = 1) -> Received:
        """It as an event of *stream* that was delivered so often; there is no way to settle it."""
        sound = self.headers is not None and wire.headers_sound(self.headers)
        msg_ids, signature = wire.event_headers(self.headers if sound else None)
        return Received(
            self.subject, self.body, msg_ids, signature, stream, self.sequence, self.stored_ms, deliveries, reply=""
        )


async def last_sequence(connection: Connection, stream: str) -> int:
    """The number of the newest message of *stream*, whether it is still there or not; 0 before the first.

    Raises:
        RequestFailed: The server refused.
        Unavailable: Nobody answered.
    """
    return int((await stream_info(connection, stream))["state"]["last_seq"])


async def stored(
    connection: Connection, stream: str, subject: str = ">", *, first: int = 1, last: int = 0, since_ms: int = 0
) -> AsyncIterator[Message]:
    """The messages of *stream* on *subject* (wildcards allowed), oldest first.

    Args:
        connection: The control plane's.
        stream: Which.
        subject: Only messages on subjects that this covers.
        first: The number of the first message to read.
        last: That of the last; 0 for all that is stored now.
        since_ms: Begin with what was stored from then on, instead of *first*: Unix milliseconds.

    Raises:
        RequestFailed: The server refused.
        Unavailable: Nobody answered.
    """
    last = last or await last_sequence(connection, stream)
    begin: dict[str, Any] = {"start_time": _rfc3339(since_ms)} if since_ms else {"seq": first}
    while first <= last:
        page, pending = await _page(connection, stream, {**begin, "next_by_subj": subject})
        for message in page:
            if message.sequence > last:
                return
            if message.stored_ms >= since_ms:  # after the last message a start time finds the first
                yield message
        if not page or not pending:
            return
        first = page[-1].sequence + 1
        begin = {"seq": first}


async def message(connection: Connection, stream: str, sequence: int) -> Message | None:
    """One message by its number; None where it is not there (any more).

    Raises:
        RequestFailed: The server refused.
        Unavailable: Nobody answered.
    """
    try:
        found = (await api(connection, f"STREAM.MSG.GET.{stream}", {"seq": sequence}))["message"]
    except RequestFailed as error:
        if error.details.get("err_code") == NO_MESSAGE:
            return None
        raise
    headers = b64decode(found["hdrs"]) if found.get("hdrs") else None
    return Message(found["subject"], found["seq"], _ms(found["time"]), headers, b64decode(found.get("data", "")))


async def delete(connection: Connection, stream: str, sequence: int, *, erase: bool = True) -> bool:
    """Delete one message; False where it was not there (any more).

    Args:
        connection: The control plane's.
        stream: Of the message.
        sequence: Its number.
        erase: Overwrite what it held on the disk: the server rewrites the block around it (20 ms, measured).

    Raises:
        RequestFailed: The server refused.
        Unavailable: Nobody answered.
    """
    try:
        await api(connection, f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": not erase})
    except RequestFailed as error:
        if error.details.get("err_code") == NO_MESSAGE:
            return False
        raise
    return True


async def _page(connection: Connection, stream: str, begin: dict[str, Any]) -> tuple[list[Message], int]:
    """Up to `PAGE` messages; how many follow."""
    came: asyncio.Queue[tuple[bytes | None, bytes]] = asyncio.Queue()
    inbox = connection.new_inbox()
    listener = connection.listen(inbox, lambda _subject, _reply, headers, data: came.put_nowait((headers, data)))
    ask = {**begin, "batch": PAGE, "max_bytes": PAGE_BYTES}
    page: list[Message] = []
    pending = 0
    try:
        await connection.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(ask), reply=inbox)
        async with asyncio.timeout(PAGE_S):
            while True:
                headers, data = await came.get()
                status = None if data else wire.status_of(headers)
                if status is not None and status.code in _END:
                    return page, pending
                if status is not None:
                    raise RequestFailed(f"{stream} cannot be read", got=f"status {status.code}", err_code=0)
                pending = _take(page, headers, data)
    except TimeoutError:
        raise Unavailable(f"{stream} did not answer within {PAGE_S:g} s", reason="timeout") from None
    finally:
        listener.close()


def _take(page: list[Message], headers: bytes | None, data: bytes) -> int:
    """Add an answer to *page*; returns how many follow. The server's headers stand last, after those of a writer."""
    said: dict[str, Any] = {name.lower(): value for name, value in wire.parse_headers(headers).items()}
    page.append(Message(said["nats-subject"], int(said["nats-sequence"]), _ms(said["nats-time-stamp"]), headers, data))
    return int(said["nats-num-pending"])


def _rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()


def _ms(stamp: str) -> int:
    return int(datetime.fromisoformat(stamp).timestamp() * 1000)
