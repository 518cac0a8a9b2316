"""`generalize` and `truncate-ip`: a value made coarser. What they cannot read is redacted, as by every action.

    generalize {date: year|month|day}    an RFC 3339 date or time, as far as that: 2026, 2026-11, 2026-11-22.
                                         Its own offset counts: nothing is converted to UTC.
    generalize {number: [10, 100]}       the bucket a number falls in, as a string: <10, 10..100 (10 itself is in it,
                                         100 is not), >=100
    generalize {geo: 2}                  degrees rounded down to so many decimals: a number stays one, and of the string
                                         "lat,lon" both are rounded: 52.5219 -> 52.52, -0.127 -> -0.13
    truncate-ip {v4: 24, v6: 48}         the network address, so many bits of it: 192.0.2.77 -> 192.0.2.0. An IPv4
                                         address inside an IPv6 one (::ffff:192.0.2.77) is truncated as IPv4; one that
                                         carries an IPv4 address in its upper half (6to4, Teredo, NAT64) is redacted.

Source: RFC 3339, section 5.6; RFC 5952 for the text of an IPv6 address; RFC 4291, 2.5.5.2 for the mapped ones; RFC 3056
(6to4), RFC 4380 (Teredo), RFC 6052 and RFC 8215 (NAT64).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from datetime import date
from decimal import ROUND_FLOOR, Decimal
from ipaddress import IPv6Address, IPv6Network
from itertools import pairwise
from typing import Any, Final

from mesh.policy.actions import Masker, redact
from mesh.policy.model_masks import With

V4_BITS: Final = 24  # the last octet goes: what is left is shared by 256 hosts
V6_BITS: Final = 48  # a site (RFC 6177): what a household or a company is given is gone
CARRIERS: Final = tuple(  # what stands behind these prefixes is an IPv4 address: a host, not a site
    map(IPv6Network, ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48", "::/96"))
)
MAX_DEGREES: Final = 180
MAX_LATITUDE: Final = 90

_DATE_RE = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:"
    r"[Tt ](?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]{1,18})?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9]))?"
)
_DATE_CHARS = {"year": 4, "month": 7, "day": 10}
_DEGREES = r"-?[0-9]{1,3}(?:\.[0-9]{1,20})?"
_POINT_RE = re.compile(rf"({_DEGREES}), ?({_DEGREES})")
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"  # no leading zero: some would read it as octal
_IPV4_RE = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}")
_IPV6_CHARS = 45  # with an IPv4 address at its end


def generalize(params: With) -> Masker:
    """The masker for `generalize` with *params*; of `date`, `number` and `geo` one is given."""
    if params.date is not None:
        return _date(_DATE_CHARS[params.date])
    if params.number is not None:
        return _number(params.number)
    if params.geo is not None:
        return _geo(params.geo)
    return redact


def _date(length: int) -> Masker:
    def mask(value: Any) -> Any:
        match = _DATE_RE.fullmatch(value) if type(value) is str else None
        if match is None:
            return redact(value)
        try:
            date.fromisoformat(match[1])
        except ValueError:  # the 30th of February
            return redact(value)
        return value[:length]

    return mask


def edge_text(edge: float) -> str:
    """An edge as buckets name it: 10, 0.5."""
    return str(int(edge)) if edge == int(edge) else repr(float(edge))


def buckets(edges: tuple[float, ...]) -> tuple[str, ...]:
    """The names of the buckets between *edges*, lowest first: one more than there are edges."""
    shown = [edge_text(edge) for edge in edges]
    between = (f"{low}..{high}" for low, high in pairwise(shown))
    return (f"<{shown[0]}", *between, f">={shown[-1]}")


def _number(edges: tuple[float, ...]) -> Masker:
    names = buckets(edges)

    def mask(value: Any) -> Any:
        kind = type(value)
        return names[bisect_right(edges, value)] if kind is int or kind is float else redact(value)

    return mask


def _geo(decimals: int) -> Masker:
    step = Decimal(1).scaleb(-decimals)

    def down(value: Any) -> Decimal:
        return Decimal(str(value)).quantize(step, ROUND_FLOOR) + 0  # + 0: there is no minus zero

    def mask(value: Any) -> Any:
        kind = type(value)
        if kind is int or kind is float:
            return kind(down(value)) if -MAX_DEGREES <= value <= MAX_DEGREES else None
        point = _POINT_RE.fullmatch(value) if kind is str else None
        if point is None or abs(Decimal(point[1])) > MAX_LATITUDE or abs(Decimal(point[2])) > MAX_DEGREES:
            return redact(value)
        return f"{down(point[1])},{down(point[2])}"

    return mask


def truncate_ip(params: With) -> Masker:
    """The masker for `truncate-ip` with *params*; bits that are not given are `V4_BITS` and `V6_BITS`."""
    low4 = 32 - (V4_BITS if params.v4 is None else params.v4)
    low6 = 128 - (V6_BITS if params.v6 is None else params.v6)

    def four(address: int) -> str:
        kept = address >> low4 << low4
        return f"{kept >> 24}.{kept >> 16 & 255}.{kept >> 8 & 255}.{kept & 255}"

    def mask(value: Any) -> Any:
        if type(value) is not str or len(value) > _IPV6_CHARS:
            return redact(value)
        octets = _IPV4_RE.fullmatch(value)
        if octets is not None:
            a, b, c, d = octets.groups()
            return four(int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d))
        try:
            address = IPv6Address(value)
        except ValueError:
            return redact(value)
        if address.scope_id is not None:  # a zone is the sender's own name for an interface
            return redact(value)
        if any(address in carrier for carrier in CARRIERS):
            return redact(value)
        inside = address.ipv4_mapped
        return f"::ffff:{four(int(inside))}" if inside is not None else str(IPv6Address(int(address) >> low6 << low6))

    return mask
