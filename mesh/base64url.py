"""Unpadded base64url, the one way in which bytes are written where they meet text."""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/!!!")  # `!` is in no base64 alphabet
_PADDING = (b"", b"!", b"==", b"=")  # by length modulo 4
_ENDS = ("", "", "AQgw", "AEIMQUYcgkosw048")  # last characters whose unused bits are zero, likewise


def b64u(raw: bytes) -> str:
    """Unpadded base64url (RFC 4648, section 5)."""
    return b2a_base64(raw, newline=False).translate(_TO_URL).rstrip(b"=").decode()


def b64u_all(raws: Iterable[bytes]) -> list[str]:
    """`b64u` of each."""
    joined = b".".join([b2a_base64(raw, newline=False) for raw in raws])
    return joined.translate(_TO_URL, b"=").decode().split(".")


def unb64u(text: str) -> bytes:
    """The inverse of `b64u`; raises ValueError for any spelling that `b64u` does not write."""
    rest = len(text) & 3
    raw = a2b_base64(text.encode().translate(_FROM_URL) + _PADDING[rest], strict_mode=True)
    if rest and text[-1] not in _ENDS[rest]:
        raise ValueError("not canonical base64url")
    return raw
