"""The audit record and the chain it stands in. Pure: the edge stores the lines; `audit_check.py` checks them.

A record is one line of canonical JSON (sorted keys, no spaces). `prev` is the SHA-256 of the line before by the same
writer, so whoever changes, takes out or reorders a record breaks the chain at the next one. A writer is one process:
`<name>.<instance>`, numbering its records from 1. A stored message holds one line or several, on `audit.<name>`, the
only audit subject that NATS lets that workload publish: nobody writes in another's name.

    kind                 facts
    denied               event, type, source, principal (the agent), rule, reason, revision
    unmasked             event, type, source, view, rule, revision: handed over by a grant that expires
    policy-applied       revision, digest, author
    policy-rolled-back   the same, and rollback_of: the revision whose policies came back
    policy-refused       revision, code, and the author where it was an apply
    shadow-started       revision, digest, sample, author
    shadow-stopped       revision, digest, author
    trust-revoked        kids, from_ms (stream time of the cut; none without kids), epoch, author, reason;
                         workload where one was barred
    trust-rotated        agents, late (of them), from_ms, credentials (workloads), ca (the new kid),
                         revoked_cas (kids), author, reason; or store: the server's store has another key
    trust-admitted       workload, author, reason; written (by file name) where it was not barred and had lost files
    enrolled             workload, spiffe_id, kid, attested (by which attestor), and what that found: a pod, for one
    enrolment-refused    workload, code
    sequence-mark        epoch, index, rows, waiting, ends, kid, signed_ms, signature: how far an agent has counted
                         (`sequences.py`)
    spool-refused        event, type, source, view, reason, revision: a copy with a 202 that may not be sent any more
    dlq-redriven         run, letters (how many), refused, first, last (numbers in DLQ), of (whose), for_* (the filter),
                         author, reason
    dlq-discarded        the same without run and refused
    dlq-exported         likewise
    replay-started       run, team, subscription, types, streams (first and last sequence of each), copies, author,
                         reason
    replay-finished      the same
    replay-cancelled     the same, and left: how many copies were not settled
    audit-lost           lost: how many records before this one were dropped

A flood of equal `denied` or `unmasked` records is folded (`audit_fold.py`): `count` says of how many events, `event` is
the last of them and `first` the first; `types` and `sources` list a few where there were many.

Facts are names, rule ids, the policy's paths, counts and the event's id, type and source; never another value of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

VERSION: Final = 1
SUBJECT: Final = "audit."  # what follows is the writer's name
STREAM: Final = "AUDIT"
CONTROL: Final = "_control"  # the control plane's name as a writer: no agent and no team can be called so

DENIED: Final = "denied"
UNMASKED: Final = "unmasked"
POLICY_APPLIED: Final = "policy-applied"
POLICY_ROLLED_BACK: Final = "policy-rolled-back"
POLICY_REFUSED: Final = "policy-refused"
SHADOW_STARTED: Final = "shadow-started"
SHADOW_STOPPED: Final = "shadow-stopped"
ENROLLED: Final = "enrolled"
ENROLMENT_REFUSED: Final = "enrolment-refused"
TRUST_REVOKED: Final = "trust-revoked"
TRUST_ROTATED: Final = "trust-rotated"
TRUST_ADMITTED: Final = "trust-admitted"
SEQUENCE_MARK: Final = "sequence-mark"
SPOOL_REFUSED: Final = "spool-refused"
DLQ_REDRIVEN: Final = "dlq-redriven"
DLQ_DISCARDED: Final = "dlq-discarded"
DLQ_EXPORTED: Final = "dlq-exported"
REPLAY_STARTED: Final = "replay-started"
REPLAY_FINISHED: Final = "replay-finished"
REPLAY_CANCELLED: Final = "replay-cancelled"
LOST: Final = "audit-lost"
KINDS: Final = (
    DENIED, UNMASKED, POLICY_APPLIED, POLICY_ROLLED_BACK, POLICY_REFUSED, SHADOW_STARTED, SHADOW_STOPPED,
    ENROLLED, ENROLMENT_REFUSED, TRUST_REVOKED, TRUST_ROTATED, TRUST_ADMITTED, SEQUENCE_MARK, SPOOL_REFUSED,
    DLQ_REDRIVEN, DLQ_DISCARDED, DLQ_EXPORTED, REPLAY_STARTED, REPLAY_FINISHED, REPLAY_CANCELLED, LOST,
)  # fmt: skip

MAX_TEXT = 300  # characters of a fact: a sentence fits, a payload does not
MAX_ITEMS = 100  # of a list or a mapping among the facts
MAX_NESTING = 2  # of lists and mappings among them
MAX_LINE_BYTES = 65_536  # of one record, and of the lines that share a message

_encode = msgspec.json.Encoder(order="sorted").encode


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One record, as stored.

    Attributes:
        writer: `<name>.<instance>`: one process.
        seq: From 1, by writer.
        prev: SHA-256 in hex of the writer's line before; empty for the first.
        at_ms: Unix milliseconds, the writer's clock.
        kind: What happened; one of `KINDS`, or a later version's.
        facts: About it.
        v: Of the format.
    """

    writer: str
    seq: int
    prev: str
    at_ms: int
    kind: str
    facts: dict[str, Any] = {}
    v: int = VERSION

    def encode(self) -> bytes:
        """The record as a line, in canonical form."""
        return _encode(self)

    @property
    def name(self) -> str:
        """The workload's: the subject it is stored on names it too."""
        return self.writer.rpartition(".")[0]


class Chain:
    """One writer's records, each bound to the one before."""

    def __init__(self, writer: str) -> None:
        self.writer = writer
        self._seq = 0
        self._prev = ""

    def append(self, kind: str, at_ms: int, facts: Mapping[str, Any]) -> bytes:
        """The next record as a line, without its end.

        Args:
            kind: One of `KINDS`.
            at_ms: Unix milliseconds.
            facts: Text is cut at `MAX_TEXT`, lists and mappings at `MAX_ITEMS`; of what is neither text, number nor a
                list or mapping of such only its type is kept. A record beyond `MAX_LINE_BYTES` loses its facts.
        """
        record = Record(
            writer=self.writer, seq=self._seq + 1, prev=self._prev, at_ms=at_ms, kind=kind, facts=_plain_map(facts)
        )
        line = record.encode()
        if len(line) > MAX_LINE_BYTES:
            line = msgspec.structs.replace(record, facts={"cut": len(line)}).encode()
        self._seq += 1
        self._prev = digest(line)
        return line


def digest(line: bytes) -> str:
    """What the next record names this one by: SHA-256 of the line, in hex."""
    return sha256(line).hexdigest()


def read(line: bytes) -> Record:
    """The record of one line.

    Raises:
        ValueError: It is none.
    """
    try:
        return msgspec.json.decode(line, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no audit record: {type(error).__name__}") from None


def lines(body: bytes) -> list[bytes]:
    """The records of one message."""
    return body.split(b"\n")


def _plain_map(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name)[:MAX_TEXT]: _plain(facts[name]) for name in list(facts)[:MAX_ITEMS] if facts[name] is not None}


def _plain(value: Any, depth: int = 0) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            text = "".join(c if c.isprintable() else "�" for c in value[:MAX_TEXT])
            return text if len(value) <= MAX_TEXT else text + "…"
        case list() | tuple() | set() | frozenset() if depth < MAX_NESTING:
            return [_plain(item, depth + 1) for item in list(value)[:MAX_ITEMS]]
        case Mapping() if depth < MAX_NESTING:
            return {str(k)[:MAX_TEXT]: _plain(v, depth + 1) for k, v in list(value.items())[:MAX_ITEMS]}
        case _:
            return f"<{type(value).__name__}>"
