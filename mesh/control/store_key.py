"""The key that JetStream's files are encrypted with, and how another one takes its place.

nats-server draws a data key for each stream, block of messages and consumer, and keeps it in a `.key` file, wrapped
with AES-256-GCM under HMAC-SHA256(store key, account, name). Another store key means wrapping these anew; what was
stored is not encrypted again, so whoever has both the old key and an old copy of the files can read what was there.

We wrap them ourselves, with the server stopped. Its own way, `prev_key`, loses every consumer (measured on 2.15.1, with
both ciphers: "Error adding consumer: message authentication failed"), and with them the positions of all subscribers.
The first 16 bytes of a `.key` file stay as they are: they are also the nonce of the stream cipher of the block, and
with other ones the server takes the block for corrupt and drops its messages (measured).

    store.key        in use
    store.next.key   there while a rotation is under way; the next start finishes what a crash cut short
"""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.control.datadir import hex_key, write_private
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

CIPHER = "aes"  # AES-256-GCM; the other one, XChaCha20-Poly1305, is slower where the processor has AES
VARIABLE = "MESH_NATS_STORE_KEY"  # of the server's environment: neither its arguments nor its configuration has the key
NONCE_BYTES = 16
_DATA_KEY_BYTES = 32


class StoreKey:
    """The key of one store.

    Args:
        file: `store.key`; apart from the store, or a copy of the store is a copy of the key.
        store: The server's `store_dir`.
    """

    def __init__(self, file: Path, store: Path) -> None:
        self._file = file
        self._next = file.with_name("store.next.key")
        self._store = store

    @property
    def exists(self) -> bool:
        """Whether the store is encrypted, as far as we know."""
        return self._file.exists()

    def environment(self) -> dict[str, str]:
        """What the server needs to read its store. The key is made at first use; a rotation cut short is finished.

        The server must not run.

        Raises:
            ConfigError: The file holds no key, or not the key of this store.
        """
        if self._next.exists():
            self._finish()
        key = hex_key(self._file).hex()
        return {VARIABLE: f'"{key}"'}  # quoted: unquoted, a key of digits alone is a number, which the server prints

    def rotate(self) -> None:
        """Make another key and wrap every data key with it. The server must not run.

        Raises:
            ConfigError: A data key does not open with the present key; nothing was changed.
        """
        if not self._next.exists():
            list(self._rewrapped(_text(self._file), secrets.token_hex(_DATA_KEY_BYTES)))
            write_private(self._next, secrets.token_hex(_DATA_KEY_BYTES).encode() + b"\n")
        self._finish()

    def _finish(self) -> None:
        for path, content in list(self._rewrapped(_text(self._file), _text(self._next))):
            write_private(path, content)
        self._next.replace(self._file)

    def _rewrapped(self, old: str, new: str) -> Iterator[tuple[Path, bytes]]:
        """Every `.key` file that *old* opens, with its content under *new*; those that *new* opens are done."""
        for path in sorted(self._store.rglob("*.key")):
            if any(part.startswith("__") for part in path.relative_to(self._store).parts):
                continue  # a purge that a crash cut short: the server deletes the directory
            content, name = path.read_bytes(), _WrappedFor.of(path.relative_to(self._store))
            data_key = name.open(old, content) if name else None
            if name and data_key is not None:
                yield path, name.seal(new, data_key, content[:NONCE_BYTES])
            elif not name or name.open(new, content) is None:
                raise ConfigError(
                    f"{path.name} of {path.parent.name} in the server's store does not open with {self._file.name}",
                    expected="the key that the store was encrypted with",
                    next="restore the store and its key from one backup; nothing was changed",
                )


class _WrappedFor(NamedTuple):
    """Whose data key: it is bound to the account and to a name inside it."""

    account: str
    name: str

    @classmethod
    def of(cls, path: Path) -> _WrappedFor | None:
        """By its place below the store; None for a place that the server has not."""
        match path.parts:
            case ("jetstream", account, "streams", stream, "meta.key"):
                return cls(account, stream)
            case ("jetstream", account, "streams", stream, "msgs", block):
                return cls(account, f"{stream}:{block.removesuffix('.key')}")
            case ("jetstream", account, "streams", stream, "obs", consumer, "meta.key"):
                return cls(account, f"{stream}.{consumer}")
        return None

    def open(self, key: str, content: bytes) -> bytes | None:
        """The data key in *content*; None where *key* does not open it."""
        try:
            return self._cipher(key).decrypt(content[:NONCE_BYTES], content[NONCE_BYTES:], None)
        except InvalidTag:
            return None

    def seal(self, key: str, data_key: bytes, nonce: bytes) -> bytes:
        """What a `.key` file has to hold. The nonce may come again: under each key it wraps this data key alone."""
        return nonce + self._cipher(key).encrypt(nonce, data_key, None)

    def _cipher(self, key: str) -> AESGCM:
        return AESGCM(hmac.digest(key.encode(), f"{self.account}{self.name}".encode(), sha256))


def _text(file: Path) -> str:
    """A key as the server has it: its hexadecimal characters, not the bytes they stand for."""
    return hex_key(file).hex()
