"""A signing scheme as settings describe it, for providers that have no file here: `[webhooks.<source>.scheme]`. Pure.

An example is on the page of the agent, under Webhooks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from agent.mistakes import table, text, wrong
from agent.webhooks.checks import BASE64, HEX

DIGESTS = ("sha256", "sha512")  # no sha1: who is new here need not begin with it
ENCODINGS = (HEX, BASE64)
UNITS = ("s", "ms", "rfc3339")
BODY, TIMESTAMP, ID, METHOD, URL = "{body}", "{timestamp}", "{id}", "{method}", "{url}"
PLACES = ("header", "json")
FIXED = "text"  # a type may also be the same for all deliveries
_AFTER = {"header": "name of a field", "json": "dotted path", FIXED: "name"}
PIECE = re.compile(r"(\{[^{}]*\})")

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_NAMED = (BODY, TIMESTAMP, ID, METHOD, URL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How a generic source signs, and where the attributes of its events stand.

    Attributes:
        signature_header: Holds the digest.
        id: `header:<name>` or `json:<dotted path>`: what names the delivery and stays through retries.
        type: The same, or `text:<name>`: the event's name, which becomes `<source>.<name>.v1`.
        digest: `sha256` or `sha512`, of the HMAC.
        encoding: `hex` or `base64`, of the digest.
        prefix: Before the digest.
        signed: What is signed: text with `{body}`, and `{timestamp}`, `{id}`, `{method}`, `{url}` where they belong.
            Something stands between each two of them, or characters of one could be moved into the other under the
            same signature; only `{timestamp}{body}` needs nothing, for no body begins with a digit.
        timestamp_header: Holds what stands for `{timestamp}`.
        timestamp_unit: `s`, `ms` or `rfc3339`.
        time: Where the event's time stands, in the same unit as the timestamp or RFC 3339; the timestamp otherwise.
        subject: Where its subject stands.
    """

    signature_header: str
    id: str
    type: str
    digest: str = "sha256"
    encoding: str = HEX
    prefix: str = ""
    signed: str = BODY
    timestamp_header: str = ""
    timestamp_unit: str = "s"
    time: str = ""
    subject: str = ""


_NAMES = tuple(field.name for field in fields(Scheme))


def read_scheme(value: Any, where: str) -> Scheme:
    """The scheme of a generic source.

    Raises:
        ConfigError: A name or value that cannot be, or a scheme that would leave the body or a timestamp unsigned.
    """
    options = {name: text(given, name, where) for name, given in table(value or {}, where, _NAMES).items()}
    for name in ("signature_header", "id", "type"):
        if not options.get(name):
            raise wrong(name, where, "given", "missing")
    scheme = Scheme(**options)
    for name, allowed in (("digest", DIGESTS), ("encoding", ENCODINGS), ("timestamp_unit", UNITS)):
        if getattr(scheme, name) not in allowed:
            raise wrong(name, where, f"one of {', '.join(allowed)}", "another")
    for name in ("signature_header", "timestamp_header"):
        _check_header(getattr(scheme, name), name, where)
    for name in ("id", "type", "time", "subject"):
        _check_place(getattr(scheme, name), name, where)
    _check_signed(scheme, where)
    return scheme


def place(text_: str) -> tuple[str, str]:
    """`header:X-Id` as its two parts."""
    kind, _, rest = text_.partition(":")
    return kind, rest


def _check_header(name: str, setting: str, where: str) -> None:
    if name and not _HEADER.fullmatch(name):
        raise wrong(setting, where, "the name of a header field", "another text")


def _check_place(value: str, setting: str, where: str) -> None:
    if not value:
        return
    kind, rest = place(value)
    kinds = (*PLACES, FIXED) if setting == "type" else PLACES
    if kind not in kinds or not rest:
        raise wrong(setting, where, " or ".join(f"{kind}:<{_AFTER[kind]}>" for kind in kinds), "another text")
    if kind == "header":
        _check_header(rest, setting, where)


def _check_signed(scheme: Scheme, where: str) -> None:
    pieces = PIECE.findall(scheme.signed)
    strange = [piece for piece in pieces if piece not in _NAMED]
    if strange or pieces.count(BODY) != 1:
        raise wrong("signed", where, f"a text with {BODY} once, and any of {', '.join(_NAMED[1:])}", "another text")
    if "" in PIECE.split(scheme.signed.replace(TIMESTAMP + BODY, BODY))[2:-1:2]:  # the texts between two names
        raise wrong("signed", where, f"a text with something between any two names but {TIMESTAMP}{BODY}", "none")
    if (TIMESTAMP in pieces) != bool(scheme.timestamp_header):
        both = f"named where `signed` has {TIMESTAMP}, and only there: a time that is not signed proves nothing"
        raise wrong("timestamp_header", where, both, "otherwise")
    if ID in pieces and place(scheme.id)[0] != "header":
        raise wrong("id", where, f"header:<name> where {ID} is signed: nothing is parsed before that", "in the body")
