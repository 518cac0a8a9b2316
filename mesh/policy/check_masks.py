"""What one mask line must hold: which parameters go with which action, and which of them it needs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import isfinite
from typing import TypeAlias

from mesh.errors import MeshError
from mesh.policy.bind import Path as At
from mesh.policy.masktable import is_secret
from mesh.policy.model_masks import WITH_KEYS, MaskLine, With
from mesh.subjects import check_name

MAX_V4_BITS = 28  # 16 hosts are left; `truncate-ip` outranks a pseudonym, so it has to hide something
MAX_V6_BITS = 64  # one network: what comes after tells the hosts of it apart
MAX_GEO_DECIMALS = 3  # 110 m of latitude: a block of houses
WRITTEN = {"readers": "for"}  # parameters that documents call otherwise

Note: TypeAlias = Callable[[At, str, str], None]
"""`(where, what is wrong, the fix)`."""


def check_mask(line: MaskLine, at: At, note: Note) -> None:
    """Note what is wrong with *line*, which stands *at* a place of its document."""
    action, params = line.action, line.params
    default = With()
    given = {key for key in With.__struct_fields__ if getattr(params, key) != getattr(default, key)}
    stray = sorted(WRITTEN.get(key, key) for key in given - WITH_KEYS.get(action, frozenset()))
    if stray:
        note((*at, "with"), f"`{action}` takes no `{stray[0]}`", "remove it, or use another action")
    check = _CHECKS.get(action)
    if check is not None:
        check(line, at, note)


def _partial(line: MaskLine, at: At, note: Note) -> None:
    params = line.params
    if (params.style is not None) == (params.first is not None or params.last is not None):
        fix = "write `with: {style: email|phone|iban|pan}` or `with: {first: n, last: m}`"
        note(at, "`partial` needs a style, or first and last", fix)
    for number, tag in enumerate(line.tags):
        if is_secret(tag):
            fix = "use `drop`, `redact` or `pseudonym`: a part of a secret helps to guess the rest"
            note((*at, "tags", number), f"`partial` shows a part of what is tagged `{tag}`", fix)


def _pseudonym(line: MaskLine, at: At, note: Note) -> None:
    if line.params.domain is None:
        fix = "write `with: {domain: <name>}`: equal values get equal tokens inside one domain"
        note(at, "`pseudonym` needs a domain", fix)
    else:
        _name(line.params.domain, (*at, "with", "domain"), note)


def _encrypt(line: MaskLine, at: At, note: Note) -> None:
    params = line.params
    if params.mode is None:
        fix = "write `mode: deterministic` (equal values stay equal) or `mode: random` into `with`"
        note(at, "`encrypt` needs a mode", fix)
    if not params.readers:
        fix = "write `for: [<team>, ...]` into `with`; what nobody may open is better redacted"
        note(at, "`encrypt` needs the teams that may open it", fix)
    for number, team in enumerate(params.readers or ()):
        _name(team, (*at, "with", "for", number), note)
        if team in (params.readers or ())[:number]:
            note((*at, "with", "for", number), f"`{team}` is named twice", "name it once")


def _generalize(line: MaskLine, at: At, note: Note) -> None:
    params = line.params
    ways = [name for name in ("date", "number", "geo") if getattr(params, name) is not None]
    if len(ways) != 1:
        fix = "write `with: {date: year|month|day}`, `with: {number: [edges]}` or `with: {geo: decimals}`"
        note(at, f"`generalize` needs one of date, number and geo, and has {len(ways)}", fix)
    if params.geo is not None and params.geo > MAX_GEO_DECIMALS:
        fix = f"keep {MAX_GEO_DECIMALS} decimals or fewer, or use `clear` where the place may show"
        note((*at, "with", "geo"), f"`geo: {params.geo}` leaves a single place, and so masks nothing", fix)
    edges = params.number or ()
    if not all(isfinite(edge) for edge in edges) or any(low >= high for low, high in pairwise(edges)):
        fix = "write finite numbers, each larger than the one before: [10, 100, 1000]"
        note((*at, "with", "number"), "the edges of the buckets do not rise", fix)


def _truncate_ip(line: MaskLine, at: At, note: Note) -> None:
    for name, most in (("v4", MAX_V4_BITS), ("v6", MAX_V6_BITS)):
        bits = getattr(line.params, name)
        if bits is not None and bits > most:
            fix = f"keep {most} bits or fewer, or use `clear` where the address may show"
            note((*at, "with", name), f"`{name}: {bits}` leaves hardly more than one host, and so masks nothing", fix)


def _name(name: str, at: At, note: Note) -> None:
    try:
        check_name(name)
    except MeshError as error:
        note(at, str(error), error.next or error.expected)


_CHECKS: dict[str, Callable[[MaskLine, At, Note], None]] = {
    "partial": _partial,
    "pseudonym": _pseudonym,
    "encrypt": _encrypt,
    "generalize": _generalize,
    "truncate-ip": _truncate_ip,
}
