"""Keyed hashes of texts: what ids, slots and pseudonyms are made of."""

from __future__ import annotations

from binascii import b2a_base64
from hashlib import blake2b

from mesh import native

_TO_URL = bytes.maketrans(b"+/", b"-_")


@native.twin
class Keyed:
    """BLAKE2b (RFC 7693) under one key, which is hashed once.

    Args:
        key: At most 64 bytes.
        size: Bytes of a digest, 1 to 64.
        person: At most 16 bytes: hashes for different purposes under one key have nothing in common.

    Raises:
        ValueError: One of them is longer.
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
        return b2a_base64(self.digest("\n".join(lines)), newline=False).translate(_TO_URL, b"=").decode()
