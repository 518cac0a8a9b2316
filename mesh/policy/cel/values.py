"""The values of conditions: their types as CEL names them, their ranges, and the one error."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType
from typing import Any

INT_MIN, INT_MAX, UINT_MAX = -(2**63), 2**63 - 1, 2**64 - 1
NANOS = 1_000_000_000
TIMESTAMP_MIN_NS = -62_135_596_800 * NANOS  # 0001-01-01T00:00:00Z
TIMESTAMP_MAX_NS = 253_402_300_800 * NANOS - 1  # 9999-12-31T23:59:59.999999999Z


class UInt(int):
    """A CEL uint: written `1u`, or an event's integer from 2^63 to 2^64 - 1."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Timestamp:
    """Nanoseconds since 1970 in UTC."""

    ns: int


@dataclass(frozen=True, slots=True)
class Duration:
    """Nanoseconds, of 64 bits as CEL has them: 292 years either way."""

    ns: int


class CelError(Exception):
    """A CEL error, which && and || can absorb. `reason` is a stable code; there is never a value in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


_KINDS: dict[type, str] = {
    bool: "bool",
    UInt: "uint",
    float: "double",
    str: "string",
    NoneType: "null",
    list: "list",
    dict: "map",
    Timestamp: "timestamp",
    Duration: "duration",
}
NUMBERS = frozenset({"int", "uint", "double", "integer"})


def kind_of(value: Any) -> str:
    """The CEL type of a value; `integer` for one beyond 64 bits, `other` for what JSON does not have."""
    if value.__class__ is int:
        if INT_MIN <= value <= INT_MAX:
            return "int"
        return "uint" if 0 <= value <= UINT_MAX else "integer"
    return _KINDS.get(value.__class__, "other")


def no_overload() -> CelError:
    """The error of an operator or function that does not take such operands."""
    return CelError("no-such-overload")
