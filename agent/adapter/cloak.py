"""What keeps a state file silent: keys and contents are there as keyed digests, or sealed. Pure.

name     BLAKE2b-128(key, person "name", an item's key)
digest   BLAKE2b-128(key, person "digest", canonical JSON: members sorted, no spaces)
sealed   nonce (12) || AES-256-GCM(BLAKE2b-256(key, person "seal"), nonce, JSON), AAD = "mesh-adapter-v1", place
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.errors import ConfigError

KEY_BYTES = 32
NONCE_BYTES = 12
DIGEST_BYTES = 16  # 128 bits: two of a billion items are alike with a chance of 10^-21

_VERSION = b"mesh-adapter-v1\n"
_encode = msgspec.json.Encoder(order="deterministic").encode


class Cloak:
    """Digests, seals and opens for one state file.

    Args:
        key: 32 random bytes, in a file beside the state.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._aead = AESGCM(blake2b(key=key, person=b"seal", digest_size=KEY_BYTES).digest())

    def name(self, key: str) -> bytes:
        """What an item is called in the file."""
        return blake2b(key.encode(), key=self._key, person=b"name", digest_size=DIGEST_BYTES).digest()

    def digest(self, value: Any) -> bytes:
        """Equal for equal JSON values, whatever the order of their members.

        Raises:
            TypeError, ValueError, OverflowError, RecursionError: Not made of JSON values.
        """
        return blake2b(_encode(value), key=self._key, person=b"digest", digest_size=DIGEST_BYTES).digest()

    def seal(self, place: str, value: Any, nonce: bytes) -> bytes:
        """*value*, for *place* alone. *nonce* is random."""
        return nonce + self._aead.encrypt(nonce, _encode(value), _VERSION + place.encode())

    def open(self, place: str, sealed: bytes) -> Any:
        """What was sealed there.

        Raises:
            ConfigError: It was changed, moved, or sealed with another key.
        """
        try:
            plain = self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _VERSION + place.encode())
        except (InvalidTag, ValueError):
            raise ConfigError(
                "the adapter's state is not what was written there",
                expected="the state file as the adapter left it, and the key file that was made with it",
                next="restore both; without them, move them away: the adapter lists everything again as created",
            ) from None
        return msgspec.json.decode(plain)
