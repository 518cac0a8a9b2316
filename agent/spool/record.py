"""What the spool keeps of a copy, as bytes that only this store can read and nobody can change unseen. Pure.

    row      msgpack of (subject, source, event id, traceparent, body)
    sent     msgpack of (generation, first signature in Unix ms, kids): what is known of a copy that was sent before
    sealed   nonce (12) || AES-256-GCM(key, nonce, row), AAD = "mesh-spool-v1", store id, table, id, stream, at_ms

The additional data binds a row to its place: moved to another row, stream, table or store, it does not open.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.errors import SpoolDamaged

KEY_BYTES = 32
NONCE_BYTES = 12
OVERHEAD_BYTES = 160  # of a row beside its body: names, nonce, tag, and what SQLite adds; about that

COPIES, SENT, REFUSED = "copies", "sent", "refused"  # the tables that hold sealed rows
CHECK = "check"  # the row that says whether a key is the store's

_VERSION = b"mesh-spool-v1"


class Copy(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A decided, masked copy of an event, not sealed: what `Outgoing` is made of again."""

    subject: str
    source: str
    event_id: str
    traceparent: str | None
    body: bytes


class Sent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a copy was sent so far: the last generation of its id, and what is known of the signatures under it."""

    generation: int = 0
    first_signed_ms: int = 0
    kids: tuple[str, ...] = ()


class Refused(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A copy that may not be sent any more, and why: a stable reason."""

    copy: Copy
    reason: str
    refused_ms: int


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where a row stands; its content opens nowhere else."""

    table: str
    id: int
    stream: str = ""
    at_ms: int = 0


class RefusedRow(NamedTuple):
    """A copy that may not be sent any more."""

    id: int
    stream: str
    at_ms: int
    refused: Refused


class Held(NamedTuple):
    """What the spool holds of one stream."""

    copies: int
    bytes: int
    oldest_ms: int


class Contents(NamedTuple):
    """What an opened spool holds."""

    streams: dict[str, Held]
    refused: int
    refused_bytes: int
    last_id: int


NOT_SENT = Sent()
_encode = msgspec.msgpack.Encoder().encode


class Cipher:
    """Seals and opens the rows of one store.

    Args:
        key: 32 bytes, in a file beside the store.
        store_id: Random, made with the store.
    """

    def __init__(self, key: bytes, store_id: bytes) -> None:
        self._aead = AESGCM(key)
        self._store_id = store_id

    def seal(self, place: Place, content: Copy | Sent | Refused | str, nonce: bytes) -> bytes:
        """The row as it is stored. *nonce* is random: a row that is written again gets another one."""
        return nonce + self._aead.encrypt(nonce, _encode(content), self._aad(place))

    def open(self, place: Place, sealed: bytes, kind: type[Any]) -> Any:
        """The content of the row at *place*.

        Raises:
            SpoolDamaged: It was changed, moved, or sealed with another key.
        """
        try:
            plain = self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._aad(place))
            return msgspec.msgpack.decode(plain, type=kind)
        except (InvalidTag, ValueError, TypeError, msgspec.MsgspecError):
            raise SpoolDamaged(
                f"row {place.id} of the spool's {place.table} is not what was written there",
                expected="rows as this agent wrote them, and the key file that belongs to them",
                next="`mesh-agent spool export FILE` saves what can be read; then move the spool away",
                table=place.table,
                row=place.id,
            ) from None

    def _aad(self, place: Place) -> bytes:
        names = (place.table, str(place.id), place.stream, str(place.at_ms))
        return b"\n".join([_VERSION, self._store_id, *(name.encode() for name in names)])
