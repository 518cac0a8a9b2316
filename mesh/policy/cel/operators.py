"""CEL's operators, exact: no Python truth, a bool is no number, integers have 64 bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import ge, gt, le, lt
from typing import Any

from mesh.policy.cel.values import (
    INT_MAX,
    INT_MIN,
    NUMBERS,
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

_ORDERED = frozenset({"bool", "string", "timestamp", "duration"})
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}

# --- equality and order ----------------------------------------------------------------------------------------------


def _as_doubles(left: float, right: float) -> tuple[float, float]:
    """Both sides as CEL compares them: an int beside a double becomes a double, although that can lose digits."""
    try:
        if left.__class__ is float:
            return left, float(right)
        if right.__class__ is float:
            return float(left), right
    except OverflowError:  # an integer beyond any double: Python compares the two exactly
        pass
    return left, right


def equals(left: Any, right: Any, charge: Callable[[int], None]) -> bool:
    """CEL `==`: numbers by value whatever their type, containers element by element, other types never equal.

    Args:
        left: Any value.
        right: Any value.
        charge: Called with the number of elements that are about to be compared.
    """
    one, other = kind_of(left), kind_of(right)
    if one in NUMBERS and other in NUMBERS:
        left, right = _as_doubles(left, right)
        return bool(left == right)
    if one != other or one == "other":
        return False
    if one == "list":
        return _equal_lists(left, right, charge)
    if one == "map":
        return _equal_maps(left, right, charge)
    return bool(left == right)


def _equal_lists(left: list[Any], right: list[Any], charge: Callable[[int], None]) -> bool:
    if len(left) != len(right):
        return False
    charge(len(left))
    return all(equals(one, other, charge) for one, other in zip(left, right, strict=True))


def _equal_maps(left: dict[str, Any], right: dict[str, Any], charge: Callable[[int], None]) -> bool:
    if len(left) != len(right):
        return False
    charge(len(left))
    return all(key in right and equals(value, right[key], charge) for key, value in left.items())


def contained(item: Any, container: Any, charge: Callable[[int], None]) -> bool:
    """CEL `in`: an element of a list, or a key of a map. A key that no map can have is an error, a number is absent."""
    if container.__class__ is list:
        for element in container:
            charge(1)
            if equals(item, element, charge):
                return True
        return False
    if container.__class__ is dict:
        kind = kind_of(item)
        if kind == "string":
            return item in container
        if kind in {"bool", "int", "uint", "double"}:
            return False
    raise no_overload()


def compare(operator: str, left: Any, right: Any) -> bool:
    """CEL `<`, `<=`, `>`, `>=`: between numbers of any type, or two bools, strings, timestamps or durations."""
    one, other = kind_of(left), kind_of(right)
    if one in NUMBERS and other in NUMBERS:
        left, right = _as_doubles(left, right)
    elif one != other or one not in _ORDERED:
        raise no_overload()
    elif one in {"timestamp", "duration"}:
        left, right = left.ns, right.ns
    return _ORDERS[operator](left, right)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _integer(kind: str, number: int) -> int:
    low, high = (INT_MIN, INT_MAX) if kind == "int" else (0, UINT_MAX)
    if not low <= number <= high:
        raise CelError("overflow")
    return number if kind == "int" else UInt(number)


def _timestamp(ns: int) -> Timestamp:
    if not TIMESTAMP_MIN_NS <= ns <= TIMESTAMP_MAX_NS:
        raise CelError("overflow")
    return Timestamp(ns)


def _duration(ns: int) -> Duration:
    if not INT_MIN <= ns <= INT_MAX:
        raise CelError("overflow")
    return Duration(ns)


def add(left: Any, right: Any) -> object:
    """CEL `+`: numbers of one type, two strings or lists, a timestamp or duration and a duration."""
    match kind_of(left), kind_of(right):
        case ("int", "int") | ("uint", "uint") as kinds:
            return _integer(kinds[0], left + right)
        case ("double", "double") | ("string", "string") | ("list", "list"):
            return left + right
        case ("timestamp", "duration") | ("duration", "timestamp"):
            return _timestamp(left.ns + right.ns)
        case ("duration", "duration"):
            return _duration(left.ns + right.ns)
    raise no_overload()


def subtract(left: Any, right: Any) -> object:
    """CEL `-`: numbers of one type, a timestamp less a timestamp or a duration, two durations."""
    match kind_of(left), kind_of(right):
        case ("int", "int") | ("uint", "uint") as kinds:
            return _integer(kinds[0], left - right)
        case ("double", "double"):
            return left - right
        case ("timestamp", "timestamp") | ("duration", "duration"):
            return _duration(left.ns - right.ns)
        case ("timestamp", "duration"):
            return _timestamp(left.ns - right.ns)
    raise no_overload()


def multiply(left: Any, right: Any) -> object:
    """CEL `*`: numbers of one type."""
    match kind_of(left), kind_of(right):
        case ("int", "int") | ("uint", "uint") as kinds:
            return _integer(kinds[0], left * right)
        case ("double", "double"):
            return left * right
    raise no_overload()


def divide(left: Any, right: Any) -> object:
    """CEL `/`: integers round towards zero; doubles divide as IEEE 754 says, by zero too."""
    match kind_of(left), kind_of(right):
        case ("int", "int") | ("uint", "uint") as kinds:
            return _integer(kinds[0], _quotient(left, right))
        case ("double", "double"):
            return _divide_doubles(left, right)
    raise no_overload()


def modulo(left: Any, right: Any) -> object:
    """CEL `%`: integers only; the sign is the left side's."""
    match kind_of(left), kind_of(right):
        case ("int", "int") | ("uint", "uint") as kinds:
            quotient = _integer(kinds[0], _quotient(left, right))
            return _integer(kinds[0], left - quotient * right)
    raise no_overload()


def negate(value: Any) -> object:
    """CEL unary `-`: an int or a double."""
    match kind_of(value):
        case "int":
            return _integer("int", -value)
        case "double":
            return -value
    raise no_overload()


def _quotient(left: int, right: int) -> int:
    if right == 0:
        raise CelError("division-by-zero")
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _divide_doubles(left: float, right: float) -> float:
    if right != 0:
        return left / right
    if left == 0 or math.isnan(left):
        return math.nan
    return math.copysign(math.inf, left) * math.copysign(1.0, right)


ARITHMETIC: dict[str, Callable[[object, object], object]] = {
    "+": add,
    "-": subtract,
    "*": multiply,
    "/": divide,
    "%": modulo,
}


# --- access ----------------------------------------------------------------------------------------------------------


def select(operand: Any, field: str) -> object:
    """CEL `operand.field`."""
    if operand.__class__ is not dict:
        raise no_overload()
    try:
        return operand[field]
    except KeyError:
        raise CelError("no-such-key") from None


def has(operand: Any, field: str) -> bool:
    """CEL `has(operand.field)`: of a map; on anything else an error."""
    if operand.__class__ is not dict:
        raise no_overload()
    return field in operand


def index(operand: Any, position: Any) -> object:
    """CEL `operand[position]`: a map by key, a list by any number that is a whole one."""
    kind = kind_of(position)
    if operand.__class__ is dict:
        if kind == "string":
            return select(operand, position)
        raise CelError("no-such-key") if kind in NUMBERS or kind == "bool" else no_overload()
    if operand.__class__ is not list or kind not in NUMBERS:
        raise no_overload()
    if not 0 <= position < len(operand) or position != int(position):
        raise CelError("bad-index")
    return operand[int(position)]


def size(value: Any) -> int:
    """CEL `size`: code points of a string, elements of a list, entries of a map."""
    if value.__class__ in {str, list, dict}:
        return len(value)
    raise no_overload()
