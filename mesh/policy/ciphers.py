"""`encrypt`: values that a few teams can open again. This file has both directions.

An encrypted value is a string of three parts,

    e<key id>.<path>.<ciphertext>          e5c1f.ZGF0YS5pYmFu.8ZtP...

the path being the classification's own text (never the event's) and the last two base64url without padding. The
plaintext is the JSON text of the scalar, so that a number comes back as one; null stays null, as in a pseudonym. What
is authenticated with it is the JSON array `["mesh-encrypt-1", tenant, type, path, mode]`: a value does not open when
moved to another tenant, type or path. Whoever opens it also checks that the path leads to where the value stands.

    deterministic   AES-SIV with the 64-byte key (RFC 5297). Equal values at one path of one type are equal: never for
                    fields of few values.
    random          AES-256-GCM with keys derived from that key; the ciphertext begins with the 96-bit nonce. The nonce
                    is a keyed hash of everything that goes in, of the event's source and id, and of how many values of
                    the event came before: as good as random to all without the key, and it can repeat only where the
                    whole ciphertext does. So no chance has to be handed in, and the same event gives the same bytes.

A key is named by who may read and by the mode (`cipher_name`): a changed `for` is another key. An agent masks with it
and a team of `for` opens with it; it is in no bundle.

Source: RFC 5297; NIST SP 800-38D, 8.2; RFC 8452, 9 for the derived nonce.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

from mesh.attributes import ATTRIBUTES_NEVER_MASKED
from mesh.base64url import b64u, unb64u
from mesh.errors import BadPattern
from mesh.policy.actions import REDACTED, Masker, MaskKeys, checked_key, key_id
from mesh.policy.model_masks import With
from mesh.policy.paths import ANY_ITEM, ANY_MEMBER, Path

CIPHER_KEY_BYTES: Final = 64  # AES-SIV takes two AES-256 keys in one
MAX_NAME_CHARS: Final = 100  # of a cipher's name that says its teams: a file name has 255
MAX_TYPES: Final = 1024  # whose authenticated text is kept, for each place

_NONCE_BYTES = 12
_LABEL = "mesh-encrypt-1"
_GCM = b"mesh-gcm-key"  # BLAKE2b personalisations: one key never answers two questions alike
_NONCE = b"mesh-gcm-nonce"
_TEXT = r"[A-Za-z0-9_-]"
_VALUE_RE = re.compile(rf"e([0-9a-f]{{4}})\.({_TEXT}{{2,2800}})\.({_TEXT}{{22,}})")
_SCALARS = frozenset({str, int, float, bool})
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

Box: TypeAlias = Callable[[bytes, bytes], bytes]  # (text, what is authenticated with it)


def cipher_name(params: With) -> str:
    """The name of the key for `encrypt` with *params*: `billing+support.deterministic`; fit for a file name.

    The same teams in any order give the same name. Where it would be long, a hash stands for the teams.
    """
    teams = "+".join(sorted(set(params.readers or ())))
    if len(teams) > MAX_NAME_CHARS:
        teams = "_" + blake2b(teams.encode(), digest_size=16).hexdigest()  # no team's name begins with `_`
    return f"{teams}.{params.mode}"


class Current:
    """The event that is being masked: what encryption binds to, beside the value.

    Attributes:
        type: The event's, logical.
        source, id: Which event it is.
        count: How many values of it were encrypted at random so far.
    """

    __slots__ = ("count", "id", "source", "type")

    def __init__(self) -> None:
        self.type = self.source = self.id = ""
        self.count = 0

    def begin(self, fields: Mapping[str, Any]) -> None:
        """Another event, whose attributes are *fields*."""
        self.type, self.source, self.id = fields.get("type", ""), fields.get("source", ""), fields.get("id", "")
        self.count = 0


def encrypt(params: With, keys: MaskKeys, *, tenant: str, current: Current) -> Callable[[str], Masker]:
    """What makes the masker of a path (the classification's text) for `encrypt` with *params*.

    Args:
        params: With `mode` and `for`.
        keys: They hold the key called `cipher_name(params)`.
        tenant: Whose event it is.
        current: Told of each event before its values.

    Raises:
        ConfigError: *keys* has no usable key. Nothing falls back to another mask.
    """
    key = checked_key(cipher_name(params), keys.cipher, CIPHER_KEY_BYTES, "cipher")
    mode = params.mode or ""
    lock = _siv(key) if mode == "deterministic" else _gcm(key, current)
    begins = f"e{key_id(key)}."
    return lambda path: _masker(lock, current, begins, (tenant, path, mode))


def _masker(lock: Box, current: Current, begins: str, where: tuple[str, str, str]) -> Masker:
    tenant, path, mode = where
    prefix = f"{begins}{b64u(path.encode())}."
    bound: dict[str, bytes] = {}  # by type

    def mask(value: Any) -> Any:
        if type(value) not in _SCALARS:
            return None
        try:
            text = _encode(value)
        except UnicodeEncodeError:  # a lone surrogate
            return REDACTED
        with_it = bound.get(current.type)
        if with_it is None:
            if len(bound) >= MAX_TYPES:
                bound.clear()
            with_it = bound[current.type] = _bound(tenant, current.type, path, mode)
        return prefix + b64u(lock(text, with_it))

    return mask


def decrypt_fields(fields: Mapping[str, Any], keys: Mapping[str, bytes], tenant: str) -> dict[str, Any]:
    """A copy of an event's fields in which every value is opened that our keys open; the rest stays as it is.

    Args:
        fields: Of an event as its reader has it; never changed.
        keys: 64-byte keys by `cipher_name`.
        tenant: Whose event it is.
    """
    opener = _Opener(keys, tenant, fields.get("type", ""))
    opened = {}
    for name, value in fields.items():
        opened[name] = value if name in ATTRIBUTES_NEVER_MASKED else opener.open(value, (name,))
    return opened


class _Opener:
    """Opens the values of one event."""

    def __init__(self, keys: Mapping[str, bytes], tenant: str, type_: str) -> None:
        self._tenant = tenant
        self._type = type_
        self._boxes: dict[str, list[tuple[str, Box]]] = {}  # by key id, which may be shared
        for name, key in keys.items():
            mode = name.rpartition(".")[2]
            self._boxes.setdefault(key_id(key), []).append((mode, _opening(mode, key)))

    def open(self, value: Any, place: tuple[object, ...]) -> Any:
        kind = type(value)
        if kind is dict:
            return {name: self.open(item, (*place, name)) for name, item in value.items()}
        if kind is list:
            below = (*place, ANY_ITEM)
            return [self.open(item, below) for item in value]
        if kind is str and value[:1] == "e":
            return self._scalar(value, place)
        return value

    def _scalar(self, value: str, place: tuple[object, ...]) -> Any:
        parts = _VALUE_RE.fullmatch(value)
        boxes = self._boxes.get(parts[1]) if parts else None
        if parts is None or boxes is None:
            return value
        path = _path(parts[2])
        if path is None or not leads_to(path, place):
            return value
        for mode, box in boxes:
            try:
                text = box(unb64u(parts[3]), _bound(self._tenant, self._type, path.text, mode))
                return _decode(text)
            except (InvalidTag, ValueError, msgspec.DecodeError):
                continue
        return value


def leads_to(path: Path, place: tuple[object, ...]) -> bool:
    """Whether *path* names the scalar at *place*: member names, and `ANY_ITEM` for a step into an array."""
    steps = path.steps
    if path.subtree or len(steps) > len(place) or (not path.deep and len(steps) != len(place)):
        return False
    return all(_fits(step, here) for step, here in zip(steps, place[len(place) - len(steps) :], strict=True))


def _fits(step: object, here: object) -> bool:
    return step is here or (here is not ANY_ITEM and (step is ANY_MEMBER or step == here))


# --- the two modes ---------------------------------------------------------------------------------------------------


def _siv(key: bytes) -> Box:
    siv = AESSIV(key)
    return lambda text, with_it: siv.encrypt(text, [with_it])


def _gcm(key: bytes, current: Current) -> Box:
    gcm = AESGCM(blake2b(key, digest_size=32, person=_GCM).digest())

    def lock(text: bytes, with_it: bytes) -> bytes:
        current.count += 1
        told = _encode((current.source, current.id, current.count))
        parts = b"%d.%d.%b%b%b" % (len(with_it), len(told), with_it, told, text)
        nonce = blake2b(parts, key=key, digest_size=_NONCE_BYTES, person=_NONCE).digest()
        return nonce + gcm.encrypt(nonce, text, with_it)

    return lock


def _opening(mode: str, key: bytes) -> Box:
    if mode == "deterministic":
        siv = AESSIV(key)
        return lambda sealed, with_it: siv.decrypt(sealed, [with_it])
    gcm = AESGCM(blake2b(key, digest_size=32, person=_GCM).digest())
    return lambda sealed, with_it: gcm.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], with_it)


def _bound(tenant: str, type_: str, path: str, mode: str) -> bytes:
    return _encode((_LABEL, tenant, type_, path, mode))


# --- text ------------------------------------------------------------------------------------------------------------


@lru_cache(1024)
def _path(text: str) -> Path | None:
    try:
        return Path.parse(unb64u(text).decode())
    except (ValueError, BadPattern):
        return None
