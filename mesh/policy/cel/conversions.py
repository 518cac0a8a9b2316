"""CEL's conversions: `int`, `uint`, `double`, `string`, `bool`, `timestamp`, `duration`. Strings are read strictly."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from mesh.policy.cel.values import (
    INT_MAX,
    INT_MIN,
    NANOS,
    TIMESTAMP_MAX_NS,
    TIMESTAMP_MIN_NS,
    UINT_MAX,
    CelError,
    Duration,
    Timestamp,
    UInt,
    kind_of,
    no_overload,
)

_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_DOUBLE = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf|infinity|nan)", re.IGNORECASE)
_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}):([0-9]{2})(?:\.([0-9]+))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_DURATION = re.compile(r"([+-]?)(0|(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:h|ms|m|s|us|ns))+)")
_PART = re.compile(r"([0-9]*)\.?([0-9]*)(h|ms|m|s|us|ns)")
_UNITS_NS = {"h": 3600 * NANOS, "m": 60 * NANOS, "s": NANOS, "ms": 1_000_000, "us": 1000, "ns": 1}
_MAX_TEXT = 128  # no number, time or duration is longer; keeps int() and float() of an event's string cheap
_BOOLS = dict.fromkeys(("1", "t", "true", "TRUE", "True"), True) | dict.fromkeys(
    ("0", "f", "false", "FALSE", "False"), False
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_SECOND, _MAX_HOUR, _MAX_MINUTE = 60, 23, 59  # RFC 3339 5.6: 60 is a leap second
_FIXED_FROM, _FIXED_BELOW = -4, 6  # string(double): exponents that are written out, as %g and Go's 'g' do


def _bad() -> CelError:
    return CelError("bad-conversion")


def _matched(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.fullmatch(text) if len(text) <= _MAX_TEXT else None
    if match is None:
        raise _bad()
    return match


def _whole(value: float, low: float, high: float) -> int:
    if not low < value < high:  # open at both ends, as cel-cpp has it; NaN is outside
        raise CelError("overflow")
    return int(value)


def to_int(value: Any) -> int:
    """`int()` of an int, uint, double (towards zero), bool, decimal string or timestamp (seconds)."""
    match value:
        case bool():
            return int(value)
        case int():
            number = int(value)
        case float():
            number = _whole(value, float(INT_MIN), float(INT_MAX))
        case str():
            number = int(_matched(_INTEGER, value).group())
        case Timestamp():
            number = value.ns // NANOS
        case _:
            raise no_overload()
    if not INT_MIN <= number <= INT_MAX:
        raise CelError("overflow")
    return number


def to_uint(value: Any) -> UInt:
    """`uint()` of an int, uint, double (towards zero) or decimal string without a minus."""
    match value:
        case bool():
            raise no_overload()
        case int():
            number = int(value)
        case float():
            number = _whole(value, -1.0, float(UINT_MAX)) if value >= 0 else -1
        case str():
            number = int(_matched(_INTEGER, value.replace("-", "x")).group())
        case _:
            raise no_overload()
    if not 0 <= number <= UINT_MAX:
        raise CelError("overflow")
    return UInt(number)


def to_double(value: Any) -> float:
    """`double()` of a number or a string that spells one."""
    match kind_of(value):
        case "int" | "uint" | "double":
            return float(value)
        case "string":
            return float(_matched(_DOUBLE, value).group())
    raise no_overload()


def to_bool(value: Any) -> bool:
    """`bool()` of a bool or one of the ten spellings."""
    if value.__class__ is bool:
        return value
    if value.__class__ is not str:
        raise no_overload()
    if value not in _BOOLS:
        raise _bad()
    return _BOOLS[value]


def to_string(value: Any) -> str:
    """`string()` of a string, bool, number, timestamp or duration."""
    match kind_of(value):
        case "string":
            return str(value)
        case "bool":
            return "true" if value else "false"
        case "int" | "uint":
            return str(int(value))
        case "double":
            return _double_text(value)
        case "timestamp":
            seconds, ns = divmod(value.ns, NANOS)
            return f"{(_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]}{_fraction(ns)}Z"
        case "duration":
            sign = "-" if value.ns < 0 else ""
            seconds, ns = divmod(abs(value.ns), NANOS)
            return f"{sign}{seconds}{_fraction(ns)}s"
    raise no_overload()


def _fraction(ns: int) -> str:
    """Nanoseconds as google.protobuf's JSON writes them: none, 3, 6 or 9 digits."""
    digits = f"{ns:09d}"
    while digits.endswith("000"):
        digits = digits[:-3]
    return f".{digits}" if digits else ""


def _double_text(value: float) -> str:
    if not math.isfinite(value):
        return repr(value)
    mantissa, exponent = f"{value:.16e}".split("e")
    for precision in range(17):
        text = f"{value:.{precision}e}"
        if float(text) == value:  # the fewest digits that read back as the same double
            mantissa, exponent = text.split("e")
            break
    power = int(exponent)
    if _FIXED_FROM <= power < _FIXED_BELOW:
        return f"{value:.{max(len(mantissa.lstrip('-').replace('.', '')) - 1 - power, 0)}f}"
    return f"{mantissa}e{power:+03d}"


def to_timestamp(value: Any) -> Timestamp:
    """`timestamp()` of an RFC 3339 string, seconds since 1970, or a timestamp."""
    if value.__class__ is Timestamp:
        return value
    match kind_of(value):
        case "int":
            ns = value * NANOS
        case "string":
            ns = _rfc3339_ns(value)
        case _:
            raise no_overload()
    if not TIMESTAMP_MIN_NS <= ns <= TIMESTAMP_MAX_NS:
        raise CelError("overflow")
    return Timestamp(ns)


def _rfc3339_ns(text: str) -> int:
    date, minute, second, fraction, sign, hours, minutes = _matched(_TIMESTAMP, text).groups()
    if int(second) > _MAX_SECOND or (hours and (int(hours) > _MAX_HOUR or int(minutes) > _MAX_MINUTE)):
        raise _bad()
    try:
        start = datetime.fromisoformat(f"{date}T{minute}:00+00:00")
    except ValueError:
        raise _bad() from None
    offset_s = (int(hours) * 3600 + int(minutes) * 60) * (-1 if sign == "-" else 1) if hours else 0
    elapsed = start - _EPOCH
    seconds = elapsed.days * 86_400 + elapsed.seconds + int(second) - offset_s
    return seconds * NANOS + int((fraction or "0")[:9].ljust(9, "0"))


def to_duration(value: Any) -> Duration:
    """`duration()` of a string such as `1h30m` or `-1.5s`, or of a duration."""
    if value.__class__ is Duration:
        return value
    if value.__class__ is not str:
        raise no_overload()
    sign, parts = _matched(_DURATION, value).groups()
    ns = 0
    for whole, fraction, unit in _PART.findall(parts):
        ns += int(whole or "0") * _UNITS_NS[unit] + int(fraction or "0") * _UNITS_NS[unit] // 10 ** len(fraction)
    ns = -ns if sign == "-" else ns
    if not INT_MIN <= ns <= INT_MAX:  # 292 years, as cel-spec and cel-go have it; cel-cpp reads longer ones
        raise CelError("overflow")
    return Duration(ns)


CONVERSIONS: dict[str, Callable[[object], object]] = {
    "int": to_int,
    "uint": to_uint,
    "double": to_double,
    "bool": to_bool,
    "string": to_string,
    "timestamp": to_timestamp,
    "duration": to_duration,
    "dyn": lambda value: value,
}
