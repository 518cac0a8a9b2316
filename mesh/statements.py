"""The exact bytes that identify and sign an event."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from mesh.base64url import b64u, unb64u
from mesh.keyed import Keyed
from mesh.merkle import HASH_BYTES

STATEMENT = "mesh-event-v1\n"
ROOT_TYPE = "application/vnd.mesh.root.v1"
DEDUPE_KEY_BYTES = (16, 64)  # below, ids could be guessed; above, BLAKE2b has no room
MAX_BATCH = 256  # events under one signature; above 32 nothing is gained, and the proof grows
MAX_HEADER_BYTES = 1024  # a header of a full batch has 522
SALT_BYTES = 16
FIRST_GENERATION = "0"  # of a message id
SIGNATURE_BYTES = 64
_PARTS = 8

_ID = r"[A-Za-z0-9_-]{21}[AQgw]"  # 16 bytes in canonical base64url: the last character ends in four bits of zero
MESSAGE_ID = re.compile(_ID)
MESSAGE_IDS = re.compile(rf"(?:{_ID}\n)++")  # one a line
_BATCH_PARTS = re.compile(rf"{_ID}\.(0|[1-9][0-9]{{0,14}})\.[A-Za-z0-9_-]{{85}}[AQgw]")
NUMBERS = {str(number): number for number in range(MAX_BATCH + 1)}  # the one spelling of each index and size
_MAX_PROOF_BYTES = (MAX_BATCH - 1).bit_length() * HASH_BYTES
_LOWER_CHARS = 128  # of a proof: its first three hashes, without a bit over


class MessageIds:
    """`message_id` under one key, which is hashed once instead of for every event.

    Attributes:
        keyed: What they are hashed with.
        token: `of`, with the generation as text.
    """

    __slots__ = ("keyed", "token")

    def __init__(self, dedupe_key: bytes) -> None:
        least, most = DEDUPE_KEY_BYTES
        if not least <= len(dedupe_key) <= most:
            raise ValueError(f"a dedupe key has {least} to {most} bytes, not {len(dedupe_key)}")
        self.keyed = Keyed(dedupe_key, 16)
        self.token = self.keyed.token

    def of(self, source: str, event_id: str, subject: str, generation: int) -> str:
        """See `message_id`."""
        return self.token(source, event_id, subject, str(generation))


def message_id(dedupe_key: bytes, source: str, event_id: str, subject: str, generation: int = 0) -> str:
    """The `Nats-Msg-Id` of one copy: the same event again gives the same id, and nobody without the key can guess it.

    Args:
        dedupe_key: The source's own secret, 16 to 64 bytes.
        source: CloudEvents `source`.
        event_id: CloudEvents `id`.
        subject: Physical subject; it holds the view, so each copy has its own id.
        generation: Raised when a resend may no longer count on the stream's duplicate window.

    Returns:
        22 characters of base64url (keyed BLAKE2b, 128 bits).
    """
    return MessageIds(dedupe_key).of(source, event_id, subject, generation)


def statement(subject: str, msg_id: str, salt: str, body: bytes) -> bytes:
    """The bytes a signature speaks for. Unambiguous, since no part but the last may hold a newline."""
    return f"{STATEMENT}{subject}\n{msg_id}\n{salt}\n".encode() + body


def pae(payload_type: str, body: bytes) -> bytes:
    """DSSE 1.0.2, pre-authentication encoding: the type is signed with the body, so none passes for another."""
    return b"DSSEv1 %d %b %d %b" % (len(payload_type.encode()), payload_type.encode(), len(body), body)


def verify_ed25519(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether *signature* is that key's over *message*. libsodium refuses S + L and small-order keys."""
    if len(signature) != SIGNATURE_BYTES:
        return False  # else a longer one would pass for the beginning of the message
    try:
        crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        return False
    return True


def root_signed(spiffe_id: str, kid: str, signed_ms: int, size: int, root: bytes) -> bytes:
    """What the Ed25519 signature of a batch is over: the PAE of its root statement."""
    said = f"mesh-root-v1\n{spiffe_id}\n{kid}\n{signed_ms}\n{size}\n{b64u(root)}\n".encode()
    return pae(ROOT_TYPE, said)


class Header(msgspec.Struct, frozen=True, gc=False):
    """The parts of a `Mesh-Signature`. `signature` stays text: it is only decoded where a root is new."""

    kid: str
    signed_ms: int
    salt: str
    position: int
    size: int
    proof: bytes
    signature: str

    @classmethod
    def parse(cls, text: str) -> Header:
        """Read the one spelling of a header; each value has no other.

        Raises:
            ValueError: Too long, outside the grammar (ASCII digits without leading zeros, canonical base64url), or
                outside a limit.
        """
        if len(text) > MAX_HEADER_BYTES:
            raise ValueError(f"Mesh-Signature of {len(text)} bytes, limit {MAX_HEADER_BYTES}")
        parts = text.split(".")
        if len(parts) != _PARTS or parts[0] != "1":
            raise ValueError("Mesh-Signature is not of version 1")
        _, kid, signed, salt, index, count, proof_text, signature = parts
        signed_ms = signed_at(kid, signed, signature)
        position, size = NUMBERS.get(index), NUMBERS.get(count)
        if position is None or size is None or position >= size:
            raise ValueError(f"no leaf of a batch of at most {MAX_BATCH}")
        proof = unb64u(proof_text[:_LOWER_CHARS]) + _upper_proof(proof_text[_LOWER_CHARS:])
        if MESSAGE_ID.fullmatch(salt) is None or len(proof) % HASH_BYTES or len(proof) > _MAX_PROOF_BYTES:
            raise ValueError("salt or proof outside its grammar")
        return cls(kid, signed_ms, salt, position, size, proof, signature)


@lru_cache(4096)
def signed_at(kid: str, signed: str, signature: str) -> int:
    """The signing time, after checking what all headers of a batch have in common; hence the cache."""
    match = _BATCH_PARTS.fullmatch(f"{kid}.{signed}.{signature}")
    if match is None:
        raise ValueError("key id, time or signature outside its grammar")
    return int(match[1])


@lru_cache(4096)
def _upper_proof(text: str) -> bytes:
    """What a proof has above `_LOWER_CHARS`: neighbours share it, eight of them; hence the cache."""
    return unb64u(text)
