"""Events that came together, verified together. Pure.

The events of a sealed batch come one behind the other and share key, signing time, signature and Merkle tree. What they
share is looked at once here, and their tree is climbed once for all of them, at one hash an event.

Only a plain yes is said here. Whatever is not plain, and every no, is left to `Verifier.verify`, which knows the step
that failed and what to do; `tests/unit/test_together.py` holds the two against each other.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeAlias

from mesh import native
from mesh.base64url import b64u_all, unb64u
from mesh.errors import InputError
from mesh.event import decode
from mesh.merkle import span
from mesh.signing import CLOCK_AHEAD_MS, MAX_BODY_BYTES, SIGNED_AGE_MS, Verified, place_of
from mesh.statements import MAX_BATCH, MAX_HEADER_BYTES, MESSAGE_ID, NUMBERS, STATEMENT, signed_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.identity import Certificate
    from mesh.signing import Received, Verifier
    from mesh.subjects import Physical

_PARTS = 8
_ID_AND_SALT = re.compile(rf"{MESSAGE_ID.pattern}\.{MESSAGE_ID.pattern}").fullmatch

Shared: TypeAlias = tuple[str, str, int, str]
"""What the headers of a batch have in common: key id, signing time as it is written, size of the tree, signature."""

Run: TypeAlias = tuple[int, int, Shared, list[str], list[str]]
"""Neighbours in a tree: where the first is among the events, its index in the tree, and each one's salt and proof."""

Content: TypeAlias = "tuple[Received, dict[str, Any], Physical]"
"""An event, what its body says, and the parts of its subject."""


@native.twin
def neighbours(events: list[Received]) -> list[Run]:
    """Events that stand one behind the other here and in the tree of a batch, as their headers have it.

    Those between the runs are left to `Verifier.verify`. What is looked at is V1 and V6, of all but the subject, what
    the body says, and what the headers of a batch share.
    """
    runs: list[Run] = []
    last: tuple[Shared, int] | None = None
    for at, received in enumerate(events):
        header, msg_ids, body = received.signature, received.msg_ids, received.body
        before, last = last, None
        if type(header) is not str or not header.isascii() or len(header) > MAX_HEADER_BYTES:
            continue
        if type(msg_ids) is not tuple or len(msg_ids) != 1 or type(body) is not bytes or len(body) > MAX_BODY_BYTES:
            continue
        parts, msg_id = header.split("."), msg_ids[0]
        if len(parts) != _PARTS or type(msg_id) is not str:
            continue
        version, kid, signed, salt, index, count, proof, signature = parts
        place, size = NUMBERS.get(index, MAX_BATCH), NUMBERS.get(count, 0)
        if version != "1" or place >= size or _ID_AND_SALT(f"{msg_id}.{salt}") is None:
            continue
        shared = kid, signed, size, signature
        if before != (shared, place - 1):
            runs.append((at, place, shared, [], []))
        last = shared, place
        runs[-1][3].append(salt)
        runs[-1][4].append(proof)
    return runs


@native.twin
def agreed(
    contents: list[Content | None], start: int, stored: tuple[int, int], tenant: str | None, said: set[tuple[str, str]]
) -> int:
    """Up to which event, from the one at *start* on, each was stored in time and its body says what its subject does.

    Args:
        contents: None for an event that cannot be read.
        start: Where to begin.
        stored: From when on the stream may have taken them, and until when (V7, V8). Unix milliseconds.
        tenant: See `Verifier`.
        said: Gets type and source of each.

    Returns:
        The index of the first that is not so, which is left to `Verifier.verify`; behind the last where all are.
    """
    first_ms, last_ms = stored
    for at in range(start, len(contents)):
        content = contents[at]
        if content is None:
            return at
        received, fields, place = content
        get, type_ = fields.get, place.type
        source, id_ = get("source"), get("id")
        if (
            not first_ms <= received.stream_ms <= last_ms
            or get("type") != type_
            or get("view") != place.view
            or get("specversion") != "1.0"
            or (tenant is not None and get("tenant") != tenant)
            or type(source) is not str
            or type(id_) is not str
            or not source
            or not id_
        ):
            return at
        said.add((type_, source))
    return len(contents)


@native.twin
def common_root(events: list[Received], salts: list[str], proofs: list[str], place: int, size: int) -> bytes | None:
    """The root that neighbours in a tree lead to (V9); None where one has another proof than the others lead to.

    Args:
        events: At least one. Each has a message id.
        salts: Of each.
        proofs: Of each, as its header has it.
        place: Index of the first in the tree.
        size: Of the tree, which has all of them.
    """
    if not (events and 0 <= place <= size - len(events) and size <= MAX_BATCH and len(proofs) == len(events)):
        raise ValueError("a salt and a proof for each of the neighbours, which are in the tree")
    leaves = [
        sha256(f"\0{STATEMENT}{event.subject}\n{event.msg_ids[0]}\n{salt}\n".encode() + event.body).digest()
        for event, salt in zip(events, salts, strict=True)
    ]
    try:
        root, expected = span(leaves, place, size, unb64u(proofs[0]), unb64u(proofs[-1]))
    except ValueError:
        return None
    return root if b64u_all(expected) == proofs else None


class _Batch:
    """What the events of one batch have in common."""

    __slots__ = ("certificate", "permitted", "signature", "signed_ms", "size", "stored")

    def __init__(self, certificate: Certificate, signed_ms: int, size: int, signature: str, last_ms: int) -> None:
        self.certificate = certificate
        self.signed_ms = signed_ms
        self.size = size
        self.signature = signature
        self.stored = signed_ms - CLOCK_AHEAD_MS, last_ms  # stream times that V7 and V8 allow: first and last
        self.permitted: set[tuple[str, str]] = set()  # type and source that V5 allows


class Together:
    """Verifies for one consumer, beside its *verifier*."""

    __slots__ = ("_keyring", "_verifier")

    def __init__(self, verifier: Verifier) -> None:
        self._keyring = verifier.keyring
        self._verifier = verifier

    def verify(self, events: Sequence[Received]) -> list[Verified | None]:
        """For each of *events*, in their order: verified, or None where `Verifier.verify` has to be asked."""
        events = list(events)
        verdicts: list[Verified | None] = [None] * len(events)
        known: Shared | None = None
        batch: _Batch | None = None
        for start, place, shared, salts, proofs in neighbours(events):
            if shared != known:
                known, batch = shared, self._batch(*shared)
            if batch is not None:
                end = start + len(salts)
                verdicts[start:end] = self._verify(batch, events[start:end], salts, proofs, place)
        return verdicts

    def _verify(
        self, batch: _Batch, events: list[Received], salts: list[str], proofs: list[str], place: int
    ) -> list[Verified | None]:
        """What is said of neighbours in the tree of *batch*, the first of which is at *place*."""
        verdicts: list[Verified | None] = [None] * len(events)
        contents = _read(events)
        start, tenant = 0, self._verifier.tenant
        while start < len(events):
            said: set[tuple[str, str]] = set()
            end = agreed(contents, start, batch.stored, tenant, said)
            some = slice(start, end)
            if start < end and self._permits(batch, said):
                root = common_root(events[some], salts[some], proofs[some], place + start, batch.size)
                if root is not None and self._is_signed(batch, root):
                    spiffe_id, kid = batch.certificate.spiffe_id, batch.certificate.kid
                    verdicts[some] = [  # type: ignore[misc]  # no content is None: they agreed
                        Verified(received, fields, at, spiffe_id, kid) for received, fields, at in contents[some]
                    ]
            start = end + 1
        return verdicts

    def _batch(self, kid: str, signed: str, size: int, signature: str) -> _Batch | None:
        """V1 to V4 and V8 as far as they are the same for all of a batch; None where that is not plain."""
        try:
            signed_ms = signed_at(kid, signed, signature)
        except ValueError:
            return None
        certificate = self._keyring.find(kid, signed_ms)
        if certificate is None or not certificate.not_before_ms <= signed_ms <= certificate.not_after_ms:
            return None
        last_ms = signed_ms + SIGNED_AGE_MS
        revoked_ms = self._keyring.refused_from(certificate)
        if revoked_ms is not None:
            last_ms = min(last_ms, revoked_ms - 1)
        return _Batch(certificate, signed_ms, size, signature, last_ms)

    def _permits(self, batch: _Batch, said: set[tuple[str, str]]) -> bool:
        """V5: whether policy lets who sealed *batch* publish each type from each source in *said*."""
        permits, spiffe_id = self._verifier.permits, batch.certificate.spiffe_id
        for type_, source in said - batch.permitted:
            if not permits(spiffe_id, type_, source):
                return False
            batch.permitted.add((type_, source))
        return True

    def _is_signed(self, batch: _Batch, root: bytes) -> bool:
        """V9, the other half of `common_root`."""
        return self._verifier.is_signed(root, batch.certificate, batch.signed_ms, batch.size, batch.signature)


def _read(events: list[Received]) -> list[Content | None]:
    """Body and subject of each (V1); None where one of them cannot be read."""
    contents: list[Content | None] = []
    for received in events:
        try:
            contents.append((received, decode(received.body), place_of(received.subject)))
        except InputError:
            contents.append(None)
    return contents
