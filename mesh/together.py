"""Events that came together, verified together. Pure.

The events of a sealed batch come one behind the other and share key, signing time, signature and Merkle tree. What they
share is looked at once here, and their tree is climbed once for all of them, at one hash an event.

Only a plain yes is said here. Whatever is not plain, and every no, is left to `Verifier.verify`, which knows the step
that failed and what to do; `tests/unit/test_together.py` holds the two against each other.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING

from mesh.base64url import b64u_all, unb64u
from mesh.errors import InputError
from mesh.event import decode
from mesh.merkle import span
from mesh.signing import CLOCK_AHEAD_MS, MAX_BODY_BYTES, SIGNED_AGE_MS, Verified, place_of
from mesh.statements import MESSAGE_ID, NUMBERS, signed_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from mesh.identity import Certificate
    from mesh.signing import Received, Verifier
    from mesh.subjects import Physical

_PARTS = 8
_ID_AND_SALT = re.compile(rf"{MESSAGE_ID.pattern}\.{MESSAGE_ID.pattern}").fullmatch


class _Batch:
    """What the events of one batch have in common, and those of them in hand: neighbours in the tree, in order."""

    __slots__ = (
        "certificate", "events", "first", "first_ms", "last_ms", "leaves", "next", "permitted", "proofs", "signature",
        "signed_ms", "size",
    )  # fmt: skip

    def __init__(self, certificate: Certificate, signed_ms: int, size: int, signature: str, last_ms: int) -> None:
        self.certificate = certificate
        self.signed_ms = signed_ms
        self.size = size
        self.signature = signature
        self.first_ms, self.last_ms = signed_ms - CLOCK_AHEAD_MS, last_ms  # stream times that V7 and V8 allow
        self.permitted: set[tuple[str, str]] = set()  # type and source that V5 allows
        self.begin(0)

    def begin(self, position: int) -> None:
        """Nothing is in hand, and what comes next stands at *position*."""
        self.first = self.next = position
        self.leaves: list[bytes] = []
        self.proofs: list[str] = []
        self.events: list[tuple[int, Received, dict[str, Any], Physical]] = []


class Together:
    """Verifies for one consumer, beside its *verifier*."""

    __slots__ = ("_keyring", "_verifier")

    def __init__(self, verifier: Verifier) -> None:
        self._keyring = verifier.keyring
        self._verifier = verifier

    def verify(self, events: Sequence[Received]) -> list[Verified | None]:
        """For each of *events*, in their order: verified, or None where `Verifier.verify` has to be asked."""
        verdicts: list[Verified | None] = [None] * len(events)
        shared: tuple[str, ...] = ()
        batch: _Batch | None = None
        permits, tenant = self._verifier.permits, self._verifier.tenant
        for number, received in enumerate(events):
            parts = (received.signature or "").split(".", _PARTS)  # a header of dots alone is not taken apart
            if len(parts) != _PARTS or len(received.msg_ids) != 1:
                continue
            version, kid, signed, salt, index, count, proof, signature = parts
            if shared != (kid, signed, count, signature):
                self._settle(batch, verdicts)
                shared = kid, signed, count, signature
                batch = self._batch(kid, signed, count, signature)
            position = NUMBERS.get(index, batch.size) if batch is not None else 0
            if batch is None or position >= batch.size or version != "1":
                continue
            subject, body, msg_id = received.subject, received.body, received.msg_ids[0]
            if not batch.first_ms <= received.stream_ms <= batch.last_ms or len(body) > MAX_BODY_BYTES:
                continue
            try:
                place, fields = place_of(subject), decode(body)
            except InputError:
                continue
            get, type_ = fields.get, place.type
            source, id_ = get("source"), get("id")
            if (
                get("type") != type_
                or get("view") != place.view
                or get("specversion") != "1.0"
                or (tenant is not None and get("tenant") != tenant)
                or type(source) is not str
                or type(id_) is not str
                or not source
                or not id_
                or _ID_AND_SALT(f"{msg_id}.{salt}") is None
            ):
                continue
            if (type_, source) not in batch.permitted:
                if not permits(batch.certificate.spiffe_id, type_, source):
                    continue
                batch.permitted.add((type_, source))
            if position != batch.next or not batch.leaves:
                self._settle(batch, verdicts)
                batch.begin(position)
            batch.next = position + 1
            said = f"\0mesh-event-v1\n{subject}\n{msg_id}\n{salt}\n".encode()
            batch.leaves.append(sha256(said + body).digest())
            batch.proofs.append(proof)
            batch.events.append((number, received, fields, place))
        self._settle(batch, verdicts)
        return verdicts

    def _batch(self, kid: str, signed: str, count: str, signature: str) -> _Batch | None:
        """V1 to V4 and V8 as far as they are the same for all of a batch; None where that is not plain."""
        size = NUMBERS.get(count, 0)
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

    def _settle(self, batch: _Batch | None, verdicts: list[Verified | None]) -> None:
        """V9 for what is in hand of *batch*: every proof is the one that the others lead to, and the root is signed."""
        if batch is None or not batch.leaves:
            return
        certificate, texts = batch.certificate, batch.proofs
        try:
            root, proofs = span(batch.leaves, batch.first, batch.size, unb64u(texts[0]), unb64u(texts[-1]))
        except ValueError:
            return
        if b64u_all(proofs) != texts or not self._verifier.is_signed(
            root, certificate, batch.signed_ms, batch.size, batch.signature
        ):
            return
        spiffe_id, kid = certificate.spiffe_id, certificate.kid
        for number, received, fields, place in batch.events:
            verdicts[number] = Verified(received, fields, place, spiffe_id, kid)
        batch.begin(0)
