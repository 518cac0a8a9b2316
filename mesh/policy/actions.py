"""What each mask action makes of one value. An action that cannot read a value redacts it: none passes it on.

Partial forms, by `style` (each keeps at most what is said here, and less where the value is short):

    email   first character, and the last label of the domain            anna@mail.example.com -> a***@***.com
    phone   the last two digits                                          +49 170 1234520       -> ***20
    iban    country and the last two characters                          DE89 3704 0044 0532 0130 00 -> DE***00
    pan     the last four digits                                         4111 1111 1111 1111   -> ***1111
    first/last  that many characters of each end, if two or more stay hidden

A pseudonym is `p<key id>_<base64url of a keyed hash>`: equal values of one domain give equal tokens, and without the
key nobody can test a guess. Numbers and booleans enter by their JSON text.

`generalize` and `truncate-ip` are in `generalize.py`, `encrypt` is in `ciphers.py`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from mesh import native
from mesh.base64url import b64u
from mesh.errors import ConfigError
from mesh.keyed import Keyed
from mesh.policy.model_masks import With

REDACTED: Final = "[REDACTED]"
DROPPED: Final[Any] = object()  # an action's answer that means: the member is not there
KEY_BYTES = 32  # of a domain key
MAX_DIGITS: Final = 32  # of a number of which the last digits are kept
MIN_HIDDEN = 2  # characters that `first` and `last` leave hidden

Masker: TypeAlias = Callable[[Any], Any]  # of one scalar (or, for redact and drop, anything)

_EMAIL_RE = re.compile(r"([^@\s])[^@\s]*@[^@\s]+\.([A-Za-z]{2,24})")
_IBAN_RE = re.compile(r"([A-Z]{2})[0-9]{2}[A-Z0-9]{9,28}([A-Z0-9]{2})")
_NO_SEPARATORS = str.maketrans("", "", " -./()")
_PHONE_DIGITS = (7, 15)  # E.164 has at most 15; below 7 the last two are too much of the whole
_PAN_DIGITS = (13, 19)  # ISO/IEC 7812
_PARTIAL_MARK = "***"


class MaskKeys(Protocol):
    """The keys an agent masks with."""

    def domain(self, name: str) -> bytes:
        """The 32-byte key of the pseudonym domain *name*. Raises KeyError or NoDomainKey where we hold none."""

    def cipher(self, name: str) -> bytes:
        """The 64-byte key of `encrypt`, by its `cipher_name`. Raises KeyError or NoDomainKey where we hold none."""


@native.twin
def redact(value: Any) -> Any:
    """A string becomes `[REDACTED]`, anything else null: the type does not change under a reader's schema."""
    return REDACTED if type(value) is str else None


@native.twin
def drop(_value: Any) -> Any:
    """The member is left out."""
    return DROPPED


def partial(params: With) -> Masker:
    """The masker for `partial` with *params*."""
    if params.style is not None:
        return _STYLES[params.style]
    return _ends(params.first or 0, params.last or 0)


def _email(value: Any) -> Any:
    match = _EMAIL_RE.fullmatch(value) if type(value) is str else None
    return redact(value) if match is None else f"{match[1]}{_PARTIAL_MARK}@{_PARTIAL_MARK}.{match[2]}"


def _iban(value: Any) -> Any:
    match = _IBAN_RE.fullmatch(value.translate(_NO_SEPARATORS)) if type(value) is str else None
    return redact(value) if match is None else f"{match[1]}{_PARTIAL_MARK}{match[2]}"


@native.twin
def last_digits(keep: int, least: int, most: int, sign: str) -> Masker:
    """Of a number of *least* to *most* digits, written with separators and perhaps a *sign*, the last *keep*.

    Raises:
        ValueError: Not 0 <= keep <= least <= most <= 32, or a sign that is more than one character of ASCII.
    """
    if not 0 <= keep <= least <= most <= MAX_DIGITS or len(sign.encode()) > 1:
        raise ValueError(f"0 <= keep <= least <= most <= {MAX_DIGITS}, and a sign of one character or none")

    def mask(value: Any) -> Any:
        if type(value) is str and value.isascii():
            digits = value.translate(_NO_SEPARATORS).removeprefix(sign)
            if least <= len(digits) <= most and (digits.isdigit() or not digits):
                return _PARTIAL_MARK + digits[len(digits) - keep :]
        return redact(value)

    return mask


_STYLES: dict[str, Masker] = {
    "email": _email,
    "phone": last_digits(2, *_PHONE_DIGITS, "+"),
    "iban": _iban,
    "pan": last_digits(4, *_PAN_DIGITS, ""),
}


def _ends(first: int, last: int) -> Masker:
    shortest = first + last + MIN_HIDDEN

    def mask(value: Any) -> Any:
        if type(value) is not str or len(value) < shortest:
            return redact(value)
        return value[:first] + _PARTIAL_MARK + (value[-last:] if last else "")

    return mask


def key_id(key: bytes) -> str:
    """Four hexadecimal characters that tell the tokens of one key from another's."""
    return blake2b(key, digest_size=2).hexdigest()


def pseudonym(params: With, keys: MaskKeys) -> Masker:
    """The masker for `pseudonym` with *params*.

    Raises:
        ConfigError: *keys* has no usable key for the domain. Nothing falls back to another mask.
    """
    domain = params.domain or ""
    key = checked_key(domain, keys.domain, KEY_BYTES, "pseudonym domain")
    prefix = f"p{key_id(key)}_"
    size = params.bits // 8
    token = _hmac_token(key, size) if params.algorithm == "hmac-sha256" else Keyed(key, size).token
    return tokens(prefix, token, _json_text)


@native.twin
def tokens(prefix: str, token: Callable[[str], str], text: Callable[[Any], str]) -> Masker:
    """A token for each scalar but null.

    Args:
        prefix: Of all of them.
        token: Makes one of a string; raises UnicodeEncodeError for a lone surrogate.
        text: The JSON text of a number or boolean.
    """

    def mask(value: Any) -> Any:
        kind = type(value)
        if kind is str:
            try:
                return prefix + token(value)
            except UnicodeEncodeError:  # a lone surrogate
                return REDACTED
        if kind is int or kind is float or kind is bool:
            return prefix + token(text(value))
        return None

    return mask


def _json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _hmac_token(key: bytes, size: int) -> Callable[[str], str]:
    begun = hmac.new(key, digestmod="sha256").copy  # what the key costs is paid once

    def token(text: str) -> str:
        digest = begun()
        digest.update(text.encode())
        return b64u(digest.digest()[:size])

    return token


def checked_key(name: str, find: Callable[[str], bytes], length: int, what: str) -> bytes:
    """The key *name*, as *find* has it.

    Raises:
        ConfigError: There is none, or it has another length than *length* bytes.
    """
    try:
        key = find(name)
    except KeyError:
        key = b""
    if len(key) != length:
        raise ConfigError(
            f"no usable key for the {what} `{name}`",
            expected=f"a key of {length} bytes",
            got=f"{len(key)} bytes",
            next="the control plane hands out these keys; nothing is published in this view until it is here",
            domain=name,
        )
    return key


if native.compiled is not None:
    native.compiled.maskers_with(DROPPED, REDACTED)
