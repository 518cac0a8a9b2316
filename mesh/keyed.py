"""Keyed hashes of texts: what ids, slots and pseudonyms are made of."""

from __future__ import annotations

from hashlib import blake2b

from mesh import native
from mesh.base64url import b64u


@native.twin
class Keyed:
    """BLAKE2b (RFC 7693) under one key, which is hashed once.

    Args:
        key: At most 64 bytes.
        size: Bytes of a digest, 1 to 64.
        person: At most 16 bytes: hashes for different purposes under one key have nothing in common.

    Raises:
        ValueError: *key* or *person* is longer, or *size* is none of these.
    """

    __slots__ = ("_begun",)

    def __init__(self, key: bytes, size: int, person: bytes = b"") -> None:
        self._begun = blake2b(digest_size=size, key=key, person=person)

    def digest(self, text: str) -> bytes:
        """The hash of *text* in UTF-8. Raises UnicodeEncodeError for a lone surrogate."""
        state = self._begun.copy()
        state.update(text.encode())
        return state.digest()

    def token(self, *lines: str) -> str:
        """`digest` of *lines*, joined by newlines, in unpadded base64url."""
        return b64u(self.digest("\n".join(lines)))
