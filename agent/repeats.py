"""A request whose head we have read before: a client that keeps its connection writes the same head again and again.

A `Head` is what one accepted request began with. A later request of the same connection that begins with the very same
bytes, but for the digits of its `Content-Length`, reads the same and passes the same checks, so it is neither read nor
checked again. This is no second parser: bytes are equal or they are not, and what is not equal, or is not whole yet,
goes the usual way. What can change between two requests (the token in force, room, the agent's state) is no matter of
the head, and is asked each time.
"""

from __future__ import annotations

_END = b"\r\n\r\n"
_LENGTH = b"content-length"
# Fields that say more of the message than its length; with one of them a head is never kept.
_OTHERS = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"trailer", b"te"})
_MAX_DIGITS = 8  # a body of 100 MB, above any limit


class Head:
    """The bytes of a request's head around the digits of its length.

    Args:
        before: From the first byte up to the digits.
        after: From there to the empty line, and with it.
    """

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after

    @classmethod
    def of(cls, head: bytes) -> Head | None:
        """The head of a request that was read as well-formed HTTP/1.1; None where its length is not all that counts.

        Args:
            head: All of it, with the empty line at its end.
        """
        line, *fields = head.removesuffix(_END).split(b"\r\n")
        if not line.endswith(b" HTTP/1.1"):
            return None
        at, found = len(line) + 2, None
        for field in fields:
            name, _, value = field.lower().partition(b":")
            if name in _OTHERS or field[:1] in (b" ", b"\t"):
                return None
            if name == b"connection" and value.strip(b" \t") != b"keep-alive":
                return None
            if name == _LENGTH:
                digits = value.strip(b" \t")
                if found is not None or not digits.isdigit() or not value.endswith(digits):
                    return None
                found = at + len(field) - len(digits), at + len(field)
            at += len(field) + 2
        return None if found is None else cls(head[: found[0]], head[found[1] :])

    def body(self, data: bytes) -> bytes | None:
        """The body of *data*, if that is one whole request with this head and nothing else; else None."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r", start, start + _MAX_DIGITS + 1)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(after, end):
            return None
        body = data[end + len(after) :]
        return body if len(body) == int(digits) else None


class Boundary:
    """Where the bytes of a connection stand: between two requests, in a body whose end is known, or nobody knows."""

    __slots__ = ("_missing",)

    def __init__(self) -> None:
        self._missing: int | None = 0

    @property
    def here(self) -> bool:
        """Whether the next byte begins a request, and nothing of one has come yet."""
        return self._missing == 0

    def body(self, size: int) -> None:
        """*size* bytes came that completed no head."""
        missing = self._missing
        self._missing = missing - size if missing and size <= missing else None

    def request(self, data: bytes, length: int | None) -> bytes | None:
        """The head of the one request that *data* began, whose body has *length* bytes; None where that is not sure.

        Args:
            data: What came, and completed one head.
            length: None where the request does not say it.
        """
        end = data.find(_END) + len(_END)
        if self._missing != 0 or length is None or end < len(_END):
            self._missing = None
            return None
        missing = end + length - len(data)
        self._missing = missing if missing >= 0 else None
        return data[:end]

    def lost(self) -> None:
        """Something else came: several requests, or nonsense."""
        self._missing = None
