"""Dead letters as data: what they tell, what they are called, and how one becomes a delivery again."""

from __future__ import annotations

import msgspec
import pytest

from mesh import deadletters
from mesh.deadletters import (
    MAX_ERROR_CHARS,
    MAX_HISTORY,
    MAX_TOLD_CHARS,
    Attempt,
    Cause,
    DeadLetterRecord,
    History,
    letter_of,
    message_id,
    read,
    record,
    stored_as,
    term_reason,
)  # fmt: skip
from mesh.errors import BadEnvelope
from mesh.redriven import unwrap, wrap
from mesh.signing import Received

BODY = (
    b'{"id": "evt-1", "source": "/crm", "type": "crm.contact.created.v1", "correlationid": "case-1",'
    b' "traceparent": "00-a-b-01", "data": {"name": "\\u00fc"}}'
)
RECEIVED = Received(
    subject="ev.local.service.s03.crm.contact.created.v1",
    body=BODY,
    msg_ids=("AAAAAAAAAAAAAAAAAAAAAA",),
    signature="1.kid",
    stream="EV_local_crm",
    sequence=7,
    stream_ms=1_700_000_000_000,
    deliveries=3,
    reply="$JS.ACK.x",
)
# Written by the first version that had dead letters.
OLD = (
    b'{"team":"support","subscription":"contacts","reason":"attempts-exhausted","error_class":"LookupError",'
    b'"attempts":2,"stream":"EV_local_crm","sequence":7,"subject":"ev.local.service.s03.crm.contact.created.v1",'
    b'"stream_ms":1700000000000,"dead_ms":1700000001000,"msg_id":"AAAAAAAAAAAAAAAAAAAAAA","signature":"1.kid",'
    b'"first_error":"LookupError: a","last_error":"LookupError: b","event":{"id":"evt-1","source":"/crm"}}'
)


def letter(received: Received = RECEIVED, *, history: History | None = None, verified: bool = True) -> DeadLetterRecord:
    """As the library writes one."""
    return record(
        received,
        Cause("no-customer", "LookupError", "LookupError: none"),
        history or History(),
        owner=("support", "contacts"),
        dead_ms=1_700_000_002_000,
        verified=verified,
    )


# --- what they tell --------------------------------------------------------------------------------------------------


def test_a_letter_tells_each_attempt() -> None:
    """When each failed, of which class, what it said where that is another text; the first and the last; the trace."""
    history = History()
    for at_ms, text in ((1, "LookupError: a"), (2, "LookupError: a"), (3, "LookupError: b")):
        history.add(at_ms, "LookupError", text)
    found = read(letter(history=history).encode())
    assert found.history == (
        Attempt(1, "LookupError", "LookupError: a"),
        Attempt(2, "LookupError"),
        Attempt(3, "LookupError", "LookupError: b"),
    )
    assert (found.attempts, found.first_ms, found.last_ms) == (3, 1, 3)
    assert (found.first_error, found.last_error) == ("LookupError: a", "LookupError: none")
    assert (found.traceparent, found.correlation, found.key) == ("00-a-b-01", "case-1", ("/crm", "evt-1"))
    assert bytes(found.event) == BODY


def test_a_redriven_event_that_does_not_verify_may_be_anything() -> None:
    """What its letter held is kept as it is; nothing of it is told where it cannot be read."""
    broken = msgspec.structs.replace(RECEIVED, body=b'{"id": "\xff"}')
    found = letter(broken)
    assert (found.correlation, bytes(found.event)) == ("", b'{"id": "\xff"}')


@pytest.mark.parametrize("number", ["-1", "9223372036854775808", "1" + "0" * 30])
def test_a_number_that_none_of_ours_writes_is_no_letter(number: str) -> None:
    """It could not be encoded again."""
    assert read(OLD).attempts == 2
    with pytest.raises(ValueError, match="no dead letter"):
        read(OLD.replace(b'"attempts":2', f'"attempts":{number}'.encode()))


def test_a_history_is_bounded() -> None:
    """Of many attempts the last are told, each with so much text; the first one is remembered."""
    history = History()
    for number in range(100):
        history.add(number + 1, "E" * 1000, f"{number} " + "x" * 1000)
    found = letter(history=history)
    assert (found.attempts, len(found.history), found.history[0].at_ms) == (100, MAX_HISTORY, 81)
    assert max(len(attempt.error) for attempt in found.history) == MAX_TOLD_CHARS
    assert (len(found.first_error), found.first_error[:2], found.first_ms) == (MAX_ERROR_CHARS, "0 ", 1)
    worst = History()
    for number in range(MAX_HISTORY):
        worst.add(number, "E", f"{number}" + "\0" * 1000)
    assert len(letter(history=worst).encode()) - len(BODY) < 60 * 1024  # what `DLQ_MESSAGE_BYTES` leaves for it


def test_an_event_nobody_saw_fail_counts_its_deliveries() -> None:
    """Another process had it, and ended: there are no attempts to tell."""
    found = letter()
    assert (found.attempts, found.history, found.first_ms) == (3, (), 0)


def test_an_unverified_event_is_left_out() -> None:
    """Nobody vouches for it: not for its trace either."""
    found = read(letter(verified=False).encode())
    assert (found.has_event, found.fields, found.key) == (False, None, None)
    assert (found.correlation, found.traceparent) == ("", "")


def test_an_older_letter_is_read() -> None:
    """What it does not tell is empty."""
    found = read(OLD)
    assert (found.reason, found.attempts, found.first_error) == ("attempts-exhausted", 2, "LookupError: a")
    assert (found.history, found.first_ms, found.redriven, found.former, found.redrive) == ((), 0, 0, 0, "")
    assert unwrap(msgspec.structs.replace(RECEIVED, body=wrap("r1", 4, OLD))).sequence == 7


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"\xff", b'{"team": 1}', b"[" * 10_000])
def test_what_is_no_letter_is_not_read(data: bytes) -> None:
    """It raises ValueError, and nothing else."""
    with pytest.raises(ValueError, match="no dead letter"):
        read(data)


# --- what they are called --------------------------------------------------------------------------------------------


def test_one_event_is_one_letter_for_each_durable_and_run() -> None:
    """A redriven or replayed event that fails again is another letter; delivered once more it is the same."""
    ids = [
        message_id(durable, msgspec.structs.replace(RECEIVED, **changes))
        for durable, changes in (
            ("support--contacts", {}),
            ("support--other", {}),
            ("support--contacts", {"sequence": 8}),
            ("support--contacts", {"redrive": "r1"}),
            ("support--contacts", {"redrive": "r2"}),
            ("support--contacts", {"replay": "p1"}),
        )
    ]
    assert len(set(ids)) == len(ids)
    assert message_id("support--contacts", msgspec.structs.replace(RECEIVED, deliveries=9)) == ids[0]


@pytest.mark.parametrize(
    ("reason", "number"),
    [
        (term_reason("bad-signature", 17), 17),
        ("bad-signature", 0),
        ("", 0),
        ("dlq:17", 0),
        ("x dlq:", 0),
        ("x dlq:-1", 0),
        ("x dlq:1x", 0),
        ("x dlq:\u0661", 0),
        ("x dlq:" + "9" * 30, 0),
        ("a dlq:1 dlq:2", 2),
    ],
)
def test_a_termination_names_its_letter(reason: str, number: int) -> None:
    """Only one that ends with a letter's number."""
    assert letter_of(reason) == number


@pytest.mark.parametrize(
    ("ack", "number"),
    [
        (b'{"stream":"DLQ","seq":3}', 3),
        (b'{"stream":"DLQ","seq":3,"duplicate":true}', 3),
        (b'{"stream":"EV","seq":3}', 0),
        (b'{"error":{"code":503},"stream":"DLQ","seq":0}', 0),
        (b"", 0),
        (b"\xff", 0),
        (b'{"stream":"DLQ"}', 0),
    ],
)
def test_only_an_acknowledgement_of_the_stream_counts(ack: bytes, number: int) -> None:
    """Anything else says nothing about the letter."""
    assert stored_as(ack) == number


# --- as a delivery again ---------------------------------------------------------------------------------------------


def wrapped(body: bytes) -> Received:
    """As pulled from `REDRIVE`."""
    return Received("redrive.support.contacts", body, ("id",), None, "REDRIVE", 2, 5, 4, "$JS.ACK.REDRIVE.y")


def test_a_redriven_letter_is_the_delivery_it_was() -> None:
    """Everything that V1 to V9 look at is as on its first day; how it is settled is of the durable on `REDRIVE`."""
    found = unwrap(wrapped(wrap("r1", 4, letter().encode())))
    for name in ("subject", "body", "msg_ids", "signature", "stream", "sequence", "stream_ms"):
        assert getattr(found, name) == getattr(RECEIVED, name)
    assert (found.deliveries, found.reply, found.redrive, found.replay) == (4, "$JS.ACK.REDRIVE.y", "r1", "")
    assert found.letter == 4
    assert found.former is not None
    assert not found.former.has_event


def test_what_began_in_a_letter_goes_on_in_the_next() -> None:
    """The attempts of before, the first error of all, how often it was redriven, and as which letter."""
    before = History()
    before.add(1, "LookupError", "LookupError: a")
    first = unwrap(wrapped(wrap("r1", 4, letter(history=before).encode())))
    history = History(first.former, first.letter)
    history.add(9, "KeyError", "KeyError: b")
    second = letter(first, history=history)
    assert [attempt.at_ms for attempt in second.history] == [1, 9]
    assert (second.first_ms, second.first_error, second.last_ms) == (1, "LookupError: a", 9)
    assert (second.attempts, second.redriven, second.former, second.redrive) == (1, 1, 4, "r1")
    third = unwrap(wrapped(wrap("r2", 11, second.encode())))
    assert letter(third, history=History(third.former, third.letter)).redriven == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"run": "r1", "letter": 4, "record": null}',
        b'{"run": "r1", "letter": 4, "record": {}}',
        wrap("", 4, letter().encode()),
        wrap("r1", 4, letter(verified=False).encode()),
    ],
)
def test_what_is_no_redriven_letter_is_refused(body: bytes) -> None:
    """As an event that fails V1 is, so whoever pulls it quarantines it."""
    with pytest.raises(BadEnvelope) as refused:
        unwrap(wrapped(body))
    assert (refused.value.details["stream"], refused.value.details["sequence"]) == ("REDRIVE", 2)


def test_a_subject_names_its_owner() -> None:
    """A workload may write on its own."""
    assert deadletters.subject("support", "contacts") == "dlq.support.contacts"


def test_what_a_forger_wrote_into_headers_fits_into_a_letter() -> None:
    """A letter that is too large to be stored would be tried for ever, and its event stay in hand."""
    long = "\x01" * 500_000  # six characters each, in JSON
    forged = msgspec.structs.replace(RECEIVED, msg_ids=(long,), signature=long)
    kept = letter(forged, verified=False)
    assert kept.msg_id == kept.signature == long[:1024]
