"""A key-value bucket: a stream `KV_<bucket>` with one subject a key. Read by Direct Get: a right can name a key.

Buckets are made by the topology, and only the control plane may put.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from mesh.errors import BadSubject, RequestFailed

if TYPE_CHECKING:
    from mesh.jetstream.connection import Connection

WRONG_LAST_SEQUENCE = 10071  # err_code of a put whose expected revision is not the last one
_KEY_RE = re.compile(r"[A-Za-z0-9_=-]+(\.[A-Za-z0-9_=-]+)*")
_REVISION_RE = re.compile(r"[1-9][0-9]{0,19}")  # of 64 bits; the server counts from 1
_MAX_SAID = 32  # characters of what stands there instead
_NOT_FOUND = 404
_OK = (None, 200)


class Entry(NamedTuple):
    """A key's value, the stream sequence it was put at, and when, by the server's clock (Unix milliseconds)."""

    value: bytes
    revision: int
    at_ms: int = 0


class KeyValue:
    """One bucket over one connection."""

    def __init__(self, connection: Connection, bucket: str) -> None:
        self._connection = connection
        self._subject = f"$KV.{bucket}."
        self._stream = f"KV_{bucket}"

    async def get(self, key: str) -> Entry | None:
        """The last value of *key*; None where there is none, or it was deleted.

        A replica may answer, and lag: a reader that knows a newer revision exists reads again.

        Raises:
            BadSubject: *key* is not letters, digits, `_`, `=`, `-` in tokens joined by dots.
            RequestFailed: The server refused, or answered with another key or without its revision.
            Unavailable: Nobody answered, or our account does not import this key.
        """
        subject = self._subject + _checked(key)
        reply = await self._connection.request(f"$JS.API.DIRECT.GET.{self._stream}.{subject}", b"")
        if reply.status == _NOT_FOUND:
            return None
        headers = {name.lower(): value for name, value in reply.headers.items()}
        if reply.status not in _OK or headers.get("nats-subject") != subject:
            message = f"{self._stream} did not answer with the key {key}"
            raise RequestFailed(message, got=f"status {reply.status}", err_code=0)
        if headers.get("kv-operation", "PUT") != "PUT" or "nats-marker-reason" in headers:
            return None
        revision = headers.get("nats-sequence", "")
        if _REVISION_RE.fullmatch(revision) is None:
            message = f"{self._stream} answered with the key {key} and no revision of it"
            raise RequestFailed(message, expected="a sequence", got=revision[:_MAX_SAID], err_code=0)
        return Entry(reply.data, int(revision), _stamp_ms(headers.get("nats-time-stamp", "")))

    async def put(self, key: str, value: bytes, expected_revision: int | None = None) -> int:
        """Store *value* and return its revision.

        Args:
            key: As for `get`.
            value: At most the server's max_payload.
            expected_revision: Refuse unless the key's last revision is this one; 0 means the key is new.

        Raises:
            BadSubject: *key* is malformed.
            RequestFailed: The server refused, or what it answers is no ack; `err_code` is `WRONG_LAST_SEQUENCE` where
                somebody else was first.
            Unavailable: Nobody answered. The value may be stored all the same: read it.
        """
        headers = None
        if expected_revision is not None:
            headers = {"Nats-Expected-Last-Subject-Sequence": str(expected_revision)}
        reply = await self._connection.request(self._subject + _checked(key), value, headers=headers)
        ack = self._ack(key, reply.data)
        if ack.error is not None:
            message = f"{self._stream} refused the key {key}: {ack.error.description}"
            raise RequestFailed(message, err_code=ack.error.err_code)
        if ack.stream != self._stream:
            message = f"another stream took the key {key}"
            raise RequestFailed(message, expected=self._stream, got=ack.stream, err_code=0)
        return ack.seq

    async def delete(self, key: str) -> None:
        """Leave a marker in the place of *key*: `get` then finds nothing.

        Raises:
            As `put`.
        """
        headers = {"KV-Operation": "DEL"}
        reply = await self._connection.request(self._subject + _checked(key), b"", headers=headers)
        ack = self._ack(key, reply.data)
        if ack.error is not None:
            message = f"{self._stream} refused to delete the key {key}: {ack.error.description}"
            raise RequestFailed(message, err_code=ack.error.err_code)

    def _ack(self, key: str, data: bytes) -> _Ack:
        try:
            return _ACK.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            message = f"what {self._stream} answered for the key {key} is no ack; it may have taken it: read the key"
            raise RequestFailed(message, expected="JSON of an ack", got=f"{len(data)} bytes", err_code=0) from error


def _stamp_ms(text: str) -> int:
    """`Nats-Time-Stamp` (RFC 3339 with nanoseconds) as Unix milliseconds; 0 where there is none."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        return 0


class _AckError(msgspec.Struct):
    description: str = ""
    err_code: int = 0


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    error: _AckError | None = None


_ACK = msgspec.json.Decoder(_Ack)


def _checked(key: str) -> str:
    if _KEY_RE.fullmatch(key) is None:  # no wildcard: `>` in a Direct Get reads whatever the grant covers
        message = "a key is outside the grammar"
        raise BadSubject(message, expected="tokens of [A-Za-z0-9_=-] joined by dots", got=f"{len(key)} characters")
    return key
